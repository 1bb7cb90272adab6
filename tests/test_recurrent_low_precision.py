"""Recurrent networks on bfloat16 and float16 arrays, under every instruction set (avx512bf16 multiplies pairs)."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.low_precision import BFLOAT16, LOW, LowPrecisionRule, Rounded, same
from tests.ordered import matmul, tanh
from tests.specification import plain
from tests.test_recurrent import GATES, draw, forms, run, spec, weight_form

SIZES = [(3, 2, 5, 17), (4, 13, 31, 16), (5, 26, 33, 37), (2, 1, 70, 130), (6, 40, 32, 64)]


@pytest.fixture(params=LOW.values(), ids=LOW)
def low(request):
    """Runs the test with each 16-bit type."""
    return request.param


def draw_low(rng, cell, T, B, I, H, dtype, layers=1, directions=1, **form):
    x, state, weights = draw(rng, cell, T, B, I, H, np.float32, layers, directions, **form)
    return (
        x.astype(dtype), tuple(part.astype(dtype) for part in state),
        {name: w.astype(dtype) for name, w in weights.items()},
    )  # fmt: skip


class RoundedCells:
    """The cells in NumPy, each operation rounded to the 16-bit type; arrays are float32."""

    sequence = staticmethod(functools.partial(reference.sequence, dtype=np.float32))

    def __init__(self, dtype):
        self.q = Rounded(dtype)

    def affine(self, x, w, b):
        y = self.q(matmul(x, w.T))
        return y if b is None else self.q(y + b)

    def gate(self, function, x, limit):
        """The function of x, which is rounded and clipped first."""
        x = self.q(x)
        return self.q(function(x if limit is None else np.clip(x, np.float32(-limit), np.float32(limit))))

    def rnn_cell(self, x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity="tanh", gate_clip=None):
        a = self.affine(x, w_ih, b_ih) + self.affine(h, w_hh, b_hh)
        return self.gate(getattr(plain, nonlinearity), a, gate_clip)

    def gru_cell(self, x, h, w_ih, w_hh, b_ih, b_hh, linear_before_reset=True, gate_clip=None):
        q, H = self.q, h.shape[1]
        x_r, x_z, x_n = np.split(self.affine(x, w_ih, b_ih), 3, axis=-1)
        h_r, h_z, h_n = np.split(self.affine(h, w_hh, b_hh), 3, axis=-1)
        r, z = (self.gate(plain.sigmoid, a, gate_clip) for a in (x_r + h_r, x_z + h_z))
        h_n = q(r * h_n) if linear_before_reset else self.affine(q(r * h), w_hh[2 * H :], b_hh[2 * H :])
        n = self.gate(tanh, x_n + h_n, gate_clip)
        return q(q(q(1 - z) * n) + q(z * h))

    def lstm_cell(self, x, h, c, w_ih, w_hh, b_ih, b_hh, peephole=None, w_hr=None, coupled=False, clip=None,
                  gate_clip=None):  # fmt: skip
        q, parts = self.q, 3 if coupled else 4
        a = np.split(q(self.affine(x, w_ih, b_ih) + self.affine(h, w_hh, b_hh)), parts, axis=-1)
        p = np.zeros((parts - 1, 1), np.float32) if peephole is None else peephole
        i = self.gate(plain.sigmoid, a[0] + q(p[0] * c), gate_clip)
        f = q(1 - i) if coupled else self.gate(plain.sigmoid, a[1] + q(p[1] * c), gate_clip)
        c = q(q(f * c) + q(i * self.gate(tanh, a[-2], gate_clip)))
        c = c if clip is None else np.clip(c, np.float32(-clip), np.float32(clip))
        h = q(self.gate(plain.sigmoid, a[-1] + q(p[-1] * c), gate_clip) * q(tanh(c)))
        return h if w_hr is None else self.affine(h, w_hr, None), c


def single(value):
    if isinstance(value, tuple):
        return tuple(map(single, value))
    return {name: single(w) for name, w in value.items()} if isinstance(value, dict) else value.astype(np.float32)


def double(value):
    if isinstance(value, tuple):
        return tuple(map(double, value))
    return {name: double(w) for name, w in value.items()} if isinstance(value, dict) else value.astype(np.float64)


@forms
def test_sequences_lie_within_the_error_rule(cell, options, isa, low, rng):
    rule = LowPrecisionRule()
    for sizes in SIZES:
        x, state, weights = draw_low(rng, cell, *sizes, low, **weight_form(options))
        wanted = spec(reference, cell, double(x), double(state), double(weights), **options)
        yardstick = spec(RoundedCells(low), cell, single(x), single(state), single(weights), **options)
        for got, simple, exact in zip(run(cell, x, state, weights, **options), yardstick, wanted, strict=True):
            rule.add(got, simple.astype(low), exact)
    rule.check()


@forms
def test_a_ragged_row_has_the_bits_of_the_sequence_alone(cell, options, isa, low, rng):
    lengths = np.array([0, 7, 3, 1, 7, 5])
    x, state, weights = draw_low(rng, cell, 7, 6, 5, 18, low, 2, 2, **weight_form(options))
    y, *after = run(cell, x, state, weights, lengths=lengths, **options)
    for b, n in enumerate(lengths):
        alone, *final = run(cell, x[:n, b : b + 1], tuple(p[:, b : b + 1] for p in state), weights, **options)
        assert same(y[:n, b : b + 1], alone)
        assert not double(y[n:, b]).any()
        assert all(same(got[:, b : b + 1], wanted) for got, wanted in zip(after, final, strict=True))


@forms
def test_result_does_not_depend_on_thread_count(cell, options, low, rng):
    for T, B, H, layers, directions in ((12, 40, 64, 1, 1), (30, 4, 64, 2, 2), (6, 2, 256, 1, 1)):
        x, state, weights = draw_low(rng, cell, T, B, 32, H, low, layers, directions, **weight_form(options))
        results = []
        for threads in (1, 2, 5):
            with fa.num_threads(threads):
                results.append(run(cell, x, state, weights, **options))
        assert all(same(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


@forms
@pytest.mark.parametrize("steps", [1, 4])
def test_packed_weights_give_the_same_bits(cell, options, isa, low, steps, rng):
    x, state, weights = draw_low(rng, cell, steps, 3, 6, 21, low, 2, 2, **weight_form(options))
    form = {k: v for k, v in options.items() if k in ("linear_before_reset", "coupled")}
    packed = getattr(fa, f"pack_{cell}")(weights, **form)
    assert (packed.dtype, packed.weight_dtype) == (low, low.name)
    wanted = run(cell, x, state, weights, **options)
    assert all(same(a, b) for a, b in zip(run(cell, x, state, packed, **options), wanted, strict=True))


@pytest.mark.parametrize("cell", GATES)
def test_h_is_rounded_at_each_step(cell, low, rng):
    """A sequence that is cut goes on with the same h; a cell is its first step."""
    x, state, weights = draw_low(rng, cell, 6, 3, 5, 18, low)
    y, *_ = run(cell, x, state, weights)
    first, *after = run(cell, x[:1], state, weights)
    assert same(first, y[:1])
    assert same(after[0][0], y[0])
    if cell != "lstm":  # c is float32 within a call, and rounded between calls
        rest, *_ = run(cell, x[1:], tuple(after), weights)
        assert same(rest, y[1:])
    own = [weights[f"{kind}_l0"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    one = getattr(fa, f"{cell}_cell")(x[0], *(part[0] for part in state), *own)
    assert same(one[0] if cell == "lstm" else one, y[0])


@pytest.mark.parametrize("cell", GATES)
def test_batch_first_and_no_state(cell, low, rng):
    x, _, weights = draw_low(rng, cell, 5, 3, 4, 6, low, 2, 2)
    y, *_ = run(cell, x, None, weights)
    assert same(run(cell, np.ascontiguousarray(x.swapaxes(0, 1)), None, weights, batch_first=True)[0].swapaxes(0, 1), y)


def test_narrower_weights_are_refused(rng):
    x, state, weights = draw_low(rng, "lstm", 2, 2, 3, 4, BFLOAT16)
    with pytest.raises(TypeError, match="pack_lstm: weights must be float32 to be packed as int8, got bfloat16"):
        fa.pack_lstm(weights, dtype="int8")
    with pytest.raises(TypeError, match="lstm: weight_hh_l0 must be bfloat16 like the other arrays, got float32"):
        fa.lstm(x, state, weights | {"weight_hh_l0": weights["weight_hh_l0"].astype(np.float32)})


# Every block of scratch ends, but for the rounding of its size, at a page that nobody may touch. Nothing is freed.
GUARDS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>
static uintptr_t lowest = UINTPTR_MAX, highest;
int posix_memalign(void **p, size_t alignment, size_t n)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (n + page - 1) / page * page;
    char *block = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED || mprotect(block + size, page, PROT_NONE)) return 12;
    *p = block + size - (n + alignment - 1) / alignment * alignment;
    if ((uintptr_t)*p < lowest) lowest = (uintptr_t)*p;
    if ((uintptr_t)*p > highest) highest = (uintptr_t)*p;
    return 0;
}
void free(void *p)
{
    static void (*next)(void *);
    if (!next) next = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    if ((uintptr_t)p < lowest || (uintptr_t)p > highest) next(p);
}
"""
SCRATCH = """
import sys
import ml_dtypes
import numpy as np
import fastattn as fa
from tests.test_recurrent import FORMS, draw, run, weight_form
fa.set_num_threads(2)
rng = np.random.default_rng(0)
for kind in (np.float32, ml_dtypes.bfloat16, np.float16):
    for cell, options in FORMS:
        x, state, weights = draw(rng, cell, 9, 30, 8, 48, np.float32, 2, 2, **weight_form(options))
        weights = {name: w.astype(kind) for name, w in weights.items()}
        run(cell, x.astype(kind), tuple(part.astype(kind) for part in state), weights, **options)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs a C compiler and LD_PRELOAD")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer's library has to come first")
def test_no_call_writes_beyond_its_scratch(tmp_path):
    source, library = tmp_path / "guards.c", tmp_path / "guards.so"
    source.write_text(GUARDS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", SCRATCH], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr

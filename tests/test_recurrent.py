"""rnn, gru and lstm, their cells and packed weights: values, schedules, streaming, and wrong input."""

import os
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import fastattn as fa
from fastattn import _core, reference
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
FORMS = [
    ("rnn", {"nonlinearity": "tanh"}),
    ("rnn", {"nonlinearity": "relu"}),
    ("rnn", {"nonlinearity": "sigmoid"}),
    ("gru", {"linear_before_reset": True}),
    ("gru", {"linear_before_reset": False}),
    ("lstm", {}),
    ("lstm", {"peephole": True}),
    ("lstm", {"proj": 3}),
    ("lstm", {"coupled": True}),
    ("lstm", {"clip": 0.25}),
    ("lstm", {"peephole": True, "proj": 19, "coupled": True, "clip": 0.5}),
]
WEIGHT_FORMS = ("peephole", "proj", "coupled")  # what is seen in the weights


def weight_form(options):
    return {name: value for name, value in options.items() if name in WEIGHT_FORMS}


SIZES = [(1, 1, 1, 1), (3, 2, 5, 17), (4, 13, 31, 16), (5, 26, 33, 37), (2, 1, 70, 130)]
forms = pytest.mark.parametrize(
    ("cell", "options"), FORMS, ids=lambda v: v if isinstance(v, str) else "-".join(f"{n}={x}" for n, x in v.items())
)


def uniform(rng, shape, dtype, bound):
    return rng.uniform(-bound, bound, shape).astype(dtype)


def draw(rng, cell, T, B, I, H, dtype, layers=1, directions=1, bias=True, peephole=False, proj=0, coupled=False):
    """x, the state and weights by PyTorch's names; weights of the size that trained ones have. proj: units of h."""
    rows, bound, weights, P = (GATES[cell] - coupled) * H, 1 / np.sqrt(H), {}, proj or H
    for layer in range(layers):
        for side in ("", "_reverse")[:directions]:
            inputs = I if layer == 0 else directions * P
            suffix = f"_l{layer}{side}"
            weights["weight_ih" + suffix] = uniform(rng, (rows, inputs), dtype, bound)
            weights["weight_hh" + suffix] = uniform(rng, (rows, P), dtype, bound)
            if proj:
                weights["weight_hr" + suffix] = uniform(rng, (P, H), dtype, bound)
            if bias:
                weights["bias_ih" + suffix] = uniform(rng, rows, dtype, bound)
                weights["bias_hh" + suffix] = uniform(rng, rows, dtype, bound)
            if peephole:
                weights["weight_peephole" + suffix] = uniform(rng, (3 - coupled, H), dtype, bound)
    sizes = (P, H)[: 2 if cell == "lstm" else 1]
    state = tuple(uniform(rng, (layers * directions, B, size), dtype, 1) for size in sizes)
    return rng.standard_normal((T, B, I)).astype(dtype), state, weights


def run(cell, x, state, weights, **options):
    """y and the final states as a tuple, from `state` as a tuple or None."""
    for name in ("peephole", "proj"):
        options.pop(name, None)
    if state is not None and cell != "lstm":
        (state,) = state
    y, after = getattr(fa, cell)(x, state, weights, **options)
    return (y, *after) if cell == "lstm" else (y, after)


def spec(module, cell, x, state, weights, lengths=None, layers=1, directions=1, **options):
    """The same by the cells and `sequence` of the reference, or of the plain implementation."""
    for name in ("peephole", "proj"):
        options.pop(name, None)
    finals = []
    for layer in range(layers):
        ys = []
        for d, side in enumerate(("", "_reverse")[:directions]):
            names = [f"{kind}_l{layer}{side}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            own = [weights.get(name) for name in names]
            extra = dict(options)
            for name, kind in (("peephole", "weight_peephole"), ("w_hr", "weight_hr")):
                if f"{kind}_l{layer}{side}" in weights:
                    extra[name] = weights[f"{kind}_l{layer}{side}"]

            def step(x, *s, own=own, extra=extra):
                return getattr(module, cell + "_cell")(x, *s, *own, **extra)

            start = tuple(part[layer * directions + d] for part in state)
            y, after = module.sequence(step, x, start, lengths=lengths, reverse=bool(d))
            ys.append(y)
            finals.append(after)
        x = np.concatenate(ys, axis=-1)
    return (x, *(np.stack(parts) for parts in zip(*finals, strict=True)))


# ---- values ----


@forms
def test_sequences_lie_within_the_error_rule(cell, options, isa, dtype, rng):
    rule = ErrorRule()
    for T, B, I, H in SIZES:
        x, state, weights = draw(rng, cell, T, B, I, H, dtype, **weight_form(options))
        wanted = spec(exact(dtype), cell, x, state, weights, **options)
        yardstick = spec(plain, cell, x, state, weights, **options)
        for part in zip(run(cell, x, state, weights, **options), yardstick, wanted, strict=True):
            rule.add(*part)
    rule.check()


@pytest.mark.parametrize("cell", GATES)
def test_layers_and_directions_lie_within_the_error_rule(cell, dtype, rng):
    rule = ErrorRule()
    for layers, directions in ((1, 2), (3, 1), (2, 2)):
        for T, B in ((1, 1), (6, 3), (4, 30)):
            x, state, weights = draw(rng, cell, T, B, 9, 20, dtype, layers, directions)
            lengths = rng.integers(0, T + 1, B)
            options = {"layers": layers, "directions": directions, "lengths": lengths}
            wanted = spec(exact(dtype), cell, x, state, weights, **options)
            yardstick = spec(plain, cell, x, state, weights, **options)
            for part in zip(run(cell, x, state, weights, lengths=lengths), yardstick, wanted, strict=True):
                rule.add(*part)
    rule.check()


@forms
def test_a_cell_is_one_step_of_a_sequence(cell, options, isa, dtype, rng):
    options = dict(options)
    x, state, weights = draw(rng, cell, 1, 5, 7, 19, dtype, **weight_form(options))
    own = [weights[f"{kind}_l0"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    options.pop("proj", None)
    extra = {name: weights[kind] for name, kind in (("peephole", "weight_peephole_l0"), ("w_hr", "weight_hr_l0"))
             if kind in weights}  # fmt: skip
    after = getattr(fa, cell + "_cell")(x[0], *(part[0] for part in state), *own, **(options | extra))
    sequence = run(cell, x, state, weights, **options)
    for got, wanted in zip(after if isinstance(after, tuple) else (after,), sequence[1:], strict=True):
        assert same_bits(got, wanted[0])


@pytest.mark.parametrize("cell", GATES)
def test_no_state_is_a_state_of_zeros_and_no_bias_a_bias_of_zeros(cell, dtype, rng):
    x, state, weights = draw(rng, cell, 4, 3, 5, 6, dtype)
    zeros = tuple(np.zeros_like(part) for part in state)
    for got, wanted in zip(run(cell, x, None, weights), run(cell, x, zeros, weights), strict=True):
        assert same_bits(got, wanted)
    bare = {name: w for name, w in weights.items() if name.startswith("weight")}
    filled = bare | {name: np.zeros_like(w) for name, w in weights.items() if name.startswith("bias")}
    for got, wanted in zip(run(cell, x, state, bare), run(cell, x, state, filled), strict=True):
        assert same_bits(got, wanted)


@pytest.mark.parametrize(("units", "hidden"), [(0, 5), (5, 0)])
def test_a_projection_may_be_of_or_to_no_units(units, hidden, rng):
    zeros = np.zeros
    weights = {"weight_ih_l0": zeros((4 * hidden, 3)), "weight_hh_l0": zeros((4 * hidden, units)),
               "weight_hr_l0": zeros((units, hidden))}  # fmt: skip
    state = np.ones((1, 2, units)), np.ones((1, 2, hidden))
    (y, (h, c)), saved = fa.lstm_forward(np.ones((4, 2, 3)), state, weights)
    assert y.shape == (4, 2, units)
    assert not y.any() and not h.any()
    assert (c == 0.5**4).all()
    dx, (dh, dc), _ = fa.lstm_backward((None, (np.ones_like(h), np.ones_like(c))), saved)
    assert not dx.any() and not dh.any()
    assert (dc == 0.5**4).all()


def test_the_clip_is_reached_and_kept(dtype, rng):
    x, state, weights = draw(rng, "lstm", 5, 3, 4, 6, dtype)
    _, _, c = run("lstm", 10 * x, state, weights, clip=0.125)
    assert (np.abs(c) <= 0.125).all()
    assert (np.abs(c) == 0.125).any()
    wide = run("lstm", x, state, weights, clip=np.inf)
    assert all(same_bits(a, b) for a, b in zip(wide, run("lstm", x, state, weights), strict=True))


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize(("T", "B", "I", "H"), [(0, 3, 4, 5), (3, 0, 4, 5), (3, 2, 0, 5), (3, 2, 4, 0)])
def test_any_size_may_be_zero(cell, T, B, I, H, rng):
    x = np.ones((T, B, I), np.float32)
    rows = GATES[cell] * H
    weights = {"weight_ih_l0": np.ones((rows, I), np.float32), "weight_hh_l0": np.ones((rows, H), np.float32)}
    state = tuple(np.full((1, B, H), 0.5, np.float32) for _ in range(2 if cell == "lstm" else 1))
    y, *after = run(cell, x, state, weights)
    assert y.shape == (T, B, H)
    wanted = spec(reference, cell, x, state, weights) if T else (None, *state)
    for got, part in zip(after, wanted[1:], strict=True):
        np.testing.assert_allclose(got, part, rtol=1e-6)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_gives_the_same_bits(cell, layout, dtype, rng):
    x, state, weights = draw(rng, cell, 3, 4, 9, 11, dtype)
    wanted = run(cell, x, state, weights)
    change = LAYOUTS[layout]
    got = run(cell, change(x), tuple(map(change, state)), {name: change(w) for name, w in weights.items()})
    assert all(same_bits(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("cell", GATES)
def test_batch_first_swaps_the_axes_of_x_and_y(cell, dtype, rng):
    x, state, weights = draw(rng, cell, 5, 3, 4, 6, dtype, 2, 2)
    y, *after = run(cell, x, state, weights)
    y_first, *after_first = run(cell, np.ascontiguousarray(x.swapaxes(0, 1)), state, weights, batch_first=True)
    assert same_bits(y_first, y.swapaxes(0, 1))
    assert all(same_bits(a, b) for a, b in zip(after_first, after, strict=True))


@forms
def test_a_ragged_row_has_the_bits_of_the_sequence_alone(cell, options, isa, dtype, rng):
    lengths = np.array([0, 7, 3, 1, 7, 5])
    x, state, weights = draw(rng, cell, 7, 6, 5, 18, dtype, 1, 2, **weight_form(options))
    x_garbage = x.copy()
    for b, n in enumerate(lengths):
        x_garbage[n:, b] = np.nan
    y, *after = run(cell, x_garbage, state, weights, lengths=lengths, **options)
    for b, n in enumerate(lengths):
        alone, *final = run(cell, x[:n, b : b + 1], tuple(p[:, b : b + 1] for p in state), weights, **options)
        assert same_bits(y[:n, b : b + 1], alone)
        assert not y[n:, b].any()
        for got, wanted in zip(after, final, strict=True):
            assert same_bits(got[:, b : b + 1], wanted)


# ---- sharing the work ----


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (1, 2), (3, 1), (2, 2), (9, 2)])
@pytest.mark.parametrize(("T", "B"), [(60, 1), (30, 4), (12, 40)])
def test_result_does_not_depend_on_thread_count(cell, layers, directions, T, B, rng):
    """By sequences, as a wavefront of layers and directions, and by panels: large enough for each to be chosen."""
    x, state, weights = draw(rng, cell, T, B, 32, 64, np.float32, layers, directions)
    lengths = rng.integers(0, T + 1, B)
    results = []
    for threads in (1, 2, 3, 5):
        with fa.num_threads(threads):
            results.append(run(cell, x, state, weights, lengths=lengths))
    assert all(same_bits(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


@forms
def test_panels_of_a_large_layer_are_shared_without_a_change(cell, options, rng):
    x, state, weights = draw(rng, cell, 6, 2, 16, 256, np.float32, **weight_form(options))
    results = []
    for threads in (1, 2, 3, 11):
        with fa.num_threads(threads):
            results.append(run(cell, x, state, weights, **options))
    assert all(same_bits(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


@forms
def test_a_cell_has_the_bits_of_packed_weights(cell, options, isa, dtype, rng):
    """A step of few sequences does not pack its weights, in a layer neither."""
    form = {k: v for k, v in options.items() if k in ("linear_before_reset", "coupled")}
    for batch in (1, 2, 3, 4, 5):
        inputs, hidden = (int(rng.choice(sizes)) for sizes in ((1, 9, 64, 300), (1, 7, 21, 64, 130)))
        x, state, weights = draw(rng, cell, 1, batch, inputs, hidden, dtype, 2, 2, **weight_form(options))
        wanted = run(cell, x, state, getattr(fa, f"pack_{cell}")(weights, **form), **options)
        got = run(cell, x, state, weights, **options)
        assert all(same_bits(a, b) for a, b in zip(got, wanted, strict=True)), (batch, inputs, hidden)


# ---- packed weights and steps ----


def pack(cell, weights, dtype=None, **options):
    return getattr(fa, f"pack_{cell}")(weights, dtype=dtype, **options)


@forms
def test_packed_weights_give_the_same_bits(cell, options, isa, dtype, rng):
    x, state, weights = draw(rng, cell, 4, 3, 6, 21, dtype, 2, 2, **weight_form(options))
    form = {k: v for k, v in options.items() if k in ("linear_before_reset", "coupled")}
    packed = pack(cell, weights, **form)
    assert (packed.layers, packed.directions, packed.input_size, packed.hidden_size) == (2, 2, 6, 21)
    assert (packed.dtype, packed.isa, packed.weight_dtype) == (dtype, isa, dtype.name)
    wanted = run(cell, x, state, weights, **options)
    assert all(same_bits(a, b) for a, b in zip(run(cell, x, state, packed, **options), wanted, strict=True))
    with fa.config.use_isa("baseline"):  # the handle keeps to its instruction set
        assert all(same_bits(a, b) for a, b in zip(run(cell, x, state, packed, **options), wanted, strict=True))


def rounded(w, kind):
    if kind == "bfloat16":
        bits = w.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(w / scale) * scale.astype(np.float64)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
@forms
def test_narrow_weights_are_those_of_the_rounded_matrices(cell, options, kind, isa, rng):
    rule = ErrorRule()
    form = {k: v for k, v in options.items() if k in ("linear_before_reset", "coupled")}
    for T, B, I, H in SIZES:
        x, state, weights = draw(rng, cell, T, B, I, H, np.float32, **weight_form(options))
        matrices = ("weight_ih_l0", "weight_hh_l0", "weight_hr_l0")
        near = {n: rounded(w, kind) if n in matrices else w for n, w in weights.items()}
        wanted = spec(reference, cell, x, state, near, **options)
        in_float = {name: w.astype(np.float32) for name, w in near.items()}
        yardstick = spec(plain, cell, x, state, in_float, **options)
        got = run(cell, x, state, pack(cell, weights, kind, **form), **options)
        for part in zip(got, yardstick, wanted, strict=True):
            rule.add(*part)
        alone = run(cell, x[:, :1], tuple(p[:, :1] for p in state), pack(cell, weights, kind, **form), **options)
        assert same_bits(got[0][:, :1], alone[0])
    rule.check()


@pytest.mark.parametrize("cell", GATES)
def test_steps_are_those_of_the_sequence_and_allocate_nothing(cell, isa, rng):
    x, state, weights = draw(rng, cell, 6, 2, 5, 18, np.float32, layers=2)
    packed = pack(cell, weights)
    y, *after = run(cell, x, state, packed)
    nonlinearity = "tanh"
    now = [part.copy() for part in state]
    h, c = (*now, None)[:2]
    steps = [np.ascontiguousarray(step) for step in x]

    def step(t):
        _core.recurrent_step("step", packed, nonlinearity, 0.0, steps[t], h, c, h, c)

    for t in range(len(x)):
        step(t)
        assert same_bits(h[-1], y[t])
    assert all(same_bits(a, b) for a, b in zip(now, after, strict=True))
    step(0)
    tracemalloc.start()
    try:
        step(0)
        before = tracemalloc.take_snapshot()
        for _ in range(100):
            step(0)
        grown = tracemalloc.take_snapshot().compare_to(before, "filename")
        assert sum(d.size_diff for d in grown if "tracemalloc" not in str(d.traceback)) < 1000
    finally:
        tracemalloc.stop()


MALLOC_COUNT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
static long calls;
long malloc_calls(void) { return calls; }
void *malloc(size_t n)
{
    static void *(*next)(size_t);
    if (!next) next = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
    calls++;
    return next(n);
}
"""
STEPS = """
import ctypes
import numpy as np
from fastattn import nn
m, x = nn.LSTM(32, 40, 2), np.ones((2, 32), np.float32)
state = np.zeros((2, 2, 40), np.float32), np.zeros((2, 2, 40), np.float32)
calls = ctypes.CDLL(None).malloc_calls
for _ in range(100):
    m.step(x, state, out=state)
before = calls()
for _ in range(1000):
    m.step(x, state, out=state)
print(before, calls() - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs a C compiler and LD_PRELOAD")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer's library has to come first")
def test_a_step_calls_malloc_never(tmp_path):
    source, library = tmp_path / "count.c", tmp_path / "count.so"
    source.write_text(MALLOC_COUNT)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run([sys.executable, "-c", STEPS], env=environment, check=True, capture_output=True, text=True)
    before, during = map(int, done.stdout.split())
    assert before > 0
    assert during < 10  # of a thousand steps: what Python itself takes now and then


def test_a_step_refuses_outputs_that_overlap_other_arrays(rng):
    x, (h, c), weights = draw(rng, "lstm", 1, 2, 4, 4, np.float32)
    packed = pack("lstm", weights)
    for outputs in ((x.reshape(1, 2, 4), c), (c, h), (h, h)):
        with pytest.raises(ValueError, match="step: out must be the state itself"):
            _core.recurrent_step("step", packed, "tanh", 0.0, x[0], h, c, *outputs)


# ---- against PyTorch ----


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("cell", "proj"), [*((cell, 0) for cell in GATES), ("lstm", 5)])
def test_torch_modules_give_the_same_results(cell, proj, rng):
    torch = pytest.importorskip("torch", reason="needs torch")
    form = {"proj_size": proj} if proj else {}
    module = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](
        7, 12, 2, bidirectional=True, **form
    )
    weights = {name: w.detach().numpy() for name, w in module.state_dict().items()}
    x, state, _ = draw(rng, cell, 6, 3, 7, 12, np.float32, 2, 2, proj=proj)
    tensors = tuple(map(torch.from_numpy, state))
    with torch.no_grad():
        y, after = module(torch.from_numpy(x), tensors if cell == "lstm" else tensors[0])
    got = run(cell, x, state, weights)
    for a, b in zip(got, (y, *(after if cell == "lstm" else (after,))), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=2e-6)


# ---- wrong input ----


def call(cell="lstm", x=(3, 2, 4), state=((1, 2, 5), (1, 2, 5)), changes=None, dtype=np.float32, **options):
    rows = GATES[cell] * 5
    shapes = {"weight_ih_l0": (rows, 4), "weight_hh_l0": (rows, 5), "bias_ih_l0": (rows,), "bias_hh_l0": (rows,)}
    weights = {name: np.zeros(shape, dtype) for name, shape in (shapes | (changes or {})).items() if shape is not None}
    made = tuple(np.zeros(shape, dtype) for shape in state)
    return getattr(fa, cell)(np.zeros(x, dtype), made if cell == "lstm" else made[0], weights, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": (3, 2)}, ValueError, "lstm: x must have 3 axes"),
        ({"x": (3, 2, 3)}, ValueError, "lstm: weight_ih_l0 must have shape"),
        ({"state": ((1, 2, 5), (1, 2, 4))}, ValueError, r"lstm: state\[1\] must have shape"),
        ({"state": ((1, 3, 5), (1, 2, 5))}, ValueError, r"lstm: state\[0\] must have shape"),
        ({"state": ((2, 2, 5), (2, 2, 5))}, ValueError, r"lstm: state\[0\] must have shape"),
        ({"state": ((1, 2, 5),)}, ValueError, "lstm: state must be a pair"),
        ({"changes": {"weight_ih_l0": (15, 4)}}, ValueError, "lstm: weight_ih_l0 must have shape"),
        ({"changes": {"weight_hh_l0": (20, 4)}}, ValueError, "lstm: weight_(ih|hh)_l0 must have shape"),
        ({"changes": {"weight_hr_l0": (3, 5)}}, ValueError, "lstm: weight_hh_l0 must have shape"),
        ({"changes": {"weight_hr_l0": (5, 4)}}, ValueError, "lstm: weight_ih_l0 must have shape"),
        ({"cell": "gru", "changes": {"weight_hr_l0": (5, 5)}}, ValueError, "gru: weights must hold names such as"),
        ({"coupled": True}, ValueError, "lstm: weight_ih_l0 must have shape"),
        ({"clip": 0}, ValueError, "lstm: clip must be positive, got 0"),
        ({"clip": np.nan}, ValueError, "lstm: clip must be positive"),
        ({"clip": "1"}, TypeError, "lstm: clip must be a number, got '1'"),
        ({"changes": {"bias_ih_l0": (19,)}}, ValueError, "lstm: bias_ih_l0 must have shape"),
        ({"changes": {"weight_peephole_l0": (2, 5)}}, ValueError, "lstm: weight_peephole_l0 must have shape"),
        ({"changes": {"bias_hh_l0": None}}, ValueError, "lstm: weights must hold both biases or none"),
        ({"changes": {"weight_hh_l0": None}}, ValueError, "lstm: weights must hold 'weight_hh_l0'"),
        ({"changes": {"weight_ih_l2": (20, 5)}}, ValueError, "lstm: weights must hold"),
        ({"changes": {"weight_l0": (20, 5)}}, ValueError, "lstm: weights must hold names such as"),
        ({"lengths": [1, 4]}, ValueError, r"lstm: lengths must lie in 0\.\.3"),
        ({"lengths": [-1, 2]}, ValueError, r"lstm: lengths must lie in 0\.\.3"),
        ({"lengths": [1]}, ValueError, "lstm: lengths must have shape"),
        ({"lengths": [1.0, 2.0]}, TypeError, "lstm: lengths must be integers"),
        ({"dtype": np.int32}, TypeError, "lstm: x must be float32"),
        ({"cell": "rnn", "nonlinearity": "gelu"}, ValueError, "rnn: nonlinearity must be"),
        (
            {"cell": "gru", "changes": {"weight_peephole_l0": (3, 5)}},
            ValueError,
            "gru: weights must hold names such as",
        ),
    ],
)
def test_wrong_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        call(**arguments)


def test_weights_of_another_kind_are_refused(rng):
    x, _, weights = draw(rng, "lstm", 2, 2, 3, 4, np.float32)
    with pytest.raises(TypeError, match="lstm: weights must be a mapping"):
        fa.lstm(x, None, [weights])
    with pytest.raises(ValueError, match="gru: weights must be packed for gru"):
        fa.gru(x, None, fa.pack_lstm(weights))
    with pytest.raises(ValueError, match="lstm: weights must be packed for lstm_coupled"):
        fa.lstm(x, None, fa.pack_lstm(weights), coupled=True)
    with pytest.raises(TypeError, match="lstm: x must be float32 like the packed weights"):
        fa.lstm(x.astype(np.float64), None, fa.pack_lstm(weights))
    with pytest.raises(ValueError, match="lstm: x must have a last axis of 3"):
        fa.lstm(x[..., :2], None, fa.pack_lstm(weights))
    with pytest.raises(TypeError, match="pack_lstm: dtype must be float32"):
        fa.pack_lstm(weights, dtype="float16")
    with pytest.raises(TypeError, match="pack_lstm: weights must be a mapping"):
        fa.pack_lstm(fa.pack_lstm(weights))
    mixed = weights | {"weight_hh_l0": weights["weight_hh_l0"].astype(np.float64)}
    with pytest.raises(TypeError, match="lstm: weight_hh_l0 must be float32"):
        fa.lstm(x, None, mixed)
    weights["weight_hh_l0"][0, 0] = np.inf
    with pytest.raises(ValueError, match="pack_lstm: weight_hh_l0 must be finite"):
        fa.pack_lstm(weights, dtype="int8")

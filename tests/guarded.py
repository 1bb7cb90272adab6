"""Arrays between inaccessible pages, and the calls that run on them in a process of their own.

A read or write beyond such an array kills the process. So the calls of a family run in one child, which notes each case
before it begins: a crash becomes a failed test that names the case.

    python -m tests.guarded FAMILY NOTES        # what the child runs
"""

import ctypes
import faulthandler
import itertools
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import fastattn as fa
from fastattn import _core
from tests.arrays import same_bits
from tests.low_precision import BFLOAT16, FLOAT16

PAGE = mmap.PAGESIZE
PROT_NONE, PROT_READ_WRITE = 0, 3
MARGIN = 64  # bytes beside an array that a test may leave between it and the page
FILL = 0xFF  # of the margins: a NaN in every type, and not what a kernel would write
NOTE_BYTES = 512
ROOT = Path(__file__).parents[1]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Region:
    """Memory with an inaccessible page on each side."""

    def __init__(self, size):
        self.size = -(-size // PAGE) * PAGE
        self._map = mmap.mmap(-1, self.size + 2 * PAGE)
        self.bytes = np.frombuffer(self._map, np.uint8)[PAGE:-PAGE]
        self.address = self.bytes.ctypes.data
        for page in (self.address - PAGE, self.address + self.size):
            if _libc.mprotect(page, PAGE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")


class Guard:
    """Hands out guarded arrays, and looks after a call whether the margins are as they were.

    Regions are used again from one `reset` to the next.
    """

    def __init__(self, size=1 << 19):
        self.size = size
        self.regions, self.margins = [], []

    def reset(self):
        self.margins = []

    def array(self, x, side="end", offset=0):
        """A copy of x that begins `offset` bytes after the front page, or ends `offset` bytes before the end page."""
        x = np.ascontiguousarray(x)
        index = len(self.margins)
        if index == len(self.regions):
            self.regions.append(Region(self.size))
        region = self.regions[index]
        first = offset if side == "front" else region.size - offset - x.nbytes
        assert 0 <= first <= region.size - x.nbytes, "the array does not fit into a region"
        before = region.bytes[max(0, first - MARGIN) : first]
        after = region.bytes[first + x.nbytes : first + x.nbytes + MARGIN]
        before[:] = FILL
        after[:] = FILL
        self.margins.append((before, after))
        view = region.bytes[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
        view[...] = x
        return view

    def check(self):
        for index, (before, after) in enumerate(self.margins):
            assert (before == FILL).all(), f"written before array {index}"
            assert (after == FILL).all(), f"written beyond array {index}"


# ---- cases: each family yields (description, arrays by name, call); call(arrays, out) returns its results ----

LENGTHS = range(4 * 16 + 4)  # 0 .. 4 VL + 3 for the longest vectors
SIDES = ("end", "front")
MAPS = ("exp", "tanh", "sigmoid", "relu", "gelu", "silu", "gelu_tanh")


def _normal(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def elementwise(rng, dtype):
    turn = itertools.cycle(MAPS)
    for n in LENGTHS:
        x = _normal(rng, dtype, n)
        for name in MAPS if n % 8 in (0, 1, 7) else (next(turn), next(turn)):

            def call(a, out, name=name):
                if name == "gelu_tanh":
                    return fa.gelu(a["x"], approximate="tanh", out=out)
                return getattr(fa, name)(a["x"], out=out)

            yield f"{name} n={n}", {"x": x}, call


def elementwise_backward(rng, dtype):
    names = ("relu", "tanh", "sigmoid", "silu", "gelu")
    for n in LENGTHS:
        arrays = {"dy": _normal(rng, dtype, n), "x": _normal(rng, dtype, n), "up": _normal(rng, dtype, n)}

        def gated(a, out):
            y = fa.silu_gated(a["x"], a["up"])
            return np.concatenate([y, *fa.silu_gated_backward(a["dy"], a["x"], a["up"])])

        yield f"silu_gated n={n}", arrays, gated
        for name in (names[n % 5], names[(n + 1) % 5]):
            function = getattr(fa, f"{name}_backward")
            two = {key: arrays[key] for key in ("dy", "x")}
            yield f"{name}_backward n={n}", two, lambda a, out, f=function: f(a["dy"], a["x"])


def tokens(rng, dtype):
    """Embedding, cross-entropy and rotary positions."""
    for n in LENGTHS[1:]:
        ids = rng.integers(0, n, 5)
        arrays = {"w": _normal(rng, dtype, n, n % 9), "dy": _normal(rng, dtype, 5, n % 9)}

        def embed(a, out, ids=ids):
            y, saved = fa.embedding_forward(ids, a["w"])
            return np.concatenate([y, fa.embedding_backward(a["dy"], saved)])

        def loss(a, out, ids=ids):
            value, saved = fa.cross_entropy_forward(a["x"], ids, label_smoothing=0.1, reduction="none")
            return np.concatenate([value, fa.cross_entropy_backward(a["d"], saved).ravel()])

        yield f"embedding {n} x {n % 9}", arrays, embed
        yield f"cross_entropy n={n}", {"x": _normal(rng, dtype, 5, n), "d": _normal(rng, dtype, 5)}, loss
        for interleaved in (False, True):

            def rotate(a, out, interleaved=interleaved):
                return fa.rope(a["x"], np.arange(3), interleaved=interleaved)

            yield f"rope n={2 * n} {interleaved}", {"x": _normal(rng, dtype, 3, 2 * n)}, rotate


def softmax(rng, dtype):
    for n in LENGTHS:
        for rows in (1, 3):
            x, dy = _normal(rng, dtype, rows, n), _normal(rng, dtype, rows, n)
            for name in ("softmax", "log_softmax"):
                forward, backward = getattr(fa, name), getattr(fa, f"{name}_backward")
                yield f"{name} {rows} x {n}", {"x": x}, lambda a, out, f=forward: f(a["x"], out=out)
                y = forward(x)
                yield (
                    f"{name}_backward {rows} x {n}",
                    {"dy": dy, "y": y},
                    lambda a, out, f=backward: f(a["dy"], a["y"]),
                )


def norm(rng, dtype):
    for n in LENGTHS:
        x, residual, dy = (_normal(rng, dtype, 3, n) for _ in range(3))
        weight, bias = _normal(rng, dtype, n), _normal(rng, dtype, n)
        arrays = {"x": x, "residual": residual, "weight": weight, "bias": bias, "dy": dy}

        def layer(a, out):
            y, saved = fa.layer_norm_forward(a["x"], a["weight"], a["bias"], residual=a["residual"])
            return np.concatenate([y.ravel(), *(part.ravel() for part in fa.layer_norm_backward(a["dy"], saved))])

        def rms(a, out):
            y, saved = fa.rms_norm_forward(a["x"], a["weight"])
            return np.concatenate([y.ravel(), *(part.ravel() for part in fa.rms_norm_backward(a["dy"], saved))])

        low = BFLOAT16 if dtype == np.float32 else FLOAT16  # what the two passes over the families stand for
        for of, drawn in ((np.dtype(dtype), arrays), (low, {name: a.astype(low) for name, a in arrays.items()})):
            yield f"layer_norm n={n} {of}", drawn, layer
            yield f"rms_norm n={n} {of}", {name: drawn[name] for name in ("x", "weight", "dy")}, rms


def linear(rng, dtype):
    sizes = [(m, n, k) for n in LENGTHS for m, k in ((n % 7, 5), (2, n))]
    sizes += [(m, n, k) for m in (1, 5, 13, 97) for n in (1, 31, 65) for k in (1, 9, 64)]
    for m, n, k in sizes:
        x, w, b = _normal(rng, dtype, m, k), _normal(rng, dtype, n, k), _normal(rng, dtype, n)
        for strategy in ("native", "blas") if m % 3 == 1 and _has_blas() else ("native",):

            def call(a, out, strategy=strategy):
                with fa.config.linear_strategy(strategy):
                    return fa.linear(a["x"], a["w"], a["b"], activation="relu", out=out)

            yield f"linear {strategy} M={m} N={n} K={k}", {"x": x, "w": w, "b": b}, call

        def transposed(a, out):
            return fa.linear(a["x"], a["w"].T, a["b"], activation="relu", out=out)

        yield f"linear transposed M={m} N={n} K={k}", {"x": x, "w": np.ascontiguousarray(w.T), "b": b}, transposed

        def packed(a, out):
            return fa.linear(a["x"], fa.pack_linear(a["w"]), a["b"], out=out)

        def of_bytes(a, out):
            return fa.linear(a["x"], fa.pack_linear(a["w"], "int8"), a["b"], out=out)

        if dtype == np.float32:
            yield f"linear int8 M={m} N={n} K={k}", {"x": x, "w": w, "b": b}, of_bytes
        yield f"linear packed M={m} N={n} K={k}", {"x": x, "w": w, "b": b}, packed


def linear_backward(rng, dtype):
    sizes = [(n % 7, n, 5) for n in LENGTHS] + [(n, 3, 5) for n in LENGTHS] + [(2, 3, n) for n in LENGTHS]
    sizes += [(m, n, k) for m in (13, 97, 130) for n in (31, 65) for k in (9, 64)]
    for m, n, k in sizes:
        shapes = {"x": (m, k), "w": (n, k), "b": (n,), "dy": (m, n)}

        def call(a, out, activation="gelu" if m % 2 else None):
            y, saved = fa.linear_forward(a["x"], a["w"], a["b"], activation=activation)
            return np.concatenate([part.ravel() for part in (y, *fa.linear_backward(a["dy"], saved))])

        yield f"linear_backward M={m} N={n} K={k}", {name: _normal(rng, dtype, *s) for name, s in shapes.items()}, call


def attention(rng, dtype):
    sizes = [(n % 6, n, 3, 5) for n in LENGTHS] + [(n, 3, 5, 2) for n in LENGTHS if n % 3 == 0]
    sizes += [(3, 5, n, 4) for n in LENGTHS] + [(3, 5, 4, n) for n in LENGTHS]
    sizes += [(97, 67, 8, 8), (13, 529, 5, 9), (5, 19, 130, 7)]
    forms = ("plain", "bool", "float", "causal", "lengths", "placed", "biased")
    for index, (lq, lk, d, dv) in enumerate(sizes):
        q, k, v = (_normal(rng, dtype, *shape) for shape in ((2, 2, lq, d), (2, 1, lk, d), (2, 1, lk, dv)))
        for form in forms if index % 8 == 0 else (forms[index % 7], forms[index // 7 % 7]):
            arrays, options = {"q": q, "k": k, "v": v}, {}
            if form == "bool":
                arrays["mask"] = rng.random((lq, lk)) < 0.7
            elif form == "float":
                arrays["mask"] = _normal(rng, dtype, 2, 2, lq, lk)
            elif form == "causal":
                options["causal"] = "bottom-right"
            elif form == "lengths":
                options["kv_lengths"] = rng.integers(0, lk + 1, 2)
                options["q_lengths"] = rng.integers(0, lq + 1, 2)
            elif form == "placed":
                options |= {"causal": True, "q_start": rng.integers(-lq, lk + 1, 2)}
            elif form == "biased":
                arrays |= {"mask": rng.random((2, 1, lq, lk)) < 0.7, "bias": _normal(rng, dtype, 2, lq, lk)}
            strategy = "blas" if index % 5 == 4 and _has_blas() else "fused"

            def call(a, out, options=options, strategy=strategy):
                with fa.config.attention_strategy(strategy):
                    return fa.attention(
                        a["q"], a["k"], a["v"], mask=a.get("mask"), bias=a.get("bias"), out=out, **options
                    )

            yield f"attention {strategy} {form} Lq={lq} Lk={lk} D={d} Dv={dv}", arrays, call


def caches(rng, dtype):
    """Few queries on pages and bytes, from the arrays that a KVCache has of its own."""
    sizes = [(n, 5, n % 7 + 1) for n in LENGTHS] + [(5, n, 4) for n in LENGTHS] + [(530, 9, 16), (40, 130, 3)]
    kinds = [(dtype, True)] + ([(np.int8, False), (np.int8, True)] if dtype == np.float32 else [])
    for index, (lk, d, page) in enumerate(sizes):
        for kind, paged in kinds if index % 2 else kinds[index // 2 % len(kinds) :][:1]:
            cache = fa.KVCache(2, 1, d, v_dim=lk % 20, dtype=kind, page_size=page if paged else None)
            cache.append(_normal(rng, dtype, 2, 1, lk // 2, d), _normal(rng, dtype, 2, 1, lk // 2, lk % 20))
            rest = _normal(rng, dtype, 1, 1, lk - lk // 2, d), _normal(rng, dtype, 1, 1, lk - lk // 2, lk % 20)
            cache.append(*rest, sequences=[1])
            (k, k_scales), (v, v_scales) = cache._parts
            if not paged:  # no room beyond the longest sequence
                k, v, k_scales, v_scales = (x[:, :, :lk].copy() for x in (k, v, k_scales, v_scales))
            arrays = {"q": _normal(rng, dtype, 2, 2, index % 8 + 1, d), "k": k, "v": v}
            if kind == np.int8:
                arrays |= {"k_scales": k_scales, "v_scales": v_scales}
            if index % 3 == 0:
                arrays["mask"] = rng.random((index % 8 + 1, lk)) < 0.7

            def call(a, out, lengths=cache.lengths, table=cache._table if paged else None):
                own = {name: np.require(x, requirements="A") for name, x in a.items()}
                names = ("q", "k", "v", "k_scales", "v_scales")
                options = (a.get("mask"), False, None, None, 0.0, None, None, None, a.get("bias"), 0.25, 7)
                return _core.cache_attention(*map(own.get, names), table, lengths, options, None, out, False)

            yield f"{np.dtype(kind)} {'pages of ' + str(page) if paged else 'cache'} Lk={lk} D={d}", arrays, call


def attention_backward(rng, dtype):
    sizes = [(n % 6, n, 3, 5) for n in LENGTHS] + [(n, 3, 5, 2) for n in LENGTHS if n % 3 == 0]
    sizes += [(3, 5, n, 4) for n in LENGTHS if n % 2] + [(3, 5, 4, n) for n in LENGTHS if n % 2 == 0]
    sizes += [(97, 67, 8, 8), (13, 269, 5, 9), (5, 19, 130, 7)]
    forms = ({}, {"mask": True, "bias": True}, {"causal": "bottom-right", "softcap": 2.0}, {"kv_lengths": True})
    for index, (lq, lk, d, dv) in enumerate(sizes):
        shapes = {"q": (2, 2, lq, d), "k": (2, 1, lk, d), "v": (2, 1, lk, dv), "dout": (2, 2, lq, dv)}
        arrays, options = {name: _normal(rng, dtype, *shape) for name, shape in shapes.items()}, dict(forms[index % 4])
        if options.pop("mask", False):
            arrays["mask"] = rng.random((lq, lk)) < 0.7
        if options.pop("bias", False):
            arrays["bias"] = _normal(rng, dtype, 2, 1, lq, lk)
        if "kv_lengths" in options:
            options["kv_lengths"] = rng.integers(0, lk + 1, 2)

        if index % 2:
            arrays["dlse"] = _normal(rng, dtype, 2, 2, lq).astype(np.float64 if dtype == np.float64 else np.float32)

        def call(a, out, options=options):
            given = {name: a[name] for name in ("mask", "bias") if name in a}
            result, saved = fa.attention_forward(a["q"], a["k"], a["v"], **given, **options)
            request = {"dlse": a["dlse"], "partial": True} if "dlse" in a else {}
            if request and a["q"].dtype.itemsize == 2:
                request["gradient_dtype"] = np.float32
            parts = (result, *fa.attention_backward(a["dout"], saved, **request)[:3])
            return np.concatenate([part.ravel().astype(result.dtype) for part in parts])

        yield f"attention_backward {forms[index % 4]} Lq={lq} Lk={lk} D={d} Dv={dv}", arrays, call


def recurrent(rng, dtype):
    sizes = [(2, 1 + n % 3, 3, n) for n in LENGTHS] + [(2, 1, n, 5) for n in LENGTHS]
    sizes += [(3, n, 4, 6) for n in (0, 12, 25)] + [(0, 2, 3, 4)]
    for steps, batch, inputs, hidden in sizes:
        for name, gates in (("rnn", 1), ("gru", 3), ("gru before", 3), ("lstm", 4)):
            if gates > 1 and hidden % 2 and hidden > 40:
                continue
            arrays = {
                "x": _normal(rng, dtype, steps, batch, inputs),
                "h": _normal(rng, dtype, 1, batch, hidden),
                "weight_ih_l0": _normal(rng, dtype, gates * hidden, inputs) / 4,
                "weight_hh_l0": _normal(rng, dtype, gates * hidden, hidden) / 4,
                "bias_ih_l0": _normal(rng, dtype, gates * hidden),
                "bias_hh_l0": _normal(rng, dtype, gates * hidden),
            }
            if name == "lstm":
                arrays["c"] = _normal(rng, dtype, 1, batch, hidden)
                arrays["weight_peephole_l0"] = _normal(rng, dtype, 3, hidden)

            def call(a, out, name=name):
                weights = {key: value for key, value in a.items() if "_l0" in key}
                if name == "lstm":
                    y, (h, c) = fa.lstm(a["x"], (a["h"], a["c"]), weights)
                    return np.concatenate([y, h, c])
                if name == "rnn":
                    return np.concatenate(fa.rnn(a["x"], a["h"], weights))
                return np.concatenate(fa.gru(a["x"], a["h"], weights, linear_before_reset=name == "gru"))

            yield f"{name} T={steps} B={batch} I={inputs} H={hidden}", arrays, call


def recurrent_backward(rng, dtype):
    sizes = [(2, 1 + n % 3, 3, n) for n in LENGTHS] + [(2, 1, n, 5) for n in LENGTHS]
    sizes += [(3, n, 4, 6) for n in (0, 12, 25)] + [(0, 2, 3, 4)]
    for steps, batch, inputs, hidden in sizes:
        for name, gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
            if hidden % 4 != gates - 1 and hidden > 8:
                continue
            weights = {
                "weight_ih_l0": _normal(rng, dtype, gates * hidden, inputs) / 4,
                "weight_hh_l0": _normal(rng, dtype, gates * hidden, hidden) / 4,
                "bias_ih_l0": _normal(rng, dtype, gates * hidden),
                "bias_hh_l0": _normal(rng, dtype, gates * hidden),
            }
            x, dy = _normal(rng, dtype, steps, batch, inputs), _normal(rng, dtype, steps, batch, hidden)

            def call(a, out, name=name):
                own = {key: value for key, value in a.items() if "_l0" in key}
                (y, _), saved = getattr(fa, f"{name}_forward")(a["x"], None, own)
                dx, dstate, grads = getattr(fa, f"{name}_backward")(a["dy"], saved)
                dstates = dstate if name == "lstm" else (dstate,)
                return np.concatenate([part.ravel() for part in (y, dx, *dstates, *grads.values())])

            yield f"{name}_backward T={steps} B={batch} I={inputs} H={hidden}", {"x": x, "dy": dy, **weights}, call


def additive(rng, dtype):
    """Forward and backward, with a mask and lengths."""
    for T, S, A, C in itertools.product((1, 5), (1, 9, 33), (1, 17, 35), (1, 19)):
        arrays = {
            "query": _normal(rng, dtype, 2, T, A),
            "keys": _normal(rng, dtype, 2, S, A),
            "values": _normal(rng, dtype, 2, S, C),
            "v": _normal(rng, dtype, A),
            "mask": rng.random((T, S)) < 0.7,
            "dcontext": _normal(rng, dtype, 2, T, C),
        }

        def call(a, out, S=S):
            inputs = (a["query"], a["keys"], a["values"], a["v"])
            context, saved = fa.additive_attention_forward(*inputs, mask=a["mask"], lengths=[S, S // 2])
            parts = [context, saved.weights, *fa.additive_attention_backward(a["dcontext"], saved)]
            return np.concatenate([part.ravel() for part in parts])

        yield f"additive T={T} S={S} A={A} C={C}", arrays, call


def attention_gru(rng, dtype):
    """Forward and backward of nn.AttentionGRU between its products with inputs and weights."""
    names = ("gates_x", "keys", "values", "annotations", "v", "w", "bias", "h0")
    for T, S, H, A, K in itertools.product((1, 3), (1, 9, 33), (1, 6, 17), (1, 19), (1, 18)):
        shapes = ((T, 2, 3 * H), (2, S, A), (2, S, 3 * H), (2, S, K), (A,), (A + 3 * H, H), (A + 3 * H,), (2, H))
        arrays = {name: _normal(rng, dtype, *shape) for name, shape in zip(names, shapes, strict=True)}
        arrays |= {"dy": _normal(rng, dtype, T, 2, H), "dcontext": _normal(rng, dtype, T, 2, K)}

        def call(a, out, S=S):
            inputs = (*(a[name] for name in names), np.array([S, S // 2]))
            results = _core.attention_gru(*inputs, True, "AttentionGRU")
            grads = _core.attention_gru_backward(a["dy"], a["dcontext"], a["h0"], inputs, results, "AttentionGRU")
            return np.concatenate([part.ravel() for part in (*results[:3], *grads)])

        yield f"attention_gru T={T} S={S} H={H} A={A} K={K}", arrays, call


def overrun(rng, dtype):
    """A case that crashes: the guard has to be seen at work."""

    def call(a, out):
        ctypes.memmove(ctypes.create_string_buffer(8), a["x"].ctypes.data + a["x"].nbytes, 1)

    yield "reads one byte too many", {"x": _normal(rng, dtype, 5)}, call


FAMILIES = {
    "element-wise": elementwise,
    "element-wise backward": elementwise_backward,
    "tokens": tokens,
    "softmax": softmax,
    "norm": norm,
    "linear": linear,
    "linear backward": linear_backward,
    "attention": attention,
    "attention backward": attention_backward,
    "caches": caches,
    "additive": additive,
    "attention GRU": attention_gru,
    "recurrent": recurrent,
    "recurrent backward": recurrent_backward,
    "overrun": overrun,
}
WITH_OUT = ("element-wise", "linear", "attention")  # and softmax, without its backward


def _has_blas():
    return fa.config.info()["blas"] != "none"


def _placements(index, dtype):
    """Sides and byte offsets for a case: at the pages themselves, and turn by turn at every offset 0..63."""
    yield from ((side, 0) for side in SIDES)
    item = np.dtype(dtype).itemsize
    for turn in range(3):  # aligned to an element: C works on the array itself
        yield SIDES[(index + turn) % 2], (3 * index + turn) * item % MARGIN
    yield SIDES[index // 2 % 2], index * 7 % MARGIN  # any byte: copied before C sees it


def run(family, note):
    """Runs all cases of a family under each ISA. Returns how many there were."""
    guard, count = Guard(), 0
    for isa, dtype in itertools.product(fa.config.available_isas(), (np.float32, np.float64)):
        with fa.config.use_isa(isa):
            for index, (what, arrays, call) in enumerate(FAMILIES[family](np.random.default_rng(0), dtype)):
                has_out = family in WITH_OUT or (family == "softmax" and "dy" not in arrays)
                expected = None
                for side, offset in _placements(index, dtype):
                    note(f"{what} {np.dtype(dtype)} {isa}, {offset} bytes from the page at the {side}")
                    if expected is None and family != "overrun":
                        expected = call(arrays, None)
                    guard.reset()
                    guarded = {name: guard.array(x, side, offset) for name, x in arrays.items()}
                    out = guard.array(np.zeros_like(expected), side, offset) if has_out else None
                    got = call(guarded, out)
                    guard.check()
                    assert same_bits(got, expected), "other bits than from ordinary arrays"
                    assert all(same_bits(guarded[name], x) for name, x in arrays.items()), "an input has changed"
                    count += 1
    return count


def run_in_child(family):
    """Runs a family in a child. Returns (number of cases, "") or (None, what went wrong in which case)."""
    with tempfile.NamedTemporaryFile() as notes:
        child = subprocess.run(
            [sys.executable, "-m", "tests.guarded", family, notes.name],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        case = Path(notes.name).read_text(encoding="utf-8").strip()
    if child.returncode == 0:
        return int(child.stdout), ""
    how = f"killed by signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
    return None, f"{how} in: {case}\n{child.stderr}"


def main():
    faulthandler.enable()
    family, path = sys.argv[1:]
    notes = os.open(path, os.O_WRONLY)
    print(run(family, lambda text: os.pwrite(notes, text.ljust(NOTE_BYTES).encode(), 0)))


if __name__ == "__main__":
    main()

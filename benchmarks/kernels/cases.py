"""Every case that is timed against the peers: sizes, work, inputs, target.

Work is useful work: a multiply-add counts two operations, causal attention half of the full square, element-wise
functions nothing.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernels import attention
from benchmarks.kernels.recurrences import as_bfloat16, as_weight, stack_suffixes
from fastattn import config, nn

Array = NDArray[Any]
Inputs = dict[str, Array]

MASK_LEAVES = 0.75
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
DECODER_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "query", "key", "v")
GRADIENTS = {f"{name}_gradients": name for name in GATES}  # forward and backward, with all gradients
STACK = "lstm_stack"  # L layers in both directions
KINK = 1e-5  # of arguments of relu about 1: ten times their rounding errors in float32


@dataclass(frozen=True)
class Target:
    """What fastattn is to reach; the parts that are None do not apply."""

    peak: float | None = None  # part of the multiply-add peak measured beside the case
    ratio: float | None = None  # times as fast as the best peer
    torch_ratio: float | None = None  # times as fast as torch; or the read bandwidth, where that is less
    beside: float | None = None  # part of the rate of the case that it is measured beside
    micros: float | None = None  # microseconds for a call; the median where each call is timed alone
    tail: float | None = None  # the 99th percentile, in medians; only where each call is timed alone

    def __str__(self) -> str:
        parts = []
        if self.peak is not None:
            parts.append(f"≥ {self.peak:.2f} peak")
        if self.ratio is not None:
            parts.append(f"≥ {self.ratio:g} × best")
        if self.torch_ratio is not None:
            parts.append(f"≥ {self.torch_ratio:g} × torch / memory")
        if self.micros is not None:
            parts.append(f"≤ {self.micros:g} µs")
        if self.beside is not None:
            parts.append(f"≥ {self.beside:.2f} × the one beside")
        if self.tail is not None:
            parts.append(f"p99 ≤ {self.tail:g} × p50")
        return ", ".join(parts) or "best"


@dataclass(frozen=True)
class Case:
    """One computation with its sizes. `op` is what the peers know it by."""

    name: str
    op: str
    sizes: dict[str, int]
    dtype: str = "float32"  # of the arrays; inputs are float32, exact in it, where it has 8 or 16 bits
    causal: bool = False
    window: int | None = None  # attention: so many keys before each query's own, and none behind
    masked: bool = False  # attention: a bool mask that leaves three of four pairs, anywhere
    beside: str = ""  # the case whose rate (useful work by time) this one is compared with
    ragged: bool = False  # sequences with the lengths of real sentences
    weights: str = ""  # of how many bits ours are packed, where fewer than x has; all libraries have the same numbers
    alone: bool = False  # each call is timed alone, for percentiles
    target: Target = field(default_factory=Target)
    quick: bool = False  # part of --quick
    scales: bool = True  # enough work for two threads to pay

    @property
    def flops(self) -> float:
        """Useful floating-point operations of one call."""
        s = self.sizes
        if self.op in attention.OPS:
            return attention.flops(self)
        if self.op == "linear":
            return 2.0 * s["M"] * s["N"] * s["K"]
        if self.op == "encoder_layer":  # forward, and twice as much backward; attention recomputes its scores
            products = 2.0 * s["B"] * s["L"] * s["E"] * (4 * s["E"] + 2 * s["F"])
            return 3 * products + 3.5 * 4.0 * s["B"] * s["L"] ** 2 * s["E"]
        if self.op in GRADIENTS:  # forward, and twice as much backward
            return 3 * replace(self, op=GRADIENTS[self.op]).flops
        if self.op == STACK:
            columns = (s["I"] + s["H"]) + (s["L"] - 1) * 3 * s["H"]
            return 2 * 2.0 * s["T"] * s["B"] * GATES["lstm"] * s["H"] * columns
        if self.op in _RECURRENT:
            tokens = int(attention.lengths(s["B"]).sum()) if self.ragged else s.get("T", 1) * s["B"]
            return 2.0 * tokens * GATES[self.op.removesuffix("_cell")] * s["H"] * (s["I"] + s["H"])
        return 0.0

    @property
    def bytes(self) -> float:
        """Bytes that have to be read from and written to memory, for cases without flops: of decode keys and values."""
        if self.op == "decode":
            return 2.0 * BYTES[self.dtype] * self.sizes["B"] * self.sizes["K"] * self.sizes["S"] * self.sizes["D"]
        if self.op == "softmax":
            return 2.0 * np.dtype(self.dtype).itemsize * self.sizes["R"] * self.sizes["C"]
        return 0.0

    def inputs(self, seed: int) -> Inputs:
        """The same arrays in every process."""
        return _INPUTS[self.op](self, np.random.default_rng([seed, *map(ord, self.name)]))


_RECURRENT = {*GATES, *(f"{name}_cell" for name in GATES)}


def _normal(case: Case, rng: np.random.Generator, *shape: int) -> Array:
    # float32 samples also for float64: what is compared is the rounding of the computation.
    return _exact(case, rng.standard_normal(shape, np.float32))


def _exact(case: Case, x: Array) -> Array:
    """x in the dtype of the case, or as float32 that are exact in it."""
    if case.dtype == "bfloat16":
        return as_bfloat16(x)
    return x if case.dtype == "int8" else x.astype(case.dtype, copy=False)


def _attention_inputs(case: Case, rng: np.random.Generator) -> Inputs:
    """q, k, v; for backward dout, too."""
    names = [*"qkv", *(["dout"] if case.op == "attention_backward" else [])]
    inputs = {name: _normal(case, rng, *attention.shape(case)) for name in names}
    if case.masked:
        inputs["mask"] = rng.random((case.sizes["S"], case.sizes["S"])) < MASK_LEAVES
    return inputs


def _decode_inputs(case: Case, rng: np.random.Generator) -> Inputs:
    """q[B, H, 1, D], k and v[B, K, S, D]: numbers of 8 bits with a sign, the largest in every row, so that bfloat16 and
    an int8 cache keep them as they are."""
    s = case.sizes
    inputs = {"q": _normal(case, rng, s["B"], s["H"], 1, s["D"])}
    for name in "kv":
        x = np.rint(40 * rng.standard_normal((s["B"], s["K"], s["S"], s["D"]), np.float32)).clip(-127, 127)
        x[..., 0] = 127
        inputs[name] = x / np.float32(64)
    return inputs


def _recurrent_inputs(case: Case, rng: np.random.Generator) -> Inputs:
    """x[T, B, I] (cells: [B, I]), the state, and weights drawn as PyTorch does: uniform in ±1/sqrt(H)."""
    s = case.sizes
    op = case.op.removesuffix("_cell").removesuffix("_gradients")
    rows, bound = GATES[op] * s["H"], 1 / math.sqrt(s["H"])
    shapes = {"weight_ih": (rows, s["I"]), "weight_hh": (rows, s["H"]), "bias_ih": (rows,), "bias_hh": (rows,)}
    inputs = {
        name: _exact(case, as_weight(np.float32(bound) * (2 * rng.random(shape, np.float32) - 1), case.weights))
        for name, shape in shapes.items()
    }
    inputs["x"] = _normal(case, rng, *((s["T"],) if "T" in s else ()), s["B"], s["I"])
    if case.ragged:
        inputs["lengths"] = attention.lengths(s["B"])
    if case.op in GRADIENTS:
        inputs["dy"] = _normal(case, rng, s["T"], s["B"], s["H"])
    if "T" not in s:
        inputs["h"] = np.tanh(_normal(case, rng, s["B"], s["H"]))
        if op == "lstm":
            inputs["c"] = _normal(case, rng, s["B"], s["H"])
    return inputs


def _stack_inputs(case: Case, rng: np.random.Generator) -> Inputs:
    """x[T, B, I], and weights by torch's names."""
    s = case.sizes
    inputs = {"x": _normal(case, rng, s["T"], s["B"], s["I"])}
    for suffix in stack_suffixes(s["L"]):
        columns = s["I"] if suffix.startswith("_l0") else 2 * s["H"]
        lane = _recurrent_inputs(replace(case, op="lstm", sizes={"B": 1, "I": columns, "H": s["H"]}), rng)
        inputs |= {name + suffix: lane[name] for name in WEIGHTS}
    return inputs


def _linear_inputs(case: Case, rng: np.random.Generator) -> Inputs:
    s = case.sizes
    scale = np.dtype(case.dtype).type(1 / math.sqrt(s["K"]))
    return {
        "x": _normal(case, rng, s["M"], s["K"]),
        "weight": scale * _normal(case, rng, s["N"], s["K"]),
        "bias": _normal(case, rng, s["N"]),
    }


def _softmax_inputs(case: Case, rng: np.random.Generator) -> Inputs:
    return {"x": _normal(case, rng, case.sizes["R"], case.sizes["C"])}


def _additive_inputs(case: Case, rng: np.random.Generator) -> Inputs:
    """query, keys, values, v, and the gradient of the context."""
    s = case.sizes
    shapes = {"query": "BTA", "keys": "BSA", "values": "BSC", "v": "A", "dcontext": "BTC"}
    return {name: _normal(case, rng, *(s[axis] for axis in axes)) for name, axes in shapes.items()}


def _encoder_inputs(case: Case, rng: np.random.Generator) -> Inputs:
    """x, dy, and the parameters of a transformer encoder layer by torch's names."""
    s = case.sizes
    rows = {"self_attn.in_proj_": (3 * s["E"], s["E"]), "self_attn.out_proj.": (s["E"], s["E"]),
            "linear1.": (s["F"], s["E"]), "linear2.": (s["E"], s["F"])}  # fmt: skip
    inputs = {name: _normal(case, rng, s["B"], s["L"], s["E"]) for name in ("x", "dy")}
    for name, (n, k) in rows.items():
        inputs[f"{name}weight"] = np.dtype(case.dtype).type(1 / math.sqrt(k)) * _normal(case, rng, n, k)
        inputs[f"{name}bias"] = _normal(case, rng, n)
    for name in ("norm1", "norm2"):
        inputs |= {f"{name}.{part}": _normal(case, rng, s["E"]) for part in ("weight", "bias")}
    # Where an argument of relu is within rounding of 0, a library may be right on either side: the sequence that is
    # verified has no gradient there.
    layer = nn.TransformerEncoderLayer(s["E"], s["H"], s["F"], dtype=np.float64)
    layer.load_state_dict({name: array.astype(np.float64) for name, array in inputs.items() if name not in ("x", "dy")})
    x = inputs["x"][:1].astype(np.float64)
    hidden = layer.linear1(layer.norm1(x + layer.self_attn(x)))
    inputs["dy"][0, np.abs(hidden[0]).min(-1) < KINK] = 0
    return inputs


def _attention_gru_inputs(case: Case, rng: np.random.Generator) -> Inputs:
    """x, annotations of twice the state's size, state, gradients of states and contexts, and the decoder's weights."""
    s = case.sizes
    T, B, S, H = s["T"], s["B"], s["S"], s["H"]
    arrays = {
        "x": _normal(case, rng, T, B, H),
        "annotations": _normal(case, rng, B, S, 2 * H),
        "state": np.tanh(_normal(case, rng, B, H)),
        "dy": _normal(case, rng, T, B, H),
        "dcontext": _normal(case, rng, T, B, 2 * H),
    }
    for name, shape in {"weight_ih": (3 * H, 3 * H), "weight_hh": (3 * H, H), "bias_ih": (3 * H,), "bias_hh": (3 * H,),
                        "query": (H, H), "key": (H, 2 * H), "v": (H,)}.items():  # fmt: skip
        arrays[name] = _normal(case, rng, *shape) / np.dtype(case.dtype).type(math.sqrt(H))
    return arrays


_INPUTS: dict[str, Callable[[Case, np.random.Generator], Inputs]] = {
    **dict.fromkeys(attention.OPS, _attention_inputs),
    "additive": _additive_inputs,
    "decode": _decode_inputs,
    "encoder_layer": _encoder_inputs,
    "attention_gru": _attention_gru_inputs,
    STACK: _stack_inputs,
    "linear": _linear_inputs,
    "softmax": _softmax_inputs,
    **dict.fromkeys((*_RECURRENT, *GRADIENTS), _recurrent_inputs),
}


# ---- the list ----


def _of_pairs(peak: float) -> Target:
    """Of products of bfloat16. Matrix tiles multiply 16 times as fast as the rest is computed: there, ahead of all."""
    return Target() if config.get_isa() == "amxbf16" else Target(peak=peak)


def _attention(B: int, H: int, S: int, D: int, target: Target, **options: Any) -> Case:
    """Forward; backward=True: backward alone, after a forward call that is not timed."""
    op = "attention_backward" if options.pop("backward", False) else "attention"
    window, masked = options.get("window"), options.get("masked", False)
    kind = "causal" if options.get("causal") else "mask" if masked else "full" if window is None else f"window{window}"
    dtype = {"float64": "f64", "bfloat16": "bf16"}.get(options.get("dtype", ""), "f32")
    name = f"{op.replace('_', ' ')} {dtype} {kind} B{B} H{H} S{S} D{D}"
    return Case(name, op, {"B": B, "H": H, "S": S, "D": D}, target=target, **options)


def _decode(dtype: str, H: int, K: int, **options: Any) -> Case:
    """One new token to 4096 of them: a part of the read bandwidth (PERFORMANCE.md; int8: 1.7 times bfloat16)."""
    sizes = {"B": 1, "H": H, "K": K, "S": 4096, "D": 128}
    return Case(f"decode {dtype} H{H} K{K} S4096 D128", "decode", sizes, dtype, **options)


def _recurrent(op: str, T: int, B: int, H: int, target: Target, **options: Any) -> Case:
    kind = " bfloat16" if options.get("dtype") == "bfloat16" else _packed_as(options)
    return Case(f"{op}{kind} T{T} B{B} I{H} H{H}", op, {"T": T, "B": B, "I": H, "H": H}, target=target, **options)


def _packed_as(options: dict[str, Any]) -> str:
    return f" {options['weights']} weights" if "weights" in options else ""


def _ragged(op: str, B: int, H: int, target: Target, **options: Any) -> Case:
    """As many steps as the longest of the first B sentences has tokens."""
    sizes = {"T": int(attention.lengths(B).max()), "B": B, "I": H, "H": H}
    name = f"{op.replace('_gradients', ' forward and backward')} ragged text B{B} I{H} H{H}"
    return Case(name, op, sizes, ragged=True, target=target, **options)


def _gradients(op: str, T: int, B: int, H: int, target: Target, **options: Any) -> Case:
    name = f"{op} forward and backward T{T} B{B} I{H} H{H}"
    return Case(name, f"{op}_gradients", {"T": T, "B": B, "I": H, "H": H}, target=target, **options)


def _cell(op: str, B: int, H: int, target: Target, **options: Any) -> Case:
    options = {"scales": False, **options}
    name = f"{op}_cell{_packed_as(options)} B{B} I{H} H{H}"
    return Case(name, f"{op}_cell", {"B": B, "I": H, "H": H}, target=target, **options)


def _linear(M: int, N: int, K: int, **options: Any) -> Case:
    return Case(f"linear M{M} N{N} K{K}", "linear", {"M": M, "N": N, "K": K}, **options)


CASES: tuple[Case, ...] = (
    _attention(1, 12, 2048, 64, Target(peak=0.87)),
    _attention(1, 12, 512, 64, Target(peak=0.82), quick=True),
    _attention(8, 12, 128, 64, Target(peak=0.75), quick=True),
    _attention(1, 8, 4096, 128, Target(peak=0.88)),
    _attention(1, 12, 2048, 64, Target(peak=0.82), causal=True),
    _attention(1, 12, 512, 64, Target(peak=0.72), causal=True, quick=True),
    _attention(8, 12, 128, 64, Target(peak=0.60), causal=True),
    _attention(1, 12, 512, 64, Target(), dtype="float64"),
    _attention(1, 12, 512, 64, Target(), dtype="float64", causal=True),
    _attention(1, 1, 16, 64, Target(micros=2.5), quick=True, scales=False),
    _attention(1, 12, 2048, 64, Target(beside=0.91), masked=True, beside="attention f32 full B1 H12 S2048 D64"),
    _attention(1, 2, 8192, 64, Target()),
    _attention(1, 2, 8192, 64, Target(beside=0.8), window=256, beside="attention f32 full B1 H2 S8192 D64"),
    _attention(1, 12, 2048, 64, _of_pairs(0.75), dtype="bfloat16"),
    _attention(1, 12, 512, 64, _of_pairs(0.66), dtype="bfloat16", quick=True),
    _attention(8, 12, 128, 64, _of_pairs(0.55), dtype="bfloat16"),
    _attention(1, 12, 2048, 64, Target(peak=0.78), backward=True),
    _attention(1, 12, 512, 64, Target(), backward=True, quick=True),
    _attention(1, 12, 2048, 64, Target(peak=0.70), backward=True, causal=True),
    _attention(1, 12, 2048, 64, _of_pairs(0.60), backward=True, dtype="bfloat16"),
    _attention(256, 12, 26, 64, Target()),
    Case(
        "attention f32 ragged: 256 sentences H12 D64",
        "attention_ragged",
        {"B": 256, "H": 12, "D": 64},
        target=Target(beside=0.9),
        beside="attention f32 full B256 H12 S26 D64",
        quick=True,
    ),
    *(_decode(dtype, 32, K, target=Target(peak=0.9)) for dtype in ("float32", "bfloat16") for K in (32, 8)),
    _decode("int8", 32, 32),
    _decode("int8", 32, 8),
    _recurrent("lstm", 512, 32, 512, Target(peak=0.92)),
    _recurrent("lstm", 100, 64, 256, Target(peak=0.90), quick=True),
    _recurrent("lstm", 512, 32, 512, _of_pairs(0.82), dtype="bfloat16"),
    _recurrent("lstm", 512, 1, 512, Target(ratio=1.4)),
    _recurrent("lstm", 512, 1, 512, Target(ratio=2.5), weights="bfloat16"),
    _recurrent("lstm", 512, 1, 512, Target(ratio=2.5), weights="int8"),
    _recurrent("lstm", 100, 1, 128, Target(ratio=1.4), quick=True, scales=False),
    _recurrent("gru", 512, 32, 512, Target(peak=0.90)),
    _recurrent("gru", 512, 1, 512, Target(ratio=1.4)),
    _recurrent("gru", 100, 64, 256, Target(peak=0.90), quick=True),
    _recurrent("rnn", 512, 32, 512, Target(peak=0.88)),
    _recurrent("rnn", 512, 1, 512, Target(ratio=1.4)),
    _recurrent("rnn", 100, 64, 256, Target(peak=0.88), quick=True),
    _gradients("lstm", 512, 32, 512, Target(peak=0.82)),
    _gradients("lstm", 100, 64, 256, Target(), quick=True),
    _gradients("gru", 512, 32, 512, Target(peak=0.80)),
    _gradients("rnn", 512, 32, 512, Target(peak=0.80)),
    _gradients("lstm", 512, 1, 512, Target()),
    _gradients("lstm", 10_000, 1, 128, Target(), scales=False),
    _ragged("lstm", 32, 512, Target(torch_ratio=3.0), quick=True),
    _ragged("lstm_gradients", 32, 512, Target(torch_ratio=3.0)),
    Case(
        "lstm 2 layers bidirectional T256 B16 I256 H256",
        STACK,
        {"T": 256, "B": 16, "I": 256, "H": 256, "L": 2},
        target=Target(ratio=1.3),
    ),
    Case(
        "additive attention and gradients B32 T50 S50 A256 C512",
        "additive",
        {"B": 32, "T": 50, "S": 50, "A": 256, "C": 512},
        target=Target(torch_ratio=5.0),
        quick=True,
    ),
    Case(
        "decoder with additive attention and gradients B32 S50 T50 H512",
        "attention_gru",
        {"B": 32, "S": 50, "T": 50, "H": 512},
        target=Target(torch_ratio=3.0),
    ),
    Case("softmax in place 4096x1024", "softmax", {"R": 4096, "C": 1024}, target=Target(torch_ratio=2.0), quick=True),
    Case(
        "encoder layer forward and backward B8 L256 E512 H8",
        "encoder_layer",
        {"B": 8, "L": 256, "E": 512, "H": 8, "F": 2048},
        target=Target(torch_ratio=1.5),
    ),
    _linear(1024, 1024, 1024, quick=True),
    _linear(128, 3072, 768),
    _linear(1, 768, 768, scales=False),
    _cell("lstm", 1, 128, Target(micros=5, tail=3), quick=True, alone=True),
    _cell("lstm", 1, 128, Target(tail=3), weights="bfloat16", alone=True),
    _cell("lstm", 1, 256, Target(micros=22, tail=3), alone=True),
    _cell("lstm", 1, 256, Target(micros=10, tail=3), weights="bfloat16", alone=True),
    _cell("gru", 1, 256, Target()),
    _cell("rnn", 1, 256, Target()),
)


def select(pattern: str | None, quick: bool, cases: Iterable[Case] = CASES) -> list[Case]:
    """Cases in whose name the regular expression is found; without one, all or those of --quick."""
    if pattern is None:
        return [case for case in cases if case.quick or not quick]
    return [case for case in cases if re.search(pattern, case.name, re.IGNORECASE)]

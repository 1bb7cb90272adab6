"""fastattn itself, with its `auto` strategies."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

import fastattn as fa
import fastattn.nn
from benchmarks.kernels.case import Array, Case, Inputs
from benchmarks.kernels.ops import attention
from benchmarks.kernels.ops.attention_gru import DECODER_WEIGHTS
from benchmarks.kernels.ops.recurrent import GATES, GRADIENTS, STACK, WEIGHTS
from benchmarks.kernels.peers import Prepared, first, itself


def absence() -> str:
    """Never: it is what these benchmarks are of."""
    return ""


def version() -> str:
    """Version and instruction set."""
    return f"{fa.__version__} {fa.config.get_isa()}"


def supports(case: Case) -> bool:
    """Every case."""
    return True


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Weights are packed once, as other libraries do; softmax, attention and linear write into an array that exists."""
    fa.set_num_threads(threads)
    return PREPARE[case.op](case, inputs)


def _softmax(case: Case, inputs: Inputs) -> Prepared:
    x = inputs["x"]
    return Prepared(lambda: fa.softmax(x, out=x), itself)


def _linear(case: Case, inputs: Inputs) -> Prepared:
    x, bias = inputs["x"], inputs["bias"]
    weight = inputs["weight"] if case.plain else fa.pack_linear(inputs["weight"])
    y = np.empty((case.sizes["M"], case.sizes["N"]), case.dtype)
    return Prepared(lambda: fa.linear(x, weight, bias, out=y), itself)


def _encoder_layer(case: Case, inputs: Inputs) -> Prepared:
    x, dy = inputs["x"], inputs["dy"]
    layer = fa.nn.TransformerEncoderLayer(case.sizes["E"], case.sizes["H"], case.sizes["F"])
    layer.load_state_dict({name: value for name, value in inputs.items() if name not in ("x", "dy")})
    return Prepared(lambda: layer.backward(dy, layer.forward(x)[1]), first)


def _sequence(case: Case, inputs: Inputs) -> Prepared:
    x, weights = inputs["x"], {f"{name}_l0": inputs[name] for name in WEIGHTS}
    if case.dtype == "bfloat16":
        bfloat16 = import_module("ml_dtypes").bfloat16
        x, weights = x.astype(bfloat16), {name: w.astype(bfloat16) for name, w in weights.items()}
    sequence: Callable[..., Any] = getattr(fa, case.op)
    packed, lengths = getattr(fa, f"pack_{case.op}")(weights, dtype=case.weights or None), inputs.get("lengths")
    return Prepared(lambda: sequence(x, None, packed, lengths=lengths), first)


def _stack(case: Case, inputs: Inputs) -> Prepared:
    x, packed = inputs["x"], fa.pack_lstm({name: value for name, value in inputs.items() if name != "x"})
    return Prepared(lambda: fa.lstm(x, None, packed), first)


def _gradients(case: Case, inputs: Inputs) -> Prepared:
    op, weights = GRADIENTS[case.op], {f"{name}_l0": inputs[name] for name in WEIGHTS}
    forward, backward = getattr(fa, f"{op}_forward"), getattr(fa, f"{op}_backward")

    def run() -> Any:
        _, saved = forward(inputs["x"], None, weights, lengths=inputs.get("lengths"))
        return backward(inputs["dy"], saved)

    return Prepared(run, first)


def _cell(case: Case, inputs: Inputs) -> Prepared:
    """step of a module, or with plain weights the function; an LSTM has two arrays of state."""
    x, op = inputs["x"], case.op.removesuffix("_cell")
    if case.plain:
        cell, arguments = getattr(fa, case.op), [inputs[name] for name in ("x", "h", "c", *WEIGHTS) if name in inputs]
        return Prepared(lambda: cell(*arguments), first if op == "lstm" else itself)
    module = getattr(fa.nn, op.upper())(case.sizes["I"], case.sizes["H"])
    module.load_state_dict({f"{name}_l0": inputs[name] for name in WEIGHTS})
    module.pack(case.weights or None)
    state = tuple(inputs[name][None] for name in "hc" if name in inputs)
    after = tuple(np.empty_like(part) for part in state)
    if op == "lstm":
        return Prepared(lambda: module.step(x, state, out=after), first)
    return Prepared(lambda: module.step(x, state[0], out=after[0]), first)


def _attention_arguments(case: Case, inputs: Inputs) -> tuple[list[Array], dict[str, Any], DTypeLike]:
    """q, k, v (and dout) in the type of the case, the options, and the type in which results are compared."""
    dtype = import_module("ml_dtypes").bfloat16 if case.dtype == "bfloat16" else case.dtype
    arrays = [inputs[name].astype(dtype, copy=False) for name in ("q", "k", "v", "dout") if name in inputs]
    window = None if case.window is None else (case.window, 0)
    options = {"mask": inputs.get("mask"), "causal": case.causal, "window": window}
    return arrays, options, np.float32 if case.dtype == "bfloat16" else dtype


def _attention(case: Case, inputs: Inputs) -> Prepared:
    (q, k, v), options, shown = _attention_arguments(case, inputs)
    out = np.empty_like(q)
    return Prepared(lambda: fa.attention(q, k, v, **options, out=out), lambda result: np.asarray(result, shown))


def _attention_backward(case: Case, inputs: Inputs) -> Prepared:
    """Backward alone, after one forward call."""
    (q, k, v, dout), options, shown = _attention_arguments(case, inputs)
    saved = fa.attention_forward(q, k, v, **options)[1]

    def together(gradients: tuple[Array, ...]) -> Array:
        return np.stack([x.astype(shown) for x in gradients])

    return Prepared(lambda: fa.attention_backward(dout, saved), together)


def _attention_ragged(case: Case, inputs: Inputs) -> Prepared:
    """Sequences one after another, without padding."""
    (q, k, v), _, _ = _attention_arguments(case, inputs)
    out, starts = np.empty_like(q), attention.starts(case)
    return Prepared(lambda: fa.attention_varlen(q, k, v, starts, starts, out=out), itself)


def _decode(case: Case, inputs: Inputs) -> Prepared:
    """attend of a cache that holds the keys and values."""
    dtype = import_module("ml_dtypes").bfloat16 if case.dtype == "bfloat16" else case.dtype
    kept = np.float32 if case.dtype == "int8" else dtype
    q, k, v = (inputs[name].astype(kept) for name in "qkv")
    s = case.sizes
    cache = fa.KVCache(s["B"], s["K"], s["D"], dtype=dtype, capacity=s["S"])
    cache.append(k, v)
    out = np.empty_like(q)
    return Prepared(lambda: cache.attend(q, out=out), lambda result: np.asarray(result, np.float32))


def _additive(case: Case, inputs: Inputs) -> Prepared:
    def run() -> Any:
        _, saved = fa.additive_attention_forward(*(inputs[name] for name in ("query", "keys", "values", "v")))
        return fa.additive_attention_backward(inputs["dcontext"], saved)

    return Prepared(run, first)


def _attention_gru(case: Case, inputs: Inputs) -> Prepared:
    hidden = inputs["state"].shape[1]
    module = fa.nn.AttentionGRU(hidden, hidden, 2 * hidden, hidden, dtype=inputs["x"].dtype)
    names = {"query": "attention.query.weight", "key": "attention.key.weight", "v": "attention.v"}
    module.load_state_dict({names.get(name, name): inputs[name] for name in DECODER_WEIGHTS})
    dy, dcontext = inputs["dy"], inputs["dcontext"]

    def run() -> Array:
        _, saved = module.forward(inputs["x"], inputs["annotations"], inputs["state"])
        (dx, _), _, _ = module.backward((dy, dcontext, None), saved)
        return dx

    return Prepared(run, itself)


PREPARE: dict[str, Callable[[Case, Inputs], Prepared]] = {
    **dict.fromkeys(GATES, _sequence),
    **dict.fromkeys(GRADIENTS, _gradients),
    **dict.fromkeys((f"{name}_cell" for name in GATES), _cell),
    STACK: _stack,
    "additive": _additive,
    "attention": _attention,
    "attention_backward": _attention_backward,
    "attention_gru": _attention_gru,
    "attention_ragged": _attention_ragged,
    "decode": _decode,
    "encoder_layer": _encoder_layer,
    "linear": _linear,
    "softmax": _softmax,
}

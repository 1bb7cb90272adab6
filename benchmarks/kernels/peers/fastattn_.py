"""fastattn itself, with its `auto` strategies."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

import fastattn as fa
import fastattn.nn
from benchmarks.kernels.case import Array, Case, Inputs
from benchmarks.kernels.ops import attention
from benchmarks.kernels.ops.attention_gru import DECODER_WEIGHTS
from benchmarks.kernels.ops.recurrent import GATES, GRADIENTS, STACK, WEIGHTS
from benchmarks.kernels.peers import Prepared, first, itself


def available() -> bool:
    """Always: it is what these benchmarks are of."""
    return True


def version() -> str:
    """Version and instruction set."""
    return f"{fa.__version__} {fa.config.get_isa()}"


def supports(case: Case) -> bool:
    """Every case."""
    return True


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Weights are packed once, as other libraries do; softmax, attention and linear write into an array that exists."""
    fa.set_num_threads(threads)
    if case.op in attention.OPS:
        return _attention(case, inputs)
    if case.op == "decode":
        return _decode(case, inputs)
    if case.op == "additive":
        return Prepared(lambda: _additive(inputs), first)
    if case.op == "attention_gru":
        return _attention_gru(inputs)
    x = inputs["x"]
    if case.op == "encoder_layer":
        layer = fa.nn.TransformerEncoderLayer(case.sizes["E"], case.sizes["H"], case.sizes["F"])
        layer.load_state_dict({name: value for name, value in inputs.items() if name not in ("x", "dy")})
        return Prepared(lambda: layer.backward(inputs["dy"], layer.forward(x)[1]), first)
    if case.op == "softmax":
        return Prepared(lambda: fa.softmax(x, out=x), itself)
    if case.op == "linear":
        weight, bias = fa.pack_linear(inputs["weight"]), inputs["bias"]
        y = np.empty((case.sizes["M"], case.sizes["N"]), case.dtype)
        return Prepared(lambda: fa.linear(x, weight, bias, out=y), itself)
    if case.op in GRADIENTS:
        return Prepared(lambda: _gradients(GRADIENTS[case.op], inputs), first)
    if case.op in GATES:
        weights = {f"{name}_l0": inputs[name] for name in WEIGHTS}
        if case.dtype == "bfloat16":
            bfloat16 = import_module("ml_dtypes").bfloat16
            x, weights = x.astype(bfloat16), {name: w.astype(bfloat16) for name, w in weights.items()}
        sequence: Callable[..., Any] = getattr(fa, case.op)
        packed, lengths = getattr(fa, f"pack_{case.op}")(weights, dtype=case.weights or None), inputs.get("lengths")
        return Prepared(lambda: sequence(x, None, packed, lengths=lengths), first)
    if case.op == STACK:
        packed = fa.pack_lstm({name: value for name, value in inputs.items() if name != "x"})
        return Prepared(lambda: fa.lstm(x, None, packed), first)
    op = case.op.removesuffix("_cell")
    module = getattr(fa.nn, op.upper())(case.sizes["I"], case.sizes["H"])
    module.load_state_dict({f"{name}_l0": inputs[name] for name in WEIGHTS})
    module.pack(case.weights or None)
    state = tuple(inputs[name][None] for name in "hc" if name in inputs)
    after = tuple(np.empty_like(part) for part in state)
    if op == "lstm":
        return Prepared(lambda: module.step(x, state, out=after), first)
    return Prepared(lambda: module.step(x, state[0], out=after[0]), first)


def _attention(case: Case, inputs: Inputs) -> Prepared:
    """Forward into an array that exists; backward after one forward call; ragged batches packed."""
    dtype = import_module("ml_dtypes").bfloat16 if case.dtype == "bfloat16" else case.dtype
    q, k, v = (inputs[name].astype(dtype, copy=False) for name in "qkv")
    shown = np.float32 if case.dtype == "bfloat16" else dtype
    out = np.empty_like(q)
    if case.op == "attention_ragged":
        starts = attention.starts(case)
        return Prepared(lambda: fa.attention_varlen(q, k, v, starts, starts, out=out), itself)
    causal, mask, window = case.causal, inputs.get("mask"), None if case.window is None else (case.window, 0)
    if case.op == "attention":
        return Prepared(lambda: fa.attention(q, k, v, mask=mask, causal=causal, window=window, out=out),
                        lambda result: np.asarray(result, shown))  # fmt: skip
    dout = inputs["dout"].astype(dtype, copy=False)
    saved = fa.attention_forward(q, k, v, mask=mask, causal=causal, window=window)[1]

    def together(gradients: tuple[Array, ...]) -> Array:
        return np.stack([x.astype(shown) for x in gradients])

    return Prepared(lambda: fa.attention_backward(dout, saved), together)


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


def _gradients(op: str, inputs: Inputs) -> Any:
    weights = {f"{name}_l0": inputs[name] for name in WEIGHTS}
    _, saved = getattr(fa, f"{op}_forward")(inputs["x"], None, weights, lengths=inputs.get("lengths"))
    return getattr(fa, f"{op}_backward")(inputs["dy"], saved)


def _additive(inputs: Inputs) -> tuple[Array, ...]:
    _, saved = fa.additive_attention_forward(*(inputs[name] for name in ("query", "keys", "values", "v")))
    return fa.additive_attention_backward(inputs["dcontext"], saved)


def _attention_gru(inputs: Inputs) -> Prepared:
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

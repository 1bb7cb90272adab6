"""Plain NumPy, as one would write it by hand: whole score matrices, a Python loop over time."""

from typing import Any

import numpy as np

from benchmarks import attention, plain
from benchmarks.cases import GATES, GRADIENTS, STACK, Array, Case, Inputs
from benchmarks.peers import Prepared, first, itself


def available() -> bool:
    """Always: fastattn needs it."""
    return True


def version() -> str:
    """Version and BLAS."""
    configuration: Any = np.show_config(mode="dicts")
    blas = configuration["Build Dependencies"]["blas"]
    return f"{np.__version__} {blas['name']} {blas['version']}"


def supports(case: Case) -> bool:
    """Attention up to sizes whose score matrices do not swamp the memory; no whole layers, no ragged batches."""
    s = case.sizes
    if case.op in ("encoder_layer", "decode") or case.dtype == "bfloat16" or case.ragged:
        return False
    return case.op not in ("attention", "attention_backward") or s["B"] * s["H"] * s["S"] ** 2 <= 2**26


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """The number of threads was set by the environment, before NumPy was imported."""
    if case.op in attention.OPS:
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        if case.op == "attention_ragged":
            starts = attention.starts(case)
            return Prepared(lambda: attention.ragged(q, k, v, starts), itself)
        where = attention.allowed(case, inputs, np.arange(case.sizes["S"]))
        if case.op == "attention":
            return Prepared(lambda: attention.forward(q, k, v, where), itself)
        return Prepared(lambda: attention.backward(inputs["dout"], q, k, v, where), np.stack)
    if case.op == "additive":
        return Prepared(lambda: plain.additive(**inputs), itself)
    if case.op == "attention_gru":
        return Prepared(lambda: plain.attention_gru(**inputs), itself)
    x = inputs["x"]
    if case.op == "softmax":
        return Prepared(lambda: _softmax_in_place(x), itself)
    if case.op == "linear":
        weight, bias = np.ascontiguousarray(inputs["weight"].T), inputs["bias"]
        return Prepared(lambda: x @ weight + bias, itself)
    if case.op in GRADIENTS:
        return Prepared(lambda: plain.gradients(GRADIENTS[case.op], x, inputs["dy"], inputs), itself)
    if case.op == STACK:
        return Prepared(lambda: plain.stack(x, case.sizes["L"], case.sizes["H"], inputs), itself)
    if case.op in GATES:
        return Prepared(lambda: plain.run(case.op, x, case.sizes["H"], inputs), itself)
    op = case.op.removesuffix("_cell")
    state = tuple(inputs[name] for name in "hc" if name in inputs)
    return Prepared(lambda: plain.step(op, x, state, inputs), first)


def _softmax_in_place(x: Array) -> Array:
    x -= x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x

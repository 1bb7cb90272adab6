"""The specification in the type of the case, with NumPy's products: whole score matrices, a Python loop over time."""

from typing import Any

import numpy as np

from benchmarks.kernels.case import OPS, Array, Case, Inputs
from benchmarks.kernels.peers import Prepared, itself


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
    x = inputs.get("x")
    if case.op == "softmax" and x is not None:
        return Prepared(lambda: _softmax_in_place(x), itself)
    result = OPS[case.op].result
    return Prepared(lambda: result(case, inputs, case.dtype), itself)


def _softmax_in_place(x: Array) -> Array:
    x -= x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x

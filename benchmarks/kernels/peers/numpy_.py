"""The specification in the type of the case, with NumPy's products: whole score matrices, a Python loop over time."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.kernels.case import OPS, Array, Case, Inputs
from benchmarks.kernels.peers import Prepared, itself


def absence() -> str:
    """Never: fastattn needs it."""
    return ""


def version() -> str:
    """Version, BLAS, and the core that the BLAS has chosen, where threadpoolctl can tell it."""
    configuration: Any = np.show_config(mode="dicts")
    blas = configuration["Build Dependencies"]["blas"]
    cores = {pool["architecture"] for pool in _pools() if "architecture" in pool}
    core = f", core {' '.join(sorted(cores))}" if cores else ""
    return f"{np.__version__} {blas['name']} {blas['version']}{core}"


def _pools() -> list[dict[str, Any]]:
    """What threadpoolctl knows of the BLAS libraries in the process; nothing without it."""
    if find_spec("threadpoolctl") is None:
        return []
    found: list[dict[str, Any]] = import_module("threadpoolctl").threadpool_info()
    return [pool for pool in found if pool["user_api"] == "blas"]


def _limit_threads(threads: int) -> None:
    """As many threads as ours, also of a BLAS that has not read them in the environment."""
    if not any(pool["num_threads"] != threads for pool in _pools()):
        return
    import_module("threadpoolctl").threadpool_limits(threads, user_api="blas")
    wrong = [f"{pool['internal_api']} {pool['num_threads']}" for pool in _pools() if pool["num_threads"] != threads]
    if wrong:
        raise RuntimeError(f"NumPy's BLAS does not take {threads} threads: {', '.join(wrong)}")


def supports(case: Case) -> bool:
    """Attention up to sizes whose score matrices do not swamp the memory; no whole layers, no ragged batches."""
    s = case.sizes
    if case.op in ("encoder_layer", "decode") or case.dtype == "bfloat16" or case.ragged:
        return False
    return case.op not in ("attention", "attention_backward") or s["B"] * s["H"] * s["S"] ** 2 <= 2**26


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """With a fixed number of threads."""
    _limit_threads(threads)
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

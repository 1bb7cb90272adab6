"""fastattn with the strategy "blas": OpenBLAS on constant tiles in place of its own kernels."""

import numpy as np

import fastattn as fa
from benchmarks.cases import Case, Inputs
from benchmarks.peers import Prepared, fastattn_, itself
from fastattn import _core


def available() -> bool:
    """Whether this build has a BLAS that loads."""
    try:
        _core.set_attention_strategy("blas")
        _core.set_linear_strategy("blas")
    except ValueError:
        return False
    return True


def version() -> str:
    """The BLAS and its core."""
    info = fa.config.info()
    return f"{fa.__version__} {info['blas']} BLAS, core {info['blas_core']}"


def supports(case: Case) -> bool:
    """The operations that have this strategy, without options, which cost the same by either."""
    return case.op in ("attention", "linear") and case.dtype != "bfloat16" and not case.masked and case.window is None


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """As for fastattn, but for the weights: packed ones would be native."""
    if case.op == "attention":
        return fastattn_.prepare(case, inputs, threads)
    fa.set_num_threads(threads)
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    y = np.empty((case.sizes["M"], case.sizes["N"]), case.dtype)
    return Prepared(lambda: fa.linear(x, weight, bias, out=y), itself)

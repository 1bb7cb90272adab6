"""fastattn with the strategy "blas": OpenBLAS on constant tiles in place of its own kernels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import fastattn as fa
from benchmarks.kernels.case import Case, Inputs
from benchmarks.kernels.peers import Prepared, fastattn_, itself


def available() -> bool:
    """Whether this build has a BLAS that loads."""
    try:
        with blas():
            return True
    except ValueError:
        return False


@contextmanager
def blas() -> Iterator[None]:
    """Both strategies."""
    with fa.config.attention_strategy("blas"), fa.config.linear_strategy("blas"):
        yield


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
        prepared = fastattn_.prepare(case, inputs, threads)
        return prepared._replace(run=in_blas(prepared.run))
    fa.set_num_threads(threads)
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    y = np.empty((case.sizes["M"], case.sizes["N"]), case.dtype)
    return Prepared(in_blas(lambda: fa.linear(x, weight, bias, out=y)), itself)


def in_blas(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same call under both strategies."""

    def call() -> Any:
        with blas():
            return run()

    return call

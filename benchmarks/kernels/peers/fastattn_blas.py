"""fastattn with the strategy "blas": OpenBLAS on constant tiles in place of its own kernels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import fastattn as fa
from benchmarks.kernels.case import Case, Inputs
from benchmarks.kernels.peers import Prepared, fastattn_, itself


def absence() -> str:
    """A build without a BLAS, or one that does not load."""
    try:
        with blas():
            return ""
    except ValueError as error:
        return str(error)


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
    return case.op in PREPARE and case.dtype != "bfloat16" and not case.masked and case.window is None


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """The calls of fastattn under both strategies."""
    fa.set_num_threads(threads)
    return PREPARE[case.op](case, inputs)


def _attention(case: Case, inputs: Inputs) -> Prepared:
    prepared = fastattn_.PREPARE[case.op](case, inputs)
    return prepared._replace(run=in_blas(prepared.run))


def _linear(case: Case, inputs: Inputs) -> Prepared:
    """Weights as they are: packed ones would be native."""
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    y = np.empty((case.sizes["M"], case.sizes["N"]), case.dtype)
    return Prepared(in_blas(lambda: fa.linear(x, weight, bias, out=y)), itself)


def in_blas(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same call under both strategies."""

    def call() -> Any:
        with blas():
            return run()

    return call


PREPARE = {"attention": _attention, "linear": _linear}

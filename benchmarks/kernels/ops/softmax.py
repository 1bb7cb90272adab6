"""softmax of rows, in place."""

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.kernels.case import Array, Case, Inputs, Op, normal, spread
from fastattn import reference

ROWS = ("x",)


def inputs_of(case: Case, rng: np.random.Generator) -> Inputs:
    return {"x": normal(case, rng, case.sizes["R"], case.sizes["C"])}


def sample(case: Case, result: Array) -> Array:
    return result[spread(len(result), 64)]


def expected(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    rows = spread(len(inputs["x"]), 64)
    return result(case, {name: a[rows] if name in ROWS else a for name, a in inputs.items()}, dtype)


def result(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    return np.asanyarray(reference.softmax(inputs["x"], dtype=dtype))


def size(case: Case) -> float:
    """Rows, read and written."""
    return 2.0 * np.dtype(case.dtype).itemsize * case.sizes["R"] * case.sizes["C"]


OP = Op(inputs_of, sample, expected, result, bytes=size)

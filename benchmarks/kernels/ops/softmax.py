"""softmax of rows, in place."""

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.kernels.case import Array, Case, Inputs, Op, normal, of_rows
from fastattn import reference


def inputs_of(case: Case, rng: np.random.Generator) -> Inputs:
    return {"x": normal(case, rng, case.sizes["R"], case.sizes["C"])}


def result(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    return np.asanyarray(reference.softmax(inputs["x"], dtype=dtype))


def size(case: Case) -> float:
    """Rows, read and written."""
    return 2.0 * np.dtype(case.dtype).itemsize * case.sizes["R"] * case.sizes["C"]


OP = Op(inputs_of, *of_rows(result, "x"), result, bytes=size)

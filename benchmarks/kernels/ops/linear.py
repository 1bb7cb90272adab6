"""x weight' + bias."""

import math

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.kernels.case import Array, Case, Inputs, Op, normal, of_rows
from fastattn import reference


def inputs_of(case: Case, rng: np.random.Generator) -> Inputs:
    s = case.sizes
    scale = np.dtype(case.dtype).type(1 / math.sqrt(s["K"]))
    weight = scale * normal(case, rng, s["N"], s["K"])
    return {
        "x": normal(case, rng, s["M"], s["K"]),
        "weight": np.asfortranarray(weight) if case.transposed else weight,
        "bias": normal(case, rng, s["N"]),
    }


def result(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    return np.asanyarray(reference.linear(inputs["x"], inputs["weight"], inputs["bias"], dtype=dtype))


def flops(case: Case) -> float:
    return 2.0 * case.sizes["M"] * case.sizes["N"] * case.sizes["K"]


OP = Op(inputs_of, *of_rows(result, "x"), result, flops)

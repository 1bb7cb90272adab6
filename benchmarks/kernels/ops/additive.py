"""Additive attention, forward and backward: the gradient of the query."""

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.kernels.case import Array, Case, Inputs, Op, normal, of_rows
from fastattn import reference

ADDITIVE = ("query", "keys", "values", "v", "dcontext")


def inputs_of(case: Case, rng: np.random.Generator) -> Inputs:
    """query, keys, values, v, and the gradient of the context."""
    s = case.sizes
    shapes = {"query": "BTA", "keys": "BSA", "values": "BSC", "v": "A", "dcontext": "BTC"}
    return {name: normal(case, rng, *(s[axis] for axis in axes)) for name, axes in shapes.items()}


def result(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    """The gradient of the query of additive attention, one sequence after the other: the tanh of all would not fit."""
    query, keys, values, v, dcontext = (inputs[name].astype(dtype) for name in ADDITIVE)
    dquery = np.empty_like(query)
    for b in range(len(query)):
        one = slice(b, b + 1)
        dquery[one] = reference.additive_attention_backward(
            dcontext[one], query[one], keys[one], values[one], v, dtype=v.dtype
        )[0]
    return dquery


OP = Op(inputs_of, *of_rows(result, "query", "keys", "values", "dcontext"), result)

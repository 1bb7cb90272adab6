"""One query of each head against the cache of all keys."""

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.kernels.case import Array, Case, Inputs, Op, normal, spread
from fastattn import reference

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def inputs_of(case: Case, rng: np.random.Generator) -> Inputs:
    """q[B, H, 1, D], k and v[B, K, S, D]: numbers of 8 bits with a sign, the largest in every row, so that bfloat16 and
    an int8 cache keep them as they are."""
    s = case.sizes
    inputs = {"q": normal(case, rng, s["B"], s["H"], 1, s["D"])}
    for name in "kv":
        x = np.rint(40 * rng.standard_normal((s["B"], s["K"], s["S"], s["D"]), np.float32)).clip(-127, 127)
        x[..., 0] = 127
        inputs[name] = x / np.float32(64)
    return inputs


def sample(case: Case, result: Array) -> Array:
    return result[:, spread(case.sizes["H"], 4)]


def expected(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    heads = spread(case.sizes["H"], 4)
    part = {name: inputs[name][:, heads // (case.sizes["H"] // case.sizes["K"])] for name in "kv"}
    return result(case, {"q": inputs["q"][:, heads], **part}, dtype)


def result(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    return np.asanyarray(reference.attention(inputs["q"], inputs["k"], inputs["v"], dtype=dtype)[0])


def size(case: Case) -> float:
    """Keys and values, read once."""
    s = case.sizes
    return 2.0 * BYTES[case.dtype] * s["B"] * s["K"] * s["S"] * s["D"]


OP = Op(inputs_of, sample, expected, result, bytes=size)

"""A transformer encoder layer, forward and backward: the gradient of x."""

import math

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.kernels.case import Array, Case, Inputs, Op, converted, normal
from fastattn import nn, reference

KINK = 1e-5  # of arguments of relu about 1: ten times their rounding errors in float32


def inputs_of(case: Case, rng: np.random.Generator) -> Inputs:
    """x, dy, and the parameters of a transformer encoder layer by torch's names."""
    s = case.sizes
    rows = {"self_attn.in_proj_": (3 * s["E"], s["E"]), "self_attn.out_proj.": (s["E"], s["E"]),
            "linear1.": (s["F"], s["E"]), "linear2.": (s["E"], s["F"])}  # fmt: skip
    inputs = {name: normal(case, rng, s["B"], s["L"], s["E"]) for name in ("x", "dy")}
    for name, (n, k) in rows.items():
        inputs[f"{name}weight"] = np.dtype(case.dtype).type(1 / math.sqrt(k)) * normal(case, rng, n, k)
        inputs[f"{name}bias"] = normal(case, rng, n)
    for name in ("norm1", "norm2"):
        inputs |= {f"{name}.{part}": normal(case, rng, s["E"]) for part in ("weight", "bias")}
    # Where an argument of relu is within rounding of 0, a library may be right on either side: the sequence that is
    # verified has no gradient there.
    layer = nn.TransformerEncoderLayer(s["E"], s["H"], s["F"], dtype=np.float64)
    layer.load_state_dict({name: array.astype(np.float64) for name, array in inputs.items() if name not in ("x", "dy")})
    x = inputs["x"][:1].astype(np.float64)
    hidden = layer.linear1(layer.norm1(x + layer.self_attn(x)))
    inputs["dy"][0, np.abs(hidden[0]).min(-1) < KINK] = 0
    return inputs


def sample(case: Case, result: Array) -> Array:
    return result[:1]


def expected(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    return result(case, {name: a[:1] if name in ("x", "dy") else a for name, a in inputs.items()}, dtype)


def result(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    a = converted(inputs, dtype)
    return np.stack([_encoder_layer(x, dy, a, case.sizes["H"]) for x, dy in zip(a["x"], a["dy"], strict=True)])


def flops(case: Case) -> float:
    """Forward, and twice as much backward; attention recomputes its scores."""
    s = case.sizes
    products = 2.0 * s["B"] * s["L"] * s["E"] * (4 * s["E"] + 2 * s["F"])
    return 3 * products + 3.5 * 4.0 * s["B"] * s["L"] ** 2 * s["E"]


def _encoder_layer(x: Array, dy: Array, w: Inputs, heads: int) -> Array:
    """dx of one sequence x[L, E] through a transformer encoder layer, forward and backward; norms behind the sums."""
    dtype = x.dtype

    def split(a: Array) -> Array:
        return a.reshape(1, len(x), heads, -1).swapaxes(1, 2)

    def join(a: Array) -> Array:
        return a.swapaxes(1, 2).reshape(len(x), -1)

    def parameters(name: str) -> tuple[Array, Array]:
        return w[f"{name}weight"], w[f"{name}bias"]

    qkv = reference.linear(x, *parameters("self_attn.in_proj_"), dtype=dtype)
    q, k, v = (split(a) for a in np.split(qkv, 3, axis=-1))
    mixed = join(reference.attention(q, k, v, dtype=dtype)[0])
    first = x + reference.linear(mixed, *parameters("self_attn.out_proj."), dtype=dtype)
    y = reference.layer_norm(first, *parameters("norm1."), dtype=dtype)
    hidden = reference.linear(y, *parameters("linear1."), "relu", dtype=dtype)
    second = y + reference.linear(hidden, *parameters("linear2."), dtype=dtype)

    d = reference.layer_norm_backward(dy, second, w["norm2.weight"], dtype=dtype)[0]
    dhidden = reference.linear_backward(d, hidden, w["linear2.weight"], dtype=dtype)[0]
    d = d + reference.linear_backward(dhidden, y, *parameters("linear1."), "relu", dtype=dtype)[0]
    d = reference.layer_norm_backward(d, first, w["norm1.weight"], dtype=dtype)[0]
    dmixed = split(reference.linear_backward(d, mixed, w["self_attn.out_proj.weight"], dtype=dtype)[0])
    dqkv = np.concatenate([join(a) for a in reference.attention_backward(dmixed, q, k, v, dtype=dtype)], -1)
    return np.asanyarray(d + reference.linear_backward(dqkv, x, w["self_attn.in_proj_weight"], dtype=dtype)[0])


OP = Op(inputs_of, sample, expected, result, flops)

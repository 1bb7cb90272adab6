"""A GRU that attends to annotations at each step, forward and backward: the gradient of x."""

import math

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.kernels.case import Array, Case, Inputs, Op, converted, normal, spread
from benchmarks.kernels.ops.recurrent import cell
from fastattn import reference

DECODER_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "query", "key", "v")
BATCH = {"x": 1, "dy": 1, "dcontext": 1, "annotations": 0, "state": 0}  # the axis of each input that is the batch


def inputs_of(case: Case, rng: np.random.Generator) -> Inputs:
    """x, annotations of twice the state's size, state, gradients of states and contexts, and the decoder's weights."""
    s = case.sizes
    T, B, S, H = s["T"], s["B"], s["S"], s["H"]
    arrays = {
        "x": normal(case, rng, T, B, H),
        "annotations": normal(case, rng, B, S, 2 * H),
        "state": np.tanh(normal(case, rng, B, H)),
        "dy": normal(case, rng, T, B, H),
        "dcontext": normal(case, rng, T, B, 2 * H),
    }
    for name, shape in {"weight_ih": (3 * H, 3 * H), "weight_hh": (3 * H, H), "bias_ih": (3 * H,), "bias_hh": (3 * H,),
                        "query": (H, H), "key": (H, 2 * H), "v": (H,)}.items():  # fmt: skip
        arrays[name] = normal(case, rng, *shape) / np.dtype(case.dtype).type(math.sqrt(H))
    return arrays


def sample(case: Case, result: Array) -> Array:
    return result[:, spread(case.sizes["B"], 2)]


def expected(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    rows = spread(case.sizes["B"], 2)
    return result(case, {name: a.take(rows, BATCH[name]) if name in BATCH else a for name, a in inputs.items()}, dtype)


def result(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    """The gradient of x of a GRU that attends to annotations at each step, after all steps forward and back."""
    a = converted(inputs, dtype)
    x, annotations, v, h = a["x"], a["annotations"], a["v"], a["state"]
    keys, steps = annotations @ a["key"].T, []
    step, step_backward = cell("gru", a), cell("gru", a, backward=True)
    for x_t in x:
        query = (h @ a["query"].T)[:, None]
        context, _ = reference.additive_attention(query, keys, annotations, v, dtype=dtype)
        steps.append((query, np.concatenate([x_t, context[:, 0]], 1), h))
        h = step(*steps[-1][1:])
    dx, dh, columns = np.empty_like(x), np.zeros_like(h), x.shape[2]
    for t, (query, joined, h) in reversed(list(enumerate(steps))):
        both, (dh,), _ = step_backward((dh + a["dy"][t],), joined, h)
        dx[t], dcontext = both[:, :columns], (both[:, columns:] + a["dcontext"][t])[:, None]
        dquery = reference.additive_attention_backward(dcontext, query, keys, annotations, v, dtype=dtype)[0]
        dh = dh + dquery[:, 0] @ a["query"]
    return dx


OP = Op(inputs_of, sample, expected, result)

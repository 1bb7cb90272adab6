"""The specification of every case: in float64 as the reference, in the dtype of the case as the yardstick of error.

Only a sample of each result is computed (some heads and query rows, some sequences of the batch, some rows), because
the large cases would take minutes. Output rows do not depend on each other, so that a sample checks the whole
computation of its rows.

The yardstick has the same bits on every machine: arrays of tests/ordered.py, which add in one fixed order without BLAS.
The largest of few errors is chance: small results are drawn several times, and the yardstick is the largest error of
the plain form in all draws.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.kernels import attention
from benchmarks.kernels.cases import GATES, GRADIENTS, STACK, WEIGHTS, Array, Case, Inputs
from benchmarks.kernels.recurrences import stack_suffixes
from fastattn import reference
from tests.ordered import Ordered

# Of a case with more work, sums in one order would take minutes. NumPy's products serve there: the largest error of so
# many values depends little on the order of their sums.
ORDERED_FLOPS = 2e9
FEW = 100_000  # elements of a result: below, the yardstick is pooled over DRAWS inputs
DRAWS = 8


def _spread(n: int, most: int) -> Array:
    """Up to `most` indices spread over 0..n-1, first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def sample(case: Case, result: Array) -> Array:
    """The part of a whole result that `expected` computes."""
    s = case.sizes
    if case.op in attention.OPS:
        return attention.sample(case, result)
    if case.op == "decode":
        return result[:, _spread(s["H"], 4)]
    if case.op in GATES or case.op in (*GRADIENTS, "attention_gru", STACK):
        return result[:, _spread(s["B"], 2)]
    if case.op == "encoder_layer":
        return result[:1]
    return result[_spread(result.shape[0], 64)]


def expected(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    """`sample` of the result, computed in `dtype`."""
    if case.op in attention.OPS:
        return attention.expected(case, inputs, dtype)
    if case.op == "decode":
        heads = _spread(case.sizes["H"], 4)
        k, v = (inputs[name][:, heads // (case.sizes["H"] // case.sizes["K"])] for name in "kv")
        return np.asanyarray(reference.attention(inputs["q"][:, heads], k, v, dtype=dtype)[0])
    if case.op == "encoder_layer":
        return result(case, {name: a[:1] if name in ("x", "dy") else a for name, a in inputs.items()}, dtype)
    axis = {"x": 1, "dy": 1, "lengths": 0, "annotations": 0, "state": 0, "dcontext": 1}
    if case.op in GATES or case.op in (*GRADIENTS, "attention_gru", STACK):
        rows = _spread(case.sizes["B"], 2)
        part = {name: a.take(rows, axis[name]) if name in axis else a for name, a in inputs.items()}
        return result(case, part, dtype)
    shared = (*WEIGHTS, "weight", "bias", "v")
    rows = _spread(next(iter(inputs[name] for name in ("x", "query") if name in inputs)).shape[0], 64)
    return result(case, {name: a if name in shared else a[rows] for name, a in inputs.items()}, dtype)


def result(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    """The whole result by the specification, computed in `dtype`; of attention, attention.py has it."""
    inputs = {name: a if name == "lengths" else a.astype(dtype) for name, a in inputs.items()}
    if case.op in GATES or case.op in GRADIENTS:
        return _sequence(case.op, inputs, inputs["lengths"] if case.ragged else None)
    if case.op == STACK:
        return _stack(inputs, case.sizes["L"])
    if case.op == "additive":
        return _additive(**inputs)
    if case.op == "attention_gru":
        return _attention_gru(**inputs)
    if case.op == "encoder_layer":
        return np.stack(
            [_encoder_layer(*pair, inputs, case.sizes["H"]) for pair in zip(inputs["x"], inputs["dy"], strict=True)]
        )
    if case.op == "softmax":
        return np.asanyarray(reference.softmax(inputs["x"], dtype=dtype))
    if case.op == "linear":
        return np.asanyarray(reference.linear(**inputs, dtype=dtype))
    state = [inputs[name] for name in "hc" if name in inputs]
    after = cell(case.op.removesuffix("_cell"), inputs)(inputs["x"], *state)
    return np.asanyarray(after[0] if isinstance(after, tuple) else after)


def errors(case: Case, inputs: Inputs) -> tuple[Array, float]:
    """The reference (float64; extended precision for float64 cases), and the error that the error rule allows.

    The rule: twice the error of the plain form in the dtype of the case.
    Rounding the exact result costs half a unit in the last place already: the yardstick is never below that.
    """
    exact, error = _plain_error(case, inputs)
    if exact.size < FEW:
        error = max(error, *(_plain_error(case, case.inputs(seed))[1] for seed in range(DRAWS)))
    return exact.astype(np.float64), 2 * max(
        error, rounding(exact, case.dtype if case.dtype == "bfloat16" else _arithmetic(case))
    )


def rounding(exact: Array, dtype: str) -> float:
    """What rounding the largest result costs."""
    eps = 2.0**-7 if dtype == "bfloat16" else np.finfo(dtype).eps
    return float(eps / 2 * np.abs(exact).max())


def _plain_error(case: Case, inputs: Inputs) -> tuple[Array, float]:
    """The exact sample, and the largest error of the plain form."""
    exact = expected(case, inputs, np.longdouble if case.dtype == "float64" else np.float64)
    return exact, float(np.abs(yardstick(case, inputs) - exact).max())


def yardstick(case: Case, inputs: Inputs) -> Array:
    """The plain form in the dtype of the case; of all but large cases with the same bits on every machine."""
    if case.flops <= ORDERED_FLOPS:
        inputs = {name: value.view(Ordered) if value.dtype.kind == "f" else value for name, value in inputs.items()}
    return np.asarray(expected(case, inputs, _arithmetic(case)))


def _arithmetic(case: Case) -> str:
    """What the plain form computes in: float32 where the arrays have fewer bits."""
    return "float64" if case.dtype == "float64" else "float32"


# ---- compositions of the specification; all arrays have one dtype ----


def _additive(**inputs: Array) -> Array:
    """The gradient of the query of additive attention, one sequence after the other: the tanh of all would not fit."""
    query, keys, values, v, dcontext = (inputs[name] for name in ADDITIVE)
    dquery = np.empty_like(query)
    for b in range(len(query)):
        one = slice(b, b + 1)
        dquery[one] = reference.additive_attention_backward(
            dcontext[one], query[one], keys[one], values[one], v, dtype=v.dtype
        )[0]
    return dquery


ADDITIVE = ("query", "keys", "values", "v", "dcontext")


def _attention_gru(**a: Array) -> Array:
    """The gradient of x of a GRU that attends to annotations at each step, after all steps forward and back."""
    x, annotations, v, h = a["x"], a["annotations"], a["v"], a["state"]
    keys, dtype, steps = annotations @ a["key"].T, x.dtype, []
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


def cell(op: str, weights: Inputs, suffix: str = "", backward: bool = False) -> Callable[..., Any]:
    """A step of a cell with its weights, or its gradients."""
    function = getattr(reference, f"{op}_cell_backward" if backward else f"{op}_cell")
    own = [weights[name + suffix] for name in WEIGHTS if name + suffix in weights]
    return lambda *arguments: function(*arguments, *own, dtype=own[0].dtype)


def zeros(op: str, x: Array, weights: Inputs, suffix: str = "") -> tuple[Array, ...]:
    """The state before the first step."""
    shape = x.shape[1], weights[f"weight_hh{suffix}"].shape[1]
    return tuple(np.zeros_like(x, shape=shape) for _ in range(2 if op == "lstm" else 1))


def _sequence(op: str, a: Inputs, lengths: Array | None) -> Array:
    """y[T, B, H], or dx[T, B, I] after all steps forward and back, from a state of zeros."""
    name = GRADIENTS.get(op, op)
    x, state = a["x"], zeros(name, a["x"], a)
    if op in GATES:
        return np.asanyarray(reference.sequence(cell(name, a), x, state, lengths, dtype=x.dtype)[0])
    pair = cell(name, a), cell(name, a, backward=True)
    return np.asanyarray(reference.sequence_backward(*pair, a["dy"], state, x, state, lengths, dtype=x.dtype)[0])


def _stack(a: Inputs, layers: int) -> Array:
    """y[T, B, 2 H] of the last of several LSTM layers in both directions; weights by torch's names."""
    x = a["x"]
    for pair in zip(*[iter(stack_suffixes(layers))] * 2, strict=True):
        sides = [
            reference.sequence(
                cell("lstm", a, suffix), x, zeros("lstm", x, a, suffix), reverse="reverse" in suffix, dtype=x.dtype
            )[0]
            for suffix in pair
        ]
        x = np.concatenate(sides, -1)
    return x


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

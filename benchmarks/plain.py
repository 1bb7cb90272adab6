"""The plain form of every case: in float64 as the reference, in the dtype of the case as the yardstick of error.

Only a sample of each result is computed (some heads and query rows, some sequences of the batch, some rows), because
the large cases would take minutes. Output rows do not depend on each other, so that a sample checks the whole
computation of its rows.

The yardstick has the same bits on every machine: arrays of tests/ordered.py, which add in one fixed order without BLAS.
The largest of few errors is chance: small results are drawn several times, and the yardstick is the largest error of
the plain form in all draws.
"""

import math

import numpy as np
from numpy.typing import DTypeLike

from benchmarks import attention
from benchmarks.cases import GATES, GRADIENTS, STACK, WEIGHTS, Array, Case, Inputs
from benchmarks.recurrences import stack_suffixes
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
        return _decode(case, inputs, dtype)
    if case.op in GATES or case.op in GRADIENTS:
        return _sequence(case, inputs, dtype)
    if case.op == STACK:
        return _stack(case, inputs, dtype)
    if case.op == "additive":
        return sample(case, additive(*(inputs[name].astype(dtype) for name in ADDITIVE)))
    if case.op == "encoder_layer":
        layer = {name: value.astype(dtype) for name, value in inputs.items() if name not in ("x", "dy")}
        return encoder_layer(inputs["x"][0].astype(dtype), inputs["dy"][0].astype(dtype), layer, case.sizes["H"])[None]
    if case.op == "attention_gru":
        return sample(case, attention_gru(**{name: value.astype(dtype) for name, value in inputs.items()}))
    if case.op == "softmax":
        return softmax(sample(case, inputs["x"]).astype(dtype))
    rows = _spread(len(inputs["x"]), 64)
    x = inputs["x"][rows].astype(dtype)
    if case.op == "linear":
        y: Array = x @ inputs["weight"].T.astype(dtype) + inputs["bias"].astype(dtype)
        return y
    state = tuple(inputs[name][rows].astype(dtype) for name in "hc" if name in inputs)
    return step(case.op.removesuffix("_cell"), x, state, _weights(inputs, dtype))[0]


ADDITIVE = ("query", "keys", "values", "v", "dcontext")


def additive(query: Array, keys: Array, values: Array, v: Array, dcontext: Array) -> Array:
    """The gradient of the query of additive attention, forward and backward, one sequence after the other."""
    dquery = np.empty_like(query)
    for b in range(len(query)):
        t = np.tanh(query[b, :, None] + keys[b])
        w = softmax(t @ v)
        dw = dcontext[b] @ values[b].T
        de = w * (dw - (w * dw).sum(-1, keepdims=True))
        dquery[b] = (de[:, :, None] * (1 - t * t) * v).sum(1)
    return dquery


def attention_gru(**a: Array) -> Array:
    """The gradient of x of a GRU that attends to annotations at each step, after all steps forward and back."""
    x, annotations, h = a["x"], a["annotations"], a["state"]
    T, inputs, hidden = len(x), x.shape[2], h.shape[1]
    keys, steps, dx = annotations @ a["key"].T, [], np.empty_like(x)
    for t in range(T):
        energies = np.tanh((h @ a["query"].T)[:, None] + keys)
        w = softmax(energies @ a["v"])
        gates = np.concatenate([x[t], (w[:, None] @ annotations)[:, 0]], 1) @ a["weight_ih"].T + a["bias_ih"]
        from_h = h @ a["weight_hh"].T + a["bias_hh"]
        r, z = np.split(1 / (1 + np.exp(-gates - from_h)[:, : 2 * hidden]), 2, 1)
        n = np.tanh(gates[:, 2 * hidden :] + r * from_h[:, 2 * hidden :])
        steps.append((energies, w, r, z, n, from_h[:, 2 * hidden :], h))
        h = n + z * (h - n)
    dh = np.zeros_like(h)
    for t in reversed(range(T)):
        energies, w, r, z, n, inner, h = steps[t]
        d = dh + a["dy"][t]
        dn, dz = d * (1 - z) * (1 - n * n), d * (h - n) * z * (1 - z)
        dr = dn * inner * r * (1 - r)
        dinputs = np.concatenate([dr, dz, dn], 1) @ a["weight_ih"]
        dx[t] = dinputs[:, :inputs]
        dw = (annotations @ (dinputs[:, inputs:] + a["dcontext"][t])[:, :, None])[:, :, 0]
        de = w * (dw - (w * dw).sum(1, keepdims=True))
        dquery = (de[:, :, None] * a["v"] * (1 - energies * energies)).sum(1)
        dh = d * z + np.concatenate([dr, dz, dn * r], 1) @ a["weight_hh"] + dquery @ a["query"]
    return dx


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
        inputs = {name: value.view(Ordered) for name, value in inputs.items()}
    return np.asarray(expected(case, inputs, _arithmetic(case)))


def _arithmetic(case: Case) -> str:
    """What the plain form computes in: float32 where the arrays have fewer bits."""
    return "float64" if case.dtype == "float64" else "float32"


# ---- the computations ----


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _decode(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    heads = _spread(case.sizes["H"], 4)
    of_head = heads // (case.sizes["H"] // case.sizes["K"])
    k, v = (inputs[name][:, of_head].astype(dtype) for name in "kv")
    return attention.forward(inputs["q"][:, heads].astype(dtype), k, v)


def sigmoid(x: Array) -> Array:
    z = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, z, x.dtype.type(1)) / (1 + z))


def _weights(inputs: Inputs, dtype: DTypeLike, suffix: str = "") -> Inputs:
    return {name: inputs[name + suffix].astype(dtype) for name in WEIGHTS}


def step(op: str, x: Array, state: tuple[Array, ...], weights: Inputs) -> tuple[Array, ...]:
    """One step of a cell: the new state, h first."""
    return _gates(op, x @ weights["weight_ih"].T + weights["bias_ih"], state, weights)


def _gates(op: str, from_input: Array, state: tuple[Array, ...], weights: Inputs) -> tuple[Array, ...]:
    from_state = state[0] @ weights["weight_hh"].T + weights["bias_hh"]
    if op == "rnn":
        return (np.tanh(from_input + from_state),)
    if op == "lstm":
        i, f, g, o = np.split(from_input + from_state, 4, axis=-1)
        c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(from_input, 3, axis=-1), np.split(from_state, 3, axis=-1)
    z = sigmoid(x_z + h_z)
    return ((1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * state[0],)


def run(op: str, x: Array, hidden: int, weights: Inputs) -> Array:
    """y[T, B, H] of x[T, B, I] from a state of zeros: one product for all inputs, then the steps."""
    state = tuple(np.zeros_like(x, shape=(x.shape[1], hidden)) for _ in range(2 if op == "lstm" else 1))
    from_input = x @ weights["weight_ih"].T + weights["bias_ih"]
    y = np.empty_like(x, shape=(*x.shape[:2], hidden))
    for t in range(len(x)):
        state = _gates(op, from_input[t], state, weights)
        y[t] = state[0]
    return y


def gradients(op: str, x: Array, dy: Array, weights: Inputs) -> Array:
    """dx[T, B, I] of a recurrent network, forward from a state of zeros and backward through time."""
    states = [tuple(np.zeros_like(dy[0]) for _ in range(2 if op == "lstm" else 1))]
    from_input = x @ weights["weight_ih"].T + weights["bias_ih"]
    for t in range(len(x) - 1):
        states.append(_gates(op, from_input[t], states[t], weights))
    dx = np.empty_like(x)
    dh, dc = np.zeros_like(dy[0]), np.zeros_like(dy[0])
    for t in reversed(range(len(x))):
        da, da_h, dh, dc = _gate_gradients(op, from_input[t], states[t], weights, dh + dy[t], dc)
        dx[t] = da @ weights["weight_ih"]
        dh = dh + da_h @ weights["weight_hh"]
    return dx


def _gate_gradients(op: str, from_input: Array, state: tuple[Array, ...], weights: Inputs, dh: Array,
                    dc: Array) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Of the sums from the input and from the state, of h besides, and of c."""
    from_state = state[0] @ weights["weight_hh"].T + weights["bias_hh"]
    none = np.zeros_like(dh)
    if op == "rnn":
        da = dh * (1 - np.tanh(from_input + from_state) ** 2)
        return da, da, none, none
    if op == "lstm":
        a_i, a_f, a_g, a_o = np.split(from_input + from_state, 4, axis=-1)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        t = np.tanh(f * state[1] + i * g)
        dc = dc + dh * o * (1 - t * t)
        parts = dc * g * i * (1 - i), dc * state[1] * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)
        da = np.concatenate(parts, axis=-1)
        return da, da, none, dc * f
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(from_input, 3, axis=-1), np.split(from_state, 3, axis=-1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    da_n, da_z = dh * (1 - z) * (1 - n * n), dh * (state[0] - n) * z * (1 - z)
    da_r = da_n * h_n * r * (1 - r)
    return np.concatenate([da_r, da_z, da_n], -1), np.concatenate([da_r, da_z, da_n * r], -1), dh * z, none


def _sequence(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    rows = _spread(case.sizes["B"], 2)
    x = inputs["x"][:, rows].astype(dtype)
    # Of a ragged batch, what lies beyond a sequence's end is 0 in the result, and counts nothing in dy.
    inside = np.arange(len(x))[:, None, None] < inputs["lengths"][rows, None] if case.ragged else True
    if case.op in GRADIENTS:
        dy = np.where(inside, inputs["dy"][:, rows].astype(dtype), 0)
        return gradients(GRADIENTS[case.op], x, dy, _weights(inputs, dtype))
    y = run(case.op, x, case.sizes["H"], _weights(inputs, dtype))
    return np.where(inside, y, 0)


def stack(x: Array, layers: int, hidden: int, weights: Inputs) -> Array:
    """y[T, B, 2 H] of the last of several LSTM layers in both directions; weights by torch's names."""
    for forward, backward in zip(*[iter(stack_suffixes(layers))] * 2, strict=True):
        y = run("lstm", x, hidden, _weights(weights, x.dtype, forward))
        back = run("lstm", x[::-1], hidden, _weights(weights, x.dtype, backward))[::-1]
        x = np.concatenate([y, back], -1)
    return x


def _stack(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    rows = _spread(case.sizes["B"], 2)
    x = inputs["x"][:, rows].astype(dtype)
    return stack(x, case.sizes["L"], case.sizes["H"], inputs)


def _norm(x: Array) -> tuple[Array, Array]:
    """x with mean 0 and variance 1 in each row, and 1 / deviation."""
    x = x - x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(1e-5))
    return x * rstd, rstd


def _norm_backward(dy: Array, y: Array, rstd: Array) -> Array:
    return np.asarray(rstd * (dy - dy.mean(-1, keepdims=True) - y * (dy * y).mean(-1, keepdims=True)))


def encoder_layer(x: Array, dy: Array, w: Inputs, heads: int) -> Array:
    """dx of one sequence x[L, E] through a transformer encoder layer, forward and backward; norms behind the sums."""

    def split(a: Array) -> Array:
        return a.reshape(len(x), heads, -1).swapaxes(0, 1)

    def join(a: Array) -> Array:
        return a.swapaxes(0, 1).reshape(len(x), -1)

    def linear(a: Array, name: str) -> Array:
        return np.asarray(a @ w[f"{name}weight"].T + w[f"{name}bias"])

    q, k, v = map(split, np.split(linear(x, "self_attn.in_proj_"), 3, axis=-1))
    scale = x.dtype.type(1 / math.sqrt(q.shape[-1]))
    p = softmax(q @ k.swapaxes(1, 2) * scale)
    first, rstd1 = _norm(x + linear(join(p @ v), "self_attn.out_proj."))
    y = first * w["norm1.weight"] + w["norm1.bias"]
    z = linear(y, "linear1.")
    second, rstd2 = _norm(y + linear(np.maximum(z, 0), "linear2."))

    d = _norm_backward(dy * w["norm2.weight"], second, rstd2)
    d = d + (d @ w["linear2.weight"] * (z > 0)) @ w["linear1.weight"]
    d = _norm_backward(d * w["norm1.weight"], first, rstd1)
    dout = split(d @ w["self_attn.out_proj.weight"])
    dp = dout @ v.swapaxes(1, 2)
    ds = scale * p * (dp - (dp * p).sum(-1, keepdims=True))
    parts = [join(a) for a in (ds @ k, ds.swapaxes(1, 2) @ q, p.swapaxes(1, 2) @ dout)]
    return np.asarray(d + np.concatenate(parts, -1) @ w["self_attn.in_proj_weight"])

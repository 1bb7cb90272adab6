"""Attention, forward and backward, and of a ragged batch.

The work of backward counts its five products, 2.5 times that of forward, although the scores are computed again in it.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.kernels.case import Array, Case, Inputs, Op, normal, spread
from benchmarks.text.corpus import sentence_lengths
from fastattn import reference

MASK_LEAVES = 0.75
OPS = ("attention", "attention_backward", "attention_ragged")
_SAMPLED_HEADS, _SAMPLED_ROWS = 2, 128


def pairs(case: Case) -> float:
    """Pairs of a query and a key that attends to it, in one head of all sequences; a causal mask leaves half."""
    s = case.sizes
    if case.op == "attention_ragged":
        return float((sentence_lengths(s["B"]) ** 2).sum())
    if case.window is not None:
        return s["B"] * float(np.minimum(np.arange(s["S"]), case.window).sum() + s["S"])
    return s["B"] * float(s["S"] ** 2) / (2 if case.causal else 1)


def flops(case: Case) -> float:
    """Two products forward, five backward. What a bool mask leaves out is counted: it could be anywhere."""
    products = 5 if case.op == "attention_backward" else 2
    return 2.0 * products * case.sizes["H"] * case.sizes["D"] * pairs(case)


def shape(case: Case) -> tuple[int, ...]:
    """Of queries, keys and values: [B, H, S, D], or [all tokens, H, D]."""
    s = case.sizes
    if case.op == "attention_ragged":
        return int(sentence_lengths(s["B"]).sum()), s["H"], s["D"]
    return s["B"], s["H"], s["S"], s["D"]


def starts(case: Case) -> Array:
    """[B + 1]: where each sequence of a ragged batch begins and ends."""
    return np.concatenate([[0], np.cumsum(sentence_lengths(case.sizes["B"]))]).astype(np.int64)


def allowed(case: Case, inputs: Inputs, rows: Array) -> Array | None:
    """[rows, keys]: who attends to whom; None where everyone does."""
    distance = rows[:, None] - np.arange(case.sizes["S"])
    if case.masked:
        return inputs["mask"][rows]
    if case.window is not None:
        return (distance >= 0) & (distance <= case.window)
    return distance >= 0 if case.causal else None


def _sample(case: Case) -> tuple[Array, Array]:
    """Heads of all sequences, and rows."""
    return spread(case.sizes["B"] * case.sizes["H"], _SAMPLED_HEADS), spread(case.sizes["S"], _SAMPLED_ROWS)


def sample(case: Case, result: Array) -> Array:
    """The part of a whole result that `expected` computes; of backward of dq, dk and dv."""
    if case.op == "attention_ragged":
        return result[:, spread(case.sizes["H"], _SAMPLED_HEADS)]
    heads, rows = _sample(case)
    return result.reshape(-1, case.sizes["B"] * case.sizes["H"], *shape(case)[2:])[:, heads][:, :, rows]


def result(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    """The whole result by the specification: out, or dq, dk and dv in one array."""
    q, k, v = (inputs[name] for name in "qkv")
    if case.op == "attention_ragged":
        parts = ([x[begin:end].swapaxes(0, 1)[None] for x in (q, k, v)] for begin, end in pairwise(starts(case)))
        outs = (reference.attention(part[0], part[1], part[2], dtype=dtype)[0] for part in parts)
        return np.concatenate([out[0].swapaxes(0, 1) for out in outs])
    mask = inputs["allowed"] if "allowed" in inputs else allowed(case, inputs, np.arange(case.sizes["S"]))
    if case.op == "attention":
        return np.asanyarray(reference.attention(q, k, v, dtype=dtype, mask=mask)[0])
    return np.stack(reference.attention_backward(inputs["dout"], q, k, v, dtype=dtype, mask=mask))


def expected(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    """`sample` of the result, computed in `dtype`."""
    if case.op == "attention_ragged":
        heads = spread(case.sizes["H"], _SAMPLED_HEADS)
        return result(case, {name: a[:, heads] for name, a in inputs.items()}, dtype)
    heads, rows = _sample(case)
    merged = 1, case.sizes["B"] * case.sizes["H"], *shape(case)[2:]
    part = {name: a if name == "mask" else a.reshape(merged)[:, heads] for name, a in inputs.items()}
    if case.op == "attention":
        where = allowed(case, inputs, rows)
        part |= {"q": part["q"][:, :, rows]} | ({} if where is None else {"allowed": where})
        return result(case, part, dtype)
    return result(case, part, dtype)[:, 0][:, :, rows]


def inputs_of(case: Case, rng: np.random.Generator) -> Inputs:
    """q, k, v; for backward dout, too."""
    names = [*"qkv", *(["dout"] if case.op == "attention_backward" else [])]
    inputs = {name: normal(case, rng, *shape(case)) for name in names}
    if case.masked:
        inputs["mask"] = rng.random((case.sizes["S"], case.sizes["S"])) < MASK_LEAVES
    return inputs


OP = Op(inputs_of, sample, expected, result, flops)

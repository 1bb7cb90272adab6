"""Attention, forward and backward, and of a ragged batch.

The work of backward counts its five products, 2.5 times that of forward, although the scores are computed again in it.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.kernels.case import Array, Case, Inputs, Op, normal, spread
from benchmarks.text.corpus import sentence_lengths
from fastattn import reference

MASK_LEAVES = 0.75
_SAMPLED_HEADS, _SAMPLED_ROWS = 2, 128


def pairs(case: Case) -> float:
    """Pairs of a query and a key that attends to it, in one head of all sequences; a causal mask leaves half."""
    s = case.sizes
    if case.window is not None:
        return s["B"] * float(np.minimum(np.arange(s["S"]), case.window).sum() + s["S"])
    return s["B"] * float(s["S"] ** 2) / (2 if case.causal else 1)


def _ragged_pairs(case: Case) -> float:
    return float((sentence_lengths(case.sizes["B"]) ** 2).sum())


def _work(products: int, pairs: Callable[[Case], float]) -> Callable[[Case], float]:
    """So many products of D terms for each pair. What a bool mask leaves out is counted: it could be anywhere."""
    return lambda case: 2.0 * products * case.sizes["H"] * case.sizes["D"] * pairs(case)


def _shape(case: Case) -> tuple[int, ...]:
    """Of queries, keys and values."""
    s = case.sizes
    return s["B"], s["H"], s["S"], s["D"]


def _ragged_shape(case: Case) -> tuple[int, ...]:
    """[all tokens, H, D]"""
    s = case.sizes
    return int(sentence_lengths(s["B"]).sum()), s["H"], s["D"]


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


def _inputs(shape: Callable[[Case], tuple[int, ...]], *names: str) -> Callable[[Case, np.random.Generator], Inputs]:
    """Arrays of one shape; the mask, if the case has one."""

    def inputs(case: Case, rng: np.random.Generator) -> Inputs:
        found = {name: normal(case, rng, *shape(case)) for name in names}
        if case.masked:
            found["mask"] = rng.random((case.sizes["S"], case.sizes["S"])) < MASK_LEAVES
        return found

    return inputs


def _sample(case: Case) -> tuple[Array, Array]:
    """Heads of all sequences, and rows."""
    return spread(case.sizes["B"] * case.sizes["H"], _SAMPLED_HEADS), spread(case.sizes["S"], _SAMPLED_ROWS)


def sample(case: Case, result: Array) -> Array:
    """The part of a whole result that `expected` computes; of backward of dq, dk and dv."""
    heads, rows = _sample(case)
    return result.reshape(-1, case.sizes["B"] * case.sizes["H"], *_shape(case)[2:])[:, heads][:, :, rows]


def _sampled_heads(case: Case, inputs: Inputs) -> Inputs:
    """Those heads of all sequences alone; a mask is the same for all."""
    heads = _sample(case)[0]
    merged = 1, case.sizes["B"] * case.sizes["H"], *_shape(case)[2:]
    return {name: a if name == "mask" else a.reshape(merged)[:, heads] for name, a in inputs.items()}


def _mask(case: Case, inputs: Inputs) -> Array | None:
    """Of all rows, or of those that `expected` has chosen."""
    return inputs["allowed"] if "allowed" in inputs else allowed(case, inputs, np.arange(case.sizes["S"]))


def _out(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    q, k, v = (inputs[name] for name in "qkv")
    return np.asanyarray(reference.attention(q, k, v, dtype=dtype, mask=_mask(case, inputs))[0])


def _expected_out(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    rows, part = _sample(case)[1], _sampled_heads(case, inputs)
    where = allowed(case, inputs, rows)
    part |= {"q": part["q"][:, :, rows]} | ({} if where is None else {"allowed": where})
    return _out(case, part, dtype)


def _gradients(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    """dq, dk and dv."""
    q, k, v, dout = (inputs[name] for name in ("q", "k", "v", "dout"))
    return np.stack(reference.attention_backward(dout, q, k, v, dtype=dtype, mask=_mask(case, inputs)))


def _expected_gradients(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    return _gradients(case, _sampled_heads(case, inputs), dtype)[:, 0][:, :, _sample(case)[1]]


def _ragged_out(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    """Each sequence alone, one after another."""
    arrays = [inputs[name] for name in "qkv"]
    parts = ([x[begin:end].swapaxes(0, 1)[None] for x in arrays] for begin, end in pairwise(starts(case)))
    outs = (reference.attention(q, k, v, dtype=dtype)[0] for q, k, v in parts)
    return np.concatenate([out[0].swapaxes(0, 1) for out in outs])


def _ragged_sample(case: Case, result: Array) -> Array:
    return result[:, spread(case.sizes["H"], _SAMPLED_HEADS)]


def _ragged_expected(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    return _ragged_out(case, {name: _ragged_sample(case, a) for name, a in inputs.items()}, dtype)


OPS = {
    "attention": Op(_inputs(_shape, *"qkv"), sample, _expected_out, _out, _work(2, pairs)),
    "attention_backward": Op(_inputs(_shape, *"qkv", "dout"), sample, _expected_gradients, _gradients, _work(5, pairs)),
    "attention_ragged": Op(
        _inputs(_ragged_shape, *"qkv"), _ragged_sample, _ragged_expected, _ragged_out, _work(2, _ragged_pairs)
    ),
}

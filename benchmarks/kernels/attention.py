"""Attention in the cases: who attends to whom, inputs, and the specification. cases.py and plain.py ask here.

The work of backward counts its five products, 2.5 times that of forward, although the scores are computed again in it.
"""

from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastattn import reference

if TYPE_CHECKING:
    from benchmarks.kernels.cases import Case

Array = NDArray[Any]
Inputs = dict[str, Array]

OPS = ("attention", "attention_backward", "attention_ragged")
_SAMPLED_HEADS, _SAMPLED_ROWS = 2, 128


@cache
def lengths(sequences: int) -> Array:
    """Tokens of the first sentences of the text of the standard library."""
    text = import_module("benchmarks.text.corpus")
    return text.Corpus(text.load(), 2).sentence_lengths[:sequences]  # type: ignore[no-any-return]


def pairs(case: "Case") -> float:
    """Pairs of a query and a key that attends to it, in one head of all sequences; a causal mask leaves half."""
    s = case.sizes
    if case.op == "attention_ragged":
        return float((lengths(s["B"]) ** 2).sum())
    if case.window is not None:
        return s["B"] * float(np.minimum(np.arange(s["S"]), case.window).sum() + s["S"])
    return s["B"] * float(s["S"] ** 2) / (2 if case.causal else 1)


def flops(case: "Case") -> float:
    """Two products forward, five backward. What a bool mask leaves out is counted: it could be anywhere."""
    products = 5 if case.op == "attention_backward" else 2
    return 2.0 * products * case.sizes["H"] * case.sizes["D"] * pairs(case)


def shape(case: "Case") -> tuple[int, ...]:
    """Of queries, keys and values: [B, H, S, D], or [all tokens, H, D]."""
    s = case.sizes
    if case.op == "attention_ragged":
        return int(lengths(s["B"]).sum()), s["H"], s["D"]
    return s["B"], s["H"], s["S"], s["D"]


def starts(case: "Case") -> Array:
    """[B + 1]: where each sequence of a ragged batch begins and ends."""
    return np.concatenate([[0], np.cumsum(lengths(case.sizes["B"]))]).astype(np.int64)


def allowed(case: "Case", inputs: Inputs, rows: Array) -> Array | None:
    """[rows, keys]: who attends to whom; None where everyone does."""
    distance = rows[:, None] - np.arange(case.sizes["S"])
    if case.masked:
        return inputs["mask"][rows]
    if case.window is not None:
        return (distance >= 0) & (distance <= case.window)
    return distance >= 0 if case.causal else None


def _spread(n: int, most: int) -> Array:
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def _sample(case: "Case") -> tuple[Array, Array]:
    """Heads of all sequences, and rows."""
    return _spread(case.sizes["B"] * case.sizes["H"], _SAMPLED_HEADS), _spread(case.sizes["S"], _SAMPLED_ROWS)


def sample(case: "Case", result: Array) -> Array:
    """The part of a whole result that `expected` computes; of backward of dq, dk and dv."""
    if case.op == "attention_ragged":
        return result[:, _spread(case.sizes["H"], _SAMPLED_HEADS)]
    heads, rows = _sample(case)
    return result.reshape(-1, case.sizes["B"] * case.sizes["H"], *shape(case)[2:])[:, heads][:, :, rows]


def result(case: "Case", inputs: Inputs, dtype: DTypeLike) -> Array:
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


def expected(case: "Case", inputs: Inputs, dtype: DTypeLike) -> Array:
    """`sample` of the result, computed in `dtype`."""
    if case.op == "attention_ragged":
        heads = _spread(case.sizes["H"], _SAMPLED_HEADS)
        return result(case, {name: a[:, heads] for name, a in inputs.items()}, dtype)
    heads, rows = _sample(case)
    merged = 1, case.sizes["B"] * case.sizes["H"], *shape(case)[2:]
    part = {name: a if name == "mask" else a.reshape(merged)[:, heads] for name, a in inputs.items()}
    if case.op == "attention":
        where = allowed(case, inputs, rows)
        part |= {"q": part["q"][:, :, rows]} | ({} if where is None else {"allowed": where})
        return result(case, part, dtype)
    return result(case, part, dtype)[:, 0][:, :, rows]

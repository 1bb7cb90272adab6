"""Multi-head attention."""

import math

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn.functional._types import Array
from fastattn.functional.attention import attention
from fastattn.functional.linear import linear
from fastattn.nn.layers import Linear, Rng
from fastattn.nn.module import Module


class MultiHeadAttention(Module):
    """Attention of x[B, L, E] to itself or to a context[B, S, E], by torch.nn.MultiheadAttention's names.

    in_proj_weight holds the rows of the query, key and value projections one after another: E, then twice kv_heads
    heads (num_heads by default) of E / num_heads. out_proj is Linear(E, E). Source: Vaswani et al. 2017,
    arXiv:1706.03762.

    >>> MultiHeadAttention(8, 2)(np.ones((1, 5, 8), np.float32), causal=True).shape
    (1, 5, 8)
    """

    def __init__(self, embed_dim: int, num_heads: int, *, kv_heads: int | None = None, bias: bool = True,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        kv_heads = num_heads if kv_heads is None else kv_heads
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"MultiHeadAttention: num_heads must divide embed_dim, {embed_dim}, got {num_heads}")
        if kv_heads < 1 or num_heads % kv_heads:
            raise ValueError(f"MultiHeadAttention: kv_heads must divide num_heads, {num_heads}, got {kv_heads}")
        rng = rng or np.random.default_rng()
        self.embed_dim, self.num_heads, self.kv_heads = embed_dim, num_heads, kv_heads
        rows = embed_dim + 2 * kv_heads * (embed_dim // num_heads)
        self._uniform("in_proj_weight", (rows, embed_dim), math.sqrt(6 / max(1, rows + embed_dim)), rng)
        if bias:
            self._constant("in_proj_bias", (rows,), 0)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, dtype=dtype, rng=rng)

    def __call__(self, x: ArrayLike, context: ArrayLike | None = None, *, mask: ArrayLike | None = None,
                 causal: bool | str = False, lengths: ArrayLike | None = None) -> Array:  # fmt: skip
        """mask and causal as in fastattn.attention. lengths[B]: of the sequences attended to; positions beyond do not
        exist. Without a context they are those of x too, whose results beyond are out_proj's bias."""
        split, size = self.embed_dim, self.embed_dim // self.num_heads
        weight, bias = self._own["in_proj_weight"], self._own.get("in_proj_bias")
        if context is None:
            projected = _three_axes(linear(x, weight, bias))
            queries, keys_values = projected[..., :split], projected[..., split:]
        else:
            parts = (None, None) if bias is None else (bias[:split], bias[split:])
            queries = _three_axes(linear(x, weight[:split], parts[0]))
            keys_values = _three_axes(linear(context, weight[split:], parts[1]))
        batch, length, _ = queries.shape
        keys_values = keys_values.reshape(*keys_values.shape[:2], 2 * self.kv_heads, size)
        out = attention(
            queries.reshape(batch, length, self.num_heads, size),
            keys_values[:, :, : self.kv_heads],
            keys_values[:, :, self.kv_heads :],
            mask=mask,
            causal=causal,
            q_lengths=lengths if context is None else None,
            kv_lengths=lengths,
            layout="blhd",
        )
        return self.out_proj(out.reshape(batch, length, split))


def _three_axes(projected: Array) -> Array:
    if projected.ndim != 3:
        raise ValueError(f"MultiHeadAttention: x and context must have 3 axes [B, L, E], got {projected.ndim}")
    return projected

"""Multi-head attention."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn import _core
from fastattn.cache import KVCache, check_sequences, unchanged_on_failure
from fastattn.functional._checks import check_flag, check_saved
from fastattn.functional._types import Array
from fastattn.functional.attention import SavedAttention, attention, attention_forward
from fastattn.functional.attention_backward import attention_backward
from fastattn.functional.linear import SavedLinear, linear, linear_forward
from fastattn.nn._arguments import Rng, check_rng, check_room, check_size
from fastattn.nn._padding import cleared, ragged
from fastattn.nn.layers import Linear, linear_gradients
from fastattn.nn.module import Module, Saved, parts_of, prefixed


class Context(NamedTuple):
    """What other sequences attend to, projected once: keys and values [B, S, kv_heads, size], and lengths[B] or
    None."""

    keys: Array
    values: Array
    lengths: Array | None

    def select(self, sequences: ArrayLike) -> "Context":
        """The context of the sequences with these indices, in this order; an index may occur several times."""
        chosen = check_sequences(sequences, len(self.keys), "select")
        return Context(self.keys[chosen], self.values[chosen], None if self.lengths is None else self.lengths[chosen])


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
        embed_dim, num_heads = (
            check_size("MultiHeadAttention", name, value)
            for name, value in (("embed_dim", embed_dim), ("num_heads", num_heads))
        )
        kv_heads = num_heads if kv_heads is None else check_size("MultiHeadAttention", "kv_heads", kv_heads)
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"MultiHeadAttention: num_heads must divide embed_dim, {embed_dim}, got {num_heads}")
        if kv_heads < 1 or num_heads % kv_heads:
            raise ValueError(f"MultiHeadAttention: kv_heads must divide num_heads, {num_heads}, got {kv_heads}")
        bias, rng = check_flag("MultiHeadAttention", "bias", bias), check_rng("MultiHeadAttention", rng)
        check_room("MultiHeadAttention", 4 * embed_dim * embed_dim, self.dtype.itemsize, embed_dim=embed_dim)
        self.embed_dim, self.num_heads, self.kv_heads = embed_dim, num_heads, kv_heads
        rows = embed_dim + 2 * kv_heads * (embed_dim // num_heads)
        self._uniform("in_proj_weight", (rows, embed_dim), math.sqrt(6 / max(1, rows + embed_dim)), rng)
        if bias:
            self._constant("in_proj_bias", (rows,), 0)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, dtype=dtype, rng=rng)

    def __call__(self, x: ArrayLike, context: ArrayLike | Context | None = None, *, mask: ArrayLike | None = None,
                 causal: bool | str = False, lengths: ArrayLike | None = None,
                 cache: KVCache | None = None) -> Array:  # fmt: skip
        """mask and causal as in fastattn.attention. lengths[B]: of the sequences attended to; positions beyond do not
        exist. Without a context they are those of x too, whose results beyond are out_proj's bias. A context from
        `project` has its own lengths, and gives the bits of the array that it was made of.

        cache, KVCache(B, kv_heads, embed_dim // num_heads, dtype=…): keys and values of x are appended, and x attends
        to all that it holds, causally: the bits of one call with causal=True. No context, mask or lengths then.
        """
        if cache is not None:
            return self._with_cache(x, cache, causal, context=context, mask=mask, lengths=lengths)
        x = self._checked("MultiHeadAttention", x, "x")
        if isinstance(context, Context):
            if lengths is not None:
                raise ValueError("MultiHeadAttention: lengths must be None with a projected context, which has its own")
            self._check_context(context)
            queries, keys, values = self._split_queries(self._project_queries(x, linear)), *context[:2]
            lengths = context.lengths
        else:
            _, lengths, _ = self._attended(x, context, lengths)
            queries, keys, values = self._heads(*self._project(x, context, linear))
        out = attention(queries, keys, values, **self._options(context, mask, causal, lengths))
        return self.out_proj(out.reshape(*out.shape[:2], self.embed_dim))

    def project(self, context: ArrayLike, lengths: ArrayLike | None = None) -> Context:
        """Keys and values of a context[B, S, E] of these lengths[B], for many calls."""
        op = "MultiHeadAttention.project"
        array, checked, _ = ragged(op, self._checked(op, context, "context"), lengths, "context")
        return Context(*self._split_keys_values(self._project_context(array, linear)), checked)

    def forward(self, x: ArrayLike, context: ArrayLike | None = None, *, mask: ArrayLike | None = None,
                causal: bool | str = False, lengths: ArrayLike | None = None) -> tuple[Array, Saved]:  # fmt: skip
        """The result, and the values for backward. Elements of x (or the context) beyond lengths affect no gradient."""
        x = self._checked("MultiHeadAttention", x, "x")
        array, lengths, beyond = self._attended(x, context, lengths)
        if context is None:
            x = cleared("MultiHeadAttention", "x", array, beyond)
        else:
            context = cleared("MultiHeadAttention", "context", array, beyond)
        saved_linear: list[SavedLinear] = []

        def project(*arguments: Any) -> Array:
            y, saved = linear_forward(*arguments)
            saved_linear.append(saved)
            return y

        heads = self._heads(*self._project(x, context, project))
        out, saved_attention = attention_forward(*heads, **self._options(context, mask, causal, lengths))
        y, saved_out = self.out_proj.forward(out.reshape(*out.shape[:2], self.embed_dim))
        return y, self._saved(saved_linear, saved_attention, saved_out)

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[Any, dict[str, Array]]:
        """dx, or with a context the pair (dx, dcontext), and the gradients of the parameters, by name."""
        dx, dcontext, grads = attention_gradients(dy, saved)
        return (dx if dcontext is None else (dx, dcontext)), grads

    def _project(self, x: ArrayLike, context: ArrayLike | None, project: Callable[..., Array]) -> tuple[Array, Array]:
        """Queries[B, L, E], and keys beside values [B, S, 2 kv_heads E / num_heads]."""
        if context is None:
            projected = project(x, self._own["in_proj_weight"], self._own.get("in_proj_bias"))
            return projected[..., : self.embed_dim], projected[..., self.embed_dim :]
        return self._project_queries(x, project), self._project_context(context, project)

    def _project_queries(self, x: ArrayLike, project: Callable[..., Array]) -> Array:
        return self._project_rows(x, slice(None, self.embed_dim), project)

    def _project_context(self, context: ArrayLike, project: Callable[..., Array]) -> Array:
        return self._project_rows(context, slice(self.embed_dim, None), project)

    def _project_rows(self, x: ArrayLike, rows: slice, project: Callable[..., Array]) -> Array:
        """By some rows of in_proj_weight."""
        bias = self._own.get("in_proj_bias")
        return project(x, self._own["in_proj_weight"][rows], None if bias is None else bias[rows])

    def _heads(self, queries: Array, keys_values: Array) -> tuple[Array, Array, Array]:
        """q, k and v in the layout "blhd"."""
        return self._split_queries(queries), *self._split_keys_values(keys_values)

    def _split_queries(self, queries: Array) -> Array:
        return queries.reshape(*queries.shape[:2], self.num_heads, self.embed_dim // self.num_heads)

    def _split_keys_values(self, keys_values: Array) -> tuple[Array, Array]:
        kv_heads = self.kv_heads
        keys_values = keys_values.reshape(*keys_values.shape[:2], 2 * kv_heads, self.embed_dim // self.num_heads)
        return keys_values[:, :, :kv_heads], keys_values[:, :, kv_heads:]

    def _check_context(self, context: Context) -> None:
        """That keys and values have the heads of this module; the rest attention checks."""
        heads = (self.kv_heads, self.embed_dim // self.num_heads)
        for name, part in (("keys", context.keys), ("values", context.values)):
            shape = _core.checked_floats(part, "MultiHeadAttention", f"context.{name}", 4).shape
            if shape[2:] != heads:
                raise ValueError(f"MultiHeadAttention: context.{name} must have shape [B, S, {heads[0]}, {heads[1]}], "
                                 f"got {shape}")  # fmt: skip

    def _checked(self, op: str, x: ArrayLike, name: str) -> Array:
        array: Array = _core.checked_floats(x, op, name, 3)
        if array.dtype != self.dtype:
            raise TypeError(f"{op}: {name} must be {self.dtype} like the parameters, got {array.dtype}")
        if array.shape[2] != self.embed_dim:
            raise ValueError(f"{op}: {name} must have a last axis of embed_dim, {self.embed_dim}, got {array.shape}")
        return array

    def _attended(self, x: Array, context: ArrayLike | None, lengths: ArrayLike | None) -> tuple[Array, Any, Any]:
        """`ragged` of what is attended to."""
        if context is None:
            return ragged("MultiHeadAttention", x, lengths)
        context = self._checked("MultiHeadAttention", context, "context")
        return ragged("MultiHeadAttention", context, lengths, "context")

    def _options(self, context: ArrayLike | Context | None, mask: ArrayLike | None, causal: bool | str,
                 lengths: ArrayLike | None) -> dict[str, Any]:  # fmt: skip
        q_lengths = lengths if context is None else None
        return {"mask": mask, "causal": causal, "q_lengths": q_lengths, "kv_lengths": lengths, "layout": "blhd"}

    def _with_cache(self, x: ArrayLike, cache: KVCache, causal: bool | str, **others: Any) -> Array:
        if not isinstance(cache, KVCache):
            raise TypeError(f"MultiHeadAttention: cache must be a KVCache, got {type(cache).__name__}")
        for name, value in others.items():
            if value is not None:
                raise ValueError(f"MultiHeadAttention: {name} must be None with a cache, which has lengths of its own")
        plain = _core.plain_text(causal)
        if not (isinstance(plain, bool | np.bool_) or (isinstance(plain, str) and plain == "bottom-right")):
            raise ValueError(
                f"MultiHeadAttention: causal must be True with a cache, or left out, got {_core.shown(causal)}"
            )
        heads = self._heads(*self._project(self._checked("MultiHeadAttention", x, "x"), None, linear))
        queries, keys, values = (part.swapaxes(1, 2) for part in heads)
        with unchanged_on_failure(cache):
            cache.append(keys, values)
            out = cache.attend(queries, causal=True).swapaxes(1, 2)
            return self.out_proj(out.reshape(*out.shape[:2], self.embed_dim))


def attention_gradients(
    dy: ArrayLike, saved: Saved, add_to: Array | None = None, add_context_to: Array | None = None
) -> tuple[Array, Array | None, dict[str, Array]]:
    """dx, dcontext (None in self-attention) and the gradients by name; the first two added to arrays that are given, of
    which add_to may be dy."""
    saved_linear, saved_attention, saved_out = parts_of("MultiHeadAttention", saved, 3)
    if not isinstance(saved_linear, list) or len(saved_linear) not in (1, 2):
        raise ValueError("MultiHeadAttention.backward: saved must hold what one or two projections saved, got "
                         f"{type(saved_linear).__name__}")  # fmt: skip
    check_saved("attention_backward", saved_attention, SavedAttention)
    dout, grads_out = linear_gradients(dy, saved_out)
    shape = _core.checked_array(saved_attention.out, "MultiHeadAttention.backward", "saved.out").shape
    if dout.size != math.prod(shape):
        raise ValueError(f"MultiHeadAttention.backward: saved must hold an output of {dout.size} elements, got {shape}")
    dheads = attention_backward(dout.reshape(shape), saved_attention)
    queries, keys, values = (part.reshape(*part.shape[:2], -1) for part in dheads)
    if len(saved_linear) == 1:
        if queries.shape[:2] != keys.shape[:2]:
            raise ValueError("MultiHeadAttention.backward: saved must hold two projections for other keys than x, "
                             "got one")  # fmt: skip
        joined = np.concatenate([queries, keys, values], -1)
        dx, grads = linear_gradients(joined, saved_linear[0], add_to)
        dcontext = None
    else:
        dx, grads = linear_gradients(queries, saved_linear[0], add_to)
        joined = np.concatenate([keys, values], -1)
        dcontext, grads_context = linear_gradients(joined, saved_linear[1], add_context_to, "dmemory")
        shapes = [{name: part.shape[1:] for name, part in both.items()} for both in (grads, grads_context)]
        if shapes[0] != shapes[1]:
            raise ValueError("MultiHeadAttention.backward: saved must hold two projections of one module, got columns "
                             f"of {shapes[0]} and {shapes[1]}")  # fmt: skip
        grads = {name: np.concatenate([part, grads_context[name]]) for name, part in grads.items()}
    return dx, dcontext, {f"in_proj_{name}": part for name, part in grads.items()} | prefixed(out_proj=grads_out)

"""Additive attention with its projections, and the GRU of a decoder that attends at each step."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn import _core
from fastattn.functional._checks import check_parts
from fastattn.functional._types import Array
from fastattn.functional.additive import (
    SavedAdditive,
    additive_attention,
    additive_attention_backward,
    additive_attention_forward,
)
from fastattn.functional.linear import SavedLinear, linear
from fastattn.nn._arguments import Rng, check_rng, check_room, check_size
from fastattn.nn._padding import cleared, ragged
from fastattn.nn.layers import Linear, added
from fastattn.nn.module import Module, prefixed


class SavedAdditiveAttention(NamedTuple):
    """What the gradients of AdditiveAttention need."""

    query: SavedLinear
    key: SavedLinear
    attention: SavedAdditive


class AdditiveAttention(Module):
    """fastattn.additive_attention of a state and annotations, projected: parameters query.weight W, key.weight U, v.

        e[b, t, s] = v . tanh(W state[b, t] + U annotations[b, s]),  context = softmax of e over s, times annotations

    Source: Bahdanau et al. 2015, arXiv:1409.0473.

    >>> m = AdditiveAttention(3, 4, 8, rng=np.random.default_rng(0))
    >>> m(np.zeros((2, 1, 3), np.float32), np.ones((2, 5, 4), np.float32), lengths=[5, 3]).shape
    (2, 1, 4)
    """

    def __init__(self, query_size: int, key_size: int, attention_size: int, *, dtype: DTypeLike = np.float32,
                 rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        query_size, key_size, attention_size = (
            check_size("AdditiveAttention", name, value)
            for name, value in (("query_size", query_size), ("key_size", key_size), ("attention_size", attention_size))
        )
        check_room("AdditiveAttention", attention_size * (query_size + key_size + 1), self.dtype.itemsize,
                   query_size=query_size, key_size=key_size, attention_size=attention_size)  # fmt: skip
        rng = check_rng("AdditiveAttention", rng)
        self.query = Linear(query_size, attention_size, bias=False, dtype=dtype, rng=rng)
        self.key = Linear(key_size, attention_size, bias=False, dtype=dtype, rng=rng)
        self._uniform("v", (attention_size,), 1 / math.sqrt(max(1, attention_size)), rng)

    def __call__(self, query: ArrayLike, annotations: ArrayLike, *, lengths: ArrayLike | None = None,
                 mask: ArrayLike | None = None, return_weights: bool = False) -> Any:  # fmt: skip
        annotations, lengths, _ = ragged("AdditiveAttention", annotations, lengths, "annotations")
        return additive_attention(
            self.query(query), self.key(annotations), annotations, self._own["v"], lengths=lengths, mask=mask,
            return_weights=return_weights,
        )  # fmt: skip

    def forward(self, query: ArrayLike, annotations: ArrayLike, *, lengths: ArrayLike | None = None,
                mask: ArrayLike | None = None) -> tuple[Array, SavedAdditiveAttention]:  # fmt: skip
        """The context, and the values for backward; saved.attention.weights are the weights. Annotations beyond lengths
        affect no gradient."""
        annotations, lengths, beyond = ragged("AdditiveAttention", annotations, lengths, "annotations")
        annotations = cleared("AdditiveAttention", "annotations", annotations, beyond)
        projected, saved_query = self.query.forward(query)
        keys, saved_key = self.key.forward(annotations)
        context, saved = additive_attention_forward(
            projected, keys, annotations, self._own["v"], lengths=lengths, mask=mask
        )
        return context, SavedAdditiveAttention(saved_query, saved_key, saved)

    def backward(
        self, dcontext: ArrayLike, saved: SavedAdditiveAttention
    ) -> tuple[tuple[Array, Array], dict[str, Array]]:
        """(dquery, dannotations), and the gradients of the parameters by name."""
        _check_saved("AdditiveAttention", saved, SavedAdditiveAttention)
        dprojected, dkeys, dvalues, dv = additive_attention_backward(dcontext, saved.attention)
        dquery, query = self.query.backward(dprojected, saved.query)
        dannotations, key = self.key.backward(dkeys, saved.key)
        return (dquery, added(dannotations, dvalues)), prefixed(query=query, key=key) | {"v": dv}


class Memory(NamedTuple):
    """Annotations as AttentionGRU reads them at each step: AttentionGRU.annotate."""

    annotations: Array  # [B, S, K]
    keys: Array  # [B, S, A]
    gates: Array  # [B, S, 3 H]: their part of the gates
    lengths: Array | None


class Attended(NamedTuple):
    """The result of AttentionGRU."""

    y: Array  # [T, B, H]
    context: Array  # [T, B, K]
    weights: Array  # [B, T, S]


class SavedAttentionGRU(NamedTuple):
    """What the gradients of AttentionGRU need."""

    x: Array
    memory: Memory
    arguments: tuple[Any, ...]
    results: tuple[Any, ...]


class AttentionGRU(Module):
    """A GRU that attends to annotations before each step: the decoder of Bahdanau et al. 2015, arXiv:1409.0473.

        context[t] = additive attention of h[t - 1] to the annotations (attention.query, attention.key, attention.v)
        h[t] = GRU of [x[t], context[t]] and h[t - 1]   (weight_ih[3 H, I + K], weight_hh, bias_ih, bias_hh as GRUCell)

    All steps run in one call. The product of the context with the weights of the gates is computed for the annotations,
    once for all steps; each step averages these products.

    >>> m = AttentionGRU(3, 4, 6, 8, rng=np.random.default_rng(0))
    >>> result, h = m(np.zeros((7, 2, 3), np.float32), np.ones((2, 5, 6), np.float32), lengths=[5, 3])
    >>> result.y.shape, result.context.shape, result.weights.shape, h.shape
    ((7, 2, 4), (7, 2, 6), (2, 7, 5), (2, 4))
    """

    def __init__(self, input_size: int, hidden_size: int, key_size: int, attention_size: int, *,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        input_size, hidden_size, key_size, attention_size = (
            check_size("AttentionGRU", name, value)
            for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("key_size", key_size),
                                ("attention_size", attention_size))
        )  # fmt: skip
        check_room("AttentionGRU", 3 * hidden_size * (input_size + key_size + hidden_size), self.dtype.itemsize,
                   input_size=input_size, key_size=key_size, hidden_size=hidden_size)  # fmt: skip
        rng = check_rng("AttentionGRU", rng)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.key_size, self.attention_size = key_size, attention_size
        bound = 1 / math.sqrt(max(1, hidden_size))
        for name, shape in (("weight_ih", (3 * hidden_size, input_size + key_size)),
                            ("weight_hh", (3 * hidden_size, hidden_size)),
                            ("bias_ih", (3 * hidden_size,)), ("bias_hh", (3 * hidden_size,))):  # fmt: skip
            self._uniform(name, shape, bound, rng)
        self.attention = AdditiveAttention(hidden_size, key_size, attention_size, dtype=dtype, rng=rng)

    def annotate(self, annotations: ArrayLike, lengths: ArrayLike | None = None) -> Memory:
        """The products of annotations[B, S, K] that all steps need, for steps in several calls: a call takes them
        instead of the annotations."""
        array = self._array(annotations, "", "annotations", ("B", "S", self.key_size))
        array, ends, beyond = ragged("AttentionGRU", array, lengths, "annotations")
        array = np.ascontiguousarray(cleared("AttentionGRU", "annotations", array, beyond))
        weight = self._own["weight_ih"][:, self.input_size :]
        return Memory(array, self.attention.key(array), linear(array, weight), ends)

    def _checked(self, memory: Memory) -> Memory:
        """The memory of arrays that fit this module."""
        widths = (self.key_size, self.attention_size, 3 * self.hidden_size)
        arrays: list[Array] = []
        for name, part, width in zip(memory._fields, memory[:3], widths, strict=False):
            array = _core.checked_floats(part, "AttentionGRU", f"annotations.{name}", 3)
            arrays.append(array)
            expected = (*arrays[0].shape[:2], width)
            if array.dtype != self.dtype or array.shape != expected:
                raise ValueError(f"AttentionGRU: annotations.{name} must be {self.dtype} of shape {expected}, got "
                                 f"{array.dtype} of {array.shape}")  # fmt: skip
        array, keys, gates = arrays
        return Memory(array, keys, gates, memory.lengths)

    def _run(self, x: ArrayLike, annotations: ArrayLike | Memory, state: ArrayLike | None, lengths: ArrayLike | None,
             save: bool) -> tuple[Attended, Array, SavedAttentionGRU]:  # fmt: skip
        op = "AttentionGRU"
        memory = self._checked(annotations) if isinstance(annotations, Memory) else self.annotate(annotations, lengths)
        inputs = self._array(x, "", "x", ("T", "B", self.input_size))
        own, H = self._own, self.hidden_size
        if state is None:
            state = _core.new_array((inputs.shape[1], H), self.dtype, op)
            state[...] = 0
        gates = linear(inputs, own["weight_ih"][:, : self.input_size], own["bias_ih"])
        # The rows of the product with h: the query, then n, r, z.
        hh, bias = own["weight_hh"], own["bias_hh"]
        w = np.concatenate([self.attention.parameters()["query.weight"], hh[2 * H :], hh[: 2 * H]])
        bias = np.concatenate([np.zeros(self.attention_size, self.dtype), bias[2 * H :], bias[: 2 * H]])
        arguments = (gates, memory.keys, memory.gates, memory.annotations, self.attention.parameters()["v"], w, bias,
                     state, memory.lengths)  # fmt: skip
        results = _core.attention_gru(*arguments, save, op)
        h, context, weights = results[:3]
        last = np.array(h[-1] if len(h) else state)  # no part of y
        return Attended(h, context, weights), last, SavedAttentionGRU(inputs, memory, arguments, results)

    def __call__(self, x: ArrayLike, annotations: ArrayLike | Memory, state: ArrayLike | None = None,
                 lengths: ArrayLike | None = None) -> tuple[Attended, Array]:  # fmt: skip
        """((y[T, B, H], context[T, B, K], weights[B, T, S]), h[B, H]) of x[T, B, I] and annotations[B, S, K]."""
        return self._run(x, annotations, state, lengths, False)[:2]

    def forward(self, x: ArrayLike, annotations: ArrayLike, state: ArrayLike | None = None,
                lengths: ArrayLike | None = None) -> tuple[tuple[Attended, Array], SavedAttentionGRU]:  # fmt: skip
        """The result of the call, and what backward needs."""
        result, last, saved = self._run(x, annotations, state, lengths, True)
        return (result, last), saved

    def backward(self, grads: Any, saved: SavedAttentionGRU) -> tuple[tuple[Array, Array], Array, dict[str, Array]]:
        """(dx, dannotations), the gradient of the initial state, and those of the parameters by name.

        grads: the gradients of y, of the context and of the final state, each of which may be None.
        """
        _check_saved("AttentionGRU", saved, SavedAttentionGRU)
        if not isinstance(grads, tuple | list) or len(grads) != 3:
            raise ValueError(f"AttentionGRU.backward: grads must be three, of y, context and state, "
                             f"got {type(grads).__name__}")  # fmt: skip
        dy, dcontext, dstate = grads
        op, own, A, H = "AttentionGRU.backward", self._own, self.attention_size, self.hidden_size
        x, arguments = saved.x, _arrays_of(op, saved.arguments, "saved.arguments", _ARGUMENTS)
        results = _arrays_of(op, saved.results, "saved.results", _RESULTS)
        da, dgates, dkeys, dvalues, direct, dv, dh0 = _core.attention_gru_backward(
            dy, dcontext, dstate, arguments, results, op
        )
        annotations = arguments[3]
        before = np.concatenate([arguments[7][None], results[0][:-1]]) if len(results[0]) else results[0]
        _, dw, dbias = _core.linear_backward(da, before, arguments[5], None, None, True, False, None, op)
        dweight = _core.new_array(own["weight_ih"].shape, self.dtype, op)
        x_part, key_part = np.split(own["weight_ih"], [self.input_size], 1)
        dx_part, dkey_part = np.split(dweight, [self.input_size], 1)
        dx, _, dbias_ih = _core.linear_backward(dgates, x, x_part, None, None, True, True, None, op, dx_part)
        dannotations, _, _ = _core.linear_backward(
            dvalues, annotations, key_part, None, None, False, True, direct, op, dkey_part
        )
        key_weight = self.attention.parameters()["key.weight"]
        dannotations, dkey, _ = _core.linear_backward(
            dkeys, annotations, key_weight, None, None, False, True, dannotations, op
        )
        order = (slice(A + H, A + 3 * H), slice(A, A + H))  # r, z, n
        grads = {
            "weight_ih": dweight,
            "weight_hh": np.concatenate([dw[part] for part in order]),
            "bias_ih": dbias_ih,
            "bias_hh": np.concatenate([dbias[part] for part in order]),
            "attention.query.weight": dw[:A],
            "attention.key.weight": dkey,
            "attention.v": dv,
        }
        return (dx, dannotations), dh0, grads


# What _core.attention_gru takes and returns, by the names of messages.
_ARGUMENTS = ("x", "keys", "values", "annotations", "v", "w", "bias", "state", "lengths")
_RESULTS = ("h", "context", "weights", "sums", "gates")


def _arrays_of(op: str, saved: Any, label: str, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The parts as ndarrays, which answer the same each time; None stays None."""
    parts = zip(names, check_parts(op, label, saved, len(names)), strict=True)
    return tuple(None if part is None else _core.checked_array(part, op, f"saved.{name}") for name, part in parts)


def _check_saved(owner: str, saved: Any, kind: type) -> None:
    if not isinstance(saved, kind):
        raise TypeError(f"{owner}.backward: saved must be what {owner}.forward returned, got {type(saved).__name__}")

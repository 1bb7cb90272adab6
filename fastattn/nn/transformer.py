"""Encoder, decoder and the whole transformer, by the names of torch.nn (batch first, without dropout).

Positions beyond `lengths` are not read; results and gradients there are 0. The values of a sequence do not depend on
the others of its batch.

Source: Vaswani et al. 2017, arXiv:1706.03762; norm_first: Xiong et al. 2020, arXiv:2002.04745.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn import _core
from fastattn.cache import KVCache, unchanged_on_failure
from fastattn.functional._checks import check_flag, check_integer, check_parts
from fastattn.functional._types import Array
from fastattn.nn._arguments import Rng, check_eps, check_layers, check_rng, check_room, check_size
from fastattn.nn._errors import renaming
from fastattn.nn._padding import clear, cleared, cleared_gradient, ragged
from fastattn.nn.attention import MultiHeadAttention, attention_gradients
from fastattn.nn.decoder_cache import DecoderCache, LayerCache, check_decoder_cache, check_layer_cache
from fastattn.nn.layers import LayerNorm, Linear, added, check_activation, feed_forward_gradients
from fastattn.nn.module import Module, Saved, prefixed

Grads = dict[str, Array]

_OF_MEMORY = ("memory", "memory_lengths")  # names of arguments
_OF_CONTEXT = {"context": "memory", "mask": "memory_mask", "lengths": "memory_lengths"}


class _Layer(Module):
    """Self-attention and feed-forward with their norms, which encoder and decoder layers share."""

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int = 2048, *, activation: str = "relu",
                 layer_norm_eps: float = 1e-5, norm_first: bool = False, bias: bool = True,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        kind = type(self).__name__
        d_model, nhead = check_size(kind, "d_model", d_model), check_size(kind, "nhead", nhead)
        dim_feedforward = check_size(kind, "dim_feedforward", dim_feedforward)
        bias, rng = check_flag(kind, "bias", bias), check_rng(kind, rng)
        if nhead < 1 or d_model % nhead:
            raise ValueError(f"{kind}: nhead must divide d_model, {d_model}, got {nhead}")
        check_room(kind, 4 * d_model * d_model + 2 * d_model * dim_feedforward, self.dtype.itemsize, d_model=d_model,
                   dim_feedforward=dim_feedforward)  # fmt: skip
        self.activation = check_activation(activation, kind)
        self.norm_first = check_flag(kind, "norm_first", norm_first)
        layer_norm_eps = check_eps(kind, "layer_norm_eps", layer_norm_eps)
        self.self_attn = MultiHeadAttention(d_model, nhead, bias=bias, dtype=dtype, rng=rng)
        self.linear1 = Linear(d_model, dim_feedforward, bias=bias, dtype=dtype, rng=rng)
        self.linear2 = Linear(dim_feedforward, d_model, bias=bias, dtype=dtype, rng=rng)
        self.norm1 = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, dtype=dtype)
        self.norm2 = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, dtype=dtype)

    def _feed_forward(self, x: Array) -> Array:
        return self.linear2(self.linear1(x, activation=self.activation))

    def _feed_forward_forward(self, x: Array) -> tuple[Array, Any]:
        hidden, saved1 = self.linear1.forward(x, activation=self.activation)
        y, saved2 = self.linear2.forward(hidden)
        return y, (saved1, saved2)


class TransformerEncoderLayer(_Layer):
    """x[B, L, E] through self-attention and feed-forward, each with a residual and a norm after it (or before it, with
    norm_first).

    >>> TransformerEncoderLayer(8, 2, 16)(np.ones((1, 5, 8), np.float32)).shape
    (1, 5, 8)
    """

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
                 lengths: ArrayLike | None = None) -> Array:  # fmt: skip
        """mask and causal as in fastattn.attention; lengths[B] of the sequences."""
        x, lengths, beyond = ragged("TransformerEncoderLayer", x, lengths)
        options: dict[str, Any] = {"mask": mask, "causal": causal, "lengths": lengths}
        if self.norm_first:
            y, total = self.norm2.after_sum(x, self.self_attn(self.norm1(x), **options))
            return clear(added(total, self._feed_forward(y), out=total), beyond)
        y, _ = self.norm1.after_sum(x, self.self_attn(x, **options))
        return clear(self.norm2.after_sum(y, self._feed_forward(y))[0], beyond)

    def forward(self, x: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
                lengths: ArrayLike | None = None) -> tuple[Array, Saved]:  # fmt: skip
        """The result, and what backward needs."""
        x, lengths, beyond = ragged("TransformerEncoderLayer", x, lengths)
        options: dict[str, Any] = {"mask": mask, "causal": causal, "lengths": lengths}
        x = cleared("TransformerEncoderLayer", "x", x, beyond)
        if self.norm_first:
            y, saved1 = self.norm1.forward(x)
            y, saved_attention = self.self_attn.forward(y, **options)
            y, saved2 = self.norm2.forward(x, residual=y)
            y, saved_feed = self._feed_forward_forward(y)
            added(y, saved2.x, out=y)
        else:
            y, saved_attention = self.self_attn.forward(x, **options)
            y, saved1 = self.norm1.forward(x, residual=y)
            z, saved_feed = self._feed_forward_forward(y)
            y, saved2 = self.norm2.forward(y, residual=z)
        return clear(y, beyond), self._saved(saved1, saved_attention, saved2, saved_feed, beyond)

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[Array, Grads]:
        """dx and the gradients of the parameters, by name."""
        saved1, saved_attention, saved2, saved_feed, beyond = self._parts(saved, 5)
        dy = cleared_gradient("TransformerEncoderLayer.backward", dy, beyond)
        if self.norm_first:
            dx, feed = feed_forward_gradients(dy, saved_feed)
            dsum, norm2 = self.norm2.backward(dx, saved2, dsum=dy)
            dx, _, attention = attention_gradients(dsum, saved_attention)
            dx, norm1 = self.norm1.backward(dx, saved1, dsum=dsum)
        else:
            dx, norm2 = self.norm2.backward(dy, saved2)
            dx, feed = feed_forward_gradients(dx, saved_feed, add_to=dx)
            dx, norm1 = self.norm1.backward(dx, saved1)
            dx, _, attention = attention_gradients(dx, saved_attention, add_to=dx)
        return clear(dx, beyond), feed | prefixed(norm1=norm1, norm2=norm2, self_attn=attention)


class TransformerDecoderLayer(_Layer):
    """x[B, L, E] through self-attention, attention to memory[B, S, E] and feed-forward.

    >>> TransformerDecoderLayer(8, 2, 16)(np.ones((1, 5, 8), np.float32), np.ones((1, 3, 8), np.float32)).shape
    (1, 5, 8)
    """

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int = 2048, *, activation: str = "relu",
                 layer_norm_eps: float = 1e-5, norm_first: bool = False, bias: bool = True,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        rng = check_rng("TransformerDecoderLayer", rng)
        super().__init__(d_model, nhead, dim_feedforward, activation=activation, layer_norm_eps=layer_norm_eps,
                         norm_first=norm_first, bias=bias, dtype=dtype, rng=rng)  # fmt: skip
        self.multihead_attn = MultiHeadAttention(d_model, nhead, bias=bias, dtype=dtype, rng=rng)
        self.norm3 = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, dtype=dtype)

    def __call__(self, x: ArrayLike, memory: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = True,
                 lengths: ArrayLike | None = None, memory_mask: ArrayLike | None = None,
                 memory_lengths: ArrayLike | None = None) -> Array:  # fmt: skip
        """mask, causal and lengths[B] of self-attention, memory_mask and memory_lengths[B] of that to memory."""
        x, lengths, beyond = ragged("TransformerDecoderLayer", x, lengths)
        memory, memory_lengths, _ = ragged("TransformerDecoderLayer", memory, memory_lengths, *_OF_MEMORY)

        def to_memory(y: Array) -> Array:
            with renaming(**_OF_CONTEXT):
                return self.multihead_attn(y, memory, mask=memory_mask, lengths=memory_lengths)

        y = self._run(x, lambda y: self.self_attn(y, mask=mask, causal=causal, lengths=lengths), to_memory)
        return clear(y, beyond)

    def start(self, memory: ArrayLike, *, memory_lengths: ArrayLike | None = None, dtype: DTypeLike | None = None,
              capacity: int | None = None, page_size: int | None = None) -> LayerCache:  # fmt: skip
        """A cache for `step`, of no token yet; dtype (that of the layer by default), capacity and page_size are those
        of its KVCache."""
        memory, memory_lengths, _ = ragged("TransformerDecoderLayer.start", memory, memory_lengths, *_OF_MEMORY)
        projected = self.multihead_attn.project(memory, memory_lengths)
        batch, _, heads, size = projected.keys.shape
        kind = self.dtype if dtype is None else dtype
        return LayerCache(KVCache(batch, heads, size, dtype=kind, capacity=capacity, page_size=page_size), projected)

    def step(self, x: ArrayLike, cache: LayerCache) -> Array:
        """The results of the next n tokens x[B, n, E], which the cache stores: the bits of a call with all tokens."""
        check_layer_cache("TransformerDecoderLayer.step", cache)
        with unchanged_on_failure(cache.target):
            return self._run(
                x, lambda y: self.self_attn(y, cache=cache.target), lambda y: self.multihead_attn(y, cache.memory)
            )

    def _run(self, x: ArrayLike, to_target: Callable[[ArrayLike], Array], to_memory: Callable[[Array], Array]) -> Array:
        if self.norm_first:
            y, total = self.norm2.after_sum(x, to_target(self.norm1(x)))
            y, total = self.norm3.after_sum(total, to_memory(y))
            return added(total, self._feed_forward(y), out=total)
        y, _ = self.norm1.after_sum(x, to_target(x))
        y, _ = self.norm2.after_sum(y, to_memory(y))
        return self.norm3.after_sum(y, self._feed_forward(y))[0]

    def forward(self, x: ArrayLike, memory: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = True,
                lengths: ArrayLike | None = None, memory_mask: ArrayLike | None = None,
                memory_lengths: ArrayLike | None = None) -> tuple[Array, Saved]:  # fmt: skip
        """The result, and what backward needs."""
        x, lengths, beyond = ragged("TransformerDecoderLayer", x, lengths)
        memory, memory_lengths, _ = ragged("TransformerDecoderLayer", memory, memory_lengths, *_OF_MEMORY)
        options: dict[str, Any] = {"mask": mask, "causal": causal, "lengths": lengths}
        to_memory: dict[str, Any] = {"mask": memory_mask, "lengths": memory_lengths}
        x = cleared("TransformerDecoderLayer", "x", x, beyond)
        if self.norm_first:
            y, saved1 = self.norm1.forward(x)
            y, saved_self = self.self_attn.forward(y, **options)
            y, saved2 = self.norm2.forward(x, residual=y)
            with renaming(**_OF_CONTEXT):
                y, saved_cross = self.multihead_attn.forward(y, memory, **to_memory)
            y, saved3 = self.norm3.forward(saved2.x, residual=y)
            y, saved_feed = self._feed_forward_forward(y)
            added(y, saved3.x, out=y)
        else:
            y, saved_self = self.self_attn.forward(x, **options)
            y, saved1 = self.norm1.forward(x, residual=y)
            with renaming(**_OF_CONTEXT):
                z, saved_cross = self.multihead_attn.forward(y, memory, **to_memory)
            y, saved2 = self.norm2.forward(y, residual=z)
            z, saved_feed = self._feed_forward_forward(y)
            y, saved3 = self.norm3.forward(y, residual=z)
        return clear(y, beyond), self._saved(saved1, saved_self, saved2, saved_cross, saved3, saved_feed, beyond)

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[tuple[Array, Array], Grads]:
        """(dx, dmemory) and the gradients of the parameters, by name."""
        return self._add_gradients(dy, saved, None)

    def _add_gradients(self, dy: ArrayLike, saved: Any, dmemory: Array | None) -> tuple[tuple[Array, Array], Grads]:
        """backward, with the gradient of the memory added to that of other layers, in place."""
        saved1, saved_self, saved2, saved_cross, saved3, saved_feed, beyond = self._parts(saved, 7)
        dy = cleared_gradient("TransformerDecoderLayer.backward", dy, beyond)
        if self.norm_first:
            dx, feed = feed_forward_gradients(dy, saved_feed)
            dsum, norm3 = self.norm3.backward(dx, saved3, dsum=dy)
            dx, dmemory, cross = attention_gradients(dsum, saved_cross, add_context_to=dmemory)
            dsum, norm2 = self.norm2.backward(dx, saved2, dsum=dsum)
            dx, _, own = attention_gradients(dsum, saved_self)
            dx, norm1 = self.norm1.backward(dx, saved1, dsum=dsum)
        else:
            dx, norm3 = self.norm3.backward(dy, saved3)
            dx, feed = feed_forward_gradients(dx, saved_feed, add_to=dx)
            dx, norm2 = self.norm2.backward(dx, saved2)
            dx, dmemory, cross = attention_gradients(dx, saved_cross, add_to=dx, add_context_to=dmemory)
            dx, norm1 = self.norm1.backward(dx, saved1)
            dx, _, own = attention_gradients(dx, saved_self, add_to=dx)
        if dmemory is None:
            raise ValueError("TransformerDecoderLayer.backward: saved must hold attention to a memory, got to x alone")
        norms = prefixed(norm1=norm1, norm2=norm2, norm3=norm3)
        return (clear(dx, beyond), dmemory), feed | norms | prefixed(self_attn=own, multihead_attn=cross)


class _Stack(Module):
    """Layers of one kind, and with final_norm a norm of their result."""

    _layer: Callable[..., Any]

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int = 2048, *, num_layers: int,
                 final_norm: bool = False, activation: str = "relu", layer_norm_eps: float = 1e-5,
                 norm_first: bool = False, bias: bool = True, dtype: DTypeLike = np.float32,
                 rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        kind = type(self).__name__
        num_layers, rng = check_layers(kind, num_layers), check_rng(kind, rng)
        layer_norm_eps = check_eps(kind, "layer_norm_eps", layer_norm_eps)
        size, inner = check_size(kind, "d_model", d_model), check_size(kind, "dim_feedforward", dim_feedforward)
        check_room(kind, num_layers * (4 * size * size + 2 * size * inner), self.dtype.itemsize, num_layers=num_layers,
                   d_model=size, dim_feedforward=inner)  # fmt: skip
        make = functools.partial(
            type(self)._layer, d_model, nhead, dim_feedforward, activation=activation, layer_norm_eps=layer_norm_eps,
            norm_first=norm_first, bias=bias, dtype=dtype, rng=rng,
        )  # fmt: skip
        self.layers = [make() for _ in range(num_layers)]
        if check_flag(kind, "final_norm", final_norm):
            self.norm = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, dtype=dtype)

    def _finish(self, y: Array, beyond: Array | None) -> Array:
        """Through the final norm, where there is one."""
        return clear(self.norm(y), beyond) if hasattr(self, "norm") else cleared(type(self).__name__, "x", y, beyond)

    def _finish_forward(self, y: Array, beyond: Array | None) -> tuple[Array, Any]:
        if not hasattr(self, "norm"):
            return cleared(type(self).__name__, "x", y, beyond), None
        y, saved = self.norm.forward(y)
        return clear(y, beyond), saved

    def _finish_backward(self, dy: ArrayLike, saved: Any, beyond: Array | None) -> tuple[Any, Grads]:
        dy = cleared_gradient(f"{type(self).__name__}.backward", dy, beyond)
        if not hasattr(self, "norm"):
            return dy, {}
        dx, grads = self.norm.backward(dy, saved)
        return dx, prefixed(norm=grads)


class TransformerEncoder(_Stack):
    """num_layers encoder layers, and with final_norm a norm of their result. Other arguments are those of the layer.

    >>> TransformerEncoder(8, 2, 16, num_layers=2)(np.ones((1, 5, 8), np.float32)).shape
    (1, 5, 8)
    """

    _layer = TransformerEncoderLayer

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
                 lengths: ArrayLike | None = None) -> Array:  # fmt: skip
        """Arguments are those of the layer."""
        y, lengths, beyond = ragged("TransformerEncoder", x, lengths)
        for layer in self.layers:
            y = layer(y, mask=mask, causal=causal, lengths=lengths)
        return self._finish(y, beyond)

    def forward(self, x: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
                lengths: ArrayLike | None = None) -> tuple[Array, Saved]:  # fmt: skip
        """The result, and what backward needs."""
        y, lengths, beyond = ragged("TransformerEncoder", x, lengths)
        saved = []
        for layer in self.layers:
            y, part = layer.forward(y, mask=mask, causal=causal, lengths=lengths)
            saved.append(part)
        y, saved_norm = self._finish_forward(y, beyond)
        return y, self._saved(saved, saved_norm, beyond)

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[Array, Grads]:
        """dx and the gradients of the parameters, by name."""
        parts, saved_norm, beyond = self._parts(saved, 3)
        parts = check_parts("TransformerEncoder.backward", "saved.parts[0]", parts, len(self.layers))
        dx, grads = self._finish_backward(dy, saved_norm, beyond)
        for i in reversed(range(len(parts))):
            dx, own = self.layers[i].backward(dx, parts[i])
            grads |= prefixed(**{f"layers.{i}": own})
        return dx, grads


class TransformerDecoder(_Stack):
    """num_layers decoder layers, and with final_norm a norm of their result. Other arguments are those of the layer.

    >>> decoder = TransformerDecoder(8, 2, 16, num_layers=2)
    >>> decoder(np.ones((1, 5, 8), np.float32), np.ones((1, 3, 8), np.float32)).shape
    (1, 5, 8)
    """

    _layer = TransformerDecoderLayer

    def __call__(self, x: ArrayLike, memory: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = True,
                 lengths: ArrayLike | None = None, memory_mask: ArrayLike | None = None,
                 memory_lengths: ArrayLike | None = None) -> Array:  # fmt: skip
        """Arguments are those of the layer."""
        y, lengths, beyond = ragged("TransformerDecoder", x, lengths)
        memory, memory_lengths, _ = ragged("TransformerDecoder", memory, memory_lengths, *_OF_MEMORY)
        for layer in self.layers:
            y = layer(y, memory, mask=mask, causal=causal, lengths=lengths, memory_mask=memory_mask,
                      memory_lengths=memory_lengths)  # fmt: skip
        return self._finish(y, beyond)

    def start(self, memory: ArrayLike, *, memory_lengths: ArrayLike | None = None, dtype: DTypeLike | None = None,
              capacity: int | None = None, page_size: int | None = None) -> DecoderCache:  # fmt: skip
        """A cache for `step`, of no token yet. The options are those of TransformerDecoderLayer.start."""
        memory, memory_lengths, _ = ragged("TransformerDecoder.start", memory, memory_lengths, *_OF_MEMORY)
        return DecoderCache([
            layer.start(memory, memory_lengths=memory_lengths, dtype=dtype, capacity=capacity, page_size=page_size)
            for layer in self.layers
        ])  # fmt: skip

    def step(self, x: ArrayLike, cache: DecoderCache) -> Array:
        """The results of the next n tokens x[B, n, E], which the cache stores: the bits of a causal call with all
        tokens (a cache of int8: within its error). Keys and values of earlier tokens and of the memory are not
        computed again. A step that fails leaves the cache of every layer as it was.

        >>> decoder = TransformerDecoder(8, 2, 16, num_layers=2)
        >>> x, memory = np.eye(5, 8, dtype=np.float32)[None], np.ones((1, 3, 8), np.float32)
        >>> cache = decoder.start(memory)
        >>> steps = [decoder.step(x[:, i : i + 1], cache) for i in range(5)]
        >>> np.array_equal(np.concatenate(steps, axis=1), decoder(x, memory)), cache.length
        (True, 5)
        """
        check_decoder_cache("TransformerDecoder.step", cache, len(self.layers))
        y, _, _ = ragged("TransformerDecoder.step", x, None)
        with unchanged_on_failure(*(layer.target for layer in cache.layers)):
            for layer, own in zip(self.layers, cache.layers, strict=True):
                y = layer.step(y, own)
            return self._finish(y, None)

    def forward(self, x: ArrayLike, memory: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = True,
                lengths: ArrayLike | None = None, memory_mask: ArrayLike | None = None,
                memory_lengths: ArrayLike | None = None) -> tuple[Array, Saved]:  # fmt: skip
        """The result, and what backward needs."""
        y, lengths, beyond = ragged("TransformerDecoder", x, lengths)
        memory, memory_lengths, _ = ragged("TransformerDecoder", memory, memory_lengths, *_OF_MEMORY)
        saved = []
        for layer in self.layers:
            y, part = layer.forward(y, memory, mask=mask, causal=causal, lengths=lengths, memory_mask=memory_mask,
                                    memory_lengths=memory_lengths)  # fmt: skip
            saved.append(part)
        y, saved_norm = self._finish_forward(y, beyond)
        return y, self._saved(saved, saved_norm, memory.shape, beyond)

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[tuple[Array, Array], Grads]:
        """(dx, dmemory) and the gradients of the parameters, by name."""
        parts, saved_norm, shape, beyond = self._parts(saved, 4)
        parts = check_parts("TransformerDecoder.backward", "saved.parts[0]", parts, len(self.layers))
        dx, grads = self._finish_backward(dy, saved_norm, beyond)
        dmemory = None
        for i in reversed(range(len(parts))):
            (dx, dmemory), own = self.layers[i]._add_gradients(dx, parts[i], dmemory)
            grads |= prefixed(**{f"layers.{i}": own})
        return (dx, self._no_gradient(shape) if dmemory is None else dmemory), grads

    def _no_gradient(self, shape: Any) -> Array:
        """Of a memory that no layer attends to."""
        op = "TransformerDecoder.backward"
        sizes = [check_integer(op, "saved.parts[2]", n, 0) for n in check_parts(op, "saved.parts[2]", shape, 3)]
        dmemory: Array = _core.new_array(tuple(sizes), self.dtype, op)
        dmemory[...] = 0
        return dmemory


class Transformer(Module):
    """Encoder and decoder with final norms; with output_size also `output`, the linear layer to logits.

    source[B, S, E] and target[B, L, E] are the embedded tokens. The target attends to itself causally. Other arguments
    are those of the layers.

    >>> model = Transformer(8, 2, 16, num_encoder_layers=1, num_decoder_layers=1, output_size=11)
    >>> model(np.ones((1, 3, 8), np.float32), np.ones((1, 5, 8), np.float32)).shape
    (1, 5, 11)
    """

    def __init__(self, d_model: int = 512, nhead: int = 8, dim_feedforward: int = 2048, *,
                 num_encoder_layers: int = 6, num_decoder_layers: int = 6, output_size: int | None = None,
                 activation: str = "relu", layer_norm_eps: float = 1e-5, norm_first: bool = False, bias: bool = True,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        rng = check_rng("Transformer", rng)
        encoders = check_layers("Transformer", num_encoder_layers, "num_encoder_layers")
        decoders = check_layers("Transformer", num_decoder_layers, "num_decoder_layers")
        layer_norm_eps = check_eps("Transformer", "layer_norm_eps", layer_norm_eps)
        if output_size is not None:
            d_model = check_size("Transformer", "d_model", d_model)
            output_size = check_size("Transformer", "output_size", output_size)
            check_room("Transformer", output_size * (d_model + 1), self.dtype.itemsize, d_model=d_model,
                       output_size=output_size)  # fmt: skip
        options: dict[str, Any] = {
            "final_norm": True, "activation": activation, "layer_norm_eps": layer_norm_eps, "norm_first": norm_first,
            "bias": bias, "dtype": dtype, "rng": rng,
        }  # fmt: skip
        self.encoder = TransformerEncoder(d_model, nhead, dim_feedforward, num_layers=encoders, **options)
        self.decoder = TransformerDecoder(d_model, nhead, dim_feedforward, num_layers=decoders, **options)
        if output_size is not None:
            self.output = Linear(d_model, output_size, dtype=dtype, rng=rng)

    def __call__(self, source: ArrayLike, target: ArrayLike, *, source_lengths: ArrayLike | None = None,
                 target_lengths: ArrayLike | None = None) -> Array:  # fmt: skip
        """Lengths[B] of the sources and of the targets; logits beyond are 0, too."""
        source, source_lengths, _ = ragged("Transformer", source, source_lengths, "source", "source_lengths")
        target, target_lengths, beyond = ragged("Transformer", target, target_lengths, "target", "target_lengths")
        memory = self.encoder(source, lengths=source_lengths)
        y = self.decoder(target, memory, lengths=target_lengths, memory_lengths=source_lengths)
        return clear(self.output(y), beyond) if hasattr(self, "output") else y

    def start(self, source: ArrayLike, *, source_lengths: ArrayLike | None = None, dtype: DTypeLike | None = None,
              capacity: int | None = None, page_size: int | None = None) -> DecoderCache:  # fmt: skip
        """Encodes the source; a cache for `step`. Further options are those of TransformerDecoder.start."""
        source, source_lengths, _ = ragged("Transformer.start", source, source_lengths, "source", "source_lengths")
        memory = self.encoder(source, lengths=source_lengths)
        return self.decoder.start(
            memory, memory_lengths=source_lengths, dtype=dtype, capacity=capacity, page_size=page_size
        )

    def step(self, target: ArrayLike, cache: DecoderCache) -> Array:
        """The results of the next n tokens target[B, n, E]: the bits of a call with source and all tokens. As
        TransformerDecoder.step, all or nothing."""
        check_decoder_cache("Transformer.step", cache, len(self.decoder.layers))
        with unchanged_on_failure(*(layer.target for layer in cache.layers)):
            y = self.decoder.step(target, cache)
            return self.output(y) if hasattr(self, "output") else y

    def forward(self, source: ArrayLike, target: ArrayLike, *, source_lengths: ArrayLike | None = None,
                target_lengths: ArrayLike | None = None) -> tuple[Array, Saved]:  # fmt: skip
        """The result, and what backward needs."""
        source, source_lengths, _ = ragged("Transformer", source, source_lengths, "source", "source_lengths")
        target, target_lengths, beyond = ragged("Transformer", target, target_lengths, "target", "target_lengths")
        memory, encoder = self.encoder.forward(source, lengths=source_lengths)
        y, decoder = self.decoder.forward(target, memory, lengths=target_lengths, memory_lengths=source_lengths)
        if not hasattr(self, "output"):
            return y, self._saved(encoder, decoder, None, beyond)
        y, output = self.output.forward(y)
        return clear(y, beyond), self._saved(encoder, decoder, output, beyond)

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[tuple[Array, Array], Grads]:
        """(dsource, dtarget) and the gradients of the parameters, by name."""
        encoder, decoder, output, beyond = self._parts(saved, 4)
        grads: Grads = {}
        if output is not None:
            dy, own = self.output.backward(cleared_gradient("Transformer.backward", dy, beyond), output)
            grads = prefixed(output=own)
        (dtarget, dmemory), of_decoder = self.decoder.backward(dy, decoder)
        dsource, of_encoder = self.encoder.backward(dmemory, encoder)
        return (dsource, dtarget), grads | prefixed(encoder=of_encoder, decoder=of_decoder)

"""Encoder, decoder and the whole transformer, by the names of torch.nn (batch first, without dropout).

Source: Vaswani et al. 2017, arXiv:1706.03762; norm_first: Xiong et al. 2020, arXiv:2002.04745.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn.cache import KVCache, unchanged_on_failure
from fastattn.functional._types import Array
from fastattn.nn.attention import MultiHeadAttention, attention_gradients, finite_padding
from fastattn.nn.decoder_cache import DecoderCache, LayerCache
from fastattn.nn.layers import LayerNorm, Linear, Rng, check_activation, feed_forward_gradients
from fastattn.nn.module import Module, prefixed

Grads = dict[str, Array]


class _Layer(Module):
    """Self-attention and feed-forward with their norms, which encoder and decoder layers share."""

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int = 2048, *, activation: str = "relu",
                 layer_norm_eps: float = 1e-5, norm_first: bool = False, bias: bool = True,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        rng = rng or np.random.default_rng()
        self.activation = check_activation(activation, type(self).__name__)
        self.norm_first = norm_first
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
        options: dict[str, Any] = {"mask": mask, "causal": causal, "lengths": lengths}
        if self.norm_first:
            y, total = self.norm2.after_sum(x, self.self_attn(self.norm1(x), **options))
            return np.add(total, self._feed_forward(y), out=total)
        y, _ = self.norm1.after_sum(x, self.self_attn(x, **options))
        return self.norm2.after_sum(y, self._feed_forward(y))[0]

    def forward(self, x: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
                lengths: ArrayLike | None = None) -> tuple[Array, Any]:  # fmt: skip
        """The result, and what backward needs. Beyond lengths, what is not finite counts as 0."""
        options: dict[str, Any] = {"mask": mask, "causal": causal, "lengths": lengths}
        x = finite_padding(x, lengths)
        if self.norm_first:
            y, saved1 = self.norm1.forward(x)
            y, saved_attention = self.self_attn.forward(y, **options)
            y, saved2 = self.norm2.forward(x, residual=y)
            y, saved_feed = self._feed_forward_forward(y)
            np.add(y, saved2.x, out=y)
        else:
            y, saved_attention = self.self_attn.forward(x, **options)
            y, saved1 = self.norm1.forward(x, residual=y)
            z, saved_feed = self._feed_forward_forward(y)
            y, saved2 = self.norm2.forward(y, residual=z)
        return y, (saved1, saved_attention, saved2, saved_feed)

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[Array, Grads]:
        """dx and the gradients of the parameters, by name."""
        saved1, saved_attention, saved2, saved_feed = saved
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
        return dx, feed | prefixed(norm1=norm1, norm2=norm2, self_attn=attention)


class TransformerDecoderLayer(_Layer):
    """x[B, L, E] through self-attention, attention to memory[B, S, E] and feed-forward.

    >>> TransformerDecoderLayer(8, 2, 16)(np.ones((1, 5, 8), np.float32), np.ones((1, 3, 8), np.float32)).shape
    (1, 5, 8)
    """

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int = 2048, *, activation: str = "relu",
                 layer_norm_eps: float = 1e-5, norm_first: bool = False, bias: bool = True,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        rng = rng or np.random.default_rng()
        super().__init__(d_model, nhead, dim_feedforward, activation=activation, layer_norm_eps=layer_norm_eps,
                         norm_first=norm_first, bias=bias, dtype=dtype, rng=rng)  # fmt: skip
        self.multihead_attn = MultiHeadAttention(d_model, nhead, bias=bias, dtype=dtype, rng=rng)
        self.norm3 = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, dtype=dtype)

    def __call__(self, x: ArrayLike, memory: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = True,
                 lengths: ArrayLike | None = None, memory_mask: ArrayLike | None = None,
                 memory_lengths: ArrayLike | None = None) -> Array:  # fmt: skip
        return self._run(
            x,
            lambda y: self.self_attn(y, mask=mask, causal=causal, lengths=lengths),
            lambda y: self.multihead_attn(y, memory, mask=memory_mask, lengths=memory_lengths),
        )

    def start(self, memory: ArrayLike, *, memory_lengths: ArrayLike | None = None, dtype: DTypeLike | None = None,
              capacity: int | None = None, page_size: int | None = None) -> LayerCache:  # fmt: skip
        """A cache for `step`, of no token yet; dtype (that of the layer by default), capacity and page_size are those
        of its KVCache."""
        projected = self.multihead_attn.project(memory, memory_lengths)
        batch, _, heads, size = projected.keys.shape
        kind = self.dtype if dtype is None else dtype
        return LayerCache(KVCache(batch, heads, size, dtype=kind, capacity=capacity, page_size=page_size), projected)

    def step(self, x: ArrayLike, cache: LayerCache) -> Array:
        """The results of the next n tokens x[B, n, E], which the cache takes up: the bits of a call with all tokens."""
        with unchanged_on_failure(cache.target):
            return self._run(
                x, lambda y: self.self_attn(y, cache=cache.target), lambda y: self.multihead_attn(y, cache.memory)
            )

    def _run(self, x: ArrayLike, to_target: Callable[[ArrayLike], Array], to_memory: Callable[[Array], Array]) -> Array:
        if self.norm_first:
            y, total = self.norm2.after_sum(x, to_target(self.norm1(x)))
            y, total = self.norm3.after_sum(total, to_memory(y))
            return np.add(total, self._feed_forward(y), out=total)
        y, _ = self.norm1.after_sum(x, to_target(x))
        y, _ = self.norm2.after_sum(y, to_memory(y))
        return self.norm3.after_sum(y, self._feed_forward(y))[0]

    def forward(self, x: ArrayLike, memory: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = True,
                lengths: ArrayLike | None = None, memory_mask: ArrayLike | None = None,
                memory_lengths: ArrayLike | None = None) -> tuple[Array, Any]:  # fmt: skip
        """The result, and what backward needs. Beyond lengths, what is not finite counts as 0."""
        options: dict[str, Any] = {"mask": mask, "causal": causal, "lengths": lengths}
        to_memory: dict[str, Any] = {"mask": memory_mask, "lengths": memory_lengths}
        x = finite_padding(x, lengths)
        if self.norm_first:
            y, saved1 = self.norm1.forward(x)
            y, saved_self = self.self_attn.forward(y, **options)
            y, saved2 = self.norm2.forward(x, residual=y)
            y, saved_cross = self.multihead_attn.forward(y, memory, **to_memory)
            y, saved3 = self.norm3.forward(saved2.x, residual=y)
            y, saved_feed = self._feed_forward_forward(y)
            np.add(y, saved3.x, out=y)
        else:
            y, saved_self = self.self_attn.forward(x, **options)
            y, saved1 = self.norm1.forward(x, residual=y)
            z, saved_cross = self.multihead_attn.forward(y, memory, **to_memory)
            y, saved2 = self.norm2.forward(y, residual=z)
            z, saved_feed = self._feed_forward_forward(y)
            y, saved3 = self.norm3.forward(y, residual=z)
        return y, (saved1, saved_self, saved2, saved_cross, saved3, saved_feed)

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[tuple[Array, Array], Grads]:
        """(dx, dmemory) and the gradients of the parameters, by name."""
        return self.add_gradients(dy, saved, None)

    def add_gradients(self, dy: ArrayLike, saved: Any, dmemory: Array | None) -> tuple[tuple[Array, Array], Grads]:
        """backward, with the gradient of the memory added to that of other layers, in place."""
        saved1, saved_self, saved2, saved_cross, saved3, saved_feed = saved
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
        assert dmemory is not None  # there is a context
        norms = prefixed(norm1=norm1, norm2=norm2, norm3=norm3)
        return (dx, dmemory), feed | norms | prefixed(self_attn=own, multihead_attn=cross)


class TransformerEncoder(Module):
    """num_layers encoder layers, and with final_norm a norm of their result. `options` are those of the layer.

    >>> TransformerEncoder(8, 2, 16, num_layers=2)(np.ones((1, 5, 8), np.float32)).shape
    (1, 5, 8)
    """

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int = 2048, *, num_layers: int,
                 final_norm: bool = False, dtype: DTypeLike = np.float32, **options: Any) -> None:  # fmt: skip
        super().__init__(dtype)
        self.layers = [
            TransformerEncoderLayer(d_model, nhead, dim_feedforward, dtype=dtype, **options) for _ in range(num_layers)
        ]
        if final_norm:
            self.norm = _final_norm(d_model, dtype, options)

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
                 lengths: ArrayLike | None = None) -> Array:  # fmt: skip
        y = np.asarray(x)
        for layer in self.layers:
            y = layer(y, mask=mask, causal=causal, lengths=lengths)
        return self.norm(y) if hasattr(self, "norm") else y

    def forward(self, x: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
                lengths: ArrayLike | None = None) -> tuple[Array, Any]:  # fmt: skip
        """The result, and what backward needs."""
        y, saved = np.asarray(x), []
        for layer in self.layers:
            y, part = layer.forward(y, mask=mask, causal=causal, lengths=lengths)
            saved.append(part)
        y, saved_norm = self.norm.forward(y) if hasattr(self, "norm") else (y, None)
        return y, (saved, saved_norm)

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[Array, Grads]:
        """dx and the gradients of the parameters, by name."""
        parts, saved_norm = saved
        dx, grads = _norm_gradients(self, dy, saved_norm)
        for i in reversed(range(len(parts))):
            dx, own = self.layers[i].backward(dx, parts[i])
            grads |= prefixed(**{f"layers.{i}": own})
        return dx, grads


class TransformerDecoder(Module):
    """num_layers decoder layers, and with final_norm a norm of their result. `options` are those of the layer.

    >>> decoder = TransformerDecoder(8, 2, 16, num_layers=2)
    >>> decoder(np.ones((1, 5, 8), np.float32), np.ones((1, 3, 8), np.float32)).shape
    (1, 5, 8)
    """

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int = 2048, *, num_layers: int,
                 final_norm: bool = False, dtype: DTypeLike = np.float32, **options: Any) -> None:  # fmt: skip
        super().__init__(dtype)
        self.layers = [
            TransformerDecoderLayer(d_model, nhead, dim_feedforward, dtype=dtype, **options) for _ in range(num_layers)
        ]
        if final_norm:
            self.norm = _final_norm(d_model, dtype, options)

    def __call__(self, x: ArrayLike, memory: ArrayLike, **options: Any) -> Array:
        y = np.asarray(x)
        for layer in self.layers:
            y = layer(y, memory, **options)
        return self.norm(y) if hasattr(self, "norm") else y

    def start(self, memory: ArrayLike, **options: Any) -> DecoderCache:
        """A cache for `step`, of no token yet. The options are those of TransformerDecoderLayer.start: memory_lengths,
        dtype, capacity, page_size."""
        return DecoderCache([layer.start(memory, **options) for layer in self.layers])

    def step(self, x: ArrayLike, cache: DecoderCache) -> Array:
        """The results of the next n tokens x[B, n, E], which the cache takes up: the bits of a causal call with all
        tokens (a cache of int8: within its error). Keys and values of earlier tokens and of the memory are not
        computed again. A step that fails, be it for memory, leaves the cache of every layer as it was.

        >>> decoder = TransformerDecoder(8, 2, 16, num_layers=2)
        >>> x, memory = np.eye(5, 8, dtype=np.float32)[None], np.ones((1, 3, 8), np.float32)
        >>> cache = decoder.start(memory)
        >>> steps = [decoder.step(x[:, i : i + 1], cache) for i in range(5)]
        >>> np.array_equal(np.concatenate(steps, axis=1), decoder(x, memory)), cache.length
        (True, 5)
        """
        if len(cache.layers) != len(self.layers):
            raise ValueError(f"TransformerDecoder.step: cache must be of {len(self.layers)} layers, "
                             f"got {len(cache.layers)}")  # fmt: skip
        y = np.asarray(x)
        with unchanged_on_failure(*(layer.target for layer in cache.layers)):
            for layer, own in zip(self.layers, cache.layers, strict=True):
                y = layer.step(y, own)
            return self.norm(y) if hasattr(self, "norm") else y

    def forward(self, x: ArrayLike, memory: ArrayLike, **options: Any) -> tuple[Array, Any]:
        """The result, and what backward needs."""
        y, saved = np.asarray(x), []
        for layer in self.layers:
            y, part = layer.forward(y, memory, **options)
            saved.append(part)
        y, saved_norm = self.norm.forward(y) if hasattr(self, "norm") else (y, None)
        return y, (saved, saved_norm, np.shape(memory))

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[tuple[Array, Array], Grads]:
        """(dx, dmemory) and the gradients of the parameters, by name."""
        parts, saved_norm, shape = saved
        dx, grads = _norm_gradients(self, dy, saved_norm)
        dmemory = None
        for i in reversed(range(len(parts))):
            (dx, dmemory), own = self.layers[i].add_gradients(dx, parts[i], dmemory)
            grads |= prefixed(**{f"layers.{i}": own})
        return (dx, np.zeros(shape, self.dtype) if dmemory is None else dmemory), grads


class Transformer(Module):
    """Encoder and decoder with final norms; with output_size also `output`, the linear layer to logits.

    source[B, S, E] and target[B, L, E] are embedded already. The target attends to itself causally.

    >>> model = Transformer(8, 2, 16, num_encoder_layers=1, num_decoder_layers=1, output_size=11)
    >>> model(np.ones((1, 3, 8), np.float32), np.ones((1, 5, 8), np.float32)).shape
    (1, 5, 11)
    """

    def __init__(self, d_model: int = 512, nhead: int = 8, dim_feedforward: int = 2048, *,
                 num_encoder_layers: int = 6, num_decoder_layers: int = 6, output_size: int | None = None,
                 dtype: DTypeLike = np.float32, rng: Rng = None, **options: Any) -> None:  # fmt: skip
        super().__init__(dtype)
        rng = rng or np.random.default_rng()
        options |= {"final_norm": True, "dtype": dtype, "rng": rng}
        self.encoder = TransformerEncoder(d_model, nhead, dim_feedforward, num_layers=num_encoder_layers, **options)
        self.decoder = TransformerDecoder(d_model, nhead, dim_feedforward, num_layers=num_decoder_layers, **options)
        if output_size is not None:
            self.output = Linear(d_model, output_size, dtype=dtype, rng=rng)

    def __call__(self, source: ArrayLike, target: ArrayLike, *, source_lengths: ArrayLike | None = None,
                 target_lengths: ArrayLike | None = None) -> Array:  # fmt: skip
        memory = self.encoder(source, lengths=source_lengths)
        y = self.decoder(target, memory, lengths=target_lengths, memory_lengths=source_lengths)
        return self.output(y) if hasattr(self, "output") else y

    def start(self, source: ArrayLike, *, source_lengths: ArrayLike | None = None, **options: Any) -> DecoderCache:
        """Encodes the source; a cache for `step`. Further options are those of TransformerDecoder.start."""
        memory = self.encoder(source, lengths=source_lengths)
        return self.decoder.start(memory, memory_lengths=source_lengths, **options)

    def step(self, target: ArrayLike, cache: DecoderCache) -> Array:
        """The results of the next n tokens target[B, n, E]: the bits of a call with source and all tokens. As
        TransformerDecoder.step, all or nothing."""
        with unchanged_on_failure(*(layer.target for layer in cache.layers)):
            y = self.decoder.step(target, cache)
            return self.output(y) if hasattr(self, "output") else y

    def forward(self, source: ArrayLike, target: ArrayLike, *, source_lengths: ArrayLike | None = None,
                target_lengths: ArrayLike | None = None) -> tuple[Array, Any]:  # fmt: skip
        """The result, and what backward needs."""
        memory, encoder = self.encoder.forward(source, lengths=source_lengths)
        y, decoder = self.decoder.forward(target, memory, lengths=target_lengths, memory_lengths=source_lengths)
        y, output = self.output.forward(y) if hasattr(self, "output") else (y, None)
        return y, (encoder, decoder, output)

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[tuple[Array, Array], Grads]:
        """(dsource, dtarget) and the gradients of the parameters, by name."""
        encoder, decoder, output = saved
        grads: Grads = {}
        if output is not None:
            dy, own = self.output.backward(dy, output)
            grads = prefixed(output=own)
        (dtarget, dmemory), of_decoder = self.decoder.backward(dy, decoder)
        dsource, of_encoder = self.encoder.backward(dmemory, encoder)
        return (dsource, dtarget), grads | prefixed(encoder=of_encoder, decoder=of_decoder)


def _norm_gradients(module: Any, dy: ArrayLike, saved: Any) -> tuple[Any, Grads]:
    """Through the final norm, where there is one."""
    if saved is None:
        return dy, {}
    dx, grads = module.norm.backward(dy, saved)
    return dx, prefixed(norm=grads)


def _final_norm(d_model: int, dtype: DTypeLike, options: dict[str, Any]) -> LayerNorm:
    eps, bias = options.get("layer_norm_eps", 1e-5), options.get("bias", True)
    return LayerNorm(d_model, eps=eps, bias=bias, dtype=dtype)

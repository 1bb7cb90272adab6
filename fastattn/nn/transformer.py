"""Encoder, decoder and the whole transformer, by the names of torch.nn (batch first, without dropout).

Source: Vaswani et al. 2017, arXiv:1706.03762; norm_first: Xiong et al. 2020, arXiv:2002.04745.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn.functional._types import Array
from fastattn.nn.attention import MultiHeadAttention
from fastattn.nn.layers import LayerNorm, Linear, Rng, check_activation
from fastattn.nn.module import Module


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
        options: dict[str, Any] = {"mask": mask, "causal": causal, "lengths": lengths}
        to_memory: dict[str, Any] = {"mask": memory_mask, "lengths": memory_lengths}
        if self.norm_first:
            y, total = self.norm2.after_sum(x, self.self_attn(self.norm1(x), **options))
            y, total = self.norm3.after_sum(total, self.multihead_attn(y, memory, **to_memory))
            return np.add(total, self._feed_forward(y), out=total)
        y, _ = self.norm1.after_sum(x, self.self_attn(x, **options))
        y, _ = self.norm2.after_sum(y, self.multihead_attn(y, memory, **to_memory))
        return self.norm3.after_sum(y, self._feed_forward(y))[0]


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


def _final_norm(d_model: int, dtype: DTypeLike, options: dict[str, Any]) -> LayerNorm:
    eps, bias = options.get("layer_norm_eps", 1e-5), options.get("bias", True)
    return LayerNorm(d_model, eps=eps, bias=bias, dtype=dtype)

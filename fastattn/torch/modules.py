"""Modules of torch.nn that compute with fastattn: the same constructors, parameters, state dicts, hooks and results.

What fastattn has not (dropout of probabilities, other devices, nested tensors, ...) and what torch computes faster is
computed by torch's own module, of which each is a subclass.
"""

import math
import weakref
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastattn as fa
from fastattn.torch import layers, recurrent
from fastattn.torch.arrays import is_direct, needs_gradient
from fastattn.torch.attention import attention
from fastattn.torch.recurrent import Form

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_WIDE = (torch.float32, torch.float64)


def _is_ours(*tensors: Tensor | None) -> bool:
    """Dense tensors on the CPU (or of no data), of one type that fastattn has."""
    given = [t for t in tensors if t is not None]
    return (
        all(
            t.device.type in ("cpu", "meta")
            and t.layout is torch.strided
            and not t.is_nested
            and t.dtype is given[0].dtype
            for t in given
        )
        and given[0].dtype in _FLOATS
    )


# ---- recurrent networks ----

# Module -> the state of its weights, and these in the layout of the kernels. Beside the module: its dict is pickled.
_packed: "weakref.WeakKeyDictionary[nn.Module, tuple[Any, Any]]" = weakref.WeakKeyDictionary()


def _packed_weights(module: nn.Module, form: Form, weights: list[Tensor]) -> Any:
    """Packed once, and anew after a weight has changed."""
    state = (fa.config.get_isa(), *((w._version, w.data_ptr(), w.dtype) for w in weights))
    known = _packed.get(module)
    if known is None or known[0] != state:
        known = state, recurrent.packed(type(module).__name__, form, weights)
        _packed[module] = known
    return known[1]


class _Recurrent:
    """The forward of torch's RNN, GRU and LSTM."""

    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        packed = input if isinstance(input, nn.utils.rnn.PackedSequence) else None
        data = input if packed is None else packed.data
        states = () if hx is None else tuple(hx) if self.mode == "LSTM" else (hx,)
        if not _is_ours(data, *states, *self._flat_weights):
            return super().forward(input, hx)  # type: ignore[misc]
        if packed is not None:
            return self._forward_packed(packed, states)
        return self._forward_padded(input, states, None, self.batch_first)

    def _forward_packed(self: Any, packed: Any, states: tuple[Tensor, ...]) -> Any:
        """In the caller's order of sequences, and back into the packed form."""
        x, lengths = nn.utils.rnn.pad_packed_sequence(packed)
        y, state = self._forward_padded(x, states, lengths, False)
        order = packed.sorted_indices
        if order is None:
            return nn.utils.rnn.pack_padded_sequence(y, lengths), state
        data = nn.utils.rnn.pack_padded_sequence(y.index_select(1, order), lengths.index_select(0, order)).data
        return nn.utils.rnn.PackedSequence(data, packed.batch_sizes, order, packed.unsorted_indices), state

    def _forward_padded(
        self: Any, x: Tensor, states: tuple[Tensor, ...], lengths: Tensor | None, batch_first: bool
    ) -> Any:
        if x.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: input must have 2 or 3 axes, got {x.dim()}")
        is_single = x.dim() == 2
        if is_single:
            x, states = x.unsqueeze(0 if batch_first else 1), tuple(s.unsqueeze(1) for s in states)
        batch = x.shape[0] if batch_first else x.shape[1]
        self._check_states(states, batch)
        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        cell = self.mode.partition("_")[0].lower()
        form = Form(cell, "relu" if self.mode == "RNN_RELU" else "tanh", self.num_layers, 1 + self.bidirectional,
                    self.bias, self.proj_size > 0, batch_first, dropout,
                    int(torch.randint(2**62, ())) if dropout else 0)  # fmt: skip
        h, c = (*states, None, None)[:2]
        weights, op = self._flat_weights, type(self).__name__
        if is_direct(x) and not dropout and not needs_gradient(x, *states, *weights):
            y, h, c = recurrent.run_packed(op, form, x, h, c, _packed_weights(self, form, weights), lengths)
        else:
            y, h, c = recurrent.run(op, form, x, h, c, weights, lengths)
        if is_single:
            y, h, c = y.squeeze(0 if batch_first else 1), h.squeeze(1), None if c is None else c.squeeze(1)
        return y, (h if c is None else (h, c))

    def _check_states(self: Any, states: tuple[Tensor, ...], batch: int) -> None:
        """torch's own message names the module's state; ours would name that of the function."""
        lanes = self.num_layers * (1 + self.bidirectional)
        for name, state, size in zip(
            "hc", states, (self.proj_size or self.hidden_size, self.hidden_size), strict=False
        ):
            if tuple(state.shape) != (lanes, batch, size):
                raise RuntimeError(
                    f"{type(self).__name__}: {name} must have shape {(lanes, batch, size)}, got {tuple(state.shape)}"
                )


class LSTM(_Recurrent, nn.LSTM):
    """torch.nn.LSTM, computed by fastattn."""


class GRU(_Recurrent, nn.GRU):
    """torch.nn.GRU, computed by fastattn."""


class RNN(_Recurrent, nn.RNN):
    """torch.nn.RNN, computed by fastattn."""


# ---- attention ----

# Keys from which fastattn is the faster one, without gradients and with them; below, torch's fused operators of whole
# layers (AVX2, float32, 64 and 512 wide, batches of 1 and 8: equal at 128 keys and at 32).
LEAST_KEYS = {False: 128, True: 32}
LEAST_TOKENS = 192  # of an encoder layer without gradients, likewise


class MultiheadAttention(nn.MultiheadAttention):
    """torch.nn.MultiheadAttention, with attention computed by fastattn and the projections by torch.

    torch computes short sequences and calls that want the weights, in which it is the faster one.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if not self._is_served(query, key, value, key_padding_mask, attn_mask, need_weights, is_causal):
            return super().forward(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights,
                                   is_causal)  # fmt: skip
        is_single = query.dim() == 2
        if is_single:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in self._projected(query, key, value))
        mask = _merged(attn_mask, key_padding_mask, q.dtype, q.shape[0], self.num_heads)
        if is_causal and key_padding_mask is None:
            out = attention(q, k, v, causal="top-left", layout="blhd")
        else:
            out = attention(q, k, v, mask=mask, layout="blhd")
        y = F.linear(out.flatten(2), self.out_proj.weight, self.out_proj.bias)
        if is_single:
            return y.squeeze(0), None
        return y if self.batch_first else y.transpose(0, 1), None

    def _is_served(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, mask: Tensor | None,
                   need_weights: bool, is_causal: bool) -> bool:  # fmt: skip
        parameters = list(self.parameters())
        if need_weights or self.bias_k is not None or self.add_zero_attn or (self.training and self.dropout):
            return False
        if query.dim() not in (2, 3) or not query.dim() == key.dim() == value.dim():
            return False
        if (is_causal and mask is None) or not _is_ours(query, key, value, *parameters):
            return False
        floats = [m for m in (padding, mask) if m is not None and m.dtype is not torch.bool]
        if any(m.dtype is not query.dtype for m in floats):
            return False
        keys = key.shape[1 if self.batch_first and key.dim() == 3 else 0]
        return keys >= LEAST_KEYS[needs_gradient(query, key, value, *parameters)]

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        size, bias = self.embed_dim, self.in_proj_bias
        biases = (None,) * 3 if bias is None else bias.split(size)
        if not self._qkv_same_embed_dim:
            matrices = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        elif query is key and key is value:
            return F.linear(query, self.in_proj_weight, bias).chunk(3, -1)
        else:
            matrices = self.in_proj_weight.split(size)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases, strict=True))


def _merged(mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype, batch: int, heads: int) -> Tensor | None:
    """torch's two masks (True: exclude) as one of ours (True: attend)."""
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (batch, heads))
    if padding is not None:
        padding = padding[:, None, None, :]
    given = [m for m in (mask, padding) if m is not None]
    if not given:
        return None
    if all(m.dtype is torch.bool for m in given):
        return ~reduce(torch.logical_or, given)
    return reduce(torch.add, [_added(m, dtype) for m in given])


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of bools (True: exclude) as one that is added."""
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros((), dtype=dtype).masked_fill(mask, -math.inf)


class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """torch.nn.TransformerEncoderLayer without torch's fused path, which would pass `self_attn` by."""

    def forward(self, src: Tensor, src_mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None,
                is_causal: bool = False) -> Tensor:  # fmt: skip
        if src.is_nested or _is_short(self, src):
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        masks = _canonical(src, src_mask, src_key_padding_mask)
        if self.norm_first:
            src = src + self._sa_block(self.norm1(src), *masks, is_causal=is_causal)
            return src + self._ff_block(self.norm2(src))
        src = self.norm1(src + self._sa_block(src, *masks, is_causal=is_causal))
        return self.norm2(src + self._ff_block(src))


def _is_short(layer: nn.TransformerEncoderLayer, src: Tensor) -> bool:
    """Whether torch's fused operator of a layer is the faster one."""
    tokens = src.shape[1 if layer.self_attn.batch_first and src.dim() == 3 else 0]
    return tokens < LEAST_TOKENS and not layer.training and not needs_gradient(src, *layer.parameters())


def _canonical(src: Tensor, mask: Tensor | None, padding: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both of one type, as torch has them: of floats where either is."""
    if mask is None or padding is None or mask.dtype is padding.dtype:
        return mask, padding
    return _added(mask, src.dtype), _added(padding, src.dtype)


class TransformerEncoder(nn.TransformerEncoder):
    """torch.nn.TransformerEncoder without nested tensors, which its layers would take to torch's fused path."""

    def forward(self, src: Tensor, mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None,
                is_causal: bool | None = None) -> Tensor:  # fmt: skip
        if self.layers and isinstance(self.layers[0], nn.TransformerEncoderLayer) and _is_short(self.layers[0], src):
            return super().forward(src, mask, src_key_padding_mask, is_causal)
        use_nested, self.use_nested_tensor = getattr(self, "use_nested_tensor", False), False
        try:
            return super().forward(src, mask, src_key_padding_mask, is_causal)
        finally:
            self.use_nested_tensor = use_nested


# ---- layers ----


class Linear(nn.Linear):
    """torch.nn.Linear, computed by fastattn in float32 and float64."""

    def forward(self, input: Tensor) -> Tensor:
        if not _is_ours(input, self.weight, self.bias) or input.dtype not in _WIDE:
            return super().forward(input)
        return layers.linear(input, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm of the last axis, computed by fastattn."""

    def forward(self, input: Tensor) -> Tensor:
        if len(self.normalized_shape) != 1 or not _is_ours(input, self.weight, self.bias):
            return super().forward(input)
        return layers.layer_norm(input, self.weight, self.bias, eps=self.eps)


class RMSNorm(nn.RMSNorm):
    """torch.nn.RMSNorm of the last axis, computed by fastattn."""

    def forward(self, x: Tensor) -> Tensor:
        if len(self.normalized_shape) != 1 or not _is_ours(x, self.weight):
            return super().forward(x)
        return layers.rms_norm(x, self.weight, eps=torch.finfo(x.dtype).eps if self.eps is None else self.eps)

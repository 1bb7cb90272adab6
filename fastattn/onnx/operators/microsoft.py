"""Operators of onnxruntime's own domain that its optimiser puts into Transformers and quantised LSTMs."""

from typing import Any

import numpy as np

import fastattn as fa
from fastattn import _core
from fastattn.onnx.graph import Array, Call, Node, UnsupportedOperator
from fastattn.onnx.operators.attention import attend, split_heads
from fastattn.onnx.operators.linear import fused_linear
from fastattn.onnx.operators.recurrent import outputs, packed_weights, read_form, run_packed, run_plain

_MASKED = -10000.0  # mask_filter_value, where a node does not say


def _skip_norm(node: Node) -> Call:
    """LayerNormalization of input + skip + bias: (norm, mean, inverse of the deviation, sum)."""
    eps, count = float(node.get("epsilon", 1e-12)), len(node.outputs)

    def call(x: Array, skip: Array, gamma: Array, beta: Array | None = None, bias: Array | None = None) -> Any:
        if bias is not None:
            x = x + bias
        skip = np.broadcast_to(skip, x.shape)
        if count == 1 or not any(node.outputs[1:3]):
            norm, total = fa.add_layer_norm(x, skip, gamma, beta, eps=eps)
            return norm if count == 1 else (norm, None, None, total)[:count]
        norm, saved = fa.layer_norm_forward(x, gamma, beta, residual=skip, eps=eps)
        shape = (*x.shape[:-1], 1)
        return (norm, np.asarray(saved.mean).reshape(shape), np.asarray(saved.rstd).reshape(shape), saved.x)[:count]

    return call


def _embed_norm(node: Node) -> Call:
    """LayerNormalization of the sum of word, position and segment embeddings: (norm, keys that count, sum)."""
    eps, mask_type, count = float(node.get("epsilon", 1e-12)), int(node.get("mask_index_type", 0)), len(node.outputs)
    if mask_type not in (0, 1):
        raise UnsupportedOperator(
            f"load: EmbedLayerNormalization must have a mask_index_type of 0 or 1, got {mask_type}"
        )

    def call(ids: Array, segments: Array | None, words: Array, places: Array, of_segments: Array | None, gamma: Array,
             beta: Array, mask: Array | None = None, positions: Array | None = None) -> Any:  # fmt: skip
        batch, length = ids.shape
        if positions is None:
            positions = np.arange(length)[None]
        total = fa.embedding(ids, words) + fa.embedding(positions, places)
        if of_segments is not None and segments is not None:
            total += fa.embedding(segments, of_segments)
        norm = fa.layer_norm(total, gamma, beta, eps=eps)
        if count == 1:
            return norm
        kept = np.zeros(batch, np.int32) if mask is None else (mask != 0).sum(1, dtype=np.int32)
        return (norm, kept, total)[:count]

    return call


def _attention(node: Node) -> Call:
    """Self-attention with its projections: (out, present)."""
    heads, sizes = int(node.get("num_heads")), node.get("qkv_hidden_sizes")
    causal, given_scale = bool(node.get("unidirectional", 0)), node.get("scale")
    masked, single = float(node.get("mask_filter_value", _MASKED)), len(node.outputs) == 1
    scale = float(given_scale) if given_scale else None
    if node.get("do_rotary", 0) or node.get("past_present_share_buffer", 0):
        raise UnsupportedOperator(
            "load: com.microsoft.Attention must be without do_rotary and past_present_share_buffer"
        )
    weight, bias = node.constant(1), node.constant(2)
    known = weight is not None and (not node.has(2) or (bias is not None and bias.ndim == 1))
    project = fused_linear(node) if known else None

    if node.has(6):
        raise UnsupportedOperator("load: com.microsoft.Attention must be without past_sequence_length")

    def call(x: Array, w: Array, b: Array | None = None, mask: Array | None = None, past: Array | None = None,
             extra: Array | None = None) -> Any:  # fmt: skip
        qkv = fa.linear(x, w.T, b) if project is None else project(x)
        q_size, k_size, _ = sizes or [qkv.shape[-1] // 3] * 3
        q, k, v = (split_heads(part, heads) for part in np.split(qkv, [q_size, q_size + k_size], -1))
        length = q.shape[2]
        if past is not None:
            k, v = np.concatenate([past[0], k], 2), np.concatenate([past[1], v], 2)
        options: dict[str, Any] = {"scale": scale}
        added = extra
        if mask is not None:
            keep = _kept(mask, len(x), length, k.shape[2])
            bias_of_mask = np.where(keep, x.dtype.type(0), x.dtype.type(masked))
            added = bias_of_mask if extra is None else bias_of_mask + extra
        if causal:
            options["causal"] = "bottom-right"
        out = attend(q, k, v, mask=added, **options).swapaxes(1, 2).reshape(len(x), length, -1)
        return out if single else (out, np.stack([k, v]) if node.outputs[1] else None)

    return call


def _kept(mask: Array, batch: int, length: int, keys: int) -> Array:
    """A mask index of any form as bool, to broadcast to [batch, heads, length, keys]."""
    place = np.arange(keys)
    if mask.ndim == 1 and mask.shape[0] == batch:  # ends
        return place < mask[:, None, None, None]
    if mask.ndim == 1 and mask.shape[0] == 2 * batch:  # ends, then begins
        ends, begins = mask[:batch, None, None, None], mask[batch:, None, None, None]
        return (place < ends) & (place >= begins)
    if mask.ndim == 2 and mask.shape == (batch, keys):
        return mask[:, None, None] != 0
    if mask.ndim == 3 and mask.shape == (batch, length, keys):
        return mask[:, None] != 0
    raise ValueError(
        f"com.microsoft.Attention: mask_index must be [{batch}], [{2 * batch}], {[batch, keys]} or "
        f"{[batch, length, keys]}, got shape {mask.shape}"
    )


def _quantized_lstm(node: Node) -> Call:
    """An LSTM whose weights are bytes: W[D, I, 4 H] and R[D, H, 4 H], of scales and zero points for each direction or
    each column. The weights are widened once; x is not quantised, so that results are nearer to those of the network
    before its weights were."""
    form, wanted = read_form(node, "LSTM"), [bool(name) for name in node.outputs]
    fixed = [node.constant(i) for i in (1, 2, 3, 7, 8, 9, 10, 11)]
    known = all(
        value is not None or not node.has(i) for i, value in zip((1, 2, 3, 7, 8, 9, 10, 11), fixed, strict=True)
    )

    def widened(
        w: Array, r: Array, w_scale: Array, w_zero: Array, r_scale: Array, r_zero: Array
    ) -> tuple[Array, Array]:
        return _widened(w, w_scale, w_zero), _widened(r, r_scale, r_zero)

    ready: Any = None
    if known:
        w, r, b, p, *scales = fixed
        matrices = widened(w, r, *scales)
        ready = (*matrices, packed_weights(form, *matrices, b, p) if form.is_known() else None)
        node.release(1, 2, 8, 9, 10, 11)

    def call(x: Array, w: Array, r: Array, b: Array | None, lengths: Array | None, h0: Array | None, c0: Array | None,
             p: Array | None, w_scale: Array, w_zero: Array, r_scale: Array, r_zero: Array) -> Any:  # fmt: skip
        if lengths is not None:
            lengths = _core.checked_lengths(lengths, x.shape[1], x.shape[0], "DynamicQuantizeLSTM", "sequence_lens")
        wide_w, wide_r, packed = ready or (*widened(w, r, w_scale, w_zero, r_scale, r_zero), None)
        if form.is_known():
            packed = packed_weights(form, wide_w, wide_r, b, p) if packed is None else packed
            y, h, c = run_packed(form, packed, x, lengths, h0, c0)
        else:
            y, h, c = run_plain(form, wide_w, wide_r, b, p, x, lengths, h0, c0)
        return outputs(y, h, c, False, wanted)

    return call


def _widened(matrix: Array, scale: Array, zero: Array) -> Array:
    """[D, columns, rows] of floats, from bytes [D, rows, columns]."""
    scale, zero = (value.reshape(len(matrix), 1, -1).astype(np.float32) for value in (scale, zero))
    return np.ascontiguousarray(((matrix.astype(np.float32) - zero) * scale).swapaxes(1, 2))


MAKERS = {
    ("com.microsoft", "Attention"): _attention,
    ("com.microsoft", "DynamicQuantizeLSTM"): _quantized_lstm,
    ("com.microsoft", "EmbedLayerNormalization"): _embed_norm,
    ("com.microsoft", "SkipLayerNormalization"): _skip_norm,
    ("com.microsoft", "Gelu"): lambda node: fa.gelu,
}

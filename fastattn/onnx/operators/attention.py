"""Attention and RotaryEmbedding of ONNX, and attention that a graph writes out."""

import math
from typing import Any

import numpy as np
from onnx import TensorProto

import fastattn as fa
from fastattn import _core
from fastattn.onnx.graph import Array, Call, Node
from fastattn.onnx.operators.linear import matmul

_SOFTMAX_DOUBLE = TensorProto.DOUBLE


def split_heads(x: Array, heads: int) -> Array:
    """[B, L, heads * D] as [B, heads, L, D]."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def attend(q: Array, k: Array, v: Array, **options: Any) -> Any:
    """fa.attention of [B, H, L, D], in the layout that q has in memory: no copy of arrays [B, L, H, D] is made."""
    if q.strides[1] < q.strides[2]:
        result = fa.attention(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), layout="blhd", **options)
        if options.get("return_lse"):
            return result[0].swapaxes(1, 2), result[1].swapaxes(1, 2)
        return result.swapaxes(1, 2)
    return fa.attention(q, k, v, **options)


def keep_by_position(q_length: int, k_length: int, first: Any, causal: bool, left: int, right: int) -> Array:
    """Which keys each query may see; first: the position of query 0, [B or 1, 1, 1, 1]."""
    distance = np.arange(q_length)[:, None] + first - np.arange(k_length)
    keep = np.ones(distance.shape, bool)
    if causal:
        keep &= distance >= 0
    if left >= 0:
        keep &= distance <= left
    if right >= 0:
        keep &= -distance <= right
    return keep


def restricted(mask: Array | None, keep: Array, dtype: Any) -> Array:
    """A mask, bool or of numbers, that also excludes what `keep` does not keep."""
    if mask is None:
        return keep
    return mask & keep if mask.dtype == bool else np.where(keep, mask, dtype.type(-np.inf))


def _attention(node: Node) -> Call:
    causal, softcap = bool(node.get("is_causal", 0)), float(node.get("softcap", 0.0))
    left, right = int(node.get("left_window_size", -1)), int(node.get("right_window_size", -1))
    given_scale, heads, kv_heads = node.get("scale"), node.get("q_num_heads"), node.get("kv_num_heads")
    wide_softmax = node.get("softmax_precision") == _SOFTMAX_DOUBLE
    mode = node.get("qk_matmul_output_mode", 0) if len(node.outputs) > 3 and node.outputs[3] else None
    single = len(node.outputs) == 1
    if left < -1 or right < -1:
        raise ValueError(f"Attention: windows must be -1 or not negative, got {left} and {right}")

    def call(q: Array, k: Array, v: Array, mask: Array | None = None, past_k: Array | None = None,
             past_v: Array | None = None, nonpad: Array | None = None) -> Any:  # fmt: skip
        packed, dtype = q.ndim == 3, q.dtype
        if packed:
            q, k, v = split_heads(q, heads), split_heads(k, kv_heads), split_heads(v, kv_heads)
        q_length, past = q.shape[2], 0
        if past_k is not None:
            if past_v is None or nonpad is not None:
                raise ValueError("Attention: past_key must come with past_value and without nonpad_kv_seqlen")
            past = past_k.shape[2]
            k, v = np.concatenate([past_k, k], 2), np.concatenate([past_v, v], 2)
        present_k, present_v, k_length = k, v, k.shape[2]
        if wide_softmax:
            q, k = q.astype(np.float64), k.astype(np.float64)
        v = v.astype(q.dtype, copy=False)
        mask = _widened_mask(mask, k_length, q.dtype)
        first = past if nonpad is None else nonpad.reshape(-1) - q_length  # the position of query 0
        options: dict[str, Any] = {"softcap": softcap, "scale": given_scale, "mask": mask}
        if nonpad is not None:
            options["kv_lengths"] = nonpad.reshape(-1)
        if causal or left >= 0 or right >= 0:
            options["causal"], options["q_start"] = causal, first
            options["window"] = (None if left < 0 else left, None if right < 0 else right)
        scores = None
        if mode is None:
            out = attend(q, k, v, **options)
        else:
            out, lse = attend(q, k, v, return_lse=True, **options)
            if mode == 3:
                scores = _weights(q, k, lse, options).astype(dtype, copy=False)
            else:
                begin = np.reshape(first, (-1, 1, 1, 1))
                keep = keep_by_position(q_length, k_length, begin, causal, left, right)
                if nonpad is not None:
                    keep = keep & (np.arange(k_length) < nonpad.reshape(-1, 1, 1, 1))
                scores = _scores(q, k, given_scale, softcap if mode else 0.0).astype(dtype, copy=False)
                if mode == 2:
                    scores = scores + _as_numbers(restricted(mask, keep, dtype), dtype)
        out = out.astype(dtype, copy=False)
        if packed:
            out = out.swapaxes(1, 2).reshape(*out.shape[:1], q_length, -1)
        return out if single else (out, present_k, present_v, scores)[: len(node.outputs)]

    return call


def _widened_mask(mask: Array | None, length: int, dtype: Any) -> Array | None:
    """Of `length` keys: those that the mask leaves out are excluded; its numbers in the type of the queries."""
    if mask is None:
        return None
    if mask.dtype != bool:
        mask = mask.astype(dtype, copy=False)
    short = length - mask.shape[-1]
    if short <= 0:
        return mask
    rest = np.full((*mask.shape[:-1], short), False if mask.dtype == bool else -np.inf, mask.dtype)
    return np.concatenate([mask, rest], -1)


def _as_numbers(mask: Array, dtype: Any) -> Array:
    return np.where(mask, dtype.type(0), dtype.type(-np.inf)) if mask.dtype == bool else mask


def _weights(q: Array, k: Array, lse: Array, options: dict[str, Any]) -> Array:
    """The probabilities, in float32 at least."""
    wide = np.float64 if q.dtype == np.float64 else np.float32
    options = {
        n: x.astype(wide) if n == "mask" and x is not None and x.dtype != bool else x for n, x in options.items()
    }
    return fa.attention_weights(q.astype(wide, copy=False), k.astype(wide, copy=False), lse, **options)


def _scores(q: Array, k: Array, scale: float | None, softcap: float) -> Array:
    """What the output qk_matmul_output shows; the operator has a square root of the scale on each side."""
    root = q.dtype.type(math.sqrt(q.shape[-1] ** -0.5 if scale is None else scale))
    keys = np.repeat(k * root, q.shape[1] // max(1, k.shape[1]), 1)
    scores = matmul(q * root, keys.swapaxes(2, 3))
    return softcap * np.tanh(scores / softcap) if softcap else scores


def fused_attention(node: Node) -> Call:
    """softmax(scale q k^T + mask) v, as a graph writes it out.

    Inputs q, k (transposed, where the attribute says so), v, mask. The last step of the graph is a softmax: a row
    that is -inf throughout is NaN.
    """
    scale, transposed, axis = float(node.get("scale")), bool(node.get("transposed_keys")), int(node.get("axis"))
    zeros = bool(node.get("zeros"))  # the graph itself puts zeros where a row is NaN

    def call(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
        if transposed:
            k = k.swapaxes(-1, -2)
        if not (q.ndim == k.ndim == v.ndim == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2]) or (
            mask is not None and not _fits(mask.shape, (*q.shape[:3], k.shape[2]))
        ):
            return _written_out(q, k, v, mask, scale, axis, zeros)
        if mask is None or zeros:
            result: Array = attend(q, k, v, scale=scale, mask=mask)
            return result
        out, lse = attend(q, k, v, scale=scale, mask=mask, return_lse=True)
        empty = np.isneginf(lse)
        if empty.any():
            out[empty] = np.nan
        result = out
        return result

    return call


def _fits(shape: tuple[int, ...], scores: tuple[int, ...]) -> bool:
    """Whether a mask broadcasts to the scores, and they not to the mask."""
    return len(shape) <= 4 and all(n in (1, m) for n, m in zip(shape[::-1], scores[::-1], strict=False))


def _written_out(
    q: Array, k: Array, v: Array, mask: Array | None, scale: float, axis: int, zeros: bool
) -> Array:  # fmt: skip
    """For shapes that fa.attention does not take."""
    scores = matmul(q, k.swapaxes(-1, -2)) * q.dtype.type(scale)
    if mask is not None:
        scores = scores + mask
    weights = fa.softmax(scores, axis)
    return matmul(np.where(np.isnan(weights), q.dtype.type(0), weights) if zeros else weights, v)


def _rotary(node: Node) -> Call:
    interleaved, heads = bool(node.get("interleaved", 0)), int(node.get("num_heads", 0))
    size = int(node.get("rotary_embedding_dim", 0))

    def call(given: Array, cosine: Array, sine: Array, positions: Array | None = None) -> Array:
        x = split_heads(given, heads) if given.ndim == 3 else given
        if not x.size:
            return given
        batch, _, length, width = x.shape
        rotated = size or width
        half, wide = rotated // 2, np.float64 if x.dtype == np.float64 else np.float32
        if cosine.shape[-1] != half or sine.shape != cosine.shape:
            raise ValueError(
                f"RotaryEmbedding: cos_cache and sin_cache must have {half} columns, got shapes {cosine.shape} and "
                f"{sine.shape}"
            )
        cos, sin = (np.ascontiguousarray(t.reshape(-1, half), wide) for t in (cosine, sine))
        if positions is not None:
            rows = positions
            if rows.size and not 0 <= rows.min() <= rows.max() < len(cos):
                raise ValueError(f"RotaryEmbedding: position_ids must be in 0..{len(cos) - 1}")
        elif cosine.shape[:-1] == (batch, length):
            rows = np.arange(batch * length).reshape(batch, length)
        else:
            raise ValueError(f"RotaryEmbedding: caches must be {(batch, length, half)}, got {cosine.shape}")
        rows = np.ascontiguousarray(np.broadcast_to(rows.reshape(batch, 1, length), x.shape[:3]), np.int64)
        if interleaved:
            cos, sin = np.repeat(cos, 2, 1), np.repeat(sin, 2, 1)
            np.negative(sin[:, 0::2], sin[:, 0::2])
        y = _core.rope(x[..., :rotated], cos, sin, rows, interleaved, None, "RotaryEmbedding", "X")
        if rotated < width:
            y = np.concatenate([y, x[..., rotated:]], -1)
        result: Array = y if given.ndim == 4 else y.swapaxes(1, 2).reshape(given.shape)
        return result

    return call


MAKERS = {("", "Attention"): _attention, ("", "RotaryEmbedding"): _rotary, ("fastattn", "Attention"): fused_attention}

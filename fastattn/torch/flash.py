"""The functions of flash-attn 2, by its names and arguments, on CPU tensors.

Source: github.com/Dao-AILab/flash-attention.

Arrays are [batch, length, heads, head size]; `causal` and windows are aligned to the last key; -1 is a window without a
bound. `deterministic` and `num_splits` change nothing: results always have the same bits.
"""

from typing import Any

import torch
from torch import Tensor

from fastattn.torch.arrays import check_tensors
from fastattn.torch.attention import Window, attention
from fastattn.torch.varlen import attention_varlen

_NONE = (-1, -1)


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None,
                    causal: bool = False, window_size: tuple[int, int] = _NONE, softcap: float = 0.0,
                    alibi_slopes: Tensor | None = None, deterministic: bool = False,
                    return_attn_probs: bool = False) -> Any:  # fmt: skip
    """Attention of q[B, Lq, H, D] to k[B, Lk, Hk, D] and v[B, Lk, Hk, Dv], with gradients.

    return_attn_probs: (out, lse[B, H, Lq], None), the last being flash-attn's place for dropped probabilities.
    alibi_slopes [H]. Dropout takes its seed from torch's generator.
    """
    op = "flash_attn_func"
    check_tensors(op, q=q, k=k, v=v, alibi_slopes=alibi_slopes)
    result = attention(q, k, v, causal=_causal(causal), scale=softmax_scale, window=_window(op, window_size),
                       softcap=softcap, alibi_slopes=_slopes(op, q, alibi_slopes), layout="blhd",
                       **_dropout(dropout_p), return_lse=return_attn_probs)  # fmt: skip
    return (result[0], result[1].transpose(1, 2), None) if return_attn_probs else result


def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
                           max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, dropout_p: float = 0.0,
                           softmax_scale: float | None = None, causal: bool = False,
                           window_size: tuple[int, int] = _NONE, softcap: float = 0.0,
                           alibi_slopes: Tensor | None = None, deterministic: bool = False,
                           return_attn_probs: bool = False, block_table: Tensor | None = None) -> Any:  # fmt: skip
    """Attention within the sequences of a ragged batch, q[Tq, H, D], k[Tk, Hk, D], v[Tk, Hk, Dv], with gradients.

    max_seqlen_q and max_seqlen_k are not needed, and not read. return_attn_probs: (out, lse[H, Tq], None).
    Dropout takes its seed from torch's generator. Without block_table.
    """
    op = "flash_attn_varlen_func"
    check_tensors(op, q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, alibi_slopes=alibi_slopes)
    _refuse(op, block_table=block_table)
    result = attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, causal=_causal(causal), scale=softmax_scale,
                              window=_window(op, window_size), softcap=softcap,
                              alibi_slopes=_slopes(op, q, alibi_slopes), **_dropout(dropout_p),
                              return_lse=return_attn_probs)  # fmt: skip
    return (result[0], result[1].transpose(0, 1), None) if return_attn_probs else result


def flash_attn_with_kvcache(q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = None,
                            v: Tensor | None = None, rotary_cos: Tensor | None = None,
                            rotary_sin: Tensor | None = None, cache_seqlens: int | Tensor | None = None,
                            cache_batch_idx: Tensor | None = None, cache_leftpad: Tensor | None = None,
                            block_table: Tensor | None = None, softmax_scale: float | None = None,
                            causal: bool = False, window_size: tuple[int, int] = _NONE, softcap: float = 0.0,
                            rotary_interleaved: bool = True, alibi_slopes: Tensor | None = None, num_splits: int = 0,
                            return_softmax_lse: bool = False) -> Any:  # fmt: skip
    """Attention of new queries q[B, Lq, H, D] to a cache, k_cache[B, room, Hk, D] and v_cache, without gradients.

    k and v[B, new, Hk, D] are written into the cache behind the first cache_seqlens[B] (or one number) tokens of each
    sequence, and attended to. cache_batch_idx[B]: the place of each sequence in the cache. block_table[B, pages]: the
    cache is [pages, page size, Hk, D], and its pages are gathered for the call, once each call. return_softmax_lse:
    (out, lse[B, H, Lq]). Without rotary positions and cache_leftpad.
    """
    op = "flash_attn_with_kvcache"
    check_tensors(op, q=q, k_cache=k_cache, v_cache=v_cache, k=k, v=v, cache_batch_idx=cache_batch_idx,
                  block_table=block_table, alibi_slopes=alibi_slopes)  # fmt: skip
    _refuse(op, rotary_cos=rotary_cos, rotary_sin=rotary_sin, cache_leftpad=cache_leftpad)
    if (k is None) != (v is None):
        raise ValueError(f"{op}: k and v must be given both or none, got only {'v' if k is None else 'k'}")
    if block_table is not None and cache_batch_idx is not None:
        raise ValueError(f"{op}: cache_batch_idx must be None with block_table, got both")
    batch = q.shape[0]
    room = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    lengths = _lengths(op, cache_seqlens, batch, room)
    places = torch.arange(batch) if cache_batch_idx is None else cache_batch_idx.long()
    with torch.no_grad():
        if k is not None and v is not None:
            longest = int(lengths.max()) if batch else 0
            if longest + k.shape[1] > room:
                raise ValueError(
                    f"{op}: k must fit into the cache, got {k.shape[1]} tokens behind {longest}, with room for {room}"
                )
            positions = lengths[:, None] + torch.arange(k.shape[1])
            for cache, new in ((k_cache, k), (v_cache, v)):
                if block_table is None:
                    cache[places[:, None], positions] = new
                else:
                    size = cache.shape[1]
                    cache[block_table.long().gather(1, positions // size), positions % size] = new
            lengths = lengths + k.shape[1]
        if block_table is not None:
            k_cache, v_cache = (cache[block_table.long()].flatten(1, 2) for cache in (k_cache, v_cache))
        elif cache_batch_idx is not None:
            k_cache, v_cache = k_cache[places], v_cache[places]
        result = attention(q, k_cache[:batch], v_cache[:batch], causal=_causal(causal), scale=softmax_scale,
                           window=_window(op, window_size), softcap=softcap,
                           alibi_slopes=_slopes(op, q, alibi_slopes), kv_lengths=lengths, layout="blhd",
                           return_lse=return_softmax_lse)  # fmt: skip
    return (result[0], result[1].transpose(1, 2)) if return_softmax_lse else result


def _lengths(op: str, given: int | Tensor | None, batch: int, room: int) -> Tensor:
    """Of what is in the cache, a copy: a caller may go on counting in its own."""
    if given is None:
        return torch.full((batch,), room)
    lengths = torch.full((batch,), given) if isinstance(given, int) else given.detach().clone().long()
    if lengths.shape != (batch,):
        raise ValueError(f"{op}: cache_seqlens must have shape {(batch,)}, got {tuple(lengths.shape)}")
    if batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= room:
        raise ValueError(f"{op}: cache_seqlens must lie in 0..{room}, got {lengths.tolist()}")
    return lengths


def _refuse(op: str, **arguments: Any) -> None:
    """What flash-attn has and fastattn has not."""
    for name, value in arguments.items():
        if isinstance(value, Tensor) or value:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else value
            raise NotImplementedError(f"{op}: {name} is not supported, got {got}")


def _dropout(probability: float) -> dict[str, Any]:
    """Another seed for each call, by torch.manual_seed."""
    return {"dropout_p": probability, "seed": int(torch.randint(2**62, ()))} if probability else {}


def _causal(causal: bool) -> bool | str:
    return "bottom-right" if causal else False


def _window(op: str, sizes: tuple[int, int]) -> Window:
    if len(sizes) != 2:
        raise ValueError(f"{op}: window_size must be a pair, got {sizes}")
    left, right = (None if size < 0 else size for size in sizes)
    return None if left is right is None else (left, right)


def _slopes(op: str, q: Tensor, slopes: Tensor | None) -> Tensor | None:
    """flash-attn's are float32, ours of the type of q."""
    if slopes is not None and slopes.dim() != 1:
        raise NotImplementedError(f"{op}: alibi_slopes must have shape (heads,), got {tuple(slopes.shape)}")
    return None if slopes is None else slopes.to(q.dtype)

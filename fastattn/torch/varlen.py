"""Attention of ragged batches of tensors, with gradients."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastattn as fa
from fastattn.torch.arrays import check_tensors, is_direct, needs_gradient, tensor
from fastattn.torch.attention import (
    NUMBERS,
    OPTIONAL,
    Window,
    arrays_of,
    decoded,
    encoded,
    gradients_of,
    kept,
    positions,
    register,
)
from fastattn.torch.library import call, real

_OP = "attention_varlen"


class Options(NamedTuple):
    """What a call has beside q, k, v and the arrays that have gradients."""

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    causal: bool | str
    scale: float | None
    window: Window
    softcap: float
    q_start: int | Tensor | None
    dropout_p: float
    seed: int


def attention_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, *,
                     mask: Tensor | None = None, causal: bool | str = False, scale: float | None = None,
                     window: Window = None, softcap: float = 0.0, alibi_slopes: Tensor | None = None,
                     sinks: Tensor | None = None, q_start: int | Tensor | None = None, bias: Tensor | None = None,
                     dropout_p: float = 0.0, seed: int = 0, return_lse: bool = False) -> Any:  # fmt: skip
    """fastattn.attention_varlen on tensors: the same arguments, values and errors, and tensors as results.

    q, k, v, a float mask, bias, alibi_slopes and sinks have gradients; lse has none.
    """
    options = Options(cu_seqlens_q, cu_seqlens_k, causal, scale, window, softcap, q_start, dropout_p, seed)
    given = q, k, v, mask, bias, alibi_slopes, sinks
    save = needs_gradient(*given)
    if not is_direct(q):
        out, lse = _dispatched(given, options, save)
    elif save:
        out, lse = _Varlen.apply(*given, options)
    else:
        arrays, keywords = _arguments(_OP, *given, options=options)
        out, lse = map(tensor, fa.attention_varlen(*arrays, **keywords, return_lse=True))
    return (out, lse) if return_lse else out


def _arguments(op: str, q: Tensor, k: Tensor, v: Tensor, *optional_arrays: Tensor | None,
               options: Options) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """Those of fastattn.attention_varlen."""
    arrays = arrays_of(op, q=q, k=k, v=v, cu_seqlens_q=options.cu_seqlens_q, cu_seqlens_k=options.cu_seqlens_k)
    named = dict(zip(OPTIONAL, arrays_of(op, **dict(zip(OPTIONAL, optional_arrays, strict=True))), strict=True))
    numbers = options._asdict()
    del numbers["cu_seqlens_q"], numbers["cu_seqlens_k"]
    return arrays, named | numbers | {"q_start": positions(options.q_start, op)}


class _Varlen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *tensors, options = given
        arrays, keywords = _arguments(_OP, *tensors, options=options)
        return kept(ctx, fa.attention_varlen_forward(*arrays, **keywords), *tensors)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return *gradients_of(_OP, fa.attention_varlen_backward, ctx, dout), None


# ---- the registered operation ----

_OPTIONS = f"Tensor cu_seqlens_q, Tensor cu_seqlens_k, {NUMBERS}"


def _dispatched(given: tuple[Tensor | None, ...], options: Options, save: bool) -> tuple[Tensor, Tensor]:
    offsets_q, offsets_k = options[:2]
    numbers: tuple[Any, ...] = options[2:]
    names = ("q", "k", "v", *OPTIONAL)
    check_tensors(_OP, **dict(zip(names, given, strict=True)), cu_seqlens_q=offsets_q, cu_seqlens_k=offsets_k)
    out, lse, _ = call(_OP, *given, offsets_q, offsets_k, *encoded(_OP, *numbers), save)
    return out, lse


def _given(op: str, q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _arguments(op, q, k, v, *given[:4], options=Options(*given[4:6], *decoded(*given[6:])))


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    tokens, heads = q.shape[:2]
    state = q.new_empty((2, heads, tokens) if rest[-1] else (0,), dtype=real(q.dtype))
    lse = q.new_empty(heads, tokens, dtype=real(q.dtype)).t()
    return q.new_empty(tokens, heads, v.shape[2]), lse, state


register(_OP, _OPTIONS, _given, _fake, fa.SavedAttentionVarlen.of)

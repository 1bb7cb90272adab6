"""Attention of ragged batches of tensors, with gradients."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastattn as fa
from fastattn.torch.arrays import array, check_tensors, is_direct, needs_gradient, tensor
from fastattn.torch.attention import (
    Window,
    arrays_of,
    decoded_causal,
    decoded_window,
    encoded_causal,
    encoded_window,
    gradients_of,
    kept,
)
from fastattn.torch.library import autocast, call, define, differentiate, empty, first_input, real

_OP = "attention_varlen"


class Options(NamedTuple):
    """What a call has beside q, k, v and the arrays that have gradients."""

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    causal: bool | str
    scale: float | None
    window: Window
    softcap: float


def attention_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, *,
                     mask: Tensor | None = None, causal: bool | str = False, scale: float | None = None,
                     window: Window = None, softcap: float = 0.0, alibi_slopes: Tensor | None = None,
                     sinks: Tensor | None = None, return_lse: bool = False) -> Any:  # fmt: skip
    """fastattn.attention_varlen on tensors: the same arguments, values and errors, and tensors as results.

    q, k, v, a float mask, alibi_slopes and sinks have gradients; lse has none.
    """
    options = Options(cu_seqlens_q, cu_seqlens_k, causal, scale, window, softcap)
    given = q, k, v, mask, alibi_slopes, sinks
    save = needs_gradient(*given)
    if not is_direct(q):
        out, lse = _dispatched(given, options, save)
    elif save:
        out, lse = _Varlen.apply(*given, options)
    else:
        arrays, keywords = _arguments(_OP, *given, options)
        out, lse = map(tensor, fa.attention_varlen(*arrays, **keywords, return_lse=True))
    return (out, lse) if return_lse else out


def _arguments(op: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, alibi_slopes: Tensor | None,
               sinks: Tensor | None, options: Options) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """Those of fastattn.attention_varlen."""
    offsets_q, offsets_k, causal, scale, window, softcap = options
    arrays = arrays_of(op, q=q, k=k, v=v, cu_seqlens_q=offsets_q, cu_seqlens_k=offsets_k)
    keywords = {
        "mask": array(mask, op, "mask"),
        "causal": causal,
        "scale": scale,
        "window": window,
        "softcap": softcap,
        "alibi_slopes": array(alibi_slopes, op, "alibi_slopes"),
        "sinks": array(sinks, op, "sinks"),
    }
    return arrays, keywords


class _Varlen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, alibi_slopes: Tensor | None,
                sinks: Tensor | None, options: Options) -> tuple[Tensor, Tensor]:  # fmt: skip
        arrays, keywords = _arguments(_OP, q, k, v, mask, alibi_slopes, sinks, options)
        return kept(ctx, fa.attention_varlen_forward(*arrays, **keywords), q, k, v, mask, alibi_slopes, sinks)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return *gradients_of(_OP, fa.attention_varlen_backward, ctx, dout), None


# ---- the registered operation ----

_ARRAYS = "Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? alibi_slopes, Tensor? sinks"
_OPTIONS = "Tensor cu_seqlens_q, Tensor cu_seqlens_k, str causal, float? scale, int[] window, float softcap"


def _dispatched(given: tuple[Tensor | None, ...], options: Options, save: bool) -> tuple[Tensor, Tensor]:
    offsets_q, offsets_k, causal, scale, window, softcap = options
    names = ("q", "k", "v", "mask", "alibi_slopes", "sinks")
    check_tensors(_OP, **dict(zip(names, given, strict=True)), cu_seqlens_q=offsets_q, cu_seqlens_k=offsets_k)
    encoded = encoded_causal(causal), scale, encoded_window(window), float(softcap)
    out, lse, _ = call(_OP, *given, offsets_q, offsets_k, *encoded, save)
    return out, lse


def _decoded(offsets_q: Tensor, offsets_k: Tensor, causal: str, scale: float | None, window: list[int],
             softcap: float) -> Options:  # fmt: skip
    return Options(offsets_q, offsets_k, decoded_causal(causal), scale, decoded_window(window), softcap)


def _kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
            *rest: Any) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    *options, save = rest
    arrays, keywords = _arguments(_OP, q, k, v, mask, alibi_slopes, sinks, _decoded(*options))
    if save:
        out, saved = fa.attention_varlen_forward(*arrays, **keywords)
        return tensor(out), tensor(saved.lse), tensor(saved.state)
    out, lse = fa.attention_varlen(*arrays, **keywords, return_lse=True)
    return tensor(out), tensor(lse), q.new_empty(0, dtype=real(q.dtype))


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    tokens, heads = q.shape[:2]
    state = q.new_empty((2, heads, tokens) if rest[-1] else (0,), dtype=real(q.dtype))
    lse = q.new_empty(heads, tokens, dtype=real(q.dtype)).t()
    return q.new_empty(tokens, heads, v.shape[2]), lse, state


def _backward_kernel(dout: Tensor, out: Tensor, lse: Tensor, state: Tensor, q: Tensor, k: Tensor, v: Tensor,
                     mask: Tensor | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
                     *rest: Any) -> tuple[Tensor, ...]:  # fmt: skip
    op = f"{_OP}_backward"
    *options, wanted = rest
    arrays, keywords = _arguments(op, q, k, v, mask, alibi_slopes, sinks, _decoded(*options))
    results = dict(zip(("out", "lse", "state"), arrays_of(op, out=out, lse=lse, state=state), strict=True))
    given = dict(zip(("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k"), arrays, strict=True))
    saved = fa.SavedAttentionVarlen.of(**given, **results, **keywords)
    gradients = fa.attention_varlen_backward(array(dout, op, "dout"), saved, gradients=wanted)
    return tuple(empty(q) if x is None else tensor(x) for x in gradients)


def _backward_fake(dout: Tensor, out: Tensor, lse: Tensor, state: Tensor, q: Tensor, k: Tensor, v: Tensor,
                   mask: Tensor | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
                   *rest: Any) -> tuple[Tensor, ...]:  # fmt: skip
    wanted = rest[-1]
    others = (("mask", mask), ("sinks", sinks), ("alibi_slopes", alibi_slopes))
    given = [empty(q) if x is None or name not in wanted else x.new_empty(x.shape) for name, x in others]
    return (*(x.new_empty(x.shape) for x in (q, k, v)), *given)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arrays, causal, scale, window, softcap, _ = inputs
    out, lse, state = output
    ctx.save_for_backward(out, lse, state, *arrays)
    ctx.options = causal, scale, window, softcap
    ctx.mark_non_differentiable(lse, state)


def _backward(ctx: Any, dout: Tensor, *_: Any) -> tuple[Any, ...]:
    needed = ctx.needs_input_grad[first_input(ctx) :]
    wanted = [name for name, index in (("mask", 3), ("alibi_slopes", 4), ("sinks", 5)) if needed[index]]
    dq, dk, dv, dmask, dsinks, dslopes = call(f"{_OP}_backward", dout, *ctx.saved_tensors, *ctx.options, wanted)
    others = (dmask, needed[3]), (dslopes, needed[4]), (dsinks, needed[5])
    return (dq, dk, dv, *(x if wanted else None for x, wanted in others), *(None,) * 7)


define(f"{_OP}({_ARRAYS}, {_OPTIONS}, bool save) -> (Tensor, Tensor, Tensor)", _kernel, _fake)
define(
    f"{_OP}_backward(Tensor dout, Tensor out, Tensor lse, Tensor state, {_ARRAYS}, {_OPTIONS}, str[] gradients)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)
differentiate(_OP, _setup, _backward)
autocast(_OP)

"""Attention on tensors, with gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastattn as fa
from fastattn.torch.arrays import array, check_tensors, is_direct, needs_gradient, optional, tensor
from fastattn.torch.library import autocast, call, define, differentiate, empty, first_derivative, first_input, real

Window = tuple[int | None, int | None] | None


class Options(NamedTuple):
    """What a call has beside q, k, v and the arrays that have gradients."""

    causal: bool | str
    scale: float | None
    window: Window
    softcap: float
    q_lengths: Tensor | None
    kv_lengths: Tensor | None
    layout: str

    def keywords(self, op: str, mask: Any, alibi_slopes: Any, sinks: Any) -> dict[str, Any]:
        """The arguments of fastattn.attention but q, k and v."""
        return {
            "mask": array(mask, op, "mask"),
            "causal": self.causal,
            "scale": self.scale,
            "window": self.window,
            "softcap": self.softcap,
            "alibi_slopes": array(alibi_slopes, op, "alibi_slopes"),
            "sinks": array(sinks, op, "sinks"),
            "q_lengths": array(self.q_lengths, op, "q_lengths"),
            "kv_lengths": array(self.kv_lengths, op, "kv_lengths"),
            "layout": self.layout,
        }


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool | str = False,
              scale: float | None = None, window: Window = None, softcap: float = 0.0,
              alibi_slopes: Tensor | None = None, sinks: Tensor | None = None, q_lengths: Tensor | None = None,
              kv_lengths: Tensor | None = None, layout: str = "bhld",
              return_lse: bool = False) -> Any:  # fmt: skip
    """fastattn.attention on tensors: the same arguments, values and errors, and tensors as results.

    q, k, v, a float mask, alibi_slopes and sinks have gradients; lse has none.
    """
    options = Options(causal, scale, window, softcap, q_lengths, kv_lengths, layout)
    if not is_direct(q):
        return _dispatched(q, k, v, mask, alibi_slopes, sinks, return_lse, options)
    if needs_gradient(q, k, v, mask, alibi_slopes, sinks):
        out, lse = _Attention.apply(q, k, v, mask, alibi_slopes, sinks, options)
        return (out, lse) if return_lse else out
    arrays = array(q, "attention", "q"), array(k, "attention", "k"), array(v, "attention", "v")
    if mask is alibi_slopes is sinks is q_lengths is kv_lengths is None:  # a third of a tiny call
        result = fa.attention(*arrays, causal=causal, scale=scale, window=window, softcap=softcap, layout=layout,
                              return_lse=return_lse)  # fmt: skip
    else:
        result = fa.attention(*arrays, **options.keywords("attention", mask, alibi_slopes, sinks),
                              return_lse=return_lse)  # fmt: skip
    return tuple(map(tensor, result)) if return_lse else tensor(result)


def arrays_of(op: str, **tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(array(x, op, name) for name, x in tensors.items())


class _Attention(torch.autograd.Function):
    """Without the dispatcher, which takes longer than a small call."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, alibi_slopes: Tensor | None,
                sinks: Tensor | None, options: Options) -> tuple[Tensor, Tensor]:  # fmt: skip
        keywords = options.keywords("attention", mask, alibi_slopes, sinks)
        result = fa.attention_forward(*arrays_of("attention", q=q, k=k, v=v), **keywords)
        return kept(ctx, result, q, k, v, mask, alibi_slopes, sinks)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return *gradients_of("attention", fa.attention_backward, ctx, dout), None


def kept(ctx: Any, result: tuple[Any, Any], *arguments: Tensor | None) -> tuple[Tensor, Tensor]:
    """out and lse of a forward call, and in ctx what backward needs: saved, and the tensors.

    An argument or result that is changed before the backward call is found by its version.
    """
    array_of_out, ctx.saved = result
    out, lse = tensor(array_of_out), tensor(ctx.saved.lse)
    ctx.save_for_backward(*arguments, out)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    return out, lse


_OPTIONAL = ("mask", "alibi_slopes", "sinks")


def gradients_of(name: str, backward: Callable[..., Any], ctx: Any, dout: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of q, k, v, mask, alibi_slopes and sinks."""
    made_of = ctx.saved_tensors
    if dout is None:
        return (None,) * 6
    names = [name for name, wanted in zip(_OPTIONAL, ctx.needs_input_grad[3:6], strict=True) if wanted]
    gradients = backward(array(dout, f"{name}_backward", "dout"), ctx.saved, gradients=names)
    dq, dk, dv, dmask, dsinks, dslopes = map(optional, gradients)
    return first_derivative(name, (dq, dk, dv, dmask, dslopes, dsinks), dout, *made_of)


# ---- the registered operation ----

_OPTIONS = "str causal, float? scale, int[] window, float softcap, Tensor? q_lengths, Tensor? kv_lengths, str layout"
_ARRAYS = "Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? alibi_slopes, Tensor? sinks"
_UNBOUNDED = -1  # in a window: a side without a bound


def _dispatched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, alibi_slopes: Tensor | None,
                sinks: Tensor | None, return_lse: bool, options: Options) -> Any:  # fmt: skip
    check_tensors("attention", q=q, k=k, v=v, mask=mask, alibi_slopes=alibi_slopes, sinks=sinks,
                  q_lengths=options.q_lengths, kv_lengths=options.kv_lengths)  # fmt: skip
    save = needs_gradient(q, k, v, mask, alibi_slopes, sinks)
    out, lse, _ = call(
        "attention", q, k, v, mask, alibi_slopes, sinks, encoded_causal(options.causal), options.scale,
        encoded_window(options.window), float(options.softcap), options.q_lengths, options.kv_lengths, options.layout,
        save,
    )  # fmt: skip
    return (out, lse) if return_lse else out


# Schemas have neither unions nor lists of optional numbers.


def encoded_causal(causal: bool | str) -> str:
    return "" if causal is False else "true" if causal is True else causal


def decoded_causal(causal: str) -> bool | str:
    return {"": False, "true": True}.get(causal, causal)


def encoded_window(window: Window) -> list[int]:
    return [] if window is None else [_UNBOUNDED if size is None else size for size in window]


def decoded_window(window: list[int]) -> Window:
    sides: Any = tuple(None if size == _UNBOUNDED else size for size in window)
    return sides or None


def _options(causal: str, scale: float | None, window: list[int], softcap: float, q_lengths: Tensor | None,
             kv_lengths: Tensor | None, layout: str) -> Options:  # fmt: skip
    return Options(
        decoded_causal(causal), scale, decoded_window(window), softcap, q_lengths, kv_lengths, layout
    )  # fmt: skip


def _kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
            *rest: Any) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    *options, save = rest
    keywords = _options(*options).keywords("attention", mask, alibi_slopes, sinks)
    arrays = arrays_of("attention", q=q, k=k, v=v)
    if save:
        out, saved = fa.attention_forward(*arrays, **keywords)
        return tensor(out), tensor(saved.lse), tensor(saved.state)
    out, lse = fa.attention(*arrays, **keywords, return_lse=True)
    return tensor(out), tensor(lse), q.new_empty(0, dtype=real(q.dtype))


def _fake(q: Tensor, k: Tensor, v: Tensor, mask: Any, alibi_slopes: Any, sinks: Any,
          *rest: Any) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    *_, layout, save = rest
    batch, first, second = q.shape[:3]
    heads, length = (second, first) if layout == "blhd" else (first, second)
    lse = q.new_empty(batch, heads, length, dtype=real(q.dtype))
    state = q.new_empty((2, batch, heads, length) if save else (0,), dtype=real(q.dtype))
    return q.new_empty(*q.shape[:3], v.shape[3]), lse.transpose(1, 2) if layout == "blhd" else lse, state


def _backward_kernel(dout: Tensor, out: Tensor, lse: Tensor, state: Tensor, q: Tensor, k: Tensor, v: Tensor,
                     mask: Tensor | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
                     *rest: Any) -> tuple[Tensor, ...]:  # fmt: skip
    op = "attention_backward"
    *options, wanted = rest
    keywords = _options(*options).keywords(op, mask, alibi_slopes, sinks)
    names = ("q", "k", "v", "out", "lse", "state")
    arrays = dict(zip(names, (array(x, op, n) for x, n in zip((q, k, v, out, lse, state), names, strict=True)),
                      strict=True))  # fmt: skip
    saved = fa.SavedAttention.of(**arrays, **keywords)
    gradients = fa.attention_backward(array(dout, op, "dout"), saved, gradients=wanted)
    return tuple(empty(q) if x is None else tensor(x) for x in gradients)


def _backward_fake(dout: Tensor, out: Tensor, lse: Tensor, state: Tensor, q: Tensor, k: Tensor, v: Tensor,
                   mask: Tensor | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
                   *rest: Any) -> tuple[Tensor, ...]:  # fmt: skip
    wanted = rest[-1]
    others = (("mask", mask), ("sinks", sinks), ("alibi_slopes", alibi_slopes))
    given = [empty(q) if x is None or name not in wanted else x.new_empty(x.shape) for name, x in others]
    return (*(x.new_empty(x.shape) for x in (q, k, v)), *given)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arrays, causal, scale, window, softcap, q_lengths, kv_lengths, layout, _ = inputs
    out, lse, state = output
    ctx.save_for_backward(out, lse, state, *arrays, q_lengths, kv_lengths)
    ctx.options = causal, scale, window, softcap, layout
    ctx.mark_non_differentiable(lse, state)


def _backward(ctx: Any, dout: Tensor, *_: Any) -> tuple[Any, ...]:
    *arrays, q_lengths, kv_lengths = ctx.saved_tensors
    causal, scale, window, softcap, layout = ctx.options
    needed = ctx.needs_input_grad[first_input(ctx) :]
    wanted = [name for name, index in (("mask", 3), ("alibi_slopes", 4), ("sinks", 5)) if needed[index]]
    dq, dk, dv, dmask, dsinks, dslopes = call(
        "attention_backward", dout, *arrays, causal, scale, window, softcap, q_lengths, kv_lengths, layout, wanted
    )
    others = (dmask, needed[3]), (dslopes, needed[4]), (dsinks, needed[5])
    return (dq, dk, dv, *(x if wanted else None for x, wanted in others), *(None,) * 8)


define(f"attention({_ARRAYS}, {_OPTIONS}, bool save) -> (Tensor, Tensor, Tensor)", _kernel, _fake)
define(
    f"attention_backward(Tensor dout, Tensor out, Tensor lse, Tensor state, {_ARRAYS}, {_OPTIONS}, str[] gradients)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)
differentiate("attention", _setup, _backward)
autocast("attention")


# ---- torch's own signature ----

TORCH_ATTENTION = F.scaled_dot_product_attention
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                                 dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                                 enable_gqa: bool = False) -> Tensor:  # fmt: skip
    """torch.nn.functional.scaled_dot_product_attention, computed by fastattn.

    torch's own function serves what fastattn has not: dropout, other devices and types, nested tensors, heads and
    batches that broadcast, and calls that it refuses.
    """
    if not _serves(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa):
        return TORCH_ATTENTION(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal,
                               scale=scale, enable_gqa=enable_gqa)  # fmt: skip
    causal = "top-left" if is_causal else False
    if query.dim() == 4:
        return attention(query, key, value, mask=attn_mask, causal=causal, scale=scale)
    lead = query.shape[:-2]
    if attn_mask is not None and attn_mask.dim() > 2:
        attn_mask = attn_mask.expand(*lead, *attn_mask.shape[-2:]).reshape(-1, 1, *attn_mask.shape[-2:])
    q, k, v = (x.reshape(-1, 1, *x.shape[-2:]) for x in (query, key, value))
    return attention(q, k, v, mask=attn_mask, causal=causal, scale=scale).reshape(*lead, *query.shape[-2:-1], -1)


def _serves(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float, is_causal: bool,
            enable_gqa: bool) -> bool:  # fmt: skip
    """Whether torch would accept the call and fastattn has all of it."""
    if dropout_p or q.dtype not in _TYPES or not q.dtype == k.dtype == v.dtype:
        return False
    if mask is None and type(q) is type(k) is type(v) is Tensor and q.is_cpu and k.is_cpu and v.is_cpu:
        shape = q.shape  # the ordinary call, whose tests are a part of a tiny one's time
        if len(shape) == 4 and shape == k.shape == v.shape and shape[3]:
            return q.layout is k.layout is v.layout is torch.strided and not q.is_nested
    if any(x.device.type != "cpu" or x.layout is not torch.strided or x.is_nested for x in (q, k, v)):
        return False
    if not (q.dim() == k.dim() == v.dim() >= 3) or q.shape[-1] != k.shape[-1] or 0 in (q.shape[-1], v.shape[-1]):
        return False
    if k.shape[:-1] != v.shape[:-1]:
        return False
    grouped = enable_gqa and q.dim() == 4 and q.shape[0] == k.shape[0] and k.shape[1] and not q.shape[1] % k.shape[1]
    if not grouped and q.shape[:-2] != k.shape[:-2]:
        return False
    if mask is None:
        return True
    return (
        not is_causal
        and mask.dtype in (torch.bool, q.dtype)
        and mask.device.type == "cpu"
        and mask.dim() <= q.dim()
        and all(m in (1, n) for m, n in zip(reversed(mask.shape), (k.shape[-2], *reversed(q.shape[:-1])), strict=False))
    )

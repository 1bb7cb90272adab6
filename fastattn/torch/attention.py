"""Attention on tensors, with gradients."""

from collections.abc import Callable, Sequence
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
    q_start: int | Tensor | None
    dropout_p: float
    seed: int
    q_lengths: Tensor | None
    kv_lengths: Tensor | None
    layout: str

    def keywords(self, op: str, mask: Any, bias: Any, alibi_slopes: Any, sinks: Any) -> dict[str, Any]:
        """The arguments of fastattn.attention but q, k and v."""
        return {
            "mask": array(mask, op, "mask"),
            "causal": self.causal,
            "scale": self.scale,
            "window": self.window,
            "softcap": self.softcap,
            "alibi_slopes": array(alibi_slopes, op, "alibi_slopes"),
            "sinks": array(sinks, op, "sinks"),
            "q_start": positions(self.q_start, op),
            "bias": array(bias, op, "bias"),
            "dropout_p": self.dropout_p,
            "seed": self.seed,
            "q_lengths": array(self.q_lengths, op, "q_lengths"),
            "kv_lengths": array(self.kv_lengths, op, "kv_lengths"),
            "layout": self.layout,
        }


def positions(q_start: int | Tensor | None, op: str) -> Any:
    """q_start for fastattn: a number as it is."""
    return array(q_start, op, "q_start") if isinstance(q_start, Tensor) else q_start


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool | str = False,
              scale: float | None = None, window: Window = None, softcap: float = 0.0,
              alibi_slopes: Tensor | None = None, sinks: Tensor | None = None, q_start: int | Tensor | None = None,
              bias: Tensor | None = None, dropout_p: float = 0.0, seed: int = 0, q_lengths: Tensor | None = None,
              kv_lengths: Tensor | None = None, layout: str = "bhld",
              return_lse: bool = False) -> Any:  # fmt: skip
    """fastattn.attention on tensors: the same arguments, values and errors, and tensors as results.

    q, k, v, a float mask, bias, alibi_slopes and sinks have gradients; lse has none.
    """
    options = Options(causal, scale, window, softcap, q_start, dropout_p, seed, q_lengths, kv_lengths, layout)
    optional_arrays = mask, bias, alibi_slopes, sinks
    if not is_direct(q):
        return _dispatched(q, k, v, optional_arrays, return_lse, options)
    if needs_gradient(q, k, v, *optional_arrays):
        out, lse = _Attention.apply(q, k, v, *optional_arrays, options)
        return (out, lse) if return_lse else out
    arrays = array(q, "attention", "q"), array(k, "attention", "k"), array(v, "attention", "v")
    if mask is bias is alibi_slopes is sinks is q_start is q_lengths is kv_lengths is None and not dropout_p:
        # A third of a tiny call less.
        result = fa.attention(*arrays, causal=causal, scale=scale, window=window, softcap=softcap, layout=layout,
                              return_lse=return_lse)  # fmt: skip
    else:
        result = fa.attention(*arrays, **options.keywords("attention", *optional_arrays), return_lse=return_lse)
    return tuple(map(tensor, result)) if return_lse else tensor(result)


def arrays_of(op: str, **tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(array(x, op, name) for name, x in tensors.items())


class _Attention(torch.autograd.Function):
    """Without the dispatcher, which takes longer than a small call."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None,
                alibi_slopes: Tensor | None, sinks: Tensor | None,
                options: Options) -> tuple[Tensor, Tensor]:  # fmt: skip
        keywords = options.keywords("attention", mask, bias, alibi_slopes, sinks)
        result = fa.attention_forward(*arrays_of("attention", q=q, k=k, v=v), **keywords)
        return kept(ctx, result, q, k, v, mask, bias, alibi_slopes, sinks)

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


OPTIONAL = ("mask", "bias", "alibi_slopes", "sinks")  # after q, k, v among the arguments that have gradients


def wanted_names(needed: Sequence[bool]) -> list[str]:
    """Of the optional arrays whose gradients are needed; needed: of q, k, v and these."""
    return [name for name, wanted in zip(OPTIONAL, needed[3:7], strict=True) if wanted]


def in_order(names: Sequence[str], gradients: Sequence[Any]) -> tuple[Any, ...]:
    """dq, dk, dv and the gradients of the optional arrays, from those that fastattn gives; None for what has none."""
    dq, dk, dv, dmask, dsinks, dslopes = gradients
    of = {"mask": dmask, "bias": dmask, "alibi_slopes": dslopes, "sinks": dsinks}
    return dq, dk, dv, *(of[name] if name in names else None for name in OPTIONAL)


def gradients_of(name: str, backward: Callable[..., Any], ctx: Any, dout: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of q, k, v and the optional arrays."""
    made_of = ctx.saved_tensors
    if dout is None:
        return (None,) * (3 + len(OPTIONAL))
    names = wanted_names(ctx.needs_input_grad)
    gradients = backward(array(dout, f"{name}_backward", "dout"), ctx.saved, gradients=names)
    return first_derivative(name, in_order(names, [optional(x) for x in gradients]), dout, *made_of)


# ---- the registered operation ----

NUMBERS = "str causal, float? scale, int[] window, float softcap, Tensor? q_start, float dropout_p, SymInt seed"
ARRAYS = "Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? bias, Tensor? alibi_slopes, Tensor? sinks"
_OPTIONS = f"{NUMBERS}, Tensor? q_lengths, Tensor? kv_lengths, str layout"
_UNBOUNDED = -1  # in a window: a side without a bound


def _dispatched(q: Tensor, k: Tensor, v: Tensor, optional_arrays: tuple[Tensor | None, ...], return_lse: bool,
                options: Options) -> Any:  # fmt: skip
    named = dict(zip(OPTIONAL, optional_arrays, strict=True))
    check_tensors("attention", q=q, k=k, v=v, **named, q_lengths=options.q_lengths, kv_lengths=options.kv_lengths)
    save = needs_gradient(q, k, v, *optional_arrays)
    numbers = encoded("attention", *options[:7])
    out, lse, _ = call("attention", q, k, v, *optional_arrays, *numbers, *options[7:], save)
    return (out, lse) if return_lse else out


# Schemas have neither unions nor lists of optional numbers.


def encoded(op: str, causal: bool | str, scale: float | None, window: Window, softcap: float,
            q_start: int | Tensor | None, dropout_p: float, seed: int) -> tuple[Any, ...]:  # fmt: skip
    """Options as the schema has them."""
    start = torch.tensor(q_start) if isinstance(q_start, int) else q_start
    check_tensors(op, q_start=start)
    sides = [] if window is None else [_UNBOUNDED if size is None else size for size in window]
    alignment = "" if causal is False else "true" if causal is True else causal
    return alignment, scale, sides, float(softcap), start, float(dropout_p), seed - (1 << 64 if seed >> 63 else 0)


def decoded(causal: str, scale: float | None, window: list[int], softcap: float, q_start: Tensor | None,
            dropout_p: float, seed: int) -> tuple[Any, ...]:  # fmt: skip
    """The first options of `Options` again."""
    sides: Any = tuple(None if size == _UNBOUNDED else size for size in window)
    alignment = {"": False, "true": True}.get(causal, causal)
    return alignment, scale, sides or None, softcap, q_start, dropout_p, seed % (1 << 64)


def _arguments(op: str, q: Tensor, k: Tensor, v: Tensor,
               *given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """Those of fastattn.attention, from what the operation is given."""
    options = Options(*decoded(*given[4:11]), *given[11:])
    return arrays_of(op, q=q, k=k, v=v), options.keywords(op, *given[:4])


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, layout, save = rest
    batch, first, second = q.shape[:3]
    heads, length = (second, first) if layout == "blhd" else (first, second)
    lse = q.new_empty(batch, heads, length, dtype=real(q.dtype))
    state = q.new_empty((2, batch, heads, length) if save else (0,), dtype=real(q.dtype))
    return q.new_empty(*q.shape[:3], v.shape[3]), lse.transpose(1, 2) if layout == "blhd" else lse, state


def _backward_fake(dout: Tensor, out: Tensor, lse: Tensor, state: Tensor, q: Tensor, k: Tensor, v: Tensor,
                  mask: Tensor | None, bias: Tensor | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
                  *rest: Any) -> tuple[Tensor, ...]:  # fmt: skip
    wanted = rest[-1]
    summed = mask if "mask" in wanted else bias if "bias" in wanted else None
    others = summed, sinks if "sinks" in wanted else None, alibi_slopes if "alibi_slopes" in wanted else None
    given = [empty(q) if x is None else x.new_empty(x.shape) for x in others]
    return (*(x.new_empty(x.shape) for x in (q, k, v)), *given)


def register(op: str, options: str, arguments: Callable[..., Any], fake: Callable[..., Any],
             saved: Callable[..., Any]) -> None:  # fmt: skip
    """The operations `op` and `op`_backward on q, k, v, the optional arrays and the options of a schema.

    arguments: the op and what it is given -> arrays and keywords of fastattn's functions. saved: their saved values
    from arrays, out, lse and state, and keywords.
    """
    plain, forward, backward = getattr(fa, op), getattr(fa, f"{op}_forward"), getattr(fa, f"{op}_backward")

    def kernel(*values: Any) -> tuple[Tensor, Tensor, Tensor]:
        *given, save = values
        arrays, keywords = arguments(op, *given)
        if save:
            out, kept_values = forward(*arrays, **keywords)
            return tensor(out), tensor(kept_values.lse), tensor(kept_values.state)
        out, lse = plain(*arrays, **keywords, return_lse=True)
        return tensor(out), tensor(lse), given[0].new_empty(0, dtype=real(given[0].dtype))

    def backward_kernel(dout: Tensor, out: Tensor, lse: Tensor, state: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        name = f"{op}_backward"
        *given, wanted = rest
        arrays, keywords = arguments(name, *given)
        forward_values = saved(*arrays, *arrays_of(name, out=out, lse=lse, state=state), **keywords)
        gradients = backward(array(dout, name, "dout"), forward_values, gradients=wanted)
        return tuple(empty(given[0]) if x is None else tensor(x) for x in gradients)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *given, _ = inputs
        ctx.tensors = [index for index, value in enumerate(given) if isinstance(value, Tensor)]
        ctx.others = [None if isinstance(value, Tensor) else value for value in given]
        ctx.save_for_backward(*output, *(given[index] for index in ctx.tensors))
        ctx.mark_non_differentiable(*output[1:])

    def gradient(ctx: Any, dout: Tensor, *_: Any) -> tuple[Any, ...]:
        out, lse, state, *tensors = ctx.saved_tensors
        given = list(ctx.others)
        for index, value in zip(ctx.tensors, tensors, strict=True):
            given[index] = value
        names = wanted_names(ctx.needs_input_grad[first_input(ctx) :])
        found = in_order(names, call(f"{op}_backward", dout, out, lse, state, *given, names))
        return *found, *(None,) * (len(given) + 1 - len(found))

    results = "Tensor, Tensor, Tensor"
    define(f"{op}({ARRAYS}, {options}, bool save) -> ({results})", kernel, fake)
    define(
        f"{op}_backward(Tensor dout, Tensor out, Tensor lse, Tensor state, {ARRAYS}, {options}, str[] gradients)"
        f" -> ({results}, {results})",
        backward_kernel,
        _backward_fake,
    )
    differentiate(op, setup, gradient)
    autocast(op)


register("attention", _OPTIONS, _arguments, _fake, fa.SavedAttention.of)


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

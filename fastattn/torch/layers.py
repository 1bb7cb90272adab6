"""Linear layers, norms and additive attention on tensors, with gradients."""

from typing import Any

import torch
from torch import Tensor

import fastattn as fa
from fastattn.functional.norm import SavedNorm
from fastattn.torch.arrays import array, check_tensors, is_direct, needs_gradient, optional, tensor
from fastattn.torch.library import autocast, call, define, differentiate, empty, first_derivative, real

# ---- linear ----


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None) -> Tensor:
    """activation(x weight^T + bias): fastattn.linear on tensors, with gradients of x, weight and bias."""
    if not is_direct(x):
        check_tensors("linear", x=x, weight=weight, bias=bias)
        return call("linear", x, weight, bias, activation, needs_gradient(x, weight, bias))[0]
    if needs_gradient(x, weight, bias):
        return _Linear.apply(x, weight, bias, activation)
    return tensor(fa.linear(*_linear_arrays(x, weight, bias), activation=activation))


def _linear_arrays(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, Any, Any]:
    return array(x, "linear", "x"), array(weight, "linear", "weight"), array(bias, "linear", "bias")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
        y, ctx.saved = fa.linear_forward(*_linear_arrays(x, weight, bias), activation=activation)
        result = tensor(y)
        keeps_result = ctx.saved.z is y  # relu: found changed by its version, as torch's own does
        ctx.save_for_backward(x, weight, result if keeps_result else None)
        return result

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias = fa.linear_backward(array(dy, "linear_backward", "dy"), ctx.saved)
        found = tensor(dx), tensor(dweight), optional(dbias)
        return *first_derivative("linear", found, dy, *ctx.saved_tensors), None


def _linear_kernel(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None,
                   save: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    arrays = _linear_arrays(x, weight, bias)
    if not save:
        return tensor(fa.linear(*arrays, activation=activation)), empty(x)
    y, saved = fa.linear_forward(*arrays, activation=activation)
    # Results of an operation must not share memory: relu keeps its result as z.
    return tensor(y), empty(x) if saved.z is None or saved.z is y else tensor(saved.z)


def _linear_fake(x: Tensor, weight: Tensor, bias: Any, activation: str | None, save: bool) -> tuple[Tensor, Tensor]:
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    return y, torch.empty_like(y) if save and activation not in (None, "relu") else empty(x)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, ctx.activation, _ = inputs
    y, z = output
    ctx.save_for_backward(x, weight, y if ctx.activation == "relu" else z)
    ctx.bias = bias is not None
    ctx.mark_non_differentiable(z)


def _linear_backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = call("linear_backward", dy, *ctx.saved_tensors, ctx.activation, ctx.bias)
    return dx, dweight, dbias if ctx.bias else None, None, None


def _linear_backward_kernel(dy: Tensor, x: Tensor, weight: Tensor, z: Tensor, activation: str | None,
                            bias: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    op = "linear_backward"
    saved = fa.SavedLinear(array(x, op, "x"), array(weight, op, "weight"), bias,
                           array(z, op, "z") if activation else None, activation)  # fmt: skip
    dx, dweight, dbias = fa.linear_backward(array(dy, op, "dy"), saved)
    return tensor(dx), tensor(dweight), empty(x) if dbias is None else tensor(dbias)


define("linear(Tensor x, Tensor weight, Tensor? bias, str? activation, bool save) -> (Tensor, Tensor)",
                 _linear_kernel, _linear_fake)  # fmt: skip
define(
    "linear_backward(Tensor dy, Tensor x, Tensor weight, Tensor z, str? activation, bool bias)"
    " -> (Tensor, Tensor, Tensor)",
    _linear_backward_kernel,
    lambda dy, x, weight, z, activation, bias: (
        x.new_empty(x.shape), weight.new_empty(weight.shape), x.new_empty(weight.shape[0] if bias else 0)
    ),
)  # fmt: skip
differentiate("linear", _linear_setup, _linear_backward)
autocast("linear")


# ---- norms ----


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """fastattn.layer_norm on tensors: of the last axis, with gradients of x, weight and bias."""
    return _norm("layer", x, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """fastattn.rms_norm on tensors: of the last axis, with gradients of x and weight."""
    return _norm("rms", x, weight, None, eps)


_FORWARD = {"layer": fa.layer_norm_forward, "rms": lambda x, weight, bias, eps: fa.rms_norm_forward(x, weight, eps=eps)}


def _norm(kind: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    op = f"{kind}_norm"
    if not is_direct(x):
        check_tensors(op, x=x, weight=weight, bias=bias)
        return call("norm", kind, x, weight, bias, eps)[0]
    if needs_gradient(x, weight, bias):
        return _Norm.apply(kind, x, weight, bias, eps)
    arrays = array(x, op, "x"), array(weight, op, "weight"), array(bias, op, "bias")
    if kind == "rms":
        return tensor(fa.rms_norm(arrays[0], arrays[1], eps=eps))
    return tensor(fa.layer_norm(*arrays, eps=eps))


def _norm_forward(
    kind: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Any, SavedNorm]:
    op = f"{kind}_norm"
    arrays: tuple[Any, ...] = array(x, op, "x"), array(weight, op, "weight"), array(bias, op, "bias")
    if kind == "rms":
        return fa.rms_norm_forward(*arrays[:2], eps=eps)
    return fa.layer_norm_forward(*arrays, eps=eps)


def _norm_gradients(kind: str, dy: Tensor, saved: SavedNorm) -> tuple[Any, ...]:
    gradient: Any = array(dy, f"{kind}_norm_backward", "dy")
    if kind == "rms":
        return *fa.rms_norm_backward(gradient, saved), None
    return fa.layer_norm_backward(gradient, saved)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        y, ctx.saved = _norm_forward(kind, x, weight, bias, eps)
        ctx.kind = kind
        ctx.save_for_backward(x, weight)
        return tensor(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        found = [optional(gradient) for gradient in _norm_gradients(ctx.kind, dy, ctx.saved)]
        return None, *first_derivative(f"{ctx.kind}_norm", found, dy, *ctx.saved_tensors), None


def _norm_kernel(kind: str, x: Tensor, weight: Tensor | None, bias: Tensor | None,
                 eps: float) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, saved = _norm_forward(kind, x, weight, bias, eps)
    return (
        tensor(y),
        x.new_empty(0, dtype=real(x.dtype)) if saved.mean is None else tensor(saved.mean),
        tensor(saved.rstd),
    )


def _norm_fake(kind: str, x: Tensor, weight: Any, bias: Any, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.new_empty(x.shape[:-1], dtype=real(x.dtype))
    return x.new_empty(x.shape), rows if kind == "layer" else rows.new_empty(0), torch.empty_like(rows)


def _norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.kind, x, weight, bias, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.bias = bias is not None
    ctx.mark_non_differentiable(mean, rstd)


def _norm_backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias = call("norm_backward", ctx.kind, dy, x, weight, mean, rstd, ctx.bias)
    return None, dx, None if weight is None else dweight, dbias if ctx.bias else None, None


def _norm_backward_kernel(kind: str, dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor,
                          bias: bool) -> tuple[Tensor, ...]:  # fmt: skip
    op = f"{kind}_norm_backward"
    means = array(mean, op, "mean") if kind == "layer" else None
    saved = SavedNorm(array(x, op, "x"), array(weight, op, "weight"), bias, means, array(rstd, op, "rstd"))
    return tuple(empty(x) if part is None else tensor(part) for part in _norm_gradients(kind, dy, saved))


define("norm(str kind, Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)",
               _norm_kernel, _norm_fake)  # fmt: skip
define(
    "norm_backward(str kind, Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor rstd, bool bias)"
    " -> (Tensor, Tensor, Tensor)",
    _norm_backward_kernel,
    lambda kind, dy, x, weight, mean, rstd, bias: (
        x.new_empty(x.shape),
        empty(x) if weight is None else weight.new_empty(weight.shape),
        x.new_empty(x.shape[-1] if bias else 0),
    ),
)
differentiate("norm", _norm_setup, _norm_backward)


# ---- additive attention ----


def additive_attention(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, *, lengths: Tensor | None = None,
                       mask: Tensor | None = None, return_weights: bool = False) -> Any:  # fmt: skip
    """fastattn.additive_attention on tensors, with gradients of query, keys, values and v; the weights have none."""
    check_tensors("additive_attention", query=query, keys=keys, values=values, v=v, lengths=lengths, mask=mask)
    context, weights = call("additive_attention", query, keys, values, v, lengths, mask)
    return (context, weights) if return_weights else context


def _additive_kernel(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, lengths: Tensor | None,
                     mask: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    named = {"query": query, "keys": keys, "values": values, "v": v, "lengths": lengths, "mask": mask}
    arrays: list[Any] = [array(x, "additive_attention", name) for name, x in named.items()]
    context, saved = fa.additive_attention_forward(*arrays[:4], lengths=arrays[4], mask=arrays[5])
    return tensor(context), tensor(saved.weights)


def _additive_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.mark_non_differentiable(output[1])


def _additive_backward(ctx: Any, dcontext: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return (*call("additive_attention_backward", dcontext, *ctx.saved_tensors), None, None)


def _additive_backward_kernel(dcontext: Tensor, query: Tensor, keys: Tensor, values: Tensor, v: Tensor,
                              lengths: Tensor | None, weights: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
    op = "additive_attention_backward"
    named = {"query": query, "keys": keys, "values": values, "v": v, "lengths": lengths, "weights": weights}
    saved = fa.SavedAdditive(**{name: array(x, op, name) for name, x in named.items()})
    return tuple(map(tensor, fa.additive_attention_backward(array(dcontext, op, "dcontext"), saved)))


define(
    "additive_attention(Tensor query, Tensor keys, Tensor values, Tensor v, Tensor? lengths, Tensor? mask)"
    " -> (Tensor, Tensor)",
    _additive_kernel,
    lambda query, keys, values, v, lengths, mask: (
        query.new_empty(*query.shape[:2], values.shape[2]), query.new_empty(*query.shape[:2], keys.shape[1])
    ),
)  # fmt: skip
define(
    "additive_attention_backward(Tensor dcontext, Tensor query, Tensor keys, Tensor values, Tensor v, Tensor? lengths,"
    " Tensor weights) -> (Tensor, Tensor, Tensor, Tensor)",
    _additive_backward_kernel,
    lambda dcontext, query, keys, values, v, lengths, weights: tuple(
        x.new_empty(x.shape) for x in (query, keys, values, v)
    ),
)
differentiate("additive_attention", _additive_setup, _additive_backward)

"""The registered operations `torch.ops.fastattn.*`: what torch.compile, torch.export, autocast and vmap see."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

LIBRARY = torch.library.Library("fastattn", "DEF")


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """An operation by its schema, its function on CPU tensors, and the shapes and types of its results."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, kernel, "CPU")
    torch.library.register_fake(f"fastattn::{name}", fake, lib=LIBRARY)

    def each(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        return _each(name, registered(name), info, in_dims, arguments)

    torch.library.register_vmap(f"fastattn::{name}", each, lib=LIBRARY)


def registered(name: str) -> Any:
    """The operation of this name."""
    return getattr(torch.ops.fastattn, name).default


def _each(name: str, function: Callable[..., Any], info: Any, in_dims: Sequence[Any],
          arguments: Sequence[Any]) -> tuple[Any, Any]:  # fmt: skip
    """What vmap wants: the results of one call for each index side by side, and their new axes."""
    calls = [function(*map(partial(_taken, index), arguments, in_dims)) for index in range(info.batch_size)]
    if not calls:
        raise RuntimeError(f"fastattn: vmap of {name} must have at least one index, got none")
    results = tuple(_joined(parts) for parts in zip(*calls, strict=True))
    return results, tuple([0] * len(each) if isinstance(each, list) else 0 for each in results)


def _taken(index: int, value: Any, dim: Any) -> Any:
    if isinstance(value, list):
        dims = dim if isinstance(dim, list | tuple) else [dim] * len(value)
        return [_taken(index, each, d) for each, d in zip(value, dims, strict=True)]
    return value.select(dim, index) if isinstance(value, Tensor) and dim is not None else value


def _joined(parts: tuple[Any, ...]) -> Any:
    return (
        [torch.stack(each) for each in zip(*parts, strict=True)] if isinstance(parts[0], list) else torch.stack(parts)
    )


def differentiate(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Gives an operation its gradient, and the operation <name>_backward an error for a second derivative.

    `setup` and `backward` find the index of the first argument in ctx.needs_input_grad by `first_input`.
    """
    torch.library.register_autograd(f"fastattn::{name}", backward, setup_context=setup, lib=LIBRARY)

    def keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        pass

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(f"fastattn: {name} has no second derivative")

    torch.library.register_autograd(f"fastattn::{name}_backward", refuse, setup_context=keep_nothing, lib=LIBRARY)
    _gradients[name], _gradients[f"{name}_backward"] = (setup, backward), (keep_nothing, refuse)


_gradients: dict[str, tuple[Callable[..., None], Callable[..., Any]]] = {}


def call(name: str, *arguments: Any) -> Any:
    """A registered operation. The transformations of torch.func do not see the gradients that a library registers."""
    operation = registered(name)
    if torch.compiler.is_compiling():
        return operation(*arguments)
    if torch._C._are_functorch_transforms_active():
        flat, spec = tree_flatten(list(arguments))
        return _nested(_Transformed.apply(name, spec, *flat), name)
    if forward_ad._current_level >= 0 and any(_has_tangent(value) for value in tree_leaves(list(arguments))):
        raise RuntimeError(f"fastattn: {name} has no forward-mode derivative")
    return operation(*arguments)


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


def _nested(results: Sequence[Tensor], name: str) -> Any:
    """The results of an operation from a flat tuple: a list, where there is one, comes last."""
    returns = registered(name)._schema.returns
    if str(returns[-1].type).startswith("List"):
        last = len(returns) - 1
        return (*results[:last], list(results[last:]))
    return tuple(results)


class _Transformed(torch.autograd.Function):
    """An operation under torch.func.grad and its like."""

    @staticmethod
    def forward(name: str, spec: Any, *flat: Any) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(list(registered(name)(*tree_unflatten(flat, spec)))))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        name, spec, *flat = inputs
        arguments = tree_unflatten(flat, spec)
        ctx.operation, ctx.first_input = name, 2
        ctx.sizes = [len(value) if isinstance(value, list) else None for value in arguments]
        _gradients[name][0](ctx, arguments, _nested(output, name))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        found = _gradients[ctx.operation][1](ctx, *_nested(gradients, ctx.operation))
        flat: list[Any] = []
        for value, size in zip(found, ctx.sizes, strict=True):
            if size is None:
                flat.append(value)
            else:
                flat += [None] * size if value is None else value
        return None, None, *flat

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], name: str, spec: Any, *flat: Any) -> tuple[Any, Any]:
        return _each(name, partial(_Transformed.apply, name, spec), info, in_dims[2:], flat)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(f"fastattn: {ctx.operation} has no forward-mode derivative")


def first_input(ctx: Any) -> int:
    """Where the arguments of the operation begin in ctx.needs_input_grad."""
    return getattr(ctx, "first_input", 0)


class _FirstDerivative(torch.autograd.Function):
    """Gradients that are parts of a graph, which must not be differentiated again."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise RuntimeError(f"fastattn: {ctx.name} has no second derivative")


def first_derivative(
    name: str, gradients: Sequence[Tensor | None], *made_of: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients as the results of a backward function; with create_graph, they depend on what they are made of."""
    if not torch.is_grad_enabled():
        return tuple(gradients)
    given = [g for g in gradients if g is not None]
    marked = iter(_FirstDerivative.apply(name, len(given), *given, *(t for t in made_of if t is not None)))
    return tuple(None if g is None else next(marked) for g in gradients)


def autocast(name: str) -> None:
    """Under autocast, an operation takes its floating-point arguments in autocast's type, as torch's own do."""
    operation = registered(name)

    def cast(*arguments: Any) -> Any:
        dtype = torch.get_autocast_dtype("cpu")
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return operation(*(_cast(argument, dtype) for argument in arguments))

    LIBRARY.impl(name, cast, "AutocastCPU")


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_cast(each, dtype) for each in value]
    is_wide = isinstance(value, Tensor) and value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return value.to(dtype) if is_wide else value


def empty(like: Tensor) -> Tensor:
    """What stands for a result that is not there: an operation returns tensors alone."""
    return like.new_empty(0)


def real(dtype: torch.dtype) -> torch.dtype:
    """The type of the arithmetic on arrays of a type."""
    return torch.float64 if dtype is torch.float64 else torch.float32

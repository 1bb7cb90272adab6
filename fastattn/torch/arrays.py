"""Tensors as arrays and back, in the same memory; and whether anything watches a call."""

from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import Parameter

Array = NDArray[Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def array(tensor: Tensor | None, op: str, name: str) -> Any:
    """The array of a CPU tensor, sharing its memory."""
    if tensor is None:
        return None
    try:
        if tensor.requires_grad:
            tensor = tensor.detach()
        if tensor.dtype is torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(BFLOAT16)
        return tensor.numpy()
    except (TypeError, RuntimeError, AttributeError) as error:
        raise TypeError(f"{op}: {name} must be a dense tensor on the CPU, got {_described(tensor)}") from error


def tensor(array: Array) -> Tensor:
    """The tensor of an array, sharing its memory."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def optional(value: Array | None) -> Tensor | None:
    return None if value is None else tensor(value)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    layout = "" if value.layout is torch.strided else f" {value.layout}".replace("torch.", "")
    negative = " with a negative bit" if value.is_neg() or value.is_conj() else ""
    return f"a{layout} tensor of {value.dtype} on {value.device}{negative}".replace("torch.", "")


_PLAIN = (Tensor, Parameter)


def is_direct(tensor: Tensor) -> bool:
    """Whether a call may pass the dispatcher by: an ordinary CPU tensor, and no transformation or mode is active."""
    return (
        type(tensor) in _PLAIN
        and tensor.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_tracing_state() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records a call with these arguments."""
    if not torch.is_grad_enabled():
        return False
    for t in tensors:  # noqa: SIM110 (a third of the time of any())
        if t is not None and t.requires_grad:
            return True
    return False


def check_tensors(op: str, **tensors: Any) -> None:
    """Before the dispatcher, whose message would name neither the function nor the argument."""
    for name, value in tensors.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
        if value.device.type not in ("cpu", "meta") or value.layout is not torch.strided:
            raise TypeError(f"{op}: {name} must be a dense tensor on the CPU, got {_described(value)}")

"""Programs as they are, computed by fastattn: modules changed in place, and torch's own function."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TypeVar

import torch.nn.functional as F
from torch import nn

from fastattn.torch import modules
from fastattn.torch.attention import TORCH_ATTENTION, scaled_dot_product_attention

Model = TypeVar("Model", bound=nn.Module)

# torch's class -> ours, of what fastattn computes faster. Linear and norms are as fast in torch: they take part in
# programs that name them.
SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNN: modules.RNN,
    nn.MultiheadAttention: modules.MultiheadAttention,
    nn.TransformerEncoderLayer: modules.TransformerEncoderLayer,
    nn.TransformerEncoder: modules.TransformerEncoder,
}
_BACK = {ours: theirs for theirs, ours in SWAPS.items()}


def accelerate(model: Model) -> Model:
    """Lets fastattn compute the recurrent networks and the attention of a model, in place; returns the model.

    The class of a module changes to a subclass: parameters, state dict, hooks, names, isinstance, pickle and deepcopy
    stay what they are. Modules of classes that are derived from torch's are left alone, for they may compute something
    else. `restore` takes it back.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.LSTM(8, 16))
    >>> accelerate(model)[0].__class__.__module__
    'fastattn.torch.modules'
    """
    return _swap("accelerate", model, SWAPS)


def restore(model: Model) -> Model:
    """Gives the modules that `accelerate` has changed their classes back; returns the model."""
    return _swap("restore", model, _BACK)


def _swap(op: str, model: Model, classes: dict[type[nn.Module], type[nn.Module]]) -> Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    return model


_lock = threading.Lock()
_depth = 0


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Within it, torch.nn.functional.scaled_dot_product_attention is fastattn's, for all threads.

    Modules that call it by that name (torch's own, and most models') then use fastattn. A name that was imported from
    torch.nn.functional before still means torch's.
    """
    global _depth  # noqa: PLW0603
    with _lock:
        _depth += 1
        F.scaled_dot_product_attention = scaled_dot_product_attention
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                F.scaled_dot_product_attention = TORCH_ATTENTION

"""Which models fastattn can serve, and telling them to use it."""

import functools
import inspect
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from fastattn.transformers.attention import attention
from fastattn.transformers.masks import mask

NAME = "fastattn"
Model = TypeVar("Model", bound=PreTrainedModel)


def register() -> None:
    """Makes attn_implementation="fastattn" known to transformers. Importing the module does it."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, _mask)


def use(model: Model) -> Model:
    """Lets fastattn compute the attention of a model, all parts of it; returns the model.

    ValueError names the parts whose attention transformers does not let others compute, and the model is as before.
    `model.set_attn_implementation("sdpa")` takes it back.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"use: model must be a model of transformers, got {type(model).__name__}")
    classes = dict.fromkeys(type(part) for part in model.modules() if isinstance(part, PreTrainedModel))
    refused = [kind.__name__ for kind in classes if not kind._can_set_attn_implementation()]
    if refused:
        raise ValueError(
            f"use: the attention of model must be one that transformers lets others compute, got {', '.join(refused)}, "
            "which computes its own"
        )
    if not any(_calls_interface(kind) for kind in classes):
        raise ValueError(f"use: model must have attention that others can compute, got {type(model).__name__}")
    model.set_attn_implementation(NAME)
    return model


def _calls_interface(kind: type[PreTrainedModel]) -> bool:
    """Whether attention in the file of a model's class is by the registered function."""
    module = sys.modules.get(kind.__module__)
    return module is not None and "ALL_ATTENTION_FUNCTIONS" in inspect.getsource(module)


def _mask(*arguments: Any, config: Any = None, **options: Any) -> Tensor | None:
    """Masks for fastattn, or for models that compute their own attention and add a mask to their scores."""
    if config is None or _knows_bool_masks(type(config)):
        return mask(*arguments, **options)
    return eager_mask(*arguments, **options)


@torch.compiler.assume_constant_result
def _knows_bool_masks(config: type) -> bool:
    return _is_served(config, len(PreTrainedModel.__subclasses__()))


@functools.lru_cache(maxsize=256)
def _is_served(config: type, _known: int) -> bool:
    """Whether the models with such a config hand their masks to the registered function, and know bool ones.

    The answer counts while as many kinds of models are known.
    """
    kinds = [kind for kind in _subclasses(PreTrainedModel) if kind.config_class is config]
    return bool(kinds) and all(
        kind._can_set_attn_implementation() and (kind._supports_attention_backend or kind._supports_sdpa)
        for kind in kinds
    )


def _subclasses(kind: type) -> Iterator[Any]:
    each: Any
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)

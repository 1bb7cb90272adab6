"""Masks of transformers' models, short where the kernel knows the pattern: padding, and numbers for the rest."""

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import masking_utils as hf

MaskFunction = Callable[..., Any]  # of indices of batch, head, query and key: whether the query attends
Window = tuple[int, int] | None


class Pattern(NamedTuple):
    """What a query sees of the keys, by positions: all, none after its own, those at most window away."""

    causal: bool
    window: Window


class Sizes(NamedTuple):
    """Sizes of a mask, and the positions of its first query and first key."""

    batch: int
    queries: int
    keys: int
    query_start: int
    key_start: int

    @property
    def shift(self) -> int:
        """The key, counted from the first, at the position of the first query."""
        return self.query_start - self.key_start


class PatternMask(Tensor):
    """A bool mask [batch, 1, queries, keys] of which only the pattern and the padding, [batch, keys] or None, are kept.

    Any operation on it computes the whole mask first, which is then what counts, changed in place or not.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    pattern: Pattern
    sizes: Sizes
    padding: Tensor | None
    whole: Tensor | None

    @staticmethod
    def __new__(cls, pattern: Pattern, sizes: Sizes, padding: Tensor | None) -> "PatternMask":
        shape = (sizes.batch, 1, sizes.queries, sizes.keys)
        mask: PatternMask = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool)
        mask.pattern, mask.sizes, mask.padding, mask.whole = pattern, sizes, padding, None
        return mask

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(PatternMask, PatternMask.computed, (args, kwargs or {}))
        return func(*args, **kwargs)

    def computed(self) -> Tensor:
        """The whole mask, by transformers' own functions."""
        if self.whole is None:
            sizes, (causal, window) = self.sizes, self.pattern
            parts = [hf.causal_mask_function if causal else hf.bidirectional_mask_function]
            if window is not None:
                overlay = hf.sliding_window_overlay if causal else hf.sliding_window_bidirectional_overlay
                parts.append(overlay(window[0] + 1 if causal else window[0]))
            queries = torch.arange(sizes.queries)[:, None] + sizes.query_start
            keys = torch.arange(sizes.keys) + sizes.key_start
            mask = hf.and_masks(*parts)(0, 0, queries, keys)[None, None]
            mask = mask if self.padding is None else mask & self.padding[:, None, None]
            self.whole = mask.expand(sizes.batch, 1, sizes.queries, sizes.keys).contiguous()
        return self.whole


def mask(batch_size: int, q_length: int, kv_length: int, q_offset: Any = 0, kv_offset: Any = 0,
         mask_function: MaskFunction = hf.causal_mask_function, attention_mask: Tensor | None = None,
         device: torch.device | str = "cpu", **options: Any) -> Tensor | None:  # fmt: skip
    """The mask that models get: transformers' bool mask for `sdpa`, or an equal one that is short.

    One query, a pattern that the kernel does not know, tracing and torch.compile get transformers' own. Only one query
    gets None: whether a module is causal says nothing of its mask. Offsets are numbers or tensors of one.
    """
    traced = (
        torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or torch.device(device).type != "cpu"
    )
    pattern = None if q_length == 1 or traced else _pattern(mask_function)
    if pattern is not None:
        sizes = Sizes(batch_size, q_length, kv_length, int(q_offset), int(kv_offset))
        padding = _padding(attention_mask, sizes)
        return PatternMask(pattern, sizes, padding)
    if q_length > 1:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return hf.sdpa_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, device=device, **options
    )


def _padding(attention_mask: Tensor | None, sizes: Sizes) -> Tensor | None:
    """Which keys are there, [batch, keys]; None for all."""
    padding = hf.prepare_padding_mask(attention_mask, sizes.keys, sizes.key_start)
    if padding is None:
        return None
    padding = padding[:, sizes.key_start : sizes.key_start + sizes.keys]
    return None if padding.all() else padding


# transformers tells a pattern by a function of indices. Those that it makes itself are known by their code.
_BOTH = hf.and_masks(hf.causal_mask_function).__code__
_BEFORE = hf.sliding_window_overlay(1).__code__
_AROUND = hf.sliding_window_bidirectional_overlay(1).__code__


def _pattern(function: MaskFunction) -> Pattern | None:
    """The pattern of a mask function, None where it is not known."""
    if function is hf.causal_mask_function:
        return Pattern(True, None)
    if function is hf.bidirectional_mask_function:
        return Pattern(False, None)
    parts = _held(function, _BOTH, "mask_functions")
    if not isinstance(parts, tuple) or len(parts) != 2:
        return None
    if parts[1] is hf.causal_mask_function:
        size = _held(parts[0], _BEFORE, "sliding_window")
        return Pattern(True, (size - 1, 0)) if isinstance(size, int) and size > 0 else None
    if parts[1] is hf.bidirectional_mask_function:
        size = _held(parts[0], _AROUND, "sliding_window")
        return Pattern(False, (size, size)) if isinstance(size, int) and size >= 0 else None
    return None


def _held(function: MaskFunction, code: CodeType, name: str) -> Any:
    """The value of a variable of a function that was made with this code; None for another function."""
    if not isinstance(function, FunctionType) or function.__code__ is not code:
        return None
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    return cells[name].cell_contents if name in cells else None

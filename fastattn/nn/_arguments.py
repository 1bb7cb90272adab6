"""Checks of what modules are made of: sizes, flags, options, generators, room for parameters."""

import os
import sys
from typing import Any

import numpy as np

from fastattn.functional._checks import check_integer, check_number

Rng = np.random.Generator | int | None

_MOST_LAYERS = 10_000  # a stack of them is made within seconds


def check_size(owner: str, name: str, value: Any, least: int = 0) -> int:
    """A number of elements."""
    size = check_integer(owner, name, value, least)
    if size > sys.maxsize:
        raise ValueError(f"{owner}: {name} must be at most {sys.maxsize}, got {size}")
    return size


def check_layers(owner: str, value: Any, name: str = "num_layers", least: int = 0) -> int:
    """A number of layers: each has arrays of its own, however small."""
    layers = check_integer(owner, name, value, least)
    if layers > _MOST_LAYERS:
        raise ValueError(f"{owner}: {name} must be at most {_MOST_LAYERS}, got {layers}")
    return layers


def check_eps(owner: str, name: str, value: Any) -> float:
    """What is added to a variance."""
    eps = check_number(owner, name, value)
    if not 0 <= eps < np.inf:
        raise ValueError(f"{owner}: {name} must be finite and at least 0, got {value}")
    return eps


def check_rng(owner: str, rng: Any) -> np.random.Generator:
    """The generator of initial parameters: one that is given, one seeded with an integer, or with None a fresh one."""
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None:
        return np.random.default_rng()
    if isinstance(rng, bool | np.bool_) or not isinstance(rng, int | np.integer):
        raise TypeError(f"{owner}: rng must be None, an integer or a numpy.random.Generator, got {type(rng).__name__}")
    if rng < 0:
        raise ValueError(f"{owner}: rng must be an integer of at least 0, got {rng}")
    return np.random.default_rng(int(rng))


def check_room(owner: str, elements: int, itemsize: int, **sizes: int) -> None:
    """Raises MemoryError for more elements than the memory of this machine holds, which follow from these sizes."""
    if elements * itemsize > _memory():
        named = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise MemoryError(f"{owner}: sizes must fit into memory, {_memory()} bytes, got {elements * itemsize} bytes "
                          f"for {named}")  # fmt: skip


def _memory() -> int:
    """Bytes of physical memory, where the platform tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return sys.maxsize

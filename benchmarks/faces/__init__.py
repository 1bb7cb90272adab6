"""Programs of other libraries with fastattn and without it: `python -m benchmarks.faces`.

A module has `programs(quick)`, which lists them; __main__.py runs them, page.py shows what was found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Run = Callable[[], Any]


class Pair(NamedTuple):
    """The same program twice. A run returns its result: arrays or tensors, in tuples, lists and dicts."""

    plain: Run
    ours: Run


@dataclass(frozen=True)
class Program:
    """What a user has."""

    name: str
    group: str
    make: Callable[[], Pair]
    tolerance: float  # of the largest difference, in parts of the largest number of the plain result
    wanted: float = 1.0  # how many times faster it shall be


def leaves(result: Any) -> list[np.ndarray[Any, np.dtype[Any]]]:
    """The floating-point arrays of a result, and its integers, in float64."""
    if result is None:
        return []
    if isinstance(result, dict):
        return leaves(list(result.values()))
    if isinstance(result, tuple | list):
        return [leaf for part in result for leaf in leaves(part)]
    if hasattr(result, "detach"):
        result = result.detach().double().numpy()
    return [np.asarray(result, np.float64)]


def difference(ours: Any, plain: Any) -> float:
    """The largest, in parts of the largest number of each array of the plain result; infinite for other shapes."""
    pairs = list(zip(leaves(ours), leaves(plain), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    parts = [np.abs(a - b).max() / (np.abs(b).max() or 1.0) for a, b in pairs if b.size]
    worst = max(parts, default=0.0)
    return float(worst) if np.isfinite(worst) else float("inf")

"""Ragged batches [B, L, E]: what lies beyond the length of a sequence does not exist."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._types import Array


def ragged(op: str, x: ArrayLike, lengths: ArrayLike | None, name: str = "x",
           of_lengths: str = "lengths") -> tuple[Array, Any, Any]:  # fmt: skip
    """x[B, L, E] and lengths[B] or None, checked, lengths as a copy; and where x lies beyond them, bool [B, L], or None
    for nowhere."""
    array = _core.checked_floats(x, op, name, 3)
    checked = _core.checked_lengths(lengths, array.shape[0], array.shape[1], op, of_lengths)
    if checked is None or (checked == array.shape[1]).all():
        return array, checked, None
    try:
        return array, checked, np.arange(array.shape[1]) >= checked[:, None]
    except MemoryError:
        raise MemoryError(f"{op}: no memory for {name} of shape {array.shape}") from None


def cleared(op: str, name: str, x: Array, beyond: Array | None) -> Array:
    """x with zeros beyond the lengths: a copy, unless they are there already. 0 times NaN would be a gradient."""
    try:
        if beyond is None or not x[beyond].view(f"u{x.itemsize}").any():
            return x
        return np.where(beyond[..., None], x.dtype.type(0), x)
    except MemoryError:
        raise MemoryError(f"{op}: no memory for {name} of shape {x.shape}") from None


def clear(x: Array, beyond: Array | None) -> Array:
    """x, an array of ours, after zeros were put beyond the lengths."""
    if beyond is not None:
        x[beyond] = 0
    return x


def cleared_gradient(op: str, dy: ArrayLike, beyond: Array | None) -> ArrayLike:
    """dy[B, L, E] with zeros beyond the lengths, where the result is constant."""
    if beyond is None:
        return dy
    if type(beyond) is not np.ndarray or beyond.dtype != bool or beyond.ndim != 2:
        raise ValueError(f"{op}: saved must hold a bool array of two axes, got {type(beyond).__name__}")
    array = _core.checked_floats(dy, op, "dy", 3)
    if array.shape[:2] != beyond.shape:
        raise ValueError(f"{op}: dy must have the shape of the result, [{beyond.shape[0]}, {beyond.shape[1]}, E], "
                         f"got {array.shape}")  # fmt: skip
    return cleared(op, "dy", array, beyond)

"""Positions as vectors, and as rotations."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn import _core
from fastattn.functional._checks import check_dtype, check_flag, check_integer, check_number, check_saved
from fastattn.functional._floats import default_floats
from fastattn.functional._types import Array

_LARGEST = 2**53  # positions are floats
_SMALLEST_BASE = 2.0**-1022  # the inverse of a smaller one overflows


@default_floats
def sinusoidal_positions(length: int, dim: int, *, base: float = 10000.0, offset: int = 0,
                         dtype: DTypeLike = np.float32) -> Array:  # fmt: skip
    """[length, dim]: row i is position offset + i; column 2 j is sin(p base^(-2 j / dim)), column 2 j + 1 the cosine.

    dim may be odd: then the last column is a sine. Computed in float64 for float32, in long double for float64. Source:
    Vaswani et al. 2017, arXiv:1706.03762.

    >>> sinusoidal_positions(2, 2)
    array([[0.        , 1.        ],
           [0.84147096, 0.5403023 ]], dtype=float32)
    """
    op = "sinusoidal_positions"
    kind = check_dtype(op, dtype, ("float32", "float64"))
    length, dim = check_integer(op, "length", length, 0), check_integer(op, "dim", dim, 0)
    offset, base = check_integer(op, "offset", offset), check_number(op, "base", base)
    if abs(offset) + length > _LARGEST:
        raise ValueError(f"{op}: offset must keep positions within 2**53, got {offset}")
    if not 0 < base < np.inf:
        raise ValueError(f"{op}: base must be positive and finite, got {base}")
    if base < _SMALLEST_BASE:
        raise ValueError(f"{op}: base must be at least 2**-1022, got {base}")
    table: Array = _core.new_array((length, dim), kind, op)
    wide: Any = np.float64 if kind == np.float32 else np.longdouble
    if table.size == 0:
        return table
    try:
        frequency = np.power(wide(base), -np.arange(0, dim, 2).astype(wide) / wide(dim))
        angle = np.arange(offset, offset + length).astype(wide)[:, None] * frequency
        table[:, 0::2] = np.sin(angle)
        table[:, 1::2] = np.cos(angle[:, : dim // 2])
    except MemoryError:
        raise MemoryError(f"{op}: no memory for the angles of length {length} and dim {dim}") from None
    return table


class SavedRope(NamedTuple):
    """The values that the gradient of rope needs: the options of the call."""

    positions: ArrayLike | None
    base: float
    interleaved: bool
    cos: ArrayLike | None
    sin: ArrayLike | None


def rope(x: ArrayLike, positions: ArrayLike | None = None, *, base: float = 10000.0, interleaved: bool = False,
         cos: ArrayLike | None = None, sin: ArrayLike | None = None,
         out: Array | None = None) -> Array:  # fmt: skip
    """Rotary positions: pairs of x[..., D] rotated by position * base^(-2 j / D), j the number of the pair.

        y_a = x_a cos - x_b sin,   y_b = x_b cos + x_a sin

    where pair j is (j, j + D / 2), or with interleaved=True (2 j, 2 j + 1). positions are integers or floats that
    broadcast to x.shape[:-1]: [L] for x[..., L, D], [L, 1] for x[B, L, H, D]. D is even. Angles are computed in float64
    (of float64: long double), cosines and sines rounded to the type of the arithmetic. `out` may be x. Source: Su et
    al. 2021, arXiv:2104.09864.

    cos and sin[..., D / 2] give cosines and sines instead of positions and base: both of one shape, which broadcasts to
    that of x but for the last axis, and of the type of x, or float32 beside 16-bit x.

    >>> rope(np.array([[1.0, 0.0], [1.0, 0.0]]), [0, 1])
    array([[1.        , 0.        ],
           [0.54030231, 0.84147098]])
    >>> rope(np.array([[1.0, 2.0]]), cos=np.array([[0.0]]), sin=np.array([[1.0]]))
    array([[-2.,  1.]])
    """
    return _rope(x, SavedRope(positions, base, interleaved, cos, sin), out, 1, "rope")


def rope_forward(x: ArrayLike, positions: ArrayLike | None = None, *, base: float = 10000.0, interleaved: bool = False,
                 cos: ArrayLike | None = None,
                 sin: ArrayLike | None = None) -> tuple[Array, SavedRope]:  # fmt: skip
    """rope, and the values that its gradient needs: (y, saved).

    >>> y, saved = rope_forward(np.ones((1, 2)), [0])
    >>> rope_backward(y, saved)
    array([[1., 1.]])
    """
    saved = SavedRope(positions, base, interleaved, cos, sin)
    return _rope(x, saved, None, 1, "rope_forward"), saved


def rope_backward(dy: ArrayLike, saved: SavedRope) -> Array:
    """Gradient dx of rope_forward: dy rotated back, by the negative angles.

    >>> _, saved = rope_forward(np.array([[1.0, 0.0]]), [1])
    >>> rope_backward(np.array([[1.0, 0.0]]), saved)
    array([[ 0.54030231, -0.84147098]])
    """
    check_saved("rope_backward", saved, SavedRope)
    return _rope(dy, saved, None, -1, "rope_backward")


def _rope(x: ArrayLike, options: SavedRope, out: Array | None, direction: int, op: str) -> Array:
    of_x, of_saved = ("x", "") if direction > 0 else ("dy", "saved.")
    array = _core.checked_array(x, op, of_x)
    if array.ndim == 0 or array.shape[-1] % 2:
        raise ValueError(f"{op}: {of_x} must have a last axis of even size, got shape {array.shape}")
    interleaved = check_flag(op, of_saved + "interleaved", options.interleaved)
    of_tables = options.positions is None
    if (options.cos is None) is of_tables or (options.sin is None) is of_tables:
        given = [name for name in ("positions", "cos", "sin") if getattr(options, name) is not None]
        raise TypeError(f"{op}: {of_saved}positions must be given, or cos and sin, got {' and '.join(given) or 'none'}")
    if of_tables and not interleaved:
        result = _core.rope_of_tables(array, options.cos, options.sin, direction, out, op, of_x)
        if result is not None:
            return result
    find = _given_rotations if of_tables else _rotations
    return _core.rope(
        array, *find(array, options, direction, interleaved, op, of_x, of_saved), interleaved, out, op, of_x
    )


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    ends = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(shape, ends, strict=True))


Rotations = tuple[Array, Array, Array]
"""Cosines and sines, and the row of these that each row of an array takes."""


@default_floats
def _rotations(array: Array, options: SavedRope, direction: int, interleaved: bool, op: str, of_x: str,
               of_saved: str) -> Rotations:  # fmt: skip
    """Of the positions."""
    given: Any = options.positions
    place = _core.checked_array(given, op, of_saved + "positions")
    if place.dtype.kind not in "iuf":
        raise TypeError(f"{op}: {of_saved}positions must be integers or floats, got {place.dtype}")
    base = check_number(op, of_saved + "base", options.base)
    if not 0 < base < np.inf:
        raise ValueError(f"{op}: {of_saved}base must be positive and finite, got {base}")
    if base < _SMALLEST_BASE:
        raise ValueError(f"{op}: {of_saved}base must be at least 2**-1022, got {base}")
    if not _broadcasts(place.shape, array.shape[:-1]):
        raise ValueError(
            f"{op}: {of_saved}positions must broadcast to {array.shape[:-1]}, the shape of {of_x} but for the last "
            f"axis, got {place.shape}"
        )
    n = array.shape[-1]
    wide: Any = np.longdouble if array.dtype == np.float64 else np.float64
    try:
        own = np.array(place, wide)  # from here on nothing depends on the caller's array
        if not np.isfinite(own).all():
            raise ValueError(f"{op}: {of_saved}positions must be finite, got {own[~np.isfinite(own)][0]}")
        frequency = np.power(wide(base), -np.arange(0, n, 2).astype(wide) / wide(max(n, 1)))
        angle = own.ravel()[:, None] * frequency
        kind = np.float64 if array.dtype == np.float64 else np.float32
        cosine, sine = np.cos(angle).astype(kind), (direction * np.sin(angle)).astype(kind)
        return _laid_out(array, cosine, sine, own.shape, interleaved)
    except MemoryError:
        raise MemoryError(f"{op}: no memory for the angles of {of_saved}positions, shape {place.shape}") from None


@default_floats
def _given_rotations(array: Array, options: SavedRope, direction: int, interleaved: bool, op: str, of_x: str,
                     of_saved: str) -> Rotations:  # fmt: skip
    """Of the caller's cosines and sines."""
    kind, half = (np.float64 if array.dtype == np.float64 else np.float32), array.shape[-1] // 2
    tables: list[Array] = []
    pair: Any = (("cos", options.cos), ("sin", options.sin))
    for name, value in pair:
        label = of_saved + name
        table = _core.checked_floats(value, op, label)
        if table.dtype not in (array.dtype, kind):
            raise TypeError(f"{op}: {label} must be {array.dtype} like {of_x}, got {table.dtype}")
        if not (table.ndim and table.shape[-1] == half and _broadcasts(table.shape[:-1], array.shape[:-1])):
            raise ValueError(
                f"{op}: {label} must broadcast to {(*array.shape[:-1], half)}, half the columns of {of_x}, "
                f"got {table.shape}"
            )
        try:
            tables.append(table.astype(kind, order="C"))  # a copy, as of positions
        except MemoryError:
            raise MemoryError(f"{op}: no memory for a copy of {label}, shape {table.shape}") from None
    cosine, sine = tables
    if cosine.shape != sine.shape:
        raise ValueError(f"{op}: {of_saved}sin must have the shape of cos, {cosine.shape}, got {sine.shape}")
    if direction < 0:
        np.negative(sine, out=sine)
    try:
        return _laid_out(array, cosine, sine, cosine.shape[:-1], interleaved)
    except MemoryError:
        raise MemoryError(f"{op}: no memory for the tables of {of_saved}cos and sin, shape {cosine.shape}") from None


def _laid_out(array: Array, cosine: Array, sine: Array, lead: tuple[int, ...], interleaved: bool) -> Rotations:
    """Tables as C takes them, from rows [..., D / 2] that have the shape `lead`."""
    rows, half = int(np.prod(lead)), array.shape[-1] // 2
    cosine, sine = cosine.reshape(rows, half), sine.reshape(rows, half)
    if interleaved:
        cosine, sine = np.repeat(cosine, 2, axis=1), np.repeat(sine, 2, axis=1)
        sine[:, 0::2] *= -1
    if not array.size:
        return cosine, sine, np.zeros(0, np.int64)
    row = np.arange(rows).reshape(lead)
    return cosine, sine, np.ascontiguousarray(np.broadcast_to(row, array.shape[:-1]), np.int64)

"""Functions of rows: softmax and log-softmax, with their gradients."""

import numpy as np
from numpy.exceptions import AxisError
from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._types import Array


def softmax(x: ArrayLike, axis: int = -1, *, scale: float = 1.0, out: Array | None = None) -> Array:
    """y = e^(scale x) / sum e^(scale x) over `axis`.

    Relative error of each element at most 4 eps. NaN, +inf, or nothing but -inf in a row make the row NaN.

    >>> softmax(np.array([0.0, 0.0, -np.inf]))
    array([0.5, 0.5, 0. ])
    """
    return _softmax(False, x, axis, scale, out, "softmax")


def log_softmax(x: ArrayLike, axis: int = -1, *, scale: float = 1.0, out: Array | None = None) -> Array:
    """y = scale x - log sum e^(scale x) over `axis`.

    >>> log_softmax(np.array([0.0, 0.0]))
    array([-0.69314718, -0.69314718])
    """
    return _softmax(True, x, axis, scale, out, "log_softmax")


def softmax_backward(dy: ArrayLike, y: ArrayLike, axis: int = -1, *, scale: float = 1.0) -> Array:
    """Gradient of softmax: dx = scale y (dy - sum dy y), from its result y.

    >>> softmax_backward(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    array([ 0.25, -0.25])
    """
    return _softmax_backward(False, dy, y, axis, scale, "softmax_backward")


def log_softmax_backward(dy: ArrayLike, y: ArrayLike, axis: int = -1, *, scale: float = 1.0) -> Array:
    """Gradient of log_softmax: dx = scale (dy - e^y sum dy), from its result y.

    >>> log_softmax_backward(np.array([1.0, 0.0]), np.log([0.5, 0.5]))
    array([ 0.5, -0.5])
    """
    return _softmax_backward(True, dy, y, axis, scale, "log_softmax_backward")


def softmax_forward(x: ArrayLike, axis: int = -1, *, scale: float = 1.0) -> tuple[Array, Array]:
    """softmax, and the values that its gradient needs: `softmax_backward(dy, saved, axis, scale=scale)`.

    >>> y, saved = softmax_forward(np.array([0.0, 0.0]))
    >>> softmax_backward(np.array([1.0, 0.0]), saved)
    array([ 0.25, -0.25])
    """
    y = softmax(x, axis, scale=scale)
    return y, y


def log_softmax_forward(x: ArrayLike, axis: int = -1, *, scale: float = 1.0) -> tuple[Array, Array]:
    """log_softmax, and the values that its gradient needs: `log_softmax_backward(dy, saved, axis, scale=scale)`.

    >>> y, saved = log_softmax_forward(np.array([0.0, 0.0]))
    >>> y is saved
    True
    """
    y = log_softmax(x, axis, scale=scale)
    return y, y


def _last_axis(x: ArrayLike, axis: int, op: str, name: str = "x") -> tuple[Array, int]:
    """x as an array, and axis counted from 0."""
    array = _core.checked_array(x, op, name)
    axis = _core.checked_integer(axis, op, "axis")
    if not -array.ndim <= axis < array.ndim:
        raise AxisError(f"{op}: axis must lie in {-array.ndim}..{array.ndim - 1} for shape {array.shape}, got {axis}")
    return array, axis % array.ndim


def _softmax(log: bool, x: ArrayLike, axis: int, scale: float, out: Array | None, op: str) -> Array:
    array, axis = _last_axis(x, axis, op)
    if axis == array.ndim - 1:
        return _core.softmax_rows(log, array, scale, out, op)
    if out is not None:
        _core.check_out(out, array, op)
    rows = _core.softmax_rows(log, np.moveaxis(array, axis, -1), scale, None, op)
    result = _core.new_array(array.shape, rows.dtype, op) if out is None else out
    np.copyto(result, np.moveaxis(rows, -1, axis))
    return result


def _softmax_backward(log: bool, dy: ArrayLike, y: ArrayLike, axis: int, scale: float, op: str) -> Array:
    array, axis = _last_axis(y, axis, op, "y")
    gradient = _core.checked_array(dy, op, "dy")
    if axis == array.ndim - 1 or gradient.shape != array.shape:
        return _core.softmax_backward_rows(log, gradient, array, scale, op)
    rows = _core.softmax_backward_rows(log, np.moveaxis(gradient, axis, -1), np.moveaxis(array, axis, -1), scale, op)
    return np.ascontiguousarray(np.moveaxis(rows, -1, axis))

"""Linear layers, with their gradients."""

from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn._core import PackedLinear
from fastattn.functional._checks import check_saved
from fastattn.functional._types import Array


def linear(x: ArrayLike, weight: ArrayLike | PackedLinear, bias: ArrayLike | None = None, *,
           activation: str | None = None, out: Array | None = None) -> Array:  # fmt: skip
    """y = activation(x weight^T + bias): x[..., in], weight[out, in] (PyTorch's layout), bias[out], y[..., out].

    activation: None, "relu", "gelu", "gelu_tanh", "silu", "tanh" or "sigmoid". A weight from pack_linear saves packing
    it again in each call.

    >>> linear(np.ones((2, 3)), np.eye(3)[:2], np.array([0.0, 1.0]))
    array([[1., 2.],
           [1., 2.]])
    """
    result: Array = _core.linear(x, weight, bias, activation, out, False, "linear")
    return result


class SavedLinear(NamedTuple):
    """The values that the gradients of linear need. z: the sum before the activation (of relu the result; None without
    one)."""

    x: ArrayLike
    weight: ArrayLike
    bias: bool
    z: Array | None
    activation: str | None


def linear_forward(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, *,
                   activation: str | None = None) -> tuple[Array, SavedLinear]:  # fmt: skip
    """linear, and the values that its gradients need: (y, saved). `weight` is an array.

    >>> y, saved = linear_forward(np.ones((2, 3)), np.eye(3)[:2], activation="relu")
    >>> linear_backward(np.ones((2, 2)), saved)[0]
    array([[1., 1., 0.],
           [1., 1., 0.]])
    """
    y, z = _core.linear(x, weight, bias, activation, None, True, "linear_forward")
    return y, SavedLinear(x, weight, bias is not None, z, activation)


def linear_backward(dy: ArrayLike, saved: SavedLinear) -> tuple[Array, Array, Array | None]:
    """Gradients (dx, dweight, dbias) of linear_forward from that of its result; dbias None without a bias.

    With z = x weight^T + bias and g = dy activation'(z):

        dx = g weight,  dweight = g^T x,  dbias = sum of g over all rows

    Sums over rows run in parts of 64, added in order: the same bits on any number of threads. Gradients of 16-bit
    arrays are computed in float32, from a copy of them, and rounded once.

    >>> _, saved = linear_forward(np.array([[1.0, 2.0]]), np.ones((1, 2)), np.zeros(1))
    >>> linear_backward(np.array([[3.0]]), saved)
    (array([[3., 3.]]), array([[3., 6.]]), array([3.]))
    """
    check_saved("linear_backward", saved, SavedLinear)
    x, weight, bias, z, activation = saved
    dx, dweight, dbias = _core.linear_backward(dy, x, weight, z, activation, bias, True, None, "linear_backward")
    return dx, dweight, dbias


def pack_linear(weight: ArrayLike, dtype: Any = None) -> PackedLinear:
    """A weight[out, in] in the layout of the kernels, for linear. dtype: float32, float64, bfloat16 or float16,
    that of `weight` by default; `linear` takes x of that dtype.

    >>> pack_linear(np.eye(3)).shape
    (3, 3)
    """
    return _core.pack_linear(weight, dtype)

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

    dtype "int8" multiplies bytes: `linear` takes float32 x, and turns each of its rows into bytes as well. Both are
    rotated by a Hadamard matrix of 128 columns, which leaves the product as it is and spreads large elements over their
    group; each group of 128 columns of a row has a scale, its largest magnitude / 127. Sums of a group are exact whole
    numbers, and without an activation all instruction sets give the same bits. With x_g and w_g the parts of the two
    rows in group g,

        |y - (x w^T + bias)| <= 0.09 sum over g of |x_g| |w_g|    (lengths)

    beside the rounding of float32. Errors of random signs are far smaller: of normal numbers 1 % of the deviation of
    the result. A row with NaN or infinity gives NaN, in x and in `weight`. Source of the rotation: Ashkboos et al.
    2024, arXiv:2404.00456.

    >>> pack_linear(np.eye(3)).shape
    (3, 3)
    >>> pack_linear(np.eye(3), "int8").weight_dtype
    'int8'
    """
    return _core.pack_linear(weight, dtype)

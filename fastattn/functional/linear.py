"""Linear layers."""

from typing import Any

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn._core import PackedLinear
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
    return _core.linear(x, weight, bias, activation, out)


def pack_linear(weight: ArrayLike, dtype: Any = None) -> PackedLinear:
    """A weight[out, in] in the layout of the kernels, for linear. dtype: float32, float64, bfloat16 or float16,
    that of `weight` by default; `linear` takes x of that dtype.

    >>> pack_linear(np.eye(3)).shape
    (3, 3)
    """
    return _core.pack_linear(weight, dtype)

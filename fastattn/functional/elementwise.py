"""Element-wise functions."""

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._types import Array


def exp(x: ArrayLike, *, out: Array | None = None) -> Array:
    """e^x of each element.

    Largest error 1.0 ULP, subnormal results included.

    >>> exp(np.array([-np.inf, 0.0]))
    array([0., 1.])
    """
    return _core.map_elements("exp", x, out, "exp")


def tanh(x: ArrayLike, *, out: Array | None = None) -> Array:
    """Hyperbolic tangent of each element. Largest error 1.5 ULP (float32), 1.0 ULP (float64).

    >>> tanh(np.array([-np.inf, 0.0, np.inf]))
    array([-1.,  0.,  1.])
    """
    return _core.map_elements("tanh", x, out, "tanh")


def sigmoid(x: ArrayLike, *, out: Array | None = None) -> Array:
    """1 / (1 + e^-x) of each element. Largest error 2.0 ULP (float32), 1.0 ULP (float64), for very negative x too.

    >>> sigmoid(np.array([-np.inf, 0.0, np.inf]))
    array([0. , 0.5, 1. ])
    """
    return _core.map_elements("sigmoid", x, out, "sigmoid")


def relu(x: ArrayLike, *, out: Array | None = None) -> Array:
    """max(x, 0) of each element; NaN stays NaN.

    >>> relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return _core.map_elements("relu", x, out, "relu")


def silu(x: ArrayLike, *, out: Array | None = None) -> Array:
    """x / (1 + e^-x) of each element ("swish").

    >>> silu(np.array([0.0, 100.0]))
    array([  0., 100.])
    """
    return _core.map_elements("silu", x, out, "silu")


def gelu(x: ArrayLike, *, approximate: str = "none", out: Array | None = None) -> Array:
    """Gaussian error linear unit of each element: x Phi(x), Phi the standard normal distribution.

    approximate="tanh": x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    Largest error 3.0 ULP (float32), 1.0 ULP (float64), for very negative x too. Source: Hendrycks and Gimpel 2016,
    arXiv:1606.08415.

    >>> gelu(np.array([0.0, 100.0]))
    array([  0., 100.])
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return _core.map_elements("gelu" if approximate == "none" else "gelu_tanh", x, out, "gelu")

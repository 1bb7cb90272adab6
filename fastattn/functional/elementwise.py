"""Element-wise functions, with their gradients: x_backward(dy, x) is dy times the derivative at x."""

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._checks import check_choice
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
    return _core.map_elements(_kind_of_gelu(approximate, "gelu"), x, out, "gelu")


def _kind_of_gelu(approximate: str, op: str) -> str:
    kind = check_choice(op, "approximate", approximate, ("none", "tanh"))
    return "gelu" if kind == "none" else "gelu_tanh"


def silu_gated(gate: ArrayLike, up: ArrayLike, *, out: Array | None = None) -> Array:
    """silu(gate) up, element by element: the gated linear unit of Shazeer 2020, arXiv:2002.05202 ("SwiGLU").

    gate and up have one shape and dtype; out may be either.

    >>> silu_gated(np.array([100.0, 0.0]), np.array([2.0, 3.0]))
    array([200.,   0.])
    """
    return _core.silu_gated(gate, up, out, "silu_gated")


def silu_gated_backward(dy: ArrayLike, gate: ArrayLike, up: ArrayLike) -> tuple[Array, Array]:
    """Gradients (dgate, dup) of silu_gated: dy up silu'(gate), and dy silu(gate).

    >>> silu_gated_backward(np.array([1.0]), np.array([100.0]), np.array([2.0]))
    (array([2.]), array([100.]))
    """
    return _core.silu_gated_backward(dy, gate, up, "silu_gated_backward")


def tanh_backward(dy: ArrayLike, x: ArrayLike) -> Array:
    """Gradient of tanh: dy (1 - tanh(x)^2).

    >>> tanh_backward(np.array([2.0, 2.0]), np.array([0.0, np.inf]))
    array([2., 0.])
    """
    return _core.map_backward("tanh", dy, x, "tanh_backward")


def sigmoid_backward(dy: ArrayLike, x: ArrayLike) -> Array:
    """Gradient of sigmoid: dy s (1 - s) with s = sigmoid(x).

    >>> sigmoid_backward(np.array([4.0]), np.array([0.0]))
    array([1.])
    """
    return _core.map_backward("sigmoid", dy, x, "sigmoid_backward")


def relu_backward(dy: ArrayLike, x: ArrayLike) -> Array:
    """Gradient of relu: dy where x > 0, else 0; NaN where x is. x may be the result of relu.

    >>> relu_backward(np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    array([0., 3.])
    """
    return _core.map_backward("relu", dy, x, "relu_backward")


def silu_backward(dy: ArrayLike, x: ArrayLike) -> Array:
    """Gradient of silu: dy (s + x s (1 - s)) with s = sigmoid(x).

    >>> silu_backward(np.array([2.0, 2.0]), np.array([0.0, 100.0]))
    array([1., 2.])
    """
    return _core.map_backward("silu", dy, x, "silu_backward")


def gelu_backward(dy: ArrayLike, x: ArrayLike, *, approximate: str = "none") -> Array:
    """Gradient of gelu: dy (Phi(x) + x phi(x)), phi the density of the standard normal distribution.

    approximate="tanh": that of the other form, dy (s + x s (1 - s) u') with s = sigmoid(u) and
    u = 2 sqrt(2 / pi) (x + 0.044715 x^3).

    >>> gelu_backward(np.array([2.0, 2.0]), np.array([0.0, 100.0]))
    array([1., 2.])
    """
    return _core.map_backward(_kind_of_gelu(approximate, "gelu_backward"), dy, x, "gelu_backward")

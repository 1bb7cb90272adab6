"""Layer norm and RMS norm over the last axis, with their gradients."""

from typing import NamedTuple

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._checks import check_saved
from fastattn.functional._types import Array


class SavedNorm(NamedTuple):
    """The values that the gradient of a norm needs. `x` is the array that was normed: with a residual, the sum."""

    x: Array
    weight: ArrayLike | None
    bias: bool
    mean: Array | None
    rstd: Array


def layer_norm(x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, *, eps: float = 1e-5,
               out: Array | None = None) -> Array:  # fmt: skip
    """y = (x - mean) / sqrt(variance + eps) * weight + bias over the last axis: x[..., n], weight[n], bias[n].

    The variance is that of the population (divided by n). A large common offset of a row loses no digits. NaN or an
    infinity in a row makes the row NaN. Beside 16-bit x, weight and bias may be float32. `out` may be x. Source: Ba et
    al. 2016, arXiv:1607.06450.

    >>> layer_norm(np.array([1.0, 3.0]), eps=0)
    array([-1.,  1.])
    """
    return _core.norm("layer", x, None, weight, bias, eps, out, False, "layer_norm")[0]


def layer_norm_forward(x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, *,
                       residual: ArrayLike | None = None, eps: float = 1e-5) -> tuple[Array, SavedNorm]:  # fmt: skip
    """layer_norm of x, or of x + residual (then `saved.x`), and the values that its gradient needs.

    >>> y, saved = layer_norm_forward(np.array([1.0, 3.0]))
    >>> layer_norm_backward(np.array([1.0, 1.0]), saved)[0]
    array([0., 0.])
    """
    y, total, mean, rstd = _core.norm("layer", x, residual, weight, bias, eps, None, True, "layer_norm_forward")
    return y, SavedNorm(total, weight, bias is not None, mean, rstd)


def layer_norm_backward(
    dy: ArrayLike, saved: SavedNorm, *, dsum: ArrayLike | None = None
) -> tuple[Array, Array | None, Array | None]:
    """Gradients (dx, dweight, dbias) of layer_norm_forward; None for a weight or bias that the call did not have.

    dweight and dbias have the type of the weight.

    With a residual, dx is its gradient too. dsum[..., n]: the gradient of the returned sum, added to dx.
    With x^ = (x - mean) rstd and g = dy weight: dx = rstd (g - sum g / n - x^ sum g x^ / n).

    >>> y, saved = layer_norm_forward(np.array([1.0, 3.0]), np.ones(2), np.zeros(2), eps=0)
    >>> layer_norm_backward(np.array([1.0, 0.0]), saved)
    (array([0., 0.]), array([-1.,  0.]), array([1., 0.]))
    """
    check_saved("layer_norm_backward", saved, SavedNorm)
    return _core.norm_backward(
        "layer", dy, saved.x, saved.weight, saved.mean, saved.rstd, dsum, saved.bias, "layer_norm_backward"
    )


def add_layer_norm(x: ArrayLike, residual: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None,
                   *, eps: float = 1e-5) -> tuple[Array, Array]:  # fmt: skip
    """(layer_norm(z), z) of z = x + residual, in one pass over memory.

    >>> add_layer_norm(np.array([1.0, 1.0]), np.array([0.0, 2.0]), eps=0)
    (array([-1.,  1.]), array([1., 3.]))
    """
    return _core.norm("layer", x, residual, weight, bias, eps, None, False, "add_layer_norm")[:2]


def rms_norm(x: ArrayLike, weight: ArrayLike | None = None, *, eps: float = 1e-5, out: Array | None = None) -> Array:
    """y = x / sqrt(mean x^2 + eps) * weight over the last axis: x[..., n], weight[n].

    Beside 16-bit x, weight may be float32. `out` may be x. Source: Zhang and Sennrich 2019, arXiv:1910.07467.

    >>> rms_norm(np.array([3.0, -3.0]), eps=0)
    array([ 1., -1.])
    """
    return _core.norm("rms", x, None, weight, None, eps, out, False, "rms_norm")[0]


def rms_norm_forward(x: ArrayLike, weight: ArrayLike | None = None, *, residual: ArrayLike | None = None,
                     eps: float = 1e-5) -> tuple[Array, SavedNorm]:  # fmt: skip
    """rms_norm of x, or of x + residual (then `saved.x`), and the values that its gradient needs.

    >>> y, saved = rms_norm_forward(np.array([3.0, -3.0]), eps=0)
    >>> rms_norm_backward(np.array([3.0, 0.0]), saved)[0]
    array([0.5, 0.5])
    """
    y, total, _, rstd = _core.norm("rms", x, residual, weight, None, eps, None, True, "rms_norm_forward")
    return y, SavedNorm(total, weight, False, None, rstd)


def rms_norm_backward(dy: ArrayLike, saved: SavedNorm, *, dsum: ArrayLike | None = None) -> tuple[Array, Array | None]:
    """Gradients (dx, dweight) of rms_norm_forward, dweight None without a weight; dsum as in layer_norm_backward.

    With x^ = x rstd and g = dy weight: dx = rstd (g - x^ sum g x^ / n).

    >>> y, saved = rms_norm_forward(np.array([3.0, -3.0]), np.ones(2), eps=0)
    >>> rms_norm_backward(np.array([3.0, 0.0]), saved)
    (array([0.5, 0.5]), array([3., 0.]))
    """
    check_saved("rms_norm_backward", saved, SavedNorm)
    return _core.norm_backward(
        "rms", dy, saved.x, saved.weight, saved.mean, saved.rstd, dsum, False, "rms_norm_backward"
    )[:2]


def add_rms_norm(
    x: ArrayLike, residual: ArrayLike, weight: ArrayLike | None = None, *, eps: float = 1e-5
) -> tuple[Array, Array]:
    """(rms_norm(z), z) of z = x + residual, in one pass over memory.

    >>> add_rms_norm(np.array([1.0, -4.0]), np.array([2.0, 1.0]), eps=0)
    (array([ 1., -1.]), array([ 3., -3.]))
    """
    return _core.norm("rms", x, residual, weight, None, eps, None, False, "add_rms_norm")[:2]

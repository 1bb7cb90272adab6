"""Gradients of scaled dot-product attention."""

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._types import Array
from fastattn.functional.attention import SavedAttention


def attention_backward(dout: ArrayLike, saved: SavedAttention) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv) of attention, from the gradient of its output.

    With P the probabilities and dS = P * (dout v^T - rowsum(dout * out)):

        dv = P^T dout,  dq = scale dS k,  dk = scale dS^T q

    where heads that share keys add up. P is computed anew, block by block; no Lq x Lk matrix is in memory.

    Parameters
    ----------
    dout
        Gradient with respect to the output of attention_forward, of its shape and dtype.
    saved
        What attention_forward returned beside it.

    A pair that is masked, or whose probability is 0, contributes nothing, even where its rows hold NaN; a query with
    nothing to attend to has the gradient 0.

    Raises ValueError and TypeError naming the argument. Source: Dao et al. 2022, arXiv:2205.14135, appendix B.

    >>> q = k = np.zeros((1, 1, 2, 4)); v = np.array([[[[1.0], [3.0]]]])
    >>> out, saved = fa.attention_forward(q, k, v)
    >>> attention_backward(np.ones((1, 1, 2, 1)), saved)[2][0, 0, :, 0]
    array([1., 1.])
    """
    if not isinstance(saved, SavedAttention):
        raise TypeError(
            f"attention_backward: saved must be what attention_forward returned, got {type(saved).__name__}"
        )
    gradients: tuple[Array, Array, Array] = _core.attention_backward(
        dout, saved.q, saved.k, saved.v, saved.out, saved.state, *saved.options
    )
    return gradients

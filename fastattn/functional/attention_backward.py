"""Gradients of scaled dot-product attention."""

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._types import Array
from fastattn.functional.attention import SavedAttention
from fastattn.functional.attention_varlen import SavedAttentionVarlen


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


def attention_varlen_backward(dout: ArrayLike, saved: SavedAttentionVarlen) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv) of attention_varlen, of the shapes of its q, k, v: as of attention_backward.

    Parameters
    ----------
    dout
        Gradient with respect to the output of attention_varlen_forward, [Tq, H, Dv], of its dtype.
    saved
        What attention_varlen_forward returned beside it.

    Each sequence has the bits that attention_backward gives for it alone.

    Raises ValueError and TypeError naming the argument. Source: Dao 2023, arXiv:2307.08691.

    >>> q = k = np.zeros((3, 1, 4)); v = np.ones((3, 1, 1))
    >>> out, saved = fa.attention_varlen_forward(q, k, v, [0, 2, 3], [0, 1, 3])
    >>> attention_varlen_backward(np.ones((3, 1, 1)), saved)[2][:, 0, 0]
    array([2. , 0.5, 0.5])
    """
    if not isinstance(saved, SavedAttentionVarlen):
        raise TypeError(
            "attention_varlen_backward: saved must be what attention_varlen_forward returned, got "
            f"{type(saved).__name__}"
        )
    gradients: tuple[Array, Array, Array] = _core.attention_varlen_backward(
        dout, saved.q, saved.k, saved.v, saved.cu_seqlens_q, saved.cu_seqlens_k, saved.out, saved.state, *saved.options
    )
    return gradients

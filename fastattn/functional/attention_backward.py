"""Gradients of scaled dot-product attention."""

from collections.abc import Collection
from typing import NamedTuple, overload

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._checks import check_parts, check_saved
from fastattn.functional._types import Array
from fastattn.functional.attention import SavedAttention
from fastattn.functional.attention_varlen import SavedAttentionVarlen

_OPTIONS = 7  # of all forms of attention: mask ... sinks
_SAVED_OPTIONS = 10  # of SavedAttention: lengths and layout too


class AttentionGradients(NamedTuple):
    """Gradients of attention; None for those that `gradients` did not name."""

    dq: Array
    dk: Array
    dv: Array
    dmask: Array | None = None
    dsinks: Array | None = None
    dalibi_slopes: Array | None = None


@overload
def attention_backward(dout: ArrayLike, saved: SavedAttention) -> tuple[Array, Array, Array]: ...
@overload
def attention_backward(dout: ArrayLike, saved: SavedAttention, *, gradients: Collection[str]) -> AttentionGradients: ...
def attention_backward(
    dout: ArrayLike, saved: SavedAttention, *, gradients: Collection[str] | None = None
) -> tuple[Array, Array, Array] | AttentionGradients:
    """Gradients (dq, dk, dv) of attention, from the gradient of its output; and those that `gradients` names.

    With P the probabilities and dS = P * (dout v^T - rowsum(dout * out)):

        dv = P^T dout,  dq = scale dS k,  dk = scale dS^T q
        dmask = dS,  dsinks = -sum p_sink rowsum(dout * out),  dalibi_slopes = -sum distance dS

    Heads that share keys add up, and a softcap multiplies the dS of dq and dk by 1 - tanh^2. P is recomputed block by
    block; only dmask has Lq x Lk elements.

    Parameters
    ----------
    dout
        Gradient with respect to the output of attention_forward, of its shape and dtype.
    saved
        What attention_forward returned beside it.
    gradients
        Names of further arguments: "mask" (of floats), "sinks", "alibi_slopes". The result is then an
        AttentionGradients (dq, dk, dv, dmask, dsinks, dalibi_slopes), None for those not named. Each has the shape
        and dtype of its argument; a mask that was broadcast has the sum over those axes.

    A pair that is masked, or whose probability is 0, contributes nothing, even where its rows hold NaN; a query with
    nothing to attend to has the gradient 0. Sums are of float32 (float64 for float64), rounded once to 16 bits; with
    AVX-512 BF16, P and dS are rounded to bfloat16 before they are multiplied.

    Raises ValueError and TypeError naming the argument. Source: Dao et al. 2022, arXiv:2205.14135, appendix B.

    >>> q = k = np.zeros((1, 1, 2, 4)); v = np.array([[[[1.0], [3.0]]]])
    >>> out, saved = fa.attention_forward(q, k, v, mask=np.zeros((2, 2)))
    >>> attention_backward(np.ones((1, 1, 2, 1)), saved)[2][0, 0, :, 0]
    array([1., 1.])
    >>> attention_backward(np.ones((1, 1, 2, 1)), saved, gradients=["mask"]).dmask
    array([[-0.5,  0.5],
           [-0.5,  0.5]])
    """
    check_saved("attention_backward", saved, SavedAttention)
    options = check_parts("attention_backward", "saved.options", saved.options, _SAVED_OPTIONS)
    wanted = () if gradients is None else gradients
    arguments = (
        dout,
        saved.q,
        saved.k,
        saved.v,
        saved.out,
        saved.state,
        options[:_OPTIONS],
        *options[_OPTIONS:],
        wanted,
    )
    result = _core.attention_backward(*arguments)
    return result[:3] if gradients is None else AttentionGradients(*result)


@overload
def attention_varlen_backward(dout: ArrayLike, saved: SavedAttentionVarlen) -> tuple[Array, Array, Array]: ...
@overload
def attention_varlen_backward(
    dout: ArrayLike, saved: SavedAttentionVarlen, *, gradients: Collection[str]
) -> AttentionGradients: ...
def attention_varlen_backward(
    dout: ArrayLike, saved: SavedAttentionVarlen, *, gradients: Collection[str] | None = None
) -> tuple[Array, Array, Array] | AttentionGradients:
    """Gradients (dq, dk, dv) of attention_varlen, of the shapes of its q, k, v: as of attention_backward.

    Parameters
    ----------
    dout
        Gradient with respect to the output of attention_varlen_forward, [Tq, H, Dv], of its dtype.
    saved
        What attention_varlen_forward returned beside it.
    gradients
        As of attention_backward; sums over the sequences where they share.

    dq, dk and dv of each sequence have the bits that attention_backward gives for it alone.

    Raises ValueError and TypeError naming the argument. Source: Dao 2023, arXiv:2307.08691.

    >>> q = k = np.zeros((3, 1, 4)); v = np.ones((3, 1, 1))
    >>> out, saved = fa.attention_varlen_forward(q, k, v, [0, 2, 3], [0, 1, 3])
    >>> attention_varlen_backward(np.ones((3, 1, 1)), saved)[2][:, 0, 0]
    array([2. , 0.5, 0.5])
    """
    check_saved("attention_varlen_backward", saved, SavedAttentionVarlen)
    options = check_parts("attention_varlen_backward", "saved.options", saved.options, _OPTIONS)
    offsets, wanted = (saved.cu_seqlens_q, saved.cu_seqlens_k), () if gradients is None else gradients
    arguments = (dout, saved.q, saved.k, saved.v, *offsets, saved.out, saved.state, options, wanted)
    result = _core.attention_varlen_backward(*arguments)
    return result[:3] if gradients is None else AttentionGradients(*result)

"""Gradients of scaled dot-product attention."""

from collections.abc import Collection
from typing import Any, NamedTuple, overload

from numpy.typing import ArrayLike, DTypeLike

from fastattn import _core
from fastattn.functional._checks import check_parts, check_saved
from fastattn.functional._types import Array
from fastattn.functional.attention import OPTIONS, SavedAttention
from fastattn.functional.attention_varlen import SavedAttentionVarlen

_SAVED_OPTIONS = len(OPTIONS) + 3  # of SavedAttention: lengths and layout too


class AttentionGradients(NamedTuple):
    """Gradients of attention; None for those that `gradients` did not name."""

    dq: Array
    dk: Array
    dv: Array
    dmask: Array | None = None
    dsinks: Array | None = None
    dalibi_slopes: Array | None = None

    @property
    def dbias(self) -> Array | None:
        """dmask: of a call that had a bias it is that one's."""
        return self.dmask


@overload
def attention_backward(dout: ArrayLike, saved: SavedAttention, *, partial: bool = False, dlse: ArrayLike | None = None,
                       gradient_dtype: DTypeLike | None = None) -> tuple[Array, Array, Array]: ...  # fmt: skip
@overload
def attention_backward(dout: ArrayLike, saved: SavedAttention, *, partial: bool = False, dlse: ArrayLike | None = None,
                       gradient_dtype: DTypeLike | None = None,
                       gradients: Collection[str]) -> AttentionGradients: ...  # fmt: skip
def attention_backward(dout: ArrayLike, saved: SavedAttention, *, partial: bool = False, dlse: ArrayLike | None = None,
                       gradient_dtype: DTypeLike | None = None, gradients: Collection[str] | None = None
                       ) -> tuple[Array, Array, Array] | AttentionGradients:  # fmt: skip
    """Gradients (dq, dk, dv) of attention, from the gradient of its output; and those that `gradients` names.

    With P the probabilities, delta = rowsum(dout * out) - dlse and dS = P * (dout v^T - delta):

        dv = P^T dout,  dq = scale dS k,  dk = scale dS^T q
        dmask = dS,  dsinks = -sum p_sink delta,  dalibi_slopes = -sum distance dS

    Heads that share keys add up, and a softcap multiplies the dS of dq and dk by 1 - tanh^2. P is recomputed block by
    block; only dmask has Lq x Lk elements.

    Parameters
    ----------
    dout
        Gradient with respect to the output of attention_forward, of its shape and dtype.
    saved
        What attention_forward returned beside it, or saved_attention.
    partial
        The keys of `saved` are a part of those that its out and lse are of: as in a ring, where each process has some
        of the keys. dq is then the part that these keys add to it, dk and dv are theirs, and dsinks, which no key has
        a part in, is that of the whole in each call.
    dlse
        Gradient with respect to saved.lse, of its shape and dtype; None for 0.
    gradient_dtype
        None for the dtype of the inputs, or np.float32 for inputs of 16 bits: sums of several parts are then rounded
        once, by the caller.
    gradients
        Names of further arguments: "mask" (of floats) or "bias", "sinks", "alibi_slopes". The result is then an
        AttentionGradients (dq, dk, dv, dmask, dsinks, dalibi_slopes), None for those not named, dmask also for a
        bias. Each has the shape of its argument, and its dtype or gradient_dtype; a mask that was broadcast has the sum
        over those axes.

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
    request = (() if gradients is None else gradients, partial, dlse, gradient_dtype)
    shared, rest = options[: len(OPTIONS)], options[len(OPTIONS) :]
    arguments: tuple[Any, ...] = (dout, saved.q, saved.k, saved.v, saved.out, saved.state, shared, *rest, request)
    result = _core.attention_backward(*arguments)
    return result[:3] if gradients is None else AttentionGradients(*result)


@overload
def attention_varlen_backward(dout: ArrayLike, saved: SavedAttentionVarlen, *, partial: bool = False,
                              dlse: ArrayLike | None = None, gradient_dtype: DTypeLike | None = None
                              ) -> tuple[Array, Array, Array]: ...  # fmt: skip
@overload
def attention_varlen_backward(dout: ArrayLike, saved: SavedAttentionVarlen, *, partial: bool = False,
                              dlse: ArrayLike | None = None, gradient_dtype: DTypeLike | None = None,
                              gradients: Collection[str]) -> AttentionGradients: ...  # fmt: skip
def attention_varlen_backward(dout: ArrayLike, saved: SavedAttentionVarlen, *, partial: bool = False,
                              dlse: ArrayLike | None = None, gradient_dtype: DTypeLike | None = None,
                              gradients: Collection[str] | None = None
                              ) -> tuple[Array, Array, Array] | AttentionGradients:  # fmt: skip
    """Gradients (dq, dk, dv) of attention_varlen, of the shapes of its q, k, v: as of attention_backward.

    Parameters
    ----------
    dout
        Gradient with respect to the output of attention_varlen_forward, [Tq, H, Dv], of its dtype.
    saved
        What attention_varlen_forward returned beside it.
    partial, dlse, gradient_dtype, gradients
        As of attention_backward; `gradients` are sums over the sequences where they share.

    dq, dk and dv of each sequence have the bits that attention_backward gives for it alone.

    Raises ValueError and TypeError naming the argument. Source: Dao 2023, arXiv:2307.08691.

    >>> q = k = np.zeros((3, 1, 4)); v = np.ones((3, 1, 1))
    >>> out, saved = fa.attention_varlen_forward(q, k, v, [0, 2, 3], [0, 1, 3])
    >>> attention_varlen_backward(np.ones((3, 1, 1)), saved)[2][:, 0, 0]
    array([2. , 0.5, 0.5])
    """
    check_saved("attention_varlen_backward", saved, SavedAttentionVarlen)
    options = check_parts("attention_varlen_backward", "saved.options", saved.options, len(OPTIONS))
    request = (() if gradients is None else gradients, partial, dlse, gradient_dtype)
    arrays = (dout, saved.q, saved.k, saved.v, saved.cu_seqlens_q, saved.cu_seqlens_k, saved.out, saved.state)
    result = _core.attention_varlen_backward(*arrays, options, request)
    return result[:3] if gradients is None else AttentionGradients(*result)

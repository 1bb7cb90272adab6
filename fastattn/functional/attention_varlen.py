"""Attention over ragged batches without padding."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._types import Array
from fastattn.functional.attention import OPTIONS, in_order


def attention_varlen(q: ArrayLike, k: ArrayLike, v: ArrayLike, cu_seqlens_q: ArrayLike, cu_seqlens_k: ArrayLike, *,
                     mask: ArrayLike | None = None, causal: bool | str = False, scale: float | None = None,
                     window: tuple[int | None, int | None] | None = None, softcap: float = 0.0,
                     alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
                     q_start: ArrayLike | None = None, bias: ArrayLike | None = None,
                     dropout_p: float = 0.0, seed: int = 0, return_lse: bool = False,
                     out: Array | None = None) -> Any:  # fmt: skip
    """attention of each sequence of a ragged batch. The sequences are stored one after another, without padding.

    Parameters
    ----------
    q, k, v
        [Tq, H, D], [Tk, Hk, D], [Tk, Hk, Dv]; H a multiple of Hk.
    cu_seqlens_q, cu_seqlens_k
        [B + 1] integers from 0 to Tq (Tk), in rising order: sequence b has the rows cu_seqlens[b] to cu_seqlens[b + 1].
        The lengths may come in any order, and be 0.
    mask
        As of attention, broadcastable to [B, H, longest of q, longest of k]; bias too.
    causal, scale, window, softcap, alibi_slopes, sinks, q_start, bias, dropout_p, seed
        As of attention, within each sequence; causal=True where each has as many queries as keys, or with q_start.
    return_lse
        Also return the lse of each row, [Tq, H].

    Returns out[Tq, H, Dv]: the bits that attention gives for each sequence alone.

    Raises ValueError and TypeError naming the argument. Source: Dao 2023, arXiv:2307.08691.

    >>> q = np.zeros((3, 1, 4)); v = np.array([[[1.0]], [[3.0]], [[5.0]]])
    >>> attention_varlen(q, q, v, [0, 2, 3], [0, 2, 3])[:, 0, 0]
    array([2., 2., 5.])
    """
    options = (mask, causal, scale, window, softcap, alibi_slopes, sinks, q_start, bias, dropout_p, seed)
    return _core.attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, options, out, return_lse, False)


@dataclass(frozen=True, eq=False, repr=False)
class SavedAttentionVarlen:
    """The values of a forward call that the gradients of attention_varlen need, as SavedAttention has it."""

    q: ArrayLike
    k: ArrayLike
    v: ArrayLike
    cu_seqlens_q: ArrayLike
    cu_seqlens_k: ArrayLike
    options: tuple[Any, ...]  # mask ... seed
    out: Any
    lse: Any
    state: Array  # [2, H, Tq]

    @classmethod
    def of(cls, q: ArrayLike, k: ArrayLike, v: ArrayLike, cu_seqlens_q: ArrayLike, cu_seqlens_k: ArrayLike,
           out: ArrayLike, lse: ArrayLike, state: Array, **options: Any) -> "SavedAttentionVarlen":  # fmt: skip
        """From its parts, and the options of the forward call by name."""
        return cls(q, k, v, cu_seqlens_q, cu_seqlens_k, in_order(OPTIONS, options), out, lse, state)


def attention_varlen_forward(q: ArrayLike, k: ArrayLike, v: ArrayLike, cu_seqlens_q: ArrayLike, cu_seqlens_k: ArrayLike,
                             *, mask: ArrayLike | None = None, causal: bool | str = False, scale: float | None = None,
                             window: tuple[int | None, int | None] | None = None, softcap: float = 0.0,
                             alibi_slopes: ArrayLike | None = None,
                             sinks: ArrayLike | None = None, q_start: ArrayLike | None = None,
                             bias: ArrayLike | None = None, dropout_p: float = 0.0, seed: int = 0
                             ) -> tuple[Array, SavedAttentionVarlen]:  # fmt: skip
    """attention_varlen, and the values that its gradients need: (out, saved).

    Arguments and errors as of attention_varlen.

    >>> out, saved = attention_varlen_forward(*[np.ones((3, 1, 4))] * 3, [0, 2, 3], [0, 2, 3])
    >>> saved.lse.shape
    (3, 1)
    """
    options = (mask, causal, scale, window, softcap, alibi_slopes, sinks, q_start, bias, dropout_p, seed)
    out, lse, state = _core.attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, options, None, False, True)
    return out, SavedAttentionVarlen(q, k, v, cu_seqlens_q, cu_seqlens_k, options, out, lse, state)

"""Scaled dot-product attention."""

from typing import Any

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._types import Array


def attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
              scale: float | None = None, window: tuple[int | None, int | None] | None = None,
              q_lengths: ArrayLike | None = None, kv_lengths: ArrayLike | None = None, layout: str = "bhld",
              return_lse: bool = False, out: Array | None = None) -> Any:  # fmt: skip
    """Scaled dot-product attention: out = softmax(scale q k^T + mask) v, without an Lq x Lk matrix in memory.

    Parameters
    ----------
    q, k, v
        [B, H, Lq, D], [B, Hk, Lk, D], [B, Hk, Lk, Dv]; H a multiple of Hk (query heads h share the keys of head h // (H
        / Hk), which are
        not copied). layout="blhd": axes 1 and 2 of q, k, v and of the results change places.
    mask
        bool (True: attend) or the dtype of q (added to the scaled scores; -inf: do not attend), broadcastable to [B, H,
        Lq, Lk].
        What is masked is never read into arithmetic: NaN or inf there changes nothing.
    causal
        False, "top-left" (key j <= query i) or "bottom-right" (j <= i + Lk - Lq); True when Lq == Lk.
    scale
        1 / sqrt(D) by default.
    window
        (left, right): distances on each side of the diagonal, None for no bound. The diagonal is that of `causal`,
        bottom-right when not causal.
    q_lengths, kv_lengths
        [B] integers in 0..L: positions beyond do not exist, also for the diagonal; their outputs are zero.
    return_lse
        Also return the natural log of the sum of exponentials of each row, [B, H, Lq] (layout "blhd": [B, Lq, H]).

    A query with nothing to attend to: zeros, lse -inf. NaN in a score, or +inf, makes its row NaN.

    Raises ValueError and TypeError naming the argument. Sources: Vaswani et al. 2017, arXiv:1706.03762; Dao et al.
    2022, arXiv:2205.14135.

    >>> q = np.zeros((1, 1, 2, 4)); k = q; v = np.array([[[[1.0], [3.0]]]])
    >>> attention(q, k, v, causal=True)[0, 0, :, 0]
    array([1., 2.])
    """
    return _core.attention(q, k, v, mask, causal, scale, window, q_lengths, kv_lengths, layout, return_lse, out)

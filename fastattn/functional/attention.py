"""Scaled dot-product attention."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._types import Array


def attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
              scale: float | None = None, window: tuple[int | None, int | None] | None = None, softcap: float = 0.0,
              alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
              q_start: ArrayLike | None = None, bias: ArrayLike | None = None,
              dropout_p: float = 0.0, seed: int = 0,
              q_lengths: ArrayLike | None = None, kv_lengths: ArrayLike | None = None, layout: str = "bhld",
              return_lse: bool = False, out: Array | None = None) -> Any:  # fmt: skip
    """Scaled dot-product attention, without an Lq x Lk matrix in memory.

    The score of query i and key j, in this order:

        s = scale q_i . k_j
        s = softcap tanh(s / softcap)           if softcap > 0
        s = s - alibi_slopes[h] |i + o - j|     o = q_start, or Lk - Lq, or 0 with causal="top-left"
        s = s + bias                            or a mask of floats

    and over the keys that query i attends to

        Z = sum e^s + e^sinks[h],  out = sum d_j e^s v_j / Z,  lse = ln Z

    where d_j is 1, or with dropout 0 or 1 / (1 - dropout_p).

    Parameters
    ----------
    q, k, v
        [B, H, Lq, D], [B, Hk, Lk, D], [B, Hk, Lk, Dv]; H a multiple of Hk (query heads h share the keys of head h // (H
        / Hk), which are not copied). layout="blhd": axes 1 and 2 of q, k, v and of the results are exchanged.
    mask
        bool (True: attend) or the dtype of q (added; -inf: do not attend), broadcastable to [B, H, Lq, Lk] in either
        layout. Masked entries never enter the arithmetic: NaN or inf there changes nothing.
    causal
        False, "top-left" (key j <= query i) or "bottom-right" (j <= i + Lk - Lq); True when Lq == Lk, or with q_start
        (j <= i + q_start).
    scale
        1 / sqrt(D) by default.
    window
        (left, right): distances on each side of the diagonal, None for no bound. The diagonal is that of `causal` or
        q_start, bottom-right when not causal.
    softcap
        Bound of the scaled scores, 0 for none.
    alibi_slopes
        [H], of the dtype of q or beside 16-bit q float32: a penalty for each step of distance from the diagonal.
    sinks
        [H], typed as alibi_slopes: a logit for each head, without a key and a value, in the sum of the softmax.
    q_start
        The position of query 0 counted from key 0, one integer or one for each sequence [B], also below 0 and beyond
        the keys: where the diagonal of causal, window and alibi_slopes begins. Keys may then be a cache with room
        behind its tokens, or a part of all.
    bias
        Added to the scores as a mask of floats is, of the same dtypes and shapes, beside a mask of bool or none.
    dropout_p, seed
        Each probability is dropped with probability dropout_p. Which ones follows from the seed (0..2^64 - 1), the
        sequence, the head, the query and the key alone, by the words of Philox 4x32-10
        (csrc/kernels/recurrent/dropout.c), and attention_backward drops the same.
    q_lengths, kv_lengths
        [B] integers in 0..L: positions beyond are excluded, and the diagonal does not count them; their outputs are
        zero.
    return_lse
        Also return the natural log of Z of each row, the sink included, [B, H, Lq] (layout "blhd": [B, Lq, H]).

    bfloat16 and float16 are converted as they are read and written; scores, sums and lse are float32. With AVX-512
    BF16, bfloat16 is multiplied in pairs: P is then rounded to bfloat16, and subnormals count as 0 in the products; lse
    is the log of the sum of the rounded P, with an error of at most 2^-8 + 2^-12 (0.0042).

    A query with nothing to attend to gives zeros and lse -inf (with a sink, the sink). Queries beyond q_lengths give
    zeros and -inf. NaN in a score, or +inf, makes its row NaN.

    Raises ValueError and TypeError naming the argument. Sources: Vaswani et al. 2017, arXiv:1706.03762; Dao et al.
    2022, arXiv:2205.14135; ALiBi: Press et al. 2021, arXiv:2108.12409; softcap: Gemma 2, arXiv:2408.00118; sinks: Xiao
    et al. 2023, arXiv:2309.17453.

    >>> q = np.zeros((1, 1, 2, 4)); k = q; v = np.array([[[[1.0], [3.0]]]])
    >>> attention(q, k, v, causal=True)[0, 0, :, 0]
    array([1., 2.])
    >>> attention(q, k, v, causal=True, sinks=np.zeros(1))[0, 0, :, 0]
    array([0.5       , 1.33333333])
    >>> attention(q, k, v, causal=True, q_start=[1])[0, 0, :, 0]
    array([2., 2.])
    """
    options = (mask, causal, scale, window, softcap, alibi_slopes, sinks, q_start, bias, dropout_p, seed)
    return _core.attention(q, k, v, options, q_lengths, kv_lengths, layout, out, return_lse, False)


OPTIONS = {
    "mask": None, "causal": False, "scale": None, "window": None, "softcap": 0.0, "alibi_slopes": None, "sinks": None,
    "q_start": None, "bias": None, "dropout_p": 0.0, "seed": 0,
}  # fmt: skip
_REST = {"q_lengths": None, "kv_lengths": None, "layout": "bhld"}


def in_order(defaults: dict[str, Any], given: dict[str, Any]) -> tuple[Any, ...]:
    """The options `given` by name and the defaults of the others, in the order of the defaults."""
    if not given.keys() <= defaults.keys():
        raise TypeError(f"SavedAttention: options must be of {', '.join(defaults)}, got {', '.join(given)}")
    return tuple({**defaults, **given}.values())


@dataclass(frozen=True, eq=False, repr=False)
class SavedAttention:
    """The values of a forward call that the gradients of attention need: its arguments, which must not be written to in
    between, its results, and two numbers for each row of scores."""

    q: ArrayLike
    k: ArrayLike
    v: ArrayLike
    options: tuple[Any, ...]  # mask ... seed, as in all forms of attention; q_lengths, kv_lengths, layout
    out: Any
    lse: Any
    state: Array  # [2, B, H, Lq]: the integer R and sum of each row; lse = R ln 2 + ln sum

    @classmethod
    def of(cls, q: ArrayLike, k: ArrayLike, v: ArrayLike, out: ArrayLike, lse: ArrayLike, state: Array,
           **options: Any) -> "SavedAttention":  # fmt: skip
        """From its parts, and the options of the forward call by name."""
        return cls(q, k, v, in_order({**OPTIONS, **_REST}, options), out, lse, state)


def attention_forward(q: ArrayLike, k: ArrayLike, v: ArrayLike, *, mask: ArrayLike | None = None,
                      causal: bool | str = False, scale: float | None = None,
                      window: tuple[int | None, int | None] | None = None, softcap: float = 0.0,
                      alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
                      q_start: ArrayLike | None = None, bias: ArrayLike | None = None,
                      dropout_p: float = 0.0, seed: int = 0,
                      q_lengths: ArrayLike | None = None, kv_lengths: ArrayLike | None = None,
                      layout: str = "bhld") -> tuple[Array, SavedAttention]:  # fmt: skip
    """attention, and the values that its gradients need: (out, saved). Arguments and errors as of attention.

    saved keeps q, k, v, mask and out, not copies of them: do not change them before backward. saved.lse is what
    return_lse gives.

    >>> out, saved = attention_forward(*[np.ones((1, 1, 2, 4))] * 3)
    >>> saved.lse.shape
    (1, 1, 2)
    """
    options = (mask, causal, scale, window, softcap, alibi_slopes, sinks, q_start, bias, dropout_p, seed)
    out, lse, state = _core.attention(q, k, v, options, q_lengths, kv_lengths, layout, None, False, True)
    return out, SavedAttention(q, k, v, (*options, q_lengths, kv_lengths, layout), out, lse, state)


def saved_attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, out: ArrayLike, lse: ArrayLike, *,
                    mask: ArrayLike | None = None, causal: bool | str = False, scale: float | None = None,
                    window: tuple[int | None, int | None] | None = None, softcap: float = 0.0,
                    alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
                    q_start: ArrayLike | None = None, bias: ArrayLike | None = None,
                    dropout_p: float = 0.0, seed: int = 0,
                    q_lengths: ArrayLike | None = None, kv_lengths: ArrayLike | None = None,
                    layout: str = "bhld") -> SavedAttention:  # fmt: skip
    """What attention_backward needs, from results of attention that somebody has: its out, and its lse.

    Parameters
    ----------
    q, k, v
        As of attention, whose other arguments are to be the same too. k and v may be a part of the keys: with
        attention_backward(..., partial=True) they get their part of the gradients.
    out, lse
        What attention returned with return_lse=True, or merge_attention of several calls.

    attention_forward keeps more of a row than its rounded lse: here each P is off by up to half a unit in the last
    place of lse more.

    Raises ValueError and TypeError naming the argument.

    >>> q = k = np.zeros((1, 1, 2, 4)); v = np.array([[[[1.0], [3.0]]]]); dout = np.ones((1, 1, 2, 1))
    >>> out, lse = fa.attention(q, k, v, return_lse=True)
    >>> part = saved_attention(q, k[:, :, :1], v[:, :, :1], out, lse)
    >>> fa.attention_backward(dout, part, partial=True)[2]
    array([[[[1.]]]])
    """
    options = (mask, causal, scale, window, softcap, alibi_slopes, sinks, q_start, bias, dropout_p, seed)
    rest = (q_lengths, kv_lengths, layout)
    state = _core.attention_state(q, k, v, out, lse, options, *rest)
    return SavedAttention(q, k, v, (*options, *rest), out, lse, state)

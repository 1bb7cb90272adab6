"""Probabilities of attention on demand, and one result of two over different keys."""

from collections.abc import Sequence

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._types import Array


def attention_weights(q: ArrayLike, k: ArrayLike, lse: ArrayLike, *, heads: slice | Sequence[int] | None = None,
                      rows: slice | Sequence[int] | None = None, mask: ArrayLike | None = None,
                      causal: bool | str = False, scale: float | None = None,
                      window: tuple[int | None, int | None] | None = None, softcap: float = 0.0,
                      alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
                      q_start: ArrayLike | None = None, bias: ArrayLike | None = None,
                      q_lengths: ArrayLike | None = None, kv_lengths: ArrayLike | None = None,
                      layout: str = "bhld") -> Array:  # fmt: skip
    """Probabilities e^(s - lse) that attention gives to the keys, of chosen heads and queries alone.

    Parameters
    ----------
    q, k
        As of attention; its other arguments have to be the same too.
    lse
        What attention returned with return_lse=True.
    heads, rows
        Which query heads and which queries: None for all, a slice, or integers.

    Returns weights[B, heads, rows, Lk] in the dtype of q (layout "blhd": [B, rows, heads, Lk]), 0 where a query does
    not attend. With sinks a row sums to 1 minus the probability of the sink.

    >>> q = np.zeros((1, 1, 2, 4))
    >>> out, lse = fa.attention(q, q, q, causal=True, return_lse=True)
    >>> attention_weights(q, q, lse, causal=True)[0, 0]
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    options = (mask, causal, scale, window, softcap, alibi_slopes, sinks, q_start, bias, 0.0, 0)
    return _core.attention_weights(q, k, lse, heads, rows, options, q_lengths, kv_lengths, layout)


def merge_attention(out_a: ArrayLike, lse_a: ArrayLike, out_b: ArrayLike, lse_b: ArrayLike) -> tuple[Array, Array]:
    """Attention over the keys of two calls from the results of each: (out, lse).

        out = (e^lse_a out_a + e^lse_b out_b) / (e^lse_a + e^lse_b),  lse = ln(e^lse_a + e^lse_b)

    out_a, out_b [..., Dv] and lse_a, lse_b [...] of one dtype, lse float32 beside 16-bit outputs: any layout of
    attention, or rows of attention_varlen.
    Where a part attends to nothing (lse -inf), the result is the other part, bit for bit. The order of the parts does
    not matter. A sink counts once: give sinks to one of the calls.

    >>> out, lse = merge_attention(np.ones((1, 1)), np.zeros(1), 3 * np.ones((1, 1)), np.zeros(1))
    >>> out, lse
    (array([[2.]]), array([0.69314718]))
    """
    return _core.merge_attention(out_a, lse_a, out_b, lse_b)

"""Additive attention."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._checks import check_flag, check_saved
from fastattn.functional._types import Array


def additive_attention(query: ArrayLike, keys: ArrayLike, values: ArrayLike, v: ArrayLike, *,
                       lengths: ArrayLike | None = None, mask: ArrayLike | None = None,
                       return_weights: bool = False) -> Any:  # fmt: skip
    """Additive (Bahdanau) attention of projected queries and keys, without a T x S x A array in memory.

        e[b, t, s] = sum over a of v[a] tanh(query[b, t, a] + keys[b, s, a]) + mask
        w = softmax of e over s,  context[b, t] = sum over s of w[b, t, s] values[b, s]

    Parameters
    ----------
    query, keys, values, v
        [B, T, A], [B, S, A], [B, S, C], [A], of one dtype; 16-bit arrays are widened to float32. query and keys are the
        projected ones.
    lengths
        [B] integers in 0..S: keys beyond are excluded.
    mask
        bool (True: attend) or the dtype of query (added; -inf: do not attend), broadcastable to [B, T, S].
    return_weights
        Also return w[B, T, S] in the dtype of query, 0 where masked.

    Masked entries never enter the arithmetic: NaN or inf there changes nothing. NaN in a score makes its row NaN, in
    an attended value its column of that row. A query with nothing to attend to gives zeros.

    Raises ValueError and TypeError naming the argument. Source: Bahdanau et al. 2015, arXiv:1409.0473, section 3.1.

    >>> keys = np.zeros((1, 2, 4)); values = np.array([[[1.0], [3.0]]])
    >>> additive_attention(np.zeros((1, 1, 4)), keys, values, np.ones(4))
    array([[[2.]]])
    """
    return_weights = check_flag("additive_attention", "return_weights", return_weights)
    context, weights = _core.additive_attention(
        query, keys, values, v, lengths, mask, return_weights, "additive_attention"
    )
    return (context, weights) if return_weights else context


@dataclass(frozen=True, eq=False, repr=False)
class SavedAdditive:
    """The values of a forward call that the gradients of additive attention need: its arguments, which must not be
    changed in between, and the weights."""

    query: ArrayLike
    keys: ArrayLike
    values: ArrayLike
    v: ArrayLike
    lengths: ArrayLike | None
    weights: Array  # [B, T, S]


def additive_attention_forward(query: ArrayLike, keys: ArrayLike, values: ArrayLike, v: ArrayLike, *,
                               lengths: ArrayLike | None = None,
                               mask: ArrayLike | None = None) -> tuple[Array, SavedAdditive]:  # fmt: skip
    """additive_attention, and the values that its gradients need: (context, saved). Arguments and errors as there.

    saved keeps the arguments, not copies of them: do not change them before backward. saved.weights is w.

    >>> context, saved = additive_attention_forward(*[np.ones((1, 2, 4))] * 3, np.ones(4))
    >>> saved.weights
    array([[[0.5, 0.5],
            [0.5, 0.5]]])
    """
    context, weights = _core.additive_attention(
        query, keys, values, v, lengths, mask, True, "additive_attention_forward"
    )
    return context, SavedAdditive(query, keys, values, v, lengths, weights)


def additive_attention_backward(dcontext: ArrayLike, saved: SavedAdditive) -> tuple[Array, Array, Array, Array]:
    """Gradients (dquery, dkeys, dvalues, dv) of additive_attention_forward. The tanh is recomputed.

        dw = dcontext values^T,  de = w (dw - sum over s of w dw),  dvalues[s] = sum over t of w dcontext
        u = de (1 - tanh^2),  dquery = v sum over s of u,  dkeys = v sum over t of u,  dv = sum of de tanh

    A pair that is masked, or whose weight is 0, contributes nothing, even where its rows hold NaN.

    >>> context, saved = additive_attention_forward(*[np.ones((1, 2, 4))] * 3, np.ones(4))
    >>> additive_attention_backward(np.ones((1, 2, 4)), saved)[2][0, 0]
    array([1., 1., 1., 1.])
    """
    check_saved("additive_attention_backward", saved, SavedAdditive)
    gradients: tuple[Array, Array, Array, Array] = _core.additive_attention_backward(
        dcontext, saved.query, saved.keys, saved.values, saved.v, saved.lengths, saved.weights
    )
    return gradients

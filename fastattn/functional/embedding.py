"""Rows of a table by number, with their gradient."""

from typing import NamedTuple

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._checks import check_saved
from fastattn.functional._types import Array


class SavedEmbedding(NamedTuple):
    """The values that the gradient of an embedding needs."""

    ids: Array
    shape: tuple[int, ...]  # of the weight


def embedding(ids: ArrayLike, weight: ArrayLike) -> Array:
    """y[..., n] = weight[ids]: rows of weight[V, n] for integer ids[...] in 0..V - 1.

    Raises ValueError naming the first id that is out of range, and its index.

    >>> embedding([2, 0], np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    array([[5., 6.],
           [1., 2.]])
    """
    return _core.embedding(ids, weight, "embedding")[0]


def embedding_forward(ids: ArrayLike, weight: ArrayLike) -> tuple[Array, SavedEmbedding]:
    """embedding, and the values that its gradient needs: (y, saved).

    >>> y, saved = embedding_forward([1, 1], np.ones((2, 3)))
    >>> embedding_backward(np.ones((2, 3)), saved)
    array([[0., 0., 0.],
           [2., 2., 2.]])
    """
    table = _core.checked_array(weight, "embedding_forward", "weight")
    y, numbers = _core.embedding(ids, table, "embedding_forward")
    return y, SavedEmbedding(numbers, table.shape)


def embedding_backward(dy: ArrayLike, saved: SavedEmbedding) -> Array:
    """Gradient dweight[V, n] of embedding_forward: row v is the sum of dy[i] over ids[i] = v, in rising order of i.

    16-bit sums are float32, rounded once. The order makes the bits the same on any number of threads.

    >>> _, saved = embedding_forward([0], np.ones((2, 1)))
    >>> embedding_backward(np.array([[5.0]]), saved)
    array([[5.],
           [0.]])
    """
    check_saved("embedding_backward", saved, SavedEmbedding)
    return _core.embedding_backward(dy, saved.ids, saved.shape, "embedding_backward")

"""Cross-entropy of logits, with its gradient."""

from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from fastattn import _core
from fastattn.functional._checks import check_choice, check_integer, check_number, check_saved
from fastattn.functional._types import Array

_REDUCTIONS = ("mean", "sum", "none")
_MOST = 2**63 - 1  # elements of an array


class SavedCrossEntropy(NamedTuple):
    """The values that the gradient of cross_entropy needs: the largest logit and the sum of each row, not its
    probabilities."""

    logits: ArrayLike
    targets: Array
    top: Array
    sum: Array
    ignore_index: int | None
    label_smoothing: float
    reduction: str
    counted: int  # targets that are not ignored


def cross_entropy(logits: ArrayLike, targets: ArrayLike, *, ignore_index: int | None = -100,
                  label_smoothing: float = 0.0, reduction: str = "mean") -> Array:  # fmt: skip
    """Cross-entropy of logits[..., C] with the classes targets[...]: integers in 0..C - 1.

        loss = log sum_j e^(logits_j) - (1 - s) logits_target - s sum_j logits_j / C,   s = label_smoothing in 0..1

    reduction: "mean" over the targets that are not ignored (NaN where all are), "sum", or "none" for the losses of the
    shape of targets. Where targets are ignore_index (None: nowhere) loss and gradient are 0, and logits are not read. A
    row with NaN or +inf has the loss NaN. Of 16-bit logits the losses are computed, added up and kept in float32, and
    the result is rounded. Raises ValueError naming a target out of range.

    >>> cross_entropy(np.array([[0.0, 0.0], [1.0, 2.0]]), [1, -100])
    np.float64(0.6931471805599453)
    """
    return _forward(logits, targets, ignore_index, label_smoothing, reduction, "cross_entropy")[0]


def cross_entropy_forward(logits: ArrayLike, targets: ArrayLike, *, ignore_index: int | None = -100,
                          label_smoothing: float = 0.0,
                          reduction: str = "mean") -> tuple[Array, SavedCrossEntropy]:  # fmt: skip
    """cross_entropy, and the values that its gradient needs: (loss, saved).

    >>> loss, saved = cross_entropy_forward(np.array([[0.0, 0.0]]), [1])
    >>> cross_entropy_backward(1.0, saved)
    array([[ 0.5, -0.5]])
    """
    return _forward(logits, targets, ignore_index, label_smoothing, reduction, "cross_entropy_forward")


def cross_entropy_backward(dloss: ArrayLike, saved: SavedCrossEntropy) -> Array:
    """Gradient dlogits of cross_entropy_forward, from that of the loss (a number, or with reduction="none" an array).

    With p the softmax of a row: dlogits_j = dloss (p_j - s / C - (1 - s) [j = target]), divided by the number of
    targets that count with reduction="mean".

    >>> _, saved = cross_entropy_forward(np.zeros((2, 2)), [0, 1], reduction="none")
    >>> cross_entropy_backward(np.array([1.0, 0.0]), saved)
    array([[-0.5,  0.5],
           [ 0. , -0. ]])
    """
    op = "cross_entropy_backward"
    check_saved(op, saved, SavedCrossEntropy)
    reduction = check_choice(op, "saved.reduction", saved.reduction, _REDUCTIONS)
    each = reduction == "none"
    factor: Any = dloss if each else check_number(op, "dloss", dloss)
    if reduction == "mean":
        with _core.DefaultFloats():
            factor /= max(1, check_integer(op, "saved.counted", saved.counted, 0, _MOST))
    return _core.cross_entropy_backward(
        factor, each, saved.logits, saved.targets, saved.top, saved.sum, saved.ignore_index, saved.label_smoothing, op
    )


def _forward(logits: ArrayLike, targets: ArrayLike, ignore_index: int | None, label_smoothing: float, reduction: str,
             op: str) -> tuple[Array, SavedCrossEntropy]:  # fmt: skip
    reduction = check_choice(op, "reduction", reduction, _REDUCTIONS)
    loss, top, total, numbers, count = _core.cross_entropy(
        logits, targets, ignore_index, label_smoothing, reduction, op
    )
    return loss, SavedCrossEntropy(logits, numbers, top, total, ignore_index, label_smoothing, reduction, count)

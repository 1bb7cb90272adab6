"""Weights of the recurrent cases: their names in stacks, their types."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_INT8 = 127


def stack_suffixes(layers: int) -> list[str]:
    """What torch appends to the names of the weights of each layer and direction."""
    return [f"_l{layer}{side}" for layer in range(layers) for side in ("", "_reverse")]


def as_bfloat16(x: NDArray[Any]) -> NDArray[Any]:
    """float32 with the bits that bfloat16 has."""
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def as_weight(w: NDArray[Any], packed: str) -> NDArray[Any]:
    """w that stays the same when it is packed as "bfloat16", "int8" or "" (as it is).

    int8 has a scale for each row, its largest number / 127: every row gets 127 times the same power of two.
    """
    if packed == "bfloat16":
        return as_bfloat16(w)
    if packed != "int8" or w.ndim == 1:
        return w
    unit = np.exp2(np.round(np.log2(np.abs(w).max() / MOST_INT8)))
    w = np.rint(w / unit).clip(-MOST_INT8, MOST_INT8)
    w[:, 0] = MOST_INT8
    return np.asarray(w * unit, np.float32)

"""Positions as vectors."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastattn.functional._types import Array


def sinusoidal_positions(length: int, dim: int, *, base: float = 10000.0, offset: int = 0,
                         dtype: DTypeLike = np.float32) -> Array:  # fmt: skip
    """[length, dim]: row i is position offset + i; column 2 j is sin(p base^(-2 j / dim)), column 2 j + 1 the cosine.

    dim may be odd: then the last column is a sine. Computed in float64 for float32, in long double for float64. Source:
    Vaswani et al. 2017, arXiv:1706.03762.

    >>> sinusoidal_positions(2, 2)
    array([[0.        , 1.        ],
           [0.84147096, 0.5403023 ]], dtype=float32)
    """
    op, kind = "sinusoidal_positions", np.dtype(dtype)
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"{op}: dtype must be float32 or float64, got {kind}")
    for name, value in (("length", length), ("dim", dim)):
        if value < 0:
            raise ValueError(f"{op}: {name} must be at least 0, got {value}")
    if not 0 < base < np.inf:
        raise ValueError(f"{op}: base must be positive and finite, got {base}")
    wide: Any = np.float64 if kind == np.float32 else np.longdouble
    even = np.arange(0, dim, 2).astype(wide)
    frequency = np.power(wide(base), -even / wide(max(dim, 1)))
    angle = np.arange(offset, offset + length).astype(wide)[:, None] * frequency
    table = np.empty((length, dim), kind)
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle[:, : dim // 2])
    return table

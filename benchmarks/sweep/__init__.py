"""Element-wise functions and functions of rows over all sizes, against PyTorch and NumPy: `python -m benchmarks.sweep`.

`operations.py` lists them, `measure.py` compares and times the libraries in turns, `__main__.py` is the command.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Run = Callable[[], Any]


@dataclass
class Calls:
    """One job in each library, on inputs of one size, and what its result is."""

    runs: dict[str, Run]  # by library; the first is fastattn
    expected: Callable[[], Any]  # by the specification, in float64


@dataclass(frozen=True)
class Operation:
    """A function of the library that all are asked to compute.

    Attributes
    ----------
    make
        (shape, dtype, whether results go to memory that exists) -> the calls.
    columns
        Length of the rows, where the function has rows.
    dtypes
        Types that the libraries have in common.
    has_out
        Whether results can be written to memory that exists.
    """

    name: str
    make: Callable[[tuple[int, int], str, bool], Calls]
    columns: tuple[int, ...] = (0,)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    has_out: bool = True

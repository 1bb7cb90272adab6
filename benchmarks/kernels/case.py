"""What a case is: an op with its sizes. ops/ has what each op is.

Work is useful work: a multiply-add counts two operations, causal attention half of the full square, element-wise
functions nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Inputs = dict[str, Array]


@dataclass(frozen=True)
class Target:
    """What fastattn is to reach; the parts that are None do not apply."""

    peak: float | None = None  # part of the multiply-add peak measured beside the case
    ratio: float | None = None  # times as fast as the best peer
    torch_ratio: float | None = None  # times as fast as torch; or the read bandwidth, where that is less
    beside: float | None = None  # part of the rate of the case that it is measured beside
    micros: float | None = None  # microseconds for a call; the median where each call is timed alone
    tail: float | None = None  # the 99th percentile, in medians; only where each call is timed alone

    def __str__(self) -> str:
        parts = []
        if self.peak is not None:
            parts.append(f"≥ {self.peak:.2f} peak")
        if self.ratio is not None:
            parts.append(f"≥ {self.ratio:g} × best")
        if self.torch_ratio is not None:
            parts.append(f"≥ {self.torch_ratio:g} × torch / memory")
        if self.micros is not None:
            parts.append(f"≤ {self.micros:g} µs")
        if self.beside is not None:
            parts.append(f"≥ {self.beside:.2f} × the one beside")
        if self.tail is not None:
            parts.append(f"p99 ≤ {self.tail:g} × p50")
        return ", ".join(parts) or "best"


@dataclass(frozen=True)
class Case:
    """One computation with its sizes. `op` is what the peers know it by."""

    name: str
    op: str
    sizes: dict[str, int]
    dtype: str = "float32"  # of the arrays; inputs are float32, exact in it, where it has 8 or 16 bits
    causal: bool = False
    window: int | None = None  # attention: so many keys before each query's own, and none behind
    masked: bool = False  # attention: a bool mask that leaves three of four pairs, anywhere
    beside: str = ""  # the case whose rate (useful work by time) this one is compared with
    ragged: bool = False  # sequences with the lengths of real sentences
    weights: str = ""  # of how many bits ours are packed, where fewer than x has; all libraries have the same numbers
    plain: bool = False  # linear, cells: weights are arrays that no library has seen, or packed, before the call
    transposed: bool = False  # linear: the weight is the transposed view of an array
    alone: bool = False  # each call is timed alone, for percentiles
    target: Target = field(default_factory=Target)
    quick: bool = False  # part of --quick
    scales: bool = True  # enough work for two threads to pay

    @property
    def flops(self) -> float:
        """Useful floating-point operations of one call."""
        return OPS[self.op].flops(self)

    @property
    def bytes(self) -> float:
        """Bytes that have to be read from and written to memory, for cases without flops."""
        return OPS[self.op].bytes(self)

    def inputs(self, seed: int) -> Inputs:
        """The same arrays in every process."""
        return OPS[self.op].inputs(self, np.random.default_rng([seed, *map(ord, self.name)]))


def _none(case: Case) -> float:
    return 0.0


class Op(NamedTuple):
    """What the race has to know of an op."""

    inputs: Callable[[Case, np.random.Generator], Inputs]
    sample: Callable[[Case, Array], Array]  # the part of a whole result that `expected` computes
    expected: Callable[[Case, Inputs, DTypeLike], Array]  # by the specification, in a type
    result: Callable[[Case, Inputs, DTypeLike], Array]  # the whole
    flops: Callable[[Case], float] = _none
    bytes: Callable[[Case], float] = _none


OPS: dict[str, Op] = {}
"""By name; ops/__init__.py fills it."""


def spread(n: int, most: int) -> Array:
    """Up to `most` indices spread over 0..n-1, first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


ROWS = 64  # of a result, that are verified


def of_rows(
    result: Callable[[Case, Inputs, DTypeLike], Array], *names: str
) -> tuple[Callable[[Case, Array], Array], Callable[[Case, Inputs, DTypeLike], Array]]:
    """`sample` and `expected` of an op whose result has a row for each row of the inputs of these names."""

    def sample(case: Case, whole: Array) -> Array:
        return whole[spread(len(whole), ROWS)]

    def expected(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
        rows = spread(len(inputs[names[0]]), ROWS)
        return result(case, {name: a[rows] if name in names else a for name, a in inputs.items()}, dtype)

    return sample, expected


def as_bfloat16(x: NDArray[Any]) -> NDArray[Any]:
    """float32 with the bits that bfloat16 has."""
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def exact(case: Case, x: Array) -> Array:
    """x in the dtype of the case, or as float32 that are exact in it."""
    if case.dtype == "bfloat16":
        return as_bfloat16(x)
    return x if case.dtype == "int8" else x.astype(case.dtype, copy=False)


def normal(case: Case, rng: np.random.Generator, *shape: int) -> Array:
    # float32 samples also for float64: what is compared is the rounding of the computation.
    return exact(case, rng.standard_normal(shape, np.float32))


def converted(inputs: Inputs, dtype: DTypeLike) -> Inputs:
    """Floating-point inputs in a type."""
    return {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in inputs.items()}

"""The specification of every case: in float64 as the reference, in the dtype of the case as the yardstick of error.

Only a sample of each result is computed (some heads and query rows, some sequences of the batch, some rows), because
the large cases would take minutes. Output rows do not depend on each other, so that a sample checks the whole
computation of its rows.

The yardstick has the same bits on every machine: arrays of tests/ordered.py, which add in one fixed order without BLAS.
The largest of few errors is chance: small results are drawn several times, and the yardstick is the largest error of
the plain form in all draws.
"""

import numpy as np

from benchmarks.kernels.case import OPS, Array, Case, Inputs
from tests.ordered import Ordered

# Of a case with more work, sums in one order would take minutes. NumPy's products serve there: the largest error of so
# many values depends little on the order of their sums.
ORDERED_FLOPS = 2e9
FEW = 100_000  # elements of a result: below, the yardstick is pooled over DRAWS inputs
DRAWS = 8


def errors(case: Case, inputs: Inputs) -> tuple[Array, float]:
    """The reference (float64; extended precision for float64 cases), and the error that the error rule allows.

    The rule: twice the error of the plain form in the dtype of the case.
    Rounding the exact result costs half a unit in the last place already: the yardstick is never below that.
    """
    exact, error = _plain_error(case, inputs)
    if exact.size < FEW:
        error = max(error, *(_plain_error(case, case.inputs(seed))[1] for seed in range(DRAWS)))
    return exact.astype(np.float64), 2 * max(
        error, rounding(exact, case.dtype if case.dtype == "bfloat16" else _arithmetic(case))
    )


def rounding(exact: Array, dtype: str) -> float:
    """What rounding the largest result costs."""
    eps = 2.0**-7 if dtype == "bfloat16" else np.finfo(dtype).eps
    return float(eps / 2 * np.abs(exact).max())


def _plain_error(case: Case, inputs: Inputs) -> tuple[Array, float]:
    """The exact sample, and the largest error of the plain form."""
    exact = OPS[case.op].expected(case, inputs, np.longdouble if case.dtype == "float64" else np.float64)
    return exact, float(np.abs(yardstick(case, inputs) - exact).max())


def yardstick(case: Case, inputs: Inputs) -> Array:
    """The plain form in the dtype of the case; of all but large cases with the same bits on every machine."""
    if case.flops <= ORDERED_FLOPS:
        inputs = {name: value.view(Ordered) if value.dtype.kind == "f" else value for name, value in inputs.items()}
    return np.asarray(OPS[case.op].expected(case, inputs, _arithmetic(case)))


def _arithmetic(case: Case) -> str:
    """What the plain form computes in: float32 where the arrays have fewer bits."""
    return "float64" if case.dtype == "float64" else "float32"

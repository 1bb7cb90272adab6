"""Tolerances that nobody chose: the error rule and the bounds in ULP of the promises about values.

The error rule: against exact arithmetic, the largest error is at most 2 times that of the plain implementation in the
same dtype, and the median at most 1 times (of gradients 1.1). "Plain" and "exact" are fastattn.reference: in the
dtype with the arithmetic of tests/ordered.py, the same on every machine, and in float64 for float32 results, in long
double for float64 results (tests/specification.py).

The rule compares distributions, over many calls: of 400 small problems (few keys, large scores), each judged alone, ten
broke it by chance. What each call keeps is the bound of tests/bounds.py.
"""

import math

import numpy as np

SIGMAS = 4  # how unlikely chance must be to explain a median that is too large


class ErrorRule:
    """Pools the errors of many results, then applies the rule: a median of a few numbers says little."""

    def __init__(self):
        self.got, self.plain, self.size = [], [], []
        self.rounding = 0.0

    def add(self, got, plain, exact):
        """Results of the library and of the plain implementation, both of one dtype, and the exact values."""
        got, plain, exact = np.asarray(got), np.asarray(plain), np.asarray(exact)
        assert got.shape == plain.shape == exact.shape, (got.shape, plain.shape, exact.shape)
        assert got.dtype == plain.dtype, (got.dtype, plain.dtype)
        # Infinities (lse of a row without keys) and NaN must be the same, and have no error.
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(got[~finite], exact[~finite].astype(got.dtype))
        assert np.isfinite(got[finite]).all(), "not finite where the exact value is"
        self.got.append(np.abs(got[finite] - exact[finite]).ravel())
        self.plain.append(np.abs(plain[finite] - exact[finite]).ravel())
        self.size.append(np.spacing(np.abs(got[finite])).ravel())
        self.rounding = max(self.rounding, float(np.spacing(np.abs(got[finite]).max(initial=0))) / 2)

    def check(self, median=True, backward=False):
        """Fails when the library's errors are larger than the rule allows; without `median`, when the largest is. Of
        gradients the median may be 1.1 times."""
        got, plain, ulp = (np.concatenate(parts) for parts in (self.got, self.plain, self.size))
        if got.size == 0:
            return
        if not plain.any():
            assert (got <= ulp).all(), f"the plain implementation is exact, but errors reach {(got / ulp).max():.3} ULP"
            return
        # Of few values, the plain implementation may have all but exact ones: one that rounds once is beyond reproach.
        worst, allowed = got.max(), 2 * max(plain.max(), self.rounding)
        assert worst <= allowed, f"largest error {worst:.3e}, of the plain implementation {plain.max():.3e}"
        if not median:
            return
        # At most half of our errors may exceed the plain median, but for chance: both medians are of samples.
        above = np.count_nonzero(got > np.median(plain) * (1.1 if backward else 1))
        chance = SIGMAS * math.sqrt(2 * got.size) / 2
        assert above <= got.size / 2 + chance, (
            f"median error {np.median(got):.3e}, of the plain implementation {np.median(plain):.3e} ({got.size} values)"
        )


def assert_error_rule(got, plain, exact):
    """The error rule for one result."""
    rule = ErrorRule()
    rule.add(got, plain, exact)
    rule.check()


def ulps(got, exact):
    """Errors in units in the last place of the exact value, subnormal spacing included."""
    with np.errstate(over="ignore"):
        rounded = np.abs(exact).astype(got.dtype)
    # The spacing below a power of two is that of the numbers above it: as strict for exact values a hair below one.
    spacing = np.spacing(np.minimum(rounded, np.finfo(got.dtype).max))
    return np.abs(got - exact) / spacing

"""What tests of bfloat16 and float16 share: the plain implementation, rounding after each op, and the error rule."""

import ml_dtypes
import numpy as np

from tests.ordered import Ordered
from tests.specification import Specification, is_float

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16 = np.dtype(np.float16)
LOW = {"bf16": BFLOAT16, "f16": FLOAT16}


def is_nan(x):
    """By the bits: conversions of a NaN that signals may warn."""
    return (x.view(np.uint16) & 0x7FFF) > (0x7F80 if x.dtype == BFLOAT16 else 0x7C00)


def bits(x):
    return np.ascontiguousarray(x).view(np.uint16)


def same(x, y):
    """Same shape, type and bits; NaNs are alike."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
    return bool(np.all((bits(x) == bits(y)) | (is_nan(x) & is_nan(y))))


class _Bfloat16(Ordered):
    """bfloat16 as torch computes with it on CPUs: each op in float32, its result rounded."""

    low = BFLOAT16

    def _result(self, x):
        return x.astype(self.low).astype(x.dtype) if is_float(x) else x


class _Float16(_Bfloat16):
    """float16, as bfloat16."""

    low = FLOAT16


class Rounded(Specification):
    """fastattn.reference in a 16-bit type that is rounded to after each op. Called, it rounds an array of float32."""

    def __init__(self, dtype):
        array = _Bfloat16 if dtype == BFLOAT16 else _Float16
        super().__init__(lambda x: np.asarray(x, np.float32).view(array), lambda x: np.asarray(x).astype(dtype))
        self.dtype = dtype

    def __call__(self, x):
        return x.astype(self.dtype).astype(np.float32)


class LowPrecisionRule:
    """The error rule of 16-bit types: neither the largest nor the median error is beyond that of `Rounded`."""

    def __init__(self):
        self.got, self.plain = [], []

    def add(self, got, plain, exact):
        assert got.dtype == plain.dtype
        assert got.shape == plain.shape == exact.shape
        self.got.append(np.abs(got.astype(np.float64) - exact).ravel())
        self.plain.append(np.abs(plain.astype(np.float64) - exact).ravel())

    def check(self, backward=False):
        """Of gradients the largest may be 2 times, the median 1.1 times."""
        got, plain = np.concatenate(self.got), np.concatenate(self.plain)
        worst, median = (2, 1.1) if backward else (1, 1)
        assert np.isfinite(got).all()
        assert got.max() <= worst * plain.max(), f"largest error {got.max():.3e}, plain {plain.max():.3e}"
        assert np.median(got) <= median * np.median(plain), (
            f"median error {np.median(got):.3e}, plain {np.median(plain):.3e}"
        )

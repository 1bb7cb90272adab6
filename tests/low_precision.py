"""What tests of bfloat16 and float16 share: the plain implementation, rounding after each op, and the error rule."""

import math

import ml_dtypes
import numpy as np

from fastattn import reference

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


class Rounded:
    """NumPy in a 16-bit type: each op computes in float32 and rounds its result, as torch does on CPUs."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __call__(self, x):
        return x.astype(self.dtype).astype(np.float32)

    def softmax(self, x):
        top = x.max(-1, keepdims=True, initial=-np.inf)
        e = self(np.exp(self(x - np.where(top == -np.inf, 0, top))))
        total = self(e.sum(-1, keepdims=True))
        return self(e / np.where(total == 0, 1, total))

    def attention(self, q, k, v, mask=None, causal=False, scale=None, window=None, q_lengths=None, kv_lengths=None):
        group = q.shape[1] // k.shape[1]
        q, k, v = (x.astype(np.float32) for x in (q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)))
        scale = self(np.float32(1 / math.sqrt(q.shape[-1]) if scale is None else scale))
        s = self(scale * self(q @ k.swapaxes(-1, -2)))
        if mask is not None and mask.dtype != bool:
            s = self(s + mask.astype(np.float32))
        allowed = reference.attention_allowed(
            q.shape[0], q.shape[2], k.shape[2], mask, causal, window, q_lengths, kv_lengths
        )
        return self(self.softmax(np.where(allowed, s, np.float32(-np.inf))) @ v).astype(self.dtype)


class LowPrecisionRule:
    """The error rule of 16-bit types: neither the largest nor the median error is beyond that of `Rounded`."""

    def __init__(self):
        self.got, self.plain = [], []

    def add(self, got, plain, exact):
        assert got.dtype == plain.dtype
        assert got.shape == plain.shape == exact.shape
        self.got.append(np.abs(got.astype(np.float64) - exact).ravel())
        self.plain.append(np.abs(plain.astype(np.float64) - exact).ravel())

    def check(self):
        got, plain = np.concatenate(self.got), np.concatenate(self.plain)
        assert np.isfinite(got).all()
        assert got.max() <= plain.max(), f"largest error {got.max():.3e}, plain {plain.max():.3e}"
        assert np.median(got) <= np.median(plain), f"median error {np.median(got):.3e}, plain {np.median(plain):.3e}"

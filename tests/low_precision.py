"""What tests of bfloat16 and float16 share: the plain implementation, rounding after each op, and the error rule."""

import math

import ml_dtypes
import numpy as np

from fastattn import reference
from tests.ordered import exp, matmul, mean, tanh, total
from tests.plain import total_to

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
    """NumPy in a 16-bit type: each op computes in float32, in the order of tests/ordered.py, and rounds its result, as
    torch does on CPUs."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __call__(self, x):
        return x.astype(self.dtype).astype(np.float32)

    def softmax(self, x, sink=None):
        """sink: a last column that takes part in the sum alone."""
        x = x if sink is None else np.concatenate([x, sink], -1)
        top = x.max(-1, keepdims=True, initial=-np.inf)
        e = self(exp(self(x - np.where(top == -np.inf, 0, top))))
        sums = self(total(e, -1, keepdims=True))
        return self(e / np.where(sums == 0, 1, sums))

    def normed(self, x):
        """(x - mean) / sqrt(variance + eps)."""
        d = self(x - self(mean(x, -1, keepdims=True)))
        return self(d / self(np.sqrt(self(self(mean(d * d, -1, keepdims=True)) + np.float32(1e-5)))))

    def layer_norm(self, x, w, b):
        x, w, b = (a.astype(np.float32) for a in (x, w, b))
        return self(self(self.normed(x) * w) + b).astype(self.dtype)

    def layer_norm_backward(self, dy, x, w):
        """dx, dw, db."""
        dy, x, w = (a.astype(np.float32) for a in (dy, x, w))
        d = self(x - self(mean(x, -1, keepdims=True)))
        rstd = self(1 / self(np.sqrt(self(self(mean(d * d, -1, keepdims=True)) + np.float32(1e-5)))))
        a, g = self(d * rstd), self(dy * w)
        slope, level = self(mean(self(g * a), -1, keepdims=True)), self(mean(g, -1, keepdims=True))
        dx = self(rstd * self(self(g - level) - self(a * slope)))
        return tuple(x.astype(self.dtype) for x in (dx, self(total(self(dy * a), 0)), self(total(dy, 0))))

    def _probabilities(self, q, k, mask=None, causal=False, scale=None, window=None, softcap=0.0, alibi_slopes=None,
                       sinks=None, q_lengths=None, kv_lengths=None):  # fmt: skip
        """p, the rounded scale, the slope of the softcap, and the part of each row that its sink takes."""
        scale = self(np.float32(1 / math.sqrt(q.shape[-1]) if scale is None else scale))
        s, slope = self(scale * self(matmul(q, k.swapaxes(-1, -2)))), 1
        if softcap:
            t = self(tanh(self(s / np.float32(softcap))))
            s, slope = self(np.float32(softcap) * t), self(1 - self(t * t))
        if alibi_slopes is not None:
            distance = reference.alibi_distance(q.shape[0], q.shape[2], k.shape[2], causal, q_lengths, kv_lengths)
            s = self(s - self(alibi_slopes.astype(np.float32)[:, None, None] * distance.astype(np.float32)))
        if mask is not None and mask.dtype != bool:
            s = self(s + mask.astype(np.float32))
        allowed = reference.attention_allowed(
            q.shape[0], q.shape[2], k.shape[2], mask, causal, window, q_lengths, kv_lengths
        )
        sink = None
        if sinks is not None:
            lengths = [q.shape[2]] * len(q) if q_lengths is None else q_lengths
            exists = np.arange(q.shape[2]) < np.reshape(lengths, (-1, 1))
            sink = np.where(exists[:, None, :, None], sinks.astype(np.float32)[:, None, None], np.float32(-np.inf))
        p = self.softmax(np.where(allowed, s, np.float32(-np.inf)), sink)
        keys = k.shape[2]
        return p[..., :keys], scale, slope, p[..., keys:]

    def attention(self, q, k, v, **options):
        group = q.shape[1] // k.shape[1]
        q, k, v = (x.astype(np.float32) for x in (q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)))
        return self(matmul(self._probabilities(q, k, **options)[0], v)).astype(self.dtype)

    def attention_backward(self, dout, q, k, v, **options):
        """dq, dk, dv."""
        group, shape = q.shape[1] // k.shape[1], (k.shape[0], k.shape[1], -1, k.shape[2])
        q, k, v, dout = (
            x.astype(np.float32) for x in (q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1), dout)
        )
        p, scale, slope, _ = self._probabilities(q, k, **options)
        dp = self(matmul(dout, v.swapaxes(-1, -2)))
        ds = self(scale * self(p * self(dp - self(total(self(dp * p), -1, keepdims=True)))))
        ds = self(ds * slope)
        dk, dv = self(matmul(ds.swapaxes(-1, -2), q)), self(matmul(p.swapaxes(-1, -2), dout))
        heads = (total(x.reshape(*shape, x.shape[-1]), 2) for x in (dk, dv))
        return tuple(self(x).astype(self.dtype) for x in (matmul(ds, k), *heads))

    def attention_option_gradients(self, dout, q, k, v, **options):
        """dmask, dsinks, dalibi_slopes."""
        group = q.shape[1] // k.shape[1]
        q, k, v, dout = (
            x.astype(np.float32) for x in (q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1), dout)
        )
        p, _, _, sink = self._probabilities(q, k, **options)
        dp = self(matmul(dout, v.swapaxes(-1, -2)))
        delta = self(total(self(dp * p), -1, keepdims=True))
        ds = self(p * self(dp - delta))
        distance = reference.alibi_distance(q.shape[0], q.shape[2], k.shape[2], options.get("causal", False))
        results = (
            total_to(ds, options["mask"].shape),
            -total(self(sink * delta), (0, 2, 3)),
            -total(self(distance.astype(np.float32) * ds), (0, 2, 3)),
        )
        return tuple(self(x).astype(self.dtype) for x in results)


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

"""The bound that each single result keeps: a running error analysis of the plain implementation.

The error rule compares distributions: of a small problem the largest error, ours or the yardstick's, is chance. This
bound needs no yardstick and holds for each element of each call. With u = eps / 2 of the array's type:

    error <= FACTOR * (what the following lets the plain formula be off by, at most)

- a sum, product, quotient or root is off by u of its magnitude, exp, tanh, log, erfc by their ULPS;
- a sum of n terms, also of products, is off by n u times the sum of the magnitudes of its terms, in any order;
- errors of arguments are carried on with the derivative, at its largest within the error.

So `linear` is off by at most FACTOR (K + 1) u (sum |x| |w| + |b|). A score of attention counts as (D + 1) u |scale|
sum |q| |k| off, which is a relative error of its probability. exp may give 0 for a result below the normal range. The
gradients of relu and of a clip jump where these bend: there is no bound within the error of their argument.
FACTOR is for what we do otherwise: powers of two, sums of blocks that are rescaled, delta from the output, rounded
tables of rope. Of 400 drawn calls of each family the largest errors were 1.1 (rope), 0.9 (layer_norm,
cross_entropy_backward) and 0.1 to 0.7 times the bound without FACTOR.

`bounded` is fastattn.reference with numbers that carry their bound.
"""

import math
import operator

import numpy as np

from fastattn import reference
from tests.ordered import wide_erfc, wider
from tests.specification import Specification

FACTOR = 2
ULPS = {"exp": 1, "tanh": 1.5, "log": 1, "erfc": 2}


class Bounded:
    """Values in a wider type, and how far at most their computation in `real` is off."""

    def __init__(self, value, error, real):
        self.value, self.real = value, real
        with np.errstate(invalid="ignore"):
            self.error = np.where(np.isfinite(value), error, 0)

    @classmethod
    def of(cls, array):
        """An argument: exact."""
        array = np.asarray(array)
        value = array.astype(wider(array.dtype))
        return cls(value, np.zeros(value.shape, value.dtype), array.dtype)

    @property
    def dtype(self):
        return self.value.dtype

    @property
    def shape(self):
        return self.value.shape

    @property
    def ndim(self):
        return self.value.ndim

    @property
    def T(self):
        return self._each(lambda x: x.T)

    def __len__(self):
        return len(self.value)

    def _each(self, rearranged):
        return Bounded(rearranged(self.value), rearranged(self.error), self.real)

    def __getitem__(self, index):
        return self._each(lambda x: x[index])

    def __setitem__(self, index, other):
        other = self._lift(other)
        self.value[index], self.error[index] = other.value, other.error

    def reshape(self, *shape):
        return self._each(lambda x: x.reshape(*shape))

    def swapaxes(self, a, b):
        return self._each(lambda x: x.swapaxes(a, b))

    def copy(self):
        return self._each(np.copy)

    def astype(self, _, copy=False):
        return self

    def max(self, axis, **keywords):
        return self._each(lambda x: x.max(axis, **keywords))

    def sum(self, axis, keepdims=False):
        n = self.value.size // max(self.value.sum(axis).size, 1)
        error = self.error.sum(axis, keepdims=keepdims)
        magnitudes = (np.abs(self.value) + self.error).sum(axis, keepdims=keepdims)
        rounding = n * np.finfo(self.real).eps / 2 * magnitudes
        return Bounded(self.value.sum(axis, keepdims=keepdims), error + rounding, self.real)

    def mean(self, axis, keepdims=False):
        return self.sum(axis, keepdims) / self.shape[axis]

    def __array_ufunc__(self, ufunc, method, *inputs):
        assert method == "__call__", (ufunc, method)
        return UFUNCS[ufunc](*inputs)

    def __array_function__(self, function, types, arguments, keywords):
        return FUNCTIONS[function](*arguments, **keywords)

    def _lift(self, other):
        if isinstance(other, Bounded):
            return other
        value = np.asarray(other, self.dtype)
        return Bounded(value, np.zeros_like(value), self.real)

    def _rounded(self, value, error, ulps=0.5):
        """A result of one operation: its rounding on top of what its arguments bring."""
        limits = np.finfo(self.real)
        return Bounded(value, error + ulps * limits.eps * np.abs(value) + limits.smallest_subnormal, self.real)

    def __neg__(self):
        return Bounded(-self.value, self.error, self.real)

    def __add__(self, other):
        other = self._lift(other)
        return self._rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other):
        return self + -self._lift(other)

    def __rsub__(self, other):
        return -self + other

    def __mul__(self, other):
        other = self._lift(other)
        a, b = np.abs(self.value), np.abs(other.value)
        with np.errstate(invalid="ignore"):  # infinity times an error of 0
            error = a * other.error + b * self.error + self.error * other.error
        return self._rounded(self.value * other.value, error)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other):
        other = self._lift(other)
        value = self.value / other.value
        least = np.abs(other.value) - other.error
        error = np.where(least > 0, (self.error + np.abs(value) * other.error) / np.where(least > 0, least, 1), np.inf)
        return self._rounded(value, error)

    def __matmul__(self, other):
        if other.ndim == 1:
            return (self @ other[:, None])[..., 0]
        x, y = np.abs(self.value), np.abs(other.value)
        value = self.value @ other.value
        terms = self.shape[-1] * np.finfo(self.real).eps / 2
        with np.errstate(invalid="ignore"):
            error = (x + self.error) @ other.error + self.error @ y + terms * ((x + self.error) @ (y + other.error))
        return Bounded(value, np.where(np.isfinite(value), error, 0), self.real)

    def __rtruediv__(self, other):
        return self._lift(other) / self

    def __pow__(self, exponent):
        assert exponent == 2
        return self * self

    def __gt__(self, other):
        return self.value > (other.value if isinstance(other, Bounded) else other)

    def __lt__(self, other):
        return self.value < (other.value if isinstance(other, Bounded) else other)

    def __eq__(self, other):
        return self.value == (other.value if isinstance(other, Bounded) else other)

    def __ne__(self, other):
        return ~(self == other)

    __hash__ = None


def _sloped(name, function, steepest):
    """A function whose derivative, from the value and the error of its argument, is at most `steepest`."""

    def bounded(x):
        value = function(x.value)
        return x._rounded(value, x.error * steepest(x.value, x.error), ULPS[name])

    return bounded


def exp(x):
    """Results below the normal range may be 0, as they are inside our sums."""
    value = np.exp(x.value)
    lost = np.where(value > 0, np.finfo(x.real).smallest_normal, 0)
    return x._rounded(value, value * np.expm1(np.minimum(x.error, 700)) + lost, ULPS["exp"])


def log(x):
    left = x.value - x.error
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(left > 0, np.log(x.value / np.where(left > 0, left, 1)), np.where(x.value == 0, 0, np.inf))
        return x._rounded(np.log(x.value), error, ULPS["log"])


def _nearest(value, error):
    return np.maximum(np.abs(value) - error, 0)


tanh = _sloped("tanh", np.tanh, lambda x, e: 1 - np.tanh(_nearest(x, e)) ** 2)
erfc = _sloped("erfc", wide_erfc, lambda x, e: 2 / math.sqrt(math.pi) * np.exp(-(_nearest(x, e) ** 2)))


def sqrt(x):
    root = np.sqrt(x.value)
    return x._rounded(root, x.error / (root + np.sqrt(np.maximum(x.value - x.error, 0))))


def where(condition, a, b):
    a, b = (a, a._lift(b)) if isinstance(a, Bounded) else (b._lift(a), b)
    return Bounded(np.where(condition, a.value, b.value), np.where(condition, a.error, b.error), a.real)


def split(x, parts, axis):
    pairs = zip(np.split(x.value, parts, axis), np.split(x.error, parts, axis), strict=True)
    return [Bounded(value, error, x.real) for value, error in pairs]


def _joined(join):
    return lambda parts, axis=0: Bounded(
        join([part.value for part in parts], axis), join([part.error for part in parts], axis), parts[0].real
    )


def _rearranged(function):
    return lambda x, *arguments, **options: x._each(lambda part: function(part, *arguments, **options))


def _reflected(operator):
    """Of two arguments one of which may be a common array."""
    return lambda a, b: operator(a if isinstance(a, Bounded) else b._lift(a), b)


UFUNCS = {
    np.exp: exp, np.log: log, np.tanh: tanh, reference.erfc: erfc, np.sqrt: sqrt,
    np.absolute: lambda x: Bounded(np.abs(x.value), x.error, x.real),
    np.maximum: lambda x, least: Bounded(np.maximum(x.value, least), x.error, x.real),
    np.clip: lambda x, low, high: Bounded(np.clip(x.value, low, high), x.error, x.real),
    **{getattr(np, name): _reflected(getattr(operator, function)) for name, function in
       {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "truediv", "less": "lt", "greater": "gt",
        "equal": "eq", "not_equal": "ne"}.items()},
}  # fmt: skip
FUNCTIONS = {
    np.where: where, np.split: split, np.concatenate: _joined(np.concatenate), np.stack: _joined(np.stack),
    np.repeat: _rearranged(np.repeat), np.take_along_axis: _rearranged(np.take_along_axis),
    np.zeros_like: _rearranged(np.zeros_like),
    np.empty_like: _rearranged(np.empty_like), np.clip: UFUNCS[np.clip],
}  # fmt: skip
bounded = Specification(lambda x: x if isinstance(x, Bounded) else Bounded.of(x), lambda x: x)


def share_of_bound(got, bound, exact):
    """The largest part of its bound that an element of one result is off by."""
    got, limit = np.asarray(got), FACTOR * bound.error
    assert got.shape == exact.shape == limit.shape, (got.shape, exact.shape, limit.shape)
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(got[~finite], exact[~finite].astype(got.dtype))
    off, limit = np.abs(got[finite] - exact[finite]), limit[finite]
    return float((off / np.where(off > 0, limit, 1)).max(initial=0))

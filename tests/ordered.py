"""Arithmetic that is the same on every machine, NumPy version and build: that of the yardstick.

An `Ordered` array brings it to the formulas of fastattn.reference, and to others that are written for NumPy.

Every product, sum, quotient and root is rounded to the type of its arguments, as IEEE 754 has it. Sums have one order:

- `matmul` adds the terms of an element one after the other, k = 0, 1, ...;
- `total` and `mean` of leading axes add one row after the other;
- of the last axis they add in eight partial sums (term i to sum i mod 8) and these in pairs, of more than 128 terms by
  halves: the order of np.sum on contiguous arrays, which has no name in NumPy's promises.

No BLAS, einsum or reduction of NumPy adds here: their order depends on kernels that are picked by the CPU. exp, tanh,
log and erfc are evaluated in the next wider type and rounded once: of NumPy's own float32 functions every dispatch has
its own errors. (Two float64 functions may still differ in the last bit, which decides the rounding of one float32 value
in about 10^8.)
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastattn import reference

Array = NDArray[Any]

BLOCK = 8192  # elements of a product that stay in the cache over all terms
LANES, HALVES = 8, 128  # of np.sum: partial sums, and the most terms that are not halved


def matmul(a: Array, b: Array) -> Array:
    """a b of a[..., m, k] and b[..., k, n]."""
    if b.shape[-1] < a.shape[-2]:
        return np.ascontiguousarray(_matmul(b.swapaxes(-1, -2), a.swapaxes(-1, -2)).swapaxes(-1, -2))
    return _matmul(a, b)


def _matmul(a: Array, b: Array) -> Array:
    """For n >= m: the inner loops run over the columns of b."""
    (m, terms), n = a.shape[-2:], b.shape[-1]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = np.zeros((*batch, m, n), np.result_type(a, b))
    if out.size == 0 or terms == 0:
        return out
    # Term first: of each term a column of a and a row of b are read.
    columns = np.ascontiguousarray(np.moveaxis(np.broadcast_to(a, (*batch, m, terms)), -1, 0)).reshape(terms, -1, m, 1)
    rows = np.ascontiguousarray(np.moveaxis(np.broadcast_to(b, (*batch, terms, n)), -2, 0)).reshape(terms, -1, 1, n)
    whole = out.reshape(-1, m, n)
    matrices = max(1, BLOCK // (m * n))
    lines = max(1, BLOCK // n)
    for first in range(0, len(whole), matrices):
        for line in range(0, m, lines):
            of = slice(first, first + matrices), slice(line, line + lines)
            sums = np.multiply(columns[(0, *of)], rows[0, of[0]])
            product = np.empty_like(sums)
            for term in range(1, terms):
                np.multiply(columns[(term, *of)], rows[term, of[0]], out=product)
                np.add(sums, product, out=sums)
            whole[of] = sums
    return out


def total(x: Array, axis: int | tuple[int, ...] = -1, keepdims: bool = False) -> Array:
    """The sum over an axis; over several, one after the other from the last."""
    if isinstance(axis, tuple):
        for each in sorted((each % x.ndim for each in axis), reverse=True):
            x = total(x, each, keepdims)
        return x
    last = axis % x.ndim == x.ndim - 1
    terms = np.ascontiguousarray(np.moveaxis(x, axis, 0))
    sums = _by_halves(terms) if last else _one_by_one(terms)
    return np.expand_dims(sums, axis) if keepdims else sums


def _one_by_one(terms: Array) -> Array:
    if len(terms) == 0:
        return np.zeros(terms.shape[1:], terms.dtype)
    return np.asarray(functools.reduce(np.add, terms[1:], terms[0]))


def _by_halves(terms: Array) -> Array:
    n = len(terms)
    if n < LANES:
        return _one_by_one(terms)
    if n > HALVES:
        half = n // 2 - n // 2 % LANES
        return np.asarray(_by_halves(terms[:half]) + _by_halves(terms[half:]))
    whole = n - n % LANES
    sums = _one_by_one(terms[:whole].reshape(whole // LANES, LANES, *terms.shape[1:]))
    while len(sums) > 1:
        sums = sums[0::2] + sums[1::2]
    return np.asarray(functools.reduce(np.add, terms[whole:], sums[0]))


def mean(x: Array, axis: int = -1, keepdims: bool = False) -> Array:
    return np.asarray(total(x, axis, keepdims) / x.dtype.type(x.shape[axis]))


def wider(dtype: DTypeLike) -> np.dtype[Any]:
    """The type in which the elementary functions of `dtype` are evaluated."""
    return np.dtype(np.float64 if dtype == np.float32 else np.longdouble)


def _rounded_once(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def rounded(x: Array) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(function(x.astype(wider(x.dtype))).astype(x.dtype))

    return rounded


def wide_erfc(z: Array) -> Array:
    """erfc: a power series near 0, else a continued fraction; in long double to its last digits."""
    z = np.asarray(z)
    real = z.dtype.type
    a = np.abs(z)
    pi = 4 * np.arctan(real(1))
    small, large = np.minimum(a, 1), np.maximum(a, 1)
    term, near = small, small
    for n in range(1, 40):
        term = -term * small * small / n
        near = near + term / (2 * n + 1)
    near = 1 - 2 / np.sqrt(pi) * near
    fraction = large
    for n in range(600, 0, -1):
        fraction = large + real(n) / 2 / fraction
    # The square of a short number is exact; that of a long one would be off by many units after the exponential.
    short = large.astype(np.float32).astype(z.dtype)
    far = np.exp(-short * short) * np.exp(-(large - short) * (large + short)) / np.sqrt(pi) / fraction
    tail = np.where(a < 1, near, far)
    return np.asarray(np.where(z < 0, 2 - tail, tail))


exp, tanh, log, erfc = (_rounded_once(function) for function in (np.exp, np.tanh, np.log, wide_erfc))
_OWN = {np.exp: exp, np.tanh: tanh, np.log: log, reference.erfc: erfc}
# Left to NumPy: each element is rounded by itself, as IEEE 754 has it, or no element is rounded.
_ELEMENTWISE = {np.add, np.subtract, np.multiply, np.true_divide, np.sqrt, np.square, np.negative, np.absolute,
                np.maximum, np.minimum, np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal,
                np.isfinite, np.isnan, np.conjugate}  # fmt: skip
_REARRANGED = {np.where, np.concatenate, np.stack, np.split, np.array_split, np.repeat, np.take_along_axis, np.clip,
               np.zeros_like, np.empty_like, np.copyto, np.moveaxis, np.swapaxes, np.expand_dims,
               np.broadcast_to}  # fmt: skip


class Ordered(np.ndarray[Any, Any]):
    """An array that gives formulas written for NumPy this arithmetic: `@`, sum, mean, np.exp, np.tanh and np.log.

    What is computed or joined from one and a common array is one again. An operation of another kind, whose order NumPy
    may choose, is refused; so is a common array of floating-point numbers, which would have lost this arithmetic on its
    way.
    """

    __array_priority__ = 1.0  # of np.concatenate and np.stack

    def _viewed(self, x: Any) -> Any:
        return x.view(type(self)) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x

    def __array_ufunc__(self, ufunc: np.ufunc, method: Any, *inputs: Any, **keywords: Any) -> Any:
        for x in inputs:
            if isinstance(x, np.ndarray) and not isinstance(x, Ordered) and x.dtype.kind == "f" and x.ndim:
                raise TypeError(f"{ufunc.__name__}: an array in NumPy's arithmetic among ordered ones")
        arguments = [np.asarray(x) if isinstance(x, Ordered) else x for x in inputs]
        if "out" in keywords:  # x += y
            (out,) = keywords.pop("out")
            np.copyto(np.asarray(out), np.asarray(self.__array_ufunc__(ufunc, method, *inputs, **keywords)))
            return out
        if ufunc is np.matmul:
            result = _product(*arguments)
        elif ufunc in _OWN:
            result = _OWN[ufunc](arguments[0])
        elif ufunc is np.add and method == "reduce" and keywords["axis"] is not None:
            result = total(arguments[0], keywords["axis"], keywords.get("keepdims", False))
        elif ufunc in _ELEMENTWISE and (method in ("__call__", "at") or ufunc in (np.maximum, np.minimum)):
            result = getattr(ufunc, method)(*arguments, **keywords)
        else:
            raise TypeError(f"{ufunc.__name__}: {method} has no stated order")
        return self._viewed(self._result(result))

    def _result(self, x: Any) -> Any:
        """Of one operation, for types with fewer digits than the dtype."""
        return x

    def __array_function__(self, function: Any, types: Any, arguments: Any, keywords: Any) -> Any:
        if function not in _REARRANGED:
            raise TypeError(f"{function.__name__} has no stated order")
        result = super().__array_function__(function, types, arguments, keywords)
        return [self._viewed(x) for x in result] if isinstance(result, list) else self._viewed(result)

    def _refused(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a method of NumPy has no stated order")

    dot = cumsum = cumprod = trace = _refused  # type: ignore[assignment]

    def mean(self, axis: int, keepdims: bool = False) -> Any:  # type: ignore[override]
        return self._viewed(self._result(mean(np.asarray(self), axis, keepdims)))


def _product(a: Array, b: Array) -> Array:
    """As `@` has it, the second factor a vector too."""
    return matmul(a, b[:, None])[..., 0] if b.ndim == 1 else matmul(a, b)

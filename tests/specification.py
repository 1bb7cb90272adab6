"""fastattn.reference in the arithmetics that tests compare with: `plain` and `exact`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastattn import reference
from tests.ordered import Ordered, wide_erfc

HAS_LONG_DOUBLE = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant


class Specification:
    """fastattn.reference in an arithmetic: `lift` makes its arrays of floating-point arguments, `lower` arrays of
    results. The dtype is that of the first of them."""

    def __init__(self, lift: Callable[[Any], Any], lower: Callable[[Any], Any] = np.asarray) -> None:
        self._lift, self._lower = lift, lower

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(reference, name)

        def evaluated(*arguments: Any, **options: Any) -> Any:
            arguments, options = each(self._lift, arguments), each(self._lift, options)
            dtype = next(_types_of((arguments, options)))
            return each(self._lower, function(*arguments, **options, dtype=dtype))

        return evaluated


def is_float(x: Any) -> bool:
    return hasattr(x, "dtype") and (x.dtype.kind == "f" or x.dtype.name == "bfloat16")


def each(function: Callable[[Any], Any], x: Any) -> Any:
    """`x` with the function of each floating-point array in it."""
    if isinstance(x, dict):
        return {name: each(function, value) for name, value in x.items()}
    if isinstance(x, tuple):
        return tuple(each(function, value) for value in x)
    return function(x) if is_float(x) and (x.ndim or isinstance(x, np.ndarray)) else x


def _types_of(x: Any) -> Any:
    """Of the floating-point arrays in x."""
    if isinstance(x, (tuple, dict)):
        for value in x.values() if isinstance(x, dict) else x:
            yield from _types_of(value)
    elif is_float(x):
        yield x.dtype


class _LongDouble(np.ndarray[Any, Any]):
    """NumPy's arithmetic, with an erfc of all its digits."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: Any, *inputs: Any, **keywords: Any) -> Any:
        inputs = tuple(np.asarray(x) if isinstance(x, _LongDouble) else x for x in inputs)
        if ufunc is reference.erfc:
            return wide_erfc(*inputs).view(_LongDouble)
        if "out" in keywords:
            keywords["out"] = tuple(np.asarray(x) for x in keywords["out"])
        result = getattr(ufunc, method)(*inputs, **keywords)
        return result.view(_LongDouble) if isinstance(result, np.ndarray) else result


plain: Any = Specification(lambda x: np.asarray(x).view(Ordered))
"""What one writes without this library, in the dtype of the arguments, with the same bits on every machine."""

_extended: Any = Specification(lambda x: np.asarray(x, np.longdouble).view(_LongDouble))


def exact(dtype: Any) -> Any:
    """The reference in a type wider than `dtype`: its errors do not count beside those of `dtype`."""
    if np.dtype(dtype) == np.float32:
        return reference
    if not HAS_LONG_DOUBLE:
        pytest.skip("long double is no wider than float64 on this platform: no exact values to compare with")
    return _extended

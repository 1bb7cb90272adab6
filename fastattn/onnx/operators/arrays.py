"""Operators on shapes and elements that most graphs have, as NumPy's functions."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from fastattn.onnx.graph import Array, Call, Node
from fastattn.onnx.operators.reference import reference


def _is_plain(dtype: Any) -> bool:
    """Whether it is one of NumPy's own numbers; others have rules of ONNX's for casts."""
    return bool(dtype.isbuiltin == 1 and dtype.kind in "biuf")


def _plain(function: Callable[..., Any]) -> Callable[[Node], Call]:
    return lambda node: function


def _after_7(function: Callable[..., Any]) -> Callable[[Node], Call | None]:
    """Of arguments that broadcast as NumPy's do."""
    return lambda node: function if node.version >= 7 else None


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        result: Array = np.divide(a, b)
        return result
    quotient: Array = np.floor_divide(a, b)  # towards zero
    if a.dtype.kind == "i":
        quotient = quotient + ((a % b != 0) & ((a < 0) != (b < 0))).astype(a.dtype)
    return quotient


def _power(node: Node) -> Call | None:
    if node.version < 7:
        return None
    exponent = node.constant(1)
    if exponent is not None and exponent.ndim == 0 and exponent.item() in (0.5, 2):
        function: Any = np.square if exponent.item() == 2 else np.sqrt
        return lambda a, b: function(a) if a.dtype.kind == "f" else np.power(a, b).astype(a.dtype)

    def call(a: Array, b: Array) -> Array:
        if a.dtype.kind == "f":
            return np.power(a, b.astype(a.dtype, copy=False))
        result: Array = np.power(a, b).astype(a.dtype, copy=False)
        return result

    return call


def _extremum(function: Any) -> Callable[[Node], Call | None]:
    def make(node: Node) -> Call | None:
        if node.version < 8 or len(node.inputs) != 2:
            return None
        call: Call = function
        return call

    return make


def _clip(node: Node) -> Call | None:
    if node.version < 11:
        low, high = node.get("min"), node.get("max")
        return lambda x: np.clip(x, low, high)

    def call(x: Array, low: Array | None = None, high: Array | None = None) -> Any:
        y = x if low is None else np.maximum(x, low)
        return y if high is None else np.minimum(y, high)

    return call


def _cast(node: Node) -> Call | None:
    to = np.dtype(helper.tensor_dtype_to_np_dtype(node.get("to")))
    if not _is_plain(to):
        return None
    other: list[Call] = []

    def call(x: Array) -> Any:
        if _is_plain(x.dtype):
            return x.astype(to, copy=False)
        if not other:
            other.append(reference(node))
        return other[0](x)

    return call


def _shape(node: Node) -> Call:
    taken = slice(node.get("start", 0), node.get("end"))
    return lambda x: np.array(x.shape[taken], np.int64)


def _reshape(node: Node) -> Call | None:
    if node.version < 5:
        return None
    keep_zero, known = bool(node.get("allowzero", 0)), node.constant(1)
    fixed = None if known is None else known.tolist()
    copies = fixed is not None and 0 in fixed and not keep_zero

    def call(x: Array, shape: Array) -> Array:
        sizes = shape.tolist() if fixed is None else fixed
        if copies or (fixed is None and not keep_zero and 0 in sizes):
            sizes = [n or x.shape[i] for i, n in enumerate(sizes)]
        return x.reshape(sizes)

    return call


def _axes(node: Node, index: int = 1) -> Any:
    """Axes as an attribute or a known input: (known, value)."""
    if "axes" in node.attributes:
        return True, tuple(node.get("axes"))
    if not node.has(index):
        return True, None
    known = node.constant(index)
    return (False, None) if known is None else (True, tuple(known.ravel().tolist()))


def _unsqueeze(node: Node) -> Call:
    known, axes = _axes(node)
    if not known:
        return lambda x, given: np.expand_dims(x, tuple(given.ravel().tolist()))
    indices = [_with_new_axes(axes, rank) for rank in range(_RANKS)]
    return lambda x, *_: x[indices[x.ndim]] if x.ndim < _RANKS else np.expand_dims(x, axes)


_RANKS = 8  # of these, indices are made beforehand


def _with_new_axes(axes: tuple[int, ...], rank: int) -> tuple[Any, ...]:
    """The index that puts new axes into an array of a rank, out of range where there is no such axis."""
    total = rank + len(axes)
    places = {axis + total if axis < 0 else axis for axis in axes}
    return tuple(None if i in places else slice(None) for i in range(max(total, *places, 0)))


def _squeeze(node: Node) -> Call:
    known, axes = _axes(node)
    return lambda x, given=None: x.squeeze(axes if known else tuple(given.ravel().tolist()))


def _transpose(node: Node) -> Call:
    order = node.get("perm")
    return lambda x: x.transpose(order)


def _flatten(node: Node) -> Call:
    axis = int(node.get("axis", 1))

    def call(x: Array) -> Array:
        first = axis + x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))

    return call


def _gather(node: Node) -> Call:
    axis, known = int(node.get("axis", 0)), node.constant(1)
    if known is not None and known.ndim == 0 and axis >= 0:
        index = (*[slice(None)] * axis, int(known))
        return lambda x, _: x[index]
    return lambda x, indices: x.take(indices, axis)


def _gather_elements(node: Node) -> Call:
    axis = int(node.get("axis", 0))
    return lambda x, indices: np.take_along_axis(x, indices, axis)


def _concat(node: Node) -> Call | None:
    axis = node.get("axis")
    return None if axis is None else lambda *arrays: np.concatenate(arrays, axis)


def _slice(node: Node) -> Call:
    if node.version < 10:
        index = slice_index(node.get("starts"), node.get("ends"), node.get("axes"), None)
        return lambda x: x[_of_rank(index, x.ndim)]
    known = [node.constant(i) for i in range(1, len(node.inputs))]
    if all(value is not None or not node.has(i) for i, value in enumerate(known, 1)):
        lists = [None if value is None else value.tolist() for value in (*known, None, None)[:4]]
        index = slice_index(*lists)
        if all(axis >= 0 for axis in index):
            fixed = _of_rank(index, max(index, default=-1) + 1)
            return lambda x, *_: x[fixed]
        return lambda x, *_: x[_of_rank(index, x.ndim)]

    def call(x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Any:
        lists = [None if value is None else value.tolist() for value in (starts, ends, axes, steps)]
        return x[_of_rank(slice_index(*lists), x.ndim)]

    return call


def slice_index(starts: Any, ends: Any, axes: Any, steps: Any) -> dict[int, slice]:
    """axis -> slice."""
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    return {axis: slice(*ends_of) for axis, *ends_of in zip(axes, starts, ends, steps, strict=True)}


def _of_rank(index: dict[int, slice], rank: int) -> tuple[slice, ...]:
    result = [slice(None)] * rank
    for axis, taken in index.items():
        result[axis] = taken
    return tuple(result)


def _split(node: Node) -> Call | None:
    axis, count = int(node.get("axis", 0)), len(node.outputs)
    sizes, known = node.get("split"), node.constant(1)
    if known is not None:
        sizes = known.tolist()
    if node.has(1) and sizes is None:
        return None

    def call(x: Array, *_: Any) -> Any:
        length = x.shape[axis]
        each = -(-length // count)
        ends = np.cumsum(sizes)[:-1].tolist() if sizes is not None else [each * i for i in range(1, count)]
        if sizes is not None and sum(sizes) != length:
            raise ValueError(f"Split: split must have the sum {length}, got {sizes}")
        parts = np.split(x, ends, axis)
        return parts[0] if count == 1 else tuple(parts)

    return call


def _expand(x: Array, shape: Array) -> Array:
    sizes = shape.tolist()
    target = np.broadcast_shapes(x.shape, tuple(sizes))
    return x if target == x.shape else np.broadcast_to(x, target)


def _constant_of_shape(node: Node) -> Call:
    value = node.get("value")
    fill = np.zeros(1, np.float32) if value is None else value
    return lambda shape: np.full(shape.tolist(), fill.ravel()[0], fill.dtype)


_REDUCTIONS = {"sum": np.add, "mean": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


def _reduction(function: str) -> Callable[[Node], Call | None]:
    def make(node: Node) -> Call | None:
        known, axes = _axes(node)
        if not known or (not axes and node.get("noop_with_empty_axes", 0)):
            return None
        axes, kept = axes or None, bool(node.get("keepdims", 1))
        reduce: Call = _REDUCTIONS[function].reduce
        other: list[Call] = []

        def call(x: Array, *rest: Any) -> Any:
            if x.dtype.kind in "fiu" and x.dtype.itemsize >= 4 and (function not in ("max", "min") or x.size):
                total = reduce(x, axis=axes, dtype=x.dtype, keepdims=kept)
                if function != "mean":
                    return total
                return (total / x.dtype.type(x.size // max(1, total.size))).astype(x.dtype, copy=False)
            if not other:
                other.append(reference(node))
            return other[0](x, *rest)

        return call

    return make


def _pad(node: Node) -> Call | None:
    mode, known = node.get("mode", "constant"), node.constant(1)
    if node.version < 11 or known is None or node.has(3) or min(known.tolist(), default=0) < 0:
        return None
    if mode not in ("constant", "reflect"):
        return None
    sizes = known.tolist()
    rank = len(sizes) // 2
    padding = list(zip(sizes[:rank], sizes[rank:], strict=True))

    def call(x: Array, _: Any, value: Array | None = None) -> Array:
        if x.ndim != rank:
            raise ValueError(f"Pad: pads must be {2 * x.ndim} numbers, got {len(sizes)}")
        if mode == "constant":
            fill = 0 if value is None else value.item()
            y = np.full([a + n + b for n, (a, b) in zip(x.shape, padding, strict=True)], fill, x.dtype)
            y[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, padding, strict=True))] = x
            return y
        for axis, (before, after) in enumerate(padding):
            if before or after:
                x = x.take(reflected(x.shape[axis], before, after), axis)
        return x

    return call


@functools.lru_cache(maxsize=8)
def reflected(length: int, before: int, after: int) -> Array:
    """Places of an axis that is mirrored at its first and its last element."""
    if length < 1:
        raise ValueError("Pad: data must have an element on an axis that is reflected, got none")
    period = max(1, 2 * (length - 1))
    place = np.arange(-before, length + after) % period
    return np.minimum(place, period - place) if length > 1 else place


def _dropout(node: Node) -> Call | None:
    if len(node.outputs) > 1 or (node.has(2) and (node.constant(2) is None or node.constant(2).item())):
        return None
    return None if node.version < 7 else lambda x, *_: x


def _range(start: Array, limit: Array, delta: Array) -> Array:
    return np.arange(start.item(), limit.item(), delta.item()).astype(start.dtype, copy=False)


def _present(x: Any) -> Any:
    if x is None:
        raise ValueError("OptionalGetElement: input must have an element, got none")
    return x


def _where(condition: Array, x: Array, y: Array) -> Array:
    return np.where(condition, x, y)


_BINARY: dict[str, Call] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Equal": np.equal, "Greater": np.greater,
    "Less": np.less, "GreaterOrEqual": np.greater_equal, "LessOrEqual": np.less_equal, "And": np.logical_and,
    "Or": np.logical_or, "Xor": np.logical_xor,
}  # fmt: skip
_OTHER: dict[str, Call] = {
    "Identity": lambda x: x, "Neg": np.negative, "Abs": np.abs, "Sqrt": np.sqrt, "Not": np.logical_not, "Where": _where,
    "Expand": _expand, "Range": _range, "Size": lambda x: np.int64(x.size), "IsNaN": np.isnan, "Floor": np.floor,
    "Ceil": np.ceil, "Reciprocal": np.reciprocal, "Log": np.log,
}  # fmt: skip
MAKERS: dict[tuple[str, str], Callable[[Node], Call | None]] = {
    **{("", name): _after_7(function) for name, function in _BINARY.items()},
    **{("", name): _plain(function) for name, function in _OTHER.items()},
    ("", "Pow"): _power,
    ("", "Min"): _extremum(np.minimum),
    ("", "Max"): _extremum(np.maximum),
    ("", "Clip"): _clip,
    ("", "Cast"): _cast,
    ("", "Shape"): _shape,
    ("", "Reshape"): _reshape,
    ("", "Unsqueeze"): _unsqueeze,
    ("", "Squeeze"): _squeeze,
    ("", "Transpose"): _transpose,
    ("", "Flatten"): _flatten,
    ("", "Gather"): _gather,
    ("", "GatherElements"): _gather_elements,
    ("", "Concat"): _concat,
    ("", "Slice"): _slice,
    ("", "Split"): _split,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "ReduceSum"): _reduction("sum"),
    ("", "ReduceMean"): _reduction("mean"),
    ("", "ReduceMax"): _reduction("max"),
    ("", "ReduceMin"): _reduction("min"),
    ("", "ReduceProd"): _reduction("prod"),
    ("", "Pad"): _pad,
    ("", "Dropout"): _dropout,
    # What is absent is None.
    ("", "Optional"): lambda node: lambda x=None: x,
    ("", "OptionalHasElement"): lambda node: lambda x=None: np.bool_(x is not None),
    ("", "OptionalGetElement"): lambda node: _present,
}

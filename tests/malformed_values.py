"""What a malformed call gives in the place of an argument: wrong types, shapes, strides, numbers, and objects that lie.

`spoilt(rng, value)` is something else in the place of a valid value; what it can be depends on what the value is. The
same state of `rng`, a random.Random, gives the same thing.
"""

import array
import ctypes
import dataclasses
import decimal
import fractions
import types

import numpy as np

from tests.low_precision import BFLOAT16

GIANT = 58  # log2 of the elements of an array whose strides are 0
HUGE_INTEGERS = (10**9, 2**31, 2**32, 2**60, 2**63 - 1, 2**63, 2**64, 10**30, -(2**31), -(2**63), -(2**63) - 1)
INTEGERS = (0, 1, -1, 2, 3, 7, 100, *HUGE_INTEGERS)
NUMBERS = (0.0, -0.0, 0.5, -1.0, 1e-45, 5e-324, 1e-320, 1e-39, 1e38, 1e39, -1e39, 1e308, 1e-308, float("nan"),
           float("inf"), float("-inf"), 1.0000001, 65504.0, 65520.0)  # fmt: skip
STRINGS = ("", "none", "tanh", "relu", "gelu", "bhld", "blhd", "mean", "float32", "bfloat16", "int8", ">f4", "\ud800",
           "top-left", "bottom-right", "x" * 1000, "\0", "weight")  # fmt: skip


class RaisesArray:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array")


class RaisesEverything:
    """Fails wherever a number, an array, a sequence or a mapping is looked for."""

    def _fail(self, *arguments, **options):
        raise RuntimeError("no")

    __array__ = __index__ = __int__ = __float__ = __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = _fail
    __eq__ = __str__ = __repr__ = keys = items = get = detach = cpu = numpy = __dlpack__ = _fail
    __hash__ = object.__hash__
    __array_interface__ = shape = dtype = ndim = property(_fail)


class Changing:
    """Another array each time it is looked at."""

    def __init__(self, first, then):
        self.first, self.then, self.seen = first, then, 0

    def __array__(self, dtype=None, copy=None):
        self.seen += 1
        return self.first if self.seen == 1 else self.then


class Returns:
    """__array__, __index__, __float__ and __bool__ give something of another type."""

    def __init__(self, thing):
        self.thing = thing

    def __array__(self, dtype=None, copy=None):
        return self.thing

    def __index__(self):
        return self.thing

    def __float__(self):
        return self.thing

    def __bool__(self):
        return self.thing


class Index:
    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number


class LongLength(list):
    def __len__(self):
        return 2**60


class Interface:
    """An array interface that says what cannot be."""

    def __init__(self, **fields):
        self.__array_interface__ = {"version": 3, "shape": (2, 3), "typestr": "<f4", **fields}


class Tensor:
    """What PyTorch's tensors look like, with a type that NumPy does not have or a gradient that is required."""

    def __init__(self, values, name="torch.bfloat16", requires_grad=True):
        self.values, self.dtype, self.requires_grad = values, name, requires_grad
        self.shape, self.ndim, self.device = values.shape, values.ndim, "meta"

    def detach(self):
        return self

    cpu = contiguous = float = detach

    def __len__(self):
        return len(self.values)

    def numpy(self):
        raise TypeError("Got unsupported ScalarType BFloat16")

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


class Capsule:
    def __init__(self, device=(1, 0)):
        self.device = device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        return object()


class Subclass(np.ndarray):
    """An ndarray whose operators are not NumPy's."""

    def __array_finalize__(self, other):
        self.note = "mine"

    def __array_ufunc__(self, *arguments, **options):
        return NotImplemented

    def __array_function__(self, *arguments, **options):
        return NotImplemented


class LyingMapping(dict):
    """Names that it does not hold."""

    def keys(self):
        return [*super().keys(), "weight_ih_l7"]

    def __iter__(self):
        return iter(self.keys())


class HostileString(str):
    def __eq__(self, other):
        raise RuntimeError("no comparison")

    def __hash__(self):
        raise RuntimeError("no hash")


# What fits nowhere, or nearly nowhere. Functions of no arguments make what a call would use up.
THINGS = (
    None, True, False, 0, 1, -1, 2**63, 0.5, float("nan"), 1j, "", "tanh", b"x", bytearray(b"abcd"), (), [], {},
    (1,), (None, None), (-1, 2), (2**70, 2**70), [[1.0, 2.0], [3.0]], object(), Ellipsis, NotImplemented, float,
    np.float32, int, len, slice(None), slice(0, 2**60, -1), range(3), range(2**62), {1, 2},
    np.int8(3), np.uint64(2**63), np.float64(2), np.float16(2), np.bool_(True),
    np.datetime64("2020-01-01"), np.ma.masked, np.ma.array([1.0, 2.0], mask=[0, 1]), np.array(3.0), np.array([]),
    np.array([None]), np.array(["x"]), np.zeros(3, "i4,f4"), np.zeros(2, "U3"), np.zeros((1,) * 20),
    np.zeros((1,) * 32), np.zeros((2, 3), ">f4"), np.zeros((2, 3), complex), np.zeros((2, 3), bool),
    np.zeros(3, np.longdouble), np.zeros((0, 2**40, 2**15)), np.zeros(2, "V7"), np.zeros(2, "M8[s]"),
    decimal.Decimal(2), fractions.Fraction(1, 3), memoryview(b"abcd"), memoryview(b"").toreadonly(),
    array.array("f", [1.0, 2.0]), array.array("d"), (ctypes.c_float * 4)(), (ctypes.c_float * 0)(),
    RaisesArray(), RaisesEverything(), LongLength([1.0]), Index(3), Index(2**62), Index(-1), HostileString("tanh"),
    Returns("text"), Returns(None), Returns(np.zeros((2, 2))), Capsule(), Capsule((2, 0)), Capsule("gpu"),
    Interface(data=None, shape=(-1, 2)), Interface(typestr="<f3"), Interface(shape="ab"), Interface(strides=(1,)),
    Tensor(np.zeros((2, 3), np.float32)), np.random.RandomState(0),
    lambda: iter([1, 2]), lambda: (x for x in [1.0]), lambda: np.random.default_rng(0), lambda: np.zeros((2, 3), "f4"),
)  # fmt: skip


def thing(rng):
    chosen = rng.choice(THINGS)
    return chosen() if isinstance(chosen, types.LambdaType) else chosen


def giant(dtype, ndim):
    """More elements than any memory has: strides of 0."""
    return np.broadcast_to(np.zeros((), dtype), (2 ** (GIANT // max(1, ndim)),) * ndim)


def along(rng, x):
    return rng.randrange(max(1, x.ndim))


def _longer(rng, x):
    axis = along(rng, x)
    return np.concatenate([x, x.take([0], axis)], axis) if x.ndim and x.shape[axis] else x[None]


def _shorter(rng, x):
    axis = along(rng, x)
    return np.delete(x, 0, axis) if x.ndim and x.shape[axis] else x[None]


def _unaligned(rng, x):
    memory = np.zeros(x.nbytes + 1, np.uint8)
    memory[1:] = np.frombuffer(x.tobytes(), np.uint8)
    return memory[1:].view(x.dtype).reshape(x.shape)


def _one_value(rng, x):
    """One element is something else."""
    y = x.copy()
    if y.size:
        kind = y.dtype.kind
        if kind in "iu":
            value = rng.choice((-1, 2**31 - 1, 2**31, 2**62, 100, -100))
            y.flat[rng.randrange(y.size)] = value if np.iinfo(y.dtype).min <= value <= np.iinfo(y.dtype).max else 1
        elif kind == "b":
            y.flat[rng.randrange(y.size)] ^= True
        else:
            with np.errstate(all="ignore"):
                y.flat[rng.randrange(y.size)] = rng.choice(NUMBERS)
    return y


def _all_values(rng, x):
    if x.dtype.kind in "iu":
        return np.full_like(x, rng.choice((-1, 0, 2**31 - 1)) if x.dtype.kind == "i" else 0)
    with np.errstate(all="ignore"):
        return np.full_like(x, rng.choice(NUMBERS) if x.dtype.kind not in "bO" else True)


def _another_type(rng, x):
    kinds = ["f2", "f4", "f8", BFLOAT16,
             "i1", "i2", "i4", "i8", "u1", "u8", "?", "c8", "c16", "O", "g", ">f4", ">f8", ">f2",
             ">i8", "U8", "S4"]  # fmt: skip
    with np.errstate(all="ignore"):
        return np.zeros(x.shape, rng.choice(kinds)) if x.dtype.kind in "OVUS" else _cast(x, rng.choice(kinds))


def _cast(x, dtype):
    if np.dtype(dtype).kind in "iu":
        return np.nan_to_num(np.clip(x.astype(np.float64), 0, 100)).astype(dtype)
    return x.astype(dtype)


def _swapped(rng, x):
    return x.astype(x.dtype.newbyteorder())


def _zero_strides(rng, x):
    axis = along(rng, x)
    return (
        np.broadcast_to(x.take([0], axis), x.shape) if x.ndim and x.shape[axis] else np.broadcast_to(x, (2, *x.shape))
    )


def _giant_axis(rng, x):
    axis = along(rng, x)
    if not x.ndim or not x.shape[axis]:
        return giant(x.dtype, 1)
    return np.broadcast_to(x.take([0], axis), (*x.shape[:axis], 2 ** rng.choice((31, 40, 50)), *x.shape[axis + 1 :]))


def _no_elements(rng, x):
    return x.take([], along(rng, x)) if x.ndim else x[None][:0]


def _readonly(rng, x):
    y = x.copy()
    y.flags.writeable = False
    return y


def _masked(rng, x):
    return np.ma.array(x, mask=np.arange(x.size).reshape(x.shape) % 2 == 0)


def _list(rng, x):
    value = x.tolist()
    if isinstance(value, list) and rng.random() < 0.3:
        value.append(rng.choice((None, [], "x", 1.0)))
    return value


def _buffer(rng, x):
    x = np.ascontiguousarray(x)
    if x.dtype.name != "bfloat16" and rng.random() < 0.5:
        return memoryview(x)
    return rng.choice((x.tobytes(), (ctypes.c_float * 6)()))


def _wrapped(rng, x):
    return rng.choice((
        lambda: Changing(x, np.zeros((3, 3), x.dtype)),
        lambda: Changing(x, x[..., None]),
        lambda: Returns(x),
        lambda: Returns([1.0]),
        lambda: Tensor(x),
        lambda: Tensor(x, "torch.float32"),
        lambda: x.view(Subclass),
    ))()  # fmt: skip


ARRAY_CHANGES = (
    _longer, _shorter, _unaligned, _one_value, _all_values, _another_type, _swapped, _zero_strides, _giant_axis,
    _no_elements, _readonly, _masked, _list, _buffer, _wrapped,
    lambda rng, x: x[..., None],
    lambda rng, x: x[None],
    lambda rng, x: x[0] if x.ndim and len(x) else x[()],
    lambda rng, x: x.ravel(),
    lambda rng, x: x.swapaxes(0, -1) if x.ndim else x,
    lambda rng, x: np.asfortranarray(x),
    lambda rng, x: x[tuple(slice(None, None, -1) for _ in x.shape)],
    lambda rng, x: np.concatenate([x, x], along(rng, x)) if x.ndim else x,
    lambda rng, x: np.zeros((2,) * rng.randrange(8), x.dtype),
    lambda rng, x: giant(x.dtype, x.ndim),
    lambda rng, x: np.empty((0,) * x.ndim, x.dtype),
)  # fmt: skip


def spoilt(rng, value, depth=0):
    """Something else in the place of `value`."""
    if depth < 6 and rng.random() < 0.8:
        if isinstance(value, np.ndarray):
            return rng.choice(ARRAY_CHANGES)(rng, value)
        if isinstance(value, dict):
            return _spoilt_mapping(rng, value, depth)
        if isinstance(value, (tuple, list)) and value:
            return _spoilt_sequence(rng, value, depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return _spoilt_fields(rng, value, depth)
        if isinstance(value, (bool, np.bool_)):
            return rng.choice((not value, None, 2, "yes", np.bool_(value), np.array([True, False]), RaisesEverything()))
        if isinstance(value, int):
            return rng.choice((*INTEGERS, 1.5, float(value), np.int8(3), np.uint64(2), str(value), Index(value),
                               Index(2**60), np.array(value), np.array([value])))  # fmt: skip
        if isinstance(value, float):
            return rng.choice((*NUMBERS, *HUGE_INTEGERS, np.float16(value), np.longdouble(value), str(value),
                               np.array(value), np.array([value]), decimal.Decimal(2), 1j))  # fmt: skip
        if isinstance(value, str):
            return rng.choice((*STRINGS, value.upper(), value.encode(), HostileString(value), [value], np.str_(value)))
    return thing(rng)


def _spoilt_mapping(rng, value, depth):
    changed = dict(value)
    if not changed:
        return {"x": 1}
    name = rng.choice(list(changed))
    choice = rng.randrange(9)
    if choice == 0:
        del changed[name]
    elif choice == 1:
        changed[f"{name}_more"] = changed[name]
    elif choice == 2:
        changed[rng.choice((3, None, b"x", ("a",)))] = changed[name]
    elif choice == 3:
        changed[name] = None
    elif choice == 4:
        return LyingMapping(changed)
    else:
        changed[name] = spoilt(rng, changed[name], depth + 1)
    return changed


def _spoilt_sequence(rng, value, depth):
    """One part is another, or missing, or there is one more. Named tuples stay what they are."""
    parts, at = list(value), rng.randrange(len(value))
    named = hasattr(value, "_fields")
    if rng.random() < 0.1:
        return tuple(parts) if named else rng.choice((iter, _objects))(parts)
    if not named and rng.random() < 0.2:
        parts = parts[:at] + parts[at + rng.choice((0, 1)) :] + parts[at:][: rng.choice((0, 2))]
        return type(value)(parts)
    parts[at] = rng.choice(parts) if rng.random() < 0.15 else spoilt(rng, parts[at], depth + 1)
    return type(value)(*parts) if named else type(value)(parts)


def _objects(parts):
    found = np.empty(len(parts), object)
    for i, part in enumerate(parts):
        found[i] = part
    return found


def _spoilt_fields(rng, value, depth):
    """A dataclass of another field, if its constructor takes that."""
    name = rng.choice([field.name for field in dataclasses.fields(value) if field.init])
    try:
        return dataclasses.replace(value, **{name: spoilt(rng, getattr(value, name), depth + 1)})
    except (TypeError, ValueError):
        return thing(rng)


def holds(value, kind):
    """Whether a value, or what it holds, is of a type."""
    if isinstance(value, kind):
        return True
    if isinstance(value, dict):
        return any(holds(part, kind) for part in value.values())
    return isinstance(value, (tuple, list)) and any(holds(part, kind) for part in value)

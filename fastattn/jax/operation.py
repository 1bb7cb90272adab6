"""Functions on NumPy arrays as functions of JAX: foreign functions, shapes of results, axes of vmap, gradients.

All arrays of a call have names, and go in and out in dictionaries.
"""

import base64
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from numpy.typing import NDArray

import fastattn as fa
from fastattn import _core

Arrays = dict[str, NDArray[Any]]
Values = dict[str, Any]  # arrays of JAX, or tracers
Function = Callable[[Any], Callable[[Arrays], Arrays]]
Axis = Callable[[str], int | None]


@dataclass(frozen=True)
class Operation:
    """An operation with gradients. Of options, which can be hashed, forward, save and backward make functions."""

    name: str
    forward: Function  # results of the arguments
    save: Function  # the same, and what backward needs beside the arguments
    # Of (options, names of arguments) and all these arrays and the gradients of results, d<name>: those of the names.
    backward: Function
    axis: Callable[[Any, str], int | None]  # of the batch in the array of this name; None: it has no batch
    results: tuple[str, ...]
    folds: Callable[[Any], bool] = lambda options: True  # whether several batches may be one

    def __call__(self, options: Any, **arguments: Any) -> Values:
        """The results for the arguments that are not None. Options and arguments are checked while JAX traces."""
        given = {name: jnp.asarray(value) for name, value in arguments.items() if value is not None}
        try:
            results: Values = _compiled(self, options, given)
        except TypeError as error:
            if "forward-mode" in str(error):
                raise TypeError(f"{self.name}: has no forward-mode derivative, only a backward one") from error
            raise
        return results


def known(op: str, **options: Any) -> tuple[Any, ...]:
    """Options that decide which program is compiled: neither arrays nor tracers."""
    for name, value in options.items():
        if isinstance(value, jax.Array | np.ndarray):
            got = f"a traced {value.dtype}" if isinstance(value, jax.core.Tracer) else type(value).__name__
            raise TypeError(f"{op}: {name} must be known when JAX traces (static_argnames), got {got}")
        try:
            hash(value)
        except TypeError:
            raise TypeError(f"{op}: {name} must be a plain value, got {type(value).__name__}") from None
    return tuple(options.values())


def seed_words(op: str, seed: Any) -> Any:
    """A seed as two words of 32 bits, the lower first: without x64, JAX has no wider integers."""
    if isinstance(seed, int | np.integer):
        number = int(seed)
        if not 0 <= number < 2**64:
            raise ValueError(f"{op}: seed must lie in 0..2^64 - 1, got {number}")
        return np.array([number & 0xFFFFFFFF, number >> 32], np.uint32)
    seed = jnp.asarray(seed)
    if seed.ndim or not jnp.issubdtype(seed.dtype, jnp.integer):
        raise TypeError(f"{op}: seed must be an integer, got {seed.dtype} of shape {seed.shape}")
    return jnp.stack([seed.astype(jnp.uint32), jnp.zeros((), jnp.uint32)])


def seed_of(arrays: Arrays) -> int:
    """The seed in the arrays of a call, 0 without one."""
    low, high = arrays.get("seed", (0, 0))
    return int(low) | int(high) << 32


@partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["arguments", "wanted"])
@dataclass
class _Kept:
    """Arguments and saved arrays of a forward call, the names of the arguments, and of those that want gradients."""

    arrays: Values
    arguments: tuple[str, ...]
    wanted: tuple[str, ...]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(operation: Operation, options: Any, arguments: Values) -> Values:
    return _call(operation, operation.forward, options, arguments)


def _forward(operation: Operation, options: Any, arguments: Any) -> tuple[Values, _Kept]:
    values = {name: argument.value for name, argument in arguments.items()}
    wanted = tuple(sorted(name for name, argument in arguments.items() if argument.perturbed))
    saved = _save(operation, options, values)
    kept = _Kept(values | saved, tuple(values), wanted)
    return {name: saved[name] for name in operation.results if name in saved}, kept


def _backward(operation: Operation, options: Any, kept: _Kept, gradients: Values) -> tuple[Values]:
    known = {f"d{name}": value for name, value in gradients.items() if not isinstance(value, SymbolicZero)}
    found = _gradients(operation, options, kept.wanted, kept.arrays | known)
    return ({name: found.get(name) for name in kept.arguments},)


_differentiable.defvjp(_forward, _backward, symbolic_zeros=True)
_compiled = jax.jit(_differentiable, static_argnums=(0, 1))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _gradients(operation: Operation, options: Any, wanted: tuple[str, ...], arrays: Values) -> Values:
    """By the names of the arguments that want them."""
    results = {name: jax.ShapeDtypeStruct(arrays[name].shape, arrays[name].dtype) for name in wanted}
    axis = partial(operation.axis, options)
    # An argument that the sequences of a batch share has a gradient of its own for each index of vmap.
    batch = max((size for name, x in arrays.items() if (size := _size(x, axis(name))) is not None), default=1)
    folds = operation.folds(options) and all(_size(arrays[name], axis(name)) == batch for name in wanted)
    return _callback(operation.backward, (options, wanted), axis, folds, arrays, results)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _save(operation: Operation, options: Any, arguments: Values) -> Values:
    return _call(operation, operation.save, options, arguments)


def _no_second_derivative(operation: Operation, *_: Any) -> Any:
    raise TypeError(f"{operation.name}: has no second derivative")


_save.defjvp(_no_second_derivative)
_gradients.defjvp(_no_second_derivative)


def _call(operation: Operation, function: Function, options: Any, arguments: Values) -> Values:
    axis = partial(operation.axis, options)
    results = _shapes(function, options, axis, arguments)
    return _callback(function, options, axis, operation.folds(options), arguments, results)


# ---- shapes of results, and faults of arguments ----


def _shapes(function: Function, options: Any, axis: Axis, given: Values) -> Values:
    """Shapes and types of the results, from a call for an empty batch. The checks of fastattn are made in it.

    Its error would speak of a batch of 0: a call with the sizes as they are raises the right one, before it computes.
    """
    sizes = {name: _size(value, axis(name)) for name, value in given.items()}
    several = {size for size in sizes.values() if size not in (None, 1)}
    batch = max(several, default=1)
    if len(several) <= 1:
        arrays = {name: _blank(value, axis(name) if sizes[name] == batch else None) for name, value in given.items()}
        try:
            results = function(options)(arrays)
            return {name: _described(value, axis(name), batch) for name, value in results.items()}
        except (ValueError, TypeError):
            pass
    results = function(options)({name: _blank(value, None) for name, value in given.items()})
    return {name: _described(value, None, batch) for name, value in results.items()}


def _size(value: Any, axis: int | None) -> int | None:
    return None if axis is None or value.ndim <= axis else value.shape[axis]


def _blank(value: Any, empty: int | None) -> NDArray[Any]:
    """An array of zeros with the shape and type of a value, in the memory of one number; one axis may be empty."""
    shape = tuple(0 if i == empty else size for i, size in enumerate(value.shape))
    return np.broadcast_to(np.zeros((), value.dtype), shape)


def _described(value: NDArray[Any], axis: int | None, batch: int) -> jax.ShapeDtypeStruct:
    shape = tuple(batch if i == axis else size for i, size in enumerate(value.shape))
    return jax.ShapeDtypeStruct(shape, value.dtype)


# ---- calls from a compiled program ----

TARGET = "fastattn"


class _Array(NamedTuple):
    """What is known of an array without the axes that vmap puts before its own."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axis: int | None  # of the batch


def _callback(function: Function, options: Any, axis: Axis, folds: bool, arrays: Values, results: Values) -> Values:
    given, wanted = (
        tuple((name, _Array(x.shape, np.dtype(x.dtype), axis(name))) for name, x in sorted(values.items()))
        for values in (arrays, results)
    )
    program = _text(_Callback(function, options, folds, given, wanted))
    call = jax.ffi.ffi_call(TARGET, [results[name] for name, _ in wanted], vmap_method="expand_dims")
    found = call(*(arrays[name] for name, _ in given), program=program)
    return dict(zip((name for name, _ in wanted), found, strict=True))


class _Callback(NamedTuple):
    """A function on arrays, some with axes of vmap before their own: of its size, or of 1."""

    function: Function
    options: Any
    folds: bool
    given: tuple[tuple[str, _Array], ...]
    results: tuple[tuple[str, _Array], ...]

    def mapped(self, arrays: Arrays) -> Arrays:
        """The results for arguments of which some have axes of vmap."""
        added = {name: arrays[name].ndim - len(known.shape) for name, known in self.given}
        lead = np.broadcast_shapes(*(arrays[name].shape[:count] for name, count in added.items()))
        shared = [arrays[name].shape[: added[name]] for name, known in self.given if known.axis is None]
        if self.folds and all(size == 1 for sizes in shared for size in sizes):
            return self._folded(arrays, lead)
        return self._one_by_one(arrays, lead)

    def _folded(self, arrays: Arrays, lead: tuple[int, ...]) -> Arrays:
        """One call, for the batches of all indices as one."""
        batch = max((known.shape[known.axis] for _, known in self.given if known.axis is not None), default=1)
        folded = {}
        for name, known in self.given:
            if known.axis is None:
                folded[name] = arrays[name].reshape(known.shape)
                continue
            before, after = known.shape[: known.axis], known.shape[known.axis + 1 :]
            whole = np.broadcast_to(arrays[name], (*lead, *before, batch, *after))
            whole = np.moveaxis(whole, range(len(lead)), range(len(before), len(before) + len(lead)))
            folded[name] = whole.reshape(*before, -1, *after)
        found = self.function(self.options)(folded)
        unfolded = {}
        for name, known in self.results:
            assert known.axis is not None
            before, after = known.shape[: known.axis], known.shape[known.axis + 1 :]
            whole = found[name].reshape(*before, *lead, known.shape[known.axis], *after)
            unfolded[name] = np.moveaxis(whole, range(len(before), len(before) + len(lead)), range(len(lead)))
        return unfolded

    def _one_by_one(self, arrays: Arrays, lead: tuple[int, ...]) -> Arrays:
        results = {name: np.empty((*lead, *known.shape), known.dtype) for name, known in self.results}
        function = self.function(self.options)
        for index in np.ndindex(lead):
            one = {}
            for name, known in self.given:
                sizes = arrays[name].shape[: arrays[name].ndim - len(known.shape)]
                one[name] = arrays[name][tuple(i if size > 1 else 0 for i, size in zip(index, sizes, strict=True))]
            for name, value in function(one).items():
                results[name][index] = value
        return results


# A program of XLA holds its call as text, which another process can read too: JAX may keep programs in files.


def _text(callback: _Callback) -> str:
    return base64.b64encode(pickle.dumps((fa.config.version(), callback))).decode()


def _load(text: bytes) -> tuple[Any, ...]:
    """What the handler needs of a call (xla.pxi)."""
    version, callback = pickle.loads(base64.b64decode(text))
    if version != fa.config.version():
        raise ValueError(f"fastattn: program must be of version {fa.config.version()}, got {version}: compile it again")
    names, arrays = zip(*callback.given, strict=True)
    results = tuple(name for name, _ in callback.results)
    ranks = tuple(len(known.shape) for known in arrays)
    return names, ranks, results, callback.function(callback.options), callback.mapped


# By XLA's numbers (PrimitiveType of xla_data.proto).
_NUMBERS = {
    1: bool, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.uint8, 7: np.uint16, 8: np.uint32, 9: np.uint64,
    10: np.float16, 11: np.float32, 12: np.float64, 16: jnp.bfloat16,
}  # fmt: skip
DTYPES = {number: np.dtype(kind) for number, kind in _NUMBERS.items()}
jax.ffi.register_ffi_target(TARGET, _core.xla_handler(_load, DTYPES), platform="cpu")

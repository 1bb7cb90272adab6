"""What all modules share: named parameters, loading and copying them, and the saved values for backward."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn import _core
from fastattn.functional._checks import check_dtype, check_parts
from fastattn.functional._floats import default_floats
from fastattn.functional._types import Array
from fastattn.nn._errors import name_errors_of


class Saved(NamedTuple):
    """The values that backward of a module needs, from forward of a module of the same kind. Private."""

    kind: str
    parts: tuple[Any, ...]


class Module:
    """Parameters are arrays kept by name; submodules are attributes. Names are joined by dots, as in PyTorch.

    Copies (copy.copy, copy.deepcopy, pickle) have parameters of their own and give the same bits.
    """

    _dtypes: tuple[str, ...] = ("float32", "float64")  # that the parameters may have

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__init__" in vars(cls):  # where values are drawn and tables made
            cls.__init__ = default_floats(cls.__init__)  # type: ignore[method-assign]
        if cls.__module__.startswith(__package__):
            name_errors_of(cls)

    def __init__(self, dtype: DTypeLike = np.float32) -> None:
        self.dtype = check_dtype(type(self).__name__, dtype, self._dtypes)
        self._own: dict[str, Array] = {}

    def parameters(self) -> dict[str, Array]:
        """The parameters by name: the arrays themselves, which may be changed in place at any time. The dict is the
        caller's: what is put into it reaches the module by load_state_dict alone."""
        found = dict(self._own)
        for name, module in self._modules():
            found |= {f"{name}.{key}": value for key, value in module.parameters().items()}
        return found

    @default_floats
    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Copies the values of `mapping` (arrays or torch tensors) into the parameters of the same names.

        All names have to be there and no others, with equal shapes: otherwise KeyError or ValueError, and TypeError
        for arrays of other types than float32, float64, bfloat16 and float16. An error loads nothing. Values
        are converted to the module's dtype; of tensors that require gradients the values are taken.
        """
        op = f"{type(self).__name__}.load_state_dict"
        if not isinstance(mapping, Mapping):
            raise TypeError(f"{op}: mapping must be a mapping of names to arrays, got {type(mapping).__name__}")
        own = self.parameters()
        missing, unknown = sorted(set(own) - set(mapping)), sorted(map(str, set(mapping) - set(own)))
        if missing or unknown:
            parts = [f"{label} {', '.join(names)}" for label, names in (("no", missing), ("unknown", unknown)) if names]
            raise KeyError(f"{op}: mapping must hold the names of parameters(), got {'; '.join(parts)}")
        values = {name: _as_floats(mapping[name], op, name) for name in own}
        for name, value in values.items():
            if value.shape != own[name].shape:
                raise ValueError(f"{op}: {name} must have shape {own[name].shape}, got {value.shape}")
            if not own[name].flags.writeable:
                raise ValueError(f"{op}: {name} must be writable in the module, got a read-only parameter")
        # All are copied first: a value may be the parameter of another name.
        with _core.DefaultFloats():
            copies = {name: np.array(value, own[name].dtype) for name, value in values.items()}
        for name, value in copies.items():
            own[name][...] = value

    def __copy__(self) -> Self:
        return copy.deepcopy(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name, value in self._own.items():
            if value.base is not None and value.flags.writeable:  # the memory is that of the pickle
                self._own[name] = value.copy()

    def _modules(self) -> list[tuple[str, "Module"]]:
        found: list[tuple[str, Module]] = []
        for name, value in vars(self).items():
            if isinstance(value, Module):
                found.append((name, value))
            elif isinstance(value, list):
                found += [(f"{name}.{i}", part) for i, part in enumerate(value) if isinstance(part, Module)]
        return found

    def _uniform(self, name: str, shape: Sequence[int], bound: float, rng: np.random.Generator) -> None:
        """A parameter drawn uniformly from -bound to bound."""
        self._own[name] = self._made(name, shape, lambda: rng.uniform(-bound, bound, tuple(shape)))

    def _normal(self, name: str, shape: Sequence[int], spread: float, rng: np.random.Generator) -> None:
        """A parameter drawn from the normal distribution with this standard deviation."""
        self._own[name] = self._made(name, shape, lambda: spread * rng.standard_normal(tuple(shape)))

    def _constant(self, name: str, shape: Sequence[int], value: float) -> None:
        self._own[name] = self._made(name, shape, lambda: np.full(tuple(shape), value, self.dtype))

    def _made(self, name: str, shape: Sequence[int], make: Callable[[], Array]) -> Array:
        try:
            with _core.DefaultFloats():
                return make().astype(self.dtype, copy=False)
        except (MemoryError, ValueError):  # ValueError: more than NumPy counts
            kind = type(self).__name__
            raise MemoryError(f"{kind}: no memory for the parameter {name}, shape {tuple(shape)}") from None

    def _array(self, value: ArrayLike, method: str, name: str, shape: Sequence[int | str]) -> Array:
        """value as an ndarray of this shape, in which a letter stands for any size."""
        op = type(self).__name__ + method
        array: Array = _core.checked_array(value, op, name)
        if array.ndim != len(shape) or any(
            isinstance(size, int) and size != given for size, given in zip(shape, array.shape, strict=True)
        ):
            raise ValueError(f"{op}: {name} must have shape [{', '.join(map(str, shape))}], got {array.shape}")
        return array

    def _saved(self, *parts: Any) -> Saved:
        return Saved(type(self).__name__, parts)

    def _parts(self, saved: Any, count: int) -> tuple[Any, ...]:
        """What forward of such a module has saved: so many parts."""
        return parts_of(type(self).__name__, saved, count)


def parts_of(kind: str, saved: Any, count: int) -> tuple[Any, ...]:
    """What forward of a module of this kind has saved: so many parts."""
    if not isinstance(saved, Saved):
        raise TypeError(f"{kind}.backward: saved must be what {kind}.forward returned, got {type(saved).__name__}")
    if not isinstance(saved.kind, str) or saved.kind != kind:
        raise ValueError(
            f"{kind}.backward: saved must be what {kind}.forward returned, got that of {_core.shown(saved.kind)}"
        )
    return check_parts(f"{kind}.backward", "saved.parts", saved.parts, count)


def prefixed(**parts: dict[str, Array]) -> dict[str, Array]:
    """Gradients of submodules as those of the module: each name behind that of its submodule and a dot."""
    return {f"{name}.{key}": value for name, grads in parts.items() for key, value in grads.items()}


def _as_floats(value: Any, op: str, name: str) -> Array:
    array: Array = _core.checked_floats(_of_cpu(value, op, name), op, name)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _of_cpu(value: Any, op: str, name: str) -> Any:
    """A tensor of PyTorch as one that NumPy can read: without gradient, in main memory, not bfloat16."""
    try:
        if not hasattr(value, "detach"):
            return value
        value = value.detach().cpu()
        return value.float() if str(value.dtype) == "torch.bfloat16" else value
    except Exception as error:
        raise TypeError(f"{op}: {name} must be an array, got {type(value).__name__} ({error})") from None

"""What all modules share: named parameters, and loading them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastattn.functional._checks import check_dtype
from fastattn.functional._types import Array


class Module:
    """Parameters are arrays kept by name; submodules are attributes. Names are joined by dots, as in PyTorch."""

    _dtypes: tuple[str, ...] = ("float32", "float64")  # that the parameters may have

    def __init__(self, dtype: DTypeLike = np.float32) -> None:
        self.dtype = check_dtype(type(self).__name__, dtype, self._dtypes)
        self._own: dict[str, Array] = {}

    def parameters(self) -> dict[str, Array]:
        """The parameters by name: the arrays themselves, which may be changed in place."""
        found = dict(self._own)
        for name, module in self._modules():
            found |= {f"{name}.{key}": value for key, value in module.parameters().items()}
        return found

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Copies the values of `mapping` (arrays or torch tensors) into the parameters of the same names.

        All names have to be there and no others, with equal shapes: otherwise KeyError or ValueError, and TypeError
        for what holds no floats. Nothing is loaded when anything is wrong. Values are converted to the module's dtype.
        """
        kind = type(self).__name__
        own = self.parameters()
        missing, unknown = sorted(set(own) - set(mapping)), sorted(set(mapping) - set(own))
        if missing or unknown:
            parts = [f"{label} {', '.join(names)}" for label, names in (("no", missing), ("unknown", unknown)) if names]
            raise KeyError(
                f"{kind}.load_state_dict: mapping must hold the names of parameters(), got {'; '.join(parts)}"
            )
        values = {name: _as_floats(mapping[name], f"{kind}.load_state_dict: {name}") for name in own}
        for name, value in values.items():
            if value.shape != own[name].shape:
                raise ValueError(f"{kind}.load_state_dict: {name} must have shape {own[name].shape}, got {value.shape}")
        for name, value in values.items():
            own[name][...] = value.astype(own[name].dtype, copy=False)

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
        self._own[name] = rng.uniform(-bound, bound, tuple(shape)).astype(self.dtype)

    def _constant(self, name: str, shape: Sequence[int], value: float) -> None:
        self._own[name] = np.full(tuple(shape), value, self.dtype)


def prefixed(**parts: dict[str, Array]) -> dict[str, Array]:
    """Gradients of submodules as those of the module: each name behind that of its submodule and a dot."""
    return {f"{name}.{key}": value for name, grads in parts.items() for key, value in grads.items()}


def _as_floats(value: Any, label: str) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    array = np.asarray(value)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{label} must hold floats, got {array.dtype}")
    return array if array.dtype.kind == "f" else array.astype(np.float32)

"""Linear layers on JAX's arrays."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import fastattn as fa
from fastattn.functional.linear import SavedLinear
from fastattn.jax.operation import Arrays, Operation, known


def linear(x: Any, weight: Any, bias: Any = None, *, activation: str | None = None) -> Any:
    """fastattn.linear on JAX's arrays: activation(x weight^T + bias), with gradients of x, weight and bias.

    >>> linear(jnp.ones((2, 3)), jnp.eye(3)[:2]).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    x = jnp.asarray(x)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if x.ndim else x
    y = _LINEAR(known("linear", activation=activation), x=rows, weight=weight, bias=bias)["y"]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _forward(options: tuple[Any, ...]) -> Callable[[Arrays], Arrays]:
    (activation,) = options
    return lambda arrays: {"y": fa.linear(**arrays, activation=activation)}  # type: ignore[arg-type]


def _save(options: tuple[Any, ...]) -> Callable[[Arrays], Arrays]:
    (activation,) = options

    def run(arrays: Arrays) -> Arrays:
        y, saved = fa.linear_forward(**arrays, activation=activation)  # type: ignore[arg-type]
        return {"y": y} if saved.z is None or saved.z is y else {"y": y, "z": saved.z}

    return run


def _backward(given: tuple[tuple[Any, ...], tuple[str, ...]]) -> Callable[[Arrays], Arrays]:
    (activation,), wanted = given

    def run(arrays: Arrays) -> Arrays:
        z = None if activation is None else arrays.get("z", arrays["y"])
        saved = SavedLinear(arrays["x"], arrays["weight"], "bias" in arrays, z, activation)
        gradients = zip(("x", "weight", "bias"), fa.linear_backward(arrays["dy"], saved), strict=True)
        return {name: value for name, value in gradients if name in wanted and value is not None}

    return run


_LINEAR = Operation(
    name="linear",
    forward=_forward,
    save=_save,
    backward=_backward,
    axis=lambda _, name: None if name in ("weight", "bias") else 0,
    results=("y",),
)

"""Checks of arguments that are no arrays. Messages have the form "op: argument must ..., got ..."."""

from collections.abc import Collection
from typing import Any

import numpy as np

from fastattn import _core


def check_choice(op: str, name: str, value: Any, choices: Collection[str | None]) -> Any:
    """One of `choices`; whatever else came may not even be comparable with them."""
    plain = _core.plain_text(value)
    if (plain is None or isinstance(plain, str)) and plain in choices:
        return plain
    raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}, got {_core.shown(value)}")


def check_flag(op: str, name: str, value: Any) -> bool:
    """True or False."""
    flag: bool = _core.checked_flag(value, op, name)
    return flag


def check_saved(op: str, saved: Any, kind: type) -> None:
    """That a backward call has the saved value of its own forward call."""
    if not isinstance(saved, kind):
        forward = op.replace("backward", "forward")
        raise TypeError(f"{op}: saved must be what {forward} returned, got {type(saved).__name__}")


def check_parts(op: str, name: str, value: Any, count: int) -> tuple[Any, ...]:
    """A tuple or list of `count` parts."""
    if not isinstance(value, tuple | list) or len(value) != count:
        got = f"{len(value)} parts" if isinstance(value, tuple | list) else type(value).__name__
        raise ValueError(f"{op}: {name} must have {count} parts, got {got}")
    return tuple(value)


def check_integer(op: str, name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """An integer of any type but bool, at least `least` and at most `most`."""
    number: int = _core.checked_integer(value, op, name)
    if least is not None and number < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {number}")
    if most is not None and number > most:
        raise ValueError(f"{op}: {name} must be at most {most}, got {number}")
    return number


def check_number(op: str, name: str, value: Any) -> float:
    """A number as a float, which may be infinite or NaN."""
    number: float = _core.checked_number(value, op, name)
    return number


def check_dtype(op: str, value: Any, names: Collection[str]) -> np.dtype[Any]:
    """The dtype of one of these names, in native byte order."""
    try:
        value = _core.plain_text(value)
        dtype: Any = np.dtype(value)
    except Exception:  # NumPy looks for attributes, of any object
        dtype = None
    if dtype is None or dtype.name not in names or not dtype.isnative:
        needs = isinstance(value, str) and value == "bfloat16" and "bfloat16" in names
        hint = ": install and import ml_dtypes, which defines it" if needs else ""
        raise TypeError(f"{op}: dtype must be one of {', '.join(names)}, got {_core.shown(value)}{hint}") from None
    checked: np.dtype[Any] = dtype
    return checked

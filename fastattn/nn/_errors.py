"""Errors of modules name the module and method that were called, though other modules and functions compute."""

import inspect
import re
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])
_BEGIN = re.compile(r"([A-Za-z_][\w.]*): ((\w*).*)", re.DOTALL)  # of our messages: "op: argument must ..."
_CALLED_BY_MODULE = ("__init__", "__call__", "forward")


def names_itself(method: _F) -> _F:
    """A method whose errors name it already, and which is called too often to be wrapped."""
    method._names_itself = True  # type: ignore[attr-defined]
    return method


def name_errors_of(cls: type) -> None:
    """Wraps what is public of a class of modules."""
    for name, method in list(vars(cls).items()):
        is_public = name in _CALLED_BY_MODULE or not name.startswith("_")
        if is_public and isinstance(method, FunctionType) and not hasattr(method, "_names_itself"):
            setattr(cls, name, _naming(method, "" if name in _CALLED_BY_MODULE else f".{name}"))


class renaming:
    """Inside, what messages call an argument of another module becomes the name it has here."""

    def __init__(self, **names: str) -> None:
        self._names = names

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, trace: Any) -> None:
        found = _BEGIN.match(str(error)) if isinstance(error, TypeError | ValueError) else None
        if error is not None and found is not None and found[3] in self._names:
            text = f"{found[1]}: {self._names[found[3]]}{found[2].removeprefix(found[3])}"
            raise type(error)(text).with_traceback(trace) from None


def _naming(method: Callable[..., Any], suffix: str) -> Callable[..., Any]:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    names = [parameter.name for parameter in parameters]
    needed = [parameter.name for parameter in parameters if parameter.default is parameter.empty] or names[:2]

    @wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return method(self, *arguments, **options)
        except (TypeError, ValueError, MemoryError) as error:
            module = type(self).__name__
            if module.startswith("_"):  # part of another one
                raise
            text = _of_method(str(error), isinstance(error, MemoryError), module, suffix, names, needed)
            if text is None:
                raise
            kind = next(kind for kind in (TypeError, ValueError, MemoryError) if isinstance(error, kind))
            raise kind(text).with_traceback(error.__traceback__) from None

    return call


def _of_method(text: str, of_memory: bool, module: str, suffix: str, names: list[str], needed: list[str]) -> str | None:
    """The message for who called this method; None where it is that already, or none of ours."""
    found = _BEGIN.match(text)
    if found is None:
        return f"{module}{suffix}: no memory for what is in between ({text})" if of_memory else None
    owner, rest, word = found.groups()
    if owner == f"{module}{suffix}":
        return None
    if of_memory or word in names:
        return f"{module}{suffix}: {rest}"
    return f"{module}{suffix}: {' and '.join(needed)} must suit the module, got {text}"

"""NumPy's arithmetic beside the ops, under the floating-point state that ops compute under."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from fastattn import _core

_P = ParamSpec("_P")
_R = TypeVar("_R")


def default_floats(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function under the default floating-point state: its bits do not depend on the caller's, to whom none of its
    exceptions is reported."""

    @wraps(function)
    def call(*arguments: _P.args, **options: _P.kwargs) -> _R:
        with _core.DefaultFloats():
            return function(*arguments, **options)

    return call

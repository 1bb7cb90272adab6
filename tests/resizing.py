"""Arguments whose methods give the other arguments of the same call other memory: `python -m tests.resizing [names]`.

Each call of tests/malformed_recipes.py is repeated with one part of its arguments replaced: when fastattn looks at it
for the n-th time, it resizes all other arrays of the call, parameters of modules included, in place (`ndarray.resize`
with refcheck=False moves the memory), and then is what it stands for. A call may compute or raise. Where C still had
the old address the process ends, if memory that is given back is unmapped: ENVIRONMENT sees to that with glibc.
"""

import contextlib
import copy
import dataclasses
import faulthandler
import sys

import numpy as np

from fastattn import nn
from tests.malformed_recipes import RECIPES

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "1", "MALLOC_MMAP_MAX_": "1000000000"}
LOOKS = (1, 2, 3)  # the attack comes with the n-th of them
ELEMENTS = 1 << 13  # of a resized array


def arrays_in(value):
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, nn.Module):
        return list(value.parameters().values())
    return [array for _, part in parts_of(value) for array in arrays_in(part)]


def parts_of(value):
    """(key, part) of what holds others."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]
    return []


def replaced(value, path, leaf):
    """value with another thing at this path."""
    if not path:
        return leaf
    key, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {**value, key: replaced(value[key], rest, leaf)}
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **{key: replaced(getattr(value, key), rest, leaf)})
    parts = [replaced(part, rest, leaf) if i == key else part for i, part in enumerate(value)]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def paths(value, before=()):
    """Where the leaves and the sequences are."""
    if before and not isinstance(value, dict):
        yield before, value
    for key, part in parts_of(value):
        yield from paths(part, (*before, key))


class Attack:
    def __init__(self, look):
        self.left, self.targets = look, []

    def __call__(self):
        self.left -= 1
        if self.left == 0:
            for array in self.targets:
                with contextlib.suppress(ValueError):  # a view, or one that somebody refers to
                    array.resize(ELEMENTS, refcheck=False)


def stand_in(value, attack):
    """What stands for a value, and attacks when it is looked at."""

    class StandIn:
        def __array__(self, dtype=None, copy=None):
            attack()
            return np.array(value)

        def __index__(self):
            attack()
            return int(value)

        def __float__(self):
            attack()
            return float(value)

        def __iter__(self):
            attack()
            return iter(value)

        @property
        def __class__(self):
            attack()
            return type(value)

    class Items(list):
        __iter__ = StandIn.__iter__

        def __len__(self):
            attack()
            return len(value)

    yield StandIn()
    if isinstance(value, (tuple, list)):
        yield Items(value)


def calls(name):
    """(description, function, arguments) of all attacked calls of what is public under this name."""
    for index, make in enumerate(RECIPES[name]):
        for path, _ in list(paths(make()[1])):
            for look in LOOKS:
                for kind in range(2):
                    function, arguments = copy.deepcopy(make())
                    attack = Attack(look)
                    value = arguments
                    for key in path:
                        value = getattr(value, key) if dataclasses.is_dataclass(value) else value[key]
                    leaves = list(stand_in(value, attack))
                    if kind >= len(leaves):
                        continue
                    try:
                        arguments = replaced(arguments, path, leaves[kind])
                    except (TypeError, ValueError):  # a dataclass that does not hold such a thing
                        continue
                    attack.targets = arrays_in(arguments) + arrays_in(getattr(function, "__self__", None))
                    yield f"{name} {index} {path} look {look} kind {kind}", function, arguments


def main():
    faulthandler.enable()
    names = [name for name in sorted(RECIPES) if name.startswith(tuple(sys.argv[1:]) or "")]
    count = 0
    for name in names:
        for description, function, arguments in calls(name):
            print(description, file=sys.stderr)
            with contextlib.suppress(Exception):
                function(**arguments)
            count += 1
    print("whole", count)


if __name__ == "__main__":
    main()

"""The fuzz of malformed calls (tests/malformed.py): what it covers, what it finds, and a slice of it."""

import ctypes
import warnings
from functools import partial

import numpy as np
import pytest

from tests import malformed
from tests.malformed_recipes import RECIPES, discovered

MADE_BY_FUNCTIONS = {"PackedLinear", "RecurrentWeights"}  # their constructors refuse


def test_everything_public_is_called():
    missing = sorted(set(discovered()) - set(RECIPES))
    assert not missing, f"tests/malformed_recipes.py has no valid call of {', '.join(missing)}"


@pytest.mark.parametrize("name", sorted(set(RECIPES) - MADE_BY_FUNCTIONS))
def test_valid_calls_compute(name):
    for make in RECIPES[name]:
        function, arguments = make()
        function(**arguments)


def crashing(x):
    ctypes.string_at(8)


def hanging(x):
    while True:
        pass


def warning(x):
    warnings.warn("a division", RuntimeWarning, stacklevel=1)


def raising(error):
    def planted(x):
        raise error

    return planted


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("signal", crashing),
        ("hang", hanging),
        ("warning", warning),
        ("type", raising(RuntimeError("planted: x must not be"))),
        ("unnamed", raising(ValueError("x must not be"))),
        ("unnamed", raising(ValueError("planted: it must not be"))),
        ("unnamed", raising(ValueError("softmax: x must not be"))),
        ("unnamed", raising(MemoryError("Unable to allocate"))),
        ("accepted", lambda x: None),
    ],
)
def test_a_planted_fault_is_found(monkeypatch, kind, function):
    monkeypatch.setitem(RECIPES, "planted", [lambda: (function, {"x": np.ones(3)})])
    monkeypatch.setattr(malformed, "SECONDS", 0.3)
    count = 400 if kind == "accepted" else 2
    found = malformed.sweep(0, count, target=partial(malformed.checked, names=["planted"]))
    assert {kind} == {found_kind for _, found_kind, _ in found}
    assert kind == "accepted" or [case for case, _, _ in found] == [0, 1]


def test_a_changed_answer_is_found(monkeypatch):
    answer = [1.0]

    def changing(x):
        answer[0] += 1.0
        return np.array(answer)

    monkeypatch.setattr(malformed, "NAMES", ["planted"])
    monkeypatch.setitem(RECIPES, "planted", [lambda: (changing, {"x": np.ones(3)})])
    malformed.valid("planted", 0)
    assert malformed.checked(0, ["planted"])[0] == "corrupted"


def test_errors_that_name_function_and_argument_are_right(monkeypatch):
    for error in (
        ValueError("planted: x must be 1, got 2"),
        MemoryError("planted: cannot hold"),
        TypeError("planted: x"),
    ):
        monkeypatch.setitem(RECIPES, "planted", [lambda error=error: (raising(error), {"x": np.ones(3)})])
        assert malformed.sweep(0, 2, target=partial(malformed.checked, names=["planted"])) == []


SLICES = 4
CALLS = 1500  # of each slice; scripts/fuzz_malformed.py makes a million


@pytest.mark.parametrize("part", range(SLICES))
def test_malformed_calls_compute_or_name_function_and_argument(part):
    found = malformed.sweep(part * CALLS, CALLS)
    assert not found, "\n".join(
        f"{kind}: {malformed.describe(case)}: {message}\n  python scripts/fuzz_malformed.py --case {case}"
        for case, kind, message in found
    )


def test_a_case_is_the_same_each_time():
    for case in range(200):
        assert malformed.describe(case) == malformed.describe(case)

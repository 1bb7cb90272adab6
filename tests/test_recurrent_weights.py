"""Weights of recurrent networks whose layers and directions do not fit together."""

import numpy as np
import pytest

import fastattn as fa
from tests.saved import floats, stack

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
OPTIONAL = {"rnn": ("bias_ih", "bias_hh"), "gru": ("bias_ih", "bias_hh"),
            "lstm": ("bias_ih", "bias_hh", "weight_hr", "weight_peephole")}  # fmt: skip
PLACES = ("l0", "l1", "l0_reverse", "l1_reverse")


def lstm_like(op, dtype=np.float32):
    options = {"proj": 2, "peephole": True} if op == "lstm" else {}
    return stack(GATES[op], 2, 2, 4, 3, dtype, **options)


def calls(op, weights):
    x = floats(5, 2, 3)
    yield lambda: getattr(fa, op)(x, None, weights)
    yield lambda: getattr(fa, f"{op}_forward")(x, None, weights)
    yield lambda: getattr(fa, f"pack_{op}")(weights)
    yield lambda: getattr(fa, f"pack_{op}")(weights, dtype="int8")


CASES = [(op, kind, place) for op in GATES for kind in OPTIONAL[op] for place in PLACES]


def check_named(op, weights, name):
    for call in calls(op, weights):
        with pytest.raises(
            ValueError, match=rf"{op}.*: weights must hold an array as \w+ beside \w+, got None"
        ) as error:
            call()
        assert name in str(error.value)


@pytest.mark.parametrize(("op", "kind", "place"), CASES)
def test_an_entry_that_one_layer_or_direction_lacks_is_named(op, kind, place):
    name = f"{kind}_{place}"
    check_named(op, lstm_like(op) | {name: None}, name)


@pytest.mark.parametrize(("op", "kind", "place"), CASES)
def test_an_entry_that_only_one_layer_or_direction_has_is_named(op, kind, place):
    name = f"{kind}_{place}"
    others = {key: None for key in lstm_like(op) if key.startswith(kind) and key != name}
    check_named(op, lstm_like(op) | others, name)


@pytest.mark.parametrize("op", GATES)
def test_entries_that_are_none_everywhere_are_none(op):
    weights = lstm_like(op)
    for kind in OPTIONAL[op]:
        if kind == "weight_hr":
            continue
        without = {name: value for name, value in weights.items() if not name.startswith(kind)}
        if kind.startswith("bias"):
            without = {name: value for name, value in weights.items() if not name.startswith("bias")}
        nothing = {name: None if name not in without else value for name, value in weights.items()}
        x = floats(5, 2, 3)
        assert getattr(fa, op)(x, None, nothing)[0].tobytes() == getattr(fa, op)(x, None, without)[0].tobytes()


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("change", [-1, 1])
def test_an_entry_of_another_shape_is_named(op, axis, change):
    weights = lstm_like(op)
    for name, array in weights.items():
        if axis >= array.ndim:
            continue
        shape = list(array.shape)
        shape[axis] += change
        for call in calls(op, weights | {name: np.zeros(shape, array.dtype)}):
            with pytest.raises(ValueError, match=rf"^(pack_)?{op}(_forward)?: (weight|bias|x)\w* must have"):
                call()


@pytest.mark.parametrize("op", GATES)
def test_a_missing_layer_of_a_huge_number_is_named_at_once(op):
    weights = stack(GATES[op], 1, 1, 4, 3, np.float32)
    far = weights | {"weight_ih_l999999999": weights["weight_ih_l0"]}
    for call in calls(op, far):
        with pytest.raises(ValueError, match=rf"{op}.*: weights must hold '\w+_l\d+' beside"):
            call()
    for call in calls(op, weights | {"weight_ih_l" + "9" * 5000: weights["weight_ih_l0"]}):
        with pytest.raises(ValueError, match=rf"{op}.*: weights must hold names such as weight_ih_l0"):
            call()

"""Packed weights of RNN, GRU and LSTM follow the parameters, however those change, and whoever holds them."""

import threading

import numpy as np
import pytest

import fastattn as fa
from fastattn import nn
from tests.arrays import same_bits

MODULES = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
modules = pytest.mark.parametrize("cell", MODULES)
kinds = pytest.mark.parametrize("kind", [None, "bfloat16", "int8"])
STEP = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def stepped(m):
    """The result of a step, of a call, and what both must be: those of a module that never packed before."""
    fresh = type(m)(3, 4, 2)
    fresh.load_state_dict({name: value.copy() for name, value in nn.Module.parameters(m).items()})
    if m._pack_type is not None:
        fresh.pack(m._pack_type)
    return m.step(STEP)[0], m(STEP[None])[0][0], fresh.step(STEP)[0]


def assert_up_to_date(m):
    step, call, wanted = stepped(m)
    assert same_bits(step, wanted)
    assert same_bits(call, wanted)


class Parent(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.part = m


def through_a_held_array(m, held):
    held["weight_ih_l0"] *= 2


def through_a_view_of_a_held_array(m, held):
    held["weight_ih_l1"].reshape(-1)[3:5] = 7


def through_a_new_look(m, held):
    m.parameters()["weight_ih_l0"][...] += 0.5


def by_the_sign_of_a_zero(m, held):
    held["weight_ih_l0"][0] = 0.0
    m.step(STEP)
    held["weight_ih_l0"][0] = -0.0


def by_loading(m, held):
    m.load_state_dict(type(m)(3, 4, 2, rng=5).parameters())


def by_loading_a_parent(m, held):
    parent = Parent(m)
    parent.load_state_dict({f"part.{name}": value for name, value in type(m)(3, 4, 2, rng=5).parameters().items()})


CHANGES = [through_a_held_array, through_a_view_of_a_held_array, through_a_new_look, by_the_sign_of_a_zero, by_loading,
           by_loading_a_parent]  # fmt: skip


@modules
@kinds
@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_parameter_counts_in_the_next_step_and_call(cell, kind, holds, change):
    m = MODULES[cell](3, 4, 2, rng=1)
    held = m.parameters()
    if kind is not None:
        m.pack(kind)
    m.step(STEP)
    if not holds:
        del held
        held = m.parameters()
    before = m.step(STEP)[0]
    change(m, held)
    assert not same_bits(m.step(STEP)[0], before) or change is by_the_sign_of_a_zero
    assert_up_to_date(m)
    change(m, held)
    del held
    assert_up_to_date(m)


def test_a_view_that_outlives_its_array_still_counts():
    m = nn.GRU(3, 4, 2, rng=1)
    view = m.parameters()["weight_ih_l0"][1:]
    for value in (1, 2, 3):
        view[...] = value
        assert_up_to_date(m)


def test_a_training_loop_with_steps_between_sees_each_update():
    m = nn.LSTM(3, 4, rng=1)
    parameters, x = m.parameters(), np.ones((5, 2, 3), np.float32)
    for _ in range(3):
        (y, _), saved = m.forward(x)
        state = None
        for t, row in enumerate(x):
            got, state = m.step(row, state, out=state)
            assert same_bits(got, y[t])
        _, _, grads = m.backward(y, saved)
        for name, parameter in parameters.items():
            parameter[...] -= grads[name]


def test_steps_compare_nothing_once_nobody_holds_the_parameters(monkeypatch):
    m = nn.LSTM(3, 4, rng=1)
    held = m.parameters()
    m.step(STEP)
    assert m._current is None
    del held
    m.step(STEP)
    assert m._current is not None
    monkeypatch.setattr(m, "_up_to_date", lambda: pytest.fail("compares"))
    m.step(STEP)
    m(STEP[None])


def test_unpacking_goes_back_to_the_parameters():
    m = nn.GRU(3, 4, 2, rng=1)
    own = m(STEP[None])[0]
    m.pack("int8")
    assert not same_bits(m(STEP[None])[0], own)
    m.unpack()
    assert same_bits(m(STEP[None])[0], own)
    assert same_bits(m.step(STEP)[0], own[0])


def test_weights_are_packed_again_for_another_instruction_set():
    m = nn.LSTM(20, 40, rng=1)
    x = np.random.default_rng(0).standard_normal((7, 20), np.float32)
    for isa in (*fa.config.available_isas(), fa.config.available_isas()[0]):
        with fa.config.use_isa(isa):
            (wanted, _), _ = m.forward(x[None])
            assert same_bits(m.step(x)[0], wanted[0])
            assert same_bits(m(x[None])[0], wanted)


@pytest.mark.parametrize(
    ("m", "change"),
    [
        (nn.RNN(3, 4, rng=1), lambda m: setattr(m, "nonlinearity", "relu")),
        (nn.GRU(3, 4, rng=1), lambda m: setattr(m, "linear_before_reset", False)),
        (nn.LSTM(3, 4, rng=1), lambda m: setattr(m, "clip", 0.01)),
    ],
)
def test_an_option_that_is_changed_counts_in_steps_as_in_calls(m, change):
    before = m.step(STEP)[0]
    change(m)
    assert not same_bits(m.step(STEP)[0], before)
    assert same_bits(m.step(STEP)[0], m(STEP[None])[0][0])
    assert same_bits(m.step(STEP)[0], m.forward(STEP[None])[0][0][0])


@pytest.mark.parametrize(
    ("m", "name", "value", "error"),
    [
        (nn.RNN(3, 4), "nonlinearity", "gelu", ValueError),
        (nn.GRU(3, 4), "linear_before_reset", 1, TypeError),
        (nn.LSTM(3, 4), "clip", -1, ValueError),
    ],
)
def test_a_wrong_option_is_refused_when_it_is_set(m, name, value, error):
    with pytest.raises(error, match=f"{type(m).__name__}: {name} must"):
        setattr(m, name, value)


def test_threads_that_step_while_another_asks_for_the_parameters_are_right():
    m = nn.LSTM(3, 4, rng=1)
    wanted, wrong, stop = m(STEP[None])[0][0], [], threading.Event()

    def steps():
        while not stop.is_set():
            if not same_bits(m.step(STEP)[0], wanted) or not same_bits(m(STEP[None])[0][0], wanted):
                wrong.append(1)

    threads = [threading.Thread(target=steps) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        m.parameters()["weight_ih_l0"][...] += 0
        m.unpack()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    m.parameters()["weight_ih_l0"][...] += 1
    assert same_bits(m.step(STEP)[0], m.forward(STEP[None])[0][0][0])

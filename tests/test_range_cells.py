"""Recurrent cells and additive attention at the ends of their range."""

import numpy as np
import pytest

import fastattn as fa
from tests.ordered import matmul
from tests.specification import plain

UNITS = 5


def cell(rng, dtype, gates, bias):
    """x, and weights of 0 but for the bias, so that gates are what it says."""
    x = rng.standard_normal((3, 2)).astype(dtype)
    w_ih, w_hh = np.zeros((gates * UNITS, 2), dtype), np.zeros((gates * UNITS, UNITS), dtype)
    return x, w_ih, w_hh, np.repeat(np.asarray(bias, dtype), UNITS), np.zeros(gates * UNITS, dtype)


SUMS = [-np.inf, -1e30, -1000.0, -300.0, -100.0, -80.0, -60.0, 0.0, 60.0, 80.0, 1000.0, 1e30, np.inf]
SIZES = [1.0, 1e10, 1e20, 1e30, 3e38]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("size", SIZES)
def test_closed_gates_forget_a_state_of_any_size(rng, dtype, size):
    """f c of an LSTM, z h and r h of a GRU, with gates anywhere."""
    state = (rng.choice([-1, 1], (3, UNITS)) * size).astype(dtype)
    zero = np.zeros_like(state)
    eps = np.finfo(dtype).eps
    for a in SUMS:
        with np.errstate(all="ignore"):
            x, w_ih, w_hh, b_ih, b_hh = cell(rng, dtype, 4, (0.5, a, 0.25, 0))
            right = plain.lstm_cell(x, zero, state, w_ih, w_hh, b_ih, b_hh)
            got = fa.lstm_cell(x, zero, state, w_ih, w_hh, b_ih, b_hh)
            for one, other in zip(got, right, strict=True):
                assert np.allclose(one, other, rtol=16 * eps, atol=16 * eps), a
            for bias in ((0.5, a, 0.25), (a, 0.5, 0.25)):
                x, w_ih, w_hh, b_ih, b_hh = cell(rng, dtype, 3, bias)
                right = plain.gru_cell(x, state, w_ih, w_hh, b_ih, b_hh)
                assert np.allclose(
                    fa.gru_cell(x, state, w_ih, w_hh, b_ih, b_hh), right, rtol=16 * eps, atol=16 * eps
                ), bias


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("size", SIZES[:4])
def test_gradients_of_closed_gates_are_those_of_the_plain_formula(rng, dtype, size):
    state = (rng.choice([-1, 1], (3, UNITS)) * size).astype(dtype)
    zero, ones = np.zeros_like(state), np.ones_like(state)
    accuracy = 64 * np.finfo(dtype).eps
    for a in (-1000.0, -100.0, -60.0, 60.0, 1000.0):
        x, w_ih, w_hh, b_ih, b_hh = cell(rng, dtype, 4, (0.5, a, 0.25, 0))
        with np.errstate(all="ignore"):
            _, right, _ = plain.lstm_cell_backward((ones, ones), x, zero, state, w_ih, w_hh, b_ih, b_hh)
        _, saved = fa.lstm_cell_forward(x, zero, state, w_ih, w_hh, b_ih, b_hh)
        _, got, _ = fa.lstm_cell_backward((ones, ones), saved)
        for one, other in zip(got, right, strict=True):
            assert np.allclose(one, other, rtol=accuracy, atol=accuracy), a


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("columns", [1, 9, 70])
def test_scores_of_additive_attention_overflow_as_the_plain_formula_has_it(rng, dtype, columns):
    largest = float(np.finfo(dtype).max)
    keys, values = rng.standard_normal((1, 6, columns)).astype(dtype), rng.standard_normal((1, 6, 4)).astype(dtype)
    q = rng.standard_normal((1, 3, columns)).astype(dtype)
    keys[0, 2] = -9  # tanh is -1
    for share in (-0.3, 0.3, 0.9 / columns, 1e-37):
        v = np.full(columns, largest * share, dtype)
        with np.errstate(all="ignore"):
            scores = matmul(np.tanh(q[:, :, None] + keys[:, None]), v[:, None])[..., 0]
            right = matmul(plain.softmax(scores), values)
        known = np.isfinite(right).all(-1)
        got = fa.additive_attention(q, keys, values, v)
        assert np.isfinite(got[known]).all()
        if share == -0.3 and columns > 3:
            assert np.isnan(got).all()  # key 2 has the score +inf

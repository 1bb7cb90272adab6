"""rnn, gru and lstm from the end to the start."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits
from tests.low_precision import LOW
from tests.low_precision import same as same_low
from tests.test_recurrent import draw, forms, run, weight_form

GRADIENTS = {"rnn": (fa.rnn_forward, fa.rnn_backward), "gru": (fa.gru_forward, fa.gru_backward),
             "lstm": (fa.lstm_forward, fa.lstm_backward)}  # fmt: skip
PACK = {"rnn": fa.pack_rnn, "gru": fa.pack_gru, "lstm": fa.pack_lstm}


def call_options(options):
    return {name: value for name, value in options.items() if name not in ("peephole", "proj")}


def packed(cell, weights, options, **more):
    form = {name: options[name] for name in ("linear_before_reset", "coupled") if name in options}
    return PACK[cell](weights, **form, **more)


def flipped(x, lengths=None):
    """Each sequence of x[T, B, ...] from its end to its start."""
    lengths = np.full(x.shape[1], len(x)) if lengths is None else lengths
    y = x.copy()
    for b, n in enumerate(lengths):
        y[:n, b] = x[:n, b][::-1]
    return y


# ---- reverse ----


@forms
@pytest.mark.parametrize("lengths", [None, [5, 0, 3, 1]], ids=["whole", "ragged"])
@pytest.mark.usefixtures("isa", "threads")
def test_reverse_is_the_call_on_sequences_from_their_end(cell, options, lengths, rng):
    for layers in (1, 3):
        x, state, weights = draw(rng, cell, 5, 4, 7, 18, np.float32, layers, **weight_form(options))
        y, *last = run(cell, x, state, weights, lengths=lengths, reverse=True, **options)
        wanted, *last_wanted = run(cell, flipped(x, lengths), state, weights, lengths=lengths, **options)
        assert same_bits(y, flipped(wanted, lengths))
        assert all(map(same_bits, last, last_wanted))
        handle = packed(cell, weights, options)
        assert same_bits(run(cell, x, state, handle, lengths=lengths, reverse=True, **options)[0], y)


@forms
@pytest.mark.usefixtures("isa")
def test_reverse_is_the_second_direction_alone(cell, options, dtype, rng):
    x, state, weights = draw(rng, cell, 6, 3, 5, 17, dtype, directions=2, **weight_form(options))
    both, *last = run(cell, x, state, weights, **options)
    own = {name.removesuffix("_reverse"): w for name, w in weights.items() if name.endswith("_reverse")}
    y, *alone = run(cell, x, tuple(part[1:] for part in state), own, reverse=True, **options)
    assert same_bits(y, both[..., both.shape[-1] // 2 :].copy())
    assert all(same_bits(a, b[1:]) for a, b in zip(alone, last, strict=True))


@forms
@pytest.mark.parametrize("lengths", [None, [5, 0, 3, 1]], ids=["whole", "ragged"])
@pytest.mark.parametrize("kind", ["f32", "f64", *LOW])
def test_gradients_of_reverse_are_those_of_sequences_from_their_end(cell, options, lengths, kind, rng):
    forward, backward = GRADIENTS[cell]
    dtype = LOW.get(kind, {"f32": np.float32, "f64": np.float64}.get(kind))
    x, state, weights = draw(rng, cell, 5, 4, 7, 18, np.float64, 2, **weight_form(options))
    x, weights = x.astype(dtype), {name: w.astype(dtype) for name, w in weights.items()}
    state = tuple(part.astype(dtype) for part in state)
    state = state if cell == "lstm" else state[0]
    same = same_low if kind in LOW else same_bits
    options = call_options(options)
    (y, _), saved = forward(x, state, weights, lengths=lengths, reverse=True, **options)
    (y_flipped, _), saved_flipped = forward(flipped(x, lengths), state, weights, lengths=lengths, **options)
    assert same(y, flipped(y_flipped, lengths))
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx, dstate, dweights = backward(dy, saved)
    dx_wanted, dstate_wanted, dweights_wanted = backward(flipped(dy, lengths), saved_flipped)
    assert same(dx, flipped(dx_wanted, lengths))
    pairs = zip(dstate, dstate_wanted, strict=True) if cell == "lstm" else [(dstate, dstate_wanted)]
    assert all(same(a, b) for a, b in pairs)
    assert all(same(dweights[name], dweights_wanted[name]) for name in weights)


def test_reverse_takes_batches_first_and_dropout(rng):
    x, state, weights = draw(rng, "gru", 6, 3, 5, 9, np.float32, 2)
    y, h = fa.gru(x, state[0], weights, reverse=True)
    other, h_other = fa.gru(x.swapaxes(0, 1), state[0], weights, reverse=True, batch_first=True)
    assert same_bits(other.swapaxes(0, 1).copy(), y)
    assert same_bits(h_other, h)
    (y, _), saved = fa.gru_forward(x, state[0], weights, reverse=True, dropout=0.5, seed=1)
    step, dy = 1e-3, rng.standard_normal(y.shape).astype(np.float32)
    dx = fa.gru_backward(dy, saved)[0]
    moved = x + step * dx / np.abs(dx).max()
    (y_moved, _), _ = fa.gru_forward(moved, state[0], weights, reverse=True, dropout=0.5, seed=1)
    assert abs(((y_moved - y) * dy).sum() / (dx * (moved - x)).sum() - 1) < 0.05


def test_wrong_use_of_reverse_is_named(rng):
    x, state, weights = draw(rng, "rnn", 2, 1, 3, 4, np.float32, directions=2)
    with pytest.raises(ValueError, match="rnn: reverse must be False with weights of two directions"):
        fa.rnn(x, state[0], weights, reverse=True)
    with pytest.raises(TypeError, match="lstm: reverse must be True or False, got 1"):
        fa.lstm(x, None, weights, reverse=1)
    with pytest.raises(ValueError, match="gru_forward: reverse must be False with weights of two directions"):
        fa.gru_forward(x, None, draw(rng, "gru", 2, 1, 3, 4, np.float32, directions=2)[2], reverse=True)

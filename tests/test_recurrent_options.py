"""rnn, gru and lstm from the end to the start, and with clipped gates."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import same_bits
from tests.errors import ErrorRule
from tests.low_precision import LOW, LowPrecisionRule
from tests.low_precision import same as same_low
from tests.specification import exact, plain
from tests.test_recurrent import FORMS, SIZES, draw, forms, run, spec, weight_form
from tests.test_recurrent_low_precision import RoundedCells, double, draw_low, single

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


# ---- gate_clip ----

CLIPPED = [(cell, {**options, "gate_clip": 0.75}) for cell, options in FORMS]
clipped_forms = pytest.mark.parametrize(
    ("cell", "options"), CLIPPED, ids=[f"{cell}-{'-'.join(map(str, options.values()))}" for cell, options in CLIPPED]
)


@clipped_forms
def test_clipped_gates_lie_within_the_error_rule(cell, options, isa, dtype, rng):
    """Of the largest errors: gates at the clip have all one error, and are no sample for a median."""
    rule = ErrorRule()
    for sizes in 4 * SIZES:
        x, state, weights = draw(rng, cell, *sizes, dtype, **weight_form(options))
        form = options | {"gate_clip": rng.uniform(0.25, 2)}
        wanted = spec(exact(dtype), cell, x, state, weights, **form)
        yardstick = spec(plain, cell, x, state, weights, **form)
        for part in zip(run(cell, x, state, weights, **form), yardstick, wanted, strict=True):
            rule.add(*part)
    rule.check(median=False)


@clipped_forms
@pytest.mark.parametrize("low", LOW.values(), ids=LOW)
def test_clipped_gates_of_16_bits_lie_within_the_error_rule(cell, options, low, isa, rng):
    rule = LowPrecisionRule()
    for sizes in SIZES:
        x, state, weights = draw_low(rng, cell, *sizes, low, **weight_form(options))
        wanted = spec(reference, cell, double(x), double(state), double(weights), **options)
        yardstick = spec(RoundedCells(low), cell, single(x), single(state), single(weights), **options)
        for got, simple, true in zip(run(cell, x, state, weights, **options), yardstick, wanted, strict=True):
            rule.add(got, simple.astype(low), true)
    rule.check()


@clipped_forms
def test_clipped_gates_of_a_sequence_do_not_depend_on_threads_batch_or_packing(cell, options, isa, rng):
    x, state, weights = draw(rng, cell, 9, 50, 7, 40, np.float32, 2, 2, **weight_form(options))
    lengths = rng.integers(0, 10, 50)
    with fa.num_threads(1):
        expected = run(cell, x, state, weights, lengths=lengths, **options)
    for threads in (2, 5):
        with fa.num_threads(threads):
            assert all(map(same_bits, run(cell, x, state, weights, lengths=lengths, **options), expected))
    handle = packed(cell, weights, options)
    assert all(map(same_bits, run(cell, x, state, handle, lengths=lengths, **options), expected))
    for b in (0, 17, 49):
        one, n = slice(b, b + 1), lengths[b]
        y, *last = run(cell, x[:n, one], tuple(part[:, one].copy() for part in state), weights, **options)
        assert same_bits(y, expected[0][:n, one].copy())
        assert all(same_bits(a, whole[:, one].copy()) for a, whole in zip(last, expected[1:], strict=True))


@forms
@pytest.mark.usefixtures("isa")
def test_a_wide_clip_changes_no_bit(cell, options, dtype, rng):
    x, state, weights = draw(rng, cell, 4, 3, 5, 17, dtype, **weight_form(options))
    expected = run(cell, x, state, weights, **options)
    for bound in (1e6, np.inf):
        assert all(map(same_bits, run(cell, x, state, weights, gate_clip=bound, **options), expected))


@clipped_forms
@pytest.mark.usefixtures("isa")
def test_nan_passes_clipped_gates(cell, options, dtype, rng):
    x, state, weights = draw(rng, cell, 3, 2, 4, 19, dtype, **weight_form(options))
    expected = run(cell, x, state, weights, **options)[0]
    x[1, 0, 2] = np.nan
    y = run(cell, x, state, weights, **options)[0]
    assert np.isnan(y[1:, 0]).all()
    assert same_bits(y[:, 1].copy(), expected[:, 1].copy())
    assert same_bits(y[0], expected[0])


@pytest.mark.usefixtures("isa")
def test_the_clip_of_gates_is_reached_and_kept(dtype, rng):
    x, state, weights = draw(rng, "rnn", 3, 2, 4, 19, dtype)
    y, _ = fa.rnn(100 * x, state[0], weights, gate_clip=0.25)
    bound = fa.tanh(np.array([0.25], dtype))
    assert (np.abs(y) <= bound).all()
    assert np.isin(np.abs(y), bound).mean() > 0.9
    y, _ = fa.rnn(100 * x, state[0], weights, nonlinearity="relu", gate_clip=0.25)
    assert set(np.unique(y)) >= {0, 0.25}
    assert (y <= 0.25).all()


@pytest.mark.parametrize("function", [fa.rnn, fa.gru, fa.lstm])
def test_wrong_clips_of_gates_are_named(function):
    for clip, error, message in ((0, ValueError, "must be positive, got 0"), (-1.0, ValueError, "must be positive"),
                                 (np.nan, ValueError, "must be positive"), ("1", TypeError, "must be a number"),
                                 (1e-300, ValueError, r"must be at least 2\*\*-149")):  # fmt: skip
        with pytest.raises(error, match=f"{function.__name__}: gate_clip {message}"):
            function(np.ones((1, 1, 1)), None, {}, gate_clip=clip)


def test_gradients_of_clipped_gates_are_refused(rng):
    x, state, weights = draw(rng, "gru", 2, 1, 3, 4, np.float32)
    with pytest.raises(TypeError, match=r"gru_forward.*gate_clip"):
        fa.gru_forward(x, state[0], weights, gate_clip=0.5)
    (y, _), saved = fa.gru_forward(x, state[0], weights)
    changed = saved._replace(options=saved.options._replace(gate_clip=0.5))
    with pytest.raises(ValueError, match=r"gru_backward: saved\.options\.gate_clip must be 0 .*, got 0\.5"):
        fa.gru_backward(y, changed)

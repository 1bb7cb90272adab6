"""Gradients of recurrent networks on bfloat16 and float16 arrays: float32 arithmetic, rounded once."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import nn, reference
from tests.low_precision import BFLOAT16, FLOAT16, LOW, LowPrecisionRule, Rounded, same
from tests.specification import plain
from tests.test_recurrent_backward import (
    CELLS,
    NAMES,
    backward,
    case,
    every_cell,
    functions_of,
    joined,
    make_states,
    make_weights,
)


@pytest.fixture(params=LOW.values(), ids=LOW)
def low(request):
    """Runs the test with each 16-bit type."""
    return request.param


def converted(value, dtype):
    if isinstance(value, tuple):
        return tuple(converted(part, dtype) for part in value)
    return {name: w.astype(dtype) for name, w in value.items()} if isinstance(value, dict) else value.astype(dtype)


def low_case(rng, name, *sizes, dtype):
    return tuple(converted(part, dtype) for part in case(rng, name, *sizes, np.float32))


def stack(rng, name, steps, batch, inputs, hidden, layers, directions, dtype):
    """x, state, weights, dy, dstate of several layers and directions."""
    output = make_states(rng, name, (1, hidden), np.float32)[0].shape[-1]
    weights = {}
    for layer in range(layers):
        for side in ("", "_reverse")[:directions]:
            columns = inputs if layer == 0 else directions * output
            weights |= make_weights(rng, name, columns, hidden, np.float32, f"_l{layer}{side}")
    x = rng.standard_normal((steps, batch, inputs))
    dy = rng.standard_normal((steps, batch, directions * output))
    state, dstate = (make_states(rng, name, (layers * directions, batch, hidden), np.float32) for _ in range(2))
    return tuple(converted(part, dtype) for part in (x, state, weights, dy, dstate))


def all_of(result):
    dx, dstate, dweights = result
    return [dx, *dstate, *(dweights[name] for name in sorted(dweights))]


@every_cell
def test_gradients_obey_the_error_rule(rng, isa, low, name):
    """Plain: NumPy in float32 that rounds h at each step, and gradients once."""
    rules = [LowPrecisionRule() for _ in range(3)]
    rounded = Rounded(low)
    for sizes in ((6, 50, 7, 9), (12, 33, 40, 48), (3, 64, 65, 37)):
        arrays = low_case(rng, name, *sizes, dtype=low)
        dx, dstate, dweights = backward(name, *arrays)
        results = []
        for module, wide in ((plain, np.float32), (reference, np.float64)):
            x, state, weights, dy, last = (converted(part, wide) for part in arrays)
            cell, cell_backward = functions_of(module, name, weights)
            state, last = (tuple(part[0] for part in whole) for whole in (state, last))
            if module is plain:
                cell = with_rounded_h(cell, rounded)
            results.append(module.sequence_backward(cell, cell_backward, dy, last, x, state))
        (plain_dx, plain_state, plain_weights), (exact_dx, exact_state, exact_weights) = results
        rules[0].add(dx, plain_dx.astype(low), exact_dx)
        for got, simple, true in zip(dstate, plain_state, exact_state, strict=True):
            rules[1].add(got[0], simple.astype(low), true)
        for kind, own in NAMES.items():
            if f"{kind}_l0" in dweights:
                rules[2].add(dweights[f"{kind}_l0"], plain_weights[own].astype(low), exact_weights[own])
    for rule in rules:
        rule.check(backward=True)


def with_rounded_h(cell, rounded):
    def step(x, *state):
        after = cell(x, *state)
        return (rounded(after[0]), *after[1:]) if isinstance(after, tuple) else rounded(after)

    return step


@every_cell
def test_forward_has_the_bits_of_the_plain_call(rng, isa, low, name):
    x, state, weights, _, _ = stack(rng, name, 5, 4, 6, 18, 2, 2, low)
    op, options = CELLS[name][1:]
    result, saved = getattr(fa, f"{op}_forward")(x, joined(name, state), weights, **options)
    wanted = getattr(fa, op)(x, joined(name, state), weights, **options)
    flat = [[y, *(after if isinstance(after, tuple) else (after,))] for y, after in (result, wanted)]
    assert all(same(a, b) for a, b in zip(*flat, strict=True))
    assert all(kept is None or kept.dtype == np.float32 for kept in saved.activations)


@every_cell
def test_result_does_not_depend_on_thread_count(rng, low, name):
    arrays = stack(rng, name, 9, 30, 8, 48, 2, 2, low)
    results = []
    for threads in (1, 2, 5):
        with fa.num_threads(threads):
            results.append(all_of(backward(name, *arrays)))
    assert all(same(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


@every_cell
def test_a_sequence_in_a_ragged_batch_has_the_gradients_of_the_same_alone(rng, low, name):
    x, state, weights, dy, dstate = stack(rng, name, 7, 5, 4, 18, 2, 2, low)
    lengths = [7, 0, 3, 1, 5]
    dx, dstate_got, _ = backward(name, x, state, weights, dy, dstate, lengths=lengths)
    for b, n in enumerate(lengths):
        one = slice(b, b + 1)
        own = [tuple(part[:, one] for part in whole) for whole in (state, dstate)]
        alone_dx, alone_state, _ = backward(name, x[:n, one], own[0], weights, dy[:n, one], own[1])
        assert same(dx[:n, one], alone_dx)
        assert not dx[n:, b].astype(np.float32).any()
        assert all(same(got[:, one], wanted) for got, wanted in zip(dstate_got, alone_state, strict=True))


@every_cell
def test_batch_first_and_missing_arrays(rng, low, name):
    x, _, weights, dy, _ = stack(rng, name, 4, 3, 5, 8, 2, 2, low)
    wanted = backward(name, x, None, weights, dy, None)
    dx, *rest = backward(name, x.swapaxes(0, 1).copy(), None, weights, dy.swapaxes(0, 1).copy(), None, batch_first=True)
    assert same(dx.swapaxes(0, 1), wanted[0])
    assert all(same(a, b) for a, b in zip(all_of((dx, *rest))[1:], all_of(wanted)[1:], strict=True))


@every_cell
def test_a_cell_is_a_sequence_of_one_step(rng, low, name):
    x, state, weights, dy, dstate = low_case(rng, name, 1, 3, 5, 8, dtype=low)
    op, options = CELLS[name][1:]
    own = {NAMES[key.removesuffix("_l0")]: value for key, value in weights.items()}
    _, saved = getattr(fa, f"{op}_cell_forward")(x[0], *(part[0] for part in state), **own, **options)
    grads = (dy[0], *(part[0] for part in dstate[1:]))
    dx, _, dweights = getattr(fa, f"{op}_cell_backward")(grads if op == "lstm" else grads[0], saved)
    last = (np.zeros_like(dstate[0]), *dstate[1:])
    wanted_dx, _, wanted = backward(name, x, state, weights, dy, last)
    assert same(dx, wanted_dx[0])
    assert all(same(dweights[NAMES[key.removesuffix("_l0")]], value) for key, value in wanted.items())


@pytest.mark.parametrize("threads", [1, 2])
def test_dropout_drops_what_it_drops_of_float32(rng, low, threads):
    x, state, weights, dy, dstate = stack(rng, "gru", 6, 5, 4, 9, 2, 2, low)
    options = {"dropout": 0.25, "seed": 7}
    with fa.num_threads(threads):
        _, saved = fa.gru_forward(x, state[0], weights, **options)
        _, wide = fa.gru_forward(
            x.astype(np.float32), state[0].astype(np.float32), converted(weights, np.float32), **options
        )
        dx, _, dweights = fa.gru_backward((dy, dstate[0]), saved)
    got, wanted = saved.dropped[0].astype(np.float32), wide.dropped[0]
    kept = wanted != 0
    assert 0 < np.count_nonzero(kept) < kept.size
    assert np.array_equal(got != 0, kept)
    # Exact: 4/3 of h rounded once.
    h = saved.ys[0].astype(np.float32)
    assert np.array_equal(got[kept], (h * np.float32(1 / 0.75)).astype(low).astype(np.float32)[kept])
    assert all(np.isfinite(a.astype(np.float32)).all() for a in (dx, *dweights.values()))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_modules_compute_and_learn_in_16_bits(rng, low, kind):
    m = kind(5, 6, 2, bidirectional=True, dtype=low, rng=np.random.default_rng(1))
    assert all(value.dtype == low for value in m.parameters().values())
    x = rng.standard_normal((4, 3, 5)).astype(low)
    op = kind.__name__.lower()
    (y, _), saved = m.forward(x)
    assert same(y, m(x)[0])
    assert same(y, getattr(fa, op)(x, None, m.parameters())[0])
    dx, _, grads = m.backward(np.ones_like(y), saved)
    assert (dx.dtype, dx.shape) == (low, x.shape)
    assert {name: (g.dtype, g.shape) for name, g in grads.items()} == {
        name: (low, w.shape) for name, w in m.parameters().items()
    }


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_modules_step_in_16_bits(rng, low, kind):
    m = kind(5, 6, 2, dtype=low, rng=rng)
    x = rng.standard_normal((4, 3, 5)).astype(low)
    state = None
    if kind is nn.LSTM:  # c is float32 within a call, and rounded between calls
        assert same(m.step(x[0])[0], m(x[:1])[0][0])
        return
    for row, wanted in zip(x, m(x)[0], strict=True):
        y, state = m.step(row, state, out=state)
        assert same(y, wanted)


def test_state_dicts_of_float32_are_rounded(rng, low):
    wide = nn.GRU(3, 4, rng=rng)
    m = nn.GRU(3, 4, dtype=low, rng=rng)
    m.load_state_dict(wide.parameters())
    assert all(same(w, wide.parameters()[name].astype(low)) for name, w in m.parameters().items())


def test_a_gradient_of_another_type_is_named(rng):
    x, state, weights, dy, _ = low_case(rng, "lstm", 2, 2, 3, 4, dtype=BFLOAT16)
    _, saved = fa.lstm_forward(x, state, weights)
    for wrong in (np.float32, FLOAT16):
        with pytest.raises(TypeError, match="lstm_backward: dy must be bfloat16 like the other arrays, got float"):
            fa.lstm_backward(dy.astype(wrong), saved)


@every_cell
def test_any_size_may_be_zero(rng, low, name):
    for sizes in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4)):
        x, state, weights, dy, dstate = low_case(rng, name, *sizes, dtype=low)
        dx, _, dweights = backward(name, x, state, weights, dy, dstate)
        assert (dx.shape, dx.dtype) == (x.shape, low)
        assert {key: value.shape for key, value in dweights.items()} == {key: w.shape for key, w in weights.items()}

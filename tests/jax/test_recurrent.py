"""Recurrent networks under JAX."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import fastattn as fa
import fastattn.jax as faj

STEPS, BATCH, INPUTS, UNITS = 5, 3, 4, 6
ROWS = {"rnn": 1, "gru": 3, "lstm": 4}
LENGTHS = np.array([5, 0, 3])
OURS = {"rnn": faj.rnn, "gru": faj.gru, "lstm": faj.lstm}
FORWARD = {"rnn": fa.rnn_forward, "gru": fa.gru_forward, "lstm": fa.lstm_forward}
BACKWARD = {"rnn": fa.rnn_backward, "gru": fa.gru_backward, "lstm": fa.lstm_backward}
CASES = {
    "rnn": ("rnn", {}),
    "rnn relu": ("rnn", {"nonlinearity": "relu"}),
    "gru": ("gru", {}),
    "gru, reset before": ("gru", {"linear_before_reset": False}),
    "lstm": ("lstm", {}),
    "lstm, coupled": ("lstm", {"coupled": True, "clip": 0.5}),
    "lstm, lengths": ("lstm", {"lengths": LENGTHS}),
    "gru, batch first": ("gru", {"batch_first": True, "lengths": LENGTHS}),
    "lstm, dropout": ("lstm", {"dropout": 0.5, "seed": 2**40 + 7, "batch_first": True}),
}


def network(rng, cell, options, layers=2, directions=2, dtype=np.float32):
    """x, state and weights."""
    rows = ROWS[cell] - options.get("coupled", False)
    weights = {}
    for layer in range(layers):
        for side in ("", "_reverse")[:directions]:
            inputs = directions * UNITS if layer else INPUTS
            for name, shape in (("weight_ih", (rows * UNITS, inputs)), ("weight_hh", (rows * UNITS, UNITS)),
                                ("bias_ih", (rows * UNITS,)), ("bias_hh", (rows * UNITS,))):  # fmt: skip
                weights[f"{name}_l{layer}{side}"] = (0.5 * rng.standard_normal(shape)).astype(dtype)
    first = (BATCH, STEPS) if options.get("batch_first") else (STEPS, BATCH)
    x = rng.standard_normal((*first, INPUTS)).astype(dtype)
    h, c = rng.standard_normal((2, layers * directions, BATCH, UNITS)).astype(dtype)
    return x, (h, c) if cell == "lstm" else h, weights


def total(cell, options, x, state, weights):
    y, last = OURS[cell](x, state, weights, **options)
    return sum(jnp.sum(2 * part) for part in jax.tree.leaves((y, last))), (y, last)


def assert_equal(found, expected):
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(got), wanted)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_results_and_gradients_have_the_bits_of_fastattn(rng, case):
    cell, options = case
    x, state, weights = network(rng, cell, options)
    results, saved = FORWARD[cell](x, state, weights, **options)
    expected = BACKWARD[cell](jax.tree.map(lambda a: np.full_like(a, 2), results), saved)
    assert_equal(jax.jit(lambda *a: OURS[cell](*a, **options))(x, state, weights), results)
    gradient = jax.jit(jax.grad(lambda *a: total(cell, options, *a), argnums=(0, 1, 2), has_aux=True))
    found, aux = gradient(x, state, weights)
    assert_equal(aux, results)
    assert_equal(found, expected)


@pytest.mark.parametrize("cell", ROWS)
def test_without_a_state_and_on_bfloat16(rng, cell):
    x, _, weights = network(rng, cell, {}, 1, 1, ml_dtypes.bfloat16)
    results, saved = FORWARD[cell](x, None, weights)
    assert_equal(OURS[cell](x, None, weights), results)
    dy = np.full_like(results[0], 1)
    found = jax.grad(lambda x, w: jnp.sum(OURS[cell](x, None, w)[0].astype(jnp.float32)), argnums=(0, 1))(x, weights)
    expected = BACKWARD[cell](dy, saved)
    assert_equal(found, (expected[0], expected[2]))


@pytest.mark.parametrize(("shared", "batch_first"), [("weights", True), ("x", False), ("nothing", True)])
def test_vmap_is_a_loop(rng, shared, batch_first):
    options = {"batch_first": batch_first, "lengths": LENGTHS}
    x, state, weights = network(rng, "lstm", options)
    axes = (None if shared == "x" else 0, 0, None if shared == "weights" else 0)
    several = [a if axis is None else jax.tree.map(lambda v: np.stack([v, v * 2, -v]), a)
               for a, axis in zip((x, state, weights), axes, strict=True)]  # fmt: skip

    def one(i):
        return [a if axis is None else jax.tree.map(lambda v: v[i], a) for a, axis in zip(several, axes, strict=True)]

    gradient = jax.grad(lambda *a: total("lstm", options, *a), argnums=(0, 1, 2), has_aux=True)
    found = jax.vmap(gradient, in_axes=axes)(*several)
    assert_equal(found, jax.tree.map(lambda *parts: np.stack(parts), *(gradient(*one(i)) for i in range(3))))


def test_a_seed_may_be_traced_and_drops_the_same_of_each_index_of_vmap(rng):
    x, _, weights = network(rng, "gru", {})

    @jax.jit
    def run(seed):
        return faj.gru(x, None, weights, dropout=0.5, seed=seed)[0]

    for seed in (0, 7):
        (y, _), _ = fa.gru_forward(x, None, weights, dropout=0.5, seed=seed)
        np.testing.assert_array_equal(run(seed), y)
    both = jax.vmap(lambda x: faj.gru(x, None, weights, dropout=0.5, seed=7)[0])(np.stack([x, x]))
    assert_equal(both, np.stack([y, y]))


def test_a_network_trains_under_scan(rng):
    x, _, weights = network(rng, "gru", {}, 1, 1)

    def loss(weights):
        return jnp.mean(faj.gru(x, None, weights)[0] ** 2)

    def step(weights, _):
        value, slope = jax.value_and_grad(loss)(weights)
        return jax.tree.map(lambda w, d: w - d, weights, slope), value

    losses = jax.jit(lambda w: jax.lax.scan(step, w, length=8)[1])(weights)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.zeros((5, 4), np.float32)}, ValueError, "lstm: x must"),
        ({"state": np.zeros(3)}, ValueError, "lstm: state must be a pair"),
        ({"state": (np.zeros((1, 2, 6), np.float32),) * 2}, ValueError, r"lstm: state\[0\] must have shape \(1, 3"),
        ({"weights": {}}, ValueError, "lstm: weights must hold"),
        ({"weights": None}, TypeError, "lstm: weights must be a mapping"),
        ({"lengths": np.array([1, 2])}, ValueError, "lstm: lengths must"),
        ({"clip": -1.0}, ValueError, "lstm: clip must be positive"),
        ({"dropout": 0.5, "seed": -1}, ValueError, "lstm: seed must lie in"),
        ({"dropout": 0.5, "seed": 1.5}, TypeError, "lstm: seed must be an integer"),
        ({"dropout": jnp.float32(0.5)}, TypeError, "lstm: dropout must be known when JAX traces"),
    ],
)  # fmt: skip
def test_faults_are_named(rng, change, error, message):
    x, state, weights = network(rng, "lstm", {}, 1, 1)
    with pytest.raises(error, match=message):
        faj.lstm(**{"x": x, "state": state, "weights": weights} | change)

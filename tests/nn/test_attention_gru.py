"""Additive attention with projections, and the GRU that attends at each step."""

import numpy as np
import pytest

import fastattn as fa
import fastattn.nn
from fastattn import reference
from tests.arrays import same_bits
from tests.errors import ErrorRule
from tests.nn.gradients import assert_gradients
from tests.specification import exact, plain

CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
NAMES = (*CELL, "attention.query.weight", "attention.key.weight", "attention.v")
SIZES = [(5, 3, 7, 4, 6, 5, 8), (1, 9, 20, 16, 33, 18, 35), (12, 2, 33, 5, 1, 3, 1)]  # T, B, S, I, H, K, A


def drawn(rng, dtype, *shape):
    return rng.standard_normal(shape, np.float32).astype(dtype)


def decoder(rng, dtype, T, B, S, I, H, K, A):
    """The module, and x, annotations, state, lengths."""
    m = fa.nn.AttentionGRU(I, H, K, A, dtype=dtype, rng=rng)
    lengths = rng.integers(0, S + 1, B)
    return m, drawn(rng, dtype, T, B, I), drawn(rng, dtype, B, S, K), drawn(rng, dtype, B, H), lengths


def expected(module, m, x, annotations, state, lengths):
    return module.attention_gru(x, annotations, state, *(m.parameters()[name] for name in NAMES), lengths)


@pytest.mark.usefixtures("isa")
def test_the_steps_are_those_of_the_reference(dtype, rng):
    rules = [ErrorRule() for _ in range(3)]
    for sizes in 8 * SIZES:
        m, *inputs = decoder(rng, dtype, *sizes)
        got, last = m(*inputs)
        assert same_bits(last, got.y[-1])
        truth = expected(exact(dtype), m, *inputs)
        for rule, *parts in zip(rules, got, expected(plain, m, *inputs), truth, strict=True):
            rule.add(*parts)
    for rule in rules:
        rule.check(median=False)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_those_of_the_reference(rng, sizes):
    m, x, annotations, state, lengths = decoder(rng, np.float64, *sizes)
    (result, last), saved = m.forward(x, annotations, state, lengths)
    weights = [drawn(rng, np.float64, *part.shape) for part in (result.y, result.context, last)]
    (dx, dannotations), dstate, grads = m.backward(tuple(weights), saved)

    def loss():
        y, context, _ = expected(reference, m, x, annotations, state, lengths)
        return sum((a * b).sum() for a, b in zip(weights, (y, context, y[-1]), strict=True))

    arrays = m.parameters() | {"x": x, "annotations": annotations, "state": state}
    assert_gradients(loss, arrays, grads | {"x": dx, "annotations": dannotations, "state": dstate}, rng)


@pytest.mark.usefixtures("isa")
def test_missing_gradients_are_zeros(dtype, rng):
    m, *inputs = decoder(rng, dtype, *SIZES[0])
    (result, last), saved = m.forward(*inputs)
    dy = drawn(rng, dtype, *result.y.shape)
    zeros = np.zeros_like(result.context), np.zeros_like(last)
    (dx, da), dstate, grads = m.backward((dy, None, None), saved)
    (dx0, da0), dstate0, grads0 = m.backward((dy, *zeros), saved)
    for a, b in ((dx, dx0), (da, da0), (dstate, dstate0), *((grads[name], grads0[name]) for name in NAMES)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("isa")
def test_threads_and_calls_of_one_step_change_no_bit(dtype, rng):
    m, x, annotations, state, lengths = decoder(rng, dtype, 6, 20, 40, 16, 40, 32, 70)
    whole, first = None, None
    for n in (1, 2, 5):
        with fa.num_threads(n):
            (result, last), saved = m.forward(x, annotations, state, lengths)
            (dx, da), dstate, grads = m.backward((result.y, result.context, last), saved)
        got = (*result, last, dx, da, dstate, *grads.values())
        whole, first = whole or result, first or got
        assert all(same_bits(a, b) for a, b in zip(got, first, strict=True))
    memory = m.annotate(annotations, lengths)
    for t in range(len(x)):
        step, state = m(x[t : t + 1], memory, state)
        assert same_bits(step.y[0], whole.y[t]) and same_bits(step.weights[:, 0], whole.weights[:, t])


def test_annotations_beyond_the_lengths_are_not_read(dtype, rng):
    m, x, annotations, state, lengths = decoder(rng, dtype, *SIZES[0])
    dirty = annotations.copy()
    dirty[np.arange(annotations.shape[1]) >= lengths[:, None]] = np.nan
    parts = []
    for array in (annotations, dirty):
        (result, last), saved = m.forward(x, array, state, lengths)
        (dx, da), _, grads = m.backward((result.y, result.context, last), saved)
        parts.append((*result, dx, da, *grads.values()))
    assert all(same_bits(a, b) for a, b in zip(*parts, strict=True))


def test_additive_attention_projects_state_and_annotations(rng):
    m = fa.nn.AdditiveAttention(5, 6, 9, dtype=np.float64, rng=rng)
    state, annotations = drawn(rng, np.float64, 3, 2, 5), drawn(rng, np.float64, 3, 7, 6)
    options = {"lengths": np.array([7, 3, 0])}
    context, saved = m.forward(state, annotations, **options)
    weights = drawn(rng, np.float64, *context.shape)
    (dstate, dannotations), grads = m.backward(weights, saved)
    assert same_bits(context, m(state, annotations, **options))
    p = m.parameters()

    def loss():
        keys = annotations @ p["key.weight"].T
        return (
            reference.additive_attention(state @ p["query.weight"].T, keys, annotations, p["v"], **options)[0] * weights
        ).sum()

    assert_gradients(loss, p | {"state": state, "annotations": annotations},
                     grads | {"state": dstate, "annotations": dannotations}, rng)  # fmt: skip


def test_wrong_arguments_are_named(rng):
    m, x, annotations, state, _ = decoder(rng, np.float32, *SIZES[0])
    for error, message, arguments in (
        (ValueError, r"x must have shape \[T, B, 4\]", (x[..., 1:], annotations)),
        (ValueError, r"annotations must have shape \[B, S, 5\]", (x, annotations[..., 1:])),
        (ValueError, "state must have the batch 3", (x, annotations, state[1:])),
        (ValueError, "x must have the batch 3", (x[:, 1:], annotations)),
        (ValueError, "lengths must lie in 0..7", (x, annotations, state, [8, 1, 1])),
        (TypeError, "float64", (x, annotations, state.astype(np.float64))),
    ):
        with pytest.raises(error, match=message):
            m(*arguments)

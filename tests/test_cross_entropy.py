"""Cross-entropy and its gradient."""

import math

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 63, 65, 513, 1031]


def sample(rng, dtype, rows, n, width=3.0):
    """logits, targets, dloss."""
    logits, dloss = (rng.standard_normal(shape, np.float32).astype(dtype) for shape in ((rows, n), (rows,)))
    return logits * dtype.type(width), rng.integers(0, n, rows), dloss


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("smoothing", [0.0, 0.125])
@pytest.mark.parametrize("width", [3.0, 100.0])
def test_losses_and_gradients_keep_the_error_rule(dtype, rng, smoothing, width):
    forward, backward = ErrorRule(), ErrorRule()
    for n in SIZES:
        logits, targets, dloss = sample(rng, dtype, 300, n, width)
        loss, saved = fa.cross_entropy_forward(logits, targets, label_smoothing=smoothing, reduction="none")
        arguments, right = (logits, targets, smoothing), exact(dtype)
        forward.add(loss, plain.cross_entropy(*arguments), right.cross_entropy(*arguments))
        got = fa.cross_entropy_backward(dloss, saved)
        backward.add(got, plain.cross_entropy_backward(dloss, *arguments),
                     right.cross_entropy_backward(dloss, *arguments))  # fmt: skip
    forward.check()
    backward.check(backward=True)


def test_the_reference_equals_finite_differences(rng):
    logits, targets, dloss = sample(rng, np.dtype(np.float64), 4, 6)
    for smoothing in (0.0, 0.2):
        gradient = reference.cross_entropy_backward(dloss, logits, targets, smoothing)
        for index in np.ndindex(logits.shape):
            kept, sides = logits[index], []
            for step in (1e-6, -1e-6):
                logits[index] = kept + step
                sides.append((reference.cross_entropy(logits, targets, smoothing) * dloss).sum())
            logits[index] = kept
            assert abs((sides[0] - sides[1]) / 2e-6 - gradient[index]) < 1e-7


@pytest.mark.usefixtures("isa")
def test_reductions_are_those_of_the_single_losses(dtype, rng):
    logits, targets, _ = sample(rng, dtype, 60, 33)
    logits, targets = logits.reshape(3, 20, 33), targets.reshape(3, 20)
    targets[1, 4:9] = -100
    single, saved = fa.cross_entropy_forward(logits, targets, reduction="none")
    assert single.shape == (3, 20)
    total = single.astype(np.float64).sum()
    assert fa.cross_entropy(logits, targets, reduction="sum") == dtype.type(total)
    mean, mean_saved = fa.cross_entropy_forward(logits, targets)
    assert mean.dtype == dtype
    assert mean == dtype.type(total / 55)
    factor = np.full((3, 20), 2 / 55, dtype)
    assert same_bits(fa.cross_entropy_backward(2.0, mean_saved), fa.cross_entropy_backward(factor, saved))


@pytest.mark.usefixtures("isa")
def test_ignored_rows_have_no_loss_no_gradient_and_are_not_read(dtype, rng):
    logits, targets, dloss = sample(rng, dtype, 9, 21)
    loss, saved = fa.cross_entropy_forward(logits, targets, reduction="none")
    gradient = fa.cross_entropy_backward(dloss, saved)
    for ignored in (-1, 21, 5):
        some, chosen = logits.copy(), targets.copy()
        chosen[chosen == ignored] = 6
        chosen[[2, 7]] = ignored
        some[[2, 7]] = np.nan
        kept = np.flatnonzero((chosen == targets) & (chosen != ignored))
        got, saved = fa.cross_entropy_forward(some, chosen, ignore_index=ignored, reduction="none")
        assert same_bits(got[kept], loss[kept])
        assert got[[2, 7]].tolist() == [0, 0]
        got = fa.cross_entropy_backward(dloss, saved)
        assert same_bits(got[kept], gradient[kept])
        assert not got[[2, 7]].any()


def test_a_sum_of_many_losses_is_that_of_longer_arithmetic(rng):
    x = rng.standard_normal((20000, 2)) * 1000
    targets = rng.integers(0, 2, 20000)
    losses = fa.cross_entropy(x, targets, reduction="none")
    exact_sum = math.fsum(losses)
    assert abs(fa.cross_entropy(x, targets, reduction="sum") - exact_sum) <= np.spacing(exact_sum)
    assert abs(fa.cross_entropy(x, targets) - exact_sum / 20000) <= 2 * np.spacing(exact_sum / 20000)
    x[7, targets[7]] = -np.inf
    assert fa.cross_entropy(x, targets, reduction="sum") == np.inf


def test_the_mean_of_no_losses_is_nan():
    with np.errstate(all="raise"):
        loss, saved = fa.cross_entropy_forward(np.ones((2, 3)), [-100, -100])
    assert np.isnan(loss)
    assert not fa.cross_entropy_backward(1.0, saved).any()
    assert np.isnan(fa.cross_entropy(np.ones((0, 3)), np.zeros(0, int)))
    assert fa.cross_entropy(np.ones((0, 3)), np.zeros(0, int), reduction="sum") == 0


@pytest.mark.usefixtures("isa")
def test_special_logits(dtype):
    inf, nan = np.inf, np.nan
    logits = np.array([[0, -inf, 0], [0, -inf, 0], [inf, 0, 0], [nan, 0, 0], [-inf] * 3, [0, 3e38, 0]], dtype)
    loss, saved = fa.cross_entropy_forward(logits, [0, 1, 1, 1, 1, 1], reduction="none")
    np.testing.assert_array_equal(loss[1:], [inf, nan, nan, nan, 0])
    assert abs(loss[0] - np.log(2)) < 1e-6
    gradient = fa.cross_entropy_backward(np.ones(6, dtype), saved)
    np.testing.assert_array_equal(gradient[:2], [[-0.5, 0, 0.5], [0.5, -1, 0.5]])
    assert np.isnan(gradient[2:5]).all()
    assert not gradient[5].any()


@pytest.mark.usefixtures("isa")
def test_a_row_does_not_depend_on_threads_batch_or_layout(rng):
    logits, targets, dloss = sample(rng, np.dtype(np.float32), 500, 97)
    with fa.num_threads(1):
        loss, saved = fa.cross_entropy_forward(logits, targets, label_smoothing=0.1, reduction="none")
        gradient = fa.cross_entropy_backward(dloss, saved)
    for n in (2, 3):
        with fa.num_threads(n):
            again, saved = fa.cross_entropy_forward(logits, targets, label_smoothing=0.1, reduction="none")
            assert same_bits(again, loss)
            assert same_bits(fa.cross_entropy_backward(dloss, saved), gradient)
    part = slice(77, 79)
    again, saved = fa.cross_entropy_forward(logits[part], targets[part], label_smoothing=0.1, reduction="none")
    assert same_bits(again, loss[part])
    assert same_bits(fa.cross_entropy_backward(dloss[part], saved), gradient[part])
    for other in LAYOUTS.values():
        again, saved = fa.cross_entropy_forward(other(logits[:9]), other(targets[:9]), label_smoothing=0.1,
                                                reduction="none")  # fmt: skip
        assert same_bits(again, loss[:9])
        assert same_bits(fa.cross_entropy_backward(other(dloss[:9]), saved), gradient[:9])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones((2, 3)), [0, 3]), {}, r"cross_entropy: targets must lie in 0\.\.2, got 3 at \[1\]"),
        ((np.ones((2, 3)), [0, -100]), {"ignore_index": None}, r"got -100 at \[1\]"),
        ((np.ones((2, 3)), [0, 1, 2]), {}, r"cross_entropy: targets must have shape \(2,\).*got shape \(3,\)"),
        ((np.ones((2, 3)), [0, 1]), {"reduction": "max"}, r"reduction must be one of 'mean', 'sum', 'none', got 'max'"),
        ((np.ones((2, 3)), [0, 1]), {"label_smoothing": 1.5}, r"label_smoothing must lie in 0\.\.1, got 1\.5"),
        ((np.ones((2, 3)), [0, 1]), {"label_smoothing": np.nan}, r"label_smoothing must lie in 0\.\.1"),
        ((np.ones((2, 3)), [0, 1]), {"ignore_index": 2**70}, r"ignore_index must fit into 64 bits"),
        ((np.float64(1), 0), {}, r"cross_entropy: logits must have at least one axis"),
        ((np.ones((2, 0)), [0, 0]), {}, r"targets must lie in 0\.\.-1"),
    ],
)
def test_wrong_values_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        fa.cross_entropy(*arguments, **options)


def test_wrong_types_and_gradients_are_named():
    with pytest.raises(TypeError, match=r"cross_entropy: targets must be integers, got float64"):
        fa.cross_entropy(np.ones((2, 3)), [0.0, 1.0])
    with pytest.raises(TypeError, match=r"cross_entropy: ignore_index must be an integer or None"):
        fa.cross_entropy(np.ones((2, 3)), [0, 1], ignore_index="x")
    with pytest.raises(TypeError, match=r"cross_entropy: logits must be float32, float64"):
        fa.cross_entropy(np.ones((2, 3), int), [0, 1])
    _, saved = fa.cross_entropy_forward(np.ones((2, 3)), [0, 1])
    with pytest.raises(TypeError, match=r"cross_entropy_backward: dloss must be a number"):
        fa.cross_entropy_backward(np.ones(2), saved)
    _, saved = fa.cross_entropy_forward(np.ones((2, 3)), [0, 1], reduction="none")
    with pytest.raises(ValueError, match=r"cross_entropy_backward: dloss must have the shape of targets, \(2,\)"):
        fa.cross_entropy_backward(np.ones(3), saved)
    with pytest.raises(TypeError, match=r"cross_entropy_backward: saved must be what cross_entropy_forward returned"):
        fa.cross_entropy_backward(1.0, None)

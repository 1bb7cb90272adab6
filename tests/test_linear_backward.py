"""Gradients of linear."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import _core, reference
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.ordered import wider
from tests.specification import exact, plain

ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"]
# M, N, K: 1, primes, a tile and its neighbours, parts of sums over rows, and their chunks.
SIZES = [(1, 1, 1), (2, 3, 5), (7, 16, 17), (97, 65, 33), (64, 31, 8), (65, 130, 9), (300, 70, 128), (2100, 5, 7)]


def sample(rng, dtype, m, n, k):
    """x, weight, bias, dy."""
    shapes = (m, k), (n, k), (n,), (m, n)
    x, weight, bias, dy = (rng.standard_normal(shape, np.float32).astype(dtype) for shape in shapes)
    return x, weight / dtype.type(max(1, k) ** 0.5), bias, dy


def gradients(x, weight, bias, dy, activation=None):
    return fa.linear_backward(dy, fa.linear_forward(x, weight, bias, activation=activation)[1])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("activation", [None, "gelu", "tanh"])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["dx", "dweight", "dbias"])
def test_gradients_keep_the_error_rule(dtype, rng, activation, part):
    rule = ErrorRule()
    for size in [*SIZES, (20, 900, 3)]:  # a gradient of the bias has few elements: one more with many
        x, weight, bias, dy = sample(rng, dtype, *size)
        got = gradients(x, weight, bias, dy, activation)[part]
        yardstick = plain.linear_backward(dy, x, weight, bias, activation)[part]
        rule.add(got, yardstick, exact(dtype).linear_backward(dy, x, weight, bias, activation)[part])
    rule.check(backward=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("isa")
def test_the_pair_gives_the_bits_of_the_plain_call_and_of_its_parts(dtype, rng, activation, linear_strategy):
    x, weight, bias, dy = sample(rng, dtype, 70, 33, 20)
    for b in (bias, None):
        y, saved = fa.linear_forward(x, weight, b, activation=activation)
        assert same_bits(y, fa.linear(x, weight, b, activation=activation))
        if activation in (None, "relu"):
            assert saved.z is (None if activation is None else y)
        else:
            assert same_bits(saved.z, fa.linear(x, weight, b))
        g = dy if activation is None else _core.map_backward(activation, dy, fa.linear(x, weight, b), "test")
        for got, want in zip(fa.linear_backward(dy, saved), gradients(x, weight, b, g), strict=True):
            assert (got is want is None) or same_bits(got, want)


def test_gradients_equal_finite_differences(rng):
    arguments = [rng.standard_normal(shape) for shape in ((4, 3), (5, 3), (5,))]
    dy = rng.standard_normal((4, 5))
    for activation in ACTIVATIONS:
        got = gradients(*arguments, dy, activation)
        for argument, gradient in zip(arguments, got, strict=True):
            for index in np.ndindex(argument.shape):
                kept, sides = argument[index], []
                for step in (1e-6, -1e-6):
                    argument[index] = kept + step
                    sides.append((reference.linear(*arguments, activation) * dy).sum())
                argument[index] = kept
                assert abs((sides[0] - sides[1]) / 2e-6 - gradient[index]) < 1e-7


@pytest.mark.usefixtures("isa")
def test_gradients_do_not_depend_on_thread_count(dtype, rng):
    x, weight, bias, dy = sample(rng, dtype, 2500, 70, 45)
    with fa.num_threads(1):
        expected = gradients(x, weight, bias, dy, "gelu")
    for n in (2, 3, 5):
        with fa.num_threads(n):
            assert all(map(same_bits, gradients(x, weight, bias, dy, "gelu"), expected))


@pytest.mark.usefixtures("isa")
def test_a_row_of_dx_does_not_depend_on_its_batch(dtype, rng):
    x, weight, bias, dy = sample(rng, dtype, 2100, 40, 33)
    whole = gradients(x, weight, bias, dy, "silu")[0]
    for rows in (slice(5, 6), slice(2047, 2050), slice(0, 97)):
        assert same_bits(gradients(x[rows], weight, bias, dy[rows], "silu")[0], whole[rows])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_do_not_depend_on_memory_layout(rng, layout):
    arrays = sample(rng, np.dtype(np.float32), 21, 19, 37)
    other = LAYOUTS[layout]
    assert all(map(same_bits, gradients(*map(other, arrays)), gradients(*arrays)))


@pytest.mark.usefixtures("isa")
def test_gradients_have_the_leading_axes_of_x(rng):
    x, weight, bias, dy = sample(rng, np.dtype(np.float64), 24, 5, 7)
    dx, dweight, dbias = gradients(x.reshape(2, 3, 4, 7), weight, bias, dy.reshape(2, 3, 4, 5))
    expected = gradients(x, weight, bias, dy)
    assert same_bits(dx.reshape(24, 7), expected[0])
    assert same_bits(dweight, expected[1])
    assert same_bits(dbias, expected[2])
    assert gradients(x[0], weight, None, dy[0])[0].shape == (7,)


@pytest.mark.usefixtures("isa")
def test_dx_can_be_added_to_a_gradient_from_elsewhere(dtype, rng):
    x, weight, bias, dy = sample(rng, dtype, 100, 33, 300)
    start = rng.standard_normal(x.shape).astype(dtype)
    total = start.copy()
    _, saved = fa.linear_forward(x, weight, bias)
    dx, *rest = _core.linear_backward(dy, x, weight, None, None, True, True, total, "test")
    assert dx is total
    rule = ErrorRule()
    rule.add(total, start + plain.linear_backward(dy, x, weight)[0],
             start.astype(wider(dtype)) + exact(dtype).linear_backward(dy, x, weight)[0])  # fmt: skip
    rule.check(median=False)
    assert all(map(same_bits, rest, fa.linear_backward(dy, saved)[1:]))
    dx, *rest = _core.linear_backward(dy, x, weight, None, None, True, False, None, "test")
    assert dx is None
    assert all(map(same_bits, rest, fa.linear_backward(dy, saved)[1:]))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [0, 70])
def test_dweight_may_go_into_columns_of_a_wider_array(dtype, rng, rows):
    x, weight, _, dy = sample(rng, dtype, rows, 40, 33)
    expected = _core.linear_backward(dy, x, weight, None, None, True, True, None, "test")
    wide = np.full((40, 50), 7, dtype)
    got = _core.linear_backward(dy, x, weight, None, None, True, True, None, "test", wide[:, 5:38])
    assert got[1].base is wide
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))
    assert (wide[:, :5] == 7).all() and (wide[:, 38:] == 7).all()
    for wrong, message in ((wide, "have shape"), (wide[:, 5:38].T.copy().T, "rows one after another"),
                           (np.broadcast_to(wide[0, :33], (40, 33)), "be writable")):  # fmt: skip
        with pytest.raises(ValueError, match=f"test: dweight_out must .*{message}"):
            _core.linear_backward(dy, x, weight, None, None, True, True, None, "test", wrong)


@pytest.mark.usefixtures("isa")
def test_sizes_may_be_zero(dtype):
    for m, n, k in ((0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 0, 0)):
        for activation in (None, "gelu"):
            dx, dweight, dbias = gradients(*(np.ones(s, dtype) for s in ((m, k), (n, k), (n,), (m, n))), activation)
            assert same_bits(dx, np.zeros((m, k), dtype))
            assert same_bits(dweight, np.zeros((n, k), dtype))
            assert dbias.shape == (n,)
            assert not dbias.any() or m > 0


@pytest.mark.usefixtures("isa")
def test_nan_reaches_its_own_rows_and_columns(dtype, rng):
    x, weight, bias, dy = sample(rng, dtype, 70, 20, 30)
    clean = gradients(x, weight, bias, dy)
    dy[3, 4] = np.nan
    dx, dweight, dbias = gradients(x, weight, bias, dy)
    assert np.isnan(dx[3]).all()
    assert same_bits(np.delete(dx, 3, 0), np.delete(clean[0], 3, 0))
    assert np.isnan(dweight[4]).all()
    assert same_bits(np.delete(dweight, 4, 0), np.delete(clean[1], 4, 0))
    assert np.isnan(dbias[4])
    assert same_bits(np.delete(dbias, 4), np.delete(clean[2], 4))


def test_wrong_arguments_are_named():
    x, weight, dy = np.ones((2, 3)), np.ones((4, 3)), np.ones((2, 4))
    _, saved = fa.linear_forward(x, weight)
    with pytest.raises(ValueError, match=r"linear_backward: dy must have the shape of the result, \(2, 4\)"):
        fa.linear_backward(dy[:1], saved)
    with pytest.raises(TypeError, match=r"linear_backward: dy must be float64 like the other arrays"):
        fa.linear_backward(dy.astype(np.float32), saved)
    with pytest.raises(TypeError, match=r"linear_backward: saved must be what linear_forward returned, got tuple"):
        fa.linear_backward(dy, tuple(saved))
    with pytest.raises(TypeError, match=r"linear_forward: weight must be an array"):
        fa.linear_forward(x, fa.pack_linear(weight))
    with pytest.raises(ValueError, match=r"linear_forward: activation must be one of"):
        fa.linear_forward(x, weight, activation="exp")
    with pytest.raises(TypeError, match=r"linear_forward: x must be float32, float64"):
        fa.linear_forward(x.astype(int), weight)

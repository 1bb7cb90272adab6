"""softmax and log_softmax, forward and backward: error rule, the 4 eps, axes, out=, layouts, special rows, errors."""

import re

import numpy as np
import pytest
from numpy.exceptions import AxisError

import fastattn as fa
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

FORWARD = {"softmax": fa.softmax, "log_softmax": fa.log_softmax}
BACKWARD = {"softmax": fa.softmax_backward, "log_softmax": fa.log_softmax_backward}
SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 127, 511, 512, 513, 1024, 1031, 4099]
ROWS = 60  # for the error rule: the errors of a row have its sum in common, so a median wants many rows


@pytest.fixture(params=FORWARD)
def name(request):
    return request.param


@pytest.fixture
def function(name):
    return FORWARD[name]


def data(rng, dtype, *shape, spread=1.0):
    return (spread * rng.standard_normal(shape)).astype(dtype)


class TestErrors:
    @pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 100.0])
    def test_forward_obeys_the_error_rule(self, name, function, dtype, isa, rng, spread):
        rule = ErrorRule()
        for n in SIZES[:-1]:
            x = data(rng, dtype, ROWS, n, spread=spread)
            rule.add(function(x), getattr(plain, name)(x), getattr(exact(dtype), name)(x))
        # In rows that are all but constant the terms e^(z - max) of the plain formula lie between 1/2 and 1, where half
        # an ULP is relatively least; e^z has any mantissa. The median is up to 1.2 times the plain one there.
        rule.check(median=spread >= 1)

    @pytest.mark.parametrize("scale", [0.125, -1.0, 3.7])
    def test_scale_obeys_the_error_rule(self, name, function, dtype, isa, rng, scale):
        rule = ErrorRule()
        for n in SIZES[:-1]:
            x = data(rng, dtype, ROWS, n, spread=8)
            # The scale is a number of the dtype: kernels multiply by that.
            rounded = float(dtype.type(scale))
            rule.add(
                function(x, scale=scale),
                getattr(plain, name)(x, -1, scale),
                getattr(exact(dtype), name)(x, -1, rounded),
            )
        rule.check()

    @pytest.mark.parametrize("scale", [1.0, 0.125, -2.0])
    def test_backward_obeys_the_error_rule(self, name, dtype, isa, rng, scale):
        rule = ErrorRule()
        for n in SIZES[:-1]:
            y = FORWARD[name](data(rng, dtype, ROWS, n, spread=2), scale=scale)
            dy = data(rng, dtype, *y.shape)
            backward = f"{name}_backward"
            rule.add(
                BACKWARD[name](dy, y, scale=scale),
                getattr(plain, backward)(dy, y, -1, scale),
                getattr(exact(dtype), backward)(dy, y, -1, scale),
            )
        rule.check(backward=True)

    def test_elements_and_sums_are_within_4_eps(self, dtype, isa, rng):
        """NUMERICS: element-wise relative error, and row sums against 1, at x = 10 N(0, 1)."""
        eps = np.finfo(dtype).eps
        for n in SIZES:
            x = data(rng, dtype, max(3, 20_000 // n), n, spread=10)
            y, right = fa.softmax(x), exact(dtype).softmax(x)
            normal = right > np.finfo(dtype).tiny
            assert (np.abs(y - right)[normal] / right[normal]).max() <= 4 * eps
            assert np.abs(y.sum(-1, dtype=right.dtype) - 1).max() <= 4 * eps

    def test_large_scores_lose_nothing(self, dtype, isa, rng):
        """e^(z - max) of a rounded difference would be wrong by 2^-18 at z near 100; here the bound holds anywhere."""
        eps = np.finfo(dtype).eps
        for offset in (-300, -100, 50, 100, 200, 1000, 1e6):
            # Differences of at most 60, exact in the dtype.
            x = (offset + np.round(data(rng, dtype, 40, 100, spread=8))).astype(dtype)
            y, right = fa.softmax(x), exact(dtype).softmax(x)
            normal = right > np.finfo(dtype).tiny
            assert (np.abs(y - right)[normal] / right[normal]).max() <= 4 * eps, offset


class TestAxes:
    @pytest.mark.parametrize("axis", [-4, -3, -2, -1, 0, 1, 2, 3])
    def test_any_axis_has_the_bits_of_the_last(self, name, function, dtype, rng, axis):
        x, dy = data(rng, dtype, 2, 3, 4, 5, 6)
        last = np.moveaxis(x, axis, -1).copy()
        y = function(x, axis)
        assert same_bits(np.moveaxis(y, axis, -1), function(last))
        assert y.flags.c_contiguous
        dx = BACKWARD[name](dy, y, axis)
        assert same_bits(np.moveaxis(dx, axis, -1), BACKWARD[name](np.moveaxis(dy, axis, -1), function(last)))

    def test_axis_may_be_any_integer_type(self, function, dtype, rng):
        x = data(rng, dtype, 3, 4)
        assert same_bits(function(x, np.int64(0)), function(x, 0))

    @pytest.mark.parametrize("axis", [2, -3, 10**30])
    def test_axis_out_of_range_is_an_axis_error(self, name, function, axis):
        message = f"{name}: axis must lie in -2..1 for shape (2, 3), got {axis}"
        with pytest.raises(AxisError, match=re.escape(message)):
            function(np.ones((2, 3)), axis)
        with pytest.raises(AxisError, match=f"{name}_backward: axis"):
            BACKWARD[name](np.ones((2, 3)), np.ones((2, 3)), axis)

    def test_a_scalar_has_no_axis(self, name, function):
        with pytest.raises(AxisError, match=f"{name}: axis"):
            function(np.float64(1))

    @pytest.mark.parametrize("axis", [None, "0", 0.0, (0,), [1], np.ones(2)])
    def test_axis_must_be_an_integer(self, name, function, axis):
        with pytest.raises(TypeError, match=f"{name}: axis must be an integer"):
            function(np.ones((2, 3)), axis)
        with pytest.raises(TypeError, match=f"{name}_backward: axis must be an integer"):
            BACKWARD[name](np.ones((2, 3)), np.ones((2, 3)), axis)

    @pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3), (3, 2, 0)], ids=str)
    def test_empty_arrays_stay_empty(self, name, function, dtype, shape):
        x = np.empty(shape, dtype)
        for axis in range(len(shape)):
            assert function(x, axis).shape == shape
            assert BACKWARD[name](x, x, axis).shape == shape
            out = np.empty(shape, dtype)
            assert function(x, axis, out=out) is out

    def test_row_of_one_is_one(self, dtype, isa):
        x = np.array([[0.0], [1e30], [-1e30]], dtype)
        assert (fa.softmax(x) == 1).all()
        assert (fa.log_softmax(x) == 0).all()


class TestSpecialRows:
    """One row of each kind between ordinary ones, which must not notice."""

    LENGTHS = (1, 2, 7, 8, 16, 17, 33, 130)

    @pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
    def test_nan_and_inf_make_their_row_nan_and_no_other(self, function, dtype, isa, rng, value):
        for n in self.LENGTHS:
            x = data(rng, dtype, 3, n)
            expected = function(x)
            for at in range(n):
                spoilt = x.copy()
                spoilt[1, at] = value
                y = function(spoilt)
                assert np.isnan(y[1]).all()
                assert same_bits(y[::2], expected[::2])

    def test_row_of_minus_inf_is_nan(self, function, dtype, isa):
        for n in self.LENGTHS:
            assert np.isnan(function(np.full((2, n), -np.inf, dtype))).all()

    def test_minus_inf_is_left_out(self, dtype, isa, rng):
        for n in self.LENGTHS[1:]:
            x = data(rng, dtype, 1, n)
            x[:, 1::2] = -np.inf
            assert (fa.softmax(x)[:, 1::2] == 0).all()
            assert (fa.log_softmax(x)[:, 1::2] == -np.inf).all()
            right = exact(dtype).softmax(x[:, ::2])
            assert np.abs(fa.softmax(x)[:, ::2] / right - 1).max() <= 4 * np.finfo(dtype).eps

    def test_infinities_of_a_negative_scale_change_places(self, dtype, isa):
        x = np.array([[1.0, np.inf, 1.0]], dtype)
        np.testing.assert_array_equal(fa.softmax(x, scale=-1), np.array([[0.5, 0, 0.5]], dtype))
        assert np.isnan(fa.softmax(-x, scale=-1)).all()

    def test_largest_numbers_are_numbers(self, function, dtype, isa):
        top = np.finfo(dtype).max
        y = function(np.array([[top, -top, top], [-top, -top, -top]], dtype))
        assert not np.isnan(y).any()
        e = np.exp(y) if function is fa.log_softmax else y
        np.testing.assert_allclose(e, [[0.5, 0, 0.5], [1 / 3] * 3], rtol=8 * np.finfo(dtype).eps)

    def test_small_terms_are_kept_as_subnormals(self, dtype, isa):
        low = {4: -100.0, 8: -740.0}[dtype.itemsize]
        y = fa.softmax(np.array([0, low], dtype))
        assert 0 < y[1] < np.finfo(dtype).tiny
        assert np.abs(y[1] - np.exp(np.longdouble(low))) <= np.finfo(dtype).smallest_subnormal

    def test_nan_in_a_gradient_stays_in_its_row(self, name, dtype, isa, rng):
        for n in self.LENGTHS:
            y, dy = FORWARD[name](data(rng, dtype, 3, n)), data(rng, dtype, 3, n)
            expected = BACKWARD[name](dy, y)
            dy[1, n // 2] = np.nan
            dx = BACKWARD[name](dy, y)
            assert np.isnan(dx[1]).all()
            assert same_bits(dx[::2], expected[::2])


class TestPairs:
    def test_forward_gives_the_plain_result_and_what_backward_needs(self, name, dtype, rng):
        x, dy = data(rng, dtype, 2, 3, 4, 5)
        for axis, scale in ((-1, 1.0), (0, -0.5)):
            y, saved = getattr(fa, f"{name}_forward")(x, axis, scale=scale)
            assert same_bits(y, FORWARD[name](x, axis, scale=scale))
            dx = BACKWARD[name](dy, saved, axis, scale=scale)
            assert same_bits(dx, BACKWARD[name](dy, y, axis, scale=scale))


class TestInvariance:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layout_does_not_change_bits(self, name, function, dtype, layout, rng):
        x, dy = data(rng, dtype, 2, 3, 5, 19)
        y = function(x)
        assert same_bits(function(LAYOUTS[layout](x)), y)
        assert same_bits(BACKWARD[name](LAYOUTS[layout](dy), LAYOUTS[layout](y)), BACKWARD[name](dy, y))

    def test_rows_have_the_bits_they_have_alone(self, name, function, dtype, isa, rng):
        for n in SIZES[:13]:
            x, dy = data(rng, dtype, 2, 5, n)
            y = function(x)
            dx = BACKWARD[name](dy, y)
            for i in range(5):
                assert same_bits(function(x[i]), y[i])
                assert same_bits(BACKWARD[name](dy[i], y[i]), dx[i])

    def test_thread_count_does_not_change_bits(self, name, function, dtype, threads, rng):
        for shape in ((3000, 257), (7, 100_003), (1, 300_000)):
            x, dy = data(rng, dtype, 2, *shape)
            with fa.num_threads(1):
                y = function(x)
                dx = BACKWARD[name](dy, y)
            assert same_bits(function(x), y)
            assert same_bits(BACKWARD[name](dy, y), dx)


class TestOut:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_result_goes_to_out_of_any_layout(self, function, dtype, axis, rng):
        x = data(rng, dtype, 3, 5, 19)
        expected = function(x, axis)
        for name, layout in LAYOUTS.items():
            if name != "read-only":
                out = layout(np.zeros_like(x))
                assert function(x, axis, out=out) is out
                assert same_bits(out, expected)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_in_place(self, function, dtype, isa, axis, rng):
        x = data(rng, dtype, 7, 13)
        expected = function(x, axis)
        function(x, axis, out=x)
        assert same_bits(x, expected)

    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("shift", [1, 8, 100, -1, -8, -100])
    def test_out_that_overlaps_the_input(self, function, dtype, axis, shift, rng):
        store = data(rng, dtype, 700)
        x, out = store[200:500].reshape(12, 25), store[200 + shift : 500 + shift].reshape(12, 25)
        expected = function(x.copy(), axis)
        function(x, axis, out=out)
        assert same_bits(out, expected)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_wrong_out_is_refused_and_untouched(self, name, function, axis):
        x = np.ones((3, 4))
        read_only = np.full((3, 4), 7.0)
        read_only.flags.writeable = False
        wrong = {
            "must have shape (3, 4) and dtype float64, got (4, 3) and float64": np.full((4, 3), 7.0),
            "must have shape (3, 4) and dtype float64, got (3, 4) and float32": np.full((3, 4), 7.0, np.float32),
            "must be writable, got a read-only array": read_only,
        }
        for message, out in wrong.items():
            with pytest.raises(ValueError, match=re.escape(f"{name}: out {message}")):
                function(x, axis, out=out)
            assert (out == 7).all()
        with pytest.raises(TypeError, match=f"{name}: out must be an ndarray, got list"):
            function(x, axis, out=[[0.0] * 4] * 3)


class TestBadInput:
    @pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
    def test_scale_must_be_finite(self, name, function, scale):
        with pytest.raises(ValueError, match=f"{name}: scale must be finite, got"):
            function(np.ones(3), scale=scale)
        with pytest.raises(ValueError, match=f"{name}_backward: scale must be finite, got"):
            BACKWARD[name](np.ones(3), np.ones(3), scale=scale)

    @pytest.mark.parametrize("scale", [None, "1", [1.0, 2.0], 1j])
    def test_scale_must_be_a_number(self, name, function, scale):
        with pytest.raises(TypeError, match=f"{name}: scale must be a number, got"):
            function(np.ones(3), scale=scale)

    def test_gradient_must_have_the_shape_and_type_of_the_result(self, name):
        backward = BACKWARD[name]
        for axis in (0, 1):
            with pytest.raises(ValueError, match=re.escape("dy must have the shape of y, (2, 3), got shape (3, 2)")):
                backward(np.ones((3, 2)), np.ones((2, 3)), axis)
            with pytest.raises(TypeError, match="dy must be float64 like the other arrays, got float32"):
                backward(np.ones((2, 3), np.float32), np.ones((2, 3)), axis)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_integers_are_refused_with_the_fix(self, name, function, axis):
        with pytest.raises(TypeError, match=re.escape(f"{name}: x must be float32") + ".*pass x.astype"):
            function(np.ones((2, 3), np.int32), axis)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (np.zeros((2, 3), np.float32), {"axis": 2}, AxisError, "axis must lie in -2..1"),
        (np.zeros((2, 3), np.float32), {"axis": -3}, AxisError, "axis must lie in -2..1"),
        (np.float32(1), {}, AxisError, "axis must lie"),
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

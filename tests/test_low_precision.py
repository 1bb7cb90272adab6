"""bfloat16 and float16 arrays: conversions, element-wise functions, and what is refused."""

import ml_dtypes
import numpy as np
import pytest

import fastattn as fa
from fastattn import _core, reference
from tests.arrays import LAYOUTS, same_bits
from tests.low_precision import BFLOAT16, FLOAT16, LOW, is_nan

MAPS = ("exp", "tanh", "sigmoid", "relu", "silu", "gelu")


@pytest.fixture(params=LOW.values(), ids=LOW)
def low(request):
    """Runs the test with each 16-bit type."""
    return request.param


def every_number(dtype):
    return np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(dtype)


def rounded(x, dtype):
    """float32 rounded once by integer arithmetic: an oracle that shares nothing with the kernels or with ml_dtypes."""
    x = np.asarray(x, np.float32)
    mantissa, smallest, bias, width = (7, -133, 127, 8) if dtype == BFLOAT16 else (10, -24, 15, 5)
    _, exponent = np.frexp(np.abs(x).astype(np.float64))
    unit = np.maximum(exponent - mantissa - 1, smallest).astype(np.int64)
    with np.errstate(invalid="ignore", over="ignore"):
        count = np.rint(np.ldexp(np.abs(x).astype(np.float64), -unit))
        value = np.ldexp(count, unit)
    top = float(2.0 ** (bias + 1))
    value = np.where(value >= top, np.inf, value)
    assert width + mantissa == 15
    return np.copysign(value, x)


def test_every_16_bit_number_widens_exactly(isa, low):
    x = every_number(low)
    wide = _core.cast(x, np.float32)
    numbers = ~is_nan(x)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide[numbers], x[numbers].astype(np.float64))
    np.testing.assert_array_equal(np.signbit(wide[numbers]), (x.view(np.uint16) >> 15 == 1)[numbers])
    assert np.isnan(wide[~numbers]).all()


def test_every_16_bit_number_survives_a_round_trip(isa, low):
    x = every_number(low)
    back = _core.cast(_core.cast(x, np.float32), low)
    nan = is_nan(x)
    np.testing.assert_array_equal(back.view(np.uint16)[~nan], x.view(np.uint16)[~nan])
    assert is_nan(back)[nan].all()


def test_narrowing_rounds_to_nearest_even_beside_every_number_and_every_half_way(isa, low):
    numbers = every_number(low)
    numbers = numbers[~is_nan(numbers)].astype(np.float32)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    middles = ((numbers[1:].astype(np.float64) + numbers[:-1]) / 2).astype(np.float32)
    points = np.concatenate([numbers, middles, [np.float32(65520), np.float32(3.3961776e38), np.finfo(np.float32).max]])
    with np.errstate(over="ignore"):
        sides = [np.nextafter(points, np.float32(side)) for side in (np.inf, -np.inf)]
    points = np.concatenate([points, *sides])
    points = points[np.isfinite(points)]
    got = _core.cast(points, low).astype(np.float64)
    np.testing.assert_array_equal(got, rounded(points, low))
    np.testing.assert_array_equal(np.signbit(got), np.signbit(points))


def test_narrowing_of_random_bits_rounds_once(isa, low, rng):
    x = rng.integers(0, 1 << 32, 1_000_003, dtype=np.uint32).view(np.float32)
    got = _core.cast(x, low).astype(np.float64)
    finite = np.isfinite(x)
    np.testing.assert_array_equal(got[finite], rounded(x[finite], low))
    np.testing.assert_array_equal(got[np.isinf(x)], x[np.isinf(x)])
    assert np.isnan(got[np.isnan(x)]).all()


def test_a_nan_stays_nan_whichever_bits_it_has(isa, low):
    bits = np.array([0x7F800001, 0x7F80FFFF, 0x7FFFFFFF, 0xFF800001, 0xFFC00000, 0xFFFFFFFF], np.uint32)
    assert np.isnan(_core.cast(np.tile(bits, 5).view(np.float32), low).astype(np.float32)).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33])
def test_partial_vectors_convert_as_whole_ones_do(isa, low, n, rng):
    x = rng.standard_normal(n).astype(np.float32)
    np.testing.assert_array_equal(_core.cast(x, low).astype(np.float64), rounded(x, low))


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_the_rounded_result_of_float32(isa, low, name):
    x = every_number(low)
    x = x[~is_nan(x)]
    function = getattr(fa, name)
    with np.errstate(over="ignore"):
        expected = function(x.astype(np.float32)).astype(low)
    got = function(x)
    assert got.dtype == low
    assert np.array_equal(got.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_off_by_hardly_more_than_one_rounding(isa, low, name):
    x = every_number(low)
    x = x[~is_nan(x)]
    x = x[np.isfinite(x.astype(np.float32))]
    with np.errstate(over="ignore"):
        exact = getattr(reference, name)(x.astype(np.float64))
    got = getattr(fa, name)(x).astype(np.float64)
    largest = float(ml_dtypes.finfo(low).max)
    keep = np.abs(exact) < largest
    unit = np.spacing(np.maximum(np.abs(exact[keep]), float(ml_dtypes.finfo(low).tiny)).astype(low)).astype(np.float64)
    assert (np.abs(got[keep] - exact[keep]) <= 0.5001 * unit).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_take_any_layout(isa, low, layout, rng):
    x = rng.standard_normal((3, 5, 7)).astype(low)
    assert same_bits(fa.exp(LAYOUTS[layout](x)).view(np.uint16), fa.exp(x).view(np.uint16))


def test_maps_write_to_out_and_in_place(low, rng):
    x = rng.standard_normal(100).astype(low)
    expected = fa.tanh(x)
    out = np.empty_like(x)
    assert fa.tanh(x, out=out) is out
    assert same_bits(out.view(np.uint16), expected.view(np.uint16))
    gaps = np.zeros(200, low)[::2]
    assert same_bits(fa.tanh(x, out=gaps).copy().view(np.uint16), expected.view(np.uint16))
    fa.tanh(x, out=x)
    assert same_bits(x.view(np.uint16), expected.view(np.uint16))


def test_an_out_of_another_type_is_refused(low):
    with pytest.raises(ValueError, match=f"exp: out must have shape .* and dtype {low}, got .* float32"):
        fa.exp(np.zeros(3, low), out=np.zeros(3, np.float32))


def test_the_other_byte_order_is_refused():
    with pytest.raises(TypeError, match="exp: x must be float32, float64, bfloat16 or float16 in native byte order"):
        fa.exp(np.zeros(3, ">f2"))


@pytest.mark.parametrize(
    ("x", "dtype"), [(np.float32, np.float32), (np.float64, np.float16), (np.float16, np.float64), (BFLOAT16, FLOAT16)]
)
def test_cast_is_between_float32_and_a_16_bit_type(x, dtype):
    with pytest.raises(TypeError, match="cast: dtype must be"):
        _core.cast(np.zeros(2, x), dtype)


def test_ops_without_16_bit_kernels_say_so(low):
    x = np.zeros((1, 2, 3), low)
    with pytest.raises(TypeError, match=rf"attention_gru: .*no {low} kernels: pass .*astype\(np.float32\)"):
        _core.attention_gru(x, x, x, x, x[0, 0], x[0], x[0, 0], x[0], None, False, "attention_gru")

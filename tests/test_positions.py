"""Sinusoidal positions."""

import math

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import same_bits
from tests.errors import ulps


@pytest.mark.parametrize("dim", [0, 1, 2, 7, 64])
def test_each_element_is_the_sine_or_cosine_of_its_position(dtype, dim):
    got = fa.sinusoidal_positions(50, dim, base=100.0, offset=3, dtype=dtype)
    assert got.dtype == dtype
    expected = reference.sinusoidal_positions(50, dim, base=100.0, offset=3)
    if dtype == np.float32 and dim:
        assert ulps(got, expected).max() <= 0.51
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-7 if dtype == np.float32 else 1e-14)


def test_columns_alternate_between_sine_and_cosine():
    table = fa.sinusoidal_positions(3, 4, dtype="f8")
    row = [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)]
    np.testing.assert_array_max_ulp(table[2], np.array(row), 1)


def test_offset_shifts_the_rows():
    assert same_bits(fa.sinusoidal_positions(5, 6, offset=4), fa.sinusoidal_positions(9, 6)[4:])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": -1}, ValueError, "length must be at least 0"),
        ({"dim": -2}, ValueError, "dim must be at least 0"),
        ({"base": 0.0}, ValueError, "base must be positive and finite"),
        ({"dtype": np.int32}, TypeError, "dtype must be one of float32, float64, got"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"sinusoidal_positions: {message}"):
        fa.sinusoidal_positions(**{"length": 2, "dim": 2, **arguments})

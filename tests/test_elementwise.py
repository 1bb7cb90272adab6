"""exp, tanh, sigmoid, relu, silu and gelu: errors in ULP, special values, sizes, outputs.

csrc/kernels/ulp.md has the errors over all floats; these are dense samples of them.
"""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import LAYOUTS, same_bits
from tests.errors import exact, ulps


def gelu(x, approximate="none"):
    """The reference's gelu with constants of the type of x: in long double those of float64 are not exact."""
    one = x.dtype.type(1)
    pi = 4 * np.arctan(one)
    if approximate == "tanh":
        cubic = x + np.longdouble("0.044715").astype(x.dtype) * x**3
        return x * exact_module(x).sigmoid(2 * np.sqrt(2 / pi) * cubic)
    return x / 2 * exact_module(x)._erfc(-x / np.sqrt(2 * one))


def exact_module(x):
    return exact(np.float64 if x.dtype == np.longdouble else np.float32)


# name: (function, its name in the reference, options of the reference, largest error in ULP for float32)
FUNCTIONS = {
    "exp": (fa.exp, "exp", {}, 1.0),
    "tanh": (fa.tanh, "tanh", {}, 1.5),
    "sigmoid": (fa.sigmoid, "sigmoid", {}, 2.0),
    "gelu": (fa.gelu, "gelu", {}, 3.0),
    "gelu_tanh": (lambda x, **o: fa.gelu(x, approximate="tanh", **o), "gelu", {"approximate": "tanh"}, 3.0),
    "silu": (fa.silu, "silu", {}, 3.0),
    "relu": (fa.relu, "relu", {}, 0.0),
}
names = pytest.mark.parametrize("name", FUNCTIONS)


def sample(dtype, rng, count):
    """Numbers of every sign and exponent, more where the functions bend."""
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    patterns = rng.integers(0, np.iinfo(bits).max, count, bits, endpoint=True).view(dtype)
    near = [rng.standard_normal(count).astype(dtype) * dtype.type(s) for s in (1e-3, 1, 5, 30, 100, 700)]
    x = np.concatenate([patterns, *near])
    return x[np.isfinite(x)]


@names
def test_errors_stay_within_their_bounds(name, isa, dtype, rng):
    function, reference, options, bound = FUNCTIONS[name]
    # gelu needs erfc in long double for float64, element by element.
    x = sample(dtype, rng, 20_000 if dtype == np.float32 else 2_000)
    got = function(x)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if reference == "gelu" and dtype == np.float64:
            # Beyond, the rounding of the argument of erfc in long double, times x^2, is no longer small beside an ULP.
            x = x[np.abs(x) < 12]
            got, wanted = function(x), gelu(x.astype(np.longdouble), **options)
        else:
            wanted = getattr(exact(dtype), reference)(x, **options)
    finite = np.isfinite(wanted) & (np.abs(wanted) <= np.finfo(dtype).max)
    assert np.isfinite(got[finite]).all()
    assert ulps(got[finite], wanted[finite]).max() <= (bound if dtype == np.float32 else min(bound, 1.0))


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("exp", [(-np.inf, 0), (np.inf, np.inf), (0, 1), (1000, np.inf), (-1000, 0)]),
        ("tanh", [(-np.inf, -1), (np.inf, 1), (0, 0), (-0.0, -0.0)]),
        ("sigmoid", [(-np.inf, 0), (np.inf, 1), (0, 0.5)]),
        ("relu", [(-np.inf, 0), (np.inf, np.inf), (-1, 0)]),
        ("silu", [(np.inf, np.inf), (0, 0)]),
        ("gelu", [(np.inf, np.inf), (0, 0)]),
        ("gelu_tanh", [(np.inf, np.inf), (0, 0)]),
    ],
)
def test_special_points(name, points, isa, dtype):
    x, wanted = np.array(points, dtype).T
    got = FUNCTIONS[name][0](np.ascontiguousarray(x))
    assert (got == wanted).all()
    assert (np.signbit(got) == np.signbit(wanted)).all()


@names
def test_nan_stays_nan_in_its_lane_alone(name, isa, dtype):
    function = FUNCTIONS[name][0]
    for n in (1, 7, 16, 33):
        x = np.linspace(-2, 2, n).astype(dtype)
        clean = function(x)
        for i in range(n):
            spoilt = x.copy()
            spoilt[i] = np.nan
            got = function(spoilt)
            assert np.isnan(got[i])
            assert same_bits(np.delete(got, i), np.delete(clean, i))


@names
def test_subnormal_numbers_are_kept(name, isa, dtype):
    tiny = np.finfo(dtype).smallest_subnormal * np.array([1, 3, 1000], dtype)
    got = FUNCTIONS[name][0](tiny)
    wanted = {"exp": 1, "sigmoid": 0.5}.get(name)
    if wanted is not None:
        assert (got == wanted).all()
    else:
        assert (got > 0).all() or name in ("silu", "gelu", "gelu_tanh")
    if name == "exp":
        x = np.log(np.finfo(dtype).tiny).astype(dtype) - dtype.type(3)
        assert 0 < fa.exp(np.array([x], dtype))[0] < np.finfo(dtype).tiny


@names
def test_every_length_and_lane_gives_the_same_bits(name, isa, dtype, rng):
    function = FUNCTIONS[name][0]
    x = rng.standard_normal(80).astype(dtype)
    wanted = function(x)
    for n in range(68):
        for start in (0, 1, 5):
            assert same_bits(function(x[start : start + n]), wanted[start : start + n])


@names
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_gives_the_same_bits(name, layout, dtype, rng):
    x = rng.standard_normal((4, 3, 9)).astype(dtype)
    function = FUNCTIONS[name][0]
    assert same_bits(function(LAYOUTS[layout](x)), function(x))


@names
def test_result_does_not_depend_on_thread_count(name, rng):
    x = rng.standard_normal(1_000_003, dtype=np.float32)
    results = []
    for threads in (1, 2, 3):
        with fa.num_threads(threads):
            results.append(FUNCTIONS[name][0](x))
    assert all(same_bits(result, results[0]) for result in results)


@names
def test_out_is_filled_and_returned_and_may_be_the_input(name, dtype, rng):
    function = FUNCTIONS[name][0]
    x = rng.standard_normal((5, 8)).astype(dtype)
    wanted = function(x)
    for out in (np.empty_like(x), np.empty((8, 5), dtype).T, np.empty((5, 16), dtype)[:, ::2]):
        assert function(x, out=out) is out
        assert same_bits(out, wanted)
    store = np.zeros(41, dtype)
    store[1:] = x.ravel()
    function(store[1:], out=store[:-1])
    assert same_bits(store[:-1], wanted.ravel())
    assert function(x, out=x) is x
    assert same_bits(x, wanted)


@names
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)])
def test_scalars_and_empty_arrays(name, shape, dtype):
    got = FUNCTIONS[name][0](np.ones(shape, dtype))
    assert got.shape == shape
    assert got.dtype == dtype


@names
@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (np.zeros(3, np.int32), {}, TypeError, "x must be float32"),
        (np.zeros(3, complex), {}, TypeError, "x must be float32"),
        (np.zeros(3, ">f8"), {}, TypeError, "x must be float32"),
        ("abc", {}, TypeError, "x must be"),
        (np.zeros(3, np.float32), {"out": np.zeros(2, np.float32)}, ValueError, "out must have shape"),
        (np.zeros(3, np.float32), {"out": np.zeros(3)}, ValueError, "out must have shape"),
        (np.zeros(3, np.float32), {"out": "abc"}, TypeError, "out must be an ndarray"),
    ],
)
def test_wrong_input_is_named(name, x, options, error, message):
    with pytest.raises(error, match=f"{name.removesuffix('_tanh')}: {message}"):
        FUNCTIONS[name][0](x, **options)


def test_gelu_knows_two_forms():
    with pytest.raises(ValueError, match="gelu: approximate must be 'none' or 'tanh'"):
        fa.gelu(np.zeros(1), approximate="erf")

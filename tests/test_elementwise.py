"""exp, tanh, sigmoid, relu, silu, gelu: bounds in ULP, special values, layouts, out= and aliasing, sizes."""

import re
from decimal import Context, Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest

import fastattn as fa
from fastattn import _core
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ulps
from tests.ordered import wide_erfc
from tests.specification import HAS_LONG_DOUBLE, exact

# Largest errors in ULP that are promised: the names of NUMERICS, and of silu, which is a product of one of them, the
# bound of gelu.
BOUNDS = {"exp": (1.0, 1.0), "tanh": (1.5, 1.0), "sigmoid": (2.0, 1.0), "relu": (0.0, 0.0), "silu": (3.0, 1.0),
          "gelu": (3.0, 1.0), "gelu_tanh": (3.0, 1.0)}  # fmt: skip
LONGEST_VECTOR = 16  # lanes: float in AVX-512
TABLE = Path(__file__).parent.parent / "csrc" / "kernels" / "ulp.md"


def gelu_tanh(x, **options):
    return fa.gelu(x, approximate="tanh", **options)


FUNCTIONS = {"exp": fa.exp, "tanh": fa.tanh, "sigmoid": fa.sigmoid, "relu": fa.relu, "silu": fa.silu, "gelu": fa.gelu,
             "gelu_tanh": gelu_tanh}  # fmt: skip


@pytest.fixture(params=FUNCTIONS)
def name(request):
    return request.param


@pytest.fixture
def function(name):
    return FUNCTIONS[name]


PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")


def through_decimals(f, x):
    """f of each double, a function on Decimal of 60 digits. For exponentials of large rounded arguments: the rounding
    of a long double is magnified to most of a double's ULP there."""
    with localcontext(Context(prec=60, Emin=-999_999, Emax=999_999)):
        return np.array([np.longdouble(str(f(Decimal(v)))) for v in x.tolist()], np.longdouble)


def exact_gelu(x):
    """erfc of the long double reference near 0; beyond, its continued fraction with an exact e^(-x^2 / 2)."""
    z = np.abs(np.asarray(x, np.longdouble)) / np.sqrt(np.longdouble(2))
    fraction = z = np.maximum(z, 1)
    for n in range(600, 0, -1):
        fraction = z + np.longdouble(n) / 2 / fraction
    tail = through_decimals(lambda v: (-v * v / 2).exp(), x) / np.sqrt(4 * np.arctan(np.longdouble(1))) / fraction
    far = np.where(x < 0, tail, 2 - tail)
    return x / np.longdouble(2) * np.where(np.abs(x) < 1.5, wide_erfc(-x / np.sqrt(np.longdouble(2))), far)


def exact_gelu_tanh(x):
    def f(v):
        with localcontext() as context:
            factor = (2 / PI).sqrt(context)
            return v / (1 + (-2 * factor * (v + Decimal("0.044715") * v**3)).exp())

    return through_decimals(f, x)


def exact_values(name, x):
    """In a type wider than that of x."""
    module = exact(x.dtype)
    with np.errstate(all="ignore"):
        if name.startswith("gelu"):
            if x.dtype == np.float32:
                return module.gelu(x, "tanh" if name == "gelu_tanh" else "none")
            y = np.where(x < 0, np.copysign(np.longdouble(0), x), x).astype(np.longdouble)
            inner = np.abs(x) < 45  # beyond, the exact value rounds to x or 0
            y[inner] = (exact_gelu if name == "gelu" else exact_gelu_tanh)(x[inner])
            return y
        return getattr(module, name)(x)


def sample_of_floats(count):
    """Bit patterns at equal distances over all floats, and a block around each place where a function changes form."""
    patterns = np.linspace(0, 2**32 - 1, count).astype(np.uint32).view(np.float32)
    edges = np.array(
        [0, 2**-126, 2**-24, 0.5, 0.625, 1, 2, 10, 12, 15, 17, 20, 40, 64, 69, 87.3, 88.7, 103.9, 115, 1e30]
    )
    near = (edges.astype(np.float32).view(np.uint32)[:, None] + np.arange(-64, 64)).astype(np.uint32).view(np.float32)
    return np.concatenate([patterns, near.ravel(), -near.ravel()])


def sample_of_doubles(count, rng, end):
    """Any bits; exponents -40 to 10; and -end..end, where the function is not trivial."""
    third = count // 3
    anything = rng.integers(0, 2**64, third, dtype=np.uint64).view(np.float64)
    spread = rng.uniform(1, 2, third) * 2.0 ** rng.integers(-40, 11, third) * rng.choice([-1.0, 1.0], third)
    edges = np.array([0, 2.0**-1022, 0.5, 0.625, 1, 4, 20, 22, 40, 708.3, 709.7, 745.1, 760])
    near = (edges.view(np.uint64)[:, None] + np.arange(-64, 64, dtype=np.int64).view(np.uint64)).view(np.float64)
    return np.concatenate([anything, spread, rng.uniform(-end, end, third), near.ravel(), -near.ravel()])


class TestErrors:
    @pytest.fixture
    def points(self, dtype, name, rng):
        if dtype == np.float32:
            # erfc of the reference is a Python loop.
            x = sample_of_floats(1 << (15 if name == "gelu" else 19))
            if name == "gelu":
                x = np.concatenate([x, rng.uniform(-15, 15, 1 << 15).astype(np.float32)])
            return x
        if not HAS_LONG_DOUBLE:
            pytest.skip("long double is no wider than float64 on this platform: no exact values to compare with")
        return sample_of_doubles(
            6000 if name.startswith("gelu") else 200_000, rng, 40 if name.startswith("gelu") else 760
        )

    def test_stays_within_the_promised_bound(self, name, function, dtype, points):
        # All instruction sets in one test: the exact values take longer than all of them.
        x = points[~np.isnan(points)]
        right = exact_values(name, x)
        finite = np.isfinite(x)
        bound = BOUNDS[name][dtype == np.float64]
        for isa in fa.config.available_isas():
            with fa.config.use_isa(isa):
                got = function(x)
            assert not np.isnan(got).any(), isa
            rounds_to_inf = finite & (np.abs(right) > np.finfo(dtype).max)
            error = ulps(got[finite & ~rounds_to_inf], right[finite & ~rounds_to_inf])
            # An infinite result of a finite one is an error without bound: only beyond the largest number is it right.
            assert np.nanmax(error) <= bound, (isa, x[finite & ~rounds_to_inf][np.nanargmax(error)])
            assert (got[rounds_to_inf] >= np.finfo(dtype).max).all(), isa

    def test_results_below_the_normal_range_stay_within_the_bound(self, name, function, dtype, isa):
        if name in ("tanh", "relu"):
            low = np.finfo(dtype).smallest_subnormal * np.arange(-2000, 2000).astype(dtype)
            x = np.concatenate([low, np.linspace(-1, 1, 999).astype(dtype) * np.finfo(dtype).tiny])
        else:
            if dtype == np.float64 and not HAS_LONG_DOUBLE:
                pytest.skip("no exact values")
            low, high = {
                "exp": ((-104, -87.4), (-745.2, -708.4)), "sigmoid": ((-104, -87.4), (-745.2, -708.4)),
                "silu": ((-108.5, -91.9), (-751.8, -715)), "gelu": ((-14.6, -13.2), (-38.7, -37.7)),
                "gelu_tanh": ((-10.5, -9.9), (-21.9, -21.4)),
            }[name][dtype == np.float64]  # fmt: skip
            x = np.linspace(low, high, 4000 if name.startswith("gelu") else 40_000).astype(dtype)
        right = exact_values(name, x)
        assert (np.abs(right[right != 0]) < np.finfo(dtype).tiny).any(), "the sample misses the range"
        got = function(x)
        assert ulps(got, right).max() <= BOUNDS[name][dtype == np.float64]

    def test_recorded_sweep_covers_each_function_and_keeps_the_promises(self):
        rows = {}
        for line in TABLE.read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if line.startswith("|") and cells[0] in FUNCTIONS:
                rows[tuple(cells[:3])] = cells[3:]
        for name, bounds in BOUNDS.items():
            for dtype, bound in zip(("float32", "float64"), bounds, strict=True):
                for isa in _core.isa_names()[:2]:
                    worst, _, subnormal, beyond, _, points, _ = rows[name, dtype, isa]
                    assert float(worst) <= bound
                    assert subnormal == "-" or float(subnormal) <= float(worst)
                    assert (int(beyond) == 0) == (float(worst) <= 1)
                    assert points == "all 2^32" if dtype == "float32" else float(points) >= 1e9

    def test_recorded_worst_inputs_have_the_recorded_errors(self):
        """At the input that the sweep names, this build has that error: the table is of this code."""
        for line in TABLE.read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            name, dtype, isa = cells[:3] if line.startswith("|") and cells[0] in FUNCTIONS else ("relu", None, None)
            if name == "relu" or isa not in fa.config.available_isas() or (dtype == "float64" and not HAS_LONG_DOUBLE):
                continue
            x = np.array([float.fromhex(cells[4])], dtype)
            with fa.config.use_isa(isa):
                got = FUNCTIONS[name](x)
            # The reference here is good to a hundredth of an ULP, and a double's to a few of long double's 2048ths.
            assert ulps(got, exact_values(name, x))[0] == pytest.approx(float(cells[3]), abs=0.02), line


class TestSpecialValues:
    @pytest.mark.parametrize("length", [1, 3, LONGEST_VECTOR, 2 * LONGEST_VECTOR + 5])
    def test_values_at_infinity_and_nan(self, name, function, dtype, isa, length):
        below, above = {"exp": (0, np.inf), "tanh": (-1, 1), "sigmoid": (0, 1)}.get(name, (-0.0, np.inf))
        if name == "relu":
            below = 0.0
        for at in range(length):
            x = np.full(length, 0.25, dtype)
            ordinary = function(x)[0]
            for value, expected in ((-np.inf, below), (np.inf, above), (np.nan, np.nan)):
                x[at] = value
                y = function(x)
                assert same_bits(y[at], np.array(expected, dtype)), (value, y[at])
                assert (np.delete(y, at) == ordinary).all()

    def test_zeros_keep_their_sign_where_the_function_is_odd_there(self, name, function, dtype, isa):
        y = function(np.array([0.0, -0.0], dtype))
        if name in ("exp", "sigmoid"):
            assert (y == (1 if name == "exp" else 0.5)).all()
        elif name == "relu":
            assert (y == 0).all()
        else:
            assert same_bits(y, np.array([0.0, -0.0], dtype))

    def test_any_nan_gives_nan(self, function, dtype, isa):
        bits = np.dtype(f"u{dtype.itemsize}")
        mantissa = np.finfo(dtype).nmant
        top = np.array([np.inf, -np.inf], dtype).view(bits)
        payloads = np.concatenate([[1], 2 ** np.arange(mantissa), [2**mantissa - 1]]).astype(bits)
        x = (top[:, None] | payloads).view(dtype)
        with np.errstate(invalid="ignore"):
            assert np.isnan(function(x)).all()

    def test_largest_and_smallest_numbers_are_numbers(self, name, function, dtype, isa):
        info = np.finfo(dtype)
        x = np.array([info.max, -info.max, info.tiny, -info.tiny, info.smallest_subnormal, -info.smallest_subnormal])
        y = function(x.astype(dtype))
        assert not np.isnan(y).any()
        expected = {"exp": (np.inf, 0), "tanh": (1, -1), "sigmoid": (1, 0)}.get(name, (info.max, 0))
        assert tuple(y[:2]) == expected

    def test_exp_overflows_where_it_has_to(self, dtype, isa):
        largest = np.log(np.finfo(dtype).max)
        assert np.isfinite(fa.exp(np.array([np.nextafter(largest, dtype.type(0))])))[0]
        assert fa.exp(np.array([largest * dtype.type(1.0001)]))[0] == np.inf


class TestLayouts:
    def test_sizes_up_to_some_vectors(self, function, dtype, isa, rng):
        """A value does not depend on its place: every length gives the first elements of the longest."""
        x = (4 * rng.standard_normal(4 * LONGEST_VECTOR + 3)).astype(dtype)
        whole = function(x)
        for n in range(x.size + 1):
            assert same_bits(function(x[:n]), whole[:n])
            assert same_bits(function(x[x.size - n :].copy()), whole[x.size - n :])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layout_does_not_change_bits(self, function, dtype, layout, rng):
        x = (3 * rng.standard_normal((3, 5, 19))).astype(dtype)
        assert same_bits(function(LAYOUTS[layout](x)), function(x))

    def test_broadcast_input(self, function, dtype):
        x = np.broadcast_to(np.array([[0.5], [-2.0]], dtype), (2, 37))
        assert same_bits(function(x), np.broadcast_to(function(x[:, :1].copy()), (2, 37)).copy())

    @pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 5), (5, 0), (2, 0, 3), (1, 1, 1), (2,) * 8], ids=str)
    def test_shape_of_the_result_is_that_of_the_input(self, function, dtype, shape):
        y = function(np.ones(shape, dtype))
        assert y.shape == shape
        assert y.dtype == dtype
        assert (y == function(np.ones(1, dtype))[0]).all()

    def test_lists_and_scalars_are_float64(self, function):
        assert function([0.5, 1.0]).dtype == np.float64
        assert function(0.5).shape == ()

    def test_thread_count_does_not_change_bits(self, function, dtype, threads, rng):
        x = (3 * rng.standard_normal(300_007)).astype(dtype)
        with fa.num_threads(1):
            alone = function(x)
        assert same_bits(function(x), alone)


class TestOut:
    def test_result_goes_to_out_and_out_is_returned(self, function, dtype, rng):
        x = rng.standard_normal((3, 21)).astype(dtype)
        out = np.empty_like(x)
        assert function(x, out=out) is out
        assert same_bits(out, function(x))

    @pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read-only"])
    def test_out_of_any_layout(self, function, dtype, layout, rng):
        x = rng.standard_normal((3, 5, 19)).astype(dtype)
        out = LAYOUTS[layout](np.zeros_like(x))
        assert function(x, out=out) is out
        assert same_bits(out, function(x))

    def test_in_place(self, function, dtype, isa, rng):
        x = rng.standard_normal((7, 13)).astype(dtype)
        expected = function(x.copy())
        function(x, out=x)
        assert same_bits(x, expected)

    def test_in_place_of_a_strided_view(self, function, dtype, rng):
        store = rng.standard_normal((7, 26)).astype(dtype)
        expected, gaps = function(store[:, ::2].copy()), store[:, 1::2].copy()
        function(store[:, ::2], out=store[:, ::2])
        assert same_bits(store[:, ::2], expected)
        assert same_bits(store[:, 1::2], gaps)

    @pytest.mark.parametrize("shift", [1, 8, 50, -1, -8, -50])
    def test_out_that_overlaps_the_input(self, function, dtype, shift, rng):
        store = rng.standard_normal(400).astype(dtype)
        x, out = store[100:300], store[100 + shift : 300 + shift]
        expected = function(x.copy())
        function(x, out=out)
        assert same_bits(out, expected)

    def test_out_reversed_over_the_input(self, function, dtype, rng):
        x = rng.standard_normal(100).astype(dtype)
        expected = function(x.copy())
        function(x, out=x[::-1])
        assert same_bits(x[::-1], expected)


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
def test_wrong_input_is_named(name, function, x, options, error, message):
    with pytest.raises(error, match=f"{name.removesuffix('_tanh')}: {message}"):
        function(x, **options)


def test_gelu_refuses_an_unknown_approximation():
    message = "gelu: approximate must be one of 'none', 'tanh', got 'erf'"
    with pytest.raises(ValueError, match=re.escape(message)):
        fa.gelu(np.ones(3), approximate="erf")

"""softmax and linear on bfloat16 and float16 arrays, under every instruction set (avx512bf16 multiplies pairs)."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import fortran, padded_rows
from tests.low_precision import BFLOAT16, LOW, LowPrecisionRule, Rounded, is_nan, same
from tests.test_linear import FEW_COLUMNS, FEW_K, FEW_ROWS

# M, N, K: odd sizes, more than a chunk of panels, several slices of K, one row
SIZES = [(1, 1, 1), (2, 3, 5), (7, 17, 33), (1, 130, 257), (100, 65, 64), (97, 1100, 40), (5, 70, 2500), (1, 64, 4100)]


@pytest.fixture(params=LOW.values(), ids=LOW)
def low(request):
    """Runs the test with each 16-bit type."""
    return request.param


def wide(x):
    return x.astype(np.float32)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_rows_are_the_rounded_rows_of_float32(isa, low, threads, name, rng):
    for shape in [(1, 1), (3, 7), (5, 33), (2, 20001), (700, 129)]:
        x = (3 * rng.standard_normal(shape)).astype(low)
        expected = getattr(fa, name)(wide(x), scale=0.7).astype(low)
        assert same(getattr(fa, name)(x, scale=0.7), expected)


@pytest.mark.parametrize("name", ["softmax_backward", "log_softmax_backward"])
def test_gradients_of_rows_are_the_rounded_gradients_of_float32(isa, low, name, rng):
    for shape in [(1, 1), (3, 7), (5, 33), (700, 129)]:
        y, dy = fa.softmax(rng.standard_normal(shape).astype(low)), rng.standard_normal(shape).astype(low)
        assert same(getattr(fa, name)(dy, y), getattr(fa, name)(wide(dy), wide(y)).astype(low))


def test_softmax_takes_any_axis_and_out(low, rng):
    x = rng.standard_normal((4, 6, 5)).astype(low)
    expected = fa.softmax(np.ascontiguousarray(x.swapaxes(1, 2))).swapaxes(1, 2)
    out = np.empty_like(x)
    assert fa.softmax(x, axis=1, out=out) is out
    assert same(out, expected.copy())
    before = x.copy()
    fa.softmax(x, out=x)
    assert same(x, fa.softmax(before))


def test_linear_keeps_the_error_rule(isa, low, rng):
    rule = LowPrecisionRule()
    for M, N, K in SIZES:
        x, w, b = (rng.standard_normal(shape).astype(low) for shape in ((M, K), (N, K), (N,)))
        for bias in (None, b):
            for activation in (None, "relu"):
                got = fa.linear(x, w, bias, activation=activation)
                yardstick = Rounded(low).linear(x, w, bias, activation)
                rule.add(got, yardstick, reference.linear(x, w, bias, activation))
    rule.check()


def test_a_linear_row_does_not_depend_on_the_others_threads_or_packing(isa, low, threads, rng):
    x, w, b = (rng.standard_normal(shape).astype(low) for shape in ((230, 300), (700, 300), (700,)))
    with fa.num_threads(1):
        expected = fa.linear(x, w, b, activation="gelu")
    assert same(fa.linear(x, w, b, activation="gelu"), expected)
    assert same(fa.linear(x, fa.pack_linear(w), b, activation="gelu"), expected)
    for row in (0, 95, 96, 229):
        assert same(fa.linear(x[row], w, b, activation="gelu"), expected[row])
    assert same(fa.linear(x, w[5:9], b[5:9], activation="gelu"), expected[:, 5:9].copy())


def test_few_rows_and_transposed_views_have_the_bits_of_packed_weights(isa, low, threads, rng):
    for draw in range(25):
        M, N, K = (int(rng.choice(sizes)) for sizes in (FEW_ROWS, FEW_COLUMNS, FEW_K))
        x, w, b = (rng.standard_normal(shape).astype(low) for shape in ((M, K), (N, K), (N,)))
        expected = fa.linear(x, fa.pack_linear(w), b if draw % 2 else None, activation="tanh")
        for same_w in (w, padded_rows(w), fortran(w), padded_rows(w.T).T):
            got = fa.linear(x, same_w, b if draw % 2 else None, activation="tanh")
            assert same(got, expected), (M, N, K, same_w.strides)


def test_nan_stays_in_its_row_and_column(isa, low, rng):
    x, w = rng.standard_normal((20, 30)).astype(low), rng.standard_normal((25, 30)).astype(low)
    clean = fa.linear(x, w)
    x[3, 7] = np.nan
    w[11, 29] = np.nan
    got = fa.linear(x, w)
    hit = np.zeros(got.shape, bool)
    hit[3] = hit[:, 11] = True
    assert np.array_equal(is_nan(got), hit)
    assert np.array_equal(got[~hit].view(np.uint16), clean[~hit].view(np.uint16))


def test_weights_are_packed_in_the_type_asked_for(low, rng):
    w, x = rng.standard_normal((9, 11)).astype(np.float32), rng.standard_normal((3, 11)).astype(low)
    packed = fa.pack_linear(w, dtype=low)
    assert packed.dtype == low
    assert same(fa.linear(x, packed), fa.linear(x, w.astype(low)))
    with pytest.raises(TypeError, match=f"linear: x must be {low} like the packed weight, got float32"):
        fa.linear(wide(x), packed)


def test_linear_sizes_may_be_zero(low):
    assert fa.linear(np.ones((0, 3), low), np.ones((2, 3), low)).shape == (0, 2)
    assert fa.linear(np.ones((2, 3), low), np.ones((0, 3), low)).shape == (2, 0)
    assert np.all(fa.linear(np.ones((2, 0), low), np.ones((4, 0), low), np.ones(4, low)) == 1)


def test_blas_is_refused(low):
    if fa.config.info()["blas"] == "none":
        pytest.skip("this build has no BLAS (FASTATTN_BLAS=none)")
    with (
        fa.config.linear_strategy("blas"),
        pytest.raises(ValueError, match="strategy 'blas' takes float32 and float64"),
    ):
        fa.linear(np.ones((2, 3), low), np.ones((4, 3), low))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_mixed_types_are_refused_by_name(low, name):
    given = {"x": np.ones((2, 3), low), "weight": np.ones((4, 3), low), "bias": np.ones(4, low)}
    given[name] = given[name].astype(np.float32)
    fix = "'bfloat16'" if low == BFLOAT16 else "np.float16"
    with pytest.raises(TypeError, match=rf"linear: {name} must be {low} .*got float32; pass {name}.astype\({fix}\)"):
        fa.linear(**given)

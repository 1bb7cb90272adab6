"""Layer norm and RMS norm of bfloat16 and float16 arrays: float32 arithmetic, rounded once."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from fastattn.functional.norm import SavedNorm
from tests.arrays import LAYOUTS
from tests.low_precision import LOW, LowPrecisionRule, Rounded, is_nan, same

SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 63, 65, 384, 1031]


@pytest.fixture(params=LOW.values(), ids=LOW)
def low(request):
    """Runs the test with each 16-bit type."""
    return request.param


def wide(x):
    return None if x is None else x.astype(np.float32)


def sample(rng, low, rows, n):
    """x, residual, dy, dsum, weight, bias."""
    shapes = ((rows, n),) * 4 + ((n,),) * 2
    return (rng.standard_normal(shape).astype(low) for shape in shapes)


@pytest.mark.usefixtures("isa")
def test_rows_are_the_rounded_rows_of_float32(low, threads, rng):
    for n in SIZES:
        x, residual, _, _, weight, bias = sample(rng, low, 37, n)
        for w, b in ((weight, bias), (weight, None), (None, bias), (None, None)):
            assert same(fa.layer_norm(x, w, b), fa.layer_norm(wide(x), wide(w), wide(b)).astype(low))
        assert same(fa.rms_norm(x, weight), fa.rms_norm(wide(x), wide(weight)).astype(low))
        total = (wide(x) + wide(residual)).astype(low)
        y, kept = fa.add_layer_norm(x, residual, weight, bias)
        assert same(kept, total) and same(y, fa.layer_norm(total, weight, bias))
        y, kept = fa.add_rms_norm(x, residual, weight)
        assert same(kept, total) and same(y, fa.rms_norm(total, weight))


@pytest.mark.usefixtures("isa")
def test_gradients_are_the_rounded_gradients_of_float32(low, threads, rng):
    for n in SIZES:
        x, _, dy, dsum, weight, bias = sample(rng, low, 150, n)
        for w, b in ((weight, bias), (weight, None), (None, bias), (None, None)):
            y, saved = fa.layer_norm_forward(x, w, b)
            assert same(y, fa.layer_norm(x, w, b))
            assert saved.mean.dtype == saved.rstd.dtype == np.float32
            in_float32 = SavedNorm(wide(x), wide(w), b is not None, saved.mean, saved.rstd)
            for d in (None, dsum):
                expected = fa.layer_norm_backward(wide(dy), in_float32, dsum=wide(d))
                for got, part in zip(fa.layer_norm_backward(dy, saved, dsum=d), expected, strict=True):
                    assert (got is None and part is None) or same(got, part.astype(low))
        _, saved = fa.rms_norm_forward(x, weight)
        expected = fa.rms_norm_backward(wide(dy), SavedNorm(wide(x), wide(weight), False, None, saved.rstd))
        assert all(
            same(got, part.astype(low)) for got, part in zip(fa.rms_norm_backward(dy, saved), expected, strict=True)
        )


@pytest.mark.usefixtures("isa")
def test_layer_norm_keeps_the_error_rule(low, rng):
    forward, backward = LowPrecisionRule(), [LowPrecisionRule() for _ in range(3)]
    for n in SIZES[3:]:
        x, _, dy, _, weight, bias = sample(rng, low, 50, n)
        y, saved = fa.layer_norm_forward(x, weight, bias)
        forward.add(y, Rounded(low).layer_norm(x, weight, bias), reference.layer_norm(x, weight, bias))
        truth = reference.layer_norm_backward(dy, x, weight)
        parts = zip(
            fa.layer_norm_backward(dy, saved), Rounded(low).layer_norm_backward(dy, x, weight), truth, strict=True
        )
        for rule, part in zip(backward, parts, strict=True):
            rule.add(*part)
    forward.check()
    for rule in backward:
        rule.check(backward=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_out_give_the_same_bits(low, layout, rng):
    x, residual, dy, _, weight, bias = sample(rng, low, 5, 37)
    other = LAYOUTS[layout]
    expected, saved = fa.layer_norm_forward(x, weight, bias, residual=residual)
    got, moved = fa.layer_norm_forward(other(x), other(weight), other(bias), residual=other(residual))
    assert same(got, expected)
    assert all(map(same, fa.layer_norm_backward(other(dy), moved), fa.layer_norm_backward(dy, saved)))
    expected = fa.rms_norm(x, weight)
    assert fa.rms_norm(x, weight, out=x) is x
    assert same(x, expected)


def test_nan_stays_in_its_row_and_sizes_may_be_zero(low, rng):
    x, _, dy, _, weight, bias = sample(rng, low, 4, 21)
    clean = fa.layer_norm(x, weight, bias)
    x[1, 3] = np.nan
    got, saved = fa.layer_norm_forward(x, weight, bias)
    assert is_nan(got[1]).all() and same(got[[0, 2, 3]], clean[[0, 2, 3]])
    assert is_nan(fa.layer_norm_backward(dy, saved)[0][1]).all()
    for shape in ((0, 5), (3, 0)):
        empty, of_columns = np.zeros(shape, low), np.ones(shape[1], low)
        y, saved = fa.layer_norm_forward(empty, of_columns, of_columns)
        dx, dweight, dbias = fa.layer_norm_backward(empty, saved)
        assert y.shape == dx.shape == shape and same(dweight, np.zeros(shape[1], low)) and same(dbias, dweight)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_mixed_types_are_refused_by_name(low, name):
    given = {"x": np.ones((2, 3), low), "weight": np.ones(3, low), "bias": np.ones(3, low)}
    given[name] = given[name].astype(np.float64)
    with pytest.raises(TypeError, match=rf"layer_norm: {name} must be {low} like the other arrays, got float64"):
        fa.layer_norm(**given)

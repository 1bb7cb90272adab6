"""Layer norm and RMS norm, forward and backward."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 63, 65, 513, 1031]


def sample(rng, dtype, rows, n, offset=0.0):
    """x, dy, weight, bias."""
    x, dy = (rng.standard_normal((rows, n), np.float32).astype(dtype) for _ in range(2))
    weight, bias = (rng.standard_normal(n, np.float32).astype(dtype) for _ in range(2))
    return x + dtype.type(offset), dy, weight, bias


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "offset"])
def test_layer_norm_keeps_the_error_rule(dtype, rng, offset):
    rule = ErrorRule()
    for n in SIZES:
        x, _, weight, bias = sample(rng, dtype, 9, n, offset)
        for w, b in ((weight, bias), (weight, None), (None, bias), (None, None)):
            got = fa.layer_norm(x, w, b)
            rule.add(got, plain.layer_norm(x, w, b), exact(dtype).layer_norm(x, w, b))
    rule.check()


@pytest.mark.usefixtures("isa")
def test_rms_norm_keeps_the_error_rule(dtype, rng):
    rule = ErrorRule()
    for n in SIZES:
        x, _, weight, _ = sample(rng, dtype, 9, n)
        for w in (weight, None):
            rule.add(fa.rms_norm(x, w), plain.rms_norm(x, w), exact(dtype).rms_norm(x, w))
    rule.check()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("part", [0, 1, 2], ids=["dx", "dweight", "dbias"])
def test_layer_norm_backward_keeps_the_error_rule(dtype, rng, part):
    rule = ErrorRule()
    for n in SIZES[1:]:
        x, dy, weight, bias = sample(rng, dtype, 150, n)
        got = fa.layer_norm_backward(dy, fa.layer_norm_forward(x, weight, bias)[1])[part]
        yardstick = plain.layer_norm_backward(dy, x, weight)[part]
        rule.add(got, yardstick, exact(dtype).layer_norm_backward(dy, x, weight)[part])
    rule.check()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("part", [0, 1], ids=["dx", "dweight"])
def test_rms_norm_backward_keeps_the_error_rule(dtype, rng, part):
    rule = ErrorRule()
    for n in SIZES[1:]:
        x, dy, weight, _ = sample(rng, dtype, 150, n)
        got = fa.rms_norm_backward(dy, fa.rms_norm_forward(x, weight)[1])[part]
        rule.add(got, plain.rms_norm_backward(dy, x, weight)[part], exact(dtype).rms_norm_backward(dy, x, weight)[part])
    rule.check()


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_reference_gradients_equal_finite_differences(rng, kind):
    x, dy, weight, _ = sample(rng, np.dtype(np.float64), 3, 5)
    forward = getattr(reference, f"{kind}_norm")
    backward = getattr(reference, f"{kind}_norm_backward")(dy, x, weight)
    step = 1e-6
    for argument, gradient in zip((x, weight), backward, strict=False):
        for index in np.ndindex(argument.shape):
            sides = []
            for sign in (1, -1):
                saved = argument[index]
                argument[index] = saved + sign * step
                sides.append((forward(x, weight) * dy).sum())
                argument[index] = saved
            assert abs((sides[0] - sides[1]) / (2 * step) - gradient[index]) < 1e-7


@pytest.mark.usefixtures("isa")
def test_a_residual_gives_the_bits_of_a_separate_sum(dtype, rng):
    for n in (1, 17, 513):
        x, residual, weight, bias = sample(rng, dtype, 6, n)
        y, total = fa.add_layer_norm(x, residual, weight, bias)
        assert same_bits(total, x + residual)
        assert same_bits(y, fa.layer_norm(x + residual, weight, bias))
        y, total = fa.add_rms_norm(x, residual, weight)
        assert same_bits(total, x + residual)
        assert same_bits(y, fa.rms_norm(x + residual, weight))
        _, saved = fa.layer_norm_forward(x, weight, bias, residual=residual)
        assert same_bits(saved.x, x + residual)


@pytest.mark.usefixtures("isa")
def test_dsum_is_added_to_dx(dtype, rng):
    x, dy, weight, bias = sample(rng, dtype, 70, 33)
    saved = fa.layer_norm_forward(x, weight, bias)[1]
    assert same_bits(fa.layer_norm_backward(dy, saved, dsum=x)[0], fa.layer_norm_backward(dy, saved)[0] + x)
    saved = fa.rms_norm_forward(x, weight)[1]
    assert same_bits(fa.rms_norm_backward(dy, saved, dsum=x)[0], fa.rms_norm_backward(dy, saved)[0] + x)


@pytest.mark.usefixtures("isa")
def test_results_do_not_depend_on_thread_count_or_batch(rng):
    x, dy, weight, bias = sample(rng, np.dtype(np.float32), 5000, 96)
    with fa.num_threads(1):
        y, saved = fa.layer_norm_forward(x, weight, bias)
        gradients = fa.layer_norm_backward(dy, saved)
    for n in (2, 3, 5):
        with fa.num_threads(n):
            again, saved = fa.layer_norm_forward(x, weight, bias)
            assert same_bits(again, y)
            assert all(map(same_bits, fa.layer_norm_backward(dy, saved), gradients))
    assert same_bits(fa.layer_norm(x[777], weight, bias), y[777])
    saved = fa.layer_norm_forward(x[777], weight, bias)[1]
    assert same_bits(fa.layer_norm_backward(dy[777], saved)[0], gradients[0][777])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_do_not_depend_on_memory_layout(rng, layout):
    x, dy, weight, bias = sample(rng, np.dtype(np.float32), 5, 37)
    other = LAYOUTS[layout]
    y, saved = fa.layer_norm_forward(x, weight, bias)
    moved, moved_saved = fa.layer_norm_forward(other(x), other(weight), other(bias))
    assert same_bits(moved, y)
    gradients = fa.layer_norm_backward(dy, saved)
    assert all(map(same_bits, fa.layer_norm_backward(other(dy), moved_saved), gradients))


@pytest.mark.usefixtures("isa")
def test_nan_and_infinity_stay_in_their_row(dtype, rng):
    x, _, weight, bias = sample(rng, dtype, 4, 21)
    clean = fa.layer_norm(x, weight, bias), fa.rms_norm(x, weight)
    x[1, 3], x[2, 20] = np.nan, np.inf
    for got, want in zip((fa.layer_norm(x, weight, bias), fa.rms_norm(x, weight)), clean, strict=True):
        assert np.isnan(got[1]).all()
        assert same_bits(got[[0, 3]], want[[0, 3]])
    assert np.isnan(fa.layer_norm(x, weight, bias)[2]).all()


@pytest.mark.usefixtures("isa")
def test_empty_arrays_give_empty_results_and_zero_sums(dtype):
    for shape in ((0, 5), (3, 0), (0, 0), (2, 0, 5)):
        n = shape[-1]
        x, weight = np.zeros(shape, dtype), np.ones(n, dtype)
        y, saved = fa.layer_norm_forward(x, weight, weight)
        dx, dweight, dbias = fa.layer_norm_backward(x, saved)
        assert y.shape == dx.shape == shape
        assert same_bits(dweight, np.zeros(n, dtype)) and same_bits(dbias, np.zeros(n, dtype))


def test_out_receives_the_result_also_in_place(dtype, rng):
    x, _, weight, bias = sample(rng, dtype, 4, 21)
    expected = fa.layer_norm(x, weight, bias)
    copy = x.copy()
    assert fa.layer_norm(copy, weight, bias, out=copy) is copy
    assert same_bits(copy, expected)
    overlapping = np.concatenate([x, x])
    fa.layer_norm(overlapping[:4], weight, bias, out=overlapping[1:5])
    assert same_bits(overlapping[1:5], expected)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones((2, 3)), np.ones(2)), {}, r"layer_norm: weight must have shape \(3,\).*got shape \(2,\)"),
        ((np.ones((2, 3)), None, np.ones((1, 3))), {}, r"layer_norm: bias must have 1 axes"),
        ((np.float64(1),), {}, r"layer_norm: x must have at least one axis"),
        ((np.ones(3),), {"eps": -1.0}, r"layer_norm: eps must be at least 0"),
        ((np.ones(3),), {"eps": np.nan}, r"layer_norm: eps must be at least 0"),
        ((np.ones(3),), {"out": np.ones(4)}, r"layer_norm: out must have shape \(3,\)"),
    ],
)
def test_wrong_values_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        fa.layer_norm(*arguments, **options)


def test_wrong_types_and_shapes_of_other_arguments_are_named():
    with pytest.raises(TypeError, match=r"layer_norm: weight must be float64 like the other arrays"):
        fa.layer_norm(np.ones(3), np.ones(3, np.float32))
    with pytest.raises(TypeError, match=r"rms_norm: x must be float32, float64, bfloat16 or float16.*int"):
        fa.rms_norm(np.ones(3, np.int64))
    with pytest.raises(ValueError, match=r"add_rms_norm: residual must have the shape of x"):
        fa.add_rms_norm(np.ones((2, 3)), np.ones(3))
    with pytest.raises(ValueError, match=r"layer_norm_backward: dy must have the shape of x"):
        fa.layer_norm_backward(np.ones(2), fa.layer_norm_forward(np.ones(3))[1])

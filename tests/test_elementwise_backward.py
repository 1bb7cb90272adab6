"""Gradients of the activations and of the gated silu."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

SIZES = [0, 1, 2, 3, 7, 8, 15, 16, 17, 63, 65, 1031, 40_000]


def gelu_tanh_backward(dy, x):
    return fa.gelu_backward(dy, x, approximate="tanh")


BACKWARD = {"relu": fa.relu_backward, "tanh": fa.tanh_backward, "sigmoid": fa.sigmoid_backward,
            "silu": fa.silu_backward, "gelu": fa.gelu_backward, "gelu_tanh": gelu_tanh_backward}  # fmt: skip
every_function = pytest.mark.parametrize("name", BACKWARD)


def sample(rng, dtype, n, width=1.0):
    """dy, x: numbers of float32, so that all types see the same."""
    return tuple((rng.standard_normal(n, np.float32) * np.float32(w)).astype(dtype) for w in (1, width))


@every_function
@pytest.mark.parametrize("width", [0.2, 1.0, 4.0])
@pytest.mark.usefixtures("isa")
def test_gradients_keep_the_error_rule(name, dtype, rng, width):
    rule = ErrorRule()
    for n in SIZES:
        dy, x = sample(rng, dtype, min(n, 4000), width)
        right = exact(dtype).activation_backward(name, dy, x)
        rule.add(BACKWARD[name](dy, x), plain.activation_backward(name, dy, x), right)
    rule.check(backward=True)


@pytest.mark.parametrize("part", [0, 1], ids=["dgate", "dup"])
@pytest.mark.usefixtures("isa")
def test_gradients_of_the_gated_silu_keep_the_error_rule(dtype, rng, part):
    rule = ErrorRule()
    for n in SIZES:
        dy, gate = sample(rng, dtype, n)
        up = sample(rng, dtype, n)[0]
        got = fa.silu_gated_backward(dy, gate, up)[part]
        yardstick = plain.silu_gated_backward(dy, gate, up)[part]
        rule.add(got, yardstick, exact(dtype).silu_gated_backward(dy, gate, up)[part])
    rule.check(backward=True)


@pytest.mark.usefixtures("isa")
def test_the_gated_silu_keeps_the_error_rule(dtype, rng):
    rule = ErrorRule()
    for n in SIZES:
        gate, up = sample(rng, dtype, n, 3)
        rule.add(fa.silu_gated(gate, up), plain.silu_gated(gate, up), exact(dtype).silu_gated(gate, up))
    rule.check()


@every_function
def test_gradients_equal_finite_differences_of_the_reference(name, rng):
    dy, x = rng.standard_normal((2, 200))
    x = x[np.abs(x) > 1e-3]
    f, step = reference.ACTIVATIONS[name], 1e-6
    slope = (f(x + step) - f(x - step)) / (2 * step)
    np.testing.assert_allclose(BACKWARD[name](np.ones_like(x), x), slope, rtol=0, atol=1e-8)
    np.testing.assert_allclose(reference.activation_backward(name, dy[: len(x)], x), dy[: len(x)] * slope, atol=1e-7)


@every_function
@pytest.mark.usefixtures("isa")
def test_ends_have_the_slopes_of_the_asymptotes(name, dtype):
    x = np.array([-np.inf, -1e30, np.finfo(dtype).min, np.inf, 1e30, np.finfo(dtype).max], dtype)
    right = 0.0 if name in ("tanh", "sigmoid") else 1.0
    got = BACKWARD[name](np.ones_like(x), x)
    assert got.tolist() == [0, 0, 0, right, right, right]
    assert np.isnan(BACKWARD[name](np.ones(1, dtype), np.array([np.nan], dtype))).all()
    assert np.isnan(BACKWARD[name](np.array([np.nan], dtype), np.ones(1, dtype))).all()


@every_function
@pytest.mark.usefixtures("isa")
def test_a_gradient_does_not_depend_on_threads_layout_or_lane(name, rng):
    dy, x = sample(rng, np.dtype(np.float32), 50_001)
    with fa.num_threads(1):
        expected = BACKWARD[name](dy, x)
    for threads in (2, 3):
        with fa.num_threads(threads):
            assert same_bits(BACKWARD[name](dy, x), expected)
    assert same_bits(BACKWARD[name](dy[7:], x[7:]), expected[7:])
    for other in LAYOUTS.values():
        assert same_bits(BACKWARD[name](other(dy[:37]), other(x[:37])), expected[:37])


@pytest.mark.usefixtures("isa")
def test_the_gated_silu_does_not_depend_on_threads_layout_or_lane(rng):
    gate, up = sample(rng, np.dtype(np.float32), 50_001)
    with fa.num_threads(1):
        y, gradients = fa.silu_gated(gate, up), fa.silu_gated_backward(up, gate, up)
    with fa.num_threads(2):
        assert same_bits(fa.silu_gated(gate, up), y)
        assert all(map(same_bits, fa.silu_gated_backward(up, gate, up), gradients))
    assert same_bits(fa.silu_gated(gate[5:], up[5:]), y[5:])
    for other in LAYOUTS.values():
        assert same_bits(fa.silu_gated(other(gate[:37]), other(up[:37])), y[:37])


@pytest.mark.usefixtures("isa")
def test_the_gated_silu_goes_into_out_also_in_place(rng):
    gate, up = sample(rng, np.dtype(np.float64), 37)
    expected = fa.silu_gated(gate, up)
    for which in (0, 1):
        arrays = [gate.copy(), up.copy()]
        assert fa.silu_gated(*arrays, out=arrays[which]) is arrays[which]
        assert same_bits(arrays[which], expected)
    both = np.concatenate([gate, up])
    fa.silu_gated(both[:37], both[37:], out=both[20:57])
    assert same_bits(both[20:57], expected)


@pytest.mark.usefixtures("isa")
def test_the_gated_silu_of_16_bits_rounds_once(rng):
    bf16 = pytest.importorskip("ml_dtypes").bfloat16
    for kind in (np.float16, bf16):
        gate, up = (x.astype(kind) for x in sample(rng, np.float32, 300, 2))
        wide = fa.silu_gated(gate.astype(np.float32), up.astype(np.float32))
        assert same_bits(fa.silu_gated(gate, up).view(np.uint16), wide.astype(kind).view(np.uint16))


def test_wrong_arguments_are_named():
    one = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"gelu_backward: approximate must be one of 'none', 'tanh', got 'erf'"):
        fa.gelu_backward(one, one, approximate="erf")
    with pytest.raises(ValueError, match=r"relu_backward: dy must have the shape of x, \(3,\), got shape \(2,\)"):
        fa.relu_backward(one[:2], one)
    with pytest.raises(TypeError, match=r"silu_backward: dy must be float32 like the other arrays"):
        fa.silu_backward(one.astype(np.float64), one)
    with pytest.raises(TypeError, match=r"tanh_backward: x must be float32, float64"):
        fa.tanh_backward(one, np.ones(3, int))
    with pytest.raises(ValueError, match=r"silu_gated: up must have the shape of gate"):
        fa.silu_gated(one, one[:2])
    with pytest.raises(ValueError, match=r"silu_gated_backward: dy must have the shape of gate"):
        fa.silu_gated_backward(one[:2], one, one)

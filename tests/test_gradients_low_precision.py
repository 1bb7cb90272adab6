"""Gradients of linear, element-wise functions, embedding and cross-entropy on bfloat16 and float16 arrays, and norms of
them with float32 weights: float32 arithmetic, rounded once."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import _core, reference
from tests.arrays import LAYOUTS
from tests.low_precision import LOW, LowPrecisionRule, Rounded, same
from tests.test_linear_backward import ACTIVATIONS

SIZES = [0, 1, 2, 7, 16, 17, 511, 512, 513, 1031, 40_000]
GRADIENTS = {
    "relu": fa.relu_backward,
    "tanh": fa.tanh_backward,
    "sigmoid": fa.sigmoid_backward,
    "silu": fa.silu_backward,
    "gelu": fa.gelu_backward,
    "gelu_tanh": lambda dy, x: fa.gelu_backward(dy, x, approximate="tanh"),
}


@pytest.fixture(params=LOW.values(), ids=LOW)
def low(request):
    """Runs the test with each 16-bit type."""
    return request.param


def wide(*arrays):
    return [None if x is None else x.astype(np.float32) for x in arrays]


def draw(rng, low, *shapes):
    return [rng.standard_normal(shape, np.float32).astype(low) for shape in shapes]


# ---- element-wise ----


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_functions_are_the_rounded_ones_of_float32(isa, low, threads, name, rng):
    for n in SIZES:
        dy, x = draw(rng, low, n, n)
        assert same(GRADIENTS[name](dy, x), GRADIENTS[name](*wide(dy, x)).astype(low))


def test_gradients_of_the_gated_silu_are_the_rounded_ones_of_float32(isa, low, threads, rng):
    for n in SIZES:
        arrays = draw(rng, low, n, n, n)
        for got, want in zip(fa.silu_gated_backward(*arrays), fa.silu_gated_backward(*wide(*arrays)), strict=True):
            assert same(got, want.astype(low))


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_gradients_of_functions_keep_the_error_rule(isa, low, name, rng):
    rule = LowPrecisionRule()
    for n in (3, 1031, 4000):
        dy, x = draw(rng, low, n, n)
        yardstick = Rounded(low).activation_backward(name, dy, x)
        rule.add(GRADIENTS[name](dy, x), yardstick, reference.activation_backward(name, dy, x))
    rule.check(backward=True)


# ---- linear ----

LINEAR = [(1, 1, 1), (2, 3, 5), (7, 17, 33), (1, 130, 257), (100, 65, 64), (97, 300, 40), (230, 40, 130)]


def linear_sample(rng, low, M, N, K):
    x, weight, bias, dy = draw(rng, low, (M, K), (N, K), N, (M, N))
    return x, (weight / low.type(K**0.5)).astype(low), bias, dy


def linear_gradients(x, weight, bias, dy, activation):
    return fa.linear_backward(dy, fa.linear_forward(x, weight, bias, activation=activation)[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_pair_of_linear_gives_the_bits_of_the_plain_call(isa, low, activation, rng):
    for size in LINEAR:
        x, weight, bias, _ = linear_sample(rng, low, *size)
        for b in (bias, None):
            y, saved = fa.linear_forward(x, weight, b, activation=activation)
            assert same(y, fa.linear(x, weight, b, activation=activation))
            if activation not in (None, "relu"):
                assert same(saved.z, fa.linear(x, weight, b))


@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
def test_gradients_of_linear_are_the_rounded_ones_of_float32(isa, low, threads, activation, rng):
    for size in LINEAR:
        x, weight, bias, dy = linear_sample(rng, low, *size)
        _, saved = fa.linear_forward(x, weight, bias, activation=activation)
        z = None if saved.z is None else saved.z.astype(np.float32)
        wanted = fa.linear_backward(*wide(dy), saved._replace(x=wide(x)[0], weight=wide(weight)[0], z=z))
        for got, want in zip(fa.linear_backward(dy, saved), wanted, strict=True):
            assert same(got, want.astype(low))


@pytest.mark.parametrize("part", [0, 1, 2], ids=["dx", "dweight", "dbias"])
def test_gradients_of_linear_keep_the_error_rule(isa, low, part, rng):
    rule = LowPrecisionRule()
    for size in [*LINEAR, (20, 900, 3)]:
        x, weight, bias, dy = linear_sample(rng, low, *size)
        got = linear_gradients(x, weight, bias, dy, "gelu")[part]
        yardstick = Rounded(low).linear_backward(dy, x, weight, bias, "gelu")[part]
        rule.add(got, yardstick, reference.linear_backward(dy, x, weight, bias, "gelu")[part])
    rule.check(backward=True)


def test_gradients_of_linear_do_not_depend_on_memory_layout(low, rng):
    arrays = linear_sample(rng, low, 21, 19, 37)
    expected = linear_gradients(*arrays, "silu")
    for other in LAYOUTS.values():
        assert all(map(same, linear_gradients(*map(other, arrays), "silu"), expected))


def test_dx_of_linear_is_added_to_and_dweight_goes_into_columns(low, rng):
    x, weight, _, dy = linear_sample(rng, low, 70, 40, 33)
    (total,) = draw(rng, low, x.shape)
    start, dx = total.astype(np.float32), wide(total)[0].copy()
    of_float = _core.linear_backward(*wide(dy, x, weight), None, None, True, True, dx, "test")
    columns = np.full((40, 50), 7, low)
    got = _core.linear_backward(dy, x, weight, None, None, True, True, total, "test", columns[:, 5:38])
    assert got[0] is total
    assert not same(total, start.astype(low))
    assert all(same(a, b.astype(low)) for a, b in zip(got, of_float, strict=True))
    assert (columns[:, :5] == 7).all()
    assert (columns[:, 38:] == 7).all()


def test_sizes_of_linear_may_be_zero(isa, low):
    for m, n, k in ((0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 0, 0)):
        shapes = ((m, k), (n, k), (n,), (m, n))
        for activation in (None, "gelu"):
            dx, dweight, dbias = linear_gradients(*(np.ones(shape, low) for shape in shapes), activation)
            assert same(dx, np.zeros((m, k), low))
            assert same(dweight, np.zeros((n, k), low))
            assert dbias.shape == (n,)


# ---- embedding, cross-entropy ----


def test_gradients_of_the_embedding_are_the_rounded_sums(isa, low, threads, rng):
    for count, rows, n in ((0, 3, 4), (1, 1, 1), (500, 7, 65), (9, 300, 130)):
        ids = rng.integers(0, rows, count)
        dy, table = draw(rng, low, (count, n), (rows, n))
        _, saved = fa.embedding_forward(ids, table)
        assert same(fa.embedding_backward(dy, saved), fa.embedding_backward(*wide(dy), saved).astype(low))


@pytest.mark.parametrize("smoothing", [0.0, 0.125])
def test_cross_entropy_is_the_rounded_one_of_float32(isa, low, threads, smoothing, rng):
    for rows, n in ((0, 4), (1, 1), (3, 2), (300, 97), (2, 40_001)):
        logits, dloss = draw(rng, low, (rows, n), (rows,))
        targets = np.where(rng.random(rows) < 0.1, -100, rng.integers(0, n, rows))
        for reduction, gradient in (("none", dloss), ("mean", 0.5), ("sum", 2.0)):
            options = {"label_smoothing": smoothing, "reduction": reduction}
            loss, saved = fa.cross_entropy_forward(logits, targets, **options)
            want, wide_saved = fa.cross_entropy_forward(*wide(logits), targets, **options)
            assert loss.dtype == low
            assert same(np.asarray(loss), np.asarray(want).astype(low))
            got = fa.cross_entropy_backward(gradient, saved)
            wide_gradient = wide(gradient)[0] if reduction == "none" else gradient
            assert same(got, fa.cross_entropy_backward(wide_gradient, wide_saved).astype(low))


def test_cross_entropy_keeps_the_error_rule(isa, low, rng):
    forward, backward = LowPrecisionRule(), LowPrecisionRule()
    for rows, n in ((300, 33), (200, 130)):
        logits, dloss = draw(rng, low, (rows, n), (rows,))
        targets = rng.integers(0, n, rows)
        loss, saved = fa.cross_entropy_forward(logits, targets, reduction="none")
        forward.add(loss, Rounded(low).cross_entropy(logits, targets), reference.cross_entropy(logits, targets))
        arguments = (dloss, logits, targets)
        backward.add(fa.cross_entropy_backward(dloss, saved), Rounded(low).cross_entropy_backward(*arguments),
                     reference.cross_entropy_backward(*arguments))  # fmt: skip
    forward.check()
    backward.check(backward=True)


# ---- norms with float32 weights ----


def norms(kind, x, weight, bias, residual, dy, dsum):
    """y, sum, mean, rstd, then the gradients, of a norm."""
    if kind == "layer":
        y, saved = fa.layer_norm_forward(x, weight, bias, residual=residual)
        return [y, saved.x, saved.mean, saved.rstd, *fa.layer_norm_backward(dy, saved, dsum=dsum)]
    y, saved = fa.rms_norm_forward(x, weight, residual=residual)
    return [y, saved.x, saved.rstd, *fa.rms_norm_backward(dy, saved, dsum=dsum)]


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("added", [False, True], ids=["plain", "residual"])
def test_float32_weights_of_few_digits_give_the_bits_of_16_bit_ones(isa, low, threads, kind, added, rng):
    for rows, n in ((0, 3), (1, 1), (5, 7), (70, 33), (3, 1025), (300, 64)):
        x, weight, bias, residual, dy, dsum = draw(rng, low, (rows, n), n, n, (rows, n), (rows, n), (rows, n))
        rest = (residual, dy, dsum) if added else (None, dy, None)
        expected = norms(kind, x, weight, bias, *rest)
        got = norms(kind, x, *wide(weight, bias), *rest)
        of_columns = 1 if kind == "rms" else 2
        for a, b in zip(got[:-of_columns], expected[:-of_columns], strict=True):
            assert same(a, b) if a.dtype == low else np.array_equal(a, b)
        for a, b in zip(got[-of_columns:], expected[-of_columns:], strict=True):
            assert a.dtype == np.float32
            assert same(a.astype(low), b)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_float32_weights_of_norms_count_in_full(isa, low, kind, rng):
    x, dy = draw(rng, low, (40, 300), (40, 300))
    weight, bias = rng.standard_normal((2, 300), np.float32)
    got = norms(kind, x, weight, bias, None, dy, None)
    wanted = norms(kind, wide(x)[0], weight, bias, None, wide(dy)[0], None)
    for a, b in zip(got, wanted, strict=True):
        if a is not x:
            assert same(a, b.astype(a.dtype)) if a.dtype == low else np.array_equal(a, b)


def test_plain_norms_take_float32_weights_too(low, rng):
    (x,), weight = draw(rng, low, (9, 33)), rng.standard_normal(33, np.float32)
    assert same(fa.layer_norm(x, weight, weight), fa.layer_norm_forward(x, weight, weight)[0])
    assert same(fa.rms_norm(x, weight), fa.rms_norm_forward(x, weight)[0])
    out = x.copy()
    assert fa.rms_norm(out, weight, out=out) is out
    assert same(out, fa.rms_norm(x, weight))


# ---- wrong input ----


def test_mixed_types_are_named(low):
    one = np.ones((2, 3), low)
    full = one.astype(np.float32)
    with pytest.raises(TypeError, match=r"gelu_backward: dy must be b?float16 like the other arrays, got float32"):
        fa.gelu_backward(full, one)
    with pytest.raises(TypeError, match=r"linear_backward: dy must be b?float16 like the other arrays, got float32"):
        fa.linear_backward(full, fa.linear_forward(one, one[:, :3])[1]._replace(weight=np.ones((3, 3), low)))
    _, saved = fa.cross_entropy_forward(one, [0, 1], reduction="none")
    with pytest.raises(TypeError, match=r"cross_entropy_backward: dloss must be b?float16 like the other arrays"):
        fa.cross_entropy_backward(full[:, 0], saved)
    with pytest.raises(TypeError, match=r"layer_norm: bias must be float32 like the other arrays, got b?float16"):
        fa.layer_norm(one, full[0], one[0])
    with pytest.raises(TypeError, match=r"layer_norm: weight must be b?float16 like the other arrays, got float64"):
        fa.layer_norm(one, np.ones(3))
    with pytest.raises(TypeError, match=r"rms_norm: weight must be float32 like the other arrays, got b?float16"):
        fa.rms_norm(full, one[0])

"""Numbers at the ends of the range of their type: what is finite by the plain formula is finite, and right.

Large values are compared with those of the same call on values scaled down by a power of two, which is exact.
"""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits
from tests.low_precision import BFLOAT16
from tests.specification import plain

DOWN = 2.0**-60
LARGEST = {np.dtype(np.float32): np.finfo(np.float32).max, np.dtype(np.float64): np.finfo(np.float64).max,
           BFLOAT16: 3.38e38}  # fmt: skip
TYPES = list(LARGEST)
SHAPES = [(1, 4, 1, 1), (3, 300, 2, 1), (20, 700, 4, 2), (150, 600, 2, 2), (500, 40, 1, 1)]
OPTIONS = [{}, {"causal": "bottom-right"}, {"window": (30, 3)}, {"softcap": 2.0}]


def large_values(rng, shape, dtype):
    """Between 0.3 and 1 of the largest number, of both signs; columns of the largest one, of tiny ones and of ones."""
    v = np.sign(rng.standard_normal(shape)) * (0.3 + 0.7 * rng.random(shape)) * LARGEST[dtype]
    v[..., 0] = LARGEST[dtype]
    v[..., 1] = 1e-30
    v[..., 2] = 1
    return v.astype(dtype)


def assert_means(out, v, small):
    """`small`: the same of v DOWN. A mean of large numbers keeps the error of their sum."""
    got, right = out.astype(np.longdouble) * DOWN, small.astype(np.longdouble)
    largest = np.longdouble(LARGEST[v.dtype]) * DOWN
    assert np.isfinite(out.astype(np.float64)).all()
    bound = 2.0**-6 if v.dtype == BFLOAT16 else 200 * np.finfo(v.dtype).eps
    columns = [c for c in range(v.shape[-1]) if c not in (1, 2)]
    assert (np.abs(got - right)[..., columns] <= bound * largest).all()


def scaled_down(v):
    return (v.astype(np.float64) * DOWN).astype(v.dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("queries", "keys", "heads", "kv_heads"), SHAPES)
def test_a_mean_of_large_values_is_finite(rng, strategy, dtype, queries, keys, heads, kv_heads):
    q, k = (rng.standard_normal((2, h, n, 24)).astype(dtype) for h, n in ((heads, queries), (kv_heads, keys)))
    v = large_values(rng, (2, kv_heads, keys, 9), dtype)
    options = OPTIONS[rng.integers(len(OPTIONS))]
    assert_means(fa.attention(q, k, v, **options), v, fa.attention(q, k, scaled_down(v), **options))
    sinks = rng.standard_normal(heads).astype(dtype)
    assert_means(fa.attention(q, k, v, sinks=sinks), v, fa.attention(q, k, scaled_down(v), sinks=sinks))


@pytest.mark.usefixtures("isa")
def test_large_values_change_no_bit_of_other_columns_and_rows(rng, strategy, dtype):
    q, k = rng.standard_normal((1, 2, 130, 16)).astype(dtype), rng.standard_normal((1, 2, 600, 16)).astype(dtype)
    v = large_values(rng, (1, 2, 600, 40), dtype)
    v[..., 3:] = rng.standard_normal(v[..., 3:].shape)
    ordinary = v.copy()
    ordinary[..., 0] = 1
    out, lse = fa.attention(q, k, v, return_lse=True)
    expected, expected_lse = fa.attention(q, k, ordinary, return_lse=True)
    assert same_bits(out[..., 1:], expected[..., 1:])
    assert same_bits(lse, expected_lse)


@pytest.mark.usefixtures("isa")
def test_rows_of_large_values_do_not_depend_on_batch_and_threads(rng, dtype):
    q, k = rng.standard_normal((3, 2, 100, 16)).astype(dtype), rng.standard_normal((3, 2, 300, 16)).astype(dtype)
    v = large_values(rng, (3, 2, 300, 24), dtype)
    v[1] = 1
    expected = fa.attention(q, k, v)
    for b in range(3):
        for threads in (1, 3):
            with fa.num_threads(threads):
                assert same_bits(fa.attention(q[b : b + 1], k[b : b + 1], v[b : b + 1]), expected[b : b + 1])
                few = fa.attention(q[b : b + 1, :, 7:9], k[b : b + 1], v[b : b + 1])
                assert same_bits(few, expected[b : b + 1, :, 7:9])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinities_beside_large_values_stay_what_they_are(rng, strategy, value):
    q, k = rng.standard_normal((1, 1, 30, 16)).astype("f4"), rng.standard_normal((1, 1, 80, 16)).astype("f4")
    v = large_values(rng, (1, 1, 80, 9), np.dtype(np.float32))
    clean = fa.attention(q, k, v)
    v[0, 0, 40, 4] = value
    out = fa.attention(q, k, v)
    assert np.array_equal(out[..., 4], np.full(out[..., 4].shape, value), equal_nan=True)
    assert same_bits(np.delete(out, 4, -1), np.delete(clean, 4, -1))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kept", ["float32", "int8"])
@pytest.mark.parametrize("page_size", [None, 33])
def test_a_cache_of_large_values_gives_finite_means(rng, kept, page_size):
    k, v = rng.standard_normal((1, 2, 300, 16)).astype("f4"), large_values(rng, (1, 2, 300, 9), np.dtype(np.float32))
    q = rng.standard_normal((1, 4, 3, 16)).astype("f4")
    outs = []
    for values in (v, scaled_down(v)):
        cache = fa.KVCache(1, 2, 16, v_dim=9, dtype=kept, page_size=page_size)
        cache.append(k, values)
        outs.append(cache.attend(q))
    assert_means(outs[0], v, outs[1])


@pytest.mark.usefixtures("isa")
def test_ragged_batches_of_large_values_give_finite_means(rng, dtype):
    starts = np.array([0, 3, 3, 40])
    q, k = (rng.standard_normal((40, 2, 8)).astype(dtype) for _ in range(2))
    v = large_values(rng, (40, 2, 9), dtype)
    assert_means(fa.attention_varlen(q, k, v, starts, starts), v,
                 fa.attention_varlen(q, k, scaled_down(v), starts, starts))  # fmt: skip


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("page_size", [1, 7, 15, 17, 33, 50])
@pytest.mark.parametrize(("head_dim", "v_dim"), [(24, 40), (64, 64), (3, 5), (128, 16)])
def test_int8_does_not_depend_on_where_pages_end(rng, page_size, head_dim, v_dim):
    tokens = int(rng.choice([1, 15, 16, 17, 81, 530]))
    k, v = (rng.standard_normal((1, 2, tokens, n)).astype("f4") for n in (head_dim, v_dim))
    whole, pages = (fa.KVCache(1, 2, head_dim, v_dim=v_dim, dtype="int8", page_size=size) for size in (None, page_size))
    for cache in (whole, pages):
        cache.append(k, v)
    for queries in (1, 4):
        q = rng.standard_normal((1, 4, queries, head_dim)).astype("f4")
        for options in ({}, {"causal": "bottom-right", "window": (int(rng.integers(1, 40)), 0)}):
            out = pages.attend(q, **options)
            assert np.isfinite(out).all()
            assert same_bits(out, whole.attend(q, **options))


ROW = np.array([[1, -0.5, 0.25, -1]])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("columns", [4, 37, 5000])
def test_rows_of_any_finite_size_have_a_norm(rng, norm, dtype, columns):
    row = np.tile(ROW, (3, columns // 4 + 1))[:, :columns]
    x = (row * 1.5).astype(dtype)
    weight = (1 + rng.random(columns)).astype(dtype)
    expected = getattr(fa, norm)(x, weight, eps=0.0).astype(np.float64)
    accuracy = 2.0**-8 if dtype == BFLOAT16 else np.finfo(dtype).eps
    for share in (2.0**-64, 2.0**-40, 2.0**-10, 0.6):
        large = (row * LARGEST[dtype] * share).astype(dtype)
        saved = getattr(fa, f"{norm}_forward")(large, weight, eps=0.0)
        for y in (getattr(fa, norm)(large, weight, eps=0.0), saved[0]):
            assert (np.abs(y.astype(np.float64) - expected) <= 16 * accuracy * np.abs(expected).max()).all()
        added, total = getattr(fa, f"add_{norm}")(large, np.zeros_like(large), weight, eps=0.0)
        assert same_bits(added.astype(np.float64), saved[0].astype(np.float64))
        assert same_bits(total.astype(np.float64), large.astype(np.float64))


def test_the_norm_of_large_rows_is_that_of_small_ones():
    y = fa.rms_norm((ROW * 2e19).astype("f4"))
    assert np.allclose(y, ROW / np.sqrt((ROW**2).mean()), rtol=1e-6, atol=0)


@pytest.mark.usefixtures("isa")
def test_smoothed_losses_of_extreme_logits_are_right(dtype):
    def loss(row, smoothing=0.1):
        return fa.cross_entropy(np.array([row], dtype), np.array([0]), label_smoothing=smoothing)

    largest = float(LARGEST[dtype]) * 0.9
    assert loss([1, -np.inf, 2, 3]) == np.inf
    assert loss([-np.inf, 0, 0]) == np.inf
    for n in (2, 4, 7, 100):
        for level in (largest, -largest, 1.1e10, 3e5, 0):
            assert np.isclose(loss([level] * n), np.log(n), rtol=4 * np.finfo(dtype).eps)
    assert np.isnan(loss([np.nan, 0]))
    logits = np.array([[0.5, -largest, 2]], dtype)
    assert np.isclose(loss(logits[0]), plain.cross_entropy(logits, np.array([0]), 0.1)[0], rtol=1e-5)


@pytest.mark.usefixtures("isa")
def test_sinks_and_slopes_of_any_finite_size_are_finite_in_the_softmax(rng, strategy, dtype):
    q, k, v = (rng.standard_normal((1, 2, n, 8)).astype(dtype) for n in (12, 20, 20))
    largest = LARGEST[dtype]
    for name in ("sinks", "alibi_slopes"):
        for value in (largest, -largest, largest / 2, 1e-45, 0):
            option = {name: np.full(2, value, dtype)}
            with np.errstate(all="ignore"):
                expected, _ = plain.attention(q, k, v, **option)
            out = fa.attention(q, k, v, **option)
            assert np.array_equal(np.isfinite(out), np.isfinite(expected)), (name, value)
            known = np.isfinite(expected)
            assert np.allclose(out[known], expected[known], rtol=1e-4, atol=1e-5), (name, value)


def large_logits(rng, dtype):
    """Rows of one size, anything up to the largest number: equal or not, of one sign or both, some with -inf."""
    top = np.log10(float(LARGEST[dtype]))
    size = 10 ** rng.uniform(0, top - 0.1)
    x = rng.choice([-1, 1], (4, int(rng.integers(1, 70)))) * size * rng.choice([1, 1 - 2.0**-7, 0.3], (4, 1))
    x[0] = size
    x[1] = -size
    x[2, rng.random(x.shape[1]) < 0.3] *= 1 - 2.0**-8
    return x.astype(dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("log", [False, True])
def test_softmax_of_logits_of_any_size_at_any_scale_is_that_of_the_plain_formula(rng, dtype, log):
    own, other = (fa.log_softmax, plain.log_softmax) if log else (fa.softmax, plain.softmax)
    real = np.dtype(np.float32) if dtype == BFLOAT16 else dtype
    accuracy, eps = 2.0**-7 if dtype == BFLOAT16 else 64 * np.finfo(real).eps, np.finfo(real).eps
    for draw in range(60):
        scale, x = float(10 ** rng.uniform(-30, 30) * rng.choice([-1, 1])), large_logits(rng, dtype)
        if draw % 3 == 0:
            x[rng.random(x.shape) < 0.2] = -np.inf if scale > 0 else np.inf
        x, axis = (x, 1) if draw % 2 else (np.ascontiguousarray(x.T), 0)
        with np.errstate(all="ignore"):
            wide = x.astype(real)
            right = other(wide, axis, scale)
            # Two roundings of the largest product, while its fractions count.
            top = np.abs((wide * real.type(scale)).max(axis, keepdims=True)).astype(np.float64)
            noise = np.where(top < (2.0**24 if real == np.float32 else 2.0**50), 2 * eps * top, 0)
        got = own(x, axis=axis, scale=scale).astype(np.float64)
        assert np.array_equal(np.isnan(got), np.isnan(right))
        known = np.isfinite(right)
        assert np.array_equal(got[~known], right[~known].astype(np.float64), equal_nan=True)
        got, right, noise = got[known], right[known], np.broadcast_to(noise, got.shape)[known]
        bound = accuracy * (1 + np.abs(right)) + (noise if log else right * np.expm1(noise))
        assert (np.abs(got - right) <= bound).all()


@pytest.mark.usefixtures("isa")
def test_losses_of_logits_of_any_size_are_those_of_the_plain_formula(rng, dtype):
    for draw in range(60):
        x, smoothing = large_logits(rng, dtype), (0.0, 0.1, 1.0)[draw % 3]
        targets = rng.integers(0, x.shape[1], len(x))
        with np.errstate(all="ignore"):
            right = plain.cross_entropy(x, targets, smoothing)
            slopes = plain.cross_entropy_backward(np.ones(4, dtype), x, targets, smoothing)
        options = {"label_smoothing": smoothing, "reduction": "none"}
        loss, saved = fa.cross_entropy_forward(x, targets, **options)
        for got in (loss, fa.cross_entropy(x, targets, **options)):
            assert np.allclose(got, right, rtol=accuracy_of(dtype), atol=accuracy_of(dtype))
        assert np.allclose(fa.cross_entropy_backward(np.ones(4, dtype), saved), slopes, atol=accuracy_of(dtype))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("wanted", [None, ["mask"]])
def test_gradients_of_attention_are_finite_where_those_of_the_plain_formula_are(rng, dtype, wanted):
    """Sums of dS K before the scale would overflow."""
    largest = float(LARGEST[dtype])
    for draw in range(12):
        queries, keys, size = (int(rng.integers(1, n)) for n in (20, 300, 40))
        scale = (0.125, float(10 ** rng.uniform(-20, 0)))[draw % 2]
        q, k, v, dout = (rng.standard_normal((1, 2, n, d)).astype(dtype) for n, d in
                         ((queries, size), (keys, size), (keys, 5), (queries, 5)))  # fmt: skip
        q, k = q / dtype.type(np.sqrt(scale)), k / dtype.type(np.sqrt(scale))
        mask = np.zeros((queries, keys), dtype)
        right = plain.attention_backward(dout, q, k, v, scale=scale, mask=mask)[:2]
        top = max(float(np.abs(g).max()) for g in right)
        factor = dtype.type(2.0 ** np.floor(np.log2(largest / max(2 * top, 2.0**12))))
        saved = fa.attention_forward(q, k, v, scale=scale, mask=mask)[1]
        ordinary = fa.attention_backward(dout, saved, gradients=wanted)
        large = fa.attention_backward(dout * factor, saved, gradients=wanted)
        if wanted:
            large, ordinary = ((g.dq, g.dk) for g in (large, ordinary))
        for got, small in list(zip(large, ordinary, strict=True))[:2]:
            assert np.isfinite(got).all()
            assert np.allclose(got / factor, small, rtol=1e-5, atol=1e-30)


@pytest.mark.usefixtures("isa")
def test_row_sums_that_overflow_are_infinite(dtype):
    largest = LARGEST[dtype]
    dy, ly = np.full((1, 9), largest, dtype), np.full((1, 9), -2, dtype)
    assert (fa.log_softmax_backward(dy, ly) == -np.inf).all()
    assert (fa.softmax_backward(dy, np.ones_like(dy)) == -np.inf).all()


EXTREMES = [0.0, 5e-324, 1e-310, 1e-46, 1e-45, 1e-40, 1e-38, 1e-20, 1e-12, 1e12, 1e20, 1e38, 2.5e38, 3.5e38, 1e39,
            1e300, 1e308]  # fmt: skip


def accuracy_of(dtype):
    return 1e-4 if dtype == np.float32 else 1e-11


def right_or_refused(name, number, own, other, *arguments, accuracy, **options):
    """own equals other with the option, or a ValueError names it."""
    options[name] = number
    try:
        got = np.asarray(own(*arguments, **options))
    except ValueError as error:
        assert f": {name}" in str(error)
        return
    with np.errstate(all="ignore"):
        right = np.asarray(other(*arguments, **options))
    assert np.array_equal(np.isfinite(got), np.isfinite(right))
    known = np.isfinite(right)
    assert (np.abs(got - right)[known] <= accuracy * np.maximum(1, np.abs(right[known]))).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("number", EXTREMES)
def test_extreme_options_of_attention_are_right_or_refused(rng, dtype, number):
    def other(*arguments, **options):
        return plain.attention(*arguments, **options)[0]

    q, k, v = (rng.standard_normal((1, 2, n, 8)).astype(dtype) for n in (12, 20, 20))
    for queries in (1, 12):
        arguments, accuracy = (fa.attention, other, q[:, :, :queries], k, v), accuracy_of(dtype)
        right_or_refused("softcap", number, *arguments, accuracy=accuracy)
        right_or_refused("scale", number, *arguments, accuracy=accuracy)
        right_or_refused("scale", -number, *arguments, accuracy=accuracy, softcap=2.0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("number", EXTREMES)
def test_extreme_options_of_rows_are_right_or_refused(rng, dtype, number):
    x, dy = rng.standard_normal((2, 3, 9)).astype(dtype)
    accuracy = accuracy_of(dtype)
    for name in ("softmax", "log_softmax"):
        for scale in (number, -number) if number <= 1 else ():
            own, other = getattr(fa, name), getattr(plain, name)
            right_or_refused("scale", scale, own, other, x, accuracy=accuracy)
            y, backward = own(x), f"{name}_backward"
            right_or_refused("scale", scale, getattr(fa, backward), getattr(plain, backward), dy, y, accuracy=accuracy)
    for name in ("layer_norm", "rms_norm"):
        right_or_refused("eps", number, getattr(fa, name), getattr(plain, name), x, accuracy=accuracy)
    if number <= 1:
        targets = np.array([0, 1, 2])
        loss = fa.cross_entropy(x, targets, label_smoothing=number, reduction="none")
        assert np.allclose(loss, plain.cross_entropy(x, targets, number), rtol=accuracy)


@pytest.mark.parametrize("number", EXTREMES)
def test_extreme_bases_and_clips_are_right_or_refused(rng, dtype, number):
    x = rng.standard_normal((3, 8)).astype(dtype)
    right_or_refused("base", number, fa.rope, plain.rope, x, np.arange(3), accuracy=1e-4)
    arguments = (rng.standard_normal(s).astype(dtype) for s in ((3, 8), (3, 4), (3, 4), (16, 8), (16, 4)))
    right_or_refused("clip", number, fa.lstm_cell, plain.lstm_cell, *arguments, accuracy=1e-4)


PAIRS = [isa for isa in ("avx512bf16", "amxbf16") if isa in fa.config.available_isas()]


@pytest.mark.skipif(not PAIRS, reason="no CPU that multiplies pairs")
def test_lse_of_rounded_probabilities_keeps_its_stated_bound(rng):
    for isa in PAIRS:
        with fa.config.use_isa(isa):
            for keys in (1, 2, 3, 17, 300):
                q, k, v = (rng.standard_normal((1, 4, n, 32)).astype(BFLOAT16) for n in (50, keys, keys))
                for queries in (1, 50):
                    part = q[:, :, :queries]
                    lse = fa.attention(part, k, v, return_lse=True)[1]
                    exact = plain.attention(*(x.astype(np.float64) for x in (part, k, v)))[1]
                    assert np.abs(lse - exact).max() <= 2.0**-8 + 2.0**-12

"""Scores of attention at the ends of their range: inputs that make finite scores by the plain formula."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits
from tests.low_precision import BFLOAT16
from tests.specification import plain

TYPES = [np.dtype(np.float32), np.dtype(np.float64), BFLOAT16]
TOP = {np.dtype(np.float32): 38, np.dtype(np.float64): 307, BFLOAT16: 38}
LARGEST_SCALE = {np.dtype(np.float32): 2.0**100, np.dtype(np.float64): 2.0**900, BFLOAT16: 2.0**100}
KINDS = ["scales", "queries", "scores", "small queries", "negative scores", "cancelling"]


def extreme(rng, kind, dtype, queries, keys, size):
    """q, k and the scale of one batch of two heads."""
    top = TOP[dtype]
    q, k = rng.standard_normal((1, 2, queries, size)), rng.standard_normal((1, 2, keys, size))
    scale = 1.0
    if kind == "scales":
        scale = LARGEST_SCALE[dtype] * rng.choice([-1, 1, 1e-3])
        k *= 10.0 ** -rng.uniform(0, 25)
    elif kind == "queries":
        power = rng.uniform(top - 3, top - 0.2)
        q, k, scale = q * 10.0**power, k * 10.0 ** (-power + rng.uniform(-2, 2)), 4.0
    elif kind == "scores":
        q, k = (x * 10 ** (top / 2) / np.sqrt(size) for x in (q, k))
    elif kind == "small queries":
        power = rng.uniform(0, top - 10)
        q, scale = q * 10.0**-power, min(10.0**power, LARGEST_SCALE[dtype])
    elif kind == "negative scores":  # in units of log2(e) all of them are -inf
        q, k = (
            s * np.sqrt(3.0 / size) * 10 ** (top / 2) * (0.9 + 0.1 * rng.random(x.shape)) for s, x in ((1, q), (-1, k))
        )
        scale = 1.0
    else:
        q[..., 0], k[..., 0], scale = 10.0**top, 10.0 ** -(top - 1), -2.0
    q, k = q.astype(dtype), k.astype(dtype)
    if dtype == BFLOAT16:  # subnormals count as 0 where it is multiplied in pairs
        for x in (q, k):
            x[np.abs(x.astype(np.float32)) < np.finfo(np.float32).tiny] = 0
    return q, k, scale


def options_of(rng, dtype, queries, keys):
    choices = [{}, {"causal": "bottom-right"}, {"softcap": 2.0}, {"sinks": rng.standard_normal(2).astype(dtype)},
               {"alibi_slopes": rng.random(2).astype(dtype)}, {"mask": rng.random((queries, keys)) < 0.7},
               {"mask": rng.standard_normal((queries, keys)).astype(dtype)}]  # fmt: skip
    return choices[rng.integers(len(choices))]


def widened(x):
    return x.astype(np.float32) if x.dtype == BFLOAT16 else x


def plainly(q, k, v, **options):
    options = {n: widened(x) if isinstance(x, np.ndarray) and x.dtype == BFLOAT16 else x for n, x in options.items()}
    with np.errstate(all="ignore"):
        return plain.attention(*(widened(x) for x in (q, k, v)), **options)


def assert_rows(got, right, known, accuracy):
    """Rows of which the plain formula has a finite lse, within a share of the largest value."""
    got, right = np.asarray(got, np.float64)[known], np.asarray(right, np.float64)[known]
    assert np.isfinite(got).all()
    assert (np.abs(got - right) <= accuracy * max(1, np.abs(right).max(initial=0))).all()


ACCURACY = {np.dtype(np.float32): 2e-3, np.dtype(np.float64): 1e-10, BFLOAT16: 2e-2}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_right_where_scores_of_the_plain_formula_are_finite(rng, strategy, kind, dtype):
    for queries, keys in ((1, 1), (3, 20), (20, 1), (40, 600)):
        for size in (1, 4, 24):
            q, k, scale = extreme(rng, kind, dtype, queries, keys, size)
            v = rng.standard_normal((1, 2, keys, 5)).astype(dtype)
            options = options_of(rng, dtype, queries, keys)
            right, right_lse = plainly(q, k, v, scale=scale, **options)
            known = np.isfinite(right_lse) & decided(q, k, scale, options)
            out, lse = fa.attention(q, k, v, scale=scale, return_lse=True, **options)
            assert_rows(out, right, known, ACCURACY[dtype])
            same = np.isclose(lse, right_lse, rtol=ACCURACY[dtype], atol=ACCURACY[dtype])
            assert same[known].all()


def decided(q, k, scale, options):
    """Rows whose scores, rounded, leave no doubt about the weights."""
    exact = np.longdouble(scale) * (q.astype(np.longdouble) @ k.astype(np.longdouble).swapaxes(-1, -2))
    size = np.abs(np.longdouble(scale)) * (
        np.abs(q).astype(np.longdouble) @ np.abs(k).astype(np.longdouble).swapaxes(-1, -2)
    )
    if options.get("softcap"):
        return size.max(-1) >= 0
    eps = np.finfo(np.float32 if q.dtype == BFLOAT16 else q.dtype).eps
    order = np.sort(exact, -1)
    gap = order[..., -1] - order[..., -2] if exact.shape[-1] > 1 else np.inf
    error = 64 * eps * size.max(-1)
    return (error < ACCURACY[q.dtype] / 8) | ((gap > 100 + error) & ("mask" not in options) & ("causal" not in options))


def large(dtype):
    """Numbers of a normal distribution times so much stay finite, and do not when they are scaled by 32."""
    return dtype.type(10.0 ** (TOP[dtype] - 0.5))


@pytest.mark.usefixtures("isa")
def test_extreme_rows_do_not_depend_on_others_and_change_none(rng, strategy, dtype):
    q, k = (rng.standard_normal((2, 2, n, 16)).astype(dtype) for n in (70, 300))
    v = rng.standard_normal((2, 2, 300, 8)).astype(dtype)
    k *= dtype.type(0.01)
    ordinary = fa.attention(q, k, v, scale=32.0)
    q[0, 1, 3] *= large(dtype)
    q[1, 0, 60:] *= large(dtype)
    out = fa.attention(q, k, v, scale=32.0)
    changed = np.zeros((2, 2, 70), bool)
    changed[0, 1, 3] = changed[1, 0, 60:] = True
    assert np.isfinite(out).all()
    assert same_bits(out[~changed], ordinary[~changed])
    if strategy == "fused":
        for threads in (1, 3):
            with fa.num_threads(threads):
                assert same_bits(fa.attention(q[1:, :, 58:63], k[1:], v[1:], scale=32.0), out[1:, :, 58:63])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("page_size", [None, 33])
@pytest.mark.parametrize("kept", ["float32", "int8"])
def test_a_cache_attends_to_scores_of_any_finite_size(rng, page_size, kept):
    k, v = (rng.standard_normal((1, 2, 90, n)).astype("f4") for n in (16, 9))
    k *= np.float32(0.01)
    cache = fa.KVCache(1, 2, 16, v_dim=9, dtype=kept, page_size=page_size)
    cache.append(k, v)
    if kept == "int8":
        k, v = (cache_values(x) for x in (k, v))
    for queries in (1, 4, 8):
        q = rng.standard_normal((1, 4, queries, 16)).astype("f4") * large(np.dtype(np.float32))
        right, _ = plainly(q, k, v, scale=32.0)
        out = cache.attend(q, scale=32.0)
        assert np.isfinite(out).all()
        assert np.allclose(out, right, atol=1e-5)


def cache_values(x):
    """As an int8 cache keeps them."""
    step = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    return np.rint(x / step).astype("f4") * step


@pytest.mark.usefixtures("isa")
def test_ragged_batches_attend_to_scores_of_any_finite_size(rng, dtype):
    starts = np.array([0, 3, 3, 40])
    q, k, v = (rng.standard_normal((40, 2, 8)).astype(dtype) for _ in range(3))
    q, k = q * large(dtype), k * dtype.type(0.01)
    out = fa.attention_varlen(q, k, v, starts, starts, scale=32.0)
    for first, end in ((0, 3), (3, 40)):
        own = (np.ascontiguousarray(x[None, first:end].swapaxes(1, 2)) for x in (q, k, v))
        assert same_bits(out[first:end].swapaxes(0, 1), fa.attention(*own, scale=32.0)[0])
    assert np.isfinite(out).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_weights_are_right_where_scores_of_the_plain_formula_are_finite(rng, kind, dtype):
    eps = np.finfo(dtype).eps
    for queries, keys in ((1, 1), (3, 20), (20, 300)):
        q, k, scale = extreme(rng, kind, dtype, queries, keys, 4)
        v, dout = (rng.standard_normal((1, 2, n, 5)).astype(dtype) for n in (keys, queries))
        with np.errstate(all="ignore"):
            right_lse = plainly(q, k, v, scale=scale)[1]
            right = plain.attention_backward(dout, q, k, v, scale=scale)
            p = plain.attention(q, k, np.broadcast_to(np.eye(keys, dtype=dtype), (1, 2, keys, keys)), scale=scale)[0]
        if not (np.isfinite(right_lse) & decided(q, k, scale, {})).all():
            continue
        _, saved = fa.attention_forward(q, k, v, scale=scale)
        got = fa.attention_backward(dout, saved)
        for one, other, factor in zip(got, right, (k, q, None), strict=True):
            # dS of a row that one key has to itself is 0 but for rounding.
            unit = 1 if factor is None else eps * 1e3 * float(np.abs(factor).max()) * abs(scale)
            finite = np.isfinite(other)
            assert np.isfinite(one[finite]).all()
            bound = ACCURACY[dtype] * np.maximum(np.abs(other[finite]), unit) + (unit if factor is not None else 0)
            assert (np.abs(one[finite].astype(np.longdouble) - other[finite]) <= bound).all()
        _, lse = fa.attention(q, k, v, scale=scale, return_lse=True)
        weights = fa.attention_weights(q, k, lse, scale=scale)
        assert np.isfinite(weights).all()
        if np.abs(lse).max() < 1e3:
            assert np.allclose(weights, p, atol=ACCURACY[dtype])


@pytest.mark.usefixtures("isa")
def test_gradients_with_a_scale_that_takes_them_out_of_range_are_infinite(rng, dtype):
    """scale dS is infinite, whatever it is multiplied with."""
    scale = LARGEST_SCALE[dtype]
    q = np.zeros((1, 1, 3, 4), dtype)
    k = (rng.random((1, 1, 5, 4)) * 1e-30 + 1e-31).astype(dtype)
    v = rng.standard_normal((1, 1, 5, 2)).astype(dtype)
    dout = np.full((1, 1, 3, 2), float(np.finfo(dtype).max) / scale * 1e6, dtype)
    with np.errstate(all="ignore"):
        right = plain.attention_backward(dout, q, k, v, scale=scale)
    got = fa.attention_backward(dout, fa.attention_forward(q, k, v, scale=scale)[1])
    for one, other in zip(got, right, strict=True):
        assert np.array_equal(np.isfinite(one), np.isfinite(other))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_beside_extreme_rows(rng, dtype, value):
    q, k, v = (rng.standard_normal((1, 1, n, 16)).astype(dtype) for n in (40, 90, 90))
    k = np.abs(k) * dtype.type(0.01)
    q[0, 0, :20] *= large(dtype)
    q[0, 0, 5, 3] = value
    k[0, 0, 60, 2] = value
    mask = np.ones((40, 90), bool)
    mask[30:, 60] = False
    with np.errstate(all="ignore"):
        scores = q.astype(np.longdouble) @ k.astype(np.longdouble).swapaxes(-1, -2)
        spoilt = (~(scores < np.inf) & mask).any(-1)
    out = fa.attention(q, k, v, mask=mask, scale=32.0)
    assert np.array_equal(np.isnan(out).all(-1), spoilt)
    assert np.array_equal(np.isnan(out).any(-1), spoilt)

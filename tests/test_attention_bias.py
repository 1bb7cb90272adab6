"""bias: numbers added to the scores beside a mask of bool."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import LAYOUTS, same_bits
from tests.low_precision import BFLOAT16, FLOAT16
from tests.test_attention_backward import Comparison, arrays

ANY_DTYPE = [np.dtype(np.float32), np.dtype(np.float64), BFLOAT16, FLOAT16]
SHAPES = [(281,), (110, 1), (2, 1, 110, 281), (4, 110, 281), (2, 4, 110, 281), (1, 4, 1, 281)]


@pytest.fixture(params=ANY_DTYPE, ids=str)
def any_dtype(request):
    return request.param


def drawn(rng, dtype, Lq=110, Lk=281):
    return arrays(rng, dtype, B=2, H=4, Hk=2, Lq=Lq, Lk=Lk, D=24, Dv=16)


def drawn_bias(rng, dtype, shape):
    bias = rng.standard_normal(shape)
    return np.where(rng.random(shape) < 0.1, -np.inf, bias).astype(dtype)


def joined(mask, bias):
    """Both as one mask of numbers."""
    return np.where(mask, bias, bias.dtype.type(-np.inf))


def test_a_bias_alone_is_a_mask_of_numbers(isa, strategy, any_dtype, rng):
    if strategy == "blas" and any_dtype.itemsize == 2:
        pytest.skip("16-bit arrays have one strategy")
    dout, q, k, v = drawn(rng, any_dtype)
    for shape in SHAPES:
        bias = drawn_bias(rng, any_dtype, shape)
        out, saved = fa.attention_forward(q, k, v, bias=bias)
        expected, kept = fa.attention_forward(q, k, v, mask=bias)
        assert same_bits(out, expected) and same_bits(saved.lse, kept.lse)
        got = fa.attention_backward(dout, saved, gradients=["bias"])
        right = fa.attention_backward(dout, kept, gradients=["mask"])
        assert all(map(same_bits, got[:4], right[:4])) and got.dbias is got.dmask


def test_a_bias_beside_a_mask_has_the_bits_of_both_in_one(isa, strategy, any_dtype, rng):
    if strategy == "blas" and any_dtype.itemsize == 2:
        pytest.skip("16-bit arrays have one strategy")
    dout, q, k, v = drawn(rng, any_dtype)
    for index, shape in enumerate(SHAPES):
        mask = rng.random(SHAPES[-1 - index]) < 0.6
        bias = drawn_bias(rng, any_dtype, shape)
        one = joined(*np.broadcast_arrays(mask, bias))
        options = ({}, {"causal": "bottom-right"}, {"softcap": 2.0, "kv_lengths": [281, 100]})[index % 3]
        out, saved = fa.attention_forward(q, k, v, mask=mask, bias=bias, **options)
        expected, kept = fa.attention_forward(q, k, v, mask=one, **options)
        assert same_bits(out, expected) and same_bits(saved.lse, kept.lse)
        assert all(map(same_bits, fa.attention_backward(dout, saved), fa.attention_backward(dout, kept)))


def test_gradients_of_a_bias_are_those_of_the_joined_mask_summed(isa, dtype, rng):
    dout, q, k, v = drawn(rng, dtype)
    mask, bias = rng.random((2, 1, 110, 281)) < 0.6, drawn_bias(rng, dtype, (2, 4, 110, 281))
    saved = fa.attention_forward(q, k, v, mask=mask, bias=bias)[1]
    kept = fa.attention_forward(q, k, v, mask=joined(*np.broadcast_arrays(mask, bias)))[1]
    got = fa.attention_backward(dout, saved, gradients=["bias"]).dbias
    assert same_bits(got, fa.attention_backward(dout, kept, gradients=["mask"]).dmask)
    assert not got[~np.broadcast_to(mask, got.shape)].any()


def test_values_and_gradients_follow_the_error_rule(isa, dtype, rng):
    comparison = Comparison(dtype)
    for shape in SHAPES:
        mask, bias = rng.random((2, 1, 110, 281)) < 0.7, drawn_bias(rng, dtype, shape)
        comparison.add(*drawn(rng, dtype), mask=mask, bias=bias, causal="bottom-right")
    comparison.check()


@pytest.mark.parametrize("queries", [2, 110])
def test_a_masked_bias_is_never_read_into_arithmetic(isa, any_dtype, queries, rng):
    dout, q, k, v = drawn(rng, any_dtype, Lq=queries)
    mask, bias = rng.random((queries, 281)) < 0.7, drawn_bias(rng, any_dtype, (queries, 281))
    results = []
    for bad in (0, np.nan, np.inf):
        worse = np.where(mask, bias, any_dtype.type(bad))
        out, saved = fa.attention_forward(q, k, v, mask=mask, bias=worse)
        results.append((out, saved.lse, *fa.attention_backward(dout, saved)))
    assert all(map(same_bits, results[1], results[0])) and all(map(same_bits, results[2], results[0]))
    bias[1, mask[1].argmax()] = np.nan
    out = fa.attention(q, k, v, mask=mask, bias=bias)
    assert np.isnan(out[:, :, 1].astype(np.float32)).all() and np.isfinite(out[:, :, 0].astype(np.float32)).all()


def test_rows_beyond_the_range_take_both(isa, dtype, rng):
    """Scores that leave the range in units of log2(e) are computed again by the plain formula."""
    dout, q, k, v = arrays(rng, dtype, B=1, H=2, Lq=5, Lk=90, D=4)
    q[..., 0], k[..., 0] = 0.72 * np.finfo(dtype).max, 1 + rng.random((1, 2, 90)).astype(dtype) / 8
    mask, bias = rng.random((5, 90)) < 0.6, drawn_bias(rng, dtype, (2, 5, 90))
    out, saved = fa.attention_forward(q, k, v, mask=mask, bias=bias, scale=1.0)
    expected, kept = fa.attention_forward(q, k, v, mask=joined(*np.broadcast_arrays(mask, bias)), scale=1.0)
    assert np.isfinite(out).all() and (saved.state[1] < 0).any()
    assert same_bits(out, expected) and same_bits(saved.lse, kept.lse)
    assert all(map(same_bits, fa.attention_backward(dout, saved), fa.attention_backward(dout, kept)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_bias_and_mask_in_memory_changes_nothing(layout, rng):
    _, q, k, v = drawn(rng, np.float32)
    mask, bias = rng.random((2, 1, 110, 281)) < 0.6, drawn_bias(rng, np.float32, (4, 110, 281))
    expected = fa.attention(q, k, v, mask=mask, bias=bias)
    placed = (lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2)) if layout == "fortran" else LAYOUTS[layout]
    assert same_bits(fa.attention(q, k, v, mask=mask, bias=placed(bias)), expected)
    turned = mask.swapaxes(-1, -2).copy().swapaxes(-1, -2)
    assert same_bits(fa.attention(q, k, v, mask=turned, bias=placed(bias)), expected)


@pytest.mark.parametrize("queries", [1, 12])
def test_caches_ragged_batches_and_weights_take_both(isa, dtype, queries, rng):
    _, q, k, v = drawn(rng, dtype, Lq=queries)
    mask, bias = rng.random((2, 1, queries, 281)) < 0.6, drawn_bias(rng, dtype, (4, queries, 281))
    expected, lse = fa.attention(q, k, v, mask=mask, bias=bias, return_lse=True)
    for page_size in (None, 16):
        cache = fa.KVCache(2, 2, 24, v_dim=16, dtype=dtype, page_size=page_size)
        cache.append(k, v)
        assert same_bits(cache.attend(q, mask=mask, bias=bias), expected)
    rows = [np.concatenate(list(x.swapaxes(1, 2))) for x in (q, k, v)]
    starts = [0, queries, 2 * queries], [0, 281, 562]
    ragged = fa.attention_varlen(*rows, *starts, mask=mask, bias=bias)
    assert same_bits(ragged, np.concatenate(list(expected.swapaxes(1, 2))))
    weights = fa.attention_weights(q, k, lse, mask=mask, bias=bias)
    one = joined(*np.broadcast_arrays(mask, bias))
    assert same_bits(weights, fa.attention_weights(q, k, lse, mask=one))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bias": np.ones((3, 5), bool)}, TypeError, "bias must be float32 like q, got bool"),
        ({"bias": np.ones((3, 5))}, TypeError, r"bias must be float32 like q \(added\), got float64"),
        ({"bias": np.ones((4, 5), np.float32)}, ValueError, r"bias must broadcast to \(2, 1, 3, 5\), got shape"),
        ({"bias": np.ones((3, 5), np.float32), "mask": np.ones((3, 5), np.float32)}, TypeError,
         "mask must be bool beside a bias, got float32; add the two"),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_bias_is_named(options, error, message, rng):
    _, q, k, v = arrays(rng, np.float32, B=2, Lq=3, Lk=5)
    with pytest.raises(error, match="attention: " + message):
        fa.attention(q, k, v, **options)


def test_gradients_of_what_was_not_there_are_named(rng):
    dout, q, k, v = arrays(rng, np.float32, B=2, Lq=3, Lk=5)
    mask, bias = np.ones((3, 5), bool), np.zeros((3, 5), np.float32)
    saved = fa.attention_forward(q, k, v, mask=mask, bias=bias)[1]
    with pytest.raises(TypeError, match="gradients must be of numbers, got 'mask', which is bool"):
        fa.attention_backward(dout, saved, gradients=["mask"])
    with pytest.raises(ValueError, match="got 'bias', which was None there"):
        fa.attention_backward(dout, fa.attention_forward(q, k, v, mask=mask)[1], gradients=["bias"])

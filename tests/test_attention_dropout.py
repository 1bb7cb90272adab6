"""Dropout of the probabilities of attention: which ones, reproducibly, in forward and backward."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import same_bits
from tests.low_precision import BFLOAT16, FLOAT16
from tests.test_attention_backward import Comparison, arrays
from tests.test_recurrent_dropout import words

ANY_DTYPE = [np.dtype(np.float32), np.dtype(np.float64), BFLOAT16, FLOAT16]
SEED = 0x0123_4567_89AB_CDEF


@pytest.fixture(params=ANY_DTYPE, ids=str)
def any_dtype(request):
    return request.param


def drawn(rng, dtype, Lq=110, Lk=281, B=2, D=24, Dv=16):
    return arrays(rng, dtype, B=B, H=4, Hk=2, Lq=Lq, Lk=Lk, D=D, Dv=Dv)


def results(dout, q, k, v, **options):
    out, saved = fa.attention_forward(q, k, v, **options)
    return out, saved.lse, *fa.attention_backward(dout, saved)


def test_the_words_of_the_reference_are_those_of_the_paper():
    for seed, counter in ((0, (0, 0, 0, 0)), (SEED, (3, 5, 2, 9))):
        block, time, sequence, lane = counter
        assert (
            reference.random_words(seed, *counter).tolist()
            == words(seed, lane, time, sequence, 4 * block + 4)[-4:].tolist()
        )


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999, 1.0])
def test_values_and_gradients_follow_the_error_rule(isa, dtype, p, rng):
    comparison = Comparison(dtype)
    for options in ({}, {"causal": "bottom-right", "softcap": 3.0}, {"sinks": rng.standard_normal(4).astype(dtype)}):
        comparison.add(*drawn(rng, dtype), dropout_p=p, seed=SEED, **options)
    comparison.check()


def test_probabilities_are_dropped_by_the_documented_words(isa, strategy, dtype, rng):
    """With the identity as values the output is the probabilities."""
    _, q, k, _ = drawn(rng, dtype, Lq=30, Lk=90)
    v = np.broadcast_to(np.eye(90, dtype=dtype), (2, 2, 90, 90))
    plain, lse = fa.attention(q, k, v, return_lse=True)
    got, own = fa.attention(q, k, v, return_lse=True, dropout_p=0.3, seed=SEED)
    factor = reference.attention_dropout((2, 4, 30, 90), 0.3, SEED)
    assert same_bits(own, lse)
    np.testing.assert_array_equal(got == 0, factor == 0)
    np.testing.assert_allclose(got, plain * factor, rtol=4 * np.finfo(dtype).eps)
    assert abs((got == 0).mean() - 0.3) < 0.01


@pytest.mark.parametrize("queries", [3, 110])
def test_result_depends_on_sequence_head_query_and_key_alone(isa, any_dtype, queries, rng):
    dout, q, k, v = drawn(rng, any_dtype, Lq=queries)
    options = {"dropout_p": 0.4, "seed": 5, "causal": "bottom-right"}
    expected = results(dout, q, k, v, **options)
    for threads in (1, 2, 5):
        with fa.num_threads(threads):
            assert all(map(same_bits, results(dout, q, k, v, **options), expected))
    first = results(*(x[:1] for x in (dout, q, k, v)), **options)
    assert all(same_bits(x, y[:1]) for x, y in zip(first, expected, strict=True))
    padded = [np.concatenate([x, np.full((*x.shape[:2], 70, x.shape[3]), np.nan, x.dtype)], 2) for x in (dout, q, k, v)]
    lengths = {"q_lengths": [queries] * 2, "kv_lengths": [281] * 2}
    for x, y in zip(results(*padded, **options, **lengths), expected, strict=True):
        assert same_bits(x[:, :, : y.shape[2]], y)
    inside = results(*(x.swapaxes(1, 2) for x in (dout, q, k, v)), layout="blhd", **options)
    assert all(same_bits(x.swapaxes(1, 2), y) for x, y in zip(inside, expected, strict=True))
    rows = [np.concatenate(list(x.swapaxes(1, 2))) for x in (dout, q, k, v)]
    starts = [0, queries, 2 * queries], [0, 281, 562]
    out, saved = fa.attention_varlen_forward(*rows[1:], *starts, **options)
    ragged = out, *fa.attention_varlen_backward(rows[0], saved)
    for x, y in zip(ragged, (expected[0], *expected[2:]), strict=True):
        assert same_bits(x, np.concatenate(list(y.swapaxes(1, 2))))


def test_few_queries_have_the_bits_of_many(isa, any_dtype, threads, rng):
    _, q, k, v = drawn(rng, any_dtype, Lk=700)
    whole = fa.attention(q, k, v, dropout_p=0.4, seed=5)
    assert same_bits(fa.attention(q[:, :, :5], k, v, dropout_p=0.4, seed=5), whole[:, :, :5])
    for page_size in (None, 16):
        cache = fa.KVCache(2, 2, 24, v_dim=16, dtype=any_dtype, page_size=page_size)
        cache.append(k, v)
        assert same_bits(cache.attend(q[:, :, :5], dropout_p=0.4, seed=5), whole[:, :, :5])
        assert same_bits(cache.attend(q, dropout_p=0.4, seed=5), whole)


def test_the_seed_counts_and_no_dropout_changes_no_bit(isa, any_dtype, rng):
    dout, q, k, v = drawn(rng, any_dtype)
    expected = results(dout, q, k, v)
    assert all(map(same_bits, results(dout, q, k, v, dropout_p=0.0, seed=3), expected))
    one, two, again = (results(dout, q, k, v, dropout_p=0.5, seed=seed) for seed in (1, 1 << 63, 1))
    assert all(map(same_bits, one, again)) and not same_bits(one[0], two[0])


def test_float64_gradients_agree_with_finite_differences(isa, rng):
    dout, q, k, v = drawn(rng, np.float64, Lq=20, Lk=300, D=6, Dv=4)
    options = {"dropout_p": 0.3, "seed": SEED, "causal": "bottom-right"}
    got = fa.attention_backward(dout, fa.attention_forward(q, k, v, **options)[1])
    step = 1e-6
    for index in range(3):
        direction = rng.standard_normal((q, k, v)[index].shape)
        ends = []
        for sign in (1, -1):
            moved = [q, k, v]
            moved[index] = moved[index] + sign * step * direction
            ends.append((dout * fa.attention(*moved, **options)).sum())
        slope = (got[index] * direction).sum()
        assert abs((ends[0] - ends[1]) / (2 * step) - slope) <= 1e-6 * max(1, abs(slope))


def test_rows_beyond_the_range_drop_the_same(isa, dtype, rng):
    """Those that are computed again: scores beyond the range in units of log2(e), and sums of large values."""
    _, q, k, v = arrays(rng, dtype, B=1, H=2, Lq=9, Lk=300, D=4, Dv=300)
    v = np.broadcast_to(np.eye(300, dtype=dtype), v.shape)
    factor = reference.attention_dropout((1, 2, 9, 300), 0.3, SEED)
    q[..., 0], k[..., 0] = np.finfo(dtype).max / 2, 1.5
    for scale, values in ((1.0, v), (1e-30 if dtype == np.float32 else 1e-300, v * np.finfo(dtype).max)):
        for queries in (9, 3):
            got, lse = fa.attention(
                q[:, :, :queries], k, values, scale=scale, return_lse=True, dropout_p=0.3, seed=SEED
            )
            plain, own = fa.attention(q[:, :, :queries], k, values, scale=scale, return_lse=True)
            assert np.isfinite(got).all() and same_bits(lse, own) and plain.any()
            seen = plain != 0
            np.testing.assert_array_equal((got == 0)[seen], (factor[:, :, :queries] == 0)[seen])


def test_dropout_of_everything_gives_zeros(isa, any_dtype, rng):
    out, lse, *gradients = results(*drawn(rng, any_dtype), dropout_p=1.0)
    assert not out.any() and np.isfinite(lse).all() and not any(x.any() for x in gradients)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dropout_p": -0.1}, ValueError, r"dropout_p must lie in 0\.\.1, got -0.1"),
        ({"dropout_p": np.nan}, ValueError, r"dropout_p must lie in 0\.\.1, got nan"),
        ({"dropout_p": "half"}, TypeError, "dropout_p must"),
        ({"seed": 1.5}, TypeError, "seed must"),
        ({"seed": -1}, ValueError, r"seed must lie in 0\.\.2\*\*64 - 1, got -1"),
        ({"seed": 1 << 64}, ValueError, r"seed must lie in 0\.\.2\*\*64 - 1"),
    ],
    ids=str,
)
def test_bad_dropout_is_named(options, error, message, rng):
    _, q, k, v = arrays(rng, np.float32, B=2, Lq=3, Lk=5)
    with pytest.raises(error, match="attention: " + message):
        fa.attention(q, k, v, **options)

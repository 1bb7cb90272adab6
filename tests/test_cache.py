"""The key/value cache: attention to what was appended, whatever the history, the pages and the dtype."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits

PAGE_SIZES = [None, 1, 16, 33]


def _tokens(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape, np.float32).astype(dtype)


def _filled(rng, dtype, page_size, batch=3, heads=2, width=24, v_width=40):
    """A cache after appends of several sizes, some to chosen sequences, and what each sequence holds."""
    cache = fa.KVCache(batch, heads, width, v_dim=v_width, dtype=dtype, page_size=page_size)
    held = [[], []]
    for tokens, chosen in [(5, None), (1, None), (70, [2, 0]), (0, None), (1, [1]), (31, None), (3, [2])]:
        rows = range(batch) if chosen is None else chosen
        k = _tokens(rng, len(rows), heads, tokens, width, dtype=dtype)
        v = _tokens(rng, len(rows), heads, tokens, v_width, dtype=dtype)
        cache.append(k, v, chosen)
        held[0] += [(b, k[i]) for i, b in enumerate(rows)]
        held[1] += [(b, v[i]) for i, b in enumerate(rows)]
    whole = [[np.concatenate([x for b, x in part if b == row], axis=1) for row in range(batch)] for part in held]
    return cache, whole


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("queries", [1, 4, 20])
def test_attend_has_the_bits_of_attention_on_what_was_appended(rng, dtype, page_size, queries):
    cache, (k, v) = _filled(rng, dtype, page_size)
    np.testing.assert_array_equal(cache.lengths, [x.shape[1] for x in k])
    q = _tokens(rng, 3, 6, queries, 24, dtype=dtype)
    for options in ({}, {"causal": "bottom-right"}, {"softcap": 3.0, "scale": 0.3}, {"window": (20, 0)}):
        out, lse = cache.attend(q, return_lse=True, **options)
        for b in range(3):
            alone, alone_lse = fa.attention(q[b : b + 1], k[b][None], v[b][None], return_lse=True, **options)
            assert same_bits(out[b], alone[0])
            assert same_bits(lse[b], alone_lse[0])


def test_bfloat16_is_kept_too(rng):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    cache, (k, v) = _filled(rng, bfloat16, None)
    q = _tokens(rng, 3, 2, 1, 24, dtype=bfloat16)
    out = cache.attend(q)
    for b in range(3):
        alone = fa.attention(q[b : b + 1], k[b][None], v[b][None])
        assert same_bits(out[b].astype(np.float32), alone[0].astype(np.float32))


def test_causal_true_is_aligned_to_the_last_token(rng):
    cache, _ = _filled(rng, np.float32, None)
    q = _tokens(rng, 3, 2, 4, 24)
    assert same_bits(cache.attend(q, causal=True), cache.attend(q, causal="bottom-right"))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_int8_is_off_by_at_most_half_a_scale(rng, page_size):
    k, v = _tokens(rng, 2, 3, 50, 16), _tokens(rng, 2, 3, 50, 8)
    k[0, 0, 7] = 0
    cache = fa.KVCache(2, 3, 16, v_dim=8, dtype=np.int8, page_size=page_size)
    cache.append(k[:, :, :20], v[:, :, :20])
    cache.append(k[:, :, 20:], v[:, :, 20:])
    kept = []
    for x in (k, v):
        scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
        whole = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)
        kept.append(np.rint(whole) * scale)
        # Half a scale, and the rounding of quotient and product.
        assert (np.abs(kept[-1] - x) <= scale * (0.5 + 127 * 2 * np.finfo(np.float32).eps)).all()
    q = _tokens(rng, 2, 6, 1, 16)
    assert same_bits(cache.attend(q), fa.attention(q, *kept))


def test_int8_keeps_nan_and_infinity_in_their_token_and_head():
    k = np.ones((1, 2, 4, 8), np.float32)
    v = k.copy()
    k[0, 0, 1, 3], v[0, 1, 2, 0] = np.nan, np.inf
    cache = fa.KVCache(1, 2, 8, dtype="int8")
    cache.append(k, v)
    q = np.ones((1, 2, 1, 8), np.float32)
    assert np.isnan(cache.attend(q)).all()
    np.testing.assert_array_equal(cache.attend(q, mask=np.array([True, False, False, True])), np.ones_like(q))


def test_int8_takes_a_quarter_of_the_memory():
    sizes = {dtype: fa.KVCache(1, 2, 128, dtype=dtype, capacity=64).nbytes for dtype in ("int8", "float32")}
    assert sizes["int8"] * 4 == sizes["float32"] + 2 * 2 * 64 * 4 * 4  # and the scales


@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": np.zeros((2, 1, 9, 4), np.float32), "v": np.zeros((2, 1, 9, 4), np.float32)}, ValueError, "capacity"),
        ({"k": np.zeros((2, 1, 1, 4), np.float64)}, TypeError, "k must be float32"),
        ({"k": np.zeros((2, 1, 1, 5), np.float32)}, ValueError, "k must have shape"),
        ({"k": np.zeros((2, 2, 1, 4), np.float32)}, ValueError, "k must have shape"),
        ({"k": np.zeros((1, 1, 4), np.float32)}, ValueError, "k must have shape"),
        ({"v": np.zeros((2, 1, 2, 4), np.float32)}, ValueError, "v must have the 1 tokens"),
        ({"v": np.zeros((2, 1, 1, 3), np.float32)}, ValueError, "v must have shape"),
        ({"v": np.zeros((2, 1, 1, 4), np.int8)}, TypeError, "v must be float32"),
        ({"sequences": [0, 2]}, ValueError, "sequences must lie in"),
        ({"sequences": [-1, 0]}, ValueError, "sequences must lie in"),
        ({"sequences": [1, 1]}, ValueError, "sequences must differ"),
        ({"sequences": [0.0, 1.0]}, TypeError, "sequences must be integers"),
        ({"sequences": [[0, 1]]}, ValueError, "sequences must have one axis"),
        ({"sequences": [0]}, ValueError, "k must have shape"),
    ],
)
def test_a_failed_append_changes_nothing(arguments, error, message, page_size):
    cache = fa.KVCache(2, 1, 4, dtype="float32", capacity=10, page_size=page_size)
    tokens = np.arange(16, dtype=np.float32).reshape(2, 1, 2, 4)
    cache.append(tokens, tokens)
    q = np.ones((2, 1, 1, 4), np.float32)
    before = cache.attend(q), cache.nbytes
    one = np.zeros((2, 1, 1, 4), np.float32)
    with pytest.raises(error, match=message):
        cache.append(**{"k": one, "v": one, **arguments})
    np.testing.assert_array_equal(cache.lengths, [2, 2])
    assert same_bits(cache.attend(q), before[0])
    assert cache.nbytes == before[1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch": -1}, ValueError, "batch must be at least 0"),
        ({"kv_heads": 1.5}, TypeError, "kv_heads must be an integer"),
        ({"capacity": -3}, ValueError, "capacity must be at least 0"),
        ({"page_size": 0}, ValueError, "page_size must be at least 1"),
        ({"dtype": "int16"}, TypeError, "dtype must be one of"),
        ({"dtype": ">f4"}, TypeError, "dtype must be one of"),
        ({"dtype": "no such type"}, TypeError, "dtype must be one of"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        fa.KVCache(**{"batch": 1, "kv_heads": 1, "head_dim": 4, "dtype": "float32", **arguments})


def test_wrong_queries_are_named():
    cache = fa.KVCache(2, 1, 4, dtype="float32")
    with pytest.raises(TypeError, match="q must be float32"):
        cache.attend(np.zeros((2, 1, 1, 4)))
    with pytest.raises(ValueError, match="q must have shape"):
        cache.attend(np.zeros((1, 1, 1, 4), np.float32))


@pytest.mark.parametrize("page_size", [None, 4])
def test_an_empty_cache_gives_zeros(page_size):
    cache = fa.KVCache(2, 1, 4, dtype="float32", page_size=page_size)
    out, lse = cache.attend(np.ones((2, 3, 1, 4), np.float32), return_lse=True)
    assert not out.any()
    assert (lse == -np.inf).all()


def test_lengths_are_a_copy():
    cache = fa.KVCache(2, 1, 4, dtype="float32")
    cache.lengths[:] = 5
    np.testing.assert_array_equal(cache.lengths, [0, 0])

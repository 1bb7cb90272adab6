"""The key/value cache: attention to what was appended, whatever the history, the pages and the dtype."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits
from tests.errors import ErrorRule
from tests.low_precision import BFLOAT16
from tests.specification import exact, plain

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
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BFLOAT16])
@pytest.mark.parametrize("queries", [1, 4, 20])
def test_attend_has_the_bits_of_attention_on_what_was_appended(rng, dtype, page_size, queries):
    cache, (k, v) = _filled(rng, dtype, page_size)
    np.testing.assert_array_equal(cache.lengths, [x.shape[1] for x in k])
    q = _tokens(rng, 3, 6, queries, 24, dtype=dtype)
    for options in ({}, {"causal": "bottom-right"}, {"softcap": 3.0, "scale": 0.3}, {"window": (20, 0)}):
        out, lse = cache.attend(q, return_lse=True, **options)
        for b in range(3):
            alone, alone_lse = fa.attention(q[b : b + 1], k[b][None], v[b][None], return_lse=True, **options)
            assert same_bits(_wide(out[b]), _wide(alone[0]))
            assert same_bits(lse[b], alone_lse[0])


def _wide(x):
    """float64, which is exact; NaN stays NaN."""
    return x.astype(np.float64)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_pages_change_no_bit_of_many_tokens_whatever_the_options(rng, dtype, threads):
    tokens = 1100
    k, v = _tokens(rng, 2, 2, tokens, 64, dtype=dtype), _tokens(rng, 2, 2, tokens, 40, dtype=dtype)
    v[0, :, 700, 3], v[1, 1, 64] = np.inf, np.nan
    q = _tokens(rng, 2, 8, 3, 64, dtype=dtype)
    caches = [fa.KVCache(2, 2, 64, v_dim=40, dtype=dtype, page_size=size) for size in (None, 7, 32, 600)]
    for cache in caches:
        cache.append(k[:, :, :1000], v[:, :, :1000])
        cache.append(k[:, :, 1000:], v[:, :, 1000:])
    many = {"mask": rng.random((2, 1, 3, tokens)) < 0.9, "sinks": np.ones(8, dtype), "q_lengths": [3, 2]}
    with fa.num_threads(threads):
        for options in ({}, {"causal": True, "window": (650, 0)}, many):
            expected, *others = (cache.attend(q, **options) for cache in caches)
            for out in others:
                assert same_bits(_wide(out), _wide(expected))


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
    q = _tokens(rng, 2, 6, 20, 16)  # more queries than few
    assert same_bits(cache.attend(q), fa.attention(q, *kept))


def _int8(k, v, page_size=None):
    """A cache of these, and what they became."""
    cache = fa.KVCache(k.shape[0], k.shape[1], k.shape[3], v_dim=v.shape[3], dtype="int8", page_size=page_size)
    cache.append(k, v)
    scales = [np.abs(x).max(-1, keepdims=True) / np.float32(127) for x in (k, v)]
    return cache, [np.rint(x / scale) * scale for x, scale in zip((k, v), scales, strict=True)]


@pytest.mark.usefixtures("isa")
def test_int8_keeps_the_error_rule_of_float32_attention_to_what_the_tokens_became(rng):
    rule = ErrorRule()
    for heads, kv_heads, tokens, width, v_width, queries in [
        (4, 4, 700, 64, 64, 1), (8, 1, 513, 128, 128, 1), (6, 3, 90, 33, 5, 8), (2, 2, 1, 1, 1, 1),
        (4, 2, 1100, 200, 70, 3), (12, 1, 300, 16, 31, 2),
    ]:  # fmt: skip
        k, v = _tokens(rng, 2, kv_heads, tokens, width), _tokens(rng, 2, kv_heads, tokens, v_width)
        q = _tokens(rng, 2, heads, queries, width)
        cache, kept = _int8(k, v, page_size=50)
        got = cache.attend(q, return_lse=True)
        for mine, simple, true in zip(
            got, plain.attention(q, *kept), exact(np.float32).attention(q, *kept), strict=True
        ):
            rule.add(mine, simple, true)
    rule.check()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("queries", [1, 5])
def test_int8_does_not_depend_on_pages_threads_history_or_batch(rng, queries):
    cache, (k, v) = _filled(rng, np.dtype(np.float32), None)
    caches = [fa.KVCache(3, 2, 24, v_dim=40, dtype="int8", page_size=size) for size in PAGE_SIZES]
    for b in range(3):
        for cache in caches:
            cache.append(k[b][None], v[b][None], [b])
    q = _tokens(rng, 3, 6, queries, 24)
    for options in ({}, {"causal": True}, {"softcap": 3.0, "window": (20, 0)}):
        expected = caches[0].attend(q, **options)
        for cache in caches[1:]:
            for threads in (1, 3):
                with fa.num_threads(threads):
                    assert same_bits(cache.attend(q, **options), expected)
        for b in range(3):
            alone = fa.KVCache(1, 2, 24, v_dim=40, dtype="int8")
            for i in range(k[b].shape[1]):
                alone.append(k[b][None, :, i : i + 1], v[b][None, :, i : i + 1])
            assert same_bits(alone.attend(q[b : b + 1], **options)[0], expected[b])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("heads", "queries"), [(2, 1), (8, 1), (4, 7)])
def test_int8_does_not_depend_on_pages_where_keys_pass_many_at_once(rng, heads, queries):
    k, v = _tokens(rng, 1, 2, 700, 128), _tokens(rng, 1, 2, 700, 64)
    q = _tokens(rng, 1, heads, queries, 128)
    expected = _int8(k, v)[0].attend(q)
    for page_size in (7, 50, 128):
        assert same_bits(_int8(k, v, page_size)[0].attend(q), expected)


@pytest.mark.skipif(not {"avx512bf16", "amxbf16"} <= set(fa.config.available_isas()), reason="needs AMX")
def test_int8_has_the_same_sums_in_vectors_and_in_matrix_tiles(rng):
    for tokens, width, v_width, queries in [(700, 128, 128, 1), (90, 33, 5, 8), (520, 600, 70, 3)]:
        k, v = _tokens(rng, 1, 2, tokens, width), _tokens(rng, 1, 2, tokens, v_width)
        q = _tokens(rng, 1, 4, queries, width)
        with fa.config.use_isa("avx512bf16"):
            expected = _int8(k, v)[0].attend(q)
        with fa.config.use_isa("amxbf16"):
            assert same_bits(_int8(k, v)[0].attend(q), expected)


@pytest.mark.usefixtures("isa")
def test_int8_takes_queries_and_tokens_of_any_size(rng):
    k, v = _tokens(rng, 1, 1, 40, 32), _tokens(rng, 1, 1, 40, 32)
    q = _tokens(rng, 1, 1, 1, 32)
    expected = _int8(k, v)[0].attend(q, scale=1.0)
    for power in (-60, 60):
        factor = np.float32(2.0**power)
        out = _int8(k / factor, v)[0].attend(q * factor, scale=1.0)  # powers of two change no bit
        assert same_bits(out, expected)
        assert same_bits(_int8(k, v * factor)[0].attend(q, scale=1.0), expected * factor)
    for bad in (np.nan, np.inf):
        q[..., 3] = bad
        assert np.isnan(_int8(k, v)[0].attend(q)).all()


def test_int8_keeps_nan_and_infinity_in_their_token_and_head():
    k = np.ones((1, 2, 4, 8), np.float32)
    v = k.copy()
    k[0, 0, 1, 3], v[0, 1, 2, 0] = np.nan, np.inf
    cache = fa.KVCache(1, 2, 8, dtype="int8")
    cache.append(k, v)
    q = np.ones((1, 2, 1, 8), np.float32)
    assert np.isnan(cache.attend(q)).all()
    clean = fa.KVCache(1, 2, 8, dtype="int8")
    clean.append(np.ones_like(k), np.ones_like(v))
    mask = np.array([True, False, False, True])
    assert same_bits(cache.attend(q, mask=mask), clean.attend(q, mask=mask))
    first = np.array([True, True, False, False])  # a key that is NaN in head 0 alone
    np.testing.assert_array_equal(np.isnan(cache.attend(q, mask=first)[0, :, 0, 0]), [True, False])


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


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("chosen", [[2, 0, 1], [1, 1, 1, 1, 0], [2], []], ids=str)
def test_selected_sequences_go_on_as_if_they_had_been_alone(dtype, page_size, chosen, rng):
    arrived = np.dtype("float32" if dtype == "int8" else dtype)

    def tokens(batch, n):
        return [rng.standard_normal((batch, 2, n, width)).astype(arrived) for width in (24, 40)]

    cache = fa.KVCache(3, 2, 24, v_dim=40, dtype=dtype, page_size=page_size)
    histories = [tokens(1, n) for n in (9, 0, 70)]
    for sequence, history in enumerate(histories):
        cache.append(*history, sequences=[sequence])
    q = rng.standard_normal((3, 4, 1, 24)).astype(arrived)
    before = cache.attend(q)
    selected, alone = cache.select(chosen), [fa.KVCache(1, 2, 24, v_dim=40, dtype=dtype) for _ in chosen]
    assert selected.lengths.tolist() == [[9, 0, 70][sequence] for sequence in chosen]
    for own, sequence in zip(alone, chosen, strict=True):
        own.append(*histories[sequence])
    for n in (1, 80):  # the second needs more room
        more, queries = tokens(len(chosen), n), rng.standard_normal((len(chosen), 4, 1, 24)).astype(arrived)
        selected.append(*more)
        out = selected.attend(queries)
        for i, own in enumerate(alone):
            own.append(*(x[i : i + 1] for x in more))
            assert same_bits(out[i : i + 1], own.attend(queries[i : i + 1]))
    assert same_bits(cache.attend(q), before)


@pytest.mark.parametrize("page_size", [None, 16])
def test_memory_begins_with_a_cache_line_however_it_grew(dtype, page_size, rng):
    cache = fa.KVCache(2, 3, 8, dtype=dtype, page_size=page_size)
    taken = np.float32 if dtype == "int8" else dtype
    for _ in range(9):
        tokens = rng.standard_normal((2, 3, 20, 8)).astype(taken)
        cache.append(tokens, tokens)
        for part in (*cache._parts, *cache.select([1])._parts):
            assert all(array.ctypes.data % 64 == 0 for array in part if array is not None)


@pytest.mark.parametrize("page_size", [None, 4])
def test_a_selected_cache_keeps_capacity_and_pages(page_size):
    cache = fa.KVCache(1, 1, 4, dtype="float32", capacity=3, page_size=page_size)
    two = np.ones((2, 1, 2, 4), np.float32)
    selected = cache.select([0, 0])
    selected.append(two, two)
    with pytest.raises(ValueError, match="k must fit into the capacity of 3 tokens"):
        selected.append(two, two)
    assert cache.lengths.tolist() == [0]


@pytest.mark.parametrize(
    ("sequences", "error", "message"),
    [
        ([0, 2], ValueError, r"select: sequences must lie in 0\.\.1, got 0\.\.2"),
        ([-1], ValueError, r"select: sequences must lie in"),
        ([0.5], TypeError, "select: sequences must be integers, got float64"),
        (1, ValueError, r"select: sequences must have one axis, got shape \(\)"),
    ],
    ids=str,
)
def test_sequences_that_cannot_be_selected_are_named(sequences, error, message):
    with pytest.raises(error, match=message):
        fa.KVCache(2, 1, 4, dtype="float32").select(sequences)


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
        ({"dtype": "int8", "head_dim": 65_537}, ValueError, "head_dim must be at most 65536 for int8"),
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


def test_pages_that_are_not_there_are_named():
    cache = fa.KVCache(1, 1, 4, dtype="float32", page_size=2)
    cache.append(np.ones((1, 1, 3, 4), np.float32), np.ones((1, 1, 3, 4), np.float32))
    q = np.ones((1, 1, 1, 4), np.float32)
    for page in (-1, 1000):
        cache._table[0, 1] = page
        with pytest.raises(ValueError, match=f"pages must lie in .*, got {page} for sequence 0"):
            cache.attend(q)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"q": np.ones((1, 3, 1, 4), np.float32)}, ValueError, "q must have a multiple of the 2 heads"),
        ({"mask": np.ones((5,), bool)}, ValueError, "attend: mask must broadcast"),
        ({"window": (-1, 0)}, ValueError, "attend: window"),
        ({"sinks": np.ones(3, np.float32)}, ValueError, "attend: sinks"),
        ({"softcap": -1.0}, ValueError, "attend: softcap"),
        ({"q_lengths": [2]}, ValueError, "attend: q_lengths"),
        ({"out": np.ones((1, 2, 1, 3), np.float32)}, ValueError, "attend: out"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_wrong_options_are_named_by_pages_and_bytes(dtype, options, error, message):
    cache = fa.KVCache(1, 2, 4, dtype=dtype, page_size=2)
    cache.append(np.ones((1, 2, 3, 4), np.float32), np.ones((1, 2, 3, 4), np.float32))
    with pytest.raises(error, match=message):
        cache.attend(**{"q": np.ones((1, 2, 1, 4), np.float32), **options})


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("page_size", [None, 4])
def test_an_empty_cache_gives_zeros(page_size, dtype):
    cache = fa.KVCache(2, 1, 4, dtype=dtype, page_size=page_size)
    out, lse = cache.attend(np.ones((2, 3, 1, 4), np.float32), return_lse=True)
    assert not out.any()
    assert (lse == -np.inf).all()


def test_lengths_are_a_copy():
    cache = fa.KVCache(2, 1, 4, dtype="float32")
    cache.lengths[:] = 5
    np.testing.assert_array_equal(cache.lengths, [0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones((3, 3))}, "mask must be bool"),
        ({"mask": np.ones((7, 3), bool)}, "mask must broadcast"),
        ({"causal": "left"}, "causal must be"),
        ({"scale": np.inf}, "scale must be finite"),
        ({"scale": "1"}, "scale must be a number"),
        ({"window": 3}, "window must be a pair"),
        ({"softcap": -1.0}, "softcap must be"),
        ({"alibi_slopes": np.ones(3, np.float32)}, r"alibi_slopes must have shape \(4,\)"),
        ({"sinks": np.ones(4)}, "sinks must be float32"),
        ({"q_lengths": [99, 0]}, "q_lengths must lie in"),
        ({"return_lse": 1}, "return_lse must be True or False"),
        ({"out": np.ones(3, np.float32)}, "out must have shape"),
        ({"heads": 3}, "q must have a multiple of the 2 heads of the cache, got 3"),
        ({"dtype": np.float64}, "q must be float32"),
    ],
    ids=str,
)
@pytest.mark.parametrize("queries", [8, 9])
@pytest.mark.parametrize("page_size", [None, 4])
def test_attend_names_itself_for_any_number_of_queries(options, message, queries, page_size):
    options = dict(options)
    cache = fa.KVCache(2, 2, 4, dtype="float32", page_size=page_size)
    cache.append(np.ones((2, 2, 5, 4), np.float32), np.ones((2, 2, 5, 4), np.float32))
    q = np.ones((2, options.pop("heads", 4), queries, 4), options.pop("dtype", np.float32))
    with pytest.raises((TypeError, ValueError), match=f"^attend: {message}"):
        cache.attend(q, **options)

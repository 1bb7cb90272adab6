"""q_start: queries that stand anywhere among the keys."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits
from tests.errors import ErrorRule
from tests.low_precision import BFLOAT16, FLOAT16
from tests.specification import exact, plain
from tests.test_attention_backward import Comparison, arrays
from tests.test_attention_options import drawn_options, inputs, median_counts

ANY_DTYPE = [np.dtype(np.float32), np.dtype(np.float64), BFLOAT16, FLOAT16]


@pytest.fixture(params=ANY_DTYPE, ids=str)
def any_dtype(request):
    return request.param


def placed_options(rng, dtype, H):
    """What depends on positions."""
    slopes = (rng.random(H) / 8).astype(dtype)
    return ({"causal": True}, {"window": (30, 11)}, {"causal": True, "window": (40, None)}, {"alibi_slopes": slopes},
            {"causal": True, "alibi_slopes": slopes, "softcap": 3.0})  # fmt: skip


def drawn_positions(rng, options, B, Lq, Lk):
    """Options of drawn_options with q_start in the place of an alignment."""
    options = dict(options)
    if options.pop("causal", None):
        options["causal"] = True
    q_start = rng.integers(-Lq, Lk + 1, B)
    return options | {"q_start": q_start if rng.random() < 0.7 else int(q_start[0])}


# ---- values ----


def test_any_position_follows_the_error_rule(isa, strategy, dtype, rng):
    rules = ErrorRule(), ErrorRule()
    for _ in range(12):
        Lq, Lk = int(rng.integers(1, 120)), int(rng.integers(1, 600))
        q, k, v = inputs(rng, dtype, 2, 4, 2, Lq, Lk, 24, 16)
        options = drawn_positions(rng, drawn_options(rng, dtype, 2, 4, Lq, Lk), 2, Lq, Lk)
        got = fa.attention(q, k, v, return_lse=True, **options)
        sides = [of.attention(q, k, v, **options) for of in (plain, exact(dtype))]
        for rule, *values in zip(rules, got, *sides, strict=True):
            rule.add(*values)
    rules[0].check(median=median_counts(strategy))
    rules[1].check(median=False)


def test_gradients_at_any_position_follow_the_error_rule(isa, dtype, rng):
    comparison = Comparison(dtype)
    for _ in range(8):
        options = drawn_positions(rng, drawn_options(rng, dtype, 2, 4, 110, 281), 2, 110, 281)
        comparison.add(*arrays(rng, dtype, B=2, H=4, Hk=2, Lq=110, Lk=281, D=24), **options)
    comparison.check()


@pytest.mark.parametrize(("Lq", "Lk"), [(130, 300), (300, 130), (5, 700)])
def test_positions_of_an_alignment_have_its_bits(isa, any_dtype, Lq, Lk, rng):
    dout, q, k, v = arrays(rng, any_dtype, B=2, H=4, Hk=2, Lq=Lq, Lk=Lk, D=24)
    for options in placed_options(rng, any_dtype, 4):
        for name, q_start in (("top-left", 0), ("bottom-right", Lk - Lq), ("bottom-right", [Lk - Lq] * 2)):
            if "causal" not in options and name == "top-left":
                continue
            aligned = options | ({"causal": name} if "causal" in options else {})
            out, saved = fa.attention_forward(q, k, v, **aligned)
            got, own = fa.attention_forward(q, k, v, q_start=q_start, **options)
            assert same_bits(got, out) and same_bits(own.lse, saved.lse)
            names = [name for name in ("alibi_slopes",) if name in options]
            gradients = (fa.attention_backward(dout, x, gradients=names) for x in (own, saved))
            assert all(same_bits(x, y) for x, y in zip(*gradients, strict=True) if y is not None)


def test_chunks_of_queries_have_the_bits_of_one_call(isa, any_dtype, threads, rng):
    _, q, k, v = arrays(rng, any_dtype, B=2, H=4, Hk=2, Lq=230, Lk=230, D=24)
    for options in placed_options(rng, any_dtype, 4):
        whole = fa.attention(q, k, v, q_start=0, **options)
        for begin, end in ((0, 100), (100, 103), (103, 104), (104, 230)):
            part = fa.attention(q[:, :, begin:end], k, v, q_start=begin, **options)
            assert same_bits(part, whole[:, :, begin:end])


def test_room_behind_the_tokens_of_a_static_cache_changes_no_bit(isa, any_dtype, rng):
    dout, q, k, v = arrays(rng, any_dtype, B=2, H=4, Hk=2, Lq=40, Lk=300, D=24)
    lengths = [300, 170]
    k, v = (np.concatenate([x, np.full((2, 2, 212, 24), np.nan, any_dtype)], 2) for x in (k, v))
    k[1, :, 170:] = v[1, :, 170:] = np.nan
    q_start = [length - 40 for length in lengths]
    out, saved = fa.attention_forward(q, k, v, causal=True, q_start=q_start)
    dq, dk, dv = fa.attention_backward(dout, saved)
    for b, length in enumerate(lengths):
        own = slice(b, b + 1)
        alone, kept = fa.attention_forward(q[own], k[own, :, :length], v[own, :, :length], causal="bottom-right")
        assert same_bits(out[own], alone)
        gradients = fa.attention_backward(dout[own], kept)
        for ours, right in zip((dq, dk[:, :, :length], dv[:, :, :length]), gradients, strict=True):
            assert same_bits(ours[own], right)
        assert not dk[b, :, length:].any() and not dv[b, :, length:].any()


def test_parts_of_the_keys_merge_to_the_whole(isa, rng):
    dout, q, k, v = arrays(rng, np.float64, B=2, H=4, Hk=2, Lq=150, Lk=300, D=24)
    for options in placed_options(rng, np.float64, 4):
        out, saved = fa.attention_forward(q, k, v, q_start=120, **options)
        right = fa.attention_backward(dout, saved)
        parts = [slice(begin, begin + 75) for begin in range(0, 300, 75)]
        results = [fa.attention(q, k[:, :, part], v[:, :, part], q_start=120 - part.start, return_lse=True, **options)
                   for part in parts]  # fmt: skip
        merged = results[0]
        for result in results[1:]:
            merged = fa.merge_attention(*merged, *result)
        np.testing.assert_allclose(merged[0], out, atol=1e-13)
        gradients = [
            fa.attention_backward(dout, fa.saved_attention(q, k[:, :, part], v[:, :, part], *merged,
                                                           q_start=120 - part.start, **options), partial=True)
            for part in parts]  # fmt: skip
        dq, dk, dv = zip(*gradients, strict=True)
        for ours, exact_one in zip((sum(dq), np.concatenate(dk, 2), np.concatenate(dv, 2)), right, strict=True):
            np.testing.assert_allclose(ours, exact_one, atol=1e-12)


def test_positions_of_ragged_batches_are_those_of_each_sequence(isa, strategy, any_dtype, rng):
    if strategy == "blas" and any_dtype.itemsize == 2:
        pytest.skip("16-bit arrays have one strategy")
    dout, q, k, v = (x[0].swapaxes(0, 1) for x in arrays(rng, any_dtype, H=2, Lq=140, Lk=140, D=16))
    starts_q, starts_k, q_start = [0, 30, 30, 140], [0, 101, 110, 140], np.array([60, 3, -50])
    for options in placed_options(rng, any_dtype, 2):
        out, saved = fa.attention_varlen_forward(q, k, v, starts_q, starts_k, q_start=q_start, **options)
        got = fa.attention_varlen_backward(dout, saved)
        for b in range(3):
            rows, keys = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
            alone = [x[None].swapaxes(1, 2) for x in (dout[rows], q[rows], k[keys], v[keys])]
            expected, kept = fa.attention_forward(*alone[1:], q_start=int(q_start[b]), **options)
            assert same_bits(out[rows], expected[0].swapaxes(0, 1))
            for ours, right, own in zip(got, fa.attention_backward(alone[0], kept), (rows, keys, keys), strict=True):
                assert same_bits(ours[own], right[0].swapaxes(0, 1))


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("queries", [1, 4, 12])
def test_caches_have_the_bits_of_attention(isa, any_dtype, page_size, queries, rng):
    _, q, k, v = arrays(rng, any_dtype, B=2, H=4, Hk=2, Lq=queries, Lk=530, D=24)
    cache = fa.KVCache(2, 2, 24, dtype=any_dtype, page_size=page_size)
    cache.append(k, v)
    for options in placed_options(rng, any_dtype, 4):
        for q_start in (0, 300, [-2, 529]):
            assert same_bits(cache.attend(q, q_start=q_start, **options),
                             fa.attention(q, k, v, q_start=q_start, **options))  # fmt: skip
    assert same_bits(cache.attend(q, causal=True, q_start=530 - queries), cache.attend(q, causal=True))


def test_weights_are_those_of_the_position(isa, dtype, rng):
    q, k, v = inputs(rng, dtype, 2, 4, 2, 30, 90, 16, 16)
    for options in placed_options(rng, dtype, 4):
        place = options | {"q_start": [20, -5]}
        out, lse = fa.attention(q, k, v, return_lse=True, **place)
        weights = fa.attention_weights(q, k, lse, **place)
        np.testing.assert_allclose(weights @ np.repeat(v, 2, 1), out, atol=64 * np.finfo(dtype).eps)


# ---- the ends of the range ----


@pytest.mark.parametrize("far", [1000, 2**40, 2**60])
def test_queries_beyond_all_keys_attend_to_all_or_none(isa, any_dtype, far, rng):
    dout, q, k, v = arrays(rng, any_dtype, B=2, H=2, Lq=30, Lk=90, D=16)
    assert same_bits(fa.attention(q, k, v, causal=True, q_start=far), fa.attention(q, k, v))
    for options in ({"causal": True, "q_start": -far}, {"window": (5, 2**62), "q_start": [far, far]},
                    {"window": (2**62, 5), "q_start": -far}):  # fmt: skip
        out, saved = fa.attention_forward(q, k, v, **options)
        assert not out.any() and (saved.lse == -np.inf).all()
        assert not any(x.any() for x in fa.attention_backward(dout, saved))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"q_start": 1.5}, TypeError, "q_start must be integers, got float64"),
        ({"q_start": [1, 2, 3]}, ValueError, r"q_start must be an integer or have shape \(2,\), got shape \(3,\)"),
        ({"q_start": [[1, 2]]}, ValueError, "q_start must be an integer or have shape"),
        ({"q_start": 2**60 + 1}, ValueError, r"q_start must lie in -2\*\*60..2\*\*60, got 1152921504606846977"),
        ({"q_start": [0, -(2**61)]}, ValueError, "q_start must lie in"),
        ({"q_start": 2**70}, (TypeError, ValueError, OverflowError), "q_start must"),
        ({"q_start": 0, "causal": "top-left"}, ValueError, "causal must be False or True with q_start, got 'top-left'"),
        ({"causal": True}, ValueError, "causal=True needs as many queries as keys, got 3 and 5; .* by q_start"),
    ],
    ids=str,
)
def test_bad_positions_are_named(options, error, message, rng):
    _, q, k, v = arrays(rng, np.float32, B=2, Lq=3, Lk=5)
    with pytest.raises(error, match="attention: " + message):
        fa.attention(q, k, v, **options)

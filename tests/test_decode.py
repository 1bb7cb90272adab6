"""Attention with few queries: the bits of the rows of a long call, whoever shares the keys and at any thread count."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.low_precision import BFLOAT16, FLOAT16
from tests.specification import exact, plain

ROWS = 12  # more queries than few: this call packs its keys
SIZES = [  # H, Hk, Lk, D, Dv
    (1, 1, 1, 1, 1),
    (2, 2, 17, 5, 9),
    (4, 1, 513, 64, 64),
    (6, 2, 1031, 128, 128),
    (3, 3, 700, 136, 40),
    (8, 1, 1500, 33, 200),
    (52, 1, 601, 24, 16),
]


@pytest.fixture(params=[np.dtype(np.float32), np.dtype(np.float64), BFLOAT16, FLOAT16], ids=lambda dtype: dtype.name)
def any_dtype(request):
    """Runs the test with each type of array."""
    return request.param


def _same(x, y):
    """The same type and bits; widening, where there is any, is exact."""
    assert x.dtype == y.dtype
    wide = np.float64 if x.dtype == np.float64 else np.float32
    return same_bits(x.astype(wide), y.astype(wide))


def _inputs(rng, dtype, heads, kv_heads, keys, width, v_width, batch=2):
    return (
        rng.standard_normal((batch, heads, ROWS, width)).astype(dtype),
        rng.standard_normal((batch, kv_heads, keys, width)).astype(dtype),
        rng.standard_normal((batch, kv_heads, keys, v_width)).astype(dtype),
    )


def _assert_rows_equal_the_long_call(q, k, v, queries, first=None, **options):
    """Rows [first, first + queries) alone (by default the last ones) against the same rows of one call with all."""
    first = ROWS - queries if first is None else first
    rows = slice(first, first + queries)
    long, long_lse = fa.attention(q, k, v, return_lse=True, **options)
    if options.get("mask") is not None:
        options["mask"] = options["mask"][..., rows, :]
    few, lse = fa.attention(q[:, :, rows], k, v, return_lse=True, **options)
    assert _same(few, long[:, :, rows])
    assert same_bits(lse, long_lse[:, :, rows])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_a_row_has_the_bits_of_the_long_call(rng, any_dtype, size, threads):
    q, k, v = _inputs(rng, any_dtype, *size)
    with fa.num_threads(threads):
        for queries in (1, 3, 8):
            _assert_rows_equal_the_long_call(q, k, v, queries, first=2)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["bool", "float", "causal", "window", "lengths", "softcap", "alibi", "sinks"])
def test_a_row_has_the_bits_of_the_long_call_with_options(rng, any_dtype, kind, threads):
    q, k, v = _inputs(rng, any_dtype, 4, 2, 1300, 40, 72)
    options = {
        "bool": {"mask": rng.random((2, 1, ROWS, 1300)) < 0.5},
        "float": {"mask": rng.standard_normal((ROWS, 1300)).astype(any_dtype)},
        "causal": {"causal": "bottom-right"},
        "window": {"causal": "bottom-right", "window": (600, 0)},
        "lengths": {"kv_lengths": [1300, 530]},
        "softcap": {"softcap": 5.0},
        "alibi": {"alibi_slopes": np.array([0.1, 0.2, 0.5, 0.0], any_dtype)},
        "sinks": {"sinks": np.array([0.1, 20.0, -np.inf, -3.0], any_dtype), "kv_lengths": [1300, 0]},
    }[kind]
    with fa.num_threads(threads):
        _assert_rows_equal_the_long_call(q, k, v, 1, **options)
        _assert_rows_equal_the_long_call(q, k, v, 5, **options)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("D", [32, 64, 96, 128, 160, 288])
def test_a_row_has_the_bits_of_the_long_call_at_both_ends_of_the_exponent(rng, any_dtype, D):
    """Where subnormal operands and sums count, or count as 0, in whatever computes the two."""
    ends = ((-26, -12), (-8, 8)) if any_dtype == FLOAT16 else ((-135, -100), (-70, -50), (-70, 60))
    for lowest, highest in ends:
        q, k, v = (
            (rng.standard_normal((1, 2, L, D)) * 2.0 ** rng.integers(lowest, highest, (1, 2, L, D))).astype(any_dtype)
            for L in (12, 540, 540)
        )
        scale = 2.0**-highest
        with np.errstate(all="ignore"):
            rows = fa.attention(q, k, v, scale=scale)
            assert same_bits(fa.attention(q[:, :, 5:6], k, v, scale=scale), rows[:, :, 5:6])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("threads", [1, 3])
def test_nan_and_infinity_reach_the_rows_that_attend_to_them_and_no_others(rng, any_dtype, threads):
    q, k, v = _inputs(rng, any_dtype, 4, 2, 1300, 64, 24)
    k[0, :, 650] = np.nan
    v[0, :, 700] = np.nan
    v[1, :, 3, 0] = np.inf
    v[1, 0, 900, 1:3] = np.inf, -np.inf
    masked = rng.random((2, 1, ROWS, 1300)) < 0.9
    with fa.num_threads(threads):
        for options in ({}, {"mask": masked}, {"causal": "bottom-right", "window": (590, 0)}):
            _assert_rows_equal_the_long_call(q, k, v, 1, **options)
            _assert_rows_equal_the_long_call(q, k, v, 6, **options)
        # Beyond the length nothing is read into arithmetic.
        out = fa.attention(q[:, :, :1], k, v, kv_lengths=[650, 3])
    assert np.isfinite(out).all()


@pytest.mark.usefixtures("isa")
def test_a_value_that_is_masked_does_not_count_even_if_its_probability_would_vanish(any_dtype):
    keys = 600
    q, k = np.ones((1, 1, 1, 1), any_dtype), np.zeros((1, 1, keys, 1), any_dtype)
    k[0, 0, 0] = 2000  # all other probabilities are 0
    v = np.ones((1, 1, keys, 2), any_dtype)
    v[0, 0, 5, 0] = np.inf
    mask = np.ones((1, keys), bool)
    assert np.isnan(fa.attention(q, k, v, mask=mask)[0, 0, 0, 0])  # 0 inf
    mask[0, 5] = False
    np.testing.assert_array_equal(fa.attention(q, k, v, mask=mask)[0, 0, 0], [1, 1])


@pytest.mark.usefixtures("isa")
def test_errors_follow_the_error_rule(rng, dtype):
    rule = ErrorRule()
    for size in SIZES:
        q, k, v = _inputs(rng, dtype, *size)
        q = q[:, :, :3]
        got = fa.attention(q, k, v, return_lse=True)
        for mine, simple, true in zip(got, plain.attention(q, k, v), exact(dtype).attention(q, k, v), strict=True):
            rule.add(mine, simple, true)
    rule.check()


def test_result_does_not_depend_on_thread_count(rng, any_dtype, isa, threads):
    q, k, v = _inputs(rng, any_dtype, 4, 1, 5000, 64, 64, batch=1)
    with fa.num_threads(1):
        alone = fa.attention(q[:, :, :2], k, v)
    assert _same(fa.attention(q[:, :, :2], k, v), alone)


def test_rounds_of_blocks_end_where_they_may(rng, isa):
    # So many rows and keys that the results of all blocks exceed one round.
    q, k, v = _inputs(rng, np.float32, 40, 1, 40_000, 8, 8, batch=1)
    q = q[:, :, :1]
    with fa.num_threads(1):
        alone = fa.attention(q, k, v)
    with fa.num_threads(2):
        assert _same(fa.attention(q, k, v), alone)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_does_not_depend_on_memory_layout(rng, any_dtype, layout):
    q, k, v = _inputs(rng, any_dtype, 4, 2, 530, 33, 17)
    q = q[:, :, :2]
    expected = fa.attention(q, k, v)
    assert _same(fa.attention(q, LAYOUTS[layout](k), LAYOUTS[layout](v)), expected)
    swapped = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (q, k, v))
    assert _same(fa.attention(*swapped, layout="blhd").swapaxes(1, 2), expected)


@pytest.mark.usefixtures("isa")
def test_empty_sizes(any_dtype):
    q, k = np.zeros((2, 4, 1, 0), any_dtype), np.zeros((2, 2, 5, 0), any_dtype)
    whole = np.arange(2 * 2 * 5 * 3).reshape(2, 2, 5, 3)
    v = whole.astype(any_dtype)
    np.testing.assert_array_equal(fa.attention(q, k, v)[:, ::2, 0], whole.mean(2))  # small integers: exact
    q, k = np.ones((2, 4, 1, 8), any_dtype), np.ones((2, 2, 0, 8), any_dtype)
    out, lse = fa.attention(q, k, v[:, :, :0], return_lse=True)
    assert not out.any()
    assert (lse == -np.inf).all()
    one, nine = np.ones((1, 1, 1, 8), any_dtype), np.ones((1, 1, 9, 8), any_dtype)
    assert fa.attention(one, nine, nine[..., :0]).shape == (1, 1, 1, 0)

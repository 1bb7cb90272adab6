"""Attention on bfloat16 and float16 arrays, under every instruction set (avx512bf16 multiplies pairs)."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import LAYOUTS
from tests.low_precision import BFLOAT16, LOW, LowPrecisionRule, Rounded, is_nan, same

# B, H, Hk, Lq, Lk, D, Dv: pairs cut by odd sizes, several blocks of keys, wide heads, decode
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1), (1, 1, 1, 3, 2, 2, 2), (1, 2, 2, 7, 7, 5, 3), (1, 1, 1, 17, 31, 16, 16),
    (1, 1, 1, 33, 47, 80, 15), (2, 2, 1, 60, 100, 64, 64), (1, 1, 1, 100, 33, 32, 65), (1, 1, 1, 13, 1100, 64, 64),
    (1, 4, 1, 1, 600, 128, 128), (1, 1, 1, 50, 513, 300, 257), (1, 1, 1, 130, 131, 33, 70),
]  # fmt: skip
OPTIONS = {
    "plain": {},
    "causal": {"causal": "bottom-right"},
    "top-left": {"causal": "top-left"},
    "window": {"window": (20, 3)},
    "causal window": {"causal": "bottom-right", "window": (37, 0)},
    "scale": {"scale": 0.3},
}


@pytest.fixture(params=LOW.values(), ids=LOW)
def low(request):
    """Runs the test with each 16-bit type."""
    return request.param


def arrays(rng, dtype, B, H, Hk, Lq, Lk, D, Dv):
    shapes = (B, H, Lq, D), (B, Hk, Lk, D), (B, Hk, Lk, Dv)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_errors_are_at_most_those_of_rounding_after_each_op(isa, low, options, rng):
    rule = LowPrecisionRule()
    for shape in SHAPES:
        q, k, v = arrays(rng, low, *shape)
        got = fa.attention(q, k, v, **options)
        rule.add(got, Rounded(low).attention(q, k, v, **options)[0], reference.attention(q, k, v, **options)[0])
    rule.check()


def test_masks_and_lengths_keep_the_error_rule(isa, low, rng):
    q, k, v = arrays(rng, low, 3, 4, 2, 50, 90, 40, 24)
    rule = LowPrecisionRule()
    added = np.where(rng.random((4, 50, 90)) < 0.2, -np.inf, rng.standard_normal((4, 50, 90))).astype(low)
    every = [
        {"mask": rng.random((3, 1, 50, 90)) < 0.6},
        {"mask": added},
        {"mask": np.asfortranarray(added)},
        {"kv_lengths": [90, 0, 37], "q_lengths": [50, 20, 3]},
        {"mask": rng.random((1, 90)) < 0.5, "causal": "bottom-right", "kv_lengths": [11, 90, 89]},
    ]
    for options in every:
        got = fa.attention(q, k, v, **options)
        rule.add(got, Rounded(low).attention(q, k, v, **options)[0], reference.attention(q, k, v, **options)[0])
    rule.check()


def test_large_scores_keep_the_error_rule(isa, low, rng):
    q, k, v = arrays(rng, low, 1, 2, 2, 40, 300, 64, 64)
    q = (8 * q.astype(np.float32)).astype(low)
    rule = LowPrecisionRule()
    rule.add(fa.attention(q, k, v), Rounded(low).attention(q, k, v)[0], reference.attention(q, k, v)[0])
    rule.check()


def test_strategy_blas_keeps_the_error_rule(isa, low, strategy, rng):
    q, k, v = arrays(rng, low, 1, 2, 1, 70, 600, 48, 40)
    rule = LowPrecisionRule()
    rule.add(fa.attention(q, k, v), Rounded(low).attention(q, k, v)[0], reference.attention(q, k, v)[0])
    rule.check()


def test_lse_is_float32_and_close(isa, low, rng):
    q, k, v = arrays(rng, low, 2, 2, 2, 30, 700, 64, 64)
    _, lse = fa.attention(q, k, v, return_lse=True)
    exact = reference.attention(q, k, v)[1]
    assert lse.dtype == np.float32
    # P rounded to bfloat16 (2^-9 relative each, both ways) is what pairs have; everything else sums floats.
    assert np.abs(lse - exact).max() <= (2**-9 if low == BFLOAT16 and isa in ("avx512bf16", "amxbf16") else 2e-6)


def test_rows_are_normalised(isa, low, rng):
    q, k, v = arrays(rng, low, 1, 2, 2, 50, 700, 64, 33)
    assert np.all(fa.attention(q, k, np.ones_like(v)) == 1)


def test_a_single_key_hands_on_its_value(isa, low, rng):
    q, k, v = arrays(rng, low, 3, 2, 2, 5, 9, 24, 40)
    mask = np.zeros(9, bool)
    mask[6] = True
    assert same(fa.attention(q, k, v, mask=mask), np.broadcast_to(v[:, :, 6:7], (3, 2, 5, 40)).copy())


def test_result_does_not_depend_on_threads_batch_or_padding(isa, low, threads, rng):
    q, k, v = arrays(rng, low, 3, 4, 2, 150, 700, 64, 64)
    with fa.num_threads(1):
        expected = fa.attention(q, k, v, causal="bottom-right")
    assert same(fa.attention(q, k, v, causal="bottom-right"), expected)
    alone = fa.attention(q[1:2, 2:4], k[1:2, 1:2], v[1:2, 1:2], causal="bottom-right")
    assert same(alone, expected[1:2, 2:4])
    longer = [np.concatenate([x, np.full((3, 2, 90, 64), np.nan, low)], axis=2) for x in (k, v)]
    assert same(fa.attention(q, *longer, causal="bottom-right", kv_lengths=[700] * 3), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_does_not_depend_on_layout(isa, low, layout, rng):
    q, k, v = arrays(rng, low, 2, 2, 2, 20, 37, 31, 18)
    expected = fa.attention(q, k, v)
    assert same(fa.attention(*(LAYOUTS[layout](x) for x in (q, k, v))), expected)
    swapped = fa.attention(*(x.swapaxes(1, 2) for x in (q, k, v)), layout="blhd")
    assert same(swapped.swapaxes(1, 2).copy(), expected)


def test_a_row_does_not_depend_on_the_others(isa, low, rng):
    q, k, v = arrays(rng, low, 1, 1, 1, 100, 333, 64, 64)
    expected = fa.attention(q, k, v)
    for row in (0, 1, 41, 99):
        assert same(fa.attention(q[:, :, row : row + 1], k, v), expected[:, :, row : row + 1])


@pytest.mark.parametrize("lq", [3, 20, 130])
def test_heads_of_no_dimension_weigh_all_keys_alike_whatever_was_in_memory(isa, low, lq, rng):
    _, q, k, v = with_dout(rng, low, 2, 4, 2, lq, 600, 0, 16)
    wide_q, wide_k = (np.zeros((*x.shape[:3], 64), low) for x in (q, k))
    dout = rng.standard_normal((2, 4, lq, 16)).astype(low)
    out, saved = fa.attention_forward(wide_q, wide_k, v)
    expected = out, fa.attention_backward(dout, saved)
    bad = np.full((2, 4, lq, 64), np.nan, low)
    for scale in (1.0, 0.5):
        fa.attention_backward(dout, fa.attention_forward(bad, wide_k, v)[1])  # leaves NaN in the scratch memory
        out, saved = fa.attention_forward(q, k, v, scale=scale)
        fa.attention_backward(dout, fa.attention_forward(bad, wide_k, v)[1])
        dq, dk, dv = fa.attention_backward(dout, saved)
        assert same(out, expected[0]) and same(dv, expected[1][2])
        assert dq.shape == q.shape and dk.shape == k.shape


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [(5, 3, 2), (40, 70, 64), (20, 1030, 33)])
def test_masked_values_are_not_arithmetic(isa, low, size, value, rng):
    queries, keys, D = size
    q, k, v = arrays(rng, low, 1, 1, 1, queries, keys, D, D)
    mask = rng.random(keys) < 0.7
    mask[0] = True
    expected = fa.attention(q, k, v, mask=mask)
    for x in (k, v):
        x[:, :, ~mask] = value
    assert same(fa.attention(q, k, v, mask=mask), expected)


def test_nan_reaches_exactly_the_rows_that_attend_to_it(isa, low, rng):
    q, k, v = arrays(rng, low, 1, 1, 1, 40, 40, 24, 20)
    clean = fa.attention(q, k, v, causal=True)
    for name, array in (("q", q), ("k", k), ("v", v)):
        before = array[0, 0, 17, 5]
        array[0, 0, 17, 5] = np.nan
        got = fa.attention(q, k, v, causal=True)
        array[0, 0, 17, 5] = before
        hit = np.zeros(got.shape, bool)
        if name == "q":
            hit[0, 0, 17] = True
        elif name == "k":
            hit[0, 0, 17:] = True
        else:
            hit[0, 0, 17:, 5] = True
        assert is_nan(got)[hit].all(), name
        assert np.array_equal(got[~hit].view(np.uint16), clean[~hit].view(np.uint16)), name


def test_infinite_values_stay_infinite_for_the_rows_that_attend(isa, low, rng):
    q, k, v = arrays(rng, low, 1, 1, 1, 30, 30, 16, 16)
    v[0, 0, 4, 3] = np.inf
    v[0, 0, 9, 7] = -np.inf
    got = fa.attention(q, k, v, causal=True).astype(np.float32)[0, 0]
    assert np.all(got[4:, 3] == np.inf)
    assert np.all(got[9:, 7] == -np.inf)
    assert np.isfinite(got[:4]).all()


def test_rows_without_keys_are_zero(isa, low, rng):
    q, k, v = arrays(rng, low, 1, 1, 1, 6, 4, 8, 8)
    out, lse = fa.attention(q, k, v, mask=np.zeros((6, 4), bool), return_lse=True)
    assert not out.view(np.uint16).any()
    assert np.all(lse == -np.inf)
    assert fa.attention(q, k[:, :, :0], v[:, :, :0]).astype(np.float32).sum() == 0
    assert fa.attention(q[:, :, :0], k, v).shape == (1, 1, 0, 8)


def test_out_is_written_and_returned(low, rng):
    q, k, v = arrays(rng, low, 1, 2, 2, 9, 11, 8, 6)
    expected, out = fa.attention(q, k, v), np.zeros((1, 2, 9, 6), low)
    assert fa.attention(q, k, v, out=out) is out
    assert same(out, expected)


@pytest.mark.parametrize("name", ["k", "v"])
def test_mixed_types_are_refused_by_name(low, name, rng):
    given = dict(zip("qkv", arrays(rng, low, 1, 1, 1, 3, 3, 4, 4), strict=True))
    given[name] = given[name].astype(np.float32)
    fix = "'bfloat16'" if low == BFLOAT16 else "np.float16"
    with pytest.raises(TypeError, match=rf"attention: {name} must be {low} .*got float32; pass {name}.astype\({fix}\)"):
        fa.attention(**given)


def test_a_mask_of_another_type_is_refused(low, rng):
    q, k, v = arrays(rng, low, 1, 1, 1, 3, 3, 4, 4)
    with pytest.raises(TypeError, match=f"attention: mask must be bool .* or {low} like q"):
        fa.attention(q, k, v, mask=np.zeros((3, 3), np.float32))


# ---- gradients ----

GRADIENT_SHAPES = [*SHAPES[:8], (1, 4, 2, 130, 270, 64, 64), (1, 1, 1, 50, 140, 160, 131)]


OPTION_DRAWS = 5  # of the gradients of sinks and slopes each has but 4 numbers


def gradients(dout, q, k, v, **options):
    """dq, dk, dv."""
    return fa.attention_backward(dout, fa.attention_forward(q, k, v, **options)[1])


def with_dout(rng, dtype, *shape):
    q, k, v = arrays(rng, dtype, *shape)
    return rng.standard_normal((*q.shape[:3], v.shape[3])).astype(dtype), q, k, v


def add_gradients(rules, low, args, options):
    """The gradients of one call, to the rules of dq, dk and dv."""
    results = zip(gradients(*args, **options), Rounded(low).attention_backward(*args, **options),
                  reference.attention_backward(*args, **options), strict=True)  # fmt: skip
    for rule, values in zip(rules, results, strict=True):
        rule.add(*values)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_errors_of_gradients_keep_the_error_rule(isa, low, options, rng):
    rules = [LowPrecisionRule() for _ in "qkv"]
    for shape in GRADIENT_SHAPES:
        args = with_dout(rng, low, *shape)
        add_gradients(rules, low, args, options)
    for rule in rules:
        rule.check(backward=True)


def test_gradients_with_masks_and_lengths_keep_the_error_rule(isa, low, rng):
    args = with_dout(rng, low, 3, 4, 2, 50, 290, 40, 24)
    added = np.where(rng.random((4, 50, 290)) < 0.2, -np.inf, rng.standard_normal((4, 50, 290))).astype(low)
    rules = [LowPrecisionRule() for _ in "qkv"]
    for options in (
        {"mask": rng.random((3, 1, 50, 290)) < 0.6},
        {"mask": added},
        {"mask": np.asfortranarray(added)},
        {"kv_lengths": [290, 0, 37], "q_lengths": [50, 20, 3]},
    ):
        add_gradients(rules, low, args, options)
    for rule in rules:
        rule.check(backward=True)


def test_gradients_do_not_depend_on_threads_batch_padding_or_layout(isa, low, rng):
    args = with_dout(rng, low, 3, 4, 2, 151, 301, 48, 40)
    with fa.num_threads(1):
        expected = gradients(*args, causal="bottom-right")
    for n in (2, 3, 7):
        with fa.num_threads(n):
            assert all(map(same, gradients(*args, causal="bottom-right"), expected))
    heads = [x[1:2, 2:4] for x in args[:2]] + [x[1:2, 1:2] for x in args[2:]]
    alone = gradients(*heads, causal="bottom-right")
    assert same(alone[0], expected[0][1:2, 2:4])
    assert all(same(x, y[1:2, 1:2]) for x, y in zip(alone[1:], expected[1:], strict=True))
    longer = [np.concatenate([x, np.full((*x.shape[:2], 90, x.shape[3]), np.nan, low)], axis=2) for x in args]
    padded = gradients(*longer, causal="bottom-right", q_lengths=[151] * 3, kv_lengths=[301] * 3)
    for x, y in zip(padded, expected, strict=True):
        assert same(x[:, :, : y.shape[2]].copy(), y) and not x[:, :, y.shape[2] :].view(np.uint16).any()
    for arrange in LAYOUTS.values():
        assert all(map(same, gradients(*map(arrange, args), causal="bottom-right"), expected))


def test_gradients_of_many_heads_taken_in_rounds_are_those_of_each_alone(isa, low, rng):
    """Sums of dq have a buffer for some heads at a time: here for 7 of 10."""
    args = with_dout(rng, low, 1, 10, 10, 4200, 5, 128, 3)
    together = gradients(*args)
    for h in (0, 6, 7, 9):
        alone = gradients(*(x[:, h : h + 1] for x in args))
        assert all(same(x[:, h : h + 1].copy(), y) for x, y in zip(together, alone, strict=True))


def test_padding_changes_no_gradient_of_a_mask_without_keys(isa, low, rng):
    """Each element is a sum over all heads and keys, taken in rounds that must not depend on the number of rows."""
    dout, q, k, v = with_dout(rng, low, 1, 8, 8, 2100, 140, 256, 3)
    mask = rng.standard_normal((2100, 1)).astype(low)
    longer = [np.concatenate([x, x], axis=2) for x in (dout, q)]
    results = []
    for a, b, added, lengths in ((dout, q, mask, None), (*longer, np.concatenate([mask, mask]), [2100])):
        saved = fa.attention_forward(b, k, v, mask=added, q_lengths=lengths)[1]
        results.append(fa.attention_backward(a, saved, gradients=["mask"]).dmask)
    assert same(results[1][:2100], results[0])


def test_masked_values_reach_no_gradient(isa, low, rng):
    dout, q, k, v = with_dout(rng, low, 1, 2, 2, 121, 301, 24, 16)
    mask = rng.random((121, 301)) < 0.7
    mask[:, [5, 270]] = mask[7] = False
    clean = gradients(dout, q, k, v, mask=mask)
    for bad in (np.nan, np.inf):
        dout[:, :, 7] = q[:, :, 7] = k[:, :, [5, 270]] = v[:, :, [5, 270]] = bad
        assert all(map(same, gradients(dout, q, k, v, mask=mask), clean))


def test_nan_reaches_the_gradients_of_the_pairs_that_attend(isa, low, rng):
    args = with_dout(rng, low, 1, 1, 1, 120, 300, 16, 16)
    mask = np.ones((120, 300), bool)
    mask[:, 50:] = mask[11, 20] = False
    clean = gradients(*args, mask=mask)
    for index, place in ((0, (11, 3)), (1, (11, 3)), (2, (20, 3)), (3, (20, 3))):
        poisoned = [x.copy() for x in args]
        poisoned[index][0, 0][place] = np.nan
        dq, dk, dv = gradients(*poisoned, mask=mask)
        rows = np.arange(120) == 11 if index < 2 else mask[:, 20]
        assert is_nan(dq)[0, 0, rows].all()
        assert same(dq[:, :, ~rows], clean[0][:, :, ~rows])
        if index < 2:
            assert is_nan(dk)[0, 0, mask[11]].any(-1).all()
            assert same(dk[:, :, ~mask[11]], clean[1][:, :, ~mask[11]])
            assert same(dv[:, :, ~mask[11]], clean[2][:, :, ~mask[11]])


@pytest.mark.parametrize("mask_shape", [(281,), (4, 110, 281), (2, 1, 110, 1)])
def test_gradients_of_mask_sinks_and_slopes_are_of_their_types(isa, low, mask_shape, rng):
    rules = [LowPrecisionRule() for _ in range(3)]
    for _ in range(OPTION_DRAWS):
        args = with_dout(rng, low, 2, 4, 2, 110, 281, 16, 16)
        options = {
            "mask": rng.standard_normal(mask_shape).astype(low),
            "sinks": rng.standard_normal(4).astype(low),
            "alibi_slopes": (rng.random(4) / 16).astype(low),
        }
        saved = fa.attention_forward(*args[1:], **options)[1]
        got = fa.attention_backward(args[0], saved, gradients=tuple(options))[3:]
        results = (of.attention_option_gradients(*args, **options) for of in (Rounded(low), reference))
        for rule, *values in zip(rules, got, *results, strict=True):
            rule.add(*values)
    for rule in rules:
        rule.check(backward=True)
    with fa.num_threads(3):
        assert all(map(same, fa.attention_backward(args[0], saved, gradients=tuple(options))[3:], got))

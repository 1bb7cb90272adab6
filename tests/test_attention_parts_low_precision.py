"""attention_weights, merge_attention and additive attention on bfloat16 and float16 arrays: float32 arithmetic, rounded
once; and float32 sinks and slopes beside such arrays."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import LAYOUTS
from tests.low_precision import LOW, LowPrecisionRule, Rounded, same
from tests.test_additive import everything, gradient_of_context, gradients, options_of
from tests.test_additive import inputs as additive_inputs

ADDITIVE = [
    (3, 4, 1, 1, 1),
    (5, 18, 131, 19, 66),
    (2, 1, 50, 64, 40),
    (0, 2, 3, 4, 5),
    (2, 3, 0, 4, 5),
    (2, 3, 4, 5, 0),
]


@pytest.fixture(params=LOW.values(), ids=LOW)
def low(request):
    """Runs the test with each 16-bit type."""
    return request.param


def wide(*arrays):
    return [x.astype(np.float32) if getattr(x, "dtype", None) in LOW.values() else x for x in arrays]


def wide_options(options):
    return dict(zip(options, wide(*options.values()), strict=True))


def draw(rng, low, *shapes):
    return [rng.standard_normal(shape, np.float32).astype(low) for shape in shapes]


def qkv(rng, low, Lq=37, Lk=61):
    return draw(rng, low, (2, 4, Lq, 16), (2, 2, Lk, 16), (2, 2, Lk, 8))


def per_head(rng, low):
    return {"sinks": rng.standard_normal(4, np.float32).astype(low), "alibi_slopes": rng.random(4).astype(low)}


# ---- attention_weights ----


def test_weights_are_the_rounded_ones_of_float32(isa, low, threads, rng):
    for Lq, Lk in ((37, 61), (1, 600), (100, 1), (0, 5), (5, 0)):
        q, k, v = qkv(rng, low, Lq, Lk)
        (bias,) = draw(rng, low, (4, 1, Lk))
        repeated = {"mask": rng.random((Lq, Lk)) < 0.7, "bias": np.broadcast_to(bias, (2, 4, Lq, Lk))}
        for options in ({}, {"mask": bias, **per_head(rng, low)}, repeated):
            _, lse = fa.attention(q, k, v, return_lse=True, **options)
            rows = {"heads": [2, 0], "rows": slice(1, None, 2)}
            got = fa.attention_weights(q, k, lse, **rows, **options)
            assert same(got, fa.attention_weights(*wide(q, k), lse, **rows, **wide_options(options)).astype(low))


def test_weights_keep_the_error_rule_and_no_layout_changes_them(isa, low, rng):
    rule = LowPrecisionRule()
    for Lq, Lk in ((37, 61), (50, 300)):
        q, k, v = qkv(rng, low, Lq, Lk)
        lse = fa.attention(q, k, v, return_lse=True)[1]
        weights = fa.attention_weights(q, k, lse)
        identity = np.broadcast_to(np.eye(Lk, dtype=low), (2, 2, Lk, Lk))
        rule.add(weights, Rounded(low).attention(q, k, identity)[0], reference.attention(q, k, identity)[0])
        for layout in LAYOUTS.values():
            assert same(fa.attention_weights(*map(layout, (q, k, lse))), weights)
        swapped = [x.swapaxes(1, 2) for x in (q, k, lse)]
        assert same(fa.attention_weights(*swapped, layout="blhd").swapaxes(1, 2), weights)
    rule.check()


# ---- merge_attention ----


def halves(q, k, v, cut):
    first, second = ((k[:, :, part], v[:, :, part]) for part in (slice(cut), slice(cut, None)))
    return *fa.attention(q, *first, return_lse=True), *fa.attention(q, *second, return_lse=True)


def test_merged_halves_are_the_rounded_ones_of_float32(isa, low, threads, rng):
    for Lq, cut in ((37, 30), (37, 0), (300, 61), (0, 7)):
        parts = halves(*qkv(rng, low, Lq), cut)
        out, lse = fa.merge_attention(*parts)
        want, wide_lse = fa.merge_attention(*wide(*parts))
        assert same(out, want.astype(low))
        assert np.array_equal(lse, wide_lse) and lse.dtype == np.float32
        if cut in (0, 61):
            assert same(out, parts[2 if cut == 0 else 0])
        for layout in LAYOUTS.values():
            assert same(fa.merge_attention(*map(layout, parts))[0], out)


def test_merging_adds_one_rounding(isa, low, rng):
    rule = LowPrecisionRule()
    for cut in (1, 30, 60):
        out_a, lse_a, out_b, lse_b = halves(*qkv(rng, low), cut)
        weights = [np.exp(x.astype(np.float64) - np.logaddexp(lse_a, lse_b))[..., None] for x in (lse_a, lse_b)]
        truth = weights[0] * out_a.astype(np.float64) + weights[1] * out_b.astype(np.float64)
        a, b = (x.astype(low).astype(np.float32) for x in weights)
        plain = (a * wide(out_a)[0]).astype(low).astype(np.float32) + (b * wide(out_b)[0]).astype(low).astype(
            np.float32
        )
        rule.add(fa.merge_attention(out_a, lse_a, out_b, lse_b)[0], plain.astype(low), truth)
    rule.check()


# ---- additive attention ----


def test_additive_attention_is_the_rounded_one_of_float32(isa, low, threads, rng):
    for shape in ADDITIVE:
        arrays = additive_inputs(rng, low, *shape)
        dcontext = gradient_of_context(rng, arrays)
        for options in options_of(rng, low, *shape[:3]):
            context, saved = fa.additive_attention_forward(*arrays, **options)
            want, wide_saved = fa.additive_attention_forward(*wide(*arrays), **wide_options(options))
            assert same(context, want.astype(low))
            assert same(saved.weights, wide_saved.weights.astype(low))
            both = fa.additive_attention(*arrays, **options, return_weights=True)
            assert same(both[0], context) and same(both[1], saved.weights)
            of_rounded = fa.SavedAdditive(*wide_saved.__dict__.values())
            object.__setattr__(of_rounded, "weights", wide(saved.weights)[0])
            wanted = fa.additive_attention_backward(*wide(dcontext), of_rounded)
            for a, b in zip(fa.additive_attention_backward(dcontext, saved), wanted, strict=True):
                assert same(a, b.astype(low))


def test_additive_attention_keeps_the_error_rule(isa, low, rng):
    rules = [LowPrecisionRule() for _ in range(6)]
    for shape in [(5, 18, 131, 19, 66), (4, 33, 17, 16, 130), (9, 11, 6, 257, 5)]:
        arrays = additive_inputs(rng, low, *shape)
        dcontext = gradient_of_context(rng, arrays)
        for options in options_of(rng, low, *shape[:3]):
            got = (
                *fa.additive_attention(*arrays, **options, return_weights=True),
                *gradients(dcontext, *arrays, **options),
            )
            specified = [(*s.additive_attention(*arrays, **options),
                          *s.additive_attention_backward(dcontext, *arrays, **options))
                         for s in (Rounded(low), reference)]  # fmt: skip
            for rule, *parts in zip(rules, got, *specified, strict=True):
                rule.add(*parts)
    for i, rule in enumerate(rules):
        rule.check(backward=i > 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_memory_change_nothing(low, layout, rng):
    arrays = additive_inputs(rng, low)
    dcontext, mask = gradient_of_context(rng, arrays), draw(rng, low, (7, 19))[0]
    change = LAYOUTS[layout]
    got = everything([change(x) for x in arrays], change(dcontext), mask=change(mask))
    assert all(map(same, got, everything(arrays, dcontext, mask=mask)))


# ---- float32 sinks and slopes ----


def test_float32_sinks_and_slopes_of_few_digits_give_the_bits_of_16_bit_ones(isa, low, rng):
    for Lq in (1, 37):
        q, k, v = qkv(rng, low, Lq)
        few = per_head(rng, low)
        dout = draw(rng, low, (2, 4, Lq, 8))[0]
        results = []
        for options in (few, wide_options(few)):
            out, saved = fa.attention_forward(q, k, v, **options)
            got = fa.attention_backward(dout, saved, gradients=("sinks", "alibi_slopes"))
            results.append((out, got.dq, got.dk, got.dv, got.dsinks, got.dalibi_slopes))
        for a, b in zip(*results, strict=True):
            assert same(a, b.astype(low))
        assert all(x.dtype == np.float32 for x in results[1][4:])
        cache = fa.KVCache(2, 2, 16, v_dim=8, dtype=low)
        cache.append(k, v)
        assert same(cache.attend(q, **wide_options(few)), results[0][0])


def test_float32_sinks_and_slopes_count_in_full(isa, low, rng):
    q, k, v = qkv(rng, low)
    full = {name: x + np.float32(2**-20) for name, x in per_head(rng, np.float32).items()}
    lse = fa.attention(q, k, v, return_lse=True, **full)[1]
    np.testing.assert_allclose(lse, reference.attention(*wide(q, k, v), **full)[1], rtol=2e-6)
    assert same(fa.attention_weights(q, k, lse, **full), fa.attention_weights(*wide(q, k), lse, **full).astype(low))


def test_mixed_types_are_named(low, rng):
    q, k, v = qkv(rng, low)
    out, lse = fa.attention(q, k, v, return_lse=True)
    query, keys, values, vector = additive_inputs(rng, low)
    _, saved = fa.additive_attention_forward(query, keys, values, vector)
    like = r"must be b?float16 like the other arrays, got float32"
    for message, call in (
        (rf"attention_weights: k {like}", lambda: fa.attention_weights(q, *wide(k), lse)),
        (r"attention_weights: lse must be float32 like .*float16", lambda: fa.attention_weights(q, k, lse.astype(low))),
        (r"attention_weights: mask must be .*float16 like q",
         lambda: fa.attention_weights(q, k, lse, mask=np.zeros((37, 61), np.float32))),
        (rf"merge_attention: out_b {like}", lambda: fa.merge_attention(out, lse, *wide(out), lse)),
        (r"merge_attention: lse_a must be float32 like", lambda: fa.merge_attention(out, lse.astype(low), out, lse)),
        (rf"additive_attention: v {like}", lambda: fa.additive_attention(query, keys, values, *wide(vector))),
        (rf"additive_attention_backward: dcontext {like}",
         lambda: fa.additive_attention_backward(np.ones((2, 7, 17), np.float32), saved)),
        (r"attention: sinks must be b?float16 like the other arrays, got float64",
         lambda: fa.attention(q, k, v, sinks=np.zeros(4))),
        (r"attention: sinks must be float32 like the other arrays, got b?float16",
         lambda: fa.attention(*wide(q, k, v), sinks=np.zeros(4, low))),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=message):
            call()

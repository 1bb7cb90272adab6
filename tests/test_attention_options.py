"""Options of attention that change scores: softcap, alibi_slopes, sinks, with each other and with what excludes."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

SIZES = [(1, 1, 1), (2, 15, 3), (7, 16, 8), (97, 17, 64), (192, 513, 129), (13, 1031, 5)]  # Lq, Lk, D = Dv


def median_counts(strategy):
    """As in test_attention.py: of the kernels with multiply-adds."""
    return strategy == "fused" and fa.config.get_isa() != "baseline"


def inputs(rng, dtype, B=2, H=4, Hk=2, Lq=37, Lk=61, D=24, Dv=17):
    shapes = (B, H, Lq, D), (B, Hk, Lk, D), (B, Hk, Lk, Dv)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def drawn_options(rng, dtype, B, H, Lq, Lk):
    """Each option or not, at random."""
    options = {}

    def maybe(name, value):
        if rng.random() < 0.5:
            options[name] = value

    maybe("scale", float(rng.uniform(0.1, 1)))
    maybe("softcap", float(rng.choice([0.5, 2, 30])))
    maybe("alibi_slopes", rng.random(H).astype(dtype))
    maybe("sinks", (3 * rng.standard_normal(H)).astype(dtype))
    maybe("causal", str(rng.choice(["top-left", "bottom-right"])))
    maybe("window", (int(rng.integers(0, 90)), None if rng.random() < 0.5 else int(rng.integers(0, 90))))
    maybe("q_lengths", rng.integers(0, Lq + 1, B))
    maybe("kv_lengths", rng.integers(0, Lk + 1, B))
    if rng.random() < 0.5:
        maybe("mask", rng.random((B, 1, Lq, Lk)) < 0.6)
    else:
        added = rng.standard_normal((H, Lq, Lk)).astype(dtype)
        maybe("mask", np.where(rng.random(added.shape) < 0.3, dtype.type(-np.inf), added))
    return options


def every_score_option(rng, dtype, H):
    return {
        "softcap": 3.0,
        "alibi_slopes": rng.random(H).astype(dtype),
        "sinks": rng.standard_normal(H).astype(dtype),
        "causal": "bottom-right",
        "window": (40, None),
    }


def test_combinations_follow_the_error_rule(isa, strategy, dtype, rng):
    of_out, of_lse = ErrorRule(), ErrorRule()
    for _ in range(12):
        Hk, group = rng.integers(1, 3, 2)
        Lq, Lk = rng.integers(1, 120), rng.integers(1, 600)
        D, Dv = rng.integers(1, 70, 2)
        q, k, v = inputs(rng, dtype, 2, Hk * group, Hk, Lq, Lk, D, Dv)
        options = drawn_options(rng, dtype, 2, Hk * group, Lq, Lk)
        got = fa.attention(q, k, v, return_lse=True, **options)
        for rule, *results in zip(
            (of_out, of_lse), got, plain.attention(q, k, v, **options), exact(dtype).attention(q, k, v, **options),
            strict=True,
        ):  # fmt: skip
            rule.add(*results)
    of_out.check(median=median_counts(strategy))
    of_lse.check(median=False)


@pytest.mark.parametrize("option", ["softcap", "alibi_slopes", "sinks"])
def test_each_option_alone_follows_the_error_rule(option, isa, strategy, dtype, rng):
    rule = ErrorRule()
    for Lq, Lk, D in SIZES:
        q, k, v = inputs(rng, dtype, 1, 2, 1, Lq, Lk, D, D)
        options = {option: 1.5 if option == "softcap" else rng.standard_normal(2).astype(dtype)}
        yardstick, truth = plain.attention(q, k, v, **options)[0], exact(dtype).attention(q, k, v, **options)[0]
        rule.add(fa.attention(q, k, v, **options), yardstick, truth)
    rule.check(median=median_counts(strategy))


def test_neutral_options_change_no_bit(isa, strategy, dtype, rng):
    q, k, v = inputs(rng, dtype)
    expected = fa.attention(q, k, v)
    assert same_bits(fa.attention(q, k, v, softcap=0), expected)
    assert same_bits(fa.attention(q, k, v, alibi_slopes=np.zeros(4, dtype)), expected)
    assert same_bits(fa.attention(q, k, v, sinks=np.full(4, -np.inf, dtype)), expected)


def test_a_sink_is_a_key_whose_value_is_zero(isa, strategy, dtype, rng):
    q, k, v = inputs(rng, dtype, H=2, Hk=2, D=8)
    q[..., 0] = np.sqrt(8)  # so that a key of (sink, 0, 0, ...) has the score `sink`
    k[..., 0] = 0
    sinks = rng.standard_normal(2).astype(dtype)
    sink_keys = np.zeros((2, 2, 1, 8), dtype)
    sink_keys[:, :, 0, 0] = sinks
    longer = np.concatenate([k, sink_keys], axis=2), np.concatenate([v, np.zeros_like(v[:, :, :1])], axis=2)
    rule = ErrorRule()
    rule.add(fa.attention(q, k, v, sinks=sinks), plain.attention(q, *longer)[0], exact(dtype).attention(q, *longer)[0])
    rule.check(median=False)


def test_alibi_is_measured_from_the_aligned_diagonal(isa, dtype):
    q, v = np.zeros((1, 1, 2, 4), dtype), np.eye(5, dtype=dtype)[None, None]
    k = np.zeros((1, 1, 5, 4), dtype)
    slopes = np.ones(1, dtype)
    for causal, diagonal in ((False, 3), ("bottom-right", 3), ("top-left", 0)):
        weights = fa.attention(q, k, v, alibi_slopes=slopes, causal=causal)[0, 0]
        expected = np.exp(-np.abs(np.arange(2)[:, None] + diagonal - np.arange(5)).astype(dtype))
        if causal:
            expected = np.where(np.arange(5) <= np.arange(2)[:, None] + diagonal, expected, 0)
        np.testing.assert_allclose(weights, expected / expected.sum(-1, keepdims=True), rtol=8 * np.finfo(dtype).eps)


def test_result_does_not_depend_on_threads_batch_or_tile(isa, strategy, dtype, rng):
    q, k, v = inputs(rng, dtype, B=3, Lq=203, Lk=530)
    options = every_score_option(rng, dtype, 4)
    expected = fa.attention(q, k, v, **options)
    for n in (1, 2, 3):
        with fa.num_threads(n):
            assert same_bits(fa.attention(q, k, v, **options), expected)
    assert same_bits(fa.attention(q[1:2], k[1:2], v[1:2], **options), expected[1:2])
    head = {**options, "alibi_slopes": options["alibi_slopes"][2:], "sinks": options["sinks"][2:]}
    assert same_bits(fa.attention(q[:, 2:], k[:, 1:], v[:, 1:], **head), expected[:, 2:])
    if strategy == "fused":
        last = fa.attention(q[:, :, -1:], k, v, **options)
        assert same_bits(last, expected[:, :, -1:])


def test_masks_that_say_the_same_give_the_same_bits(isa, strategy, dtype, rng):
    q, k, v = inputs(rng, dtype, Lq=110, Lk=600)
    options = {
        "softcap": 3.0,
        "alibi_slopes": rng.random(4).astype(dtype),
        "sinks": rng.standard_normal(4).astype(dtype),
    }
    i, j = np.arange(110)[:, None] + 490, np.arange(600)
    allowed = (j <= i) & (j >= i - 70)
    expected = fa.attention(q, k, v, causal="bottom-right", window=(70, None), **options)
    added = np.where(allowed, 0, -np.inf).astype(dtype)
    for mask in (
        allowed,
        added,
        np.asfortranarray(allowed),
        np.asfortranarray(added),
        LAYOUTS["negative strides"](added),
    ):
        assert same_bits(fa.attention(q, k, v, mask=mask, **options), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_slopes_and_sinks_changes_nothing(layout, rng):
    q, k, v = inputs(rng, np.float32)
    slopes, sinks = rng.random((2, 4), np.float32)
    expected = fa.attention(q, k, v, alibi_slopes=slopes, sinks=sinks)
    arrange = LAYOUTS[layout]
    assert same_bits(fa.attention(q, k, v, alibi_slopes=arrange(slopes), sinks=arrange(sinks)), expected)


def test_both_layouts_of_heads_give_the_same_bits(isa, strategy, dtype, rng):
    q, k, v = inputs(rng, dtype)
    options = every_score_option(rng, dtype, 4)
    out, lse = fa.attention(q, k, v, return_lse=True, **options)
    other, other_lse = fa.attention(*(x.swapaxes(1, 2) for x in (q, k, v)), layout="blhd", return_lse=True, **options)
    assert same_bits(out, other.swapaxes(1, 2))
    assert same_bits(lse, other_lse.swapaxes(1, 2))


@pytest.mark.parametrize("Lk", [1, 3, 16, 65, 600])
def test_rows_without_keys_are_zero_and_their_lse_is_the_sink(Lk, isa, strategy, dtype, rng):
    q, k, v = inputs(rng, dtype, Lq=9, Lk=Lk)
    sinks = np.array([1, -2, 0.5, -np.inf], dtype)
    mask = np.ones((9, Lk), bool)
    mask[2] = False
    out, lse = fa.attention(q, k, v, mask=mask, sinks=sinks, q_lengths=[5, 9], return_lse=True)
    assert not out[:, :, 2].any() and not out[0, :, 5:].any()
    np.testing.assert_allclose(lse[:, :, 2], np.stack([sinks, sinks]), rtol=2 * np.finfo(dtype).eps)
    assert (lse[0, :, 5:] == -np.inf).all()
    out, lse = fa.attention(q, k[:, :, :0], v[:, :, :0], sinks=sinks, return_lse=True)
    assert out.shape == (2, 4, 9, 17) and not out.any()
    np.testing.assert_allclose(lse[0, :, 0], sinks, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("sink", [np.nan, np.inf])
def test_a_sink_that_is_nan_or_infinite_makes_its_head_nan(sink, isa, strategy, dtype, rng):
    q, k, v = inputs(rng, dtype)
    sinks = np.array([0, sink, 0, 0], dtype)
    out, lse = fa.attention(q, k, v, sinks=sinks, return_lse=True)
    assert np.isnan(out[:, 1]).all() and np.isnan(lse[:, 1]).all()
    assert np.isfinite(out[:, [0, 2, 3]]).all()


def test_a_huge_sink_leaves_nothing_to_the_keys(isa, strategy, dtype, rng):
    q, k, v = inputs(rng, dtype)
    for sink in (200.0, 1e6, 1e9, 1e30):
        out, lse = fa.attention(q, k, v, sinks=np.full(4, sink, dtype), return_lse=True)
        assert np.abs(out).max() < 1e-30
        np.testing.assert_allclose(lse, sink, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("names", ["softcap", "alibi_slopes", "softcap alibi_slopes sinks"])
def test_nan_reaches_exactly_the_rows_that_attend_to_it(names, isa, strategy, dtype, rng):
    q, k, v = inputs(rng, dtype, H=2, Hk=2, Lq=20, Lk=70)
    values = {"softcap": 2.0, "alibi_slopes": np.array([0.5, 0], dtype), "sinks": np.zeros(2, dtype)}
    options = {"window": (10, 10)} | {name: values[name] for name in names.split()}
    expected = fa.attention(q, k, v, **options)
    k[:, :, 40] = np.nan
    attends = np.abs(np.arange(20) + 50 - 40) <= 10
    out = fa.attention(q, k, v, **options)
    assert np.isnan(out[:, :, attends]).all()
    assert same_bits(out[:, :, ~attends], expected[:, :, ~attends])


def test_nan_slope_makes_its_head_nan(isa, strategy, dtype, rng):
    q, k, v = inputs(rng, dtype)
    out = fa.attention(q, k, v, alibi_slopes=np.array([0, np.nan, 1, 2], dtype))
    assert np.isnan(out[:, 1]).all() and np.isfinite(out[:, [0, 2, 3]]).all()


def test_forward_gives_the_same_bits_as_attention_and_keeps_its_arguments(isa, strategy, dtype, rng):
    q, k, v = inputs(rng, dtype)
    options = every_score_option(rng, dtype, 4)
    for layout in ("bhld", "blhd"):
        arranged = [x.swapaxes(1, 2).copy() if layout == "blhd" else x for x in (q, k, v)]
        expected, lse = fa.attention(*arranged, layout=layout, return_lse=True, **options)
        out, saved = fa.attention_forward(*arranged, layout=layout, **options)
        assert same_bits(out, expected) and same_bits(saved.lse, lse)
        assert saved.q is arranged[0] and saved.k is arranged[1] and saved.v is arranged[2] and saved.out is out
        R, total = saved.state.astype(np.float64)
        assert (np.round(R) == R).all()
        lse = lse if layout == "bhld" else lse.swapaxes(1, 2)
        np.testing.assert_allclose(R * np.log(2) + np.log(total), lse, rtol=0, atol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"softcap": -1.0}, ValueError, "softcap must be a finite number of at least 0"),
        ({"softcap": np.nan}, ValueError, "softcap must be a finite number"),
        ({"softcap": np.inf}, ValueError, "softcap must be a finite number"),
        ({"softcap": "x"}, TypeError, "softcap must be a number"),
        ({"softcap": None}, TypeError, "softcap must be a number"),
        ({"alibi_slopes": np.ones(2, np.float32)}, ValueError, r"alibi_slopes must have shape \(4,\).*\(2,\)"),
        ({"alibi_slopes": np.ones((1, 4), np.float32)}, ValueError, "alibi_slopes must have 1 axes"),
        ({"alibi_slopes": np.ones(4)}, TypeError, "alibi_slopes must be float32 like"),
        ({"alibi_slopes": np.ones(4, int)}, TypeError, "alibi_slopes must be float32"),
        ({"sinks": np.ones(5, np.float32)}, ValueError, r"sinks must have shape \(4,\).*\(5,\)"),
        ({"sinks": 1.0}, (TypeError, ValueError), "sinks must"),
        ({"sinks": np.ones(4)}, TypeError, "sinks must be float32 like"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, error, message, rng):
    q, k, v = inputs(rng, np.float32)
    with pytest.raises(error, match=message):
        fa.attention(q, k, v, **options)
    with pytest.raises(error, match=message):
        fa.attention_forward(q, k, v, **options)

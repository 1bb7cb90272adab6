"""Gradients of attention to a part of the keys, with a gradient of lse, from saved arrays, and in float32."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.low_precision import BFLOAT16, FLOAT16
from tests.specification import exact, plain
from tests.test_attention_backward import arrays

OPTION_NAMES = ("sinks", "alibi_slopes")


def drawn(rng, dtype, B=2, H=4, Hk=2, Lq=110, Lk=281, D=24, Dv=16):
    """dout, q, k, v, dlse."""
    return *arrays(rng, dtype, B=B, H=H, Hk=Hk, Lq=Lq, Lk=Lk, D=D, Dv=Dv), of_rows(rng, (B, H, Lq), dtype)


def of_rows(rng, shape, dtype):
    return rng.standard_normal(shape).astype(np.float64 if dtype == np.float64 else np.float32)


def score_options(rng, dtype):
    slopes, sinks = (rng.random(4) / 8).astype(dtype), rng.standard_normal(4).astype(dtype)
    return {"softcap": 3.0, "alibi_slopes": slopes, "sinks": sinks}


def part_options(rng, dtype):
    """Without slopes, whose distances are from the diagonal of the keys at hand."""
    return {name: value for name, value in score_options(rng, dtype).items() if name != "alibi_slopes"}


def parts_of(args, whole, cuts, options, **request):
    """The gradients of k and v cut in pieces, as one: dq added up, dk and dv put together."""
    dout, q, k, v = args
    results = []
    for begin, end in zip((0, *cuts), (*cuts, k.shape[2]), strict=True):
        saved = fa.saved_attention(q, k[:, :, begin:end], v[:, :, begin:end], *whole, **options)
        results.append(fa.attention_backward(dout, saved, partial=True, **request))
    dq, dk, dv = zip(*[result[:3] for result in results], strict=True)
    return sum(dq), np.concatenate(dk, axis=2), np.concatenate(dv, axis=2)


def check_rule(rules, median=True):
    for rule in rules:
        rule.check(median=median and fa.config.get_isa() != "baseline", backward=True)


# ---- values ----


@pytest.mark.parametrize("shape", [(110, 281), (281, 110)], ids=str)
def test_gradients_with_dlse_follow_the_error_rule(isa, dtype, shape, rng):
    rules = [ErrorRule() for _ in "qkv"]
    for draw in range(6):
        options = score_options(rng, dtype) if draw % 2 else {}
        dout, q, k, v, dlse = drawn(rng, dtype, Lq=shape[0], Lk=shape[1])
        got = fa.attention_backward(dout, fa.attention_forward(q, k, v, **options)[1], dlse=dlse)
        sides = [of.attention_backward(dout, q, k, v, dlse=dlse, **options) for of in (plain, exact(dtype))]
        for rule, *values in zip(rules, got, *sides, strict=True):
            rule.add(*values)
    check_rule(rules)


def test_gradients_of_sinks_and_slopes_with_dlse_follow_the_error_rule(isa, dtype, rng):
    rules = [ErrorRule() for _ in OPTION_NAMES]
    for _ in range(60):  # each has but 4 numbers
        options = score_options(rng, dtype)
        dout, q, k, v, dlse = drawn(rng, dtype, Lq=41, Lk=30, D=8, Dv=8)
        saved = fa.attention_forward(q, k, v, **options)[1]
        got = fa.attention_backward(dout, saved, dlse=dlse, gradients=OPTION_NAMES)
        sides = [of.attention_option_gradients(dout, q, k, v, dlse=dlse, **options) for of in (plain, exact(dtype))]
        for rule, *values in zip(rules, got[4:], *(side[1:] for side in sides), strict=True):
            rule.add(*values)
    check_rule(rules, median=False)


def test_gradients_of_a_part_follow_the_error_rule(isa, dtype, rng):
    rules = [ErrorRule() for _ in "qkv"]
    for draw in range(6):
        options = part_options(rng, dtype) if draw % 2 else {}
        dout, q, k, v, dlse = drawn(rng, dtype)
        whole = fa.attention(q, k, v, return_lse=True, **options)
        part = slice(100, 230)
        saved = fa.saved_attention(q, k[:, :, part], v[:, :, part], *whole, **options)
        got = fa.attention_backward(dout, saved, partial=True, dlse=dlse)
        arguments = dout, q, k[:, :, part], v[:, :, part]
        results = []
        for of in (plain, exact(dtype)):
            of_all = of.attention(q, k, v, **options)
            results.append(of.attention_backward(*arguments, dlse=dlse, whole=of_all, **options))
        for rule, *values in zip(rules, got, *results, strict=True):
            rule.add(*values)
    check_rule(rules)


@pytest.mark.parametrize("cuts", [(100,), (1, 128, 270), (0, 281)], ids=str)
def test_gradients_of_parts_add_up_to_those_of_the_whole(isa, cuts, rng):
    options = part_options(rng, np.float64)
    dout, q, k, v, dlse = drawn(rng, np.float64)
    out, saved = fa.attention_forward(q, k, v, **options)
    expected = fa.attention_backward(dout, saved, dlse=dlse)
    got = parts_of((dout, q, k, v), (out, saved.lse), cuts, options, dlse=dlse)
    for ours, right in zip(got, expected, strict=True):
        assert np.abs(ours - right).max() <= 1e-13 * np.abs(right).max()


def test_gradients_from_arrays_follow_the_error_rule(isa, dtype, rng):
    rules = [ErrorRule() for _ in "qkv"]
    for draw in range(4):
        options = score_options(rng, dtype) | {"causal": "bottom-right"} if draw % 2 else {}
        dout, q, k, v, _ = drawn(rng, dtype)
        saved = fa.saved_attention(q, k, v, *fa.attention(q, k, v, return_lse=True, **options), **options)
        results = [of.attention_backward(dout, q, k, v, **options) for of in (plain, exact(dtype))]
        for rule, *values in zip(rules, fa.attention_backward(dout, saved), *results, strict=True):
            rule.add(*values)
    check_rule(rules, median=False)


def test_float64_gradients_with_dlse_agree_with_finite_differences(isa, rng):
    options = {"causal": "bottom-right", "window": (200, None), "kv_lengths": [280]}
    dout, q, k, v, dlse = drawn(rng, np.float64, B=1, H=2, Hk=1, Lq=120, Lk=300, D=6, Dv=4)
    got = fa.attention_backward(dout, fa.attention_forward(q, k, v, **options)[1], dlse=dlse)
    step = 1e-6
    for index in range(3):
        direction = rng.standard_normal((q, k, v)[index].shape)
        ends = []
        for sign in (1, -1):
            moved = [q, k, v]
            moved[index] = moved[index] + sign * step * direction
            out, lse = fa.attention(*moved, return_lse=True, **options)
            ends.append((dout * out).sum() + (dlse * lse).sum())
        slope = (got[index] * direction).sum()
        assert abs((ends[0] - ends[1]) / (2 * step) - slope) <= 1e-6 * max(1, abs(slope))


# ---- float32 gradients of 16-bit inputs ----


@pytest.fixture(params=[BFLOAT16, FLOAT16], ids=str)
def low(request):
    return request.param


def test_wide_gradients_are_the_narrow_ones_before_rounding(isa, low, rng):
    names = ("mask", *OPTION_NAMES)
    for options, layout in (({}, "bhld"), (score_options(rng, low), "blhd"), ({"causal": "top-left"}, "bhld")):
        dout, q, k, v, dlse = drawn(rng, low)
        if layout == "blhd":
            dout, q, k, v, dlse = (x.swapaxes(1, 2) for x in (dout, q, k, v, dlse))
        mask = {"mask": rng.standard_normal((110, 281)).astype(low)} if options else {}
        saved = fa.attention_forward(q, k, v, layout=layout, **options, **mask)[1]
        wanted = [name for name in names if name in options | mask]
        narrow = fa.attention_backward(dout, saved, dlse=dlse, gradients=wanted)
        wide = fa.attention_backward(dout, saved, dlse=dlse, gradients=wanted, gradient_dtype=np.float32)
        for ours, rounded in zip(wide, narrow, strict=True):
            if rounded is None:
                assert ours is None
                continue
            assert ours.dtype == np.float32 and ours.shape == rounded.shape
            assert same_bits(ours.astype(low), rounded)
        own = fa.attention_backward(dout, saved, dlse=dlse, gradient_dtype=low)
        assert all(map(same_bits, own, narrow[:3]))


def test_wide_gradients_of_ragged_batches_are_those_of_each_sequence(isa, low, rng):
    lengths, starts = (30, 0, 101), [0, 30, 30, 131]
    dout, q, k, v = (x[0].swapaxes(0, 1) for x in arrays(rng, low, H=2, Lq=131, Lk=131, D=16))
    dlse = of_rows(rng, (131, 2), low)
    saved = fa.attention_varlen_forward(q, k, v, starts, starts, causal=True)[1]
    got = fa.attention_varlen_backward(dout, saved, dlse=dlse, gradient_dtype=np.float32)
    for begin, length in zip(starts, lengths, strict=False):
        rows = slice(begin, begin + length)
        alone = [x[rows].swapaxes(0, 1)[None] for x in (dout, q, k, v)]
        one = fa.attention_forward(*alone[1:], causal=True)[1]
        expected = fa.attention_backward(alone[0], one, dlse=dlse[rows].T[None], gradient_dtype=np.float32)
        assert all(same_bits(x[rows], y[0].swapaxes(0, 1)) for x, y in zip(got, expected, strict=True))


# ---- invariances ----


def test_partial_gradients_do_not_depend_on_threads_batch_padding_or_layout(isa, dtype, rng):
    dout, q, k, v, dlse = drawn(rng, dtype, B=3, Lq=130, Lk=300)
    out, lse = fa.attention(q, np.concatenate([k, k], 2), np.concatenate([v, v], 2), return_lse=True)

    def gradients(args, lengths=(None, None), layout="bhld"):
        dout, q, k, v, out, lse, dlse = args
        saved = fa.saved_attention(q, k, v, out, lse, q_lengths=lengths[0], kv_lengths=lengths[1], layout=layout)
        return fa.attention_backward(dout, saved, partial=True, dlse=dlse)

    args = dout, q, k, v, out, lse, dlse
    expected = gradients(args)
    for threads in (1, 2, 5):
        with fa.num_threads(threads):
            assert all(map(same_bits, gradients(args), expected))
    alone = gradients([x[1:2] for x in args])
    assert all(same_bits(x, y[1:2]) for x, y in zip(alone, expected, strict=True))
    padded = [np.concatenate([x, np.full((3, x.shape[1], 70, *x.shape[3:]), np.nan, x.dtype)], 2) for x in args]
    for x, y in zip(gradients(padded, ([130] * 3, [300] * 3)), expected, strict=True):
        assert same_bits(x[:, :, : y.shape[2]], y)
    inside = gradients([x.swapaxes(1, 2) for x in args], layout="blhd")
    assert all(same_bits(x.swapaxes(1, 2), y) for x, y in zip(inside, expected, strict=True))
    for lay in LAYOUTS.values():
        assert all(map(same_bits, gradients([lay(x) for x in args]), expected))


# ---- special values ----


def test_dlse_of_rows_without_keys_goes_to_their_sink(isa, dtype, rng):
    dout, q, k, v, dlse = drawn(rng, dtype, B=1, H=2, Hk=2, Lq=4, Lk=5)
    sinks = np.array([0.5, -1], dtype)
    mask = np.ones((4, 5), bool)
    mask[1] = False
    dout[:, :, 1] = np.nan
    options = {"sinks": sinks, "mask": mask, "q_lengths": [3]}
    saved = fa.attention_forward(q, k, v, **options)[1]
    got = fa.attention_backward(dout, saved, dlse=dlse, gradients=["sinks"])
    assert all(np.isfinite(x).all() for x in (got.dq, got.dk, got.dv)) and not got.dq[:, :, [1, 3]].any()
    dout[:, :, 1] = 0
    right = exact(dtype).attention_option_gradients(dout, q, k, v, dlse=dlse, **options)[1]
    np.testing.assert_allclose(got.dsinks, right.astype(dtype), rtol=64 * np.finfo(dtype).eps)
    without = fa.attention_backward(dout, saved, gradients=["sinks"]).dsinks
    no_lse = exact(dtype).attention_option_gradients(dout, q, k, v, **options)[1]
    np.testing.assert_allclose(without, no_lse.astype(dtype), rtol=64 * np.finfo(dtype).eps)


def test_dlse_of_pairs_without_probability_reaches_no_gradient(isa, dtype, rng):
    dout, q, k, v, dlse = drawn(rng, dtype)
    mask = rng.random((110, 281)) < 0.5
    mask[7] = False
    saved = fa.attention_forward(q, k, v, mask=mask)[1]
    clean = fa.attention_backward(dout, saved, dlse=dlse)
    dlse[:, :, 7] = np.nan
    assert all(map(same_bits, fa.attention_backward(dout, saved, dlse=dlse), clean))


def test_dsinks_of_each_part_are_those_of_the_whole(isa, rng):
    dout, q, k, v, dlse = drawn(rng, np.float64)
    options = {"sinks": rng.standard_normal(4)}
    out, saved = fa.attention_forward(q, k, v, **options)
    right = fa.attention_backward(dout, saved, dlse=dlse, gradients=["sinks"]).dsinks
    for part in (slice(0, 3), slice(3, 281), slice(0, 0)):
        own = fa.saved_attention(q, k[:, :, part], v[:, :, part], out, saved.lse, **options)
        got = fa.attention_backward(dout, own, partial=True, dlse=dlse, gradients=["sinks"]).dsinks
        np.testing.assert_allclose(got, right, rtol=1e-11)


@pytest.mark.parametrize("size", [1, 1e3, 1e7, 1e30, 3e38])
def test_state_of_any_lse_gives_its_probabilities(isa, size, rng):
    """One key whose score is the lse, or nearly: its probability is 1, or as near as the lse tells."""
    q = np.full((1, 1, 1, 1), np.float32(size))
    k = np.ones((1, 1, 1, 1), np.float32)
    for sign in (1, -1):
        out, lse = fa.attention(sign * q, k, k, scale=1.0, return_lse=True)
        saved = fa.saved_attention(sign * q, k, k, out, lse, scale=1.0)
        dv = fa.attention_backward(np.ones_like(out), saved)[2]
        np.testing.assert_allclose(dv, 1, rtol=2 * np.spacing(np.float32(size)) if size < 1e4 else 0.3)
    saved = fa.saved_attention(q, k, k, out, np.full_like(lse, -np.inf), scale=1.0)
    assert not any(x.any() for x in fa.attention_backward(np.ones_like(out), saved))
    saved = fa.saved_attention(q, k, k, out, np.full_like(lse, np.nan), scale=1.0)
    assert np.isnan(fa.attention_backward(np.ones_like(out), saved)[2]).all()


# ---- bad input ----


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dlse": np.zeros((2, 4, 109), np.float32)}, ValueError, r"dlse must have shape \(2, 4, 110\), got"),
        ({"dlse": np.zeros((2, 4, 110))}, TypeError, "dlse must be float32"),
        ({"partial": 1.0}, TypeError, "partial must be"),
        (
            {"gradient_dtype": np.float64},
            TypeError,
            "gradient_dtype must be float32 for inputs of float32, got float64",
        ),
        ({"gradient_dtype": "float8"}, TypeError, "gradient_dtype must be float32, float64"),
    ],
    ids=str,
)
def test_bad_requests_are_named(changes, error, message, rng):
    dout, q, k, v, _ = drawn(rng, np.float32)
    saved = fa.attention_forward(q, k, v)[1]
    with pytest.raises(error, match="attention_backward: " + message):
        fa.attention_backward(dout, saved, **changes)


def test_bad_saved_arrays_are_named(rng):
    _, q, k, v, dlse = drawn(rng, BFLOAT16)
    out, lse = fa.attention(q, k, v, return_lse=True)
    with pytest.raises(ValueError, match=r"saved_attention: out must have shape \(2, 4, 110, 16\)"):
        fa.saved_attention(q, k, v, out[..., :3], lse)
    with pytest.raises(ValueError, match=r"saved_attention: lse must have shape \(2, 4, 110\)"):
        fa.saved_attention(q, k, v, out, dlse[:, :, 1:])
    with pytest.raises(TypeError, match="saved_attention: lse must be float32"):
        fa.saved_attention(q, k, v, out, lse.astype(BFLOAT16))
    with pytest.raises(TypeError, match="attention_backward: gradient_dtype must be bfloat16 or float32 for inputs of"):
        fa.attention_backward(out, fa.saved_attention(q, k, v, out, lse), gradient_dtype=np.float16)

"""Ragged batches without padding: each sequence is what attention makes of it alone."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

LENGTHS = [(0, 5), (1, 1), (37, 20), (200, 530), (3, 0), (96, 97), (0, 0), (13, 64)]  # of q and of k


def ragged(rng, dtype, lengths, H=4, Hk=2, D=24, Dv=17):
    """q, k, v, cu_seqlens_q, cu_seqlens_k."""
    cu_q, cu_k = (np.concatenate([[0], np.cumsum(part)]) for part in zip(*lengths, strict=True))
    shapes = (cu_q[-1], H, D), (cu_k[-1], Hk, D), (cu_k[-1], Hk, Dv)
    return *(rng.standard_normal(shape).astype(dtype) for shape in shapes), cu_q, cu_k


def sequences(q, k, v, cu_q, cu_k):
    """Each sequence as arguments of attention, and the slice of its rows of q."""
    for b in range(len(cu_q) - 1):
        of_q, of_k = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        yield of_q, [x[part].swapaxes(0, 1)[None] for x, part in ((q, of_q), (k, of_k), (v, of_k))]


def options_of(rng, dtype):
    per_head = {"alibi_slopes": rng.random(4).astype(dtype), "sinks": rng.standard_normal(4).astype(dtype)}
    return [
        {},
        {"causal": "top-left"},
        {"causal": "bottom-right", "window": (30, None), "scale": 0.3},
        {"softcap": 2.0, **per_head, "window": (100, 50)},
    ]


def test_each_sequence_has_the_bits_it_has_alone(isa, strategy, dtype, rng):
    arguments = ragged(rng, dtype, LENGTHS)
    for options in options_of(rng, dtype):
        out, lse = fa.attention_varlen(*arguments, return_lse=True, **options)
        for rows, alone in sequences(*arguments):
            expected, expected_lse = fa.attention(*alone, return_lse=True, **options)
            assert same_bits(out[rows], expected[0].swapaxes(0, 1))
            assert same_bits(lse[rows], expected_lse[0].T)


def test_values_follow_the_error_rule(isa, strategy, dtype, rng):
    rule = ErrorRule()
    arguments = ragged(rng, dtype, LENGTHS)
    for options in options_of(rng, dtype):
        out = fa.attention_varlen(*arguments, **options)
        for rows, alone in sequences(*arguments):
            yardstick, truth = plain.attention(*alone, **options)[0], exact(dtype).attention(*alone, **options)[0]
            rule.add(out[rows].swapaxes(0, 1)[None], yardstick, truth)
    rule.check(median=strategy == "fused" and isa != "baseline")


def test_order_of_sequences_and_threads_change_no_bit(isa, strategy, dtype, rng):
    arguments = ragged(rng, dtype, LENGTHS)
    expected = fa.attention_varlen(*arguments, causal="bottom-right")
    for n in (1, 2, 3, 5):
        with fa.num_threads(n):
            assert same_bits(fa.attention_varlen(*arguments, causal="bottom-right"), expected)
    parts = list(sequences(*arguments))[::-1]
    q, k, v = (np.concatenate([alone[i][0].swapaxes(0, 1) for _, alone in parts]) for i in range(3))
    cu_q, cu_k = (np.concatenate([[0], np.cumsum(part[::-1])]) for part in zip(*LENGTHS, strict=True))
    backwards = fa.attention_varlen(q, k, v, cu_q, cu_k, causal="bottom-right")
    assert same_bits(backwards, np.concatenate([expected[rows] for rows, _ in parts]))


def test_many_short_sequences_have_the_bits_of_a_padded_batch(isa, dtype, rng):
    lengths = rng.integers(1, 40, 30)
    q, k, v, cu, _ = ragged(rng, dtype, [(n, n) for n in lengths])
    out = fa.attention_varlen(q, k, v, cu, cu, causal=True)
    padded = [np.full((30, 40, *x.shape[1:]), np.nan, dtype) for x in (q, k, v)]
    for b, n in enumerate(lengths):
        for whole, x in zip(padded, (q, k, v), strict=True):
            whole[b, :n] = x[cu[b] : cu[b + 1]]
    expected = fa.attention(*padded, q_lengths=lengths, kv_lengths=lengths, layout="blhd", causal="bottom-right")
    for b, n in enumerate(lengths):
        assert same_bits(out[cu[b] : cu[b + 1]], expected[b, :n])


def test_masks_are_those_of_each_sequence(isa, strategy, dtype, rng):
    arguments = ragged(rng, dtype, LENGTHS)
    mask = rng.random((len(LENGTHS), 1, 200, 530)) < 0.5
    out = fa.attention_varlen(*arguments, mask=mask)
    for b, (rows, alone) in enumerate(sequences(*arguments)):
        expected = fa.attention(*alone, mask=mask[b, :, : LENGTHS[b][0], : LENGTHS[b][1]])
        assert same_bits(out[rows], expected[0].swapaxes(0, 1))


def test_nan_stays_in_its_sequence(isa, strategy, dtype, rng):
    q, k, v, cu_q, cu_k = ragged(rng, dtype, [(20, 20), (30, 30), (10, 10)])
    expected = fa.attention_varlen(q, k, v, cu_q, cu_k)
    k[20] = v[49, :, 3] = q[50] = np.nan
    out = fa.attention_varlen(q, k, v, cu_q, cu_k)
    assert same_bits(out[:20], expected[:20]) and same_bits(out[51:], expected[51:])
    assert np.isnan(out[20:51]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_in_memory_changes_nothing(layout, rng):
    *tensors, cu_q, cu_k = ragged(rng, np.float32, LENGTHS)
    expected = fa.attention_varlen(*tensors, cu_q, cu_k)
    arranged = [LAYOUTS[layout](x) for x in tensors]
    assert same_bits(fa.attention_varlen(*arranged, cu_q.astype(np.int32), cu_k.tolist()), expected)
    out = LAYOUTS["padded rows"](np.empty_like(expected))
    assert fa.attention_varlen(*arranged, cu_q, cu_k, out=out) is out
    assert same_bits(out, expected)


def test_no_sequences_and_empty_ones(isa, strategy, dtype):
    empty = np.zeros((0, 2, 4), dtype)
    assert fa.attention_varlen(empty, empty, empty, [0], [0]).shape == (0, 2, 4)
    assert fa.attention_varlen(empty, empty, empty, [0, 0, 0], [0, 0, 0]).shape == (0, 2, 4)
    out, lse = fa.attention_varlen(np.ones((3, 2, 4), dtype), empty, empty, [0, 3], [0, 0], return_lse=True)
    assert not out.any() and (lse == -np.inf).all()


def test_forward_gives_the_same_bits(isa, strategy, dtype, rng):
    arguments = ragged(rng, dtype, LENGTHS)
    expected, lse = fa.attention_varlen(*arguments, return_lse=True)
    out, saved = fa.attention_varlen_forward(*arguments)
    assert same_bits(out, expected) and same_bits(saved.lse, lse) and saved.out is out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cu_seqlens_q": [0, 4, 3, 8]}, ValueError, "cu_seqlens_q must never fall, got 4 before 3"),
        ({"cu_seqlens_q": [0, 4, 9, 8]}, ValueError, r"cu_seqlens_q must lie in 0\.\.8, got 0\.\.9"),
        ({"cu_seqlens_q": [0, -1, 5, 8]}, ValueError, r"cu_seqlens_q must lie in 0\.\.8, got -1\.\.8"),
        ({"cu_seqlens_q": [1, 2, 5, 8]}, ValueError, "cu_seqlens_q must begin with 0 and end with 8"),
        ({"cu_seqlens_k": [0, 2, 5, 8]}, ValueError, "cu_seqlens_k must begin with 0 and end with 9"),
        ({"cu_seqlens_q": [0, 8]}, ValueError, "cu_seqlens_k must have the shape"),
        ({"cu_seqlens_q": []}, (TypeError, ValueError), "cu_seqlens_q must"),
        ({"cu_seqlens_q": [[0, 8]]}, ValueError, r"cu_seqlens_q must have shape \(sequences \+ 1,\)"),
        ({"cu_seqlens_q": [0.0, 2.0, 5.0, 8.0]}, TypeError, "cu_seqlens_q must be integers, got float64"),
        ({"cu_seqlens_q": "abc"}, TypeError, "cu_seqlens_q must be integers"),
        ({"causal": True}, ValueError, "causal=True needs as many queries as keys in each sequence"),
        ({"q": np.zeros((8, 3, 4), np.float32)}, ValueError, "k must have a number of heads that divides the 3 of q"),
        ({"q": np.zeros((8, 2, 5), np.float32)}, ValueError, "k must have the head size 5 of q"),
        ({"v": np.zeros((8, 2, 4), np.float32)}, ValueError, "v must have the rows and heads of k"),
        ({"k": np.zeros((9, 2, 4))}, TypeError, "k must be float32 like"),
        ({"q": np.zeros((1, 8, 2, 4), np.float32)}, ValueError, "q must have 3 axes"),
        ({"sinks": np.zeros(3, np.float32)}, ValueError, r"sinks must have shape \(2,\)"),
        ({"softcap": -1}, ValueError, "softcap must be"),
        ({"mask": np.zeros((4, 5), np.float32)}, ValueError, r"mask must broadcast to \(3, 2, 3, 4\)"),
        ({"mask": np.zeros((3, 4))}, TypeError, "mask must be bool .* or float32 like q"),
        ({"window": 3}, ValueError, "window must be a pair"),
        ({"causal": "left"}, ValueError, "causal must be"),
    ],
    ids=str,
)
def test_bad_input_is_named(changes, error, message):
    zeros = [np.zeros((n, 2, 4), np.float32) for n in (8, 9, 9)]
    arguments = dict(zip("qkv", zeros, strict=True), cu_seqlens_q=[0, 2, 5, 8], cu_seqlens_k=[0, 3, 5, 9])
    with pytest.raises(error, match="attention_varlen: " + message):
        fa.attention_varlen(**arguments | changes)


# ---- gradients ----


def gradients(dout, *arguments, **options):
    """dq, dk, dv."""
    return fa.attention_varlen_backward(dout, fa.attention_varlen_forward(*arguments, **options)[1])


def masks_of(rng, dtype):
    keep = rng.random((len(LENGTHS), 1, 200, 530)) < 0.5
    return {"bool": keep, "float": np.where(keep, rng.standard_normal(keep.shape), -np.inf).astype(dtype)}


def test_gradients_of_each_sequence_have_the_bits_they_have_alone(isa, strategy, dtype, rng):
    arguments = ragged(rng, dtype, LENGTHS)
    dout = rng.standard_normal((len(arguments[0]), 4, 17)).astype(dtype)
    masks = [{"mask": mask} for mask in masks_of(rng, dtype).values()]
    for options in options_of(rng, dtype) + masks:
        got = gradients(dout, *arguments, **options)
        for b, (rows, alone) in enumerate(sequences(*arguments)):
            own = dict(options)
            if "mask" in own:
                own["mask"] = own["mask"][b, :, : LENGTHS[b][0], : LENGTHS[b][1]]
            saved = fa.attention_forward(*alone, **own)[1]
            expected = fa.attention_backward(dout[rows].swapaxes(0, 1)[None], saved)
            of_k = slice(arguments[4][b], arguments[4][b + 1])
            for x, y, part in zip(got, expected, (rows, of_k, of_k), strict=True):
                assert same_bits(x[part], y[0].swapaxes(0, 1))


def test_gradients_do_not_depend_on_threads_or_layout(isa, dtype, rng):
    *tensors, cu_q, cu_k = ragged(rng, dtype, LENGTHS)
    dout = rng.standard_normal((len(tensors[0]), 4, 17)).astype(dtype)
    expected = gradients(dout, *tensors, cu_q, cu_k, causal="bottom-right")
    for n in (1, 2, 3, 5):
        with fa.num_threads(n):
            assert all(map(same_bits, gradients(dout, *tensors, cu_q, cu_k, causal="bottom-right"), expected))
    for arrange in LAYOUTS.values():
        arranged = [arrange(x) for x in (dout, *tensors)]
        assert all(map(same_bits, gradients(*arranged, cu_q, cu_k, causal="bottom-right"), expected))


def test_gradients_of_no_sequences_and_empty_ones(isa, dtype):
    empty, three = np.zeros((0, 2, 4), dtype), np.ones((3, 2, 4), dtype)
    assert [g.shape for g in gradients(empty, empty, empty, empty, [0], [0])] == [(0, 2, 4)] * 3
    dq, dk, dv = gradients(three, three, empty, empty, [0, 3], [0, 0])
    assert dq.shape == (3, 2, 4) and not dq.any() and dk.size == dv.size == 0
    dq, dk, dv = gradients(empty, empty, three, three, [0, 0, 0], [0, 1, 3])
    assert dq.size == 0 and not dk.any() and not dv.any()


def test_wrong_arguments_of_gradients_are_named(rng):
    arguments = ragged(rng, np.float32, [(2, 3), (4, 1)])
    out, saved = fa.attention_varlen_forward(*arguments)
    with pytest.raises(ValueError, match=r"attention_varlen_backward: dout must have the shape \(6, 4, 17\)"):
        fa.attention_varlen_backward(out[:5], saved)
    with pytest.raises(TypeError, match="attention_varlen_backward: dout must be float32"):
        fa.attention_varlen_backward(out.astype(np.float64), saved)
    with pytest.raises(TypeError, match="saved must be what attention_varlen_forward returned, got SavedAttention"):
        fa.attention_varlen_backward(out, fa.attention_forward(*[np.ones((1, 1, 2, 3))] * 3)[1])


def test_gradients_of_mask_sinks_and_slopes_are_sums_over_the_sequences(isa, dtype, rng):
    rule = ErrorRule()
    for mask_shape in (200, 530), (8, 1, 200, 530), (1, 530), (8, 4, 1, 1):
        rule.add(*gradients_of_a_mask(rng, dtype, mask_shape))
    rule.check(median=False, backward=True)


def gradients_of_a_mask(rng, dtype, mask_shape):
    """Of ours, the plain implementation and the reference; sinks' and slopes' are compared here."""
    arguments = ragged(rng, dtype, LENGTHS)
    dout = rng.standard_normal((len(arguments[0]), 4, 17)).astype(dtype)
    options = {
        "mask": rng.standard_normal(mask_shape).astype(dtype),
        "sinks": rng.standard_normal(4).astype(dtype),
        "alibi_slopes": (rng.random(4) / 16).astype(dtype),
    }
    saved = fa.attention_varlen_forward(*arguments, **options)[1]
    got = fa.attention_varlen_backward(dout, saved, gradients=tuple(options))
    mask = options["mask"].reshape((1,) * (4 - len(mask_shape)) + mask_shape)
    sums = [np.zeros(mask.shape, t) for t in (dtype, np.longdouble)]
    sinks, slopes = np.zeros((2, 4), dtype)
    for b, (rows, alone) in enumerate(sequences(*arguments)):
        queries, keys = LENGTHS[b]
        parts = zip(mask.shape, (slice(b, b + 1), slice(None), slice(queries), slice(keys)), strict=True)
        place = tuple(part if n > 1 else slice(None) for n, part in parts)
        one = options | {"mask": mask[place]}
        own_dout = dout[rows].swapaxes(0, 1)[None]
        own = fa.attention_backward(own_dout, fa.attention_forward(*alone, **one)[1], gradients=tuple(options))
        sinks, slopes = sinks + own.dsinks, slopes + own.dalibi_slopes
        for total, of in zip(sums, (plain, exact(dtype)), strict=True):
            total[place] += of.attention_option_gradients(own_dout, *alone, **one)[0]
    assert same_bits(got.dsinks, sinks) and same_bits(got.dalibi_slopes, slopes)
    return got.dmask, *(total.reshape(mask_shape) for total in sums)

"""attention_weights and merge_attention."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.ordered import exp, log
from tests.specification import exact
from tests.test_attention_options import drawn_options, every_score_option, inputs


def test_weights_are_the_output_for_the_identity_as_values(isa, dtype, rng):
    rule = ErrorRule()
    for _ in range(8):
        q, k, _v = inputs(rng, dtype, 2, 4, 2, int(rng.integers(1, 120)), int(rng.integers(1, 600)), 16, 1)
        options = drawn_options(rng, dtype, 2, 4, q.shape[2], k.shape[2])
        identity = np.broadcast_to(np.eye(k.shape[2], dtype=dtype), (2, 2, k.shape[2], k.shape[2]))
        out, lse = fa.attention(q, k, identity, return_lse=True, **options)
        weights = fa.attention_weights(q, k, lse, **options)
        truth = exact(dtype).attention(q, k, identity, **options)[0]
        assert (weights[truth == 0] <= np.finfo(dtype).tiny).all()
        np.testing.assert_allclose(weights.sum(-1), out.sum(-1), atol=64 * np.finfo(dtype).eps)
        rule.add(weights, _from_lse(q, k, lse, dtype, options), truth)
    rule.check(median=False)


def _from_lse(q, k, lse, dtype, options):
    """e^(s - lse) in the dtype, from the scores of the reference."""
    p, _, exact_lse, _ = reference._attention_probabilities(q, k, **options)
    with np.errstate(divide="ignore"):
        s = (np.log(p) + exact_lse[..., None]).astype(dtype)
    empty = lse[..., None] == -np.inf
    return np.where(empty, dtype.type(0), exp(s - np.where(empty, dtype.type(0), lse[..., None])))


def test_chosen_heads_and_rows_are_those_of_all(isa, dtype, rng):
    q, k, v = inputs(rng, dtype, Lq=150, Lk=530)
    options = every_score_option(rng, dtype, 4) | {"q_lengths": [150, 100], "mask": rng.random((150, 530)) < 0.7}
    _, lse = fa.attention(q, k, v, return_lse=True, **options)
    whole = fa.attention_weights(q, k, lse, **options)
    for n in (1, 2, 5):
        with fa.num_threads(n):
            assert same_bits(fa.attention_weights(q, k, lse, **options), whole)
    rows = [149, 0, 7, 7, 120]
    assert same_bits(fa.attention_weights(q, k, lse, heads=[3, 1], rows=rows, **options), whole[:, [3, 1]][:, :, rows])
    assert same_bits(fa.attention_weights(q, k, lse, heads=slice(1, 3), **options), whole[:, 1:3])
    assert fa.attention_weights(q, k, lse, rows=[], **options).shape == (2, 4, 0, 530)
    swapped = [x.swapaxes(1, 2) for x in (q, k, lse)]
    other = fa.attention_weights(*swapped, heads=[2], layout="blhd", **options)
    assert same_bits(other.swapaxes(1, 2), whole[:, [2]])


def test_weights_of_a_nan_score_are_nan_and_masked_ones_zero(isa, dtype, rng):
    q, k, v = inputs(rng, dtype)
    k[:, :, 50] = np.nan
    _, lse = fa.attention(q, k, v, return_lse=True, kv_lengths=[50, 61])
    weights = fa.attention_weights(q, k, lse, kv_lengths=[50, 61])
    assert np.isfinite(weights[0]).all() and not weights[0, ..., 50:].any() and np.isnan(weights[1]).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"heads": [4]}, ValueError, r"heads must be None, a slice or integers in 0\.\.3"),
        ({"heads": 1}, ValueError, "heads must be None, a slice or integers of one axis"),
        ({"rows": [0.5]}, ValueError, "rows must be"),
        ({"rows": [37]}, ValueError, "rows must be"),
        ({"lse": np.zeros((2, 4, 36), np.float32)}, ValueError, r"lse must have shape \(2, 4, 37\)"),
        ({"lse": np.zeros((2, 4, 37))}, TypeError, "lse must be float32 like"),
    ],
    ids=str,
)
def test_bad_input_of_weights_is_named(changes, error, message, rng):
    q, k, _ = inputs(rng, np.float32)
    with pytest.raises(error, match="attention_weights: " + message):
        fa.attention_weights(**{"q": q, "k": k, "lse": np.zeros((2, 4, 37), np.float32)} | changes)


# ---- merge_attention ----


def halves(q, k, v, cut, **options):
    first = fa.attention(q, k[:, :, :cut], v[:, :, :cut], return_lse=True, **options)
    options.pop("sinks", None)
    return *first, *fa.attention(q, k[:, :, cut:], v[:, :, cut:], return_lse=True, **options)


@pytest.mark.parametrize("with_sinks", [False, True])
def test_merged_halves_follow_the_error_rule(with_sinks, isa, dtype, rng):
    of_out, of_lse = ErrorRule(), ErrorRule()
    for cut in (0, 1, 300, 570, 600):
        q, k, v = inputs(rng, dtype, Lk=600)
        options = {"sinks": rng.standard_normal(4).astype(dtype)} if with_sinks else {}
        parts = halves(q, k, v, cut, **options)
        weights = [exp(x - np.maximum(parts[1], parts[3]))[..., None] for x in (parts[1], parts[3])]
        total = weights[0] + weights[1]
        yardstick = (weights[0] * parts[0] + weights[1] * parts[2]) / total
        truth, truth_lse = exact(dtype).attention(q, k, v, **options)
        out, lse = fa.merge_attention(*parts)
        of_out.add(out, yardstick, truth)
        of_lse.add(lse, log(total[..., 0]) + np.maximum(parts[1], parts[3]), truth_lse)
    of_out.check(median=False)
    of_lse.check(median=False)


def test_order_of_parts_changes_no_bit_and_an_empty_part_leaves_the_other(isa, dtype, rng):
    out_a, lse_a, out_b, lse_b = halves(*inputs(rng, dtype), 30)
    lse_a[0, 1], lse_b[1, 2], lse_a[0, 0, 3], lse_b[0, 0, 3] = -np.inf, -np.inf, -np.inf, -np.inf
    out_a[0, 1], out_b[1, 2] = np.nan, np.nan
    out, lse = fa.merge_attention(out_a, lse_a, out_b, lse_b)
    for got, expected in zip(fa.merge_attention(out_b, lse_b, out_a, lse_a), (out, lse), strict=True):
        assert same_bits(got, expected)
    assert same_bits(out[0, 1], out_b[0, 1]) and same_bits(lse[0, 1], lse_b[0, 1])
    assert same_bits(out[1, 2], out_a[1, 2]) and same_bits(lse[1, 2], lse_a[1, 2])
    assert not out[0, 0, 3].any() and lse[0, 0, 3] == -np.inf
    assert np.isfinite(out).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_parts_changes_nothing(layout, rng):
    parts = halves(*inputs(rng, np.float32), 30)
    expected = fa.merge_attention(*parts)
    for got, wanted in zip(fa.merge_attention(*map(LAYOUTS[layout], parts)), expected, strict=True):
        assert same_bits(got, wanted)


def test_bad_input_of_merge_is_named():
    out, lse = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    for arguments, error, message in (
        ((out, lse, out[:1], lse), ValueError, r"out_b must have the shape \(2, 3\) of out_a"),
        ((out, lse[:1], out, lse), ValueError, r"lse_a must have shape \(2,\)"),
        ((out, lse, out, out), ValueError, r"lse_b must have shape \(2,\)"),
        ((out, lse, out.astype(np.float64), lse), TypeError, "out_b must be float32 like"),
        ((lse[0], lse, out, lse), (TypeError, ValueError), "out_a must"),
    ):
        with pytest.raises(error, match="merge_attention: " + message):
            fa.merge_attention(*arguments)

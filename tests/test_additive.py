"""Additive attention, forward and backward."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

SHAPES = [  # B, T, S, A, C
    (9, 9, 9, 33, 17), (19, 2, 50, 64, 40), (3, 4, 1, 1, 1), (5, 18, 131, 19, 66), (9, 11, 6, 257, 5),
    (4, 33, 17, 16, 130),
]  # fmt: skip


def inputs(rng, dtype, B=2, T=7, S=19, A=33, C=17, scale=1.0):
    """query, keys, values, v."""
    shapes = ((B, T, A), (B, S, A), (B, S, C), (A,))
    query, keys, values, v = (rng.standard_normal(shape, np.float32).astype(dtype) for shape in shapes)
    return dtype.type(scale) * query, dtype.type(scale) * keys, values, v


def options_of(rng, dtype, B, T, S):
    """Nothing, lengths, masks of each kind."""
    yield {}
    yield {"lengths": rng.integers(0, S + 1, B)}
    yield {"mask": rng.random((B, T, S)) < 0.6}
    bias = rng.standard_normal((T, S), np.float32).astype(dtype)
    bias[rng.random((T, S)) < 0.3] = -np.inf
    yield {"mask": bias, "lengths": rng.integers(0, S + 1, B)}


def gradients(dcontext, *arrays, **options):
    return fa.additive_attention_backward(dcontext, fa.additive_attention_forward(*arrays, **options)[1])


def gradient_of_context(rng, arrays):
    (B, T, _), (_, _, C) = arrays[0].shape, arrays[2].shape
    return rng.standard_normal((B, T, C), np.float32).astype(arrays[0].dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("scale", [0.05, 1.0, 6.0])
def test_context_and_weights_keep_the_error_rule(dtype, rng, scale):
    rules = ErrorRule(), ErrorRule()
    for shape in SHAPES:
        arrays = inputs(rng, dtype, *shape, scale)
        for options in options_of(rng, dtype, *shape[:3]):
            got = fa.additive_attention(*arrays, **options, return_weights=True)
            expected = exact(dtype).additive_attention(*arrays, **options)
            for rule, *parts in zip(rules, got, plain.additive_attention(*arrays, **options), expected, strict=True):
                rule.add(*parts)
    for rule in rules:
        rule.check()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("scale", [0.05, 1.0, 6.0])
def test_gradients_keep_the_error_rule(dtype, rng, scale):
    rules = [ErrorRule() for _ in range(4)]
    draws = 6 if dtype == np.float32 else 2  # the largest errors are those of few large gradients
    for shape in draws * SHAPES:
        arrays = inputs(rng, dtype, *shape, scale)
        dcontext = gradient_of_context(rng, arrays)
        for options in options_of(rng, dtype, *shape[:3]):
            got = gradients(dcontext, *arrays, **options)
            yardstick = plain.additive_attention_backward(dcontext, *arrays, **options)
            truth = exact(dtype).additive_attention_backward(dcontext, *arrays, **options)
            for rule, *parts in zip(rules, got, yardstick, truth, strict=True):
                rule.add(*parts)
    for rule in rules:
        rule.check(backward=True)


def test_reference_gradients_equal_finite_differences(rng):
    arrays = inputs(rng, np.dtype(np.float64), 2, 3, 4, 5, 2)
    dcontext, options = gradient_of_context(rng, arrays), {"lengths": [4, 2]}
    step = 1e-6
    for array, gradient in zip(
        arrays, reference.additive_attention_backward(dcontext, *arrays, **options), strict=True
    ):
        for index in np.ndindex(array.shape):
            sides, saved = [], array[index]
            for sign in (1, -1):
                array[index] = saved + sign * step
                sides.append((reference.additive_attention(*arrays, **options)[0] * dcontext).sum())
            array[index] = saved
            assert abs((sides[0] - sides[1]) / (2 * step) - gradient[index]) < 1e-8


def everything(arrays, dcontext, **options):
    context, saved = fa.additive_attention_forward(*arrays, **options)
    return (context, saved.weights, *fa.additive_attention_backward(dcontext, saved))


@pytest.mark.usefixtures("isa")
def test_no_number_of_threads_changes_a_bit(dtype, rng):
    arrays = inputs(rng, dtype, 3, 37, 70, 70, 33)
    dcontext, mask = gradient_of_context(rng, arrays), rng.random((37, 70)) < 0.8
    first = None
    for n in (1, 2, 3, 5):
        with fa.num_threads(n):
            got = everything(arrays, dcontext, mask=mask)
        first = first or got
        assert all(same_bits(a, b) for a, b in zip(got, first, strict=True))


@pytest.mark.usefixtures("isa")
def test_a_sequence_alone_has_the_bits_it_has_in_a_padded_batch(dtype, rng):
    arrays = inputs(rng, dtype, 4, 9, 77, 45, 30)
    lengths = np.array([77, 30, 0, 64])
    dcontext = gradient_of_context(rng, arrays)
    for array in arrays[1:3]:
        array[np.arange(77) >= lengths[:, None]] = np.nan
    whole = everything(arrays, dcontext, lengths=lengths)
    for b, n in enumerate(lengths):
        query, keys, values, v = arrays
        parts = query[b : b + 1], keys[b : b + 1, :n], values[b : b + 1, :n], v
        context, weights, dquery, dkeys, dvalues, _ = everything(parts, dcontext[b : b + 1])
        assert same_bits(context[0], whole[0][b])
        assert same_bits(weights[0], whole[1][b, :, :n]) and not whole[1][b, :, n:].any()
        assert same_bits(dquery[0], whole[2][b])
        assert same_bits(dkeys[0], whole[3][b, :n]) and not whole[3][b, n:].any()
        assert same_bits(dvalues[0], whole[4][b, :n]) and not whole[4][b, n:].any()


@pytest.mark.usefixtures("isa")
def test_a_query_alone_has_the_bits_it_has_among_others(dtype, rng):
    query, keys, values, v = inputs(rng, dtype, 2, 23, 40, 50, 70)
    whole, weights = fa.additive_attention(query, keys, values, v, return_weights=True)
    for t in (0, 3, 16, 22):
        context, alone = fa.additive_attention(query[:, t : t + 1], keys, values, v, return_weights=True)
        assert same_bits(context[:, 0], whole[:, t]) and same_bits(alone[:, 0], weights[:, t])
    assert same_bits(fa.additive_attention(query, keys, values, v), whole)


@pytest.mark.usefixtures("isa")
def test_what_is_masked_is_not_read(dtype, rng):
    arrays = inputs(rng, dtype, 2, 9, 40, 21, 19)
    dcontext = gradient_of_context(rng, arrays)
    for kind in ("bool", "float"):
        taken = rng.random((2, 1, 40)) < 0.5
        mask = taken if kind == "bool" else np.where(taken, 0, -np.inf).astype(dtype)
        expected = everything(arrays, dcontext, mask=mask)
        for garbage in (np.nan, np.inf, -np.inf):
            dirty = [array.copy() for array in arrays]
            for array in dirty[1:3]:
                array[~taken[:, 0]] = garbage
            got = everything(dirty, dcontext, mask=mask)
            assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))
            assert not got[1][np.broadcast_to(~taken, (2, 9, 40))].any()


@pytest.mark.usefixtures("isa")
def test_nan_reaches_its_rows_and_columns_and_no_others(dtype, rng):
    query, keys, values, v = inputs(rng, dtype, 2, 6, 30, 21, 19)
    mask = np.ones((2, 6, 30), bool)
    mask[0, 1, 8] = mask[1, 2, 9] = False
    keys[0, 8, 3] = np.nan
    values[1, 9, 4] = np.nan
    context, weights = fa.additive_attention(query, keys, values, v, mask=mask, return_weights=True)
    rows = np.ones(6, bool)
    rows[1] = False
    assert np.isnan(context[0][rows]).all() and np.isnan(weights[0][rows]).all() and np.isfinite(context[0][1]).all()
    expected = np.zeros((6, 19), bool)
    expected[[0, 1, 3, 4, 5], 4] = True
    assert (np.isnan(context[1]) == expected).all() and np.isfinite(weights[1]).all()


@pytest.mark.usefixtures("isa")
def test_a_query_with_nothing_to_attend_to_is_zero_and_has_no_gradients(dtype, rng):
    arrays = inputs(rng, dtype)
    dcontext = gradient_of_context(rng, arrays)
    mask = np.ones((7, 19), bool)
    mask[2] = False
    context, weights, dquery, *_ = everything(arrays, dcontext, mask=mask, lengths=[19, 0])
    assert not context[0, 2].any() and not weights[0, 2].any() and not dquery[0, 2].any()
    assert not context[1].any() and not weights[1].any() and not dquery[1].any()
    assert context[0, 1].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_memory_change_nothing(dtype, rng, layout):
    arrays = inputs(rng, dtype)
    dcontext, mask = gradient_of_context(rng, arrays), rng.random((7, 19)) < 0.6
    expected = everything(arrays, dcontext, mask=mask)
    change = LAYOUTS[layout]
    got = everything([change(x) for x in arrays], change(dcontext), mask=change(mask))
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


def test_masks_broadcast(dtype, rng):
    arrays = inputs(rng, dtype)
    for shape in ((), (1,), (19,), (7, 1), (1, 19), (2, 1, 1), (2, 7, 1), (1, 7, 19)):
        mask = rng.random(shape) < 0.7
        full = np.broadcast_to(mask, (2, 7, 19)).copy()
        assert same_bits(fa.additive_attention(*arrays, mask=mask), fa.additive_attention(*arrays, mask=full))


@pytest.mark.parametrize("axis", range(5), ids="BTSAC")
def test_every_size_may_be_zero(dtype, rng, axis):
    sizes = [2, 3, 4, 5, 6]
    sizes[axis] = 0
    arrays = inputs(rng, dtype, *sizes)
    dcontext = gradient_of_context(rng, arrays)
    got = everything(arrays, dcontext)
    truth = (*reference.additive_attention(*arrays), *reference.additive_attention_backward(dcontext, *arrays))
    for a, b in zip(got, truth, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=64 * np.finfo(dtype).eps)


def test_wrong_arguments_are_named(rng):
    query, keys, values, v = inputs(rng, np.dtype(np.float32))
    for error, message, change in (
        (ValueError, r"additive_attention: keys must have the batch 2 and size 33", {"keys": keys[:, :, 1:]}),
        (ValueError, r"additive_attention: values must have the batch and length", {"values": values[:, 1:]}),
        (ValueError, r"additive_attention: v must have shape \(33,\)", {"v": v[1:]}),
        (ValueError, r"additive_attention: query must have 3 axes", {"query": query[0]}),
        (TypeError, r"additive_attention: keys must be float32", {"keys": keys.astype(np.float64)}),
        (TypeError, r"additive_attention: query must be float32, float64", {"query": query.astype(int)}),
        (ValueError, r"additive_attention: lengths must lie in 0..19", {"lengths": [20, 1]}),
        (ValueError, r"additive_attention: lengths must have shape", {"lengths": [1]}),
        (TypeError, r"additive_attention: mask must be bool", {"mask": np.ones((7, 19), int)}),
        (ValueError, r"additive_attention: mask must broadcast to \(2, 7, 19\)", {"mask": np.ones((7, 18), bool)}),
        (ValueError, r"additive_attention: mask must broadcast", {"mask": np.ones((3, 7, 19), bool)}),
    ):
        arguments = {"query": query, "keys": keys, "values": values, "v": v} | change
        with pytest.raises(error, match=message):
            fa.additive_attention(**arguments)
    _, saved = fa.additive_attention_forward(query, keys, values, v)
    with pytest.raises(ValueError, match="dcontext must have the shape"):
        fa.additive_attention_backward(np.ones((2, 7, 3), np.float32), saved)
    with pytest.raises(TypeError, match="dcontext must be float32"):
        fa.additive_attention_backward(np.ones((2, 7, 17)), saved)
    with pytest.raises(TypeError, match="saved must be what additive_attention_forward returned"):
        fa.additive_attention_backward(np.ones((2, 7, 17), np.float32), None)

"""Rows of a table by number, and the gradient of the table."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

WIDTHS = [1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 130, 1031]


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "bfloat16"])
def test_rows_are_those_of_the_table(rng, kind):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if kind == "bfloat16" else np.dtype(kind)
    for width in WIDTHS:
        weight = rng.standard_normal((11, width)).astype(dtype)
        for shape in ((), (5,), (2, 3, 4), (0,)):
            ids = rng.integers(0, 11, shape)
            y = fa.embedding(ids, weight)
            assert y.dtype == weight.dtype
            assert np.array_equal(y, weight[ids])


@pytest.mark.usefixtures("isa", "threads")
def test_the_gradient_keeps_the_error_rule(dtype, rng):
    rule = ErrorRule()
    for width in WIDTHS:
        ids = rng.integers(0, 11, (4, 50))
        dy = rng.standard_normal((4, 50, width), np.float32).astype(dtype)
        _, saved = fa.embedding_forward(ids, np.zeros((13, width), dtype))
        got = fa.embedding_backward(dy, saved)
        assert not got[11:].any()
        rule.add(got, plain.embedding_backward(dy, ids, 13), exact(dtype).embedding_backward(dy, ids, 13))
    rule.check(backward=True)


@pytest.mark.usefixtures("isa")
def test_the_gradient_is_added_up_in_the_order_of_the_ids(dtype, rng):
    """The bits of the plain sum, which adds one after another."""
    ids = rng.integers(0, 3, 700)
    dy = rng.standard_normal((700, 77)).astype(dtype)
    _, saved = fa.embedding_forward(ids, np.zeros((3, 77), dtype))
    for n in (1, 2, 3):
        with fa.num_threads(n):
            assert same_bits(fa.embedding_backward(dy, saved), plain.embedding_backward(dy, ids, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_do_not_depend_on_memory_layout(rng, layout):
    other = LAYOUTS[layout]
    ids, weight, dy = rng.integers(0, 9, (3, 5)), rng.standard_normal((9, 37)), rng.standard_normal((3, 5, 37))
    y, saved = fa.embedding_forward(other(ids), other(weight))
    assert same_bits(y, weight[ids])
    assert same_bits(fa.embedding_backward(other(dy), saved), plain.embedding_backward(dy, ids, 9))


def test_any_integers_do_and_sizes_may_be_zero():
    weight = np.arange(6.0).reshape(3, 2)
    for kind in (np.uint8, np.int16, np.int32, np.uint64):
        assert fa.embedding(np.array([2, 1], kind), weight).tolist() == [[4, 5], [2, 3]]
    assert fa.embedding([], weight).shape == (0, 2)
    y, saved = fa.embedding_forward(np.zeros(4, int), np.zeros((1, 0)))
    assert y.shape == (4, 0)
    assert fa.embedding_backward(y, saved).shape == (1, 0)
    _, saved = fa.embedding_forward(np.zeros(0, int), np.zeros((0, 3)))
    assert fa.embedding_backward(np.zeros((0, 3)), saved).shape == (0, 3)


def test_the_gradient_is_that_of_the_ids_as_they_were(rng):
    ids = np.array([0, 1])
    _, saved = fa.embedding_forward(ids, np.zeros((2, 1)))
    ids[:] = 77
    assert fa.embedding_backward(np.array([[1.0], [2.0]]), saved).tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 1], [3, 0]], r"embedding: ids must lie in 0\.\.2, got 3 at \[1, 0\]"),
        ([0, -1], r"embedding: ids must lie in 0\.\.2, got -1 at \[1\]"),
        (np.array([2**63], np.uint64), r"got 9223372036854775808 at \[0\]"),
        (5, r"got 5 at \[\]"),
    ],
)
def test_an_id_out_of_range_is_named(ids, message):
    with pytest.raises(ValueError, match=message):
        fa.embedding(ids, np.ones((3, 2)))


def test_other_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"embedding: ids must be integers, got float64"):
        fa.embedding([1.0], np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"embedding: weight must have 2 axes"):
        fa.embedding([1], np.ones(3))
    with pytest.raises(ValueError, match=r"embedding: ids must lie in 0\.\.-1"):
        fa.embedding([0], np.ones((0, 2)))
    _, saved = fa.embedding_forward([1], np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"embedding_backward: dy must have shape \(1, 2\), got shape \(1, 3\)"):
        fa.embedding_backward(np.ones((1, 3)), saved)
    with pytest.raises(TypeError, match=r"embedding_backward: saved must be what embedding_forward returned"):
        fa.embedding_backward(np.ones((1, 2)), ([1], (3, 2)))


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("columns", [16, 48, 50, 4096])
def test_results_larger_than_caches_have_the_rows_too(rng, columns):
    table = rng.standard_normal((300, columns), np.float32)
    ids = rng.integers(0, 300, (17 << 20) // (4 * columns))
    assert same_bits(fa.embedding(ids, table), table[ids])
    halves = table.view(np.float16)
    assert same_bits(fa.embedding(ids, halves).view(np.uint16), halves.view(np.uint16)[ids])
    assert same_bits(fa.embedding(ids[::2], table.astype(np.float64)), table.astype(np.float64)[ids[::2]])

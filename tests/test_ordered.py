"""The yardstick of the error rule: the same bits on every machine, in the order that tests/ordered.py states."""

import ast
import hashlib
import inspect

import numpy as np
import pytest

from tests import ordered
from tests.specification import HAS_LONG_DOUBLE, plain

# Of the results below, as every machine must get them: for a change of the yardstick, and for nothing else.
RECORDED = {
    ("attention", "f4"): "42de9a3e8c4a050b",
    ("attention", "f8"): "4158fe8946ebf6d0",
    ("linear", "f4"): "3cd4a9f08ed4a27d",
    ("linear", "f8"): "5ef014a724a4e204",
    ("rows", "f4"): "c419f39ae351b144",
    ("rows", "f8"): "66c2dc61c5648958",
    ("recurrent", "f4"): "650e06b8bc437159",
    ("recurrent", "f8"): "7de0489dc8bdd471",
}


def numbers(dtype, *shape, first=1):
    """The same everywhere, whatever NumPy's generators: multiples of 1/512 between -1 and 1 without a pattern."""
    count = np.arange(first, first + int(np.prod(shape)), dtype=np.uint64)
    mixed = (count * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(54)
    return (mixed.astype(np.float64) / 512 - 1).astype(dtype).reshape(shape)


def attention(dtype):
    q, k, v, dout = (numbers(dtype, 1, 2, n, 32, first=n) for n in (37, 150, 151, 37))
    q, v = 8 * q, v[:, :, :150]
    return *plain.attention(q, k, v, softcap=3.0), *plain.attention_backward(dout, q, k, v)


def linear(dtype):
    x, weight, bias, dy = (numbers(dtype, *shape) for shape in ((19, 300), (23, 300), (23,), (19, 23)))
    return plain.linear(x, weight, bias, "gelu"), *plain.linear_backward(dy, x, weight, bias, "tanh")


def rows(dtype):
    x, dy, weight = numbers(dtype, 50, 333), numbers(dtype, 50, 333, first=7), numbers(dtype, 333)
    targets = np.arange(50) % 333
    norms = plain.layer_norm(x, weight, weight), *plain.layer_norm_backward(dy, x, weight)
    return plain.log_softmax(x), *norms, plain.cross_entropy_backward(dy[:, 0], x, targets, 0.1)


def recurrent(dtype):
    x, h, w_ih, w_hh = (numbers(dtype, *shape) for shape in ((9, 4, 6), (4, 8), (32, 6), (32, 8)))
    gru = plain.sequence(lambda x, h: plain.gru_cell(x, h, w_ih[:24], w_hh[:24], h[0, :1], h[0, :1]), x, (h,))
    return *gru[0:1], *plain.lstm_cell(x[0], h, h, w_ih, w_hh)


CASES = (attention, linear, rows, recurrent)


def digest(arrays):
    bits = hashlib.sha256()
    for array in arrays:
        bits.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
    return bits.hexdigest()[:16]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_yardstick_has_the_recorded_bits(case, dtype):
    if dtype == np.float64 and not HAS_LONG_DOUBLE:
        pytest.skip("elementary functions of float64 are evaluated in long double")
    assert digest(case(dtype)) == RECORDED[case.__name__, f"f{dtype.itemsize}"]


REDUCTIONS = {"sum", "mean", "prod", "dot", "vdot", "inner", "einsum", "matmul", "tensordot", "reduce", "cumsum", "var"}


def test_the_arithmetic_leaves_the_order_of_no_sum_to_numpy():
    for node in ast.walk(ast.parse(inspect.getsource(ordered))):
        assert not isinstance(node, ast.MatMult)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_functools = isinstance(node.func.value, ast.Name) and node.func.value.id == "functools"
            assert of_functools or node.func.attr not in REDUCTIONS, f"line {node.lineno}"


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: np.dot(x, x.T), lambda x: x.dot(x.T), lambda x: np.einsum("ij,ij", x, x), lambda x: x.prod(),
        np.cumsum, lambda x: x.cumsum(), np.linalg.norm, np.var, np.expm1, lambda x: x**3, np.exp2,
        lambda x: np.tensordot(x, x), lambda x: x.sum(), np.mean,
        lambda x: x.std(), np.trace, np.cov, lambda x: np.inner(x, x), lambda x: x + np.ones((2, 3), np.float32),
        lambda x: x @ np.ones((3, 2), np.float32),
    ],
)  # fmt: skip
def test_an_operation_without_a_stated_order_is_refused(operation):
    with pytest.raises(TypeError, match=r"no stated order|in NumPy's arithmetic"):
        operation(np.ones((2, 3), np.float32).view(ordered.Ordered))


def test_a_product_adds_one_term_after_the_other(dtype, rng):
    for shape, other in [((3, 7), (7, 5)), ((2, 1, 9, 4), (3, 4, 2)), ((300, 6), (6, 200)), ((2, 0), (0, 3))]:
        a, b = rng.standard_normal(shape).astype(dtype), rng.standard_normal(other).astype(dtype)
        expected = np.zeros(np.matmul(a, b).shape, dtype)
        for k in range(shape[-1]):
            expected = expected + a[..., k, None] * b[..., k, None, :]
        np.testing.assert_array_equal(ordered.matmul(a, b), expected)


def test_a_sum_over_leading_axes_adds_row_after_row_and_over_the_last_by_halves(dtype, rng):
    x = rng.standard_normal((9, 4)).astype(dtype)
    rows = [x[0]]
    for row in x[1:]:
        rows.append(rows[-1] + row)
    np.testing.assert_array_equal(ordered.total(x, 0), rows[-1])
    for n in (0, 1, 7, 8, 9, 127, 128, 129, 250, 1031):
        terms = rng.standard_normal(n).astype(dtype)
        np.testing.assert_array_equal(ordered.total(terms), _pairwise(list(terms), dtype.type))


def _pairwise(terms, real):
    """What `total` states, by numbers alone."""
    if len(terms) > ordered.HALVES:
        half = len(terms) // 2 // ordered.LANES * ordered.LANES
        return _pairwise(terms[:half], real) + _pairwise(terms[half:], real)
    whole = len(terms) // ordered.LANES * ordered.LANES
    sums = [real(0)] if whole == 0 else terms[: ordered.LANES]
    for i in range(ordered.LANES, whole):
        sums[i % ordered.LANES] = sums[i % ordered.LANES] + terms[i]
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums[0::2], sums[1::2], strict=True)]
    for term in terms[whole:]:
        sums[0] = sums[0] + term
    return sums[0]


def test_elementary_functions_are_rounded_once(rng):
    x = rng.standard_normal(2000).astype(np.float32)
    for function in ("exp", "tanh"):
        right = getattr(np, function)(x.astype(np.longdouble))
        got = getattr(ordered, function)(x)
        assert (np.abs(got - right) <= np.spacing(np.abs(got)) * (0.5 + 1e-6)).all()
    assert ordered.exp(np.float32([200, -200, -np.inf])).tolist() == [np.inf, 0, 0]


def test_formulas_of_numpy_with_means_and_results_in_place_are_ordered():
    x = np.linspace(-3, 5, 40, dtype=np.float32).reshape(4, 10).view(ordered.Ordered)
    of_last = x.mean(-1, keepdims=True)
    np.testing.assert_array_equal(np.asarray(of_last), ordered.total(np.asarray(x), -1, True) / np.float32(10))
    y = np.asarray(x).copy().view(ordered.Ordered)
    y -= of_last
    np.testing.assert_array_equal(np.asarray(y), np.asarray(x) - np.asarray(of_last))

"""linear with weights packed as int8: the specification's bytes, the promised error, bits, special values, errors."""

import re

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import plain

# M, N, K: tiles of rows (2, 4) and blocks of 96, panels of 16 to 64 columns, groups of 128 columns and halves of them.
SIZES = [
    *[(M, 20, 40) for M in (1, 2, 3, 4, 5, 95, 97, 193)],
    *[(3, N, 40) for N in (1, 7, 15, 16, 17, 31, 33, 63, 64, 65, 129, 300)],
    *[(3, 20, K) for K in (1, 2, 63, 64, 65, 127, 128, 129, 191, 193, 257, 1030)],
    (97, 70, 300),
]


def arguments(rng, M, N, K):
    """Rows with some elements far larger than the others, as those of trained models."""
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((M, K), (N, K), (N,)))
    x[:, :: max(1, K // 3)] *= 20
    return x, w, b


def dequantized(x):
    values, sizes = reference.as_bytes(x)
    return (values / np.sqrt(sizes)).astype(np.float32)


def lengths_of_groups(x):
    return np.stack(
        [np.linalg.norm(x[:, first : first + 128].astype(np.float64), axis=1) for first in range(0, x.shape[1], 128)]
    )


def test_results_are_those_of_the_specifications_bytes(isa, rng):
    rule = ErrorRule()
    for size in SIZES:
        x, w, b = arguments(rng, *size)
        for bias in (None, b):
            got = fa.linear(x, fa.pack_linear(w, "int8"), bias)
            rule.add(got, plain.linear(dequantized(x), dequantized(w), bias), reference.linear_int8(x, w, bias))
    rule.check()


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"])
def test_activations_follow_the_sums(isa, rng, activation):
    rule = ErrorRule()
    for size in [(33, 70, 40), (97, 130, 200)]:
        x, w, b = arguments(rng, *size)
        w /= np.sqrt(np.float32(size[2]))
        yardstick = plain.linear(dequantized(x), dequantized(w), b, activation)
        got = fa.linear(x, fa.pack_linear(w, "int8"), b, activation=activation)
        rule.add(got, yardstick, reference.linear_int8(x, w, b, activation))
    rule.check()


def test_errors_keep_the_bound(isa, rng):
    for spread in (0, 1, 4):
        for size in SIZES[::3]:
            x, w, b = arguments(rng, *size)
            x *= np.exp(spread * rng.standard_normal(x.shape)).astype(np.float32)
            right = reference.linear(x, w, b)
            bound = 0.09 * lengths_of_groups(x).T @ lengths_of_groups(w) + 1e-6 * np.abs(right)
            assert (np.abs(fa.linear(x, fa.pack_linear(w, "int8"), b) - right) <= bound).all()


def test_errors_are_small_beside_the_results(rng):
    x, w, _ = arguments(rng, 64, 256, 384)
    right = reference.linear(x, w)
    assert np.std(fa.linear(x, fa.pack_linear(w, "int8")) - right) <= 0.011 * np.std(right)


class TestBits:
    def test_all_instruction_sets_have_the_same(self, rng):
        for size in SIZES:
            x, w, b = arguments(rng, *size)
            found = []
            for isa in fa.config.available_isas():
                with fa.config.use_isa(isa):
                    found.append(fa.linear(x, fa.pack_linear(w, "int8"), b))
            assert all(same_bits(found[0], other) for other in found[1:]), size

    def test_rows_and_columns_alone_have_the_bits_of_the_whole(self, isa, rng):
        for M, N, K in [(97, 70, 30), (200, 129, 1025), (15, 300, 64)]:
            x, w, b = arguments(rng, M, N, K)
            whole = fa.linear(x, fa.pack_linear(w, "int8"), b, activation="gelu")
            packed = fa.pack_linear(w, "int8")
            for row in {0, 5, 13, min(M - 1, 96), M - 1}:
                assert same_bits(fa.linear(x[row], packed, b, activation="gelu"), whole[row])
            for first, end in [(0, 1), (3, 20), (N - 9, N)]:
                part = fa.linear(x, fa.pack_linear(w[first:end], "int8"), b[first:end], activation="gelu")
                assert same_bits(part, whole[:, first:end])

    def test_threads_do_not_matter(self, isa, threads, rng):
        for size in [(97, 700, 300), (197, 700, 300), (700, 97, 300), (1, 3000, 700)]:
            x, w, b = arguments(rng, *size)
            with fa.num_threads(1):
                expected = fa.linear(x, fa.pack_linear(w, "int8"), b)
            assert same_bits(fa.linear(x, fa.pack_linear(w, "int8"), b), expected)

    def test_columns_of_zeros_behind_the_others_change_none(self, isa, rng):
        """As far as the last group has room."""
        x, w, b = arguments(rng, 9, 20, 70)
        wider = [np.concatenate([a, np.zeros((len(a), 58), np.float32)], 1) for a in (x, w)]
        assert same_bits(
            fa.linear(wider[0], fa.pack_linear(wider[1], "int8"), b), fa.linear(x, fa.pack_linear(w, "int8"), b)
        )

    def test_a_handle_keeps_to_its_instruction_set(self, isa, rng):
        x, w, b = arguments(rng, 20, 70, 300)
        packed = fa.pack_linear(w, "int8")
        expected = fa.linear(x, packed, b, activation="tanh")
        assert packed.isa == isa
        for other in fa.config.available_isas():
            with fa.config.use_isa(other):
                assert same_bits(fa.linear(x, packed, b, activation="tanh"), expected)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_do_not_matter(self, rng, layout):
        x, w, b = arguments(rng, 70, 50, 33)
        change, packed = LAYOUTS[layout], fa.pack_linear(w, "int8")
        expected, cube = fa.linear(x, packed, b), x.reshape(7, 10, 33)
        assert same_bits(fa.linear(change(cube), packed, b).reshape(70, 50), expected)
        assert same_bits(fa.linear(x, packed, change(b)), expected)
        assert same_bits(fa.linear(x, fa.pack_linear(change(w), "int8"), b), expected)


class TestSpecialValues:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_makes_its_row_or_column_nan(self, isa, rng, value):
        x, w, b = arguments(rng, 20, 30, 200)
        clean = fa.linear(x, fa.pack_linear(w, "int8"), b)
        x[3, 199] = w[11, 70] = value
        got = fa.linear(x, fa.pack_linear(w, "int8"), b)
        hit = np.zeros(got.shape, bool)
        hit[3] = hit[:, 11] = True
        assert np.array_equal(np.isnan(got), hit)
        assert same_bits(got[~hit], clean[~hit])

    @pytest.mark.parametrize(("of_x", "of_w"), [(1e-38, 1e38), (3e-42, 1e30), (1e38, 1e-38), (1e30, 3e-42), (1, 1)])
    def test_the_range_is_that_of_the_plain_formula(self, isa, rng, of_x, of_w):
        x, w = (rng.uniform(-1, 1, (4, 150)) for _ in range(2))
        x, w = (x * of_x).astype(np.float32), (w * of_w).astype(np.float32)
        right = reference.linear_int8(x, w)
        got = fa.linear(x, fa.pack_linear(w, "int8"))
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())

    def test_zeros_give_the_bias(self, isa, rng):
        x, w, b = arguments(rng, 3, 5, 130)
        assert (fa.linear(np.zeros_like(x), fa.pack_linear(w, "int8"), b) == b).all()
        assert (fa.linear(x, fa.pack_linear(np.zeros_like(w), "int8"), b) == b).all()

    def test_a_power_of_two_only_moves_the_exponent(self, isa, rng):
        x, w, _ = arguments(rng, 3, 50, 130)
        once = fa.linear(x, fa.pack_linear(w, "int8"))
        assert same_bits(fa.linear(8 * x, fa.pack_linear(w / 2, "int8")), 4 * once)


class TestShapes:
    @pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 0), (2, 3, 4)], ids=str)
    def test_leading_axes_are_kept(self, rng, batch):
        x, w, b = arguments(rng, max(1, int(np.prod(batch))), 5, 7)
        x = x[: int(np.prod(batch))].reshape(*batch, 7)
        y = fa.linear(x, fa.pack_linear(w, "int8"), b)
        assert y.shape == (*batch, 5) and y.dtype == np.float32

    def test_sizes_may_be_zero(self, isa):
        one = np.ones(4, np.float32)
        assert fa.linear(np.ones((0, 3), np.float32), fa.pack_linear(np.ones((2, 3)), "int8")).shape == (0, 2)
        assert fa.linear(np.ones((2, 3), np.float32), fa.pack_linear(np.ones((0, 3)), "int8")).shape == (2, 0)
        assert (fa.linear(np.ones((2, 0), np.float32), fa.pack_linear(np.ones((4, 0)), "int8"), one) == 1).all()

    def test_out_is_filled_and_may_be_an_argument(self, rng):
        x, w, b = arguments(rng, 20, 20, 20)
        packed = fa.pack_linear(w, "int8")
        expected, given = fa.linear(x, packed, b, activation="silu"), x.copy()
        assert fa.linear(given, packed, b, activation="silu", out=given) is given
        assert same_bits(given, expected)


class TestHandle:
    def test_describes_itself(self, isa):
        packed = fa.pack_linear(np.ones((500, 300)), "int8")
        assert (packed.shape, packed.dtype, packed.weight_dtype) == ((500, 300), np.float32, "int8")
        assert repr(packed) == f"<PackedLinear 500 x 300 int8 for {isa}>"
        assert packed.nbytes < fa.pack_linear(np.ones((500, 300)), np.float32).nbytes / 3

    @pytest.mark.parametrize("dtype", ["int8", np.int8, np.dtype(np.int8)])
    @pytest.mark.parametrize("of", [np.float16, np.float64])
    def test_is_packed_from_arrays_of_any_type_by_any_name_of_bytes(self, rng, dtype, of):
        x, w, _ = arguments(rng, 4, 5, 6)
        expected = fa.linear(x, fa.pack_linear(w.astype(of).astype(np.float32), "int8"))
        assert same_bits(fa.linear(x, fa.pack_linear(w.astype(of), dtype)), expected)

    def test_takes_rows_of_float32_and_its_size(self):
        packed = fa.pack_linear(np.ones((4, 3), np.float32), "int8")
        with pytest.raises(TypeError, match="linear: x must be float32 like the packed weight"):
            fa.linear(np.ones((2, 3)), packed)
        with pytest.raises(ValueError, match="linear: x must have a last axis of 3"):
            fa.linear(np.ones((2, 4), np.float32), packed)
        with pytest.raises(TypeError, match="linear_forward: weight must be an array"):
            fa.linear_forward(np.ones((2, 3), np.float32), packed)

    def test_is_refused_for_other_integers_by_name(self):
        with pytest.raises(TypeError, match=re.escape("pack_linear: weight must be")):
            fa.pack_linear(np.ones((4, 3), int), "int8")

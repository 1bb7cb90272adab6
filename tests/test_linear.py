"""linear and pack_linear of float32 and float64: error rule, sizes around every block, bits, layouts, out=, errors."""

import re
import tracemalloc

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import LAYOUTS, fortran, padded_rows, same_bits
from tests.conftest import HAS_BLAS, NEEDS_BLAS
from tests.errors import ErrorRule
from tests.specification import exact, plain

ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"]
# M, N, K around the blocks of ops/linear/linear.c: 96 rows and 1024 of K (native; up to 192 rows are few), 64 rows
# and 256 columns (BLAS), panels of up to 64 columns, register tiles of up to 14 rows.
SIZES = [
    *[(M, 40, 30) for M in (1, 2, 5, 6, 7, 13, 14, 15, 63, 64, 65, 95, 96, 97, 192, 193)],
    *[(10, N, 30) for N in (1, 7, 8, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 255, 256, 257, 513)],
    *[(10, 70, K) for K in (1, 2, 3, 4, 5, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 2049)],
    (97, 257, 1025),
    (200, 257, 1025),
]


# Rows, columns and k around the blocks of kernels/gemm/few_rows.c: 4 rows of x (16 with a transposed weight), vectors
# of up to 16 columns, parts of a sum of 128 or 256 k, two of them side by side.
FEW_ROWS = (1, 2, 3, 4, 5, 6, 7, 13, 16, 17)
FEW_COLUMNS = (1, 3, 8, 15, 16, 17, 33, 64, 100, 257, 600)
FEW_K = (1, 2, 7, 8, 9, 16, 17, 33, 128, 130, 255, 256, 257, 384, 511, 512, 513, 770, 1030)


def arguments(rng, dtype, M, N, K, bias=True):
    x, w = rng.standard_normal((M, K)).astype(dtype), rng.standard_normal((N, K)).astype(dtype)
    return x, w, rng.standard_normal(N).astype(dtype) if bias else None


class TestErrors:
    def test_sums_obey_the_error_rule(self, isa, linear_strategy, dtype, rng):
        rule = ErrorRule()
        for size in SIZES:
            for bias in (False, True):
                x, w, b = arguments(rng, dtype, *size, bias)
                rule.add(fa.linear(x, w, b), plain.linear(x, w, b), exact(dtype).linear(x, w, b))
        # OpenBLAS adds up in an order of its own on every machine.
        rule.check(median=linear_strategy == "native")

    @pytest.mark.parametrize("activation", ACTIVATIONS[1:])
    def test_activations_obey_the_error_rule(self, isa, dtype, rng, activation):
        rule = ErrorRule()
        for size in [(33, 70, 40), (97, 130, 20)]:
            x, w, b = arguments(rng, dtype, *size)
            w /= np.sqrt(dtype.type(size[2]))
            right = exact(dtype).linear(x, w, b, activation)
            rule.add(fa.linear(x, w, b, activation=activation), plain.linear(x, w, b, activation), right)
        rule.check()


class TestBits:
    """A value depends on its row of x, its row of the weight and its bias alone. Native: by BLAS also on the place in a
    tile (tests/test_invariance.py)."""

    def test_rows_and_columns_alone_have_the_bits_of_the_whole(self, isa, dtype, rng):
        for M, N, K in [(97, 70, 30), (200, 129, 1025), (15, 300, 64)]:
            x, w, b = arguments(rng, dtype, M, N, K)
            whole = fa.linear(x, w, b, activation="gelu")
            for row in {0, 5, 13, min(M - 1, 96), M - 1}:
                assert same_bits(fa.linear(x[row], w, b, activation="gelu"), whole[row])
            for first, end in [(0, 1), (3, 20), (N - 9, N)]:
                assert same_bits(fa.linear(x, w[first:end], b[first:end], activation="gelu"), whole[:, first:end])

    def test_threads_do_not_matter(self, isa, linear_strategy, threads, dtype, rng):
        for size in [(97, 700, 300), (197, 700, 300), (700, 97, 300), (1, 3000, 700)]:
            x, w, b = arguments(rng, dtype, *size)
            with fa.num_threads(1):
                expected = fa.linear(x, w, b)
            assert same_bits(fa.linear(x, w, b), expected)

    def test_packed_weights_have_the_bits_of_plain_ones(self, isa, threads, dtype, rng):
        for size in SIZES:
            x, w, b = arguments(rng, dtype, *size)
            assert same_bits(fa.linear(x, fa.pack_linear(w), b), fa.linear(x, w, b)), size

    def test_few_rows_and_transposed_views_have_the_bits_of_packed_weights(self, isa, threads, dtype, rng):
        for draw in range(40):
            size = [int(rng.choice(sizes)) for sizes in (FEW_ROWS, FEW_COLUMNS, FEW_K)]
            x, w, b = arguments(rng, dtype, *size, bias=draw % 2 == 0)
            expected = fa.linear(x, fa.pack_linear(w), b, activation="tanh")
            for same in (w, padded_rows(w), fortran(w), padded_rows(w.T).T):
                assert same_bits(fa.linear(x, same, b, activation="tanh"), expected), (size, same.strides)

    def test_more_rows_have_the_bits_of_packed_weights_with_transposed_views(self, isa, threads, dtype, rng):
        for size in [(40, 70, 300), (193, 300, 70), (250, 130, 1100)]:
            x, w, b = arguments(rng, dtype, *size)
            assert same_bits(fa.linear(x, padded_rows(w.T).T, b), fa.linear(x, fa.pack_linear(w), b))

    def test_a_transposed_view_is_not_copied(self, dtype, rng):
        x, w, _ = arguments(rng, dtype, 2, 700, 900, bias=False)
        view = fortran(w)
        fa.linear(x, view)
        tracemalloc.start()
        fa.linear(x, view)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < w.nbytes // 8

    def test_packed_weights_keep_to_their_instruction_set(self, isa, dtype, rng):
        x, w, b = arguments(rng, dtype, 20, 70, 300)
        packed, expected = fa.pack_linear(w), fa.linear(x, w, b, activation="tanh")
        assert packed.isa == isa
        for other in fa.config.available_isas():
            with fa.config.use_isa(other):
                assert same_bits(fa.linear(x, packed, b, activation="tanh"), expected)

    def test_weights_of_several_blocks_have_the_bits_of_packed_ones(self, rng):
        """A call packs 16 MB of the weight at a time; a handle is one piece. Few rows read what comes from memory in
        another way than what comes from a cache."""
        for dtype in (np.float32, np.float64):
            x, w, b = arguments(rng, np.dtype(dtype), 200, 1100, 4100)
            packed = fa.pack_linear(w)
            expected = fa.linear(x, packed, b)
            assert same_bits(fa.linear(x, w, b), expected)
            for rows in (1, 2, 3, 4, 7):
                for same in (packed, w, fortran(w)):
                    assert same_bits(fa.linear(x[:rows], same, b), expected[:rows])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_do_not_matter(self, linear_strategy, dtype, rng, layout):
        x, w, b = arguments(rng, dtype, 70, 50, 33)
        x = x.reshape(7, 10, 33)
        change, expected = LAYOUTS[layout], fa.linear(x, w, b, activation="relu")
        assert same_bits(fa.linear(change(x), w, b, activation="relu"), expected)
        assert same_bits(fa.linear(x, change(w), b, activation="relu"), expected)
        assert same_bits(fa.linear(x, w, change(b), activation="relu"), expected)
        assert same_bits(
            fa.linear(x, fa.pack_linear(change(w)), b, activation="relu"),
            fa.linear(x, fa.pack_linear(w), b, activation="relu"),
        )

    def test_a_broadcast_weight_is_read_as_it_is(self, linear_strategy, dtype, rng):
        x, w, _ = arguments(rng, dtype, 9, 1, 33)
        repeated = np.broadcast_to(w, (40, 33))
        assert same_bits(fa.linear(x, repeated), fa.linear(x, repeated.copy()))


class TestShapes:
    @pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 0), (2, 3, 4), (1, 2, 1, 2)], ids=str)
    def test_leading_axes_are_kept(self, linear_strategy, dtype, rng, batch):
        x, w, b = arguments(rng, dtype, max(1, int(np.prod(batch))), 5, 7)
        x = x[: int(np.prod(batch))].reshape(*batch, 7)
        y = fa.linear(x, w, b)
        assert y.shape == (*batch, 5)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.reshape(-1, 5), fa.linear(x.reshape(-1, 7), w, b))

    def test_sizes_may_be_zero(self, isa, linear_strategy, dtype):
        assert fa.linear(np.ones((0, 3), dtype), np.ones((2, 3), dtype)).shape == (0, 2)
        assert fa.linear(np.ones((2, 3), dtype), np.ones((0, 3), dtype), np.ones(0, dtype)).shape == (2, 0)
        # A sum of nothing is 0, and the bias is added to that.
        assert (fa.linear(np.ones((2, 0), dtype), np.ones((4, 0), dtype)) == 0).all()
        assert (fa.linear(np.ones((2, 0), dtype), np.ones((4, 0), dtype), -np.ones(4, dtype)) == -1).all()
        packed = fa.pack_linear(np.ones((4, 0), dtype))
        assert (fa.linear(np.ones((2, 0), dtype), packed, np.ones(4, dtype), activation="relu") == 1).all()

    def test_a_handle_describes_itself(self, isa, dtype):
        packed = fa.pack_linear(np.ones((5, 3), dtype))
        assert packed.shape == (5, 3)
        assert packed.dtype == dtype
        assert packed.nbytes >= 15 * dtype.itemsize
        assert repr(packed) == f"<PackedLinear 5 x 3 {dtype} for {isa}>"
        with pytest.raises(TypeError, match=re.escape("PackedLinear objects come from fastattn.pack_linear")):
            type(packed)()

    def test_weights_are_packed_in_another_type_on_request(self, dtype, rng):
        other = np.dtype(np.float64 if dtype == np.float32 else np.float32)
        x, w, _ = arguments(rng, dtype, 4, 5, 6)
        packed = fa.pack_linear(w, dtype=other)
        assert packed.dtype == other
        assert same_bits(fa.linear(x.astype(other), packed), fa.linear(x.astype(other), w.astype(other)))

    def test_changes_of_the_weight_do_not_reach_a_handle(self, dtype, rng):
        x, w, _ = arguments(rng, dtype, 4, 5, 6)
        packed, before = fa.pack_linear(w), fa.linear(x, w)
        w[...] = 7
        assert same_bits(fa.linear(x, packed), before)


class TestOut:
    def test_out_is_filled_and_returned(self, linear_strategy, dtype, rng):
        x, w, b = arguments(rng, dtype, 97, 70, 33)
        expected = fa.linear(x, w, b, activation="silu")
        for change in (
            np.copy,
            LAYOUTS["negative strides"],
            LAYOUTS["spaced"],
            LAYOUTS["unaligned"],
            np.asfortranarray,
        ):
            out = change(np.full(expected.shape, np.nan, dtype))
            assert fa.linear(x, w, b, activation="silu", out=out) is out
            assert same_bits(out, expected)

    def test_out_may_be_an_argument(self, linear_strategy, dtype, rng):
        x, w, b = arguments(rng, dtype, 20, 20, 20)
        expected = fa.linear(x, w, b)
        for i in range(2):
            given = [x.copy(), w.copy(), b]
            assert same_bits(fa.linear(*given, out=given[i]), expected)

    def test_out_stays_as_it_was_when_the_call_fails(self, dtype):
        out = np.full((2, 4), 5, dtype)
        with pytest.raises(ValueError, match="linear: bias"):
            fa.linear(np.ones((2, 3), dtype), np.ones((4, 3), dtype), np.ones(3, dtype), out=out)
        assert (out == 5).all()


X, W, B = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32), np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": np.float32(1)}, ValueError, "linear: x must have at least one axis, got a scalar"),
        ({"x": X[:, :2]}, ValueError, "linear: x must have a last axis of 3, the columns of weight, got shape (2, 2)"),
        ({"x": X.astype(int)}, TypeError, "linear: x must be float32, float64, bfloat16 or float16"),
        ({"x": "x"}, TypeError, "linear: x must be"),
        ({"weight": W[0]}, ValueError, "linear: weight must have 2 axes, got shape (3,)"),
        ({"weight": W.astype(np.float64)}, TypeError, "linear: weight must be float32 like the other arrays"),
        ({"weight": None}, TypeError, "linear: weight must be"),
        ({"bias": B[:3]}, ValueError, "linear: bias must have shape (4,), the rows of weight, got shape (3,)"),
        ({"bias": B[None]}, ValueError, "linear: bias must have 1 axes, got shape (1, 4)"),
        ({"bias": B.astype(np.float64)}, TypeError, "linear: bias must be float32 like the other arrays"),
        ({"activation": "swish"}, ValueError, "linear: activation must be one of"),
        ({"out": np.empty((2, 3), np.float32)}, ValueError, "linear: out must have shape (2, 4) and dtype float32"),
        ({"out": np.empty((2, 4))}, ValueError, "linear: out must have shape (2, 4) and dtype float32"),
        ({"out": [[0.0] * 4] * 2}, TypeError, "linear: out must be an ndarray, got list"),
        ({"out": LAYOUTS["read-only"](np.ones((2, 4), np.float32))}, ValueError, "linear: out must be writable"),
    ],
)
def test_bad_arguments_are_named(changed, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fa.linear(**({"x": X, "weight": W, "bias": B} | changed))


@pytest.mark.parametrize(
    ("weight", "dtype", "error", "message"),
    [
        (W[0], None, ValueError, "pack_linear: weight must have 2 axes, got shape (3,)"),
        (W.astype(int), None, TypeError, "pack_linear: weight must be"),
        (W.astype(int), np.float32, TypeError, "pack_linear: weight must be"),
        (W, np.int16, TypeError, "pack_linear: dtype must be float32, float64, float16 or bfloat16"),
        (W, "nonsense", TypeError, "pack_linear: dtype must be"),
    ],
)
def test_bad_weights_are_named(weight, dtype, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fa.pack_linear(weight, dtype=dtype)


def test_a_handle_takes_rows_of_its_type_and_size(dtype):
    packed = fa.pack_linear(np.ones((4, 3), dtype))
    other = np.float64 if dtype == np.float32 else np.float32
    with pytest.raises(TypeError, match=f"linear: x must be {dtype} like the packed weight"):
        fa.linear(np.ones((2, 3), other), packed)
    with pytest.raises(ValueError, match="linear: x must have a last axis of 3"):
        fa.linear(np.ones((2, 4), dtype), packed)


def test_blas_is_refused_where_there_is_none():
    if HAS_BLAS:
        pytest.skip("this build has a BLAS")
    with pytest.raises(ValueError, match="linear_strategy"), fa.config.linear_strategy("blas"):
        pass


def test_what_blas_cannot_take_is_native(dtype, rng):
    """A handle, and a sum of nothing."""
    if not HAS_BLAS:
        pytest.skip(NEEDS_BLAS)
    x, w, b = arguments(rng, dtype, 9, 20, 33)
    packed = fa.pack_linear(w)
    native = fa.linear(x, packed, b)
    with fa.config.linear_strategy("blas"):
        assert same_bits(fa.linear(x, packed, b), native)
        assert (fa.linear(x[:, :0], w[:, :0], b) == b).all()

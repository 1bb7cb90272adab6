"""Attention forward: values by the error rule, options, outputs, bad input."""

import itertools

import numpy as np
import pytest

import fastattn as fa
from fastattn import _core
from tests.arrays import LAYOUTS, same_bits
from tests.conftest import HAS_BLAS
from tests.errors import ErrorRule
from tests.specification import exact, plain

# 0, 1, 2; around the vector lengths 4, 8, 16; around register tiles, tiles of 96 queries and blocks of 256 and 512
# keys; primes; several blocks.
QUERIES = (0, 1, 2, 3, 5, 6, 7, 11, 12, 13, 17, 29, 95, 96, 97, 131)
KEYS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 64, 101, 255, 257, 511, 512, 513, 1031)
HEAD_SIZES = (0, 1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 127, 128, 129, 160)
VALUE_SIZES = (0, 1, 3, 4, 5, 8, 15, 16, 17, 32, 47, 64, 65, 128, 131)


def arrays(rng, dtype, B=1, H=1, Hk=None, Lq=1, Lk=1, D=8, Dv=None):
    Hk, Dv = H if Hk is None else Hk, D if Dv is None else Dv
    shapes = (B, H, Lq, D), (B, Hk, Lk, D), (B, Hk, Lk, Dv)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


class Comparison:
    """The error rule for out and for lse, over many calls.

    The median counts for out of the fused kernels with multiply-adds. The baseline rounds products and sums, as the
    yardstick does, and the scaled query: medians of float32 are up to 1.06 times. Strategy "blas" has the order of
    OpenBLAS on this machine. lse goes through powers of two, which costs half an ULP where a row has few keys.
    """

    def __init__(self, dtype):
        self.dtype = dtype
        self.out, self.lse = ErrorRule(), ErrorRule()

    def add(self, q, k, v, **options):
        got = fa.attention(q, k, v, return_lse=True, **options)
        yardstick = plain.attention(q, k, v, **options)
        truth = exact(self.dtype).attention(q, k, v, **options)
        for rule, *values in zip((self.out, self.lse), got, yardstick, truth, strict=True):
            rule.add(*values)
        return got

    def check(self):
        fused = _core.get_attention_strategy() != "blas"
        self.out.check(median=fused and fa.config.get_isa() != "baseline")
        self.lse.check(median=False)


# ---- values ----


def test_values_at_all_lengths(isa, strategy, dtype, rng):
    comparison = Comparison(dtype)
    for index, lk in enumerate(KEYS):
        for lq in QUERIES[index % 3 :: 3]:
            comparison.add(*arrays(rng, dtype, Lq=lq, Lk=lk))
    comparison.check()


def test_values_at_all_head_sizes(isa, strategy, dtype, rng):
    comparison = Comparison(dtype)
    for d, dv in itertools.chain(
        zip(HEAD_SIZES, VALUE_SIZES, strict=True), zip(HEAD_SIZES, reversed(VALUE_SIZES), strict=True)
    ):
        comparison.add(*arrays(rng, dtype, B=2, H=2, Lq=13, Lk=37, D=d, Dv=dv))
        comparison.add(*arrays(rng, dtype, Lq=7, Lk=531, D=d, Dv=dv))
    comparison.check()


# What csrc/ops/attention/attention.c does depends on sizes and threads: blocks pass by the few tiles of a head; a
# thread packs a head, then walks its tiles; or all threads pack, then take tiles.
SCHEDULES = {
    "passing blocks, one query": {"B": 12, "H": 8, "Lq": 1, "Lk": 700, "D": 32},
    "passing blocks, grouped heads": {"B": 2, "H": 8, "Hk": 2, "Lq": 5, "Lk": 1030, "D": 16},
    "packed heads": {"B": 5, "H": 20, "Hk": 4, "Lq": 33, "Lk": 129, "D": 8},
    "packed heads, several tiles": {"B": 2, "H": 10, "Lq": 401, "Lk": 70, "D": 5},
    "shared heads": {"H": 3, "Lq": 407, "Lk": 600, "D": 8},
    "shared heads, grouped": {"H": 14, "Hk": 2, "Lq": 97, "Lk": 520, "D": 9},
}


def test_values_of_every_way_through_the_op(isa, strategy, dtype, rng):
    comparison = Comparison(dtype)
    for sizes in SCHEDULES.values():
        q, k, v = arrays(rng, dtype, **sizes)
        with fa.num_threads(1):
            expected = fa.attention(q, k, v, causal="bottom-right", return_lse=True)
        for threads in (2, 5):
            with fa.num_threads(threads):
                got = fa.attention(q, k, v, causal="bottom-right", return_lse=True)
            assert all(map(same_bits, got, expected))
        comparison.add(q, k, v, causal="bottom-right")
    comparison.check()


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_rows_with_few_keys_of_very_different_scores_follow_the_error_rule(isa, strategy, dtype, rng, kind):
    """In such a row all errors come from one or two scores, so the largest of a few rows is chance: one small problem
    in ten would fail although the errors have the plain implementation's distribution. Here are 2,400 rows."""
    rule = ErrorRule()
    for D in (8, 64):
        q, k, v = arrays(rng, dtype, H=2, Lq=600, Lk=300, D=D, Dv=8)
        mask = rng.random((2, 600, 300)) < 0.03
        if kind == "float":
            mask = np.where(mask, rng.standard_normal(mask.shape), -np.inf).astype(dtype)
        options = {"mask": mask, "scale": 0.5}
        yardstick, truth = plain.attention(q, k, v, **options)[0], exact(dtype).attention(q, k, v, **options)[0]
        rule.add(fa.attention(q, k, v, **options), yardstick, truth)
    # The median of float32 is up to 1.1 times the plain one at D = 8, where rounding the scaled query counts.
    rule.check(median=False)


def test_heads_too_large_to_be_packed_at_once_are_right(isa, dtype, rng):
    lk = 12_800 // (dtype.itemsize // 4)  # two heads are more than the 24 MB that are packed at a time
    q, k, v = arrays(rng, dtype, H=2, Lq=385, Lk=lk, D=128)
    with fa.num_threads(2):
        together = fa.attention(q, k, v)
    for h in range(2):
        alone = fa.attention(*(a[:, h : h + 1, -8:] if a is q else a[:, h : h + 1] for a in (q, k, v)))
        assert same_bits(together[:, h : h + 1, -8:], alone)


# ---- options ----

MASK_SHAPES = [
    (), (1,), (37,), (1, 37), (13, 1), (13, 37), (1, 13, 37), (6, 1, 1), (6, 13, 37), (2, 1, 1, 37), (1, 6, 1, 37),
    (2, 1, 13, 1), (2, 6, 1, 1), (1, 1, 13, 37), (2, 1, 13, 37), (2, 6, 13, 37),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_of_every_broadcast_form(isa, strategy, dtype, rng, kind):
    comparison = Comparison(dtype)
    for shape in MASK_SHAPES:
        q, k, v = arrays(rng, dtype, B=2, H=6, Hk=2, Lq=13, Lk=37, D=7)
        mask = rng.random(shape) < 0.6
        if kind == "float":
            mask = np.where(mask, rng.standard_normal(shape), -np.inf).astype(dtype)
        comparison.add(q, k, v, mask=mask)
    comparison.check()


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_over_several_blocks_of_keys(isa, strategy, dtype, rng, kind):
    comparison = Comparison(dtype)
    for density in (0.05, 0.1, 0.5, 0.99):
        q, k, v = arrays(rng, dtype, H=2, Lq=29, Lk=1100, D=8)
        mask = rng.random((2, 29, 1100)) < density
        mask[:, 3] = False
        mask[:, 4, :600] = False
        if kind == "float":
            mask = np.where(mask, rng.standard_normal(mask.shape), -np.inf).astype(dtype)
        comparison.add(q, k, v, mask=mask)
        comparison.add(q, k, v, mask=mask, causal="bottom-right", kv_lengths=np.array([1090]))
    comparison.check()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "unaligned"] + ["unaligned", "transposed"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_mask_of_any_layout_gives_the_same_bits(dtype, rng, kind, layout):
    q, k, v = arrays(rng, dtype, B=2, H=2, Lq=13, Lk=37)
    mask = rng.random((2, 2, 13, 37)) < 0.5
    if kind == "float":
        mask = rng.standard_normal(mask.shape).astype(dtype)
    if layout == "spaced" and kind == "bool":
        laid_out = np.repeat(mask, 2, axis=-1)[..., ::2]
    elif layout == "padded rows" and kind == "bool":
        laid_out = np.concatenate([mask, ~mask], axis=-1)[..., :37]
    elif layout == "transposed":
        laid_out = mask.transpose(3, 1, 0, 2).copy().transpose(2, 1, 3, 0)
    else:
        laid_out = LAYOUTS[layout](mask)
    np.testing.assert_array_equal(laid_out, mask)
    assert same_bits(fa.attention(q, k, v, mask=laid_out), fa.attention(q, k, v, mask=mask))


WINDOWS = (None, (0, 0), (3, 0), (None, 2), (5, None), (2, 9), (600, 600), (None, None), (2**62, 2**70))


@pytest.mark.parametrize("causal", [False, "top-left", "bottom-right"])
def test_causal_forms_and_windows(isa, strategy, dtype, rng, causal):
    comparison = Comparison(dtype)
    for window, (lq, lk) in itertools.product(WINDOWS, ((7, 7), (13, 5), (5, 13), (1, 40), (100, 530), (530, 100))):
        if lq * lk > 10_000 and window in ((0, 0), (None, 2), (None, None)):
            continue
        comparison.add(*arrays(rng, dtype, Lq=lq, Lk=lk, D=4), causal=causal, window=window)
    comparison.check()


def test_window_over_a_long_sequence_has_the_bits_of_its_parts(isa, strategy, dtype, rng):
    length, window = 3300, (150, 0)
    q, k, v = arrays(rng, dtype, B=2, H=4, Hk=2, Lq=length, Lk=length, D=3)
    parts = [
        fa.attention(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], window=window)
        for begin, end in itertools.pairwise((0, 960, 1920, 2880, length))  # whole tiles of BLAS
    ]
    lengths = np.array([length, 1100])
    for n in (1, 2, 3):
        with fa.num_threads(n):
            out = fa.attention(q, k, v, window=window)
            assert same_bits(out, np.concatenate(parts, axis=2))
            ragged = fa.attention(q, k, v, window=window, q_lengths=lengths, kv_lengths=lengths)
            assert same_bits(ragged[0], out[0])
            assert same_bits(ragged[1, :, :1100], out[1, :, :1100])
            assert not ragged[1, :, 1100:].any()


def test_causal_true_is_bottom_right_of_a_square(isa, dtype, rng):
    q, k, v = arrays(rng, dtype, B=2, H=2, Lq=130, Lk=130)
    assert same_bits(fa.attention(q, k, v, causal=True), fa.attention(q, k, v, causal="bottom-right"))
    assert same_bits(fa.attention(q, k, v, causal=True), fa.attention(q, k, v, causal="top-left"))


@pytest.mark.parametrize("causal", [False, "top-left", "bottom-right"])
def test_lengths_of_queries_and_keys(isa, strategy, dtype, rng, causal):
    comparison = Comparison(dtype)
    q_lengths, kv_lengths = np.array([0, 1, 13, 29, 29, 7]), np.array([5, 0, 600, 1, 513, 29])
    for window in (None, (4, 2)) * 3:  # the largest error of one draw is that of a row or two
        q, k, v = arrays(rng, dtype, B=6, H=4, Hk=2, Lq=29, Lk=600, D=5)
        options = {"causal": causal, "window": window}
        out, lse = comparison.add(q, k, v, q_lengths=q_lengths, kv_lengths=kv_lengths, **options)
        for b, n in enumerate(q_lengths):
            assert not out[b, :, n:].any()
            assert (lse[b, :, n:] == -np.inf).all()
        comparison.add(q, k, v, q_lengths=q_lengths.astype(np.uint8), **options)
        comparison.add(q, k, v, kv_lengths=kv_lengths.astype(np.int32)[::1], **options)
    comparison.check()


@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_grouped_heads_equal_repeated_keys_and_values(isa, strategy, dtype, rng, group):
    q, k, v = arrays(rng, dtype, B=2, H=2 * group, Hk=2, Lq=19, Lk=70, Dv=5)
    repeated = fa.attention(q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1))
    assert same_bits(fa.attention(q, k, v), repeated)


def test_scales(isa, strategy, dtype, rng):
    comparison = Comparison(dtype)
    for scale in (0, 1.0, -0.3, 1e-3, 8, np.float32(0.1), np.float64(0.7)):
        for lq, lk in ((5, 40), (20, 600)):
            comparison.add(*arrays(rng, dtype, B=8, H=2, Lq=lq, Lk=lk, D=16), scale=scale)
    comparison.check()


def test_the_default_scale_is_the_inverse_root_of_the_head_size(dtype, rng):
    q, k, v = arrays(rng, dtype, Lq=9, Lk=9, D=64)
    assert same_bits(fa.attention(q, k, v), fa.attention(q, k, v, scale=0.125))


@pytest.mark.parametrize("options", [{}, {"causal": "top-left"}, {"kv_lengths": np.array([3, 11])}])
def test_layout_blhd_swaps_axes_of_all_arrays(isa, strategy, dtype, rng, options):
    q, k, v = arrays(rng, dtype, B=2, H=4, Hk=2, Lq=9, Lk=11, Dv=3)
    out, lse = fa.attention(q, k, v, return_lse=True, **options)
    swapped = [a.swapaxes(1, 2).copy() for a in (q, k, v)]
    other, other_lse = fa.attention(*swapped, layout="blhd", return_lse=True, **options)
    assert other.shape == (2, 9, 4, 3) and other.flags.c_contiguous
    assert same_bits(other.swapaxes(1, 2), out)
    assert same_bits(other_lse.swapaxes(1, 2), lse)


def test_all_options_at_once(isa, strategy, dtype, rng):
    comparison = Comparison(dtype)
    for kind in ("bool", "float") * 2:
        q, k, v = arrays(rng, dtype, B=3, H=2, Hk=1, Lq=131, Lk=560, D=9, Dv=5)
        mask = rng.random((3, 1, 131, 560)) < 0.8
        if kind == "float":
            mask = np.where(mask, rng.standard_normal(mask.shape), -np.inf).astype(dtype)
        options = {"mask": mask, "causal": "bottom-right", "window": (300, None), "scale": 0.25,
                   "q_lengths": np.array([131, 0, 77]), "kv_lengths": np.array([560, 40, 301])}  # fmt: skip
        results = []
        for threads in (1, 2, 3, 5):
            with fa.num_threads(threads):
                results.append(comparison.add(q, k, v, **options) if threads == 3 else
                               fa.attention(q, k, v, return_lse=True, **options))  # fmt: skip
        assert all(same_bits(*pair) for result in results[1:] for pair in zip(result, results[0], strict=True))
    comparison.check()


def test_results_have_the_promised_shapes_and_types(dtype, rng):
    q, k, v = arrays(rng, dtype, B=2, H=4, Hk=2, Lq=3, Lk=5, D=6, Dv=7)
    assert fa.attention(q, k, v).shape == (2, 4, 3, 7)
    out, lse = fa.attention(q, k, v, return_lse=True)
    assert (out.dtype, lse.dtype) == (dtype, dtype)
    assert lse.shape == (2, 4, 3)
    assert same_bits(out, fa.attention(q, k, v))


@pytest.mark.parametrize(
    "sizes",
    [
        {"B": 0}, {"H": 0, "Hk": 0}, {"H": 0, "Hk": 3}, {"Lq": 0}, {"Lk": 0}, {"Dv": 0}, {"D": 0}, {"D": 0, "Dv": 0},
        {"B": 0, "Lk": 0}, {"Lq": 0, "Lk": 0}, {"B": 0, "H": 0, "Hk": 0, "Lq": 0, "Lk": 0, "D": 0, "Dv": 0},
    ],
    ids=str,
)  # fmt: skip
def test_any_size_may_be_zero(isa, strategy, dtype, rng, sizes):
    q, k, v = arrays(rng, dtype, **{"B": 2, "H": 2, "Lq": 5, "Lk": 7, "D": 4, "Dv": 4} | sizes)
    comparison = Comparison(dtype)
    out, lse = comparison.add(q, k, v)
    comparison.check()
    if sizes.get("Lk") == 0:
        assert not out.any() and (lse == -np.inf).all()


# ---- layouts and outputs ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_any_layout_give_the_same_bits(isa, strategy, dtype, rng, layout):
    q, k, v = arrays(rng, dtype, B=2, H=4, Hk=2, Lq=11, Lk=19, D=6, Dv=5)
    assert same_bits(fa.attention(*map(LAYOUTS[layout], (q, k, v))), fa.attention(q, k, v))


def test_strides_of_zero_are_a_broadcast(isa, strategy, dtype, rng):
    q, k, v = arrays(rng, dtype, B=1, H=1, Lq=3, Lk=7)
    shapes = (4, 6, 3, 8), (4, 2, 7, 8), (4, 2, 7, 8)
    wide = [np.broadcast_to(a, shape) for a, shape in zip((q, k, v), shapes, strict=True)]
    assert same_bits(fa.attention(*wide), np.broadcast_to(fa.attention(q, k, v), (4, 6, 3, 8)))


def test_lists_and_subclasses_are_arrays(rng):
    q, k, v = arrays(rng, np.float64, Lq=2, Lk=3, D=2)
    expected = fa.attention(q, k, v)
    assert same_bits(fa.attention(q.tolist(), k.tolist(), v.tolist()), expected)
    masked = [np.ma.masked_array(a) for a in (q, k, v)]
    assert same_bits(fa.attention(*masked), expected)


def test_out_may_be_the_mask(rng, strategy, dtype):
    q, k, v = arrays(rng, dtype, B=2, H=3, Lq=70, Lk=70, D=4, Dv=70)
    mask = rng.standard_normal((2, 3, 70, 70)).astype(dtype)
    expected = fa.attention(q, k, v, mask=mask[:, :1])
    # The mask of head 0 serves all heads, and its result lies where the mask was.
    fa.attention(q, k, v, mask=mask[:, :1], out=mask)
    assert same_bits(mask, expected)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read-only"])
def test_out_is_filled_and_returned(isa, strategy, dtype, rng, layout):
    q, k, v = arrays(rng, dtype, B=2, H=2, Lq=11, Lk=19, Dv=5)
    out = LAYOUTS[layout](np.full((2, 2, 11, 5), np.nan, dtype))
    assert fa.attention(q, k, v, out=out) is out
    assert same_bits(out, fa.attention(q, k, v))
    returned, lse = fa.attention(q, k, v, out=out, return_lse=True)
    assert returned is out
    assert same_bits(lse, fa.attention(q, k, v, return_lse=True)[1])


@pytest.mark.parametrize("name", ["q", "k", "v", "mask"])
def test_out_may_be_an_input(isa, strategy, dtype, rng, name):
    n = 40
    q, k, v = arrays(rng, dtype, B=2, H=2, Lq=n, Lk=n, D=n)
    mask = rng.standard_normal((2, 2, n, n)).astype(dtype)
    expected = fa.attention(q, k, v, mask=mask)
    a = {"q": q, "k": k, "v": v, "mask": mask}
    assert same_bits(fa.attention(**a, out=a[name]), expected)


def test_out_that_shares_some_memory_with_an_input_is_right(dtype, rng):
    store = rng.standard_normal(4 * 6 * 8 + 16).astype(dtype)
    q, out = store[:-16].reshape(1, 4, 6, 8), store[16:].reshape(1, 4, 6, 8)
    expected = fa.attention(q, q, q)
    fa.attention(q, q, q, out=out)
    assert same_bits(out, expected)


def test_inputs_are_left_alone(isa, strategy, dtype, rng):
    q, k, v = arrays(rng, dtype, B=2, H=2, Lq=100, Lk=530)
    mask = rng.standard_normal((100, 530)).astype(dtype)
    before = [a.copy() for a in (q, k, v, mask)]
    fa.attention(q, k, v, mask=mask)
    assert all(map(same_bits, (q, k, v, mask), before))


def test_auto_is_one_of_the_strategies(dtype, rng):
    q, k, v = arrays(rng, dtype, H=2, Lq=33, Lk=77)
    results = []
    for name in ("auto", "fused", "blas") if HAS_BLAS else ("auto", "fused"):
        with fa.config.attention_strategy(name):
            results.append(fa.attention(q, k, v))
    assert any(same_bits(results[0], other) for other in results[1:])


# ---- bad input ----


def good():
    """q, k, v of B 2, H 4, Hk 2, Lq 3, Lk 5, D 8, Dv 6."""
    return {"q": np.ones((2, 4, 3, 8), "f4"), "k": np.ones((2, 2, 5, 8), "f4"), "v": np.ones((2, 2, 5, 6), "f4")}


ones = np.ones
BAD = {
    "q has 3 axes": ({"q": ones((4, 3, 8), "f4")}, ValueError, "q must have 4 axes, got shape (4, 3, 8)"),
    "k has 5 axes": ({"k": ones((1, 2, 2, 5, 8), "f4")}, ValueError, "k must have 4 axes"),
    "v is a scalar": ({"v": np.float32(1)}, ValueError, "v must have 4 axes, got shape ()"),
    "batch of k": ({"k": ones((3, 2, 5, 8), "f4")}, ValueError, "k must have the batch 2 and head size 8 of q, got"),
    "head size of k": ({"k": ones((2, 2, 5, 7), "f4")}, ValueError, "k must have the batch 2 and head size 8 of q"),
    "batch of v": ({"v": ones((1, 2, 5, 6), "f4")}, ValueError, "v must have the batch, heads and length of k"),
    "heads of v": ({"v": ones((2, 4, 5, 6), "f4")}, ValueError, "v must have the batch, heads and length of k"),
    "length of v": ({"v": ones((2, 2, 4, 6), "f4")}, ValueError, "v must have the batch, heads and length of k"),
    "3 heads of k": (
        {"k": ones((2, 3, 5, 8), "f4"), "v": ones((2, 3, 5, 6), "f4")},
        ValueError,
        "k must have a number of heads that divides the 4 of q, got 3",
    ),
    "no heads of k": (
        {"k": ones((2, 0, 5, 8), "f4"), "v": ones((2, 0, 5, 6), "f4")},
        ValueError,
        "k must have a number of heads that divides the 4 of q, got 0",
    ),
    "integer q": (
        {"q": ones((2, 4, 3, 8), int)},
        TypeError,
        "q must be float32, float64, bfloat16 or float16",
        "q.astype(np.float32)",
    ),
    "bool v": ({"v": ones((2, 2, 5, 6), bool)}, TypeError, "v must be float32 or float64", "v.astype(np.float32)"),
    "complex k": ({"k": ones((2, 2, 5, 8), complex)}, TypeError, "k must be float32 or float64", "complex128"),
    "objects": ({"q": ones((2, 4, 3, 8), object)}, TypeError, "q must be float32, float64, bfloat16 or float16"),
    "text": ({"q": "text"}, TypeError, "q must be float32, float64, bfloat16 or float16"),
    "None": ({"k": None}, TypeError, "k must be"),
    "other byte order": (
        {"q": ones((2, 4, 3, 8), ">f4")},
        TypeError,
        "q must be float32, float64, bfloat16 or float16",
        "byte order",
    ),
    "k of another dtype": ({"k": ones((2, 2, 5, 8), "f8")}, TypeError, "k must be float32", "k.astype(np.float32)"),
    "v of another dtype": ({"v": ones((2, 2, 5, 6), "f8")}, TypeError, "v must be float32", "v.astype(np.float32)"),
    "mask of 5 axes": ({"mask": ones((1, 1, 1, 1, 1), bool)}, ValueError, "mask must broadcast to (2, 4, 3, 5), got"),
    "mask too long": (
        {"mask": ones((3, 6), bool)},
        ValueError,
        "mask must broadcast to (2, 4, 3, 5), got shape (3, 6)",
    ),
    "mask of other heads": ({"mask": ones((2, 2, 3, 5), bool)}, ValueError, "mask must broadcast to (2, 4, 3, 5)"),
    "empty mask": ({"mask": ones((0,), bool)}, ValueError, "mask must broadcast to (2, 4, 3, 5)"),
    "integer mask": ({"mask": ones((3, 5), int)}, TypeError, "mask must be bool (True = attend) or float32", "int64"),
    "mask of another dtype": ({"mask": ones((3, 5), "f8")}, TypeError, "mask must be bool", "float32", "float64"),
    "causal, not square": ({"causal": True}, ValueError, "causal=True", "got 3 and 5", "causal='top-left'"),
    "unknown causal": ({"causal": "left"}, ValueError, "causal must be", "'left'"),
    "causal as number": ({"causal": 1}, ValueError, "causal must be", "got 1"),
    "causal as array": ({"causal": np.ones(2, bool)}, ValueError, "causal must be"),
    "window of one": ({"window": 3}, ValueError, "window must be a pair (left, right), got 3"),
    "window of three": ({"window": (1, 2, 3)}, ValueError, "window must be a pair (left, right)"),
    "negative window": ({"window": (-1, 2)}, ValueError, "window must hold distances of at least 0, got -1"),
    "window of floats": ({"window": (1.5, 2)}, TypeError, "window must hold integers or None, got 1.5"),
    "window of bools": ({"window": (True, 2)}, TypeError, "window must hold integers or None, got True"),
    "q_lengths too large": ({"q_lengths": [4, 3]}, ValueError, "q_lengths must lie in 0..3, got 3..4"),
    "kv_lengths negative": ({"kv_lengths": [-1, 3]}, ValueError, "kv_lengths must lie in 0..5, got -1..3"),
    "kv_lengths too many": ({"kv_lengths": [1, 2, 3]}, ValueError, "kv_lengths must have shape (2,), got shape (3,)"),
    "kv_lengths a number": ({"kv_lengths": 3}, ValueError, "kv_lengths must have shape (2,), got shape ()"),
    "q_lengths of floats": ({"q_lengths": [1.0, 2.0]}, TypeError, "q_lengths must be integers, got float64"),
    "q_lengths of bools": ({"q_lengths": [True, False]}, TypeError, "q_lengths must be integers, got bool"),
    "huge kv_lengths": (
        {"kv_lengths": np.array([2**64 - 1, 1], np.uint64)},
        ValueError,
        "kv_lengths must fit into 63 bits, got 18446744073709551615 at [0]",
    ),
    "scale not finite": ({"scale": np.inf}, ValueError, "scale must be finite, got inf"),
    "scale NaN": ({"scale": np.nan}, ValueError, "scale must be finite, got nan"),
    "scale of text": ({"scale": "half"}, TypeError, "scale must be a number, got 'half'"),
    "scale of several": ({"scale": ones(3)}, TypeError, "scale must be a number"),
    "unknown layout": ({"layout": "bhdl"}, ValueError, "layout must be 'bhld' or 'blhd', got 'bhdl'"),
    "out of another shape": (
        {"out": ones((2, 4, 3, 8), "f4")},
        ValueError,
        "out must have shape (2, 4, 3, 6) and dtype float32, got (2, 4, 3, 8) and float32",
    ),
    "out of another dtype": ({"out": ones((2, 4, 3, 6), "f8")}, ValueError, "out must have shape", "float64"),
    "out in another layout": ({"out": ones((2, 3, 4, 6), "f4")}, ValueError, "out must have shape (2, 4, 3, 6)"),
    "out no array": ({"out": [1.0]}, TypeError, "out must be an ndarray, got list"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    change, error, *fragments = BAD[case]
    with pytest.raises(error) as raised:
        fa.attention(**good() | change)
    assert type(raised.value) is error
    message = str(raised.value)
    assert message.startswith("attention: ")
    for fragment in fragments:
        assert fragment in message


def test_a_read_only_out_is_refused():
    out = np.ones((2, 4, 3, 6), "f4")
    out.flags.writeable = False
    with pytest.raises(ValueError, match="attention: out must be writable"):
        fa.attention(**good(), out=out)
    assert (out == 1).all()


@pytest.mark.parametrize("case", [name for name, (change, *_) in BAD.items() if "out" not in change])
def test_bad_input_leaves_out_untouched(case):
    out = np.full((2, 4, 3, 6), 7, "f4")
    with pytest.raises((TypeError, ValueError)):
        fa.attention(**good() | BAD[case][0], out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("dtype_name", ["float16", "bfloat16"])
def test_half_precision_is_computed_or_refused_with_the_fix(dtype_name):
    scalar = np.float16 if dtype_name == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    halves = {name: a.astype(scalar) for name, a in good().items()}
    try:
        out = fa.attention(**halves)
    except TypeError as error:
        assert "q.astype(np.float32)" in str(error)
    else:
        assert out.dtype == scalar and (out == 1).all()


def test_unknown_strategies_are_refused():
    with (
        pytest.raises(ValueError, match=r"attention_strategy: name must be one of \('auto', 'fused', 'blas'\)"),
        fa.config.attention_strategy("flash"),
    ):
        pass


@pytest.mark.skipif(HAS_BLAS, reason="this build has a BLAS")
def test_strategy_blas_is_refused_without_a_blas():
    with (
        pytest.raises(ValueError, match="attention_strategy: 'blas' needs a BLAS"),
        fa.config.attention_strategy("blas"),
    ):
        pass

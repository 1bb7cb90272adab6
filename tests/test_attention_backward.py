"""Gradients of attention: values by the error rule, invariances, special values, bad input."""

import itertools

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

# Around the vector lengths 4, 8, 16, register tiles, tiles of 96 queries and blocks of 256 keys; primes.
QUERIES = (0, 1, 2, 7, 11, 12, 13, 95, 96, 97, 131)
KEYS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 64, 101, 255, 256, 257, 513)
HEAD_SIZES = (0, 1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 127, 128, 129, 160)
VALUE_SIZES = (0, 1, 3, 4, 5, 8, 15, 16, 17, 32, 47, 64, 65, 128, 131)
GRADIENTS = ("dq", "dk", "dv")


def arrays(rng, dtype, B=1, H=1, Hk=None, Lq=1, Lk=1, D=8, Dv=None):
    """dout, q, k, v."""
    Hk, Dv = H if Hk is None else Hk, D if Dv is None else Dv
    shapes = (B, H, Lq, Dv), (B, H, Lq, D), (B, Hk, Lk, D), (B, Hk, Lk, Dv)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def gradients(dout, q, k, v, **options):
    """dq, dk, dv."""
    return fa.attention_backward(dout, fa.attention_forward(q, k, v, **options)[1])


class Comparison:
    """The error rule for each gradient, over many calls."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.rules = [ErrorRule() for _ in GRADIENTS]

    def add(self, dout, q, k, v, **options):
        got = gradients(dout, q, k, v, **options)
        yardstick = plain.attention_backward(dout, q, k, v, **options)
        truth = exact(self.dtype).attention_backward(dout, q, k, v, **options)
        for rule, *values in zip(self.rules, got, yardstick, truth, strict=True):
            rule.add(*values)
        return got

    def check(self):
        # The baseline rounds products and sums as the yardstick does; its float64 medians of dv are up to 1.16 times.
        for rule in self.rules:
            rule.check(median=fa.config.get_isa() != "baseline", backward=True)


# ---- values ----


def test_values_at_all_lengths(isa, dtype, rng):
    comparison = Comparison(dtype)
    for index, lk in enumerate(KEYS):
        for lq in QUERIES[index % 3 :: 3]:
            comparison.add(*arrays(rng, dtype, Lq=lq, Lk=lk, D=32))
    comparison.check()


def test_values_at_usual_head_sizes(isa, dtype, rng):
    # Pooled: the largest error of one size is a single number out of 100,000, a matter of chance. Over 40 draws of each
    # size alone the largest of dq was 0.9 to 1.0 times NumPy's in the middle, and up to 2.03 in one of 160.
    comparison = Comparison(dtype)
    for (d, dv), length in itertools.product([(16, 16), (64, 64), (96, 160), (160, 32)], (130, 271)):
        comparison.add(*arrays(rng, dtype, H=2, Lq=length, Lk=length, D=d, Dv=dv))
        comparison.add(*arrays(rng, dtype, H=2, Lq=length, Lk=length, D=d, Dv=dv), causal=True)
    comparison.check()


def test_columns_of_zeros_change_no_bit(isa, dtype, rng):
    """Which ties all head sizes to the usual ones."""
    for d, dv in itertools.chain(
        zip(HEAD_SIZES, VALUE_SIZES, strict=True), zip(HEAD_SIZES, reversed(VALUE_SIZES), strict=True)
    ):
        args = arrays(rng, dtype, Lq=103, Lk=271, D=d, Dv=dv)
        wide = [np.concatenate([a, np.zeros((*a.shape[:-1], -a.shape[-1] % 64), dtype)], axis=-1) for a in args]
        for x, y in zip(gradients(*wide, scale=0.3), gradients(*args, scale=0.3), strict=True):
            assert same_bits(x[..., : y.shape[-1]], y)
            assert not x[..., y.shape[-1] :].any()


OPTIONS = {
    "causal": {"causal": "bottom-right"},
    "causal from the top left": {"causal": "top-left"},
    "window": {"window": (40, 7)},
    "causal window": {"causal": "bottom-right", "window": (60, None)},
    "open window": {"window": (None, 20), "causal": "top-left"},
    "scale": {"scale": -0.3},
    "lengths": {"q_lengths": [150, 97], "kv_lengths": [301, 255]},
    "causal lengths": {"q_lengths": [11, 150], "kv_lengths": [290, 3], "causal": "bottom-right"},
    "no keys": {"kv_lengths": [0, 281]},
    "softcap": {"softcap": 1.5, "causal": "bottom-right"},
    "alibi": {"alibi_slopes": np.array([0.5, 0.03])},
    "sinks": {"sinks": np.array([0.7, -2.0]), "causal": "bottom-right"},
    "all": {"softcap": 3.0, "alibi_slopes": np.array([0.1, 0.0]), "sinks": np.array([1.0, 0.0]), "window": (100, 50)},
}


def test_values_with_options_and_grouped_heads(isa, dtype, rng):
    comparison = Comparison(dtype)
    for option, (lq, lk) in itertools.product(OPTIONS.values(), ((110, 281), (281, 110))):
        options = dict(option)
        for name, length in (("q_lengths", lq), ("kv_lengths", lk)):
            if name in options:
                options[name] = np.minimum(options[name], length)
        for name in ("alibi_slopes", "sinks"):
            if name in options:
                options[name] = options[name].astype(dtype)
        comparison.add(*arrays(rng, dtype, B=2, H=2, Hk=1, Lq=lq, Lk=lk, D=32, Dv=24), **options)
    comparison.check()


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_values_with_masks(isa, dtype, rng, kind):
    comparison = Comparison(dtype)
    for shape in ((281,), (110, 1), (2, 1, 281), (2, 1, 110, 281), (2, 2, 110, 281)):
        mask = rng.random(shape) < 0.6
        if kind == "float":
            mask = np.where(mask, rng.standard_normal(shape), -np.inf).astype(dtype)
        args = arrays(rng, dtype, B=2, H=2, Lq=110, Lk=281, D=32)
        comparison.add(*args, mask=mask)
        comparison.add(*args, mask=mask, causal="bottom-right")
    comparison.check()


def complex_step(dout, q, k, v, causal):
    """Gradients of sum(dout * attention(q, k, v)) by complex steps: to the last digits, and not by our formulas."""
    step = 1e-200

    def loss(q, k, v):
        s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        if causal:
            i, j = np.indices(s.shape[-2:])
            s = np.where(j <= i + s.shape[-1] - s.shape[-2], s, -np.inf)
        e = np.exp(s - s.real.max(-1, keepdims=True))
        return (dout * (e / e.sum(-1, keepdims=True) @ v)).sum()

    result = []
    for index, x in enumerate((q, k, v)):
        gradient = np.empty_like(x)
        for at in np.ndindex(x.shape):
            moved = [a.astype(complex) for a in (q, k, v)]
            moved[index][at] += 1j * step
            gradient[at] = loss(*moved).imag / step
        result.append(gradient)
    return result


@pytest.mark.parametrize("causal", [False, True])
def test_float64_gradients_agree_with_complex_steps_to_1e_12(isa, rng, causal):
    dout, q, k, v = arrays(rng, np.float64, H=2, Lq=19, Lk=23, D=5, Dv=3)
    got = gradients(dout, q, k, v, causal="bottom-right" if causal else False)
    for ours, independent in zip(got, complex_step(dout, q, k, v, causal), strict=True):
        assert np.abs(ours - independent).max() <= 1e-12 * np.abs(independent).max()


def test_float64_gradients_agree_with_finite_differences(isa, rng):
    options = {"causal": "bottom-right", "window": (200, None), "kv_lengths": [280]}
    dout, q, k, v = arrays(rng, np.float64, H=2, Hk=1, Lq=120, Lk=300, D=6, Dv=4)
    got = gradients(dout, q, k, v, **options)
    step = 1e-6
    for index in range(3):
        direction = rng.standard_normal((q, k, v)[index].shape)
        ends = []
        for sign in (1, -1):
            moved = [q, k, v]
            moved[index] = moved[index] + sign * step * direction
            ends.append((dout * fa.attention(*moved, **options)).sum())
        slope = (got[index] * direction).sum()
        # Both losses are sums of 960 terms, rounded to some 1e-14; their difference is divided by 2e-6.
        assert abs((ends[0] - ends[1]) / (2 * step) - slope) <= 1e-6 * max(1, abs(slope))


# ---- invariances ----


def test_result_does_not_depend_on_thread_count(isa, dtype, rng):
    for sizes in ({"Lq": 500, "Lk": 1100, "D": 16}, {"B": 2, "H": 4, "Hk": 2, "Lq": 300, "Lk": 600, "D": 16}):
        for options in ({}, {"causal": "bottom-right"}, {"window": (300, 10)}):
            args = arrays(rng, dtype, **sizes)
            results = []
            for threads in (1, 2, 3, 7):
                with fa.num_threads(threads):
                    results.append(gradients(*args, **options))
            for result in results[1:]:
                assert all(map(same_bits, result, results[0]))


def test_result_does_not_depend_on_the_rest_of_the_batch(isa, dtype, rng):
    args = arrays(rng, dtype, B=3, H=4, Hk=2, Lq=140, Lk=300, D=16)
    together = gradients(*args, causal="bottom-right")
    for b in range(3):
        alone = gradients(*(a[b : b + 1] for a in args), causal="bottom-right")
        assert all(same_bits(x[b : b + 1], y) for x, y in zip(together, alone, strict=True))
    for hk in range(2):
        heads = [a[:, 2 * hk : 2 * hk + 2] for a in args[:2]] + [a[:, hk : hk + 1] for a in args[2:]]
        alone = gradients(*heads, causal="bottom-right")
        assert same_bits(together[0][:, 2 * hk : 2 * hk + 2], alone[0])
        assert all(same_bits(x[:, hk : hk + 1], y) for x, y in zip(together[1:], alone[1:], strict=True))


@pytest.mark.parametrize("causal", [False, "top-left", "bottom-right"])
def test_padding_changes_nothing(isa, dtype, rng, causal):
    args = arrays(rng, dtype, H=2, Lq=140, Lk=200, D=16)
    alone = gradients(*args, causal=causal)
    poison = np.full((1, 2, 190, 16), np.nan, dtype)
    padded = [np.concatenate([a, poison], axis=2) for a in args]
    lengths = {"q_lengths": [140], "kv_lengths": [200]}
    for x, y in zip(gradients(*padded, causal=causal, **lengths), alone, strict=True):
        assert same_bits(x[:, :, : y.shape[2]], y)
        assert not x[:, :, y.shape[2] :].any()
    if causal != "bottom-right":
        mask = np.zeros((330, 390), bool)
        mask[:140, :200] = True
        for x, y in zip(gradients(*padded, causal=causal, mask=mask), alone, strict=True):
            assert same_bits(x[:, :, : y.shape[2]], y)
            assert not x[:, :, y.shape[2] :].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_does_not_depend_on_memory_layout(isa, dtype, rng, layout):
    args = arrays(rng, dtype, B=2, H=2, Lq=40, Lk=70, D=12, Dv=9)
    contiguous = gradients(*args)
    assert all(map(same_bits, gradients(*map(LAYOUTS[layout], args)), contiguous))
    heads_inside = gradients(*(a.swapaxes(1, 2) for a in args), layout="blhd")
    assert all(same_bits(x.swapaxes(1, 2), y) for x, y in zip(heads_inside, contiguous, strict=True))


def test_heads_that_share_keys_add_up(isa, dtype, rng):
    dout, q, k, v = arrays(rng, dtype, B=2, H=6, Hk=2, Lq=100, Lk=120, D=16)
    dq, *shared = gradients(dout, q, k, v)
    alone = [gradients(dout[:, h, None], q[:, h, None], *(a[:, h // 3, None] for a in (k, v))) for h in range(6)]
    assert same_bits(dq, np.concatenate([gradient[0] for gradient in alone], axis=1))
    for index, together in enumerate(shared, 1):
        parts = np.concatenate([gradient[index] for gradient in alone], axis=1).reshape(2, 2, 3, 120, 16)
        assert np.abs(together - parts.sum(2)).max() <= 4 * np.spacing(np.abs(parts).max())


def test_any_strategy_of_forward_will_do(strategy, rng):
    comparison = Comparison(np.float32)
    comparison.add(*arrays(rng, np.float32, H=2, Lq=130, Lk=300, D=32), causal="bottom-right")
    comparison.check()


# ---- special values ----


def test_masked_nan_reaches_no_gradient(isa, dtype, rng):
    dout, q, k, v = arrays(rng, dtype, H=2, Lq=120, Lk=300, D=16)
    mask = rng.random((120, 300)) < 0.7
    mask[:, 5] = mask[:, 270] = False
    mask[7] = False
    clean = gradients(dout, q, k, v, mask=mask)
    for bad in (np.nan, np.inf, -np.inf):
        for a in (dout, q):
            a[:, :, 7] = bad
        for a in (k, v):
            a[:, :, [5, 270]] = bad
        assert all(map(same_bits, gradients(dout, q, k, v, mask=mask), clean))
        added = np.where(mask, 0, -np.inf).astype(dtype)
        assert all(map(same_bits, gradients(dout, q, k, v, mask=added), clean))


def test_nan_reaches_the_gradients_of_the_pairs_that_attend(isa, dtype, rng):
    args = dict(zip(("dout", "q", "k", "v"), arrays(rng, dtype, Lq=120, Lk=300, D=16), strict=True))
    mask = np.ones((120, 300), bool)
    mask[:, 50:] = False
    mask[10, 20] = mask[100, :20] = False
    clean = gradients(**args, mask=mask)
    for name, place in (("dout", (10, 3)), ("q", (10, 3))):
        poisoned = {key: a.copy() for key, a in args.items()}
        poisoned[name][0, 0][place] = np.nan
        dq, dk, dv = gradients(**poisoned, mask=mask)
        attended = mask[10]
        assert np.isnan(dq[0, 0, 10]).all()
        assert same_bits(np.delete(dq, 10, axis=2), np.delete(clean[0], 10, axis=2))
        for got, right in ((dk, clean[1]), (dv, clean[2])):
            assert np.isnan(got[0, 0, attended]).any(-1).all()
            assert same_bits(got[:, :, ~attended], right[:, :, ~attended])
    for name in ("k", "v"):
        poisoned = {key: a.copy() for key, a in args.items()}
        poisoned[name][0, 0, 20, 3] = np.nan
        dq = gradients(**poisoned, mask=mask)[0]
        rows = mask[:, 20]
        assert np.isnan(dq[0, 0, rows]).all()
        assert same_bits(dq[:, :, ~rows], clean[0][:, :, ~rows])


def test_rows_without_keys_have_no_gradient(isa, dtype, rng):
    dout, q, k, v = arrays(rng, dtype, B=4, H=8, Lq=30, Lk=40, D=8)
    dout[:, :, :5] = np.nan
    mask = np.ones((30, 40), bool)
    mask[:5] = False
    dq, dk, dv = gradients(dout, q, k, v, mask=mask)
    assert not dq[:, :, :5].any()
    others = dout[:, :, 5:], q[:, :, 5:], k, v
    results = (of.attention_backward(*others)[1:] for of in (plain, exact(dtype)))
    for values in zip((dk, dv), *results, strict=True):
        rule = ErrorRule()
        rule.add(*values)
        rule.check(median=False, backward=True)
    assert not any(g.any() for g in gradients(dout, q, k, v, kv_lengths=[0] * 4))


@pytest.mark.parametrize("size", [30.0, 1e4, 1e7])
def test_large_scores_stay_finite(isa, dtype, rng, size):
    dout, q, k, v = arrays(rng, dtype, Lq=50, Lk=300, D=8)
    assert all(np.isfinite(g).all() for g in gradients(dout, (size * q).astype(dtype), k, v))


@pytest.mark.parametrize("name", ["B", "H", "Lq", "Lk", "D", "Dv"])
def test_any_size_may_be_zero(isa, dtype, rng, name):
    sizes = {"B": 2, "H": 2, "Hk": 2, "Lq": 5, "Lk": 6, "D": 3, "Dv": 4, name: 0}
    args = arrays(rng, dtype, **sizes)
    got = gradients(*args)
    for gradient, x in zip(got, args[1:], strict=True):
        assert gradient.shape == x.shape
        assert gradient.dtype == dtype
    if name in ("Lq", "Lk", "H"):
        assert not any(g.any() for g in got)


# ---- gradients of the mask, the sinks and the slopes ----

# Every way to broadcast a mask to [2, 4, 110, 281].
MASKS = [
    (281,), (1,), (110, 1), (110, 281), (4, 1, 281), (4, 110, 281), (1, 1, 1, 281), (2, 1, 1, 281), (2, 1, 110, 1),
    (2, 1, 110, 281), (2, 4, 1, 281), (2, 4, 110, 1), (2, 4, 110, 281), (4, 1, 1), (2, 1, 1, 1), (2, 4, 1, 1),
]  # fmt: skip
EVERY = ("mask", "sinks", "alibi_slopes")


def option_arrays(rng, dtype, mask_shape):
    mask = np.where(rng.random(mask_shape) < 0.8, rng.standard_normal(mask_shape), -np.inf)
    mask[..., :1] = 0.5
    return {
        "mask": mask.astype(dtype),
        "sinks": rng.standard_normal(4).astype(dtype),
        "alibi_slopes": (rng.random(4) / 16).astype(dtype),
    }


def option_gradients(dout, q, k, v, **options):
    """dmask, dsinks, dalibi_slopes, as far as there are such options."""
    names = [name for name in EVERY if options.get(name) is not None]
    every = fa.attention_backward(dout, fa.attention_forward(q, k, v, **options)[1], gradients=names)[3:]
    return tuple(gradient for gradient in every if gradient is not None)


SHARED = {}, {"causal": "bottom-right", "softcap": 2.0}, {"window": (40, 20), "q_lengths": [110, 60]}


def test_values_of_gradients_of_masks(isa, dtype, rng):
    rule = ErrorRule()
    for shape, shared in itertools.product(MASKS, SHARED):
        args = arrays(rng, dtype, B=2, H=4, Hk=2, Lq=110, Lk=281, D=16)
        options = shared | option_arrays(rng, dtype, shape)
        got = option_gradients(*args, **options)[0]
        assert got.shape == shape
        rule.add(got, *(of.attention_option_gradients(*args, **options)[0] for of in (plain, exact(dtype))))
    rule.check(median=isa != "baseline", backward=True)


def test_values_of_gradients_of_sinks_and_slopes(isa, dtype, rng):
    # Many heads and rows, as each head gives one number, a sum of terms that nearly cancel.
    rules = [ErrorRule() for _ in EVERY[1:]]
    for shared in SHARED * (2 if dtype == np.float32 else 1):
        args = arrays(rng, dtype, B=2, H=320, Hk=160, Lq=17, Lk=131, D=16)
        options = {
            "sinks": rng.standard_normal(320).astype(dtype),
            "alibi_slopes": (rng.random(320) / 16).astype(dtype),
        }
        options |= shared | ({"q_lengths": [17, 9]} if "q_lengths" in shared else {})
        results = zip(
            option_gradients(*args, **options),
            *(of.attention_option_gradients(*args, **options)[1:] for of in (plain, exact(dtype))),
            strict=True,
        )
        for rule, values in zip(rules, results, strict=True):
            rule.add(*values)
    for rule in rules:
        rule.check(median=isa != "baseline", backward=True)


def test_gradients_of_mask_sinks_and_slopes_agree_with_finite_differences(isa, rng):
    dout, q, k, v = arrays(rng, np.float64, B=2, H=4, Hk=2, Lq=100, Lk=270, D=6, Dv=4)
    step = 1e-6
    for shape in ((100, 270), (4, 1, 270), (2, 1, 100, 1)):
        options = option_arrays(rng, np.float64, shape) | {"softcap": 3.0, "causal": "bottom-right"}
        got = option_gradients(dout, q, k, v, **options)
        for gradient, name in zip(got, EVERY, strict=True):
            direction = rng.standard_normal(options[name].shape)
            ends = []
            for sign in (1, -1):
                moved = options | {name: options[name] + sign * step * direction}
                ends.append((dout * fa.attention(q, k, v, **moved)).sum())
            slope = (gradient * direction).sum()
            assert abs((ends[0] - ends[1]) / (2 * step) - slope) <= 1e-6 * max(1, abs(slope))


def test_gradients_of_options_do_not_depend_on_thread_count(isa, dtype, rng):
    args = arrays(rng, dtype, B=2, H=4, Hk=2, Lq=410, Lk=900, D=8)
    for shape in ((900,), (410, 1), (410, 900), (4, 1, 900), (2, 1, 410, 900), (2, 4, 410, 900), (1,)):
        options = option_arrays(rng, dtype, shape) | {"causal": "bottom-right"}
        results = []
        for threads in (1, 2, 3, 7):
            with fa.num_threads(threads):
                results.append(option_gradients(*args, **options))
        for result in results[1:]:
            assert all(map(same_bits, result, results[0]))


def test_asking_for_more_gradients_changes_no_bit_of_the_others(isa, dtype, rng):
    args = arrays(rng, dtype, B=2, H=4, Hk=2, Lq=110, Lk=281, D=16)
    for softcap in (0.0, 2.0):
        options = option_arrays(rng, dtype, (4, 110, 281)) | {"softcap": softcap}
        saved = fa.attention_forward(*args[1:], **options)[1]
        few, every = fa.attention_backward(args[0], saved), fa.attention_backward(args[0], saved, gradients=EVERY)
        assert isinstance(few, tuple) and not hasattr(few, "dq") and isinstance(every, fa.AttentionGradients)
        assert all(map(same_bits, few, every[:3]))
        alone = fa.attention_backward(args[0], saved, gradients=["sinks"])
        assert alone.dmask is None and alone.dalibi_slopes is None and same_bits(alone.dsinks, every.dsinks)
        assert fa.attention_backward(args[0], saved, gradients=()).dsinks is None


def test_padding_changes_no_gradient_of_options(isa, dtype, rng):
    args = arrays(rng, dtype, H=4, Lq=140, Lk=200, D=16)
    options = option_arrays(rng, dtype, (4, 140, 200))
    alone = option_gradients(*args, **options)
    poison = np.full((1, 4, 190, 16), np.nan, dtype)
    padded = [np.concatenate([a, poison], axis=2) for a in args]
    mask = np.full((4, 330, 390), np.nan, dtype)
    mask[:, :140, :200] = options["mask"]
    got = option_gradients(*padded, **options | {"mask": mask}, q_lengths=[140], kv_lengths=[200])
    assert same_bits(got[0][:, :140, :200], alone[0])
    assert not got[0][:, 140:].any() and not got[0][:, :, 200:].any()
    assert all(map(same_bits, got[1:], alone[1:]))


def test_masked_nan_reaches_no_gradient_of_options(isa, dtype, rng):
    dout, q, k, v = arrays(rng, dtype, H=4, Lq=120, Lk=300, D=16)
    options = option_arrays(rng, dtype, (4, 120, 300))
    options["mask"][:, :, [5, 270]] = options["mask"][:, 7] = -np.inf
    clean = option_gradients(dout, q, k, v, **options)
    dout[:, :, 7] = q[:, :, 7] = k[:, :, [5, 270]] = v[:, :, [5, 270]] = np.nan
    assert all(map(same_bits, option_gradients(dout, q, k, v, **options), clean))
    assert not clean[0][:, 7].any() and not clean[0][:, :, 5].any()


def test_gradients_of_options_of_empty_calls_are_zero(isa, dtype, rng):
    for name in ("B", "Lq", "Lk", "Dv"):
        sizes = {"B": 2, "H": 4, "Hk": 2, "Lq": 5, "Lk": 6, "D": 3, "Dv": 4, name: 0}
        options = option_arrays(rng, dtype, (4, sizes["Lq"], sizes["Lk"]))
        for gradient, option in zip(option_gradients(*arrays(rng, dtype, **sizes), **options), EVERY, strict=True):
            assert gradient.shape == options[option].shape and not gradient.any()


def test_wrong_names_of_gradients_are_refused(rng):
    dout, q, k, v = arrays(rng, np.float32, H=2, Lq=5, Lk=6)
    saved = fa.attention_forward(q, k, v, mask=np.ones((5, 6), bool))[1]
    for names, error, message in [
        (["masks"], ValueError, "gradients must hold names of .*'mask', 'sinks', 'alibi_slopes'.*got 'masks'"),
        (["sinks"], ValueError, "gradients must be of arguments that the forward call had, got 'sinks'"),
        ("sinks", TypeError, "gradients must be a sequence of names, got 'sinks'"),
        (["mask"], TypeError, "gradients must be of numbers, got 'mask', which is bool"),
    ]:
        with pytest.raises(error, match="attention_backward: " + message):
            fa.attention_backward(dout, saved, gradients=names)


# ---- bad input ----


def test_wrong_dout_is_named(rng):
    dout, q, k, v = arrays(rng, np.float32, B=2, H=2, Lq=5, Lk=6)
    _, saved = fa.attention_forward(q, k, v)
    for wrong in (dout[:1], dout[..., :7], dout[:, :, :4], dout[:, :1]):
        with pytest.raises(ValueError, match=r"attention_backward: dout must have the shape \(2, 2, 5, 8\)"):
            fa.attention_backward(wrong, saved)
    with pytest.raises(ValueError, match="attention_backward: dout must have 4 axes"):
        fa.attention_backward(dout[0], saved)
    with pytest.raises(TypeError, match="attention_backward: dout must be float32"):
        fa.attention_backward(dout.astype(np.float64), saved)
    with pytest.raises(TypeError, match="attention_backward: dout must be float32"):
        fa.attention_backward(dout.astype(np.int32), saved)
    with pytest.raises(TypeError, match="attention_backward: saved must be what attention_forward returned"):
        fa.attention_backward(dout, (q, k, v))


def test_forward_of_the_pair_is_attention(dtype, rng):
    _, q, k, v = arrays(rng, dtype, B=2, H=4, Hk=2, Lq=50, Lk=60)
    options = {"causal": "bottom-right", "window": (30, 0), "kv_lengths": [60, 20]}
    assert same_bits(fa.attention_forward(q, k, v, **options)[0], fa.attention(q, k, v, **options))

"""NaN, infinities, masks and subnormals: every place a special value can stand, and every result it may change.

A cell is one special value in one place, with the whole result checked: NaN exactly where arithmetic takes it, the bits
of the clean result everywhere else. A batch holds one cell per entry.
"""

import ctypes
import ctypes.util
import platform

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits
from tests.conftest import HAS_BLAS
from tests.low_precision import BFLOAT16

SPECIAL = (np.nan, np.inf, -np.inf)
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 67)
CELLS = 50_000  # of all tables together, under all ISAs


def bits_where(keep, got, expected):
    """Equal bits at all places of `keep`."""
    return same_bits(np.where(keep, got, 0), np.where(keep, expected, 0))


def check_nan(got, clean, nan):
    """NaN where `nan`, elsewhere the clean bits."""
    assert np.isnan(got[nan]).all(), "not NaN where arithmetic takes it"
    assert bits_where(~nan, got, clean), "changed where nothing special arrives"


def attention_cells(rng, dtype, lk, strategy):
    """Special values in every position of q, k, v and mask. Returns the number of cells."""
    lq, d, dv, cells = 3, 2, 2, 0
    q, k, v = (np.abs(rng.standard_normal(s)).astype(dtype) + 1 for s in ((1, 1, lq, d), (1, 1, lk, d), (1, 1, lk, dv)))
    for kind in ("bool", "float"):
        allowed = rng.random((lq, lk)) < 0.7
        allowed[0] = True
        allowed[1] = False
        mask = allowed if kind == "bool" else np.where(allowed, 0, -np.inf).astype(dtype)
        attends = allowed.any(-1)
        with fa.config.attention_strategy(strategy):
            clean, clean_lse = fa.attention(q, k, v, mask=mask, return_lse=True)
            assert not clean[0, 0, 1].any()
            assert clean_lse[0, 0, 1] == -np.inf
            for value in SPECIAL:
                for name, x in (("q", q), ("k", k), ("v", v)):
                    n = x[0, 0].size
                    many = np.repeat(x, n, axis=0)
                    many.reshape(n, n)[np.arange(n), np.arange(n)] = value
                    a = {"q": np.repeat(q, n, 0), "k": np.repeat(k, n, 0), "v": np.repeat(v, n, 0), name: many}
                    out, lse = fa.attention(**a, mask=mask, return_lse=True)
                    row, column = np.divmod(np.arange(n), x.shape[-1])
                    special = np.zeros((n, 1, lq, dv), bool)
                    if name == "q":  # scores of one row: NaN, +inf, or all -inf, which excludes
                        here = (np.arange(lq) == row[:, None]) & attends
                        special[:, 0] = here[..., None]
                        if value == -np.inf:
                            assert not out[special].any()
                            assert (lse[special[..., 0]] == -np.inf).all()
                            out, lse = (np.where(m, c, y) for m, c, y in (
                                (special, clean, out), (special[..., 0], clean_lse, lse)))  # fmt: skip
                            special[:] = False
                    elif name == "k":
                        if value == -np.inf:  # the key is excluded: as a mask says
                            for cell, key in enumerate(row):
                                without = np.where(np.arange(lk) == key, False, allowed)
                                want = fa.attention(q, k, v, mask=without, return_lse=True)
                                if kind == "bool":
                                    assert same_bits(out[cell : cell + 1], want[0])
                                    assert same_bits(lse[cell : cell + 1], want[1])
                            cells += n
                            continue
                        special[:, 0] = allowed.T[row][..., None]
                    else:
                        special[:, 0] = allowed.T[row][..., None] & (np.arange(dv) == column[:, None])[:, None]
                        if np.isnan(value):
                            check_nan(out, clean, special)
                        else:
                            assert (out[special] == value).all()
                            assert bits_where(~special, out, clean)
                        assert same_bits(lse, np.repeat(clean_lse, n, 0))
                        cells += n
                        continue
                    check_nan(out, clean, special)
                    check_nan(lse, clean_lse, special[..., 0])
                    cells += n
            if kind == "float":
                n = lq * lk
                for value in (np.nan, np.inf):
                    masks = np.repeat(mask[None, None], n, 0)
                    masks.reshape(n, n)[np.arange(n), np.arange(n)] = value
                    out, lse = fa.attention(*(np.repeat(x, n, 0) for x in (q, k, v)), mask=masks, return_lse=True)
                    nan = np.arange(lq) == (np.arange(n) // lk)[:, None]
                    check_nan(lse[:, 0], clean_lse[:, 0], nan)
                    check_nan(out[:, 0], clean[:, 0], np.broadcast_to(nan[..., None], out[:, 0].shape))
                    cells += n
    return cells


def softmax_cells(rng, dtype, n):
    x, cells = rng.standard_normal((1, n)).astype(dtype), 0
    for f in (fa.softmax, fa.log_softmax):
        clean = f(x)
        for value in SPECIAL:
            many = np.repeat(x, 2 * n, 0)  # every other row is clean
            many[2 * np.arange(n), np.arange(n)] = value
            y = f(many)
            assert same_bits(y[1::2], np.repeat(clean, n, 0))
            if value == -np.inf and n > 1:
                at = np.eye(n, dtype=bool)
                assert (y[::2][at] == (0 if f is fa.softmax else -np.inf)).all()
                assert np.isfinite(y[::2][~at]).all()
            else:
                assert np.isnan(y[::2]).all()
            cells += n
        assert np.isnan(f(np.full((2, n), -np.inf, dtype))).all()
    return cells


def linear_cells(rng, dtype, k):
    m, n, cells = 3, 5, 0
    x, w, b = (np.abs(rng.standard_normal(s)).astype(dtype) + 1 for s in ((m, k), (n, k), (n,)))
    for activation in (None, "relu", "tanh"):
        clean = fa.linear(x, w, b, activation=activation)
        for i in range(m * k):
            bad = x.copy()
            bad.flat[i] = np.nan
            nan = np.broadcast_to((np.arange(m) == i // k)[:, None], (m, n))
            check_nan(fa.linear(bad, w, b, activation=activation), clean, nan)
        for i in range(0, n * k, 3):
            bad = w.copy()
            bad.flat[i] = np.nan
            nan = np.broadcast_to(np.arange(n) == i // k, (m, n))
            check_nan(fa.linear(x, bad, b, activation=activation), clean, nan)
        cells += m * k + len(range(0, n * k, 3))
    return cells


def recurrent_cells(rng, dtype, hidden):
    """NaN in x and h: that sequence from that step on, and no other."""
    T, I, cells = 3, 2, 0
    B = T * I + hidden + 1  # a cell for each element of x and h, and a clean sequence
    for kind, gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
        weights = {
            "weight_ih_l0": rng.standard_normal((gates * hidden, I)).astype(dtype),
            "weight_hh_l0": rng.standard_normal((gates * hidden, hidden)).astype(dtype),
        }
        x = np.repeat(rng.standard_normal((T, 1, I)).astype(dtype), B, 1)
        h = np.repeat(rng.standard_normal((1, 1, hidden)).astype(dtype), B, 1)
        f = getattr(fa, kind)
        clean = f(x, (h, h) if kind == "lstm" else h, weights)[0]
        h_bad = h.copy()
        for t, i in np.ndindex(T, I):
            x[t, t * I + i, i] = np.nan
        h_bad[0, T * I + np.arange(hidden), np.arange(hidden)] = np.nan
        y = f(x, (h_bad, h) if kind == "lstm" else h_bad, weights)[0]
        first = np.concatenate([np.repeat(np.arange(T), I), np.zeros(hidden, int), [T]])
        nan = np.arange(T)[:, None] >= first
        check_nan(y, clean, np.broadcast_to(nan[..., None], y.shape))
        lengths = np.minimum(first, T)
        short = f(x, (h, h) if kind == "lstm" else h, weights, lengths=lengths)[0]
        assert np.isfinite(short).all(), "NaN beyond the length of a sequence"
        cells += 2 * (B - 1)
    return cells


def test_special_values_change_what_arithmetic_takes_them_to_and_nothing_else(rng):
    cells = 0
    for isa in fa.config.available_isas():
        with fa.config.use_isa(isa):
            for dtype in (np.float32, np.float64):
                for n in LENGTHS:
                    cells += attention_cells(rng, dtype, n, "fused")
                    if HAS_BLAS and n % 4 == 1:
                        cells += attention_cells(rng, dtype, n, "blas")
                    cells += softmax_cells(rng, dtype, n) + linear_cells(rng, dtype, n)
                    cells += recurrent_cells(rng, dtype, n)
    assert cells >= CELLS * len(fa.config.available_isas()) / 3, cells


def test_a_query_with_nothing_to_attend_to_gets_zeros(isa, strategy, dtype, rng):
    q, k, v = (rng.standard_normal((2, 2, n, 5)).astype(dtype) for n in (19, 530, 530))
    v[0, 0, 3] = np.nan
    options = [
        {"mask": np.zeros((19, 530), bool)},
        {"mask": np.full((1, 530), -np.inf, dtype)},
        {"kv_lengths": np.array([0, 0])},
        {"q_lengths": np.array([0, 0])},
    ]
    for o in options:
        out, lse = fa.attention(q, k, v, return_lse=True, **o)
        assert same_bits(out, np.zeros_like(out))
        assert (lse == -np.inf).all()


@pytest.mark.parametrize("keys", [1, 5, 17, 600])
def test_the_lowest_number_is_no_exclusion(isa, strategy, dtype, rng, keys):
    q, k, v = (rng.standard_normal((1, 1, n, 4)).astype(dtype) for n in (3, keys, keys))
    lowest = np.finfo(dtype).min
    mask = np.full((3, keys), lowest, dtype)
    mask[1, 0] = 0
    out, lse = fa.attention(q, k, v, mask=mask, return_lse=True)
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()
    # What is so much lower counts nothing; p v / p is rounded twice.
    assert (np.abs(out[0, 0, 1] - v[0, 0, 0]) <= 2 * np.spacing(np.abs(v[0, 0, 0]))).all()
    mean = v.astype(np.float64).mean(2)[0, 0]
    error = keys * np.finfo(dtype).eps * np.abs(v).max()  # of any sum of so many terms
    assert np.abs(out[0, 0, [0, 2]] - mean).max() <= error


def test_subnormals_are_kept(isa, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    x = tiny * np.arange(1, 68).astype(dtype)
    assert same_bits(fa.tanh(x), x)
    assert same_bits(fa.relu(x), x)
    assert same_bits(fa.linear(x[:, None], np.ones((1, 1), dtype))[:, 0], x)
    assert same_bits(fa.linear(np.ones((1, 1), dtype), x[:, None])[0], x)
    one = np.ones((1, 1, 1, 1), dtype)
    assert same_bits(fa.attention(one, one, x[None, None, None]), x[None, None, None])
    lowest = np.log(x[:1].astype(np.longdouble)).astype(dtype) + 1
    assert 0 < fa.exp(lowest)[0] < np.finfo(dtype).smallest_normal
    row = np.concatenate([[0], np.full(5, lowest[0])]).astype(dtype)
    assert (fa.softmax(row)[1:] > 0).all()
    y, _ = fa.rnn(x[None, :, None], None, {"weight_ih_l0": np.ones((1, 1), dtype),
                                          "weight_hh_l0": np.ones((1, 1), dtype)}, nonlinearity="relu")  # fmt: skip
    assert same_bits(y[0, :, 0], x)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="MXCSR is a register of x86")
def test_the_control_bits_of_the_caller_are_unchanged(isa, dtype, rng):
    libm = ctypes.CDLL(ctypes.util.find_library("m"))

    def control():
        environment = (ctypes.c_uint32 * 8)()  # fenv_t: MXCSR is the last word
        assert libm.fegetenv(environment) == 0
        return environment[7] & 0xFFC0  # masks, rounding, flush to zero, denormals are zero

    before = control()
    x = rng.standard_normal((40, 600)).astype(dtype)
    for f in (fa.exp, fa.tanh, fa.gelu, fa.softmax, fa.log_softmax):
        f(x * 1000)
        assert control() == before
    fa.linear(x, x)
    fa.attention(*(x[None, None],) * 3)
    halves = x[None, None, :, :64].astype(BFLOAT16)
    fa.attention(halves[:, :, :1], halves, halves)
    w = x[:, :40].copy()
    fa.rnn(x[None, :, :40], None, {"weight_ih_l0": w, "weight_hh_l0": w})
    assert control() == before

"""Dropout between the layers of recurrent networks: which elements, reproducibly, and wrong input."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits
from tests.test_recurrent_backward import CELLS, all_arrays, backward, case, every_cell, joined, parts, stack


def words(seed, lane, time, sequence, units):
    """The random words of a row: Philox 4x32-10 as its paper writes it."""
    mask = 0xFFFFFFFF
    result = []
    for block in range(-(-units // 4)):
        counter, key = [block, time, sequence, lane], [seed & mask, seed >> 32]
        for _ in range(10):
            first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
            high = second >> 32 ^ counter[1] ^ key[0], first >> 32 ^ counter[3] ^ key[1]
            counter = [high[0], second & mask, high[1], first & mask]
            key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
        result += counter
    return np.array(result[:units], np.uint32)


def test_the_words_are_those_of_the_paper():
    """Known answers of Random123: counters and keys of zeros, and of ones."""
    assert words(0, 0, 0, 0, 4).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@every_cell
def test_dropout_is_that_of_the_documented_words(rng, isa, dtype, name):
    """Two layers with dropout are the first one, the words of each row, and the second one."""
    op, options = CELLS[name][1:]
    seed, p = 0x0123_4567_89AB_CDEF, 0.3
    x, state, weights, dy, dstate = stack(rng, name, 5, 4, 6, 21, 2, 2, dtype)
    lengths = np.array([5, 0, 3, 5])
    keep = {"dropout": p, "seed": seed, "lengths": lengths}
    (y, _), saved = getattr(fa, f"{op}_forward")(x, joined(name, state), weights, **options, **keep)
    dx, dfirst, dweights = getattr(fa, f"{op}_backward")((dy, joined(name, dstate)), saved)

    layers = [{key.replace("_l1", "_l0"): w for key, w in weights.items() if f"_l{layer}" in key} for layer in (0, 1)]
    states, dstates = ([tuple(part[at : at + 2] for part in whole) for at in (0, 2)] for whole in (state, dstate))
    (lower, _), lower_saved = getattr(fa, f"{op}_forward")(
        x, joined(name, states[0]), layers[0], **options, lengths=lengths
    )
    units = lower.shape[2] // 2
    mask = np.array(
        [[np.concatenate([words(seed, d, t, b, units) for d in (0, 1)]) for b in range(4)] for t in range(5)]
    )
    factor = np.where(mask >= round(p * 2**32), dtype.type(1 / (1 - p)), dtype.type(0))
    (upper, _), upper_saved = getattr(fa, f"{op}_forward")(
        lower * factor, joined(name, states[1]), layers[1], **options, lengths=lengths
    )
    assert same_bits(y, upper)
    gradient = getattr(fa, f"{op}_backward")
    d_lower, d_second, dw_second = gradient((dy, joined(name, dstates[1])), upper_saved)
    wanted, d_first, dw_first = gradient((d_lower * factor, joined(name, dstates[0])), lower_saved)
    assert same_bits(dx + 0, wanted + 0)
    for got, *halves in zip(parts(name, dfirst), parts(name, d_first), parts(name, d_second), strict=True):
        assert same_bits(got, np.concatenate(halves))
    for key, w in dweights.items():
        assert same_bits(w, (dw_second if "_l1" in key else dw_first)[key.replace("_l1", "_l0")])


@every_cell
@pytest.mark.parametrize(("steps", "batch", "inputs", "hidden"), [(40, 2, 32, 64), (8, 40, 17, 70), (12, 1, 20, 200)])
def test_dropout_does_not_depend_on_thread_count(rng, name, steps, batch, inputs, hidden):
    x, state, weights, dy, dstate = stack(rng, name, steps, batch, inputs, hidden, 3, 1, np.float32)
    results = []
    for n in (1, 2, 5):
        with fa.num_threads(n):
            results.append(all_arrays(backward(name, x, state, weights, dy, dstate, dropout=0.5, seed=7)))
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


def test_dropout_of_a_sequence_depends_on_its_place_alone(rng):
    x, state, weights, dy, dstate = stack(rng, "gru", 6, 5, 4, 9, 2, 1, np.float32)
    whole = backward("gru", x, state, weights, dy, dstate, dropout=0.4, seed=3)
    part = backward(
        "gru", x[:4, :3], tuple(s[:, :3] for s in state), weights, dy[:4, :3], None, dropout=0.4, seed=3
    )  # fmt: skip
    options = {"dropout": 0.4, "seed": 3}
    (y, _), _ = fa.gru_forward(x, state[0], weights, **options)
    (fewer, _), _ = fa.gru_forward(x[:4, :3], state[0][:, :3], weights, **options)
    assert same_bits(fewer, y[:4, :3])
    assert part[0].shape == (4, 3, 4)
    assert whole[0].shape == x.shape
    (other, _), _ = fa.gru_forward(x, state[0], weights, dropout=0.4, seed=4)
    assert not same_bits(other, y)


def test_dropout_of_nothing_and_of_everything(rng):
    x, state, weights, _, _ = stack(rng, "lstm", 6, 5, 4, 9, 2, 1, np.float32)
    (y, _), _ = fa.lstm_forward(x, state, weights, dropout=0.0, seed=3)
    assert same_bits(y, fa.lstm(x, state, weights)[0])
    (y, _), saved = fa.lstm_forward(x, state, weights, dropout=1.0, seed=3)
    upper = {key.replace("_l1", "_l0"): w for key, w in weights.items() if "_l1" in key}
    assert same_bits(y, fa.lstm(np.zeros((6, 5, 9), np.float32), tuple(part[1:] for part in state), upper)[0])
    assert not fa.lstm_backward(np.ones_like(y), saved)[0].any()


def test_dropout_drops_as_many_as_it_says():
    one, zero = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    weights = {"weight_ih_l0": one, "weight_hh_l0": zero, "weight_ih_l1": one, "weight_hh_l1": zero}
    (y, _), _ = fa.rnn_forward(
        np.ones((100, 1000, 1), np.float32), None, weights, nonlinearity="relu", dropout=0.25, seed=1
    )
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / y.size)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dropout": 0.5}, ValueError, "gru_forward: seed must be given with dropout, got None"),
        ({"dropout": 1.5, "seed": 1}, ValueError, r"gru_forward: dropout must lie in 0\.\.1, got 1\.5"),
        ({"dropout": np.nan, "seed": 1}, ValueError, r"gru_forward: dropout must lie in 0\.\.1, got nan"),
        ({"dropout": "0.5", "seed": 1}, TypeError, "gru_forward: dropout must be a number, got '0.5'"),
        ({"dropout": 0.5, "seed": -1}, ValueError, r"gru_forward: seed must lie in 0\.\.2\^64 - 1, got -1"),
        ({"dropout": 0.5, "seed": 1.0}, TypeError, "gru_forward: seed must be an integer, got 1.0"),
    ],
)
def test_wrong_dropout_is_named(rng, options, error, message):
    x, state, weights, _, _ = case(rng, "gru", 2, 2, 3, 4, np.float32)
    with pytest.raises(error, match=message):
        fa.gru_forward(x, state[0], weights, **options)

"""Sizes that no memory holds, and many rows of nothing: a call says so at once, or has nothing to do.

Strides of 0 and axes of 0 make such arrays of a few bytes. What does not end runs in a process of its own.
"""

import subprocess
import sys

import numpy as np
import pytest

import fastattn as fa

MANY = 2**31
TIMEOUT = 60  # seconds, for all these calls; a wrong one takes hours


def view(*shape, dtype=np.float32):
    """More elements than any memory has."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def rows(n, *shape, dtype=np.float32):
    """The same with a last axis of n that lies in memory as C takes it."""
    return np.broadcast_to(np.zeros(n, dtype), (*shape, n))


def empty(*shape):
    return np.zeros(shape, np.float32)


def recurrent(op, gates):
    hidden = 2**28
    weights = {"weight_ih_l0": view(gates * hidden, hidden), "weight_hh_l0": view(gates * hidden, hidden)}
    return lambda: getattr(fa, f"pack_{op}")(weights)


REFUSED = {
    "softmax": lambda: fa.softmax(view(2**29, 2**29)),
    "exp": lambda: fa.exp(rows(8, 2**45)),
    "layer_norm": lambda: fa.layer_norm(rows(8, 2**45)),
    "linear": lambda: fa.linear(np.ones((1, 8), np.float32), rows(8, 2**45)),
    "pack_linear": lambda: fa.pack_linear(view(2**30, 2**28), "float64"),
    "embedding": lambda: fa.embedding(view(2**58, dtype=np.int64), np.ones((2, 3))),
    "embedding ": lambda: fa.embedding(view(2**58, dtype=np.int8), np.ones((2, 3))),
    "cross_entropy": lambda: fa.cross_entropy(np.ones((2, 3)), view(2**58, dtype=np.int64)),
    "rope": lambda: fa.rope(rows(4, 2**40), view(2**40)),
    "attention": lambda: fa.attention(empty(1, 1, 1, 8), rows(8, 1, 1, 2**50), rows(8, 1, 1, 2**50)),
    "attention ": lambda: fa.attention(empty(1, 1, 1, 8), rows(8, 1, 1, 2**41), rows(8, 1, 1, 2**41)),
    "attention  ": lambda: fa.attention(empty(1, 1, 1, 0), *[empty(1, 1, 2**40, 0)] * 2, return_lse=True),
    "attention_varlen ": lambda: fa.attention_varlen(
        empty(1, 1, 0), *[empty(2**40, 1, 0)] * 2, [0, 1], [0, 2**40], return_lse=True
    ),
    "attention_varlen": lambda: fa.attention_varlen(
        *[empty(0, 1, 1)] * 3, view(2**58, dtype=np.int64), view(2**58, dtype=np.int64)
    ),
    "attention_weights": lambda: fa.attention_weights(
        *[empty(1, 1, 2, 1)] * 2, empty(1, 1, 2), rows=np.broadcast_to(0, 2**58)
    ),
    "sinusoidal_positions": lambda: fa.sinusoidal_positions(2**50, 4),
    "pack_rnn": recurrent("rnn", 1),
    "pack_gru": recurrent("gru", 3),
    "pack_lstm": recurrent("lstm", 4),
    "embedding_backward": lambda: fa.embedding_backward(
        empty(0, 4), fa.SavedEmbedding(np.zeros(0, np.int64), (2**50, 4))
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_memory_holds_is_refused_by_name(name):
    with pytest.raises((ValueError, MemoryError)) as error:
        REFUSED[name]()
    assert str(error.value).startswith(f"{name.strip()}: ")


EMPTY = {
    "softmax": lambda: fa.softmax(empty(MANY, 1, 1, 0)),
    "softmax of another axis": lambda: fa.softmax(empty(MANY, 1, 1, 0), axis=0),
    "layer_norm": lambda: fa.layer_norm(empty(MANY, 1, 1, 0)),
    "linear": lambda: fa.linear(empty(MANY, 1, 1, 0), empty(0, 0)),
    "linear_backward": lambda: fa.linear_backward(empty(2**40, 0), fa.linear_forward(empty(2**40, 0), empty(0, 0))[1]),
    "pack_linear": lambda: fa.pack_linear(empty(2**40, 0)),
    "embedding_backward": lambda: fa.embedding_backward(
        empty(0, 2**40), fa.SavedEmbedding(np.zeros(0, np.int64), (0, 2**40))
    ),
    "rope": lambda: fa.rope(empty(2**40, 0), np.arange(1)),
    "sinusoidal_positions of no columns": lambda: fa.sinusoidal_positions(2**52, 0),
    "sinusoidal_positions of no rows": lambda: fa.sinusoidal_positions(0, 2**60),
    "attention": lambda: fa.attention(*[empty(MANY, 1, 1, 0)] * 3),
    "attention of many heads": lambda: fa.attention(empty(1, MANY, 1, 0), *[empty(1, 1, 1, 0)] * 2),
    "attention of many keys": lambda: fa.attention(empty(1, 1, 1, 0), *[empty(1, 1, 2**40, 0)] * 2),
    "additive_attention": lambda: fa.additive_attention(*[empty(MANY, 1, 0)] * 3, empty(0)),
    "additive_attention of no keys": lambda: fa.additive_attention_backward(
        empty(2**40, 1, 0),
        fa.additive_attention_forward(empty(2**40, 1, 0), *[empty(2**40, 0, 0)] * 2, empty(0))[1],
    ),
    "additive_attention of no keys and many queries": lambda: fa.additive_attention(
        rows(3, 1, 2**40), empty(1, 0, 3), empty(1, 0, 0), empty(3)
    ),
    "rnn_backward of no units": lambda: backward_of_nothing("rnn"),
    "gru_backward of no units": lambda: backward_of_nothing("gru"),
    "lstm_backward of no units": lambda: backward_of_nothing("lstm"),
    "rnn of no units": lambda: fa.rnn(rows(3, 2**40, 1), None, weights(1, 0)),
    "gru of no units": lambda: fa.gru(rows(3, 2**40, 1), None, weights(3, 0)),
    "lstm of no units": lambda: fa.lstm(rows(3, 2**40, 1), None, weights(4, 0)),
    "lstm of no sequences": lambda: fa.lstm(empty(2**40, 0, 3), None, weights(4, 2)),
}


def weights(gates, hidden):
    return {"weight_ih_l0": empty(gates * hidden, 3), "weight_hh_l0": empty(gates * hidden, hidden)}


def backward_of_nothing(op):
    names = {"weight_ih_l0": empty(0, 0), "weight_hh_l0": empty(0, 0)}
    (y, _), saved = getattr(fa, f"{op}_forward")(empty(2**40, 1, 0), None, names)
    return getattr(fa, f"{op}_backward")(y, saved)


def run_empty():
    for name, call in EMPTY.items():
        print(name, flush=True)
        call()


def test_many_rows_of_nothing_take_no_time():
    command = [sys.executable, "-c", "from tests.test_absurd_sizes import run_empty; run_empty()"]
    try:
        done = subprocess.run(command, check=False, timeout=TIMEOUT, capture_output=True, text=True)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"no end after {error.stdout.decode().split(chr(10))[-2]}")
    assert done.returncode == 0, done.stderr

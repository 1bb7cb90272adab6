"""Arguments that number things (lengths, ids, targets, offsets, sequences) in every op that has them: a copy is made
first and checked then, whatever type the integers have."""

import subprocess
import sys

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits

BATCH, LONGEST = 3, 6


def _x(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def _cache():
    cache = fa.KVCache(BATCH, 1, 4, dtype="float32")
    cache.append(_x(BATCH, 1, LONGEST, 4), _x(BATCH, 1, LONGEST, 4))
    return cache


def _attention(**lengths):
    x = _x(BATCH, 2, LONGEST, 8)
    return fa.attention(x, x, x, **lengths)


def _attend(lengths):
    cache = fa.KVCache(BATCH, 1, 4, dtype="float32")
    return cache.attend(_x(BATCH, 1, LONGEST, 4), q_lengths=lengths)


def _recurrent(function, gates, lengths):
    weights = {"weight_ih_l0": _x(gates * 4, 5), "weight_hh_l0": _x(gates * 4, 4)}
    return function(_x(LONGEST, BATCH, 5), None, weights, lengths=lengths)[0]


def _additive(lengths):
    return fa.additive_attention(_x(BATCH, 2, 4), _x(BATCH, LONGEST, 4), _x(BATCH, LONGEST, 5), _x(4), lengths=lengths)


def _attention_gru(lengths):
    m = fa.nn.AttentionGRU(3, 4, 5, 6, rng=np.random.default_rng(0))
    return m(_x(2, BATCH, 3), _x(BATCH, LONGEST, 5), lengths=lengths)[0].y


def _varlen(offsets):
    x = _x(LONGEST, 2, 8)
    return fa.attention_varlen(x, x, x, offsets, [0, 1, 2, LONGEST])


def _embedding(ids):
    return fa.embedding(ids, _x(LONGEST + 1, 4))


def _targets(targets):
    return fa.cross_entropy(_x(BATCH, LONGEST + 1), targets, reduction="none", ignore_index=None)


def _crop(lengths):
    cache = _cache()
    cache.crop(lengths)
    return cache.lengths


# Calls that take [2, 0, 6], or for offsets [0, 1, 2, 6], or for sequences [2, 0, 1].
LENGTHS = {
    "q_lengths": lambda n: _attention(q_lengths=n),
    "kv_lengths": lambda n: _attention(kv_lengths=n),
    "attend": _attend,
    "crop": _crop,
    "rnn": lambda n: _recurrent(fa.rnn, 1, n),
    "gru": lambda n: _recurrent(fa.gru, 3, n),
    "lstm": lambda n: _recurrent(fa.lstm, 4, n),
    "additive": _additive,
    "attention_gru": _attention_gru,
    "embedding": _embedding,
    "cross_entropy": _targets,
}
CALLS = {
    **{name: (call, [2, 0, 6]) for name, call in LENGTHS.items()},
    "cu_seqlens": (_varlen, [0, 1, 2, 6]),
    "select": (lambda n: _cache().select(n).attend(_x(BATCH, 1, 1, 4)), [2, 0, 1]),
    "append": (lambda n: _cache().append(_x(BATCH, 1, 1, 4), _x(BATCH, 1, 1, 4), n), [2, 0, 1]),
}
EACH = pytest.mark.parametrize(("call", "numbers"), CALLS.values(), ids=CALLS.keys())


def _equal(a, b):
    return (a is None and b is None) or same_bits(np.asarray(a), np.asarray(b))


@EACH
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u4", "i4", "u8", "i8", ">i8", ">u2"])
def test_integers_of_every_type_and_layout_are_taken(call, numbers, dtype):
    expected = call(numbers)
    array = np.array(numbers, dtype)
    spaced = np.repeat(array, 2)[::2]
    backwards = array[::-1].copy()[::-1]
    frozen = array.copy()
    frozen.flags.writeable = False
    for one in (array, spaced, backwards, frozen, tuple(numbers), memoryview(np.array(numbers))):
        assert _equal(call(one), expected)


@EACH
@pytest.mark.parametrize("wrong", [2**63, 2**64 - 1, 2**64 - 100, 2**64 - 2**32])
def test_numbers_beyond_63_bits_do_not_wrap(call, numbers, wrong):
    array = np.array(numbers, np.uint64)
    array[-1] = wrong
    with pytest.raises(ValueError, match=rf"must fit into 63 bits, got {wrong} at \[{len(numbers) - 1}\]"):
        call(array)
    with pytest.raises((TypeError, ValueError), match="must"):
        call(array.tolist())


def test_a_target_does_not_wrap_to_the_ignored_one():
    with pytest.raises(ValueError, match="cross_entropy: targets must fit into 63 bits"):
        fa.cross_entropy(_x(2, 3), np.array([0, 2**64 - 100], np.uint64))


@EACH
@pytest.mark.parametrize("kind", [bool, float, object, complex, "U1", "m8[s]"], ids=str)
def test_what_is_no_integer_is_refused_by_name(call, numbers, kind):
    array = np.array(numbers).astype(kind)
    with pytest.raises(TypeError, match=r"must be integers, got"):
        call(array)


@EACH
def test_numbers_out_of_range_are_named(call, numbers):
    for wrong in (-1, LONGEST + 1, 2**31, 2**62, -(2**63)):
        array = np.array(numbers, np.int64)
        array[1] = wrong
        with pytest.raises(ValueError, match=r"must (lie in|never fall)"):
            call(array)


def test_lists_without_elements_are_lengths_of_nothing():
    x = np.zeros((0, 2, 4, 8), np.float32)
    assert fa.attention(x, x, x, kv_lengths=[], q_lengths=[]).shape == x.shape
    assert fa.embedding([], _x(3, 4)).shape == (0, 4)
    assert fa.KVCache(2, 1, 4, dtype="float32").select([]).lengths.shape == (0,)


_CHANGED_BY_THREADS = """
import sys, threading, numpy as np
sys.path.insert(0, {path!r})
from tests.test_index_arguments import CALLS
sys.setswitchinterval(1e-6)
for call, numbers in CALLS.values():
    array, stop = np.array(numbers), threading.Event()
    def change():
        while not stop.is_set():
            array[:] = 10**12
            array[:] = -(10**12)
            array[:] = numbers
    thread = threading.Thread(target=change)
    thread.start()
    for _ in range(60):
        try:
            call(array)
        except ValueError:
            pass
    stop.set()
    thread.join()
print("whole")
"""


def test_numbers_that_another_thread_changes_during_calls_end_no_process(request):
    code = _CHANGED_BY_THREADS.format(path=str(request.config.rootpath))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "whole\n"), result.stderr[-2000:]


@pytest.mark.parametrize("dtype", [np.int8, np.int64])
def test_ids_that_no_memory_holds_fail_at_once(dtype):
    giant = np.broadcast_to(dtype(0), (2**58,))
    with pytest.raises(MemoryError, match=r"embedding: no memory for a copy of ids of shape"):
        fa.embedding(giant, _x(3, 4))
    for call in LENGTHS.values():
        with pytest.raises((ValueError, MemoryError), match=r"must have shape|have shape|no memory for a copy of"):
            call(giant)
    with pytest.raises((ValueError, MemoryError), match=r"cu_seqlens_q: |no memory for a copy of cu_seqlens_q"):
        _varlen(giant)

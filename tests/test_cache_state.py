"""What a KVCache is between calls: copies and pickles share nothing, tokens are taken back, threads and forked children
meet it whole, and nothing that is done to what is private lets C read elsewhere."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastattn as fa
from fastattn.cache import unchanged_on_failure
from tests.arrays import same_bits
from tests.low_precision import BFLOAT16

DTYPES = [np.float32, np.float64, np.float16, BFLOAT16, np.int8]
PAGE_SIZES = [None, 1, 7]
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle{p}": lambda cache, p=p: pickle.loads(pickle.dumps(cache, p)) for p in (2, 4, 5)},
    "select": lambda cache: cache.select(np.arange(len(cache.lengths))),
}


def _tokens(rng, dtype, batch, n, heads=2, widths=(24, 40)):
    arrived = np.float32 if dtype == np.int8 else dtype
    return [rng.standard_normal((batch, heads, n, width), np.float32).astype(arrived) for width in widths]


def _filled(rng, dtype, page_size, **options):
    """Sequences of 9, 0 and 40 tokens, appended in parts."""
    cache = fa.KVCache(3, 2, 24, v_dim=40, dtype=dtype, page_size=page_size, **options)
    for n, sequences in ((5, [2, 0]), (30, [2]), (4, [0]), (5, [2])):
        cache.append(*_tokens(rng, dtype, len(sequences), n), sequences)
    return cache


def _queries(rng, dtype, n=1):
    return rng.standard_normal((3, 4, n, 24), np.float32).astype(np.float32 if dtype == np.int8 else dtype)


def _bits(x):
    return x.view(f"u{x.itemsize}")


def _same(a, b):
    return np.array_equal(_bits(a), _bits(b))


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_has_the_bits_and_shares_nothing(rng, dtype, page_size, way):
    cache = _filled(rng, dtype, page_size, capacity=200)
    cache.crop([3, 0, 38])
    other = COPIES[way](cache)
    assert type(other) is fa.KVCache
    for n in (1, 12):
        q = _queries(rng, dtype, n)
        assert _same(other.attend(q), cache.attend(q))
    caches = [cache, other]
    for one, two in (caches, caches[::-1]):
        q = _queries(rng, dtype)
        before, lengths = two.attend(q), two.lengths
        one.append(*_tokens(rng, dtype, 3, 50))
        one.crop(one.lengths - 45)
        one.append(*_tokens(rng, dtype, 1, 60), [1])
        assert _same(two.attend(q), before)
        np.testing.assert_array_equal(two.lengths, lengths)
    with pytest.raises(ValueError, match="capacity of 200"):
        other.append(*_tokens(rng, dtype, 3, 150))


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("page_size", [None, 7])
def test_copies_go_on_with_the_bits_of_the_original(rng, dtype, page_size, way):
    kind = np.dtype(dtype) if dtype != "int8" else np.int8
    cache = _filled(rng, kind, page_size)
    other = COPIES[way](cache)
    more, q = _tokens(rng, kind, 3, 70), _queries(rng, kind)
    cache.append(*more)
    other.append(*more)
    assert _same(other.attend(q), cache.attend(q))


def test_pickle_keeps_the_tokens_and_not_the_room(rng):
    cache = fa.KVCache(2, 2, 64, dtype="float32", capacity=5000)
    cache.append(*_tokens(rng, np.float32, 2, 10, widths=(64, 64)))
    held = 2 * 2 * 2 * 10 * 64 * 4
    assert held <= len(pickle.dumps(cache)) < held + 2000
    buffers = []
    data = pickle.dumps(cache, 5, buffer_callback=buffers.append)
    assert len(data) < 2000
    again = pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])  # which are read-only
    again.append(*_tokens(rng, np.float32, 2, 10, widths=(64, 64)))
    assert cache.lengths.tolist() == [10, 10]


def test_a_cache_passes_to_another_process(rng):
    cache, q = _filled(rng, np.float32, 7), _queries(rng, np.float32)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert same_bits(pool.apply(cache.attend, (q,)), cache.attend(q))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [1.0, np.nan], ids=["finite", "nan"])
def test_a_cropped_cache_has_the_bits_of_one_without_the_rest(rng, dtype, page_size, poison):
    first, rest, more = (_tokens(rng, dtype, 3, n) for n in (20, 30, 45))
    rest = [x * np.asarray(poison, x.dtype) for x in rest]
    kept = [20, 3, 0]
    cache, fresh = (fa.KVCache(3, 2, 24, v_dim=40, dtype=dtype, page_size=page_size) for _ in range(2))
    cache.append(*first)
    cache.append(*rest)
    cache.crop(kept)
    for b, n in enumerate(kept):
        fresh.append(*(x[b : b + 1, :, :n] for x in first), [b])
    for _ in range(2):
        np.testing.assert_array_equal(cache.lengths, fresh.lengths)
        for n in (1, 12):
            q = _queries(rng, dtype, n)
            for one, two in zip(cache.attend(q, return_lse=True), fresh.attend(q, return_lse=True), strict=True):
                assert _same(one, two)
        for each in (cache, fresh):
            each.append(*more)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_cropping_and_appending_again_takes_no_further_memory(rng, page_size):
    cache = _filled(rng, np.float32, page_size)
    cache.append(*_tokens(rng, np.float32, 3, 30))
    size = cache.nbytes
    for _ in range(10):
        cache.crop(np.array([2, 0, 40], np.uint8))
        cache.append(*_tokens(rng, np.float32, 3, 30))
    assert cache.nbytes == size
    cache.crop(0)
    assert cache.lengths.tolist() == [0, 0, 0]


def test_pages_of_one_sequence_that_come_back_serve_another(rng):
    cache = fa.KVCache(2, 2, 24, v_dim=40, dtype="float32", page_size=4)
    cache.append(*_tokens(rng, np.float32, 1, 400), [0])
    size = cache.nbytes
    cache.crop([8, 0])
    mine = _tokens(rng, np.float32, 1, 390)
    cache.append(*mine, [1])
    assert cache.nbytes == size
    q = rng.standard_normal((1, 4, 1, 24), np.float32)
    assert same_bits(cache.attend(np.repeat(q, 2, 0))[1:], fa.attention(q, *mine))


@pytest.mark.parametrize("page_size", [None, 7])
@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([9, 0, 41], ValueError, r"crop: lengths must lie in 0\.\.40 for sequence 2, got 41"),
        (5, ValueError, r"crop: lengths must lie in 0\.\.0 for sequence 1, got 5"),
        ([-1, 0, 0], ValueError, r"crop: lengths must lie in 0\.\.9 for sequence 0, got -1"),
        ([2**64 - 1, 0, 0], (TypeError, ValueError), "crop: lengths must"),
        (np.array([2**64 - 1, 0, 0], np.uint64), ValueError, "crop: lengths must fit into 63 bits, got 1844"),
        ([1, 0], ValueError, r"crop: lengths must be an integer or have shape \(3,\), got shape \(2,\)"),
        ([[1, 0, 2]], ValueError, r"crop: lengths must be an integer or have shape"),
        ([1.0, 0.0, 2.0], TypeError, "crop: lengths must be integers, got float64"),
        ([True, False, True], TypeError, "crop: lengths must be integers, got bool"),
        (None, TypeError, "crop: lengths must be an array of numbers, got NoneType"),
        ("5", TypeError, "crop: lengths must be integers"),
    ],
    ids=str,
)
def test_lengths_that_cannot_be_cropped_to_are_named_and_change_nothing(rng, page_size, lengths, error, message):
    cache, q = _filled(rng, np.float32, page_size), _queries(rng, np.float32)
    before = cache.attend(q)
    with pytest.raises(error, match=message):
        cache.crop(lengths)
    assert cache.lengths.tolist() == [9, 0, 40]
    assert same_bits(cache.attend(q), before)


def test_an_empty_batch_is_cropped():
    cache = fa.KVCache(0, 2, 24, dtype="float32")
    cache.crop([])
    cache.crop(0)
    assert cache.lengths.shape == (0,)


# ---- threads ----


def _together(*tasks):
    """Runs the tasks in threads; their first exception."""
    failed = []

    def run(task):
        try:
            task()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)
    if failed:
        raise failed[0]


def _ones(value, batch, n, heads=1, width=16):
    return np.full((batch, heads, n, width), value, np.float32)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("page_size", [None, 3])
def test_appends_of_many_threads_to_their_sequences_lose_nothing(dtype, page_size):
    threads, rounds = 4, 60
    cache = fa.KVCache(threads, 1, 16, dtype=dtype, page_size=page_size)

    def append(b):
        for i in range(rounds):
            cache.append(_ones(0, 1, 1), _ones(b + 1, 1, 1), [b])
            assert cache.lengths[b] == i + 1

    _together(*(lambda b=b: append(b) for b in range(threads)))
    assert cache.lengths.tolist() == [rounds] * threads
    out = cache.attend(_ones(1, threads, 1))  # equal scores: the mean of the values
    np.testing.assert_allclose(out[:, 0, 0, 0], np.arange(1, threads + 1), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("page_size", [None, 3])
@pytest.mark.parametrize("queries", [1, 12])
def test_who_attends_beside_changes_sees_the_cache_between_two_of_them(dtype, page_size, queries):
    """All tokens of a sequence have one value at any moment: a mixture would be one that was half written."""
    cache = fa.KVCache(2, 1, 16, dtype=dtype, page_size=page_size)
    cache.append(_ones(0, 2, 1), _ones(1, 2, 1))
    done = threading.Event()

    def change():
        try:
            for i in range(150):
                cache.crop([i % 2, 1 - i % 2])
                cache.crop(0)
                cache.append(_ones(0, 2, 40), _ones(i % 7 + 1, 2, 40))
                cache.append(_ones(0, 1, 30), _ones(i % 7 + 1, 1, 30), [i % 2])
        finally:
            done.set()

    def attend():
        while not done.is_set():
            q = _ones(1, 2, queries)
            out = cache.attend(q)
            kept = cache.select([1, 0])
            for x in (out, kept.attend(q), pickle.loads(pickle.dumps(cache)).attend(q), copy.copy(cache).attend(q)):
                assert np.isfinite(x).all()
                # 0 where a sequence was empty; else the mean of equal values
                assert (np.abs(x - np.rint(x)) <= 1e-4).all(), x

    _together(change, attend, attend)


def test_tokens_that_are_taken_back_stay_for_who_attends_to_them():
    for page_size in (None, 4):
        cache = fa.KVCache(1, 1, 16, dtype="float32", page_size=page_size)
        cache.append(_ones(0, 1, 20), _ones(1, 1, 20))
        parts, table = cache._parts, cache._table.copy()
        held = parts[1][0].copy()
        cache._access.readers += 1  # as in the middle of attend
        cache.crop(3)
        cache.append(_ones(0, 1, 20), _ones(5, 1, 20))
        assert same_bits(parts[1][0], held)
        cache._access.readers -= 1
        np.testing.assert_array_equal(table[0, :5], np.arange(table.shape[1])[:5])
        now = cache._parts
        cache.crop(3)
        cache.append(_ones(0, 1, 20), _ones(6, 1, 20))
        assert cache._parts is now, "nobody attends: nothing is copied"


@pytest.mark.parametrize("page_size", [None, 4])
def test_a_failed_block_takes_back_its_tokens_and_not_those_of_other_threads(page_size):
    cache = fa.KVCache(2, 1, 16, dtype="float32", page_size=page_size)
    cache.append(_ones(0, 2, 3), _ones(1, 2, 3))
    inside, appended = threading.Event(), []

    def fail():
        with pytest.raises(ZeroDivisionError), unchanged_on_failure(cache):
            cache.append(_ones(0, 2, 9), _ones(7, 2, 9))
            inside.set()
            time.sleep(0.05)
            assert cache.lengths.tolist() == [12, 12]
            raise ZeroDivisionError

    def append():
        inside.wait(60)
        cache.append(_ones(0, 1, 2), _ones(1, 1, 2), [1])
        appended.append(cache.lengths.tolist())

    _together(fail, append)
    assert appended == [[3, 5]]
    assert same_bits(cache.attend(_ones(1, 2, 1)), _ones(1, 2, 1))


def test_blocks_over_caches_in_any_order_do_not_wait_for_each_other():
    caches = [fa.KVCache(1, 1, 16, dtype="float32") for _ in range(3)]

    def run(order):
        for _ in range(300):
            with unchanged_on_failure(*order), unchanged_on_failure(*order[:1]):
                order[0].append(_ones(0, 1, 1), _ones(1, 1, 1))

    _together(lambda: run(caches), lambda: run(caches[::-1]))
    assert [int(cache.lengths[0]) for cache in caches] == [300, 0, 300]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_child_forked_while_a_thread_holds_the_lock_goes_on(rng):
    cache = _filled(rng, np.float32, 7)
    q = _queries(rng, np.float32)
    wanted = cache.attend(q)
    held, leave = threading.Event(), threading.Event()

    def hold():
        with unchanged_on_failure(cache):
            held.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    try:
        child = os.fork()
        if child == 0:
            good = same_bits(cache.attend(q), wanted)
            cache.append(*_tokens(rng, np.float32, 3, 1))
            os._exit(0 if good and cache.lengths.tolist() == [10, 1, 41] else 1)
        deadline = time.monotonic() + 30
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.001)
        if ended == (0, 0):
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        assert ended[1] == 0
    finally:
        leave.set()
        holder.join()


# ---- what is private ----

_MALTREATED = """
import sys, numpy as np, fastattn as fa
from fastattn import _core

def tokens(n, batch=3):
    return np.ones((batch, 2, n, 24), np.float32), np.ones((batch, 2, n, 24), np.float32)

def maltreatments(cache):
    other = fa.KVCache(3, 2, 24, dtype=cache.dtype, page_size=cache._page)
    thin = fa.KVCache(3, 1, 24, dtype=cache.dtype, page_size=cache._page)
    (k, ks), (v, vs) = cache._parts
    for number in (-1, 10**3, 10**9, 2**62, -2**63):
        yield lambda c, n=number: c._lengths.__setitem__(slice(None), n)
        yield lambda c, n=number: c._table.__setitem__(slice(None), n)
    yield lambda c: setattr(c, "_lengths", np.array([5.0, 5.0, 5.0]))
    yield lambda c: setattr(c, "_lengths", np.array([5, 5], np.int64))
    yield lambda c: setattr(c, "_lengths", np.array([5, 5, 5, 5], np.int64))
    yield lambda c: setattr(c, "_lengths", np.full(3, 1000, np.int32))
    yield lambda c: setattr(c, "_lengths", np.full((3, 1), 5, np.int64))
    yield lambda c: setattr(c, "_lengths", np.full(6, 5, np.int64)[::2])
    yield lambda c: setattr(c, "_lengths", np.full(3, 5, ">i8"))
    yield lambda c: setattr(c, "_lengths", [5, 5, 5])
    yield lambda c: setattr(c, "_lengths", None)
    yield lambda c: setattr(c, "_table", c._table[:, :1].copy())
    yield lambda c: setattr(c, "_table", c._table[:1])
    yield lambda c: setattr(c, "_table", np.zeros((3, 0), np.int64))
    yield lambda c: setattr(c, "_table", c._table.astype(np.int32))
    yield lambda c: setattr(c, "_table", None)
    yield lambda c: setattr(c, "_parts", other._parts)
    yield lambda c: setattr(c, "_parts", thin._parts)
    for a, b in ((other._parts[0], (v, vs)), ((k, ks), thin._parts[0]), ((k, None), (v, vs)), ((k, ks), (v, None)),
                 ((k, ks), (v, None if vs is None else vs[:1])), ((k, ks), (v, None if vs is None else vs[..., ::2])),
                 ((k, ks), (v[:1], vs)), ((k[:, :, :2], ks), (v[:, :, :2], vs)), ((k[..., ::2], ks), (v, vs)),
                 ((k.view(np.uint8), ks), (v, vs)), ((None, ks), (v, vs)), ((k[0], ks), (v, vs)),
                 ((k[:0], ks), (v[:0], vs)), ((k[:, :, :0], ks), (v[:, :, :0], vs)),
                 ((k, None if ks is None else ks.astype(np.float64)), (v, vs))):
        yield lambda c, a=a, b=b: setattr(c, "_parts", [a, b])
    yield lambda c: setattr(c, "_page", 1)
    yield lambda c: setattr(c, "_page", None)
    yield lambda c: setattr(c, "_widths", (5, 24))

dtype, page = sys.argv[1], eval(sys.argv[2])
def filled():
    cache = fa.KVCache(3, 2, 24, dtype=dtype, page_size=page)
    cache.append(*tokens(11))
    return cache

count = len(list(maltreatments(filled())))
for i in range(count):
    for n in (1, 12):
        for then in ("attend", "append", "crop", "select"):
            cache = filled()
            try:
                list(maltreatments(cache))[i](cache)
                if then == "append":
                    cache.append(*tokens(3))
                if then == "crop":
                    cache.crop(2)
                if then == "select":
                    cache = cache.select([1, 1, 0])
                cache.attend(np.ones((3, 4, n, cache._widths[0]), np.float32))
            except Exception as error:
                assert str(error), (i, n, then)
print("whole", count)
"""


@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_nothing_done_to_what_is_private_ends_the_process(dtype, page_size):
    result = subprocess.run(
        [sys.executable, "-c", _MALTREATED, dtype, str(page_size)], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.startswith("whole")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize("length", [-1, 65, 10**9, 2**62])
def test_lengths_beyond_the_room_are_named(dtype, page_size, length):
    cache = fa.KVCache(2, 1, 16, dtype=dtype, page_size=page_size)
    cache.append(_ones(1, 2, 3), _ones(1, 2, 3))
    cache._lengths[1] = length
    with pytest.raises(ValueError, match=rf"attend: lengths of the cache must lie in 0\.\.\d+, got {length} for sequ"):
        cache.attend(_ones(1, 2, 1))


@pytest.mark.parametrize("page_size", [None, 4])
def test_no_room_is_made_for_lengths_beyond_the_room(page_size):
    cache = fa.KVCache(2, 1, 16, dtype="int8", page_size=page_size)
    cache.append(_ones(1, 2, 3), _ones(1, 2, 3))
    size = cache.nbytes
    cache._lengths[1] = 10**9
    with pytest.raises(ValueError, match=r"append: lengths of the cache must lie in 0\.\.\d+, got 1000000000"):
        cache.append(_ones(1, 2, 1), _ones(1, 2, 1))
    assert cache.nbytes == size


@pytest.mark.parametrize("page_size", [None, 4])
def test_lengths_and_pages_changed_during_calls_end_no_process(page_size):
    code = (
        "import threading, numpy as np, fastattn as fa\n"
        f"c = fa.KVCache(2, 1, 16, dtype='int8', page_size={page_size})\n"
        "x = np.ones((2, 1, 40, 16), np.float32); c.append(x, x)\n"
        "stop = threading.Event()\n"
        "def change():\n"
        "    while not stop.is_set():\n"
        "        for n in (40, 10**9, -1, 2**62, 40): c._lengths[:] = n; c._table[:] = n\n"
        "t = threading.Thread(target=change); t.start()\n"
        "for _ in range(2000):\n"
        "    try: c.attend(x[:, :, :1])\n"
        "    except ValueError: pass\n"
        "stop.set(); t.join(); print('whole')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "whole\n"), result.stderr[-2000:]


@pytest.mark.parametrize("sizes", [(2**40, 2**20, 2**20), (1, 2**40, 2**40), (2**62, 1, 4), (2**62, 0, 4)], ids=str)
def test_room_that_no_memory_has_is_named(sizes):
    with pytest.raises(MemoryError, match="KVCache: no memory for an array of shape"):
        fa.KVCache(*sizes, dtype="float32")

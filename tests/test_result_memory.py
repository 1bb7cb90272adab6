"""The memory of large results: who gets it, how much is kept, what trim does."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastattn as fa

LARGE = 6 << 20  # float32 elements: 24 MB


def address(array):
    return array.__array_interface__["data"][0]


# In an interpreter of its own: what earlier tests have freed, the allocator may keep or return at any time.
CHILD = """
import numpy as np
import fastattn as fa

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

x = np.ones(6 << 20, np.float32)  # LARGE
base = resident()
results = [fa.relu(x) for _ in range(14)]
held = resident()
results.clear()
kept = resident()
fa.config.trim()
print(held - base, kept - base, resident() - base)
"""


def test_a_large_result_gets_the_memory_of_one_that_died():
    x = np.ones(LARGE, np.float32)
    fa.config.trim()
    y = fa.relu(x)
    before = address(y)
    others = [fa.relu(x) for _ in range(2)]
    del y
    assert address(fa.relu(x)) == before
    assert all((other == 1).all() for other in others)


def test_memory_is_not_given_on_while_a_view_lives():
    x = np.ones(LARGE, np.float32)
    view = fa.relu(x)[1000:1010]
    for _ in range(3):
        fa.relu(x * 2)
    assert (view == 1).all()


def test_a_much_smaller_result_leaves_a_block_alone():
    fa.config.trim()
    large = fa.relu(np.ones(LARGE, np.float32))
    before = address(large)
    small = np.ones(LARGE * 3 // 4, np.float32)
    holds = fa.relu(small)
    del large
    assert address(fa.relu(small)) != before
    assert address(fa.relu(np.ones(LARGE, np.float32))) == before
    assert (holds == 1).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_kept_memory_is_bounded_and_trim_frees_it():
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60)
    held, kept, trimmed = map(int, done.stdout.split())
    assert held > 330e6
    assert 200e6 < kept < 290e6
    assert trimmed < 30e6


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_large_results_are_ordinary_arrays(kind):
    y = fa.relu(np.ones((3, LARGE // 2), kind))
    assert y.dtype == kind
    assert y.shape == (3, LARGE // 2)
    assert y.flags.c_contiguous
    assert y.flags.writeable
    assert address(y) % 64 == 0
    assert type(y.copy()) is type(y) is np.ndarray


def test_threads_never_share_the_memory_of_a_result():
    x = np.ones(LARGE, np.float32)

    def work(number):
        mine = x[: LARGE - number] * np.float32(number)
        for _ in range(5):
            y = fa.relu(mine)
            if not (y == number).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(1, 9)))


@pytest.mark.parametrize("columns", [1 << 10, 1 << 16, 1 << 40])
def test_sizes_that_no_memory_holds_are_refused(columns):
    x, w = np.empty((1 << 38, 0), np.float32), np.empty((columns, 0), np.float32)
    with pytest.raises(MemoryError, match="linear: no memory for a result of shape"):
        fa.linear(x, w)

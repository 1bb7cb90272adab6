"""A communicator between threads of one process, with the methods of mpi4py that fastattn.mpi uses."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")
Array = NDArray[Any]
_Key = tuple[int, int, int, int]  # source, destination, tag, number

_GATHER = -1  # the tag of Iallgather


class _World:
    """Messages between threads that have been sent and not received, and the ranks that failed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self.messages: dict[_Key, Array] = {}
        self.errors: dict[int, BaseException] = {}


class LocalCommunicator:
    """One thread's end. `run_in_threads` makes them."""

    def __init__(self, world: _World, rank: int) -> None:
        self._world, self._rank = world, rank
        self._sent: Counter[tuple[int, int]] = Counter()
        self._asked: Counter[tuple[int, int]] = Counter()

    def Get_rank(self) -> int:
        return self._rank

    def Get_size(self) -> int:
        return self._world.size

    def Isend(self, array: Array, dest: int, tag: int = 0) -> "_Request":
        """Sends a copy at once."""
        key = (self._rank, dest, tag, self._sent[dest, tag])
        self._sent[dest, tag] += 1
        with self._world.lock:
            self._world.messages[key] = array.copy()
        return _Request(self._world, [])

    def Irecv(self, array: Array, source: int, tag: int = 0) -> "_Request":
        key = (source, self._rank, tag, self._asked[source, tag])
        self._asked[source, tag] += 1
        return _Request(self._world, [(key, array)])

    def Iallgather(self, array: Array, into: Array) -> "_Request":
        rows = into.reshape(self._world.size, -1)
        for rank in range(self._world.size):
            self.Isend(array.reshape(-1), rank, _GATHER)
        number = self._sent[self._rank, _GATHER] - 1
        pending = [((rank, self._rank, _GATHER, number), rows[rank]) for rank in range(self._world.size)]
        return _Request(self._world, pending)


class _Request:
    def __init__(self, world: _World, pending: list[tuple[_Key, Array]]) -> None:
        self._world, self._pending = world, pending

    def Test(self) -> bool:
        """Whether all messages have come. Raises RuntimeError when one of them cannot come any more."""
        with self._world.lock:
            still = []
            for key, array in self._pending:
                if key in self._world.messages:
                    np.copyto(array, self._world.messages.pop(key))
                elif key[0] in self._world.errors:
                    raise RuntimeError(f"rank {key[0]} failed: {self._world.errors[key[0]]!r}")
                else:
                    still.append((key, array))
            self._pending = still
        return not still


def run_in_threads(size: int, function: Callable[[LocalCommunicator], Result]) -> list[Result]:
    """What function(comm) returns in each of `size` threads, which are the ranks 0, 1, ... of a communicator.

    When one raises, the others find out as soon as they wait for it, and the first error is raised here.

    >>> run_in_threads(2, lambda comm: comm.Get_rank())
    [0, 1]
    """
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"run_in_threads: size must be a positive integer, got {size!r}")
    world = _World(size)
    results: dict[int, Result] = {}

    def run(rank: int) -> None:
        try:
            results[rank] = function(LocalCommunicator(world, rank))
        except BaseException as error:
            with world.lock:
                world.errors[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}") for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if world.errors:
        raise next(iter(world.errors.values()))
    return [results[rank] for rank in range(size)]

"""One process that runs one library with one number of threads:

    python -m benchmarks.kernels.worker FD MODULE THREADS

It answers the requests that the parent (runner.py) sends through a socket, one at a time:
    ("hello",)                           -> (version, why the library cannot take part); one of them is empty
    ("prepare", case, seed, expected)    -> (largest error, seconds of one call), or None when the case is not supported
    ("time", seconds)                    -> seconds per call, one entry for each group of calls timed together; of a
                                            case whose calls are timed alone, QUANTILES of them, the fastest first
    ("crowd", seconds, callers)          -> QUANTILES of the seconds of calls that so many threads make at once
    ("forget",)                          -> None; the arrays of the case are given back
A failure is answered as an exception object; the parent decides what it means.
"""

import ctypes
import gc
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import repeat
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import numpy as np

import benchmarks.kernels.ops  # noqa: F401 (fills OPS)
from benchmarks.kernels.case import OPS, Array, Case
from benchmarks.kernels.peers import Prepared

GROUP = 100e-6  # seconds: calls are timed in groups at least as long, far above the clock's resolution
SHORT = 0.01  # seconds: calls below are cheap enough to repeat before they are timed
QUANTILES = 201
WARM_UP = 2.5  # times the turn: a longer call is its own warm-up


class Worker:
    """The state between two requests: the library and the prepared case."""

    def __init__(self, module: str, threads: int) -> None:
        self._peer: Any = import_module(module)
        self._threads = threads
        self._prepared: Prepared | None = None
        self._made: tuple[Case, int] | None = None  # what it was prepared from
        self._estimate = 0.0
        self._alone = False

    def hello(self) -> tuple[str, str]:
        """The library's version, or why it cannot take part."""
        absence = str(self._peer.absence())
        return ("" if absence else str(self._peer.version())), absence

    def prepare(self, case: Case, seed: int, expected: Array) -> tuple[float, float] | None:
        """Builds the inputs, checks one result against `expected`, and measures roughly how long a call takes."""
        self.forget()
        if not self._peer.supports(case):
            return None
        prepared = self._peer.prepare(case, case.inputs(seed), self._threads)
        result = OPS[case.op].sample(case, np.asarray(prepared.array(prepared.run())))
        if result.shape != expected.shape:
            raise ValueError(f"result has shape {result.shape}, expected {expected.shape}")
        error = float(np.abs(result.astype(np.float64) - expected).max())
        # A first call may cost many times a later one: short calls are repeated until the time is known.
        self._estimate = min(_groups(prepared.run, 1, 0.0))
        if self._estimate < SHORT:
            self._estimate = min(_groups(prepared.run, 1, SHORT))
        self._prepared, self._made, self._alone = prepared, (case, seed), case.alone
        return (error if np.isfinite(error) else float("inf")), self._estimate

    def time(self, seconds: float) -> list[float]:
        """Calls for about `seconds`, at least once."""
        if self._prepared is None:
            raise RuntimeError("no case is prepared")
        if self._estimate < WARM_UP * seconds:
            # Others ran since: this wakes the library's threads and fills the caches.
            _groups(self._prepared.run, 1, min(3 * self._estimate, SHORT))
        if self._alone:
            times = np.quantile(_groups(self._prepared.run, 1, seconds), np.linspace(0, 1, QUANTILES))
            return [float(time) for time in times]
        return _groups(self._prepared.run, max(1, round(GROUP / self._estimate)), seconds)

    def crowd(self, seconds: float, callers: int) -> list[float]:
        """Calls for about `seconds` from so many Python threads at once, each timed alone and with arrays of its own:
        QUANTILES, the fastest first."""
        if self._made is None:
            raise RuntimeError("no case is prepared")
        case, seed = self._made
        start = threading.Barrier(callers)

        def call(_: int) -> list[float]:
            prepared = self._peer.prepare(case, case.inputs(seed), self._threads)
            _groups(prepared.run, 1, 0.0)
            start.wait()
            return _groups(prepared.run, 1, seconds)

        with ThreadPoolExecutor(callers) as pool:
            times = [time for times in pool.map(call, range(callers)) for time in times]
        return [float(time) for time in np.quantile(times, np.linspace(0, 1, QUANTILES))]

    def forget(self) -> None:
        """Drops the case."""
        self._prepared = self._made = None
        gc.collect()


def _groups(run: Callable[[], Any], calls: int, seconds: float) -> list[float]:
    """Seconds per call of groups of `calls`, for `seconds` in total and at least one group."""
    times: list[float] = []
    end = perf_counter() + seconds
    while not times or perf_counter() < end:
        start = perf_counter()
        for _ in repeat(None, calls):
            run()
        times.append((perf_counter() - start) / calls)
    return times


def _die_with_parent() -> None:
    """A killed parent cannot end its workers, and a stopped one would stay for ever: the kernel does it (Linux)."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, int(signal.SIGKILL), 0, 0, 0)


def main() -> None:
    """Serves requests until the parent closes the socket."""
    _die_with_parent()
    connection = Connection(int(sys.argv[1]))
    worker: Worker | None = None
    gc.disable()
    while True:
        try:
            request, *arguments = connection.recv()
        except EOFError:
            return
        try:
            # The import may fail too, and then that is the answer.
            worker = worker or Worker(sys.argv[2], int(sys.argv[3]))
            answer = getattr(worker, request)(*arguments)
        except Exception as error:
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        connection.send(answer)


if __name__ == "__main__":
    main()

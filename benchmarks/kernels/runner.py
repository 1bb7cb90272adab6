"""Races a case between libraries: a process for each library and number of threads, one running at a time.

All others are stopped (SIGSTOP), so that threads that spin while they wait for work cost the one that runs nothing.
"""

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np

from benchmarks.kernels import verify
from benchmarks.kernels.case import Case
from benchmarks.kernels.machine import ROOT
from benchmarks.kernels.peers import Contender

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",  # Apple's Accelerate
    "NPROC",  # XLA
    "FASTATTN_NUM_THREADS",
)
# A forced core of OpenBLAS is no library's best.
UNWANTED_VARIABLES = ("OPENBLAS_CORETYPE",)


class WorkerError(Exception):
    """A worker failed, crashed, or took too long."""


class WorkerProcess:
    """A worker (worker.py), stopped but for the time in which it answers a request."""

    def __init__(self, contender: Contender, threads: int) -> None:
        ours, theirs = socket.socketpair()
        environment = {key: value for key, value in os.environ.items() if key not in UNWANTED_VARIABLES}
        environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
        with theirs:
            command = [
                sys.executable,
                "-m",
                "benchmarks.kernels.worker",
                str(theirs.fileno()),
                contender.module,
                str(threads),
            ]
            # A session of its own: Ctrl-C in the terminal reaches the parent alone, which then ends the workers.
            # Its messages are dropped; what matters comes back as an answer.
            self._process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def ask(self, timeout: float, request: str, *arguments: Any) -> Any:
        """Lets the worker run until it has answered. Raises WorkerError; after a crash or a time-out it is dead."""
        try:
            os.kill(self.pid, signal.SIGCONT)
            self._connection.send((request, *arguments))
            if not self._connection.poll(timeout):
                self.close()
                raise WorkerError(f"no answer to {request} after {timeout:g} s")
            answer = self._connection.recv()
            os.kill(self.pid, signal.SIGSTOP)
        except (OSError, EOFError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)  # the reason of its end, before close() gives another
            self.close()
            raise WorkerError(f"crashed in {request} ({_ending(self._process.returncode)})") from error
        if isinstance(answer, Exception):
            raise WorkerError(str(answer))
        return answer

    def alive(self) -> bool:
        """Whether it still answers."""
        return not self._connection.closed and self._process.poll() is None

    def close(self) -> None:
        """Ends the process, whatever it is doing. It may be called again."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def _ending(returncode: int) -> str:
    """The signal or exit code by which a process ended."""
    return signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"


@dataclass
class Measurement:
    """One library with one number of threads in one case."""

    contender: str
    threads: int
    status: str = "ok"  # or "unsupported", or "failed"
    message: str = ""
    error: float | None = None
    rounds: list[list[float]] = field(default_factory=list)  # seconds per call

    @property
    def minimum(self) -> float | None:
        """Seconds of the fastest call."""
        return min(map(min, self.rounds)) if self.status == "ok" and self.rounds else None

    @property
    def median(self) -> float | None:
        """Median of the medians of the rounds, in seconds: every round counts the same however many calls fitted in."""
        return statistics.median(map(statistics.median, self.rounds)) if self.status == "ok" and self.rounds else None

    @property
    def p99(self) -> float | None:
        """99 of 100 calls are as fast, in the median round, where each call was timed alone."""
        if self.status != "ok" or not self.rounds:
            return None
        return float(statistics.median(np.quantile(times, 0.99) for times in self.rounds))


@dataclass
class Result:
    """All measurements of a case, and the peaks measured between them."""

    case: Case
    error_limit: float
    measurements: list[Measurement]
    peaks: dict[int, float] = field(default_factory=dict)  # GFLOP/s (cases without flops: GB/s) by number of threads

    def find(self, contender: str, threads: int) -> Measurement | None:
        """The measurement of a library, if it took part."""
        return next((m for m in self.measurements if (m.contender, m.threads) == (contender, threads)), None)


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int = 7
    turn_seconds: float = 0.15
    timeout: float = 120.0
    seed: int = 1


class Team:
    """The workers of all libraries and numbers of threads. Leaving the `with` block ends every one of them."""

    def __init__(self, contenders: Sequence[Contender], thread_counts: Sequence[int], settings: Settings) -> None:
        self.contenders, self.thread_counts, self.settings = tuple(contenders), tuple(thread_counts), settings
        self.versions: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self._workers: dict[tuple[str, int], WorkerProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.close()

    def worker(self, contender: Contender, threads: int) -> WorkerProcess:
        """The running worker, or a new one in the place of one that ended."""
        key = (contender.name, threads)
        if key not in self._workers or not self._workers[key].alive():
            self._workers[key] = WorkerProcess(contender, threads)
        return self._workers[key]

    def start(self) -> None:
        """Starts all workers at once (imports take seconds), requests versions, drops libraries without one."""
        pairs = [(contender, threads) for contender in self.contenders for threads in self.thread_counts]
        for pair in pairs:
            self.worker(*pair)
        for contender, threads in pairs:
            try:
                version, absence = self.worker(contender, threads).ask(self.settings.timeout, "hello")
            except WorkerError as error:
                self.missing[contender.name] = str(error)
            else:
                if absence:
                    self.missing[contender.name] = absence
                else:
                    self.versions[contender.name] = version
        for name in self.missing:
            self.versions.pop(name, None)
        self.contenders = tuple(contender for contender in self.contenders if contender.name in self.versions)

    def race(
        self, case: Case, peak: Callable[[Case, int], float], tick: Callable[[str], None] = lambda _: None
    ) -> Result:
        """Verifies the case with every library, then times them in turn; `peak` is measured in every round, too."""
        settings = self.settings
        exact, limit = verify.errors(case, case.inputs(settings.seed))
        result = Result(case, limit, [])
        running: list[tuple[Measurement, Contender]] = []
        for threads in self.thread_counts:
            for contender in self.contenders:
                measurement = Measurement(contender.name, threads)
                result.measurements.append(measurement)
                tick(f"{case.name}: verifying {contender.name}")
                if self._prepare(measurement, contender, case, exact):
                    running.append((measurement, contender))
        for number in range(settings.rounds):
            tick(f"{case.name}: round {number + 1} of {settings.rounds}")
            for threads in self.thread_counts:
                result.peaks[threads] = max(result.peaks.get(threads, 0.0), peak(case, threads))
            for measurement, contender in running:
                if measurement.status == "ok":
                    self._time(measurement, contender)
        for measurement, contender in running:
            if measurement.status == "ok":
                self._attempt(measurement, contender, "forget")
        return result

    def _prepare(self, measurement: Measurement, contender: Contender, case: Case, exact: Any) -> bool:
        """Whether it can be timed."""
        answer = self._attempt(measurement, contender, "prepare", case, self.settings.seed, exact)
        if measurement.status == "ok" and answer is None:
            measurement.status = "unsupported"
        if measurement.status == "ok":
            measurement.error = answer[0]
        return measurement.status == "ok"

    def _time(self, measurement: Measurement, contender: Contender) -> None:
        times = self._attempt(measurement, contender, "time", self.settings.turn_seconds)
        if measurement.status == "ok":
            measurement.rounds.append(times)

    def _attempt(self, measurement: Measurement, contender: Contender, request: str, *arguments: Any) -> Any:
        """The answer; a failure becomes the status of the measurement."""
        try:
            return self.worker(contender, measurement.threads).ask(self.settings.timeout, request, *arguments)
        except WorkerError as error:
            measurement.status, measurement.message = "failed", str(error)
            return None

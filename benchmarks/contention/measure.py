"""Measures the cases: workers of the libraries beside processes that never wait."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.contention import Row, Situation
from benchmarks.kernels import verify
from benchmarks.kernels.case import Case
from benchmarks.kernels.peers import Contender
from benchmarks.kernels.runner import Settings, WorkerError, WorkerProcess

CASES = (
    Case("lstm T100 B1 H256", "lstm", {"T": 100, "B": 1, "I": 256, "H": 256}, alone=True),
    Case("lstm step B1 H256", "lstm_cell", {"B": 1, "I": 256, "H": 256}, alone=True),
    Case("lstm T50 B8 H512", "lstm", {"T": 50, "B": 8, "I": 512, "H": 512}, alone=True),
    Case("attention B8 H8 S128 D64", "attention", {"B": 8, "H": 8, "S": 128, "D": 64}, alone=True),
    Case("linear 256 x 512 x 512", "linear", {"M": 256, "N": 512, "K": 512}, alone=True),
    Case("softmax 1000 x 1000", "softmax", {"R": 1000, "C": 1000}, alone=True),
)
NEVER_WAITS = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass"


class BusyProcesses:
    """Processes that never wait, all stopped but inside `with busy.running(n)`."""

    def __init__(self, most: int) -> None:
        command = [sys.executable, "-c", NEVER_WAITS]
        self._processes = [subprocess.Popen(command, start_new_session=True) for _ in range(most)]

    @contextlib.contextmanager
    def running(self, count: int) -> Iterator[None]:
        """Lets `count` of them run."""
        try:
            self._send(count, signal.SIGCONT)
            yield
        finally:
            self._send(count, signal.SIGSTOP)

    def _send(self, count: int, number: int) -> None:
        for process in self._processes[:count]:
            process.send_signal(number)

    def close(self) -> None:
        """Ends them."""
        for process in self._processes:
            process.kill()
            process.wait()


def measure(case: Case, contender: Contender, threads: int, situations: Sequence[Situation], seconds: float,
            busy: BusyProcesses, cores: int) -> list[Row]:  # fmt: skip
    """A row for each situation, none where the library has no such operation.

    Raises WorkerError, also where its result is wrong.
    """
    exact, limit = verify.errors(case, case.inputs(Settings.seed))
    with contextlib.ExitStack() as stack:
        most = max(situation.processes for situation in situations)
        workers = [stack.enter_context(contextlib.closing(WorkerProcess(contender, n)))
                   for n in [threads] * most + [1] * most]  # fmt: skip
        for worker in workers:
            answer = worker.ask(Settings.timeout, "prepare", case, Settings.seed, exact)
            if answer is None:
                return []
            if answer[0] > limit:
                raise WorkerError(f"its error is {answer[0]:.1e}, allowed {limit:.1e}")
        callers, singles = workers[:most], workers[most:]
        unit = quantile(singles[0].ask(Settings.timeout, "time", seconds), 0.5)
        rows = []
        for situation in situations:
            found = []
            for workers in (callers[: situation.processes], singles[: situation.processes]):
                with busy.running(situation.busy * cores), ThreadPoolExecutor(len(workers)) as pool:
                    asked = [pool.submit(w.ask, Settings.timeout, "crowd", seconds, situation.threads) for w in workers]
                    times = sorted(time for answer in asked for time in answer.result())
                found += [quantile(times, 0.5), quantile(times, 0.99)]
            rows.append(Row(case.name, contender.name, str(situation), unit, *found))
        return rows


def quantile(times: Sequence[float], part: float) -> float:
    """Of sorted times."""
    return times[round(part * (len(times) - 1))]

"""The libraries in turns, on one case."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter, thread_time
from typing import Any

from benchmarks.faces import difference
from benchmarks.faces.measure import thread_limit
from benchmarks.sweep import Calls, Operation, Run

SIZES = (*(64 << 3 * i for i in range(7)), 64 << 20)  # bytes of x in float32: 64 B to 16 MB, and 64 MB
SPECIFIED = 1 << 16  # elements up to which the specification, in float64, is quick
# Of the largest number of a result. PyTorch rounds between the steps of a formula, and has long chains of sums.
TOLERANCES = {"float32": 2e-4, "bfloat16": 6e-2}
GROUP_SECONDS = 5e-5  # of calls that are timed together


@dataclass(frozen=True)
class Case:
    operation: Operation
    shape: tuple[int, int]
    dtype: str
    used: bool  # results go to memory that exists
    threads: int

    @property
    def name(self) -> str:
        memory = "used" if self.used else "fresh"
        return f"{self.operation.name} {self.shape[0]} x {self.shape[1]} {self.dtype} {memory}"


@dataclass(frozen=True)
class Row:
    """What was found of a case."""

    operation: str
    shape: tuple[int, int]
    dtype: str
    memory: str
    threads: int
    seconds: dict[str, float]  # by library: of the fastest call
    medians: dict[str, float]
    difference: float  # the largest of ours from the specification and the other libraries
    error: str

    @property
    def best_peer(self) -> str:
        return min((name for name in self.seconds if name != "fastattn"), key=self.seconds.__getitem__, default="")

    @property
    def ratio(self) -> float | None:
        """Time of the fastest other library / ours."""
        return self.seconds[self.best_peer] / self.seconds["fastattn"] if self.best_peer else None

    def numbers(self) -> dict[str, Any]:
        return asdict(self) | {"best_peer": self.best_peer, "ratio": self.ratio}


def cases(operations: list[Operation], sizes: list[int], dtypes: list[str], threads: list[int]) -> list[Case]:
    """Rows are no longer than the array; a length that leaves the same shape is not repeated."""
    found = {}
    for operation in operations:
        for size in sizes:
            for columns in operation.columns:
                elements = size // 4
                if columns > elements and columns != operation.columns[0]:
                    continue
                n = min(columns or elements, elements)
                for dtype in dtypes:
                    for used in (False, True) if operation.has_out else (False,):
                        for count in threads:
                            if dtype in operation.dtypes:
                                case = Case(operation, (elements // n, n), dtype, used, count)
                                found[case.name, count] = case
    return list(found.values())


def measure(case: Case, rounds: int, turn_seconds: float, of_processor: bool = False) -> Row:
    """Compares the results, then times; of_processor: the processor time of this thread, for machines that are busy."""
    clock = thread_time if of_processor else perf_counter
    with thread_limit(case.threads):
        calls = case.operation.make(case.shape, case.dtype, case.used)
        worst, error = compare(calls, case)
        counts = {name: repetitions(run, clock) for name, run in calls.runs.items()}
        times: dict[str, list[float]] = {name: [] for name in calls.runs}
        for _ in range(rounds):
            for name, run in calls.runs.items():
                times[name] += turn(run, counts[name], turn_seconds, clock)
    seconds, medians = ({name: choose(found) for name, found in times.items()} for choose in (min, median))
    memory = "used" if case.used else "fresh"
    return Row(case.operation.name, case.shape, case.dtype, memory, case.threads, seconds, medians, worst, error)


def compare(calls: Calls, case: Case) -> tuple[float, str]:
    """The largest difference of ours, and which it is from where it is too large."""
    ours = calls.runs["fastattn"]()
    others = {name: run for name, run in calls.runs.items() if name != "fastattn"}
    if case.shape[0] * case.shape[1] <= SPECIFIED:
        others["the specification"] = calls.expected
    differences = {name: difference(ours, run()) for name, run in others.items()}
    worst = max(differences, key=differences.__getitem__, default="")
    found = differences.get(worst, 0.0)
    return found, worst if found > TOLERANCES["bfloat16" if "bfloat16" in case.name else "float32"] else ""


def repetitions(run: Run, clock: Callable[[], float]) -> int:
    start = clock()
    run()
    return max(1, int(GROUP_SECONDS / max(clock() - start, 1e-9)))


def turn(run: Run, count: int, seconds: float, clock: Callable[[], float]) -> list[float]:
    """Seconds of a call, of each group that fits, after one call that is not counted."""
    found = []
    run()
    end = clock() + seconds
    while True:
        start = clock()
        for _ in range(count):
            run()
        now = clock()
        found.append((now - start) / count)
        if now >= end:
            return found

"""The two forms of a program in turns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import fastattn as fa
from benchmarks.faces import Program, Run, difference


@dataclass(frozen=True)
class Row:
    """What was found of one program with one number of threads."""

    name: str
    group: str
    threads: int
    plain: float  # seconds of the fastest call
    ours: float
    difference: float
    tolerance: float
    wanted: float

    @property
    def ratio(self) -> float:
        """How many times faster."""
        return self.plain / self.ours

    @property
    def verified(self) -> bool:
        return self.difference <= self.tolerance


@contextmanager
def thread_limit(count: int) -> Iterator[None]:
    """For fastattn, and for torch where it is there."""
    torch: Any = import_module("torch") if find_spec("torch") else None
    before = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(count)
    try:
        with fa.num_threads(count):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)


def measure(program: Program, threads: int, rounds: int, turn_seconds: float) -> Row:
    """Compares the results, then times."""
    with thread_limit(threads):
        pair = program.make()
        found = difference(pair.ours(), pair.plain())
        times: dict[str, float] = {"plain": float("inf"), "ours": float("inf")}
        runs: dict[str, Run] = {"plain": pair.plain, "ours": pair.ours}
        for _ in range(rounds):
            for name, run in runs.items():
                times[name] = min(times[name], _fastest(run, turn_seconds))
    return Row(program.name, program.group, threads, times["plain"], times["ours"], found, program.tolerance,
               program.wanted)  # fmt: skip


def _fastest(run: Callable[[], Any], seconds: float) -> float:
    """Of the calls that fit, one at least, after one that is not counted where it is short."""
    best, end = float("inf"), perf_counter() + seconds
    run()
    while True:
        start = perf_counter()
        run()
        now = perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best

"""What calls cost while other programs keep the processors."""

from dataclasses import dataclass

MEDIAN, TAIL = 2.5, 5.0  # what fastattn aims at, in units


@dataclass(frozen=True)
class Situation:
    """What else the machine does."""

    busy: int  # processes for each processor that never wait
    threads: int = 1  # Python threads of one process that call at once
    processes: int = 1

    def __str__(self) -> str:
        parts = [f"{self.busy} busy per core"] if self.busy else ["quiet"]
        parts += [f"{self.threads} threads call"] if self.threads > 1 else []
        parts += [f"{self.processes} processes"] if self.processes > 1 else []
        return ", ".join(parts)


SITUATIONS = (
    Situation(0),
    Situation(1),
    Situation(2),
    Situation(0, threads=2),
    Situation(0, threads=4),
    Situation(0, processes=2),
    Situation(1, processes=2),
)
QUICK = (Situation(0), Situation(1), Situation(0, threads=2))


@dataclass(frozen=True)
class Row:
    """What was found of one case, library and situation. Times are of single calls, in seconds."""

    case: str
    library: str
    situation: str
    unit: float  # the median of one thread on the quiet machine
    p50: float
    p99: float
    one_p50: float  # of one thread beside the same: what the scheduler leaves to any program
    one_p99: float

    @property
    def met(self) -> bool:
        """Whether fastattn's aim is reached."""
        return self.p50 <= MEDIAN * self.unit and self.p99 <= TAIL * self.unit

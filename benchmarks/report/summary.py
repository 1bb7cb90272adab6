"""What a reader wants to know of a case, derived from its measurements: one Row for each number of threads."""

import csv
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernels.case import Case
from benchmarks.kernels.peers import CONTENDERS
from benchmarks.kernels.runner import Measurement, Result

OURS = "fastattn"
OWN_NAMES = frozenset(contender.name for contender in CONTENDERS if contender.ours)


@dataclass(frozen=True)
class Row:
    """One case with one number of threads."""

    case: Case
    threads: int
    peak: float  # GFLOP/s; GB/s for cases without flops
    error_limit: float
    ours: Measurement | None
    others: tuple[Measurement, ...]
    single: Measurement | None  # ours with one thread
    beside: float | None = None  # part of its peak that the case reached which this one is measured beside

    @property
    def seconds(self) -> float | None:
        """Our fastest call."""
        return self.ours.minimum if self.ours else None

    @property
    def p50(self) -> float | None:
        """Median of ours."""
        return self.ours.median if self.ours else None

    @property
    def p99(self) -> float | None:
        """99th percentile of ours; None where calls are not timed alone."""
        return self.ours.p99 if self.ours and self.case.alone else None

    def rate(self, seconds: float | None) -> float | None:
        """GFLOP/s, or GB/s for a case without flops."""
        return None if seconds is None else 1e-9 * (self.case.flops or self.case.bytes) / seconds

    def part(self, seconds: float | None) -> float | None:
        """Part of the peak."""
        rate = self.rate(seconds)
        return None if rate is None else rate / self.peak

    def measurement(self, contender: str) -> Measurement | None:
        """That of a library, if it took part."""
        return next((m for m in (self.ours, *self.others) if m is not None and m.contender == contender), None)

    @property
    def fastest(self) -> Measurement | None:
        """The fastest of all, ours included."""
        timed = [m for m in (self.ours, *self.others) if m is not None and m.minimum is not None]
        return min(timed, key=lambda m: m.minimum or 0.0, default=None)

    @property
    def peers(self) -> list[Measurement]:
        """Other libraries, the fastest first; a result that is wrong by far more than rounding does not count."""
        valid = [
            m
            for m in self.others
            if m.contender not in OWN_NAMES and m.minimum is not None and (m.error or 0) < 1e3 * self.error_limit
        ]
        return sorted(valid, key=lambda m: m.minimum or 0.0)

    @property
    def took_part(self) -> list[str]:
        """Other libraries that were timed, in the order of CONTENDERS; also one whose result is wrong."""
        timed = {m.contender for m in self.others if m.minimum is not None}
        return [contender.name for contender in CONTENDERS if contender.name in timed - OWN_NAMES]

    @property
    def best(self) -> Measurement | None:
        """The fastest other library."""
        return next(iter(self.peers), None)

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best other library."""
        return self._ratio(self.best)

    def _ratio(self, other: Measurement | None) -> float | None:
        return other.minimum / self.seconds if other and other.minimum and self.seconds else None

    @property
    def scaling(self) -> float | None:
        """Speed against one thread."""
        return self._ratio(self.single) if self.threads > 1 else None

    @property
    def scaling_met(self) -> bool | None:
        """Whether 95 % of the threads pay; None where there is too little work for them."""
        return None if self.scaling is None or not self.case.scales else self.scaling >= 0.95 * self.threads

    @property
    def verified(self) -> bool:
        """Whether our results, of all strategies, lie within the error rule; a failure to compute does not."""
        own = [m for m in self.others if m.contender in OWN_NAMES and m.status != "unsupported"]
        return self.ours is not None and all(
            m.status == "ok" and m.error is not None and m.error <= self.error_limit for m in (self.ours, *own)
        )

    @property
    def failures(self) -> list[Measurement]:
        """What could not be measured although the library has the operation."""
        return [m for m in (self.ours, *self.others) if m is not None and m.status == "failed"]

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None when it needs a library that did not take part."""
        if self.seconds is None:
            return False
        target = self.case.target
        checks: list[bool | None] = []
        if target.peak is not None:
            checks.append((self.part(self.seconds) or 0) >= target.peak)
        if target.micros is not None:
            checks.append(1e6 * ((self.p50 if self.case.alone else None) or self.seconds) <= target.micros)
        if target.tail is not None:
            checks.append((self.p99 or math.inf) <= target.tail * (self.p50 or 0.0))
        if target.ratio is not None:
            checks.append(None if self.ratio is None else self.ratio >= target.ratio)
        if target.torch_ratio is not None:
            ratio = self._ratio(next((m for m in self.peers if m.contender == "torch"), None))
            memory = (self.part(self.seconds) or 0) >= 1
            checks.append(True if memory else None if ratio is None else ratio >= target.torch_ratio)
        if target.beside is not None:
            part = self.part(self.seconds) or 0
            checks.append(None if self.beside is None else part >= target.beside * self.beside)
        if not checks:
            checks.append(None if self.ratio is None else self.ratio >= 1)
        return False if False in checks else None if None in checks else True


def rows(results: Iterable[Result]) -> list[Row]:
    """The rows of the table, case by case."""
    found: list[Row] = []
    for result in results:
        for threads in sorted(result.peaks):
            beside = next((r for r in found if (r.case.name, r.threads) == (result.case.beside, threads)), None)
            others = tuple(m for m in result.measurements if m.threads == threads and m.contender != OURS)
            found.append(
                Row(
                    result.case,
                    threads,
                    result.peaks[threads],
                    result.error_limit,
                    result.find(OURS, threads),
                    others,
                    result.find(OURS, 1),
                    beside.part(beside.seconds) if beside else None,
                )
            )
    return found


def score(table: Iterable[Row]) -> str:
    """How many rows reach their target, and how many are ahead of all other libraries."""
    table = list(table)
    judged, raced, scaled = (
        [value for value in values if value is not None]
        for values in ([row.met for row in table], [row.ratio for row in table], [row.scaling_met for row in table])
    )
    return (
        f"targets reached: {sum(judged)} of {len(judged)}; "
        f"ahead of every other library: {sum(r > 1 for r in raced)} of {len(raced)}; "
        f"threads pay (95 %): {sum(scaled)} of {len(scaled)}"
    )


CSV_COLUMNS = (
    "case",
    "op",
    "dtype",
    "threads",
    "library",
    "status",
    "minimum",
    "median",
    "error",
    "part_of_peak",
    "target_met",
)


def write_csv(path: Path, table: Iterable[Row]) -> None:
    """A line for each case, number of threads and library: seconds, the largest error, the part of the peak."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for row in table:
            for m in (row.ours, *row.others):
                if m is not None:
                    of_case = (row.case.name, row.case.op, row.case.dtype, row.threads)
                    writer.writerow(
                        (*of_case, m.contender, m.status, m.minimum, m.median, m.error, row.part(m.minimum))
                    )


def as_json(row: Row) -> dict[str, Any]:
    """Everything of a row, raw times included."""
    measurements = [row.ours, *row.others] if row.ours else list(row.others)
    return {
        "case": row.case.name,
        "op": row.case.op,
        "sizes": row.case.sizes,
        "dtype": row.case.dtype,
        "causal": row.case.causal,
        "window": row.case.window,
        "masked": row.case.masked,
        "beside": row.case.beside,
        "part_of_peak_beside": row.beside,
        "threads": row.threads,
        "flops": row.case.flops,
        "bytes": row.case.bytes,
        "target": {key: value for key, value in asdict(row.case.target).items() if value is not None},
        "met": row.met,
        "peak": row.peak,
        "part_of_peak": row.part(row.seconds),
        "ratio_to_best_peer": row.ratio,
        "best_peer": row.best.contender if row.best else None,
        "took_part": row.took_part,
        "p50": row.p50,
        "p99": row.p99,
        "scaling": row.scaling,
        "scaling_met": row.scaling_met,
        "error_limit": row.error_limit,
        "verified": row.verified,
        "measurements": [
            {
                "library": m.contender,
                "status": m.status,
                "message": m.message,
                "error": m.error,
                "minimum": m.minimum,
                "median": m.median,
                "rounds": m.rounds,
            }
            for m in measurements
        ],
    }

"""`python -m benchmarks.sweep`: functions of elements and of rows over all sizes, against PyTorch and NumPy."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from math import exp, fsum, log
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.launch import launch

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.sweep.measure import Row

_NEEDED = ("rich", "ml_dtypes")
_LOST = 0.9  # of the speed on one thread, below which more threads lose


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description="Element-wise functions and functions of rows, from 64 bytes to 64 MB, against PyTorch and NumPy.",
    )
    parser.add_argument("--quick", action="store_true", help="three sizes, one type and few rounds: under a minute")
    parser.add_argument("--only", metavar="PATTERN", help="a regular expression that finds functions by name")
    parser.add_argument("--threads", type=int, metavar="N", help="each case runs with 1 and with N threads")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of each case (default: 7)")
    parser.add_argument("--processor-time", action="store_true",
                        help="one thread, timed by its processor time: for a machine that others use")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER",
                        help="where sweep.json goes (default: results)")  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or (arguments.threads is not None and arguments.threads < 1):
        parser.error("--rounds and --threads must be at least 1")
    if arguments.processor_time and arguments.threads not in (None, 1):
        parser.error("--processor-time sees one thread only")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where a result differs by more than it may; 2 where a package is missing."""
    arguments = _arguments(argv)
    return launch(_NEEDED, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from benchmarks.job import Steps  # noqa: PLC0415 (after the check of packages)
    from benchmarks.kernels import machine  # noqa: PLC0415
    from benchmarks.report import terminal  # noqa: PLC0415
    from benchmarks.sweep.measure import SIZES, cases, measure  # noqa: PLC0415
    from benchmarks.sweep.operations import OPERATIONS  # noqa: PLC0415
    from fastattn import config  # noqa: PLC0415

    started = perf_counter()
    console = terminal.console()
    chosen = [o for o in OPERATIONS if re.search(arguments.only or "", o.name)]
    if not chosen:
        raise SystemExit(f"--only: no function is named like {arguments.only!r}")
    most = 1 if arguments.processor_time else arguments.threads or config.get_num_threads()
    dtypes = ["float32"] if arguments.quick else ["float32", "bfloat16"]
    wanted = cases(chosen, list(SIZES[::3] if arguments.quick else SIZES), dtypes, sorted({1, most}))
    rounds, turn_seconds = (2, 0.001) if arguments.quick else (arguments.rounds, 0.003)
    rows = []
    with Steps(console, len(wanted)) as steps:
        for case in wanted:
            steps.next(f"{case.name}, {case.threads} threads")
            rows.append(measure(case, rounds, turn_seconds, arguments.processor_time))
    console.print(summary_table(rows))
    console.print(behind_table(rows))
    for row in slower_with_threads(rows):
        console.print(f"slower with {row.threads} threads: {name_of(row)}", highlight=False)
    wrong = [row for row in rows if row.error]
    for row in wrong:
        console.print(f"NOT VERIFIED: {name_of(row)}, {row.threads} threads: {row.difference:.1e} from {row.error}",
                      style="bold red")  # fmt: skip
    path = _write(arguments.out, rows, machine.describe(), perf_counter() - started, arguments.processor_time)
    console.print(f"{perf_counter() - started:.0f} s. The numbers: {path.resolve()}", highlight=False, soft_wrap=True)
    return 1 if wrong else 0


def name_of(row: "Row") -> str:
    return f"{row.operation} {row.shape[0]} x {row.shape[1]} {row.dtype} {row.memory}"


def slower_with_threads(rows: Sequence["Row"]) -> list["Row"]:
    """Rows of several threads that take longer than the same with one."""
    alone = {name_of(row): row.seconds["fastattn"] for row in rows if row.threads == 1}
    return [row for row in rows if row.threads > 1 and alone.get(name_of(row), 0.0) < _LOST * row.seconds["fastattn"]]


def summary_table(rows: Sequence["Row"]) -> "Table":
    """A line for each function, type and number of threads."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    found = Table(title="Fastest other library / fastattn", caption="mean: geometric", box=SIMPLE_HEAD, pad_edge=False)
    found.add_column("function")
    for heading in ("type", "thr", "cases", "ahead", "worst", "mean", "best"):
        found.add_column(heading, justify="right", no_wrap=True)
    groups: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        if row.ratio is not None:
            groups.setdefault((row.operation, row.dtype, row.threads), []).append(row.ratio)
    for (name, dtype, threads), ratios in groups.items():
        mean = exp(fsum(map(log, ratios)) / len(ratios))
        found.add_row(name, dtype, str(threads), str(len(ratios)), str(sum(r >= 1 for r in ratios)),
                      f"{min(ratios):.2f}", f"{mean:.2f}", f"{max(ratios):.2f}")  # fmt: skip
    return found


def behind_table(rows: Sequence["Row"]) -> "Table":
    """The cases where another library is faster."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from benchmarks.report.terminal import time_text  # noqa: PLC0415

    found = Table(title="Behind", caption="time of the fastest call", box=SIMPLE_HEAD, pad_edge=False)
    found.add_column("case")
    for heading in ("thr", "ours", "best", "time", "ratio"):
        found.add_column(heading, justify="right", no_wrap=True)
    behind = [row for row in rows if row.ratio is not None and row.ratio < 1]
    for row in sorted(behind, key=lambda row: row.ratio or 0.0):
        found.add_row(name_of(row), str(row.threads), time_text(row.seconds["fastattn"]), row.best_peer,
                      time_text(row.seconds[row.best_peer]), f"{row.ratio:.2f}")  # fmt: skip
    return found


def _write(folder: Path, rows: Sequence["Row"], machine: dict[str, Any], seconds: float, of_processor: bool) -> Path:
    from importlib.metadata import version  # noqa: PLC0415

    from benchmarks.sweep.operations import torch  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    numbers = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "torch": version("torch") if torch else None,
        "clock": "processor time of the thread" if of_processor else "wall time",
        "seconds": seconds,
        "rows": [row.numbers() for row in rows],
    }
    path = folder / "sweep.json"
    path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.contention`: what calls cost while other programs keep the processors.

Each library computes the same calls in a process of its own: with one thread on the quiet machine, which gives the
unit, then with several threads: quiet, beside one and two busy processes for each processor, and from several callers
at once, threads of one process or processes. The table has the median and the 99th percentile of calls, in units.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.contention import MEDIAN, QUICK, SITUATIONS, TAIL, Row
from benchmarks.launch import launch

if TYPE_CHECKING:
    from rich.table import Table

PEERS = ("torch", "onnxruntime")
_NEEDED = ("rich",)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.contention", description="Calls while other programs keep the processors."
    )
    parser.add_argument("--quick", action="store_true", help="fewer situations, shorter")
    parser.add_argument("--only", metavar="PATTERN", help="a regular expression that finds names of cases")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="LIST", help="names, or none (default: both)")
    parser.add_argument("--threads", type=int, metavar="N", help="of each library (default: the processors)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each measurement (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER",
                        help="where contention.json goes (default: results)")  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.seconds is None:
        arguments.seconds = 0.3 if arguments.quick else 2.0
    if arguments.seconds <= 0 or (arguments.threads is not None and arguments.threads < 1):
        parser.error("--seconds must be above 0, --threads at least 1")
    arguments.peers = [] if arguments.peers == "none" else arguments.peers.split(",")
    if unknown := sorted(set(arguments.peers) - set(PEERS)):
        parser.error(f"--peers: {', '.join(unknown)}: the names are {', '.join(PEERS)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where fastattn could not be measured or is wrong; 2 where a package is missing."""
    arguments = _arguments(argv)
    return launch(_NEEDED, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from benchmarks.contention.measure import CASES, BusyProcesses, measure  # noqa: PLC0415 (after the check of packages)
    from benchmarks.job import Steps  # noqa: PLC0415
    from benchmarks.kernels import machine, peers  # noqa: PLC0415
    from benchmarks.kernels.runner import WorkerError  # noqa: PLC0415
    from benchmarks.report import terminal  # noqa: PLC0415
    from fastattn import config  # noqa: PLC0415

    started = perf_counter()
    console = terminal.console()
    cases = [case for case in CASES if not arguments.only or re.search(arguments.only, case.name, re.IGNORECASE)]
    if not cases:
        raise SystemExit(f"--only: no case is named like {arguments.only!r}")
    contenders = [c for c in peers.CONTENDERS if c.name in ("fastattn", *arguments.peers)]
    absent = [c.name for c in contenders if not c.installed()]
    contenders = [c for c in contenders if c.installed()]
    situations = QUICK if arguments.quick else SITUATIONS
    threads = arguments.threads or config.get_num_threads()
    described = machine.describe()
    rows: list[Row] = []
    wrong: dict[str, str] = {}
    busy = BusyProcesses(described["cpus"] * max(situation.busy for situation in situations))
    try:
        with Steps(console, len(cases) * len(contenders)) as steps:
            for case in cases:
                for contender in contenders:
                    steps.next(f"{case.name}, {contender.name}")
                    try:
                        rows += measure(
                            case, contender, threads, situations, arguments.seconds, busy, described["cpus"]
                        )
                    except WorkerError as error:
                        wrong[f"{contender.name}, {case.name}"] = str(error)
    finally:
        busy.close()
    if rows:
        console.print(_table(rows, threads))
    for name in absent:
        console.print(f"{name} is not installed", highlight=False)
    for name, reason in wrong.items():
        console.print(f"NOT MEASURED: {name}: {reason}", style="bold red", highlight=False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "contention.json"
    data = {"machine": described, "threads": threads, "seconds": arguments.seconds, "wrong": wrong,
            "rows": [asdict(row) for row in rows]}  # fmt: skip
    path.write_text(json.dumps(data, indent=1))
    console.print(f"{perf_counter() - started:.0f} s. The numbers: {path.resolve()}", highlight=False, soft_wrap=True)
    return 1 if any(name.startswith("fastattn,") for name in wrong) else 0


def _table(rows: Sequence[Row], threads: int) -> "Table":
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from benchmarks.report.terminal import met_mark, time_text  # noqa: PLC0415

    caption = (
        f"unit: median of one thread on the quiet machine; met: fastattn's aim, {MEDIAN:g} units in the median and "
        f"{TAIL:g} at the 99th percentile; one thread: both of a single thread beside the same"
    )
    title = f"Calls with {threads} threads beside other programs"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False)
    for name in ("case", "beside", "library"):
        table.add_column(name, no_wrap=True)
    for name in ("unit", "p50", "p99", "one thread", "met"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        met = row.met if row.library == "fastattn" else None
        table.add_row(row.case, row.situation, row.library, time_text(row.unit), f"{row.p50 / row.unit:.2f}",
                      f"{row.p99 / row.unit:.2f}", f"{row.one_p50 / row.unit:.2f}, {row.one_p99 / row.unit:.2f}",
                      met_mark(met))  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())

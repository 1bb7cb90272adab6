"""`python -m benchmarks.faces`: PyTorch, HuggingFace and ONNX programs with fastattn and without it, on one page."""

import argparse
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

from benchmarks.faces import Program
from benchmarks.launch import launch

# Module -> the packages it needs.
FACES = {"torch_": ("torch",), "transformers_": ("torch", "transformers"), "onnx_": ("onnx", "onnxruntime")}
_NEEDED = ("jinja2", "rich")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faces", description="Programs with fastattn and without it: one page."
    )
    parser.add_argument("--quick", action="store_true", help="fewer programs and rounds")
    parser.add_argument("--only", metavar="PATTERN", help="a regular expression that finds names of programs or groups")
    parser.add_argument("--threads", type=int, metavar="N", help="each program runs with 1 and with N threads")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of each program (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER",
                        help="where faces.html and faces.json go (default: results)")  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or (arguments.threads is not None and arguments.threads < 1):
        parser.error("--rounds and --threads must be at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where a result differs by more than it may; 2 where a package is missing."""
    arguments = _arguments(argv)
    return launch(_NEEDED, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from benchmarks.faces import page  # noqa: PLC0415 (after the check of packages)
    from benchmarks.faces.measure import measure  # noqa: PLC0415
    from benchmarks.job import Steps  # noqa: PLC0415
    from benchmarks.kernels import machine  # noqa: PLC0415
    from benchmarks.report import terminal  # noqa: PLC0415
    from fastattn import config  # noqa: PLC0415

    started = perf_counter()
    console = terminal.console()
    programs: list[Program] = []
    missing: dict[str, str] = {}
    versions: dict[str, str] = {}
    for face, packages in FACES.items():
        absent = [name for name in packages if not find_spec(name)]
        if absent:
            missing[face.rstrip("_")] = f"{', '.join(absent)} is not installed"
            continue
        versions |= {name: version(name) for name in packages}
        programs += import_module(f"benchmarks.faces.{face}").programs(arguments.quick)
    if arguments.only:
        programs = [p for p in programs if re.search(arguments.only, f"{p.group} {p.name}", re.IGNORECASE)]
        if not programs:
            raise SystemExit(f"--only: no program is named like {arguments.only!r}")
    most = arguments.threads or config.get_num_threads()
    counts = sorted({1, most})
    rows = []
    with Steps(console, len(programs)) as steps:
        for program in programs:
            steps.next(f"{program.group}, {program.name}")
            rows += [measure(program, n, arguments.rounds, 0.02 if arguments.quick else 0.1) for n in counts]
    if rows:
        console.print(page.table(rows))
    for name, reason in missing.items():
        console.print(f"{name}: {reason}", highlight=False)
    wrong = [row for row in rows if not row.verified]
    for row in wrong:
        console.print(f"NOT VERIFIED: {row.name}, {row.threads} threads: difference {row.difference:.1e}, "
                      f"allowed {row.tolerance:.1e}", style="bold red")  # fmt: skip
    seconds = perf_counter() - started
    path = page.write(arguments.out, rows, missing, versions, machine.describe(), seconds)
    console.print(f"{seconds:.0f} s. The page: {path.resolve()}", highlight=False, soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The main job: `python -m benchmarks`. README.md beside this file describes it."""

import argparse
import re
import signal
import sys
from pathlib import Path

from benchmarks.launch import launch

_NEEDED = ("jinja2", "matplotlib", "rich")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Recurrence against attention on real text, and kernels against other libraries.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: under a minute")
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="UTF-8 text in place of the reference text of Python's standard library",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="FOLDER",
        help="where the page and the JSON file go (default: results)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="most threads (default: what fastattn uses)")
    parser.add_argument(
        "--peers",
        default="all",
        metavar="LIST",
        help="all, none, or names separated by commas: torch,onnxruntime,jax,numpy",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        help="regular expression: only cases whose name it finds; 'text' names the encoders on text",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each case (default: 7, with --quick 2)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write a line for each case, threads and library")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None and arguments.threads < 1:
        parser.error("--threads must be at least 1")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if arguments.text is not None and not arguments.text.is_file():
        parser.error(f"--text: there is no file {arguments.text}")
    if arguments.only is not None:
        try:
            re.compile(arguments.only)
        except re.error as error:
            parser.error(f"--only: {arguments.only!r} is no regular expression: {error}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the job; 0, or 1 when one of fastattn's results failed its verification."""
    arguments = _arguments(argv)
    return launch(_NEEDED, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from benchmarks.job import run  # noqa: PLC0415 (needs what launch has checked)

    # Ended by a signal, it still ends its workers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())

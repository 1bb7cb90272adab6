"""`python -m benchmarks.claims`: measures what the text claims and writes one page. README.md beside has the parts."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from benchmarks.launch import launch

PARTS = ("memory", "dates", "self_attention", "positions", "steps", "precision", "sentences")
_NEEDED = ("jinja2", "matplotlib", "rich")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims", description="The claims of the source text, measured: one page with plots."
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes, shorter training: about a minute")
    parser.add_argument("--only", metavar="PARTS", help=f"names separated by commas: {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER",
                        help="where claims.html and claims.json go (default: results)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (default: 1)")
    arguments = parser.parse_args(argv)
    arguments.parts = PARTS if arguments.only is None else tuple(arguments.only.split(","))
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))} is not among {', '.join(PARTS)}")
    if arguments.seed < 0:
        parser.error("--seed must be at least 0")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Measures the parts in turn; 0, or 2 when a package is missing."""
    arguments = _arguments(argv)
    return launch(_NEEDED, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from importlib import import_module  # noqa: PLC0415 (after the check of packages)

    from benchmarks.claims import LeftOut, Part, Settings, page  # noqa: PLC0415
    from benchmarks.job import Steps  # noqa: PLC0415
    from benchmarks.kernels import machine  # noqa: PLC0415
    from benchmarks.report import terminal  # noqa: PLC0415
    from fastattn import config  # noqa: PLC0415

    started = perf_counter()
    console = terminal.console()
    settings = Settings(arguments.quick, arguments.seed, config.get_num_threads())
    parts: dict[str, Part] = {}
    missing: list[str] = []
    with Steps(console, len(arguments.parts)) as steps:
        for name in arguments.parts:
            steps.next(name)
            measure: Callable[..., Part] = import_module(f"benchmarks.claims.{name}").measure
            try:
                parts[name] = measure(settings, steps.detail)
            except LeftOut as reason:
                missing.append(str(reason))
                console.print(f"left out: {reason}", highlight=False, markup=False)
                continue
            console.print(f"[bold]{parts[name].title}[/bold]", highlight=False)
            for sentence in parts[name].findings:
                console.print(f"  {sentence}", highlight=False, markup=False)
    seconds = perf_counter() - started
    path = page.write(arguments.out, parts, missing, machine.describe(), seconds)
    console.print(f"{seconds:.0f} s. The page: {path.resolve()}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Compiles the C sources for systems that are not at hand, by `zig cc` (pip install ziglang), without warnings.

    python scripts/cross_objects.py [--target x86_64-windows-gnu ...] [--sets baseline avx2 ...] [--types f32 ...]

Each source once per instruction set of the target's machine and type of array, as setup.py does it. Exit code 1 when
one does not compile or the compiler warns; its words are printed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "csrc"))
import variants  # noqa: E402

TARGETS = (
    "x86_64-linux-gnu.2.28",
    "aarch64-linux-gnu.2.28",
    "x86_64-linux-musl",
    "aarch64-linux-musl",
    "x86_64-macos.11.0",
    "aarch64-macos.11.0",
    "x86_64-windows-gnu",
)
WARNINGS = ("-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Failure:
    """A source that did not compile."""

    target: str
    unit: variants.Unit
    words: str


def units_of(target: str, names: list[str], types: list[str]) -> list[variants.Unit]:
    """What is compiled for a target."""
    machine = target.partition("-")[0]
    sets = tuple(isa for isa in variants.chosen(names) if isa.machine in ("", machine))
    wanted = set(types) or set(variants.TYPES)
    units = variants.all_units(sets, "vendored")
    return [unit for unit in units if unit.variant.startswith("core") or unit.variant.rpartition("_")[2] in wanted]


def compile_unit(target: str, unit: variants.Unit, folder: Path) -> Failure | None:
    """None where it compiles."""
    # The floor of x86-64 is what CPython's own builds have; Zig would take what the machine at hand has.
    cpu = ("-mcpu=x86_64",) if target.startswith("x86_64") else ()
    macros = [f"-D{name}={value}" for name, value in unit.macros]
    flags = [*cpu, *variants.COMMON_FLAGS, *WARNINGS, *macros, *unit.flags]
    output = folder / f"{unit.variant}_{unit.source.stem}.o"
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        target,
        *flags,
        "-c",
        str(unit.source),
        "-o",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Failure(target, unit, done.stderr) if done.returncode or done.stderr else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--target", nargs="+", default=TARGETS)
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--types", nargs="+", default=[])
    arguments = parser.parse_args()
    failures = 0
    for target in arguments.target:
        units = units_of(target, arguments.sets, arguments.types)
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda u, t=target, f=Path(folder): compile_unit(t, u, f), units))
        bad = [failure for failure in found if failure]
        print(f"{target}: {len(units) - len(bad)} of {len(units)} objects", flush=True)
        for failure in bad:
            print(f"{failure.unit.source.relative_to(ROOT)} ({failure.unit.variant}):\n{failure.words}", flush=True)
        failures += len(bad)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Compiles csrc/ with all macros and flags of the build, for the warnings alone:  python scripts/compiler_warnings.py

CC names another compiler. Exit status 1 when one of the sources has a warning.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "csrc"))
import binaries  # noqa: E402
import variants  # noqa: E402

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")


def machine_of_compiler() -> str:
    """What CC compiles for."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "empty.c", Path(folder) / "empty.o"
        source.write_text("int fa_empty;\n")
        subprocess.run([*shlex.split(os.environ.get("CC", "cc")), "-c", str(source), "-o", str(target)], check=True)
        return binaries.target_of(target).machine


def warns(unit: variants.Unit) -> bool:
    # With -O2, since intrinsics are macros without it, and those warn.
    macros = [f"-D{name}={value}" for name, value in unit.macros]
    compiler = shlex.split(os.environ.get("CC", "cc"))
    command = [*compiler, "-fsyntax-only", *variants.COMMON_FLAGS, *WARNINGS, *unit.flags, *macros, str(unit.source)]
    return subprocess.run(command, check=False).returncode != 0


def main() -> int:
    machine = machine_of_compiler()
    sets = tuple(isa for isa in variants.INSTRUCTION_SETS if isa.is_for(machine))
    units = [*variants.kernel_units(sets), *variants.op_units()]
    for blas in variants.BLAS_PROVIDERS:
        units += variants.plain_units(sets, blas)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return int(any(list(pool.map(warns, units))))


if __name__ == "__main__":
    sys.exit(main())

"""What these measurements are of: the machine, its software, and its peaks, measured by fastattn's own probes."""

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.kernels.case import Array
from fastattn import _core, config

ROOT = Path(__file__).resolve().parents[2]
PROBE_ROUNDS = 200_000  # about half a millisecond: shorter than most interruptions by other processes
READ_BYTES = 256 << 20  # far beyond any cache


def multiply_add_peak(dtype: str, threads: int, seconds: float = 0.02) -> float:
    """GFLOP/s of independent multiply-adds in registers with the ISA in force, the best of many short probes."""
    if dtype == "bfloat16":
        # NumPy knows the type once ml_dtypes is imported; without that no library takes part in such a case.
        if find_spec("ml_dtypes"):
            import_module("ml_dtypes")
        else:
            dtype = "float16"
    best = 0.0
    end = perf_counter() + seconds
    while perf_counter() < end or not best:
        start = perf_counter()
        done = _core.probe_multiply_add(dtype, PROBE_ROUNDS, threads)
        best = max(best, 2e-9 * done / (perf_counter() - start))
    return best


def read_bandwidth(memory: Array, threads: int, repeats: int = 3) -> float:
    """GB/s of reading `memory` once, the best of some; each thread reads its own part."""
    parts = np.array_split(memory, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = perf_counter()
            list(pool.map(_core.probe_read, parts))
            best = max(best, 1e-9 * memory.nbytes / (perf_counter() - start))
    return best


def peaks(thread_counts: list[int], seconds: float) -> dict[str, Any]:
    """Multiply-add peaks of each ISA, dtype and number of threads, and read bandwidths."""
    memory = np.ones(READ_BYTES // 4, np.float32)
    found: dict[str, Any] = {"multiply_add": [], "read": [], "unit": "GFLOP/s and GB/s"}
    for isa in config.available_isas():
        with config.use_isa(isa):
            found["multiply_add"] += [
                {"isa": isa, "dtype": dtype, "threads": threads, "gflops": multiply_add_peak(dtype, threads, seconds)}
                for dtype in ("float32", "float64")
                for threads in thread_counts
            ]
    found["read"] = [{"threads": threads, "gbytes": read_bandwidth(memory, threads)} for threads in thread_counts]
    return found


def _commit() -> str:
    """The commit of the checkout, with "+" when files were changed since; "" outside of git."""
    try:
        git = ["git", "-C", str(ROOT)]
        name = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name + ("+" if changed else "")


def _cpu_name() -> str:
    """The name in /proc/cpuinfo, or that of the CPUID brand string."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return _core.cpu_brand() or platform.processor()


def _caches() -> str:
    """Sizes of the caches of the first CPU, as Linux tells them."""
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found.append(f"L{level}{'d' if kind == 'Data' else ''} {size}")
    return ", ".join(found)


def describe() -> dict[str, Any]:
    """Everything that a reader needs to place the figures."""
    return {
        "cpu": _cpu_name(),
        "caches": _caches(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "commit": _commit(),
        **{
            f"fastattn_{key}" if key == "fastattn" else key: value
            for key, value in config.info().items()
            if key not in ("cpu", "numpy", "python")
        },
    }

"""Threads, instruction set, strategies, BLAS.

Environment: FASTATTN_NUM_THREADS (else OMP_NUM_THREADS, else the CPUs that affinity and control group allow) and
FASTATTN_ISA, which can
only lower the instruction set. A name that is unknown or not available is an error at import.

A context manager applies to the thread that enters it, until it leaves. A thread in no block uses the setting of the
block entered last, or, without any, that of the process. So each thread can have its own settings, and blocks leave
nothing behind, in whatever order they end.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, overload

import numpy as np

from fastattn import _core

# pathlib would be an eighth of the time that an import takes.
_LIBRARY = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_core.set_blas_path(os.path.join(os.path.dirname(_core.__file__), "_libs", f"libfastattn_blas{_LIBRARY}"))


def get_include() -> str:
    """The folder of the C API's headers, for the compiler of an extension that calls it.

    >>> import os
    >>> sorted(os.listdir(get_include()))
    ['fastattn.h', 'fastattn_import.h', 'fastattn_types.h']
    """
    return os.path.join(os.path.dirname(_core.__file__), "include")


@cache
def version() -> str:
    """The installed version; 0+unknown in a tree that was never installed.

    >>> version().startswith("0")
    True
    """
    from importlib.metadata import PackageNotFoundError  # noqa: PLC0415  (half of the time that an import would take)
    from importlib.metadata import version as installed_version  # noqa: PLC0415

    try:
        return installed_version("fastattn")
    except PackageNotFoundError:
        return "0+unknown"


def available_isas() -> list[str]:
    """Instruction sets that this CPU, operating system and build can run, the lowest first.

    >>> "baseline" in available_isas()
    True
    """
    return _core.available_isas()


def get_isa() -> str:
    """The current instruction set: "baseline", "avx2", "avx512", "avx512bf16" or "amxbf16"."""
    return _core.get_isa()


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Runs the kernels of a lower instruction set inside a `with` block.

    Results may differ in their last bits between instruction sets. Raises ValueError for a name that is unknown or not
    available.

    >>> with use_isa("baseline"):
    ...     get_isa()
    'baseline'
    """
    with _core.Block("isa", _core.isa_number(name)):
        yield


def get_num_threads() -> int:
    """The most threads that a call uses."""
    return _core.get_num_threads()


def set_num_threads(n: int) -> None:
    """Sets the most threads that a call uses, 1 to 256; inside a `with num_threads(...)` block until its end.

    No value changes with it; small calls use fewer.
    """
    _core.set_num_threads(n)


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """At most `n` threads inside a `with` block.

    >>> with num_threads(1):
    ...     get_num_threads()
    1
    """
    with _core.Block("threads", _core.thread_number(n, "num_threads")):
        yield


@contextmanager
def attention_strategy(name: str) -> Iterator[None]:
    """How attention computes its two products: "fused" (own kernels), "blas" (OpenBLAS on tiles) or "auto", the faster
    one.

    The two round differently. Raises ValueError for another name, and for "blas" in a build without BLAS.
    """
    with _core.Block("attention", _core.strategy_number("attention", name)):
        yield


@contextmanager
def linear_strategy(name: str) -> Iterator[None]:
    """How linear computes its product: "native" (own kernels), "blas" (OpenBLAS on tiles) or "auto", the faster one.

    The two round differently. Packed weights, sums over no elements, and sizes beyond a C int are always native. Raises
    ValueError for another name, and for "blas" in a build without BLAS.
    """
    with _core.Block("linear", _core.strategy_number("linear", name)):
        yield


def trim() -> None:
    """Frees the memory that is kept between calls: at most 4 blocks of 32 MB, and 256 MB of former results."""
    _core.trim()


def info() -> dict[str, object]:
    """What show_config prints, as a dict. Loads the BLAS library."""
    provider, core, blas_version = _core.blas_info()
    return {
        "fastattn": version(),
        "numpy": np.__version__,
        "python": sys.version.split()[0],
        "cpu": _core.cpu_brand(),
        "features": _core.cpu_features().split(),
        "isa": get_isa(),
        "isas": available_isas(),
        "threads": get_num_threads(),
        "threads_now": _core.threads_limit(),
        "blas": provider,
        "blas_core": core,
        "blas_version": blas_version,
        "attention_strategy": _core.get_attention_strategy(),
        "linear_strategy": _core.get_linear_strategy(),
    }


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dict"]) -> dict[str, object]: ...
def show_config(mode: str = "stdout") -> dict[str, object] | None:
    """Prints version, CPU, instruction sets, threads and BLAS; with mode="dict" returns them as `info` does.

    `python -m fastattn` prints the same. Raises ValueError for another mode.
    """
    if mode == "dict":
        return info()
    if mode != "stdout":
        raise ValueError(f"show_config: mode must be 'stdout' or 'dict', got {_core.shown(mode)}")
    for key, value in info().items():
        print(f"{key + ':':20} {' '.join(value) if isinstance(value, list) else value or '-'}")
    return None


def register_threadpoolctl() -> None:
    """Makes fastattn's threads visible to threadpoolctl (`threadpool_info`, `threadpool_limits`).

    This is done at import if threadpoolctl has been imported before; otherwise call this.
    """
    from fastattn._threadpoolctl import register  # noqa: PLC0415

    register()


_requested = os.environ.get("FASTATTN_ISA")
if _requested:
    try:
        _core.set_isa(_requested)
    except ValueError as error:
        raise ImportError(f"FASTATTN_ISA: {str(error).removeprefix('use_isa: ')}") from None
if "threadpoolctl" in sys.modules:
    register_threadpoolctl()

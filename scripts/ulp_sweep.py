#!/usr/bin/env python3
"""Measures the largest errors of exp, tanh, sigmoid, silu, gelu and relu, in units in the last place (ULP).

    python scripts/ulp_sweep.py                                     # every float, and 10^7 doubles per function
    python scripts/ulp_sweep.py --functions gelu --stride 1009      # a quick look
    python scripts/ulp_sweep.py --points 1000000000 --write         # the table in csrc/kernels/ulp.md

float32: all 2^32 inputs (or every --stride-th) against double arithmetic. float64: random points, a third each from all
floats, from exponents -40..10, and from the range where the function is neither 0, 1 nor x, against long double.
ulp_reference.c has the reference; it is compiled here (CC, else cc) and, where mpmath is installed, checked first.
--same-bits: only whether the sets named by --isa give the same bits for every float.
--write replaces the rows that were measured, keeps the others, and takes only full sweeps of floats and at least 10^6
doubles.
"""

import argparse
import ctypes
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import fastattn as fa

try:
    from rich.progress import track
except ImportError:

    def track(steps, description="", total=None):
        shown = -1
        for i, step in enumerate(steps):
            percent = 100 * i // total
            if percent != shown:
                print(f"\r{description} {percent} %", end="", file=sys.stderr, flush=True)
                shown = percent
            yield step
        print(f"\r{description} done", file=sys.stderr)


INF, NAN = np.inf, np.nan
# Name: the call, its number in ulp_reference.c, its values at -inf and +inf, and |x| beyond which a double's value is
# trivial.
FUNCTIONS = {
    "exp": (fa.exp, 0, (0.0, INF), 746),
    "tanh": (fa.tanh, 1, (-1.0, 1.0), 20),
    "sigmoid": (fa.sigmoid, 2, (0.0, 1.0), 746),
    "silu": (fa.silu, 3, (-0.0, INF), 760),
    "gelu": (fa.gelu, 4, (-0.0, INF), 40),
    "gelu_tanh": (lambda x, out=None: fa.gelu(x, approximate="tanh", out=out), 5, (-0.0, INF), 23),
    "relu": (fa.relu, 6, (0.0, INF), 2),
}
CHUNK = 1 << 20
REFERENCE_BOUND = 0.01  # ULP
TABLE = Path(__file__).resolve().parent.parent / "csrc" / "kernels" / "ulp.md"
HEADER = """\
# Errors of the elementary functions

The largest error found, in units in the last place (ULP) of the exact result; 0.5 is the least there can be.
"Subnormal" is the same over results below the normal range. "Beyond 1 ULP" counts inputs; "rounded otherwise" is the
part of them whose result is not the float nearest to the exact one.

Measured by `scripts/ulp_sweep.py`: float32 over all 2^32 inputs, float64 over random ones. NaN inputs gave NaN, other
inputs never did, and the values at infinity are exact, or the script would have failed.

avx512 has the bits of avx2 for every float (`--isa avx2 avx512 --same-bits`), and so its rows.

"""
COLUMNS = (
    "function",
    "type",
    "ISA",
    "worst ULP",
    "at x =",
    "subnormal",
    "beyond 1 ULP",
    "rounded otherwise",
    "points",
    "CPU",
)
MINIMUM_POINTS = 10**6


class Statistics(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_double) for name in ("worst", "worst_subnormal", "at")),
        *((name, ctypes.c_int64) for name in ("compared", "beyond_half", "beyond_one", "wrong_nan")),
    )

    def add(self, other):
        if other.worst > self.worst:
            self.worst, self.at = other.worst, other.at
        self.worst_subnormal = max(self.worst_subnormal, other.worst_subnormal)
        for name in ("compared", "beyond_half", "beyond_one", "wrong_nan"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def address(array):
    return ctypes.c_void_p(array.ctypes.data)


class Reference:
    """ulp_reference.c for one type."""

    def __init__(self, dtype, folder):
        self.dtype = np.dtype(dtype)
        single = self.dtype == np.float32
        types = ("float", "double", 24) if single else ("double", "long double", 53)
        target = Path(folder) / f"ulp_reference_{self.dtype.name}.so"
        macros = [f"-D{name}={value}" for name, value in zip(("REAL", "WIDE", "MANTISSA"), types, strict=True)]
        source = Path(__file__).with_name("ulp_reference.c")
        command = [os.environ.get("CC", "cc"), "-std=c11", "-O2", "-ffp-contract=off", "-fPIC", "-shared", *macros]
        subprocess.run([*command, str(source), "-o", str(target), "-lm"], check=True)
        self.library = ctypes.CDLL(str(target))

    def compare(self, number, x, results, statistics):
        pointers = (ctypes.c_void_p * len(results))(*(y.ctypes.data for y in results))
        self.library.compare(number, ctypes.c_int64(x.size), address(x), len(results), pointers, statistics)

    def check(self, name):
        """The largest error of the reference against mpmath, in ULP of the type, at 3000 random points."""
        import mpmath  # noqa: PLC0415  (optional)

        mp = mpmath.mp.clone()
        mp.prec = 200
        exact = {
            "exp": mp.exp,
            "tanh": mp.tanh,
            "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
            "silu": lambda x: x / (1 + mp.exp(-x)),
            "gelu": lambda x: x / 2 * mp.erfc(-x / mp.sqrt(2)),
            "gelu_tanh": lambda x: x / (1 + mp.exp(-2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf(44715) / 10**6 * x**3))),
            "relu": lambda x: max(x, mp.mpf(0)),
        }[name]
        _, number, _, limit = FUNCTIONS[name]
        rng = np.random.default_rng(1)
        x = np.concatenate(
            [rng.uniform(-limit, limit, 2000), rng.uniform(-1, 1, 1000) * 2.0 ** rng.integers(-30, 10, 1000)]
        )
        if self.dtype == np.float32:  # beyond these every function's float is trivial
            x = x[np.abs(x) < 150]
        x = x.astype(self.dtype)
        high, low, exponent = np.empty(x.size), np.empty(x.size), np.empty(x.size, np.int32)
        self.library.parts(number, ctypes.c_int64(x.size), *(address(a) for a in (x, high, low, exponent)))
        worst = 0.0
        for i, value in enumerate(x):
            expected = exact(mp.mpf(float(value)))
            # Results far below the smallest subnormal are 0 whatever their error.
            if abs(expected) < mp.mpf(2) ** (-160 if self.dtype == np.float32 else -1090):
                continue
            got = mp.ldexp(mp.mpf(high[i]) + mp.mpf(low[i]), int(exponent[i]))
            worst = max(worst, float(abs(got - expected) / abs(expected)))
        return worst / np.finfo(self.dtype).eps * 2


def all_floats(stride):
    """Number of chunks, and a function from the number of a chunk to its floats: every stride-th bit pattern."""
    total = -(-(1 << 32) // stride)

    def chunk(i):
        first, end = i * CHUNK, min(total, (i + 1) * CHUNK)
        return (np.arange(first, end, dtype=np.uint64) * np.uint64(stride)).astype(np.uint32).view(np.float32)

    return -(-total // CHUNK), chunk


def random_doubles(points, limit):
    def chunk(i):
        rng = np.random.default_rng([2024, i])
        n = min(CHUNK, points - i * CHUNK)
        third = n // 3
        anything = rng.integers(0, 1 << 64, third, dtype=np.uint64).view(np.float64)
        spread = rng.uniform(1, 2, third) * 2.0 ** rng.integers(-40, 11, third) * rng.choice([-1.0, 1.0], third)
        return np.concatenate([anything, spread, rng.uniform(-limit, limit, n - 2 * third)])

    return -(-points // CHUNK), chunk


def check_special_values(name, dtype, isa):
    function, _, (at_minus, at_plus), _ = FUNCTIONS[name]
    y = function(np.array([-INF, INF, NAN], dtype))
    if not (y[0] == at_minus and y[1] == at_plus and np.isnan(y[2])):
        sys.exit(f"{name} {np.dtype(dtype).name} {isa}: wrong values at -inf, inf, NaN: {y}")


def measure(name, reference, isas, source, workers):
    """Statistics of each ISA; the inputs and exact values are computed once for all."""
    chunks, chunk = source
    function, number, _, _ = FUNCTIONS[name]
    totals = [Statistics() for _ in isas]
    pool = ThreadPoolExecutor(workers)
    for i in track(range(chunks), description=f"{name} {reference.dtype.name}", total=chunks):
        x = chunk(i)
        results = []
        for isa in isas:
            with fa.config.use_isa(isa):
                results.append(function(x))
        bounds = np.linspace(0, x.size, workers + 1).astype(int)

        def part(a, b, x=x, results=results):
            statistics = (Statistics * len(isas))()
            reference.compare(number, x[a:b], [y[a:b] for y in results], statistics)
            return statistics

        for future in [pool.submit(part, a, b) for a, b in itertools.pairwise(bounds)]:
            for total, statistics in zip(totals, future.result(), strict=True):
                total.add(statistics)
    return totals


def differing_floats(name, isas, stride):
    """How many floats have other bits under one of the sets than under the first."""
    chunks, chunk = all_floats(stride)
    function, different = FUNCTIONS[name][0], 0
    for i in track(range(chunks), description=f"{name} bits", total=chunks):
        x, results = chunk(i), []
        for isa in isas:
            with fa.config.use_isa(isa):
                results.append(function(x))
        first = results[0]
        same = np.ones(x.size, bool)
        for other in results[1:]:
            same &= (first.view(np.uint32) == other.view(np.uint32)) | (np.isnan(first) & np.isnan(other))
        different += int(np.count_nonzero(~same))
    return different


def cells_of(s):
    """The measured cells of a row."""
    return (
        f"{s.worst:.3f}",
        float(s.at).hex().replace("0000000p", "p") if s.worst else "-",  # a float's last 7 digits are 0
        f"{s.worst_subnormal:.3f}" if s.worst_subnormal else "-",
        str(s.beyond_one),
        f"{100 * s.beyond_half / max(1, s.compared):.2f} %",
    )


def write_table(rows):
    kept = {}
    if TABLE.exists():
        for line in TABLE.read_text().splitlines():
            cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
            if line.startswith("|") and len(cells) == len(COLUMNS) and cells[0] in FUNCTIONS:
                kept[cells[:3]] = cells
    kept |= {row[:3]: row for row in rows}
    order = {name: i for i, name in enumerate((*FUNCTIONS, "float32", "float64", *fa.config._core.isa_names()))}
    ordered = sorted(kept.values(), key=lambda row: (order[row[1]], order[row[0]], order[row[2]]))
    lines = [COLUMNS, ["---"] * len(COLUMNS), *ordered]
    TABLE.write_text(HEADER + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    print(f"wrote {TABLE}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    isas = fa.config.available_isas()
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float64"), default=["float32", "float64"])
    parser.add_argument("--isa", nargs="+", choices=isas, default=isas)
    parser.add_argument("--stride", type=int, default=1, help="take every n-th float")
    parser.add_argument("--points", type=int, default=10**7, help="doubles per function")
    parser.add_argument("--workers", type=int, default=fa.get_num_threads())
    parser.add_argument("--same-bits", action="store_true", help="compare instruction sets with each other")
    parser.add_argument("--write", action="store_true", help=f"update {TABLE.name}")
    options = parser.parse_args()
    if options.stride < 1 or options.points < 1 or options.workers < 1:
        parser.error("--stride, --points and --workers must be at least 1")
    if options.write and (options.stride > 1 or options.points < MINIMUM_POINTS):
        parser.error(f"--write takes --stride 1 and at least {MINIMUM_POINTS} --points")
    return options


def main():
    options = arguments()
    info = fa.config.info()
    cpu = f"{info['cpu'] or platform.machine()} ({' '.join(info['features']) or '-'})"
    rows = []
    if options.same_bits:
        counts = {name: differing_floats(name, options.isa, options.stride) for name in options.functions}
        print(*(f"{name}: {count} floats differ" for name, count in counts.items()), sep="\n")
        sys.exit(any(counts.values()))
    with tempfile.TemporaryDirectory() as folder:
        for dtype in options.dtypes:
            reference = Reference(dtype, folder)
            for name in options.functions:
                start = time.perf_counter()
                try:
                    error = reference.check(name)
                except ImportError:
                    print("mpmath is not installed: the reference is taken on trust", file=sys.stderr)
                else:
                    if error > REFERENCE_BOUND:
                        sys.exit(f"{name} {dtype}: the reference itself is off by {error:.3g} ULP")
                for isa in options.isa:
                    with fa.config.use_isa(isa):
                        check_special_values(name, dtype, isa)
                if dtype == "float32":
                    source, points = (
                        all_floats(options.stride),
                        f"all 2^32{f' / {options.stride}' * (options.stride > 1)}",
                    )
                else:
                    source, points = (
                        random_doubles(options.points, FUNCTIONS[name][3]),
                        f"{options.points:.0e}".replace("e+0", "e"),
                    )
                totals = measure(name, reference, options.isa, source, options.workers)
                for isa, total in zip(options.isa, totals, strict=True):
                    if total.wrong_nan:
                        sys.exit(f"{name} {dtype} {isa}: {total.wrong_nan} inputs with NaN on one side only")
                    rows.append((name, dtype, isa, *cells_of(total), points, cpu))
                    print(*rows[-1][:-1], f"{time.perf_counter() - start:.0f} s", sep="  ", flush=True)
                if options.write:
                    write_table(rows)


if __name__ == "__main__":
    main()

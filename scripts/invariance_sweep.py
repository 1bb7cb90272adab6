#!/usr/bin/env python3
"""Compares bits over many cases of the eight invariances (tests/invariance.py), under every ISA and in both types.

    python scripts/invariance_sweep.py [--cases 100000] [--busy] [--write]

--cases: at least so many of each invariance. --busy: meanwhile two processes for each CPU never wait, other Python
threads call, teams of threads dissolve, and their size changes. --write records the result in tests/invariance.md, or
in tests/invariance_busy.md. Exit code 1 when any bits differ; each problem is printed with the call that repeats it.
"""

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fastattn as fa  # noqa: E402
from fastattn import _core  # noqa: E402
from tests import invariance  # noqa: E402

RECORDS = {False: ROOT / "tests" / "invariance.md", True: ROOT / "tests" / "invariance_busy.md"}


@contextlib.contextmanager
def busy_machine():
    """Processes that never wait, Python threads that call, teams that dissolve and change their size."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
    stop = threading.Event()

    def call(seed):
        rng = np.random.default_rng(seed)
        module = fa.nn.LSTM(64, 256, rng=rng)
        x = rng.standard_normal((20, 2, 64)).astype(np.float32)
        while not stop.is_set():
            _core.disturb_threads(int(rng.integers(0, 4)))
            fa.set_num_threads(int(rng.integers(1, 6)))
            module(x)
            fa.softmax(x[:, 0])
            time.sleep(0.001)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(2)]
    try:
        for caller in callers:
            caller.start()
        yield
    finally:
        stop.set()
        for caller in callers:
            caller.join()
        for process in processes:
            process.kill()
            process.wait()


def sweep(least):
    """Numbers of cases and of mismatches by (invariance, op)."""
    counts = {key: [0, 0] for key in itertools.product(invariance.INVARIANCES, invariance.OPS)}
    settings = list(itertools.product(fa.config.available_isas(), (np.float32, np.float64)))
    start = time.monotonic()
    for name in invariance.INVARIANCES:
        done = 0
        for seed in itertools.count():
            if done >= least:
                break
            for op, (isa, dtype) in itertools.product(invariance.OPS, settings):
                with fa.config.use_isa(isa):
                    cases, different = invariance.compare(name, op, seed, dtype)
                counts[name, op][0] += cases
                counts[name, op][1] += different
                done += cases
                if different:
                    print(f"\n{isa}: compare({name!r}, {op!r}, {seed}, np.{np.dtype(dtype)}): {different} differ")
            if seed % 20 == 0:
                print(f"\r{name}: {done:,} of {least:,} cases, {time.monotonic() - start:.0f} s ", end="", flush=True)
        print(f"\r{name}: {done:,} cases, {time.monotonic() - start:.0f} s{' ' * 20}")
    return counts


def table(counts):
    ops = list(invariance.OPS)
    yield f"| invariance | cases | mismatches | {' | '.join(ops)} |"
    yield "|---" * (3 + len(ops)) + "|"
    for name in invariance.INVARIANCES:
        rows = [counts[name, op] for op in ops]
        total, different = (sum(column) for column in zip(*rows, strict=True))
        yield f"| {name} | {total:,} | {different} | {' | '.join(f'{n:,}' for n, _ in rows)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with busy_machine() if arguments.busy else contextlib.nullcontext():
        counts = sweep(arguments.cases)
    lines = list(table(counts))
    print("\n".join(lines))
    if arguments.write:
        head = [
            "# Sweep of the invariances",
            "",
            f"By `scripts/invariance_sweep.py --cases {arguments.cases}{' --busy' * arguments.busy}`: calls whose bits",
            "were compared, by op, over",
            f"float32 and float64 under {', '.join(fa.config.available_isas())} ({fa.config.info()['cpu']}).",
            "`tests/invariance.py` says what a case is.",
            "",
        ]
        RECORDS[arguments.busy].write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    sys.exit(any(different for _, different in counts.values()))


if __name__ == "__main__":
    main()

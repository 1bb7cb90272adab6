#!/usr/bin/env python3
"""Spoils valid calls of everything public (tests/malformed.py), a million by default, and prints what is wrong.

    python scripts/fuzz_malformed.py [--calls 1000000] [--first 0] [--workers 2] [--only attention,KVCache.append]
    python scripts/fuzz_malformed.py --case 123456      # one of them again, in this process

A call may give a result or an error that names function and argument. Exit code 1 when any did something else.
"""

import argparse
import faulthandler
import os
import sys
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import malformed

SHOWN = 5  # findings of a kind and function that are printed


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0, help="the first case")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="names of functions, or beginnings of them, with commas")
    parser.add_argument("--case", type=int, help="run this case alone")
    return parser.parse_args()


def chosen(only):
    beginnings = tuple(filter(None, only.split(",")))
    names = [name for name in malformed.NAMES if name.startswith(beginnings or "")]
    if not names:
        raise SystemExit(f"nothing public begins with {only}")
    return names


def one(case, names):
    """Runs one case here, where a debugger sees it."""
    faulthandler.enable()
    warnings.simplefilter("error")
    print(malformed.describe(case, names))
    found = malformed.run(case, names)
    print(*(found or ["nothing wrong"]))
    return found is not None


def many(options, names):
    begin = time.monotonic()

    def status(done, found):
        seconds = time.monotonic() - begin
        if sys.stdout.isatty():
            rate = done / max(seconds, 1e-3)
            print(f"\r{done:,} of {options.calls:,} calls, {rate:,.0f}/s, {len(found)} findings ", end="", flush=True)

    target = partial(malformed.checked, names=names)
    found = malformed.sweep(options.first, options.calls, options.workers, target, status)
    print(f"\n{options.calls:,} calls of {len(names)} functions in {time.monotonic() - begin:.0f} s")
    report(found, names, f" --only {options.only}" if options.only else "")
    return bool(found)


def report(found, names, only):
    seen = Counter()
    for case, kind, message in sorted(found, key=lambda finding: (finding[1], finding[0])):
        name = malformed.draw(case, names)[0]
        seen[kind, name] += 1
        if seen[kind, name] <= SHOWN:
            print(f"\n{kind}: {malformed.describe(case, names)}\n    {message[:1000]}\n    --case {case}{only}")
    print("\nkinds:", ", ".join(f"{kind} {n}" for kind, n in Counter(kind for _, kind, _ in found).items()) or "none")
    for (kind, name), n in sorted(seen.items()):
        print(f"  {kind:10} {n:6} {name}")


def main():
    options = arguments()
    names = chosen(options.only)
    sys.exit(one(options.case, names) if options.case is not None else many(options, names))


if __name__ == "__main__":
    main()

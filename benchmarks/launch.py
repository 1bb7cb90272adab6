"""How a command of the benchmarks starts and ends."""

import os
import sys
from collections.abc import Callable, Sequence


def launch(needed: Sequence[str], run: Callable[[], int]) -> int:
    """run(), which may import the packages `needed`: its exit code, 2 when one is missing, 130 after Ctrl-C."""
    try:
        for module in needed:
            __import__(module)
    except ImportError as error:
        print(f'{error.name} is missing: python -m pip install -e ".[bench]"', file=sys.stderr)
        return 2
    os.environ.pop("OPENBLAS_CORETYPE", None)
    try:
        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130

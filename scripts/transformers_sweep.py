#!/usr/bin/env python3
"""Compares HuggingFace models with fastattn's attention to the same models with eager attention.

    python scripts/transformers_sweep.py [NAME ...] [--write]

NAME: architectures of tests/transformers/architectures.py, all by default. --write records the result in
tests/transformers.md. Exit code 1 when anything is out of its bounds.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fastattn as fa  # noqa: E402
import fastattn.transformers  # noqa: E402
from tests.transformers import comparison  # noqa: E402
from tests.transformers.architectures import ARCHITECTURES, build  # noqa: E402

RECORD = ROOT / "tests" / "transformers.md"
GENERATING = ("decoder", "seq2seq", "speech")
HEAD = ["architecture", "output", "left padding", "no padding", "gradients", "gradients, error", "bfloat16, error"]


def row(name):
    """What was found, as text, and whether all of it is within its bounds."""
    cases = ({}, {"left": True}, {"padded": False})
    forward = [comparison.forward_difference(name, **case) for case in cases]
    gradient, (_, error), rounded = (
        comparison.gradient_difference(name),
        comparison.truth_ratio(name),
        comparison.bfloat16_ratio(name),
    )
    fine = max(forward) <= comparison.FORWARD and rounded <= comparison.ERROR
    fine = fine and (gradient <= comparison.GRADIENT or error <= comparison.ERROR)
    fine = fine and fastattn.transformers.use(build(name, "eager")).config._attn_implementation == "fastattn"
    texts = [*(f"{difference:.1e}" for difference in forward), f"{gradient:.1e}", f"{error:.2f}", f"{rounded:.2f}"]
    for way in comparison.GENERATIONS:
        if ARCHITECTURES[name].kind not in GENERATING:
            texts.append("")
            continue
        eager, ours = comparison.generated(name, way)
        texts.append("same" if eager == ours else "**differ**")
        fine = fine and eager == ours
    return texts, fine


def record(names, lines, wrong):
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, {fa.config.get_isa()}"
    return "\n".join(
        [
            "# Models of transformers against eager attention",
            "",
            f"By `scripts/transformers_sweep.py --write`: {len(names)} models with drawn weights ({versions}).",
            "`tests/transformers/` says what is compared.",
            "",
            "- output, left, no padding: the largest difference of outputs, relative to the largest, of a batch with a",
            f"  padded sequence; at most {comparison.FORWARD:g}.",
            "- gradients: norm of the difference of all gradients, relative to their norm; at most",
            f"  {comparison.GRADIENT:g}, or within the bound of the error.",
            f"- errors: distance from float64, over that of eager attention; at most {comparison.ERROR}.",
            f"- the others: whether `generate` gives the same {comparison.NEW_TOKENS} tokens.",
            "",
            *lines,
            "",
            f"Out of bounds: {', '.join(wrong) or 'none'}.",
            "",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(ARCHITECTURES))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fa.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    columns = [*HEAD, *comparison.GENERATIONS]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    start, wrong, errors = time.monotonic(), [], []
    for name in arguments.names:
        texts, fine = row(name)
        errors.append([float(text) for text in texts[4:6]])
        lines.append(f"| {name} | {' | '.join(texts)} |")
        wrong += [] if fine else [name]
        print(lines[-1], f"{time.monotonic() - start:.0f} s", flush=True)
    medians = [f"{sorted(column)[len(column) // 2]:.2f}" for column in zip(*errors, strict=True)]
    lines.append(f"| median | | | | | {' | '.join(medians)} |{' |' * len(comparison.GENERATIONS)}")
    print(f"out of bounds: {', '.join(wrong) or 'none'}")
    if arguments.write:
        RECORD.write_text(record(arguments.names, lines, wrong), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

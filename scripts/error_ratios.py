#!/usr/bin/env python3
"""Errors of attention against those of the plain implementation, over a corpus of shapes, types and options.

    python scripts/error_ratios.py [--draws 4] [--write]

A ratio is an error of fastattn divided by that of the plain implementation in the same type on the same numbers
(fastattn.reference in the arithmetic of tests/ordered.py; in bfloat16 and float16 rounded after each op), both
against the reference in a wider type. Neither uses BLAS: sums have the order of tests/ordered.py on every machine.
Errors of all shapes and draws of a type and an option make one pool: the largest of each, and the medians. Float64
gradients are also compared with complex steps of the forward equation, which share no formula with ours. Ratios are
judged at the two digits shown: those of medians are samples, too. --write records the result in tests/error_ratios.md.
Exit code 1 when a promise is broken.
"""

import argparse
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fastattn as fa  # noqa: E402
from fastattn import reference  # noqa: E402
from tests.low_precision import Rounded  # noqa: E402
from tests.specification import exact, plain  # noqa: E402

RECORD = ROOT / "tests" / "error_ratios.md"
DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
LOW = ("bfloat16", "float16")
COMPLEX_STEP_LIMIT = 1e-12

# B, H, Hk, Lq, Lk, D, Dv: one and several blocks of keys, grouped heads, decoding, wide, odd and unequal heads
SHAPES = [
    (1, 2, 2, 64, 64, 64, 64), (2, 4, 2, 130, 300, 64, 64), (1, 2, 1, 300, 1100, 64, 64), (1, 2, 2, 200, 600, 128, 128),
    (1, 2, 2, 96, 257, 16, 16), (1, 2, 2, 271, 271, 96, 160), (2, 2, 2, 7, 513, 64, 64), (1, 4, 1, 1, 700, 128, 128),
    (1, 2, 2, 150, 200, 33, 17),
]  # fmt: skip
STEP_SHAPES = [(1, 2, 2, 19, 23, 5, 3), (1, 2, 1, 9, 13, 8, 8), (2, 2, 2, 5, 31, 4, 6)]


def _lengths(rng, batch, most):
    return [int(n) for n in rng.integers(most // 2, most + 1, batch)]


# Each: the options of a call, from a generator, the shape and the type.
OPTIONS = {
    "none": lambda rng, s, t: {},
    "causal": lambda rng, s, t: {"causal": "bottom-right"},
    "causal from the top left": lambda rng, s, t: {"causal": "top-left"},
    "window": lambda rng, s, t: {"window": (40, 7)},
    "scale": lambda rng, s, t: {"scale": -0.3},
    "bool mask": lambda rng, s, t: {"mask": rng.random((s[0], 1, s[3], s[4])) < 0.6},
    "float mask": lambda rng, s, t: {"mask": rng.standard_normal((s[1], s[3], s[4])).astype(t)},
    "softcap": lambda rng, s, t: {"softcap": 1.5},
    "alibi": lambda rng, s, t: {"alibi_slopes": (rng.random(s[1]) / 16).astype(t)},
    "sinks": lambda rng, s, t: {"sinks": rng.standard_normal(s[1]).astype(t)},
    "lengths": lambda rng, s, t: {"q_lengths": _lengths(rng, s[0], s[3]), "kv_lengths": _lengths(rng, s[0], s[4])},
    "all": lambda rng, s, t: {name: value for each in EVERY for name, value in OPTIONS[each](rng, s, t).items()},
}
EVERY = ("causal", "window", "float mask", "softcap", "alibi", "sinks", "lengths")


def draw(rng, shape, dtype):
    """dout, q, k, v."""
    B, H, Hk, Lq, Lk, D, Dv = shape
    shapes = (B, H, Lq, Dv), (B, H, Lq, D), (B, Hk, Lk, D), (B, Hk, Lk, Dv)
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def results(name, arrays, options):
    """Of ours, the plain implementation and the reference: out, and (dq, dk, dv)."""
    dout, q, k, v = arrays
    out, saved = fa.attention_forward(q, k, v, **options)
    yield out, fa.attention_backward(dout, saved)[:3]
    yardstick = Rounded(np.dtype(DTYPES[name])) if name in LOW else plain
    truth = exact(np.float64) if name == "float64" else reference
    for of in (yardstick, truth):
        yield of.attention(q, k, v, **options)[0], of.attention_backward(dout, q, k, v, **options)


def ratios(name, option, draws):
    """(largest, median) of forward and of backward, where the largest is that of dq, dk or dv."""
    ours, others = ([[], [], [], []] for _ in range(2))
    for shape in SHAPES:
        for seed in range(draws):
            rng = np.random.default_rng([seed, *shape])
            arrays = draw(rng, shape, DTYPES[name])
            got, yardstick, truth = results(name, arrays, OPTIONS[option](rng, shape, DTYPES[name]))
            for pool, (out, gradients) in ((ours, got), (others, yardstick)):
                for errors, value, right in zip(pool, (out, *gradients), (truth[0], *truth[1]), strict=True):
                    wide = value.astype(np.float64) if name in LOW else value
                    errors.append(np.abs(wide - right).ravel())
    pairs = [
        [(float(f(np.concatenate(a))), float(f(np.concatenate(b)))) for f in (np.max, np.median)]
        for a, b in zip(ours, others, strict=True)
    ]
    found = [[a / b if b else float(a > 0) for a, b in pair] for pair in pairs]
    return found[0], [max(values) for values in zip(*found[1:], strict=True)]


def complex_step_error(option):
    """Largest error of float64 dq, dk, dv, relative to the largest element."""
    worst = 0.0
    for shape in STEP_SHAPES:
        rng = np.random.default_rng(shape)
        dout, q, k, v = draw(rng, shape, np.float64)
        options = OPTIONS[option](rng, shape, np.float64)
        got = fa.attention_backward(dout, fa.attention_forward(q, k, v, **options)[1])
        for index, ours in enumerate(got):
            moved, right = [a.astype(complex) for a in (q, k, v)], np.empty_like(ours)
            for at in np.ndindex(right.shape):
                moved[index][at] += 1e-200j
                right[at] = _loss(dout, *moved, **options).imag / 1e-200
                moved[index][at] = moved[index][at].real
            worst = max(worst, float(np.abs(ours - right).max() / np.abs(right).max()))
    return worst


def _loss(dout, q, k, v, mask=None, causal=False, scale=None, window=None, softcap=0.0, alibi_slopes=None, sinks=None,
          q_lengths=None, kv_lengths=None):  # fmt: skip
    """sum(dout attention(q, k, v)), of complex numbers."""
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    sizes = q.shape[0], q.shape[2], k.shape[2]
    s = q @ k.swapaxes(-1, -2) * (1 / np.sqrt(q.shape[-1]) if scale is None else scale)
    s = softcap * np.tanh(s / softcap) if softcap else s
    if alibi_slopes is not None:
        s = s - alibi_slopes[:, None, None] * reference.alibi_distance(*sizes, causal, q_lengths, kv_lengths)
    s = s if mask is None or mask.dtype == bool else s + mask
    allowed = reference.attention_allowed(*sizes, mask, causal, window, q_lengths, kv_lengths)
    top = np.where(allowed, s.real, -1e9).max(-1, keepdims=True)
    e = np.where(allowed, np.exp(np.where(allowed, s - top, 0)), 0)
    total = e.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(np.minimum(sinks[:, None, None] - top, 700))
    return (dout * (e / np.where(total == 0, 1, total) @ v)).sum()


def limits(name):
    """The promised (largest, median) of forward and backward."""
    return ((1.0 if name in LOW else 2.0), 1.0), (2.0, 1.1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    lines = ["| type | option | forward largest | median | backward largest | median |", "|---" * 6 + "|"]
    broken, worst = [], {}
    for name in DTYPES:
        for option in OPTIONS:
            found = ratios(name, option, arguments.draws)
            cells = [value for pair in found for value in pair]
            allowed = [value for pair in limits(name) for value in pair]
            worst[name] = [max(pair) for pair in zip(cells, worst.get(name, cells), strict=True)]
            if any(round(value, 2) > limit for value, limit in zip(cells, allowed, strict=True)):
                broken.append(f"{name}, {option}")
            lines.append(f"| {name} | {option} | " + " | ".join(f"{value:.2f}" for value in cells) + " |")
            print(lines[-1], flush=True)
    summary = ["| type | forward largest | median | backward largest | median |", "|---" * 5 + "|"]
    summary += [f"| {name} | " + " | ".join(f"{value:.2f}" for value in cells) + " |" for name, cells in worst.items()]
    step = max(complex_step_error(option) for option in OPTIONS)
    broken += ["complex steps"] if step > COMPLEX_STEP_LIMIT else []
    summary += ["", f"Float64 gradients against complex steps, with every option: at most {step:.1e} of the largest."]
    print("\n".join(summary))
    for case in broken:
        print(f"beyond the promise: {case}")
    if arguments.write:
        head = [
            "# Errors of attention against the plain implementation",
            "",
            f"By `scripts/error_ratios.py --draws {arguments.draws}` under {fa.config.get_isa()} "
            f"({fa.config.info()['cpu']}); the script holds the",
            "corpus and says what a ratio is. The plain implementation has the same bits on every machine.",
            "Promised of the corpus: forward largest 2, median 1 (bfloat16, float16: largest 1); backward largest 2,",
            "median 1.1. Of single calls: tests/bounds.py. The worst of all options:",
            "",
        ]
        RECORD.write_text("\n".join([*head, *summary, "", *lines]) + "\n", encoding="utf-8")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()

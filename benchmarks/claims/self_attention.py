"""Self-attention as the text writes it, a double loop, against the kernel; and several heads."""

import math
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastattn as fa
from benchmarks.claims import Part, Settings, Tick
from benchmarks.report import plots, terminal

Array = NDArray[Any]
WIDTH = 64


def double_loop(q: Array, k: Array, v: Array) -> Array:
    """For each query, for each key: a score; a softmax; the weighted sum of the values."""
    out = np.zeros((len(q), v.shape[1]), v.dtype)
    for i in range(len(q)):
        scores = np.zeros(len(k), q.dtype)
        for j in range(len(k)):
            scores[j] = q[i] @ k[j] / math.sqrt(q.shape[1])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        for j in range(len(k)):
            out[i] += weights[j] * v[j]
    return out


def in_numpy(q: Array, k: Array, v: Array) -> Array:
    """The same with NumPy's matrix products."""
    scores = q @ k.T / math.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True) @ v)


def in_one_call(q: Array, k: Array, v: Array) -> Array:
    """By the kernel."""
    return np.asarray(fa.attention(q[None, None], k[None, None], v[None, None])[0, 0])


def best_time(run: Callable[[], Any], seconds: float) -> float:
    """Of calls for about so many seconds; at least one."""
    best, end = math.inf, perf_counter() + seconds
    while best == math.inf or perf_counter() < end:
        start = perf_counter()
        run()
        best = min(best, perf_counter() - start)
    return best


def measure(settings: Settings, tick: Tick) -> Part:
    """Same numbers; times."""
    rng = np.random.default_rng(settings.seed)
    rows, times = [], []
    for length in (16, 64, 256) if settings.quick else (16, 64, 256, 1024):
        tick(f"double loop over {length} tokens")
        q, k, v = (rng.standard_normal((length, WIDTH)).astype(np.float32) for _ in range(3))
        exact = double_loop(*(a.astype(np.float64) for a in (q, k, v)))
        forms = {"loop": double_loop, "numpy": in_numpy, "kernel": in_one_call}
        errors = {name: float(np.abs(form(q, k, v) - exact).max()) for name, form in forms.items()}
        taken = {name: best_time(partial(form, q, k, v), 0.2) for name, form in forms.items()}
        times.append(taken)
        rows.append([
            str(length),
            *(terminal.time_text(taken[name]) for name in forms),
            f"{taken['loop'] / taken['kernel']:,.0f}",
            f"{taken['numpy'] / taken['kernel']:.1f}",
            *(f"{errors[name]:.1e}" for name in forms),
        ])  # fmt: skip
    lengths = [int(row[0]) for row in rows]
    curves = {label: (lengths, [1e6 * t[name] for t in times])
              for name, label in (("loop", "double loop"), ("numpy", "NumPy"), ("kernel", "fastattn"))}  # fmt: skip
    last = times[-1]
    head = ["tokens", "double loop", "NumPy", "fastattn", "loop / ours", "NumPy / ours"]
    return Part(
        "Self-attention: the double loop and the kernel",
        "Queries, keys and values by parameter matrices, scores by inner products, a scaled softmax, a weighted sum of"
        " values: the text gives it as a double loop.",
        [
            f"One head of {WIDTH}, float32. All three give the same numbers up to rounding: the last columns have the"
            " largest errors against the double loop in float64.",
            f"At {lengths[-1]} tokens the kernel is {last['loop'] / last['kernel']:,.0f} times as fast as the loop, and"
            f" {last['numpy'] / last['kernel']:.1f} times as fast as NumPy's matrix products.",
        ],
        [plots.lines(curves, "tokens", "µs", log="xy")],
        [{"head": [*head, "error: loop", "error: NumPy", "error: fastattn"], "rows": rows}],
        {"tokens": lengths, "seconds": times},
    )

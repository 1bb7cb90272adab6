"""The claim on real text: recurrence is a chain of steps, attention is more work that runs in parallel.

Where do they cross, and what do threads bring to each?
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

import fastattn as fa
from benchmarks.kernels.machine import multiply_add_peak
from benchmarks.text.corpus import Batch, Corpus
from benchmarks.text.encoders import Encoder, check, encoders

Tick = Callable[[str], None]

# (batch size, most tokens of a passage): lengths grow until attention's square dominates.
FULL = tuple(
    (size, 2**power) for size, powers in ((1, range(4, 14)), (8, range(4, 12)), (32, range(4, 11))) for power in powers
)
QUICK = tuple((size, 2**power) for size, powers in ((1, (4, 6, 8, 10, 11)), (16, (4, 6, 8))) for power in powers)
SHORTEST = 5e-3  # seconds: a fast call is repeated for as long in each round
WARM_UP_LIMIT = 0.1  # seconds: a longer call is its own warm-up
VERIFIED = (4, 32)  # batch and length that the float64 reference is computed for


@dataclass
class Point:
    """One encoder on one batch with one number of threads."""

    encoder: str
    batch: int
    limit: int
    threads: int
    tokens: int
    longest: int
    flops: float
    peak: float = 0.0  # GFLOP/s, measured in the same rounds
    times: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The fastest call."""
        return min(self.times)


@dataclass(frozen=True)
class Claim:
    """Everything that was measured on the text."""

    points: list[Point]
    parameters: dict[str, int]
    layers: dict[str, int]
    width: int
    errors: dict[str, tuple[float, float]]  # largest error, allowed error
    text: dict[str, Any]

    @property
    def verified(self) -> bool:
        """Whether all encoders lie within the error rule."""
        return all(error <= allowed for error, allowed in self.errors.values())

    def series(self, encoder: str, batch: int, threads: int) -> list[Point]:
        """The points of one curve, by length."""
        return sorted(
            (p for p in self.points if (p.encoder, p.batch, p.threads) == (encoder, batch, threads)),
            key=lambda p: p.limit,
        )

    def crossing(self, recurrent: str, batch: int, threads: int) -> float | None:
        """The length from which attention takes longer than this recurrence; None when beyond those measured."""
        pairs = zip(self.series("attention", batch, threads), self.series(recurrent, batch, threads), strict=True)
        return crossing([(a.tokens / batch, a.seconds, r.seconds) for a, r in pairs])


def crossing(points: Sequence[tuple[float, float, float]]) -> float | None:
    """Where a exceeds b for good, from (length, a, b), by straight lines between points in logarithms.

    None when it does not at the last point, 0 when it does at all of them.
    """
    above = [a > b for _, a, b in points]
    if not above or not above[-1]:
        return None
    last = max((i for i, value in enumerate(above) if not value), default=-1)
    if last < 0:
        return 0.0
    (n0, a0, b0), (n1, a1, b1) = points[last : last + 2]
    low, high = math.log(a0 / b0), math.log(a1 / b1)
    return float(math.exp(np.interp(0.0, [low, high], [math.log(n0), math.log(n1)])))


def _time(run: Callable[[], Any]) -> list[float]:
    """Seconds of calls after a first that warms the caches; of the first alone when it is long."""
    times: list[float] = []
    end = perf_counter() + SHORTEST
    while len(times) < 2 or perf_counter() < end:
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
        if times[0] > WARM_UP_LIMIT:
            return times
    return times[1:]


def sizes(corpus: Corpus, quick: bool) -> list[tuple[int, int]]:
    """Those for which the text is long enough."""
    return [(size, limit) for size, limit in (QUICK if quick else FULL) if corpus.tokens >= limit]


def measure(corpus: Corpus, quick: bool, thread_counts: Sequence[int], rounds: int, tick: Tick) -> Claim:
    """Verifies all encoders, then times them in turn on every batch; `tick` is called once before each batch."""
    models = encoders()
    errors = {model.name: check(model, corpus.batch(*VERIFIED)) for model in models}
    points: list[Point] = []
    before = fa.get_num_threads()
    try:
        for size, limit in sizes(corpus, quick):
            tick(f"text: {size} passages of up to {limit} tokens")
            points += _measure_batch(models, corpus.batch(size, limit), thread_counts, rounds)
    finally:
        fa.set_num_threads(before)
    lengths = corpus.sentence_lengths
    text = {
        "tokens": corpus.tokens,
        "sentences": len(lengths),
        "vocabulary": corpus.vocabulary,
        "median_sentence": float(np.median(lengths)),
        "longest_sentence": int(lengths.max()),
    }
    return Claim(
        points,
        {m.name: m.parameters for m in models},
        {m.name: m.layers for m in models},
        models[0].width,
        errors,
        text,
    )


def _measure_batch(models: Sequence[Encoder], batch: Batch, thread_counts: Sequence[int], rounds: int) -> list[Point]:
    """One batch: in every round, each number of threads, then each encoder."""
    size, tokens, longest = len(batch.lengths), int(batch.lengths.sum()), int(batch.lengths.max())
    runs = {model.name: model.prepare(batch) for model in models}
    points = {
        (model.name, threads): Point(
            model.name, size, batch.limit, threads, tokens, longest, model.flops(batch.lengths)
        )
        for threads in thread_counts
        for model in models
    }
    for _ in range(rounds):
        for threads in thread_counts:
            fa.set_num_threads(threads)
            peak = multiply_add_peak("float32", threads, 0.005)
            for name, run in runs.items():
                point = points[name, threads]
                point.peak = max(point.peak, peak)
                point.times += _time(run)
    return list(points.values())

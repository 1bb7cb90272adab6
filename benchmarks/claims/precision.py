"""What low precision costs attention and recurrence."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastattn as fa
from benchmarks.claims import Part, Settings, Tick
from benchmarks.report import plots

Array = NDArray[Any]
HEADS, HEAD, HIDDEN, BATCH = 4, 64, 128, 8
GROWTH = 2.0  # an error that has become so many times as large has grown


def relative(got: Array, exact: Array) -> float:
    """Root mean square of the error, as part of that of the values."""
    return float(np.sqrt(np.mean((got.astype(np.float64) - exact) ** 2) / np.mean(exact**2)))


def attention_errors(length: int, rng: np.random.Generator) -> dict[str, float]:
    """Of causal self-attention, by what its arrays are kept in."""
    q, k, v = (rng.standard_normal((1, HEADS, length, HEAD)).astype(np.float32) for _ in range(3))
    exact = fa.attention(*(a.astype(np.float64) for a in (q, k, v)), causal=True)
    errors = {"float32": relative(fa.attention(q, k, v, causal=True), exact)}
    for name, kind in low_types():
        low = fa.attention(*(a.astype(kind) for a in (q, k, v)), causal=True)
        errors[name] = relative(low, exact)
    cache = fa.KVCache(1, HEADS, HEAD, dtype="int8")
    cache.append(k, v)
    errors["int8 keys and values"] = relative(cache.attend(q, causal=True), exact)
    return errors


def low_types() -> Iterator[tuple[str, Any]]:
    """The 16-bit types that NumPy knows here: bfloat16 comes with ml_dtypes."""
    yield "float16", np.float16
    try:
        import ml_dtypes  # noqa: PLC0415 (optional)
    except ImportError:
        return
    yield "bfloat16", ml_dtypes.bfloat16


def lstm_errors(steps: int, rng: np.random.Generator) -> dict[str, Array]:
    """Of each step of an LSTM, by what its weights are kept in; x, h and c are float32."""
    bound = 1 / np.sqrt(HIDDEN)
    shapes = {"weight_ih_l0": (4 * HIDDEN, HIDDEN), "weight_hh_l0": (4 * HIDDEN, HIDDEN)}
    weights = {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}
    x = rng.standard_normal((steps, BATCH, HIDDEN)).astype(np.float32)
    exact, _ = fa.lstm(x.astype(np.float64), None, {name: w.astype(np.float64) for name, w in weights.items()})
    errors = {}
    for kind in ("float32", "bfloat16", "int8"):
        y, _ = fa.lstm(x, None, fa.pack_lstm(weights, dtype=kind))
        errors[f"{kind} weights"] = np.array([relative(y[t], exact[t]) for t in range(steps)])
    return errors


def measure(settings: Settings, tick: Tick) -> Part:
    """Relative errors over the length."""
    rng = np.random.default_rng(settings.seed)
    lengths = [16, 64, 256, 1024] if settings.quick else [16, 64, 256, 1024, 4096]
    tick("attention in low precision")
    by_length = [attention_errors(length, rng) for length in lengths]
    curves = {name: (lengths, [errors[name] for errors in by_length]) for name in by_length[0]}
    tick("LSTM with narrow weights")
    steps = 200 if settings.quick else 1000
    of_lstm = lstm_errors(steps, rng)
    ends = {name: (float(errors[: steps // 10].mean()), float(errors[-steps // 10 :].mean()))
            for name, errors in of_lstm.items()}  # fmt: skip
    first, last = by_length[0], by_length[-1]
    return Part(
        "Low precision",
        "Attention has no sigmoid and tanh that need exact arithmetic, so it also runs on hardware of low precision.",
        [
            f"Attention at {lengths[-1]} tokens, relative error against float64 (times that at {lengths[0]} tokens): "
            + ", ".join(f"{name} {value:.1e} (× {value / first[name]:.1f})" for name, value in last.items())
            + ". Scores and sums are float32 whatever the arrays are kept in.",
            f"An LSTM with narrow weights over {steps} steps, mean error of the last tenth (times that of the first): "
            + ", ".join(f"{name} {end:.1e} (× {end / begin:.1f})" for name, (begin, end) in ends.items())
            + ". Sums, gates and state are float32.",
            _verdict(
                max(last[name] / first[name] for name in last if name != "float32"),
                max(end / begin for name, (begin, end) in ends.items() if name != "float32 weights"),
            ),
        ],
        [
            plots.lines(curves, "tokens", "relative error of attention", log="xy"),
            plots.lines({name: (range(1, steps + 1), errors) for name, errors in of_lstm.items()}, "step",
                        "relative error of an LSTM", log="y"),
        ],
        data={"attention": {"tokens": lengths, "errors": by_length},
              "lstm": {name: errors.tolist() for name, errors in of_lstm.items()}},
    )  # fmt: skip


def _verdict(of_attention: float, of_lstm: float) -> str:
    """Whether the errors of low precision grow with the length."""
    grows = [name for name, ratio in (("attention", of_attention), ("the LSTM", of_lstm)) if ratio > GROWTH]
    if not grows:
        return "With float32 sums both run in low precision: their errors do not grow with the length."
    return f"The errors of {' and of '.join(grows)} in low precision grow with the length."

"""How far back a gradient reaches: recurrent cells against attention."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastattn as fa
from benchmarks.claims import Part, Settings, Tick
from benchmarks.report import plots

Array = NDArray[Any]

WIDTH = 64
BATCH = 16
SMALLEST = 1e-12  # of what is drawn
FORGET_BIAS = 1.0  # as trained LSTMs begin (Jozefowicz et al. 2015)
NAMES = {
    "rnn": "RNN",
    "gru": "GRU",
    "lstm": "LSTM",
    "lstm open": f"LSTM, forget bias {FORGET_BIAS:g}",
    "peephole": "peephole LSTM",
    "attention": "self-attention",
}


def weights(gates: int, rng: np.random.Generator) -> dict[str, Array]:
    """As torch begins: uniform in ±1/sqrt(H)."""
    shapes = {"weight_ih_l0": (gates * WIDTH, WIDTH), "weight_hh_l0": (gates * WIDTH, WIDTH)}
    shapes |= {"bias_ih_l0": (gates * WIDTH,), "bias_hh_l0": (gates * WIDTH,)}  # type: ignore[dict-item]
    bound = 1 / np.sqrt(WIDTH)
    return {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}


def norms_by_distance(dx: Array) -> Array:
    """Mean over the batch of the norm of dx[t, b], nearest first, as parts of the nearest."""
    norms = np.linalg.norm(dx, axis=-1).mean(axis=1)[::-1]
    parts: Array = norms / norms[0]
    return parts


def recurrent(name: str, x: Array, dh: Array, rng: np.random.Generator) -> Array:
    """Gradient with respect to x of the last state, in the direction dh."""
    if name == "rnn":
        _, saved = fa.rnn_forward(x, None, weights(1, rng))
        return fa.rnn_backward((None, dh[None]), saved)[0]
    if name == "gru":
        _, saved = fa.gru_forward(x, None, weights(3, rng))
        return fa.gru_backward((None, dh[None]), saved)[0]
    own = weights(4, rng)
    if name == "lstm open":
        own["bias_ih_l0"][WIDTH : 2 * WIDTH] += FORGET_BIAS
    if name == "peephole":
        own["weight_peephole_l0"] = rng.uniform(-1, 1, (3, WIDTH)) / np.sqrt(WIDTH)
    _, saved = fa.lstm_forward(x, None, own)
    return fa.lstm_backward((None, (dh[None], None)), saved)[0]


def attention(x: Array, dh: Array, rng: np.random.Generator) -> Array:
    """The same of the last row of causal self-attention: its query is the last input."""
    rows = x.swapaxes(0, 1)  # [B, T, E]
    projections = [rng.uniform(-1, 1, (WIDTH, WIDTH)) * np.sqrt(3 / WIDTH) for _ in range(3)]
    heads, saved = zip(*(fa.linear_forward(rows, w) for w in projections), strict=True)
    _, of_attention = fa.attention_forward(*(head[:, None] for head in heads), causal=True)
    dout = np.zeros_like(rows)
    dout[:, -1] = dh
    gradients = fa.attention_backward(dout[:, None], of_attention)[:3]
    dx = sum(fa.linear_backward(g[:, 0], s)[0] for g, s in zip(gradients, saved, strict=True))
    return np.asarray(dx).swapaxes(0, 1)


def measure(settings: Settings, tick: Tick) -> Part:
    """Norm of the gradient over the distance."""
    longest = 100 if settings.quick else 400
    curves = {}
    for name, label in NAMES.items():
        tick(f"gradients through {label}")
        curves[name] = np.mean(list(_draws(name, longest, settings)), axis=0)
    reach = {name: _reach(curve) for name, curve in curves.items()}
    findings = [
        "Norm of the gradient of the last state (of attention: of the last row) with respect to an input k steps"
        " before, as part of that of the last input, before any training.",
        *(
            f"{NAMES[name]}: below a thousandth from {reach[name]} steps on."
            if reach[name] is not None
            else f"{NAMES[name]}: {curves[name][-1]:.2g} at {longest - 1} steps, never below a thousandth."
            for name in NAMES
        ),
    ]
    figure = plots.lines(
        {NAMES[name]: (range(longest), np.where(curve > SMALLEST, curve, np.nan)) for name, curve in curves.items()},
        "steps back",
        "gradient, part of the nearest",
        log="y",
    )
    return Part(
        "Gradients vanish through time, and attention reaches any distance",
        "Back-propagation through time makes the gradient of far inputs vanish; the cell state of an LSTM, the GRU and"
        " peepholes keep it longer.",
        findings,
        [figure],
        data={name: curve.tolist() for name, curve in curves.items()},
    )


def _draws(name: str, longest: int, settings: Settings) -> Iterator[Array]:
    for draw in range(1 if settings.quick else 4):
        rng = np.random.default_rng([settings.seed, draw])
        x, dh = rng.standard_normal((longest, BATCH, WIDTH)), rng.standard_normal((BATCH, WIDTH))
        run: Callable[..., Array] = attention if name == "attention" else recurrent
        arguments = (x, dh, rng) if name == "attention" else (name, x, dh, rng)
        yield norms_by_distance(run(*arguments))


def _reach(curve: Array) -> int | None:
    """Steps from which the gradient stays below a thousandth."""
    above = np.flatnonzero(curve >= 1e-3)
    return None if above[-1] == len(curve) - 1 else int(above[-1]) + 1

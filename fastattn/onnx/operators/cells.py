"""Recurrent cells step by step, in NumPy: for activations of ONNX that fastattn has not."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastattn.onnx.graph import Array

Function = Callable[[Array], Array]


def _sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


# name: (function of x, alpha, beta; defaults of these, as many as it has)
ACTIVATIONS: dict[str, tuple[Callable[[Array, Any, Any], Array], tuple[float, ...]]] = {
    "relu": (lambda x, a, b: np.maximum(x, 0), ()),
    "tanh": (lambda x, a, b: np.tanh(x), ()),
    "sigmoid": (lambda x, a, b: _sigmoid(x), ()),
    "softsign": (lambda x, a, b: x / (1 + np.abs(x)), ()),
    "softplus": (lambda x, a, b: np.logaddexp(0, x), ()),
    "leakyrelu": (lambda x, a, b: np.where(x < 0, a * x, x), (0.01,)),
    "thresholdedrelu": (lambda x, a, b: np.where(x > a, x, 0), (1.0,)),
    "elu": (lambda x, a, b: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x), (1.0,)),
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), (1.0, 1.0)),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), (0.2, 0.5)),
}


def _functions(kind: str, names: list[str], alphas: list[float], betas: list[float], clip: float) -> list[Function]:
    """The activations, their inputs clipped; alphas and betas are taken from the fronts of the lists."""
    made: list[Function] = []
    for name in names:
        if name.lower() not in ACTIVATIONS:
            raise ValueError(f"{kind}: activations must be of {', '.join(ACTIVATIONS)}, got {name!r}")
        function, defaults = ACTIVATIONS[name.lower()]
        alpha = (alphas.pop(0) if alphas else defaults[0]) if defaults else 0.0
        beta = (betas.pop(0) if betas else defaults[1]) if len(defaults) > 1 else 0.0
        # The last of an LSTM is of the cell, which is no gate: onnxruntime does not clip it.
        made.append(_clipped(function, alpha, beta, 0.0 if len(made) == 2 else clip))
    return made


def _clipped(function: Callable[[Array, Any, Any], Array], alpha: float, beta: float, clip: float) -> Function:
    if not clip:
        return lambda x: function(x, alpha, beta)
    return lambda x: function(np.clip(x, -clip, clip), alpha, beta)


def run_direction(form: Any, names: list[str], alphas: list[float], betas: list[float], back: bool, w: Array, r: Array,
                  bias: Array | None, peephole: Array | None, h: Array | None, c: Array | None, x: Array,
                  lengths: Array | None) -> tuple[Array, Array, Array]:  # fmt: skip
    """y[T, B, H] and the last states h, c[B, H] of one direction. Equations and names as in ONNX's operators."""
    steps, batch = x.shape[:2]
    hidden, dtype = r.shape[1], x.dtype
    functions = _functions(form.kind, names, alphas, betas, form.clip)
    wb, rb = np.split(np.zeros(2 * len(w), dtype) if bias is None else bias, 2)
    p = np.zeros((3, hidden), dtype) if peephole is None else peephole.reshape(3, hidden)
    h = np.zeros((batch, hidden), dtype) if h is None else h
    c = np.zeros((batch, hidden), dtype) if c is None else c
    cell = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[form.kind]
    ends = np.full(batch, steps) if lengths is None else lengths
    rows, y = np.arange(batch), np.zeros((steps, batch, hidden), dtype)
    for t in range(steps):
        live = t < ends
        place = np.where(live, ends - 1 - t, t) if back else np.full(batch, t)
        h_next, c_next = cell(form, functions, x[place, rows] @ w.T + wb, r, rb, p, h, c)
        h, c = np.where(live[:, None], h_next, h), np.where(live[:, None], c_next, c)
        y[place[live], rows[live]] = h_next[live]
    return y, h.astype(dtype, copy=False), c.astype(dtype, copy=False)


def _rnn(form: Any, f: list[Function], gate: Array, r: Array, rb: Array, p: Array, h: Array, c: Array) -> Any:
    return f[0](gate + h @ r.T + rb), c


def _gru(form: Any, f: list[Function], gate: Array, r: Array, rb: Array, p: Array, h: Array, c: Array) -> Any:
    (xz, xr, xh), (rz, rr, rh), (bz, br, bh) = np.split(gate, 3, -1), np.split(r, 3), np.split(rb, 3)
    z, reset = f[0](xz + h @ rz.T + bz), f[0](xr + h @ rr.T + br)
    inner = reset * (h @ rh.T + bh) if form.linear_before_reset else (reset * h) @ rh.T + bh
    return (1 - z) * f[1](xh + inner) + z * h, c


def _lstm(form: Any, f: list[Function], gate: Array, r: Array, rb: Array, p: Array, h: Array, c: Array) -> Any:
    i, o, forget, g = np.split(gate + h @ r.T + rb, 4, -1)
    i = f[0](i + p[0] * c)
    forget = 1 - i if form.coupled else f[0](forget + p[2] * c)
    c = forget * c + i * f[1](g)
    return f[0](o + p[1] * c) * f[2](c), c

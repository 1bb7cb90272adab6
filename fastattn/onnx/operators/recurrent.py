"""LSTM, GRU and RNN."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import fastattn as fa
from fastattn import _core
from fastattn.onnx.graph import Array, Call, Node
from fastattn.onnx.operators.cells import run_direction

DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
# Rows of gates in ONNX's order (i, o, f, c; z, r, h) for PyTorch's (i, f, g, o; r, z, n).
GATES = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}
COUPLED_GATES = [0, 3, 1]  # i, g, o
NONLINEARITIES = ("tanh", "relu", "sigmoid")


class Form(NamedTuple):
    """What a node says of its network."""

    kind: str
    activations: list[str]  # of each direction in turn
    alphas: list[float]
    betas: list[float]
    clip: float
    direction: str
    coupled: bool
    linear_before_reset: bool

    def is_known(self) -> bool:
        """Whether fastattn has it; the rest is NumPy's, step by step."""
        names = [name.lower() for name in self.activations]
        if self.kind == "RNN":
            return len(set(names)) == 1 and names[0] in NONLINEARITIES
        return names == [name.lower() for name in DEFAULTS[self.kind]] * (len(names) // len(DEFAULTS[self.kind]))


def read_form(node: Node, kind: str) -> Form:
    direction = str(node.get("direction", "forward"))
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ValueError(f"{kind}: direction must be forward, reverse or bidirectional, got {direction!r}")
    count = len(DEFAULTS[kind]) * (1 + (direction == "bidirectional"))
    activations = node.get("activations") or DEFAULTS[kind] * (1 + (direction == "bidirectional"))
    if len(activations) != count:
        raise ValueError(f"{kind}: activations must be {count} names, got {activations}")
    clip = float(node.get("clip", 0.0))
    if not clip >= 0:
        raise ValueError(f"{kind}: clip must be at least 0, got {clip}")
    return Form(
        kind, list(activations), node.get("activation_alpha") or [], node.get("activation_beta") or [],
        clip, direction, bool(node.get("input_forget", 0)),
        bool(node.get("linear_before_reset", 0)),
    )  # fmt: skip


def packed_weights(form: Form, w: Array, r: Array, b: Array | None, p: Array | None) -> Any:
    """ONNX's [D, gates * H, ...] for fastattn."""
    hidden = r.shape[2]
    order = COUPLED_GATES if form.kind == "LSTM" and form.coupled else GATES[form.kind]

    def gates(matrix: Array) -> Array:
        parts = matrix.reshape(len(GATES[form.kind]), hidden, *matrix.shape[1:])[order]
        return parts.reshape(len(order) * hidden, *matrix.shape[1:])

    weights = {}
    for d, side in zip(range(len(w)), ("", "_reverse"), strict=False):
        weights["weight_ih_l0" + side], weights["weight_hh_l0" + side] = gates(w[d]), gates(r[d])
        if b is not None:
            weights["bias_ih_l0" + side], weights["bias_hh_l0" + side] = map(gates, np.split(b[d], 2))
        if p is not None:
            rows = p[d].reshape(3, hidden)  # i, o, f
            weights["weight_peephole_l0" + side] = np.ascontiguousarray(rows[[0, 1] if form.coupled else [0, 2, 1]])
    if form.kind == "LSTM":
        return fa.pack_lstm(weights, coupled=form.coupled)
    if form.kind == "GRU":
        return fa.pack_gru(weights, linear_before_reset=form.linear_before_reset)
    return fa.pack_rnn(weights)


def run_packed(form: Form, weights: Any, x: Array, lengths: Array | None, h0: Array | None, c0: Array | None) -> Any:
    """y[T, D, B, H], h[D, B, H], c[D, B, H] (None but for an LSTM)."""
    steps, batch = x.shape[:2]
    directions, hidden = weights.directions, weights.hidden_size
    if steps == 1 and directions == 1 and lengths is None and not form.clip:
        found = run_step(form, weights, x, h0, c0)
        if found is not None:
            return found
    options: dict[str, Any] = {
        "lengths": lengths, "reverse": form.direction == "reverse", "gate_clip": form.clip or None,
    }  # fmt: skip
    c = None
    if form.kind == "LSTM":
        state = None
        if h0 is not None or c0 is not None:
            zeros = np.zeros((directions, batch, hidden), x.dtype)
            state = (zeros if h0 is None else h0, zeros if c0 is None else c0)
        y, (h, c) = fa.lstm(x, state, weights, coupled=form.coupled, **options)
    elif form.kind == "GRU":
        y, h = fa.gru(x, h0, weights, linear_before_reset=form.linear_before_reset, **options)
    else:
        y, h = fa.rnn(x, h0, weights, nonlinearity=form.activations[0].lower(), **options)
    return y.reshape(steps, batch, directions, hidden).swapaxes(1, 2), h, c


def run_step(form: Form, weights: Any, x: Array, h0: Array | None, c0: Array | None) -> Any:
    """run_packed of one step, in half its time; None where the weights are packed for another instruction set."""
    shape = (1, x.shape[1], weights.hidden_size)
    is_lstm = form.kind == "LSTM"
    h, c = np.empty(shape, x.dtype), np.empty(shape, x.dtype) if is_lstm else None
    h0 = np.zeros(shape, x.dtype) if h0 is None else h0
    c0 = np.zeros(shape, x.dtype) if c0 is None and is_lstm else c0
    nonlinearity = form.activations[0].lower() if form.kind == "RNN" else "tanh"
    done = _core.recurrent_step(form.kind, weights, nonlinearity, 0.0, x[0], h0, c0, h, c)
    return (h[None], h, c) if done else None


def run_plain(form: Form, w: Array, r: Array, b: Array | None, p: Array | None, x: Array, lengths: Array | None,
              h0: Array | None, c0: Array | None) -> Any:  # fmt: skip
    """run_packed in NumPy, for activations that fastattn has not."""
    count, parts = len(DEFAULTS[form.kind]), []
    alphas, betas = list(form.alphas), list(form.betas)  # each activation that has one takes the next
    for d in range(len(w)):
        bias, peephole, h, c = (None if s is None else s[d] for s in (b, p, h0, c0))
        names = form.activations[d * count : (d + 1) * count]
        parts.append(run_direction(form, names, alphas, betas, d == 1 or form.direction == "reverse", w[d], r[d],
                                   bias, peephole, h, c, x, lengths))  # fmt: skip
    ys, hs, cs = zip(*parts, strict=True)
    return np.stack(ys, 1), np.stack(hs), np.stack(cs) if form.kind == "LSTM" else None


def make_recurrent(node: Node, kind: str) -> Call:
    form, batch_first = read_form(node, kind), bool(node.get("layout", 0))
    given = [node.constant(i) for i in (1, 2, 3, 7)]
    fixed = all(value is not None for value, i in zip(given, (1, 2, 3, 7), strict=True) if node.has(i))
    fast = form.is_known()
    packed = packed_weights(form, *given) if fast and fixed else None
    if packed is not None:
        node.release(1, 2, 3, 7)
    wanted = [bool(name) for name in node.outputs]

    def call(x: Array, w: Any, r: Any, b: Array | None = None, lengths: Array | None = None,
             h0: Array | None = None, c0: Array | None = None, p: Array | None = None) -> Any:  # fmt: skip
        if batch_first:
            x = x.swapaxes(0, 1)
            h0, c0 = (None if state is None else state.swapaxes(0, 1) for state in (h0, c0))
        if lengths is not None:
            lengths = _core.checked_lengths(lengths, x.shape[1], x.shape[0], kind, "sequence_lens")
        if fast:
            weights = packed_weights(form, w, r, b, p) if packed is None else packed
            y, h, c = run_packed(form, weights, x, lengths, h0, c0)
        else:
            y, h, c = run_plain(form, w, r, b, p, x, lengths, h0, c0)
        return outputs(y, h, c, batch_first, wanted)

    return call


def outputs(y: Array, h: Array, c: Array | None, batch_first: bool, wanted: Sequence[bool]) -> Any:
    if batch_first:
        y, h, c = y.transpose(2, 0, 1, 3), h.swapaxes(0, 1), None if c is None else c.swapaxes(0, 1)
    return y if len(wanted) == 1 else (y, h, c)[: len(wanted)]


MAKERS = {("", kind): lambda node, kind=kind: make_recurrent(node, kind) for kind in DEFAULTS}

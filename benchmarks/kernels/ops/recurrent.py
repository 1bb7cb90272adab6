"""Recurrent networks: cells, sequences, gradients, stacks of layers in both directions."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.kernels.case import Array, Case, Inputs, Op, as_bfloat16, converted, exact, normal, of_rows, spread
from benchmarks.text.corpus import sentence_lengths
from fastattn import reference

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
GRADIENTS = {f"{name}_gradients": name for name in GATES}  # forward and backward, with all gradients
STACK = "lstm_stack"  # L layers in both directions
MOST_INT8 = 127
BATCH = {"x": 1, "dy": 1, "lengths": 0}  # the axis of each input that is the batch


def stack_suffixes(layers: int) -> list[str]:
    """What torch appends to the names of the weights of each layer and direction."""
    return [f"_l{layer}{side}" for layer in range(layers) for side in ("", "_reverse")]


def as_weight(w: Array, packed: str) -> Array:
    """w that stays the same when it is packed as "bfloat16", "int8" or "" (as it is).

    int8 has a scale for each row, its largest number / 127: every row gets 127 times the same power of two.
    """
    if packed == "bfloat16":
        return as_bfloat16(w)
    if packed != "int8" or w.ndim == 1:
        return w
    unit = np.exp2(np.round(np.log2(np.abs(w).max() / MOST_INT8)))
    w = np.rint(w / unit).clip(-MOST_INT8, MOST_INT8)
    w[:, 0] = MOST_INT8
    return np.asarray(w * unit, np.float32)


def inputs_of(case: Case, rng: np.random.Generator) -> Inputs:
    """x[T, B, I] (cells: [B, I]), the state, and weights drawn as PyTorch does: uniform in ±1/sqrt(H)."""
    s = case.sizes
    op = case.op.removesuffix("_cell").removesuffix("_gradients")
    rows, bound = GATES[op] * s["H"], 1 / math.sqrt(s["H"])
    shapes = {"weight_ih": (rows, s["I"]), "weight_hh": (rows, s["H"]), "bias_ih": (rows,), "bias_hh": (rows,)}
    inputs = {
        name: exact(case, as_weight(np.float32(bound) * (2 * rng.random(shape, np.float32) - 1), case.weights))
        for name, shape in shapes.items()
    }
    inputs["x"] = normal(case, rng, *((s["T"],) if "T" in s else ()), s["B"], s["I"])
    if case.ragged:
        inputs["lengths"] = sentence_lengths(s["B"])
    if case.op in GRADIENTS:
        inputs["dy"] = normal(case, rng, s["T"], s["B"], s["H"])
    if "T" not in s:
        inputs["h"] = np.tanh(normal(case, rng, s["B"], s["H"]))
        if op == "lstm":
            inputs["c"] = normal(case, rng, s["B"], s["H"])
    return inputs


def inputs_of_stack(case: Case, rng: np.random.Generator) -> Inputs:
    """x[T, B, I], and weights by torch's names."""
    s = case.sizes
    inputs = {"x": normal(case, rng, s["T"], s["B"], s["I"])}
    for suffix in stack_suffixes(s["L"]):
        columns = s["I"] if suffix.startswith("_l0") else 2 * s["H"]
        lane = inputs_of(replace(case, op="lstm", sizes={"B": 1, "I": columns, "H": s["H"]}), rng)
        inputs |= {name + suffix: lane[name] for name in WEIGHTS}
    return inputs


def cell(op: str, weights: Inputs, suffix: str = "", backward: bool = False) -> Callable[..., Any]:
    """A step of a cell with its weights, or its gradients."""
    function = getattr(reference, f"{op}_cell_backward" if backward else f"{op}_cell")
    own = [weights[name + suffix] for name in WEIGHTS if name + suffix in weights]
    return lambda *arguments: function(*arguments, *own, dtype=own[0].dtype)


def zeros(op: str, x: Array, weights: Inputs, suffix: str = "") -> tuple[Array, ...]:
    """The state before the first step."""
    shape = x.shape[1], weights[f"weight_hh{suffix}"].shape[1]
    return tuple(np.zeros_like(x, shape=shape) for _ in range(2 if op == "lstm" else 1))


def _sequence(op: str, a: Inputs, lengths: Array | None) -> Array:
    """y[T, B, H], or dx[T, B, I] after all steps forward and back, from a state of zeros."""
    name = GRADIENTS.get(op, op)
    x, state = a["x"], zeros(name, a["x"], a)
    if op in GATES:
        return np.asanyarray(reference.sequence(cell(name, a), x, state, lengths, dtype=x.dtype)[0])
    pair = cell(name, a), cell(name, a, backward=True)
    return np.asanyarray(reference.sequence_backward(*pair, a["dy"], state, x, state, lengths, dtype=x.dtype)[0])


def _stack(a: Inputs, layers: int) -> Array:
    """y[T, B, 2 H] of the last of several LSTM layers in both directions; weights by torch's names."""
    x = a["x"]
    for pair in zip(*[iter(stack_suffixes(layers))] * 2, strict=True):
        sides = [
            reference.sequence(
                cell("lstm", a, suffix), x, zeros("lstm", x, a, suffix), reverse="reverse" in suffix, dtype=x.dtype
            )[0]
            for suffix in pair
        ]
        x = np.concatenate(sides, -1)
    return x


def sample(case: Case, result: Array) -> Array:
    return result[:, spread(case.sizes["B"], 2)]


def expected(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    rows = spread(case.sizes["B"], 2)
    part = {name: a.take(rows, BATCH[name]) if name in BATCH else a for name, a in inputs.items()}
    return OPS[case.op].result(case, part, dtype)


def result(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    return _sequence(case.op, converted(inputs, dtype), inputs["lengths"] if case.ragged else None)


def result_of_stack(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    return _stack(converted(inputs, dtype), case.sizes["L"])


def result_of_cell(case: Case, inputs: Inputs, dtype: DTypeLike) -> Array:
    """The new h."""
    a = converted(inputs, dtype)
    after = cell(case.op.removesuffix("_cell"), a)(a["x"], *(a[name] for name in "hc" if name in a))
    return np.asanyarray(after[0] if isinstance(after, tuple) else after)


def flops(case: Case) -> float:
    s, op = case.sizes, case.op.removesuffix("_cell")
    tokens = int(sentence_lengths(s["B"]).sum()) if case.ragged else s.get("T", 1) * s["B"]
    return 2.0 * tokens * GATES[op] * s["H"] * (s["I"] + s["H"])


def flops_of_gradients(case: Case) -> float:
    """Forward, and twice as much backward."""
    return 3 * flops(replace(case, op=GRADIENTS[case.op]))


def flops_of_stack(case: Case) -> float:
    s = case.sizes
    columns = (s["I"] + s["H"]) + (s["L"] - 1) * 3 * s["H"]
    return 2 * 2.0 * s["T"] * s["B"] * GATES["lstm"] * s["H"] * columns


OPS = {
    **{name: Op(inputs_of, sample, expected, result, flops) for name in GATES},
    **{name: Op(inputs_of, sample, expected, result, flops_of_gradients) for name in GRADIENTS},
    **{f"{name}_cell": Op(inputs_of, *of_rows(result_of_cell, "x", "h", "c"), result_of_cell, flops) for name in GATES},
    STACK: Op(inputs_of_stack, sample, expected, result_of_stack, flops_of_stack),
}

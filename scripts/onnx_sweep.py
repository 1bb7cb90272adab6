#!/usr/bin/env python3
"""Recurrent nodes drawn at random: fastattn.onnx against onnxruntime.

    python scripts/onnx_sweep.py [--cases 600] [--seed 0]

Prints the largest difference and the cases that exceed the bound; exits with 1 if there are any. onnxruntime refuses
batch-first layouts: its result is that of the same case with time first, with the axes changed.
"""

import argparse
import sys
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

import fastattn.onnx

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
COUNTS = {"LSTM": 3, "GRU": 2, "RNN": 1}  # activations of one direction
FUNCTIONS = ["Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu",
             "Softsign", "Softplus"]  # fmt: skip
WITH_ALPHA = {"Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu"}
WITH_BETA = {"Affine", "ScaledTanh", "HardSigmoid"}
NO_DEFAULT = {"Affine", "ScaledTanh", "ThresholdedRelu"}  # onnxruntime takes 0, ONNX has 1 or says nothing
BOUND = 1e-6  # of a difference, relative to the larger of 1 and the value


class Case(NamedTuple):
    kind: str
    attributes: dict[str, Any]
    arrays: dict[str, Any]  # by name, in the order of the operator's inputs; None: left out
    known: bool  # whether weights are initializers


def draw(seed: int) -> Case:
    """One case, a function of its number."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(["LSTM", "GRU", "RNN"]))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    d, gates = 1 + (direction == "bidirectional"), GATES[kind]
    steps, batch = int(rng.integers(1, 9)), int(rng.integers(1, 6))
    inputs, hidden = int(rng.integers(1, 20)), int(rng.integers(1, 24))
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if rng.random() < 0.4:
        attributes["clip"] = float(rng.choice([0.05, 0.3, 1.0, 5.0]))
    if rng.random() < 0.4:
        names = [str(name) for name in rng.choice(FUNCTIONS, COUNTS[kind] * d)]
        attributes["activations"] = names
        if rng.random() < 0.6 or NO_DEFAULT.intersection(names):
            for name, having in (("activation_alpha", WITH_ALPHA), ("activation_beta", WITH_BETA)):
                values = [float(rng.uniform(0.1, 0.9)) for n in names if n in having]
                attributes |= {name: values} if values else {}
    if kind == "GRU":
        attributes["linear_before_reset"] = int(rng.integers(2))
    if kind == "LSTM":
        attributes["input_forget"] = int(rng.random() < 0.3)
    attributes["layout"] = int(rng.random() < 0.25)

    def normal(*shape: int) -> Any:
        # Small enough that no recurrence grows, which would let any rounding grow with it.
        return (0.4 * rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    state = (d, batch, hidden)
    arrays = {
        "X": rng.standard_normal((steps, batch, inputs)).astype(np.float32),
        "W": normal(d, gates * hidden, inputs),
        "R": normal(d, gates * hidden, hidden),
        "B": normal(d, 2 * gates * hidden) if rng.random() < 0.6 else None,
        "sequence_lens": rng.integers(1, steps + 1, batch).astype(np.int32) if rng.random() < 0.5 else None,
        "initial_h": rng.standard_normal(state).astype(np.float32) if rng.random() < 0.5 else None,
    }
    if kind == "LSTM":
        arrays["initial_c"] = rng.standard_normal(state).astype(np.float32) if rng.random() < 0.5 else None
        arrays["P"] = normal(d, 3 * hidden) if rng.random() < 0.4 else None
    return Case(kind, attributes, arrays, bool(rng.random() < 0.5))


def model_of(case: Case) -> Any:
    """A model of one node."""
    names = [name if value is not None else "" for name, value in case.arrays.items()]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if case.kind == "LSTM" else 2]
    node = helper.make_node(case.kind, names, outputs, **case.attributes)
    weights = {n: v for n, v in case.arrays.items() if v is not None and case.known and n in ("W", "R", "B", "P")}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in case.arrays.items()
        if value is not None and name not in weights
    ]
    graph = helper.make_graph(
        [node], "recurrent", inputs,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * (4 if n == "Y" else 3)) for n in outputs],
        [helper.make_tensor(n, TensorProto.FLOAT, v.shape, v.tobytes(), raw=True) for n, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def batch_first(case: Case) -> Case:
    arrays = {
        name: value.swapaxes(0, 1) if value is not None and name in ("X", "initial_h", "initial_c") else value
        for name, value in case.arrays.items()
    }
    return case._replace(arrays=arrays)


def difference(case: Case) -> float:
    """The largest of all outputs, relative to the larger of 1 and the value."""
    layout = case.attributes["layout"]
    plain = case._replace(attributes={**case.attributes, "layout": 0})
    theirs = onnxruntime.InferenceSession(model_of(plain).SerializeToString(), providers=["CPUExecutionProvider"])
    expected = theirs.run(None, _feeds(plain))
    if layout:
        expected = [expected[0].transpose(2, 0, 1, 3), *(state.swapaxes(0, 1) for state in expected[1:])]
        case = batch_first(case)
    found = fastattn.onnx.load(model_of(case)).run(None, _feeds(case))
    worst = 0.0
    for ours, other in zip(found, expected, strict=True):
        if ours.shape != other.shape:
            return float("inf")
        worst = max(worst, float(np.max(np.abs(ours - other) / np.maximum(1, np.abs(other)), initial=0)))
    return worst


def _feeds(case: Case) -> dict[str, Any]:
    weights = ("W", "R", "B", "P") if case.known else ()
    return {n: np.ascontiguousarray(v) for n, v in case.arrays.items() if v is not None and n not in weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    worst, wrong, kinds = 0.0, 0, Counter[str]()
    for seed in range(options.seed, options.seed + options.cases):
        case = draw(seed)
        found = difference(case)
        worst, kinds[case.kind] = max(worst, found), kinds[case.kind] + 1
        if not found <= BOUND:
            wrong += 1
            print(f"case {seed}: {found:.2e} {case.kind} {case.attributes}")
    print(
        f"{options.cases} cases ({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}): {wrong} over {BOUND}"
    )
    print(f"largest difference {worst:.2e}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()

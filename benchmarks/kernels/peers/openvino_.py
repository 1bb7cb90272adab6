"""OpenVINO's CPU plugin: a model of one node for each case, compiled once, inputs shared with NumPy."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.kernels.case import Array, Case, Inputs
from benchmarks.kernels.ops.recurrent import GATES, STACK, WEIGHTS, stack_suffixes
from benchmarks.kernels.peers import Prepared, plain_forward

# PyTorch's gate blocks (LSTM i, f, g, o; GRU r, z, n) in OpenVINO's order (f, i, c, o; z, r, h).
_GATE_ORDER = {"lstm": (1, 0, 2, 3), "gru": (1, 0, 2), "rnn": (0,)}


def available() -> bool:
    """Whether openvino is installed."""
    return find_spec("openvino") is not None


def version() -> str:
    """Its version, without the build number."""
    openvino = import_module("openvino")

    return str(openvino.__version__).partition("-")[0]


def supports(case: Case) -> bool:
    """float32, since its CPU plugin computes float64 models in float32; no gradients, masks, ragged batches."""
    return plain_forward(case)


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Weights are constants of the model."""
    ops = import_module("openvino.opset13")

    if case.op == "attention":
        parameters = {name: _parameter(inputs[name], name) for name in "qkv"}
        node = ops.scaled_dot_product_attention(*parameters.values(), causal=case.causal)
        return _compile(threads, node, parameters, {name: inputs[name] for name in "qkv"}, inputs["q"].shape)
    x = inputs["x"]
    if case.op in ("softmax", "linear"):
        parameter = _parameter(x, "x")
        if case.op == "softmax":
            return _compile(threads, ops.softmax(parameter, -1), {"x": parameter}, {"x": x}, x.shape)
        product = ops.matmul(parameter, _constant(inputs["weight"]), False, True)
        return _compile(
            threads,
            ops.add(product, _constant(inputs["bias"])),
            {"x": parameter},
            {"x": x},
            (case.sizes["M"], case.sizes["N"]),
        )
    return _stack(case, inputs, threads) if case.op == STACK else _recurrent(case, inputs, threads)


def _reordered(op: str, inputs: Inputs, name: str) -> Array:
    """A weight with its gates in OpenVINO's order."""
    return np.concatenate([np.split(inputs[name], GATES[op])[i] for i in _GATE_ORDER[op]])


def _stack(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """An LSTMSequence for each layer, and between two the directions of each step side by side."""
    ops = import_module("openvino.opset13")

    s = case.sizes
    B, T, H = s["B"], s["T"], s["H"]
    x = np.ascontiguousarray(inputs["x"].swapaxes(0, 1))
    parameter = before = _parameter(x, "x")
    state, lengths = _constant(np.zeros((B, 2, H), x.dtype)), _constant(np.full(B, T, np.int32))
    for layer in range(s["L"]):
        sides = stack_suffixes(s["L"])[2 * layer : 2 * layer + 2]
        w, r, b_x, b_h = (np.stack([_reordered("lstm", inputs, name + side) for side in sides]) for name in WEIGHTS)
        weights = map(_constant, (w, r, b_x + b_h))
        node = ops.lstm_sequence(before, state, state, lengths, *weights, H, "bidirectional")
        before = ops.reshape(ops.transpose(node.output(0), np.array([0, 2, 1, 3])), np.array([B, T, 2 * H]), False)
    prepared = _compile(threads, before, {"x": parameter}, {"x": x}, (B, T, 2 * H))
    return Prepared(prepared.run, lambda result: prepared.array(result).swapaxes(0, 1))


def _recurrent(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """LSTMSequence, GRUSequence or RNNSequence on x[B, T, I]; a cell has its own operator."""
    ops = import_module("openvino.opset13")

    s, op = case.sizes, case.op.removesuffix("_cell")
    sequence = case.op in GATES

    def reorder(name: str) -> Array:
        return _reordered(op, inputs, name)

    bias = reorder("bias_ih") + reorder("bias_hh")
    if op == "gru":  # linear before reset: the two biases of the candidate stay apart
        last = 2 * s["H"]
        bias = np.concatenate([bias[:last], reorder("bias_ih")[last:], reorder("bias_hh")[last:]])
    weights = [reorder("weight_ih"), reorder("weight_hh"), bias]
    options: dict[str, Any] = {"linear_before_reset": True} if op == "gru" else {}
    if not sequence:
        feeds: Inputs = {name: inputs[name] for name in ("x", "h", "c") if name in inputs}
        parameters: dict[str, Any] = {name: _parameter(value, name) for name, value in feeds.items()}
        cell = {"lstm": ops.lstm_cell, "gru": ops.gru_cell, "rnn": ops.rnn_cell}[op]
        options |= {"activations": ["tanh"], "activations_alpha": [], "activations_beta": []} if op == "rnn" else {}
        node = cell(*parameters.values(), *map(_constant, weights), s["H"], **options)
        return _compile(threads, node, parameters, feeds, (s["B"], s["H"]))
    x = np.ascontiguousarray(inputs["x"].swapaxes(0, 1))
    zeros = np.zeros((s["B"], 1, s["H"]), x.dtype)
    parameters = {"x": _parameter(x, "x")}
    states = [_constant(zeros)] * (2 if op == "lstm" else 1)
    lengths = _constant(inputs.get("lengths", np.full(s["B"], s["T"])).astype(np.int32))
    make = {"lstm": ops.lstm_sequence, "gru": ops.gru_sequence, "rnn": ops.rnn_sequence}[op]
    node = make(
        parameters["x"], *states, lengths, *(_constant(value[None]) for value in weights), s["H"], "forward", **options
    )
    prepared = _compile(threads, node, parameters, {"x": x}, (s["B"], s["T"], s["H"]))
    return Prepared(prepared.run, lambda result: prepared.array(result).swapaxes(0, 1))


def _parameter(value: Array, name: str) -> Any:
    ops = import_module("openvino.opset13")

    return ops.parameter(value.shape, value.dtype.type, name)


def _constant(value: Array) -> Any:
    ops = import_module("openvino.opset13")

    return ops.constant(np.ascontiguousarray(value))


def _compile(threads: int, node: Any, parameters: dict[str, Any], feeds: Inputs, shape: tuple[int, ...]) -> Prepared:
    """A compiled model with its inputs set; the first output is read, reshaped to `shape`."""
    openvino = import_module("openvino")

    model = openvino.Model(list(node.outputs()), list(parameters.values()))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    memory = [np.ascontiguousarray(value) for value in feeds.values()]
    for index, value in enumerate(memory):
        request.set_input_tensor(index, openvino.Tensor(value, shared_memory=True))

    def array(_: Any, kept: list[Array] = memory) -> Array:  # a shared tensor does not keep its memory alive
        return np.array(request.get_output_tensor(0).data).reshape(shape)

    return Prepared(request.infer, array)

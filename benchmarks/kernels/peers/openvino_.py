"""OpenVINO's CPU plugin: a model of one node for each case, compiled once, inputs shared with NumPy."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.kernels.case import Array, Case, Inputs
from benchmarks.kernels.ops.recurrent import GATES, STACK, WEIGHTS, stack_suffixes
from benchmarks.kernels.peers import Prepared, plain_forward

# PyTorch's gate blocks (LSTM i, f, g, o; GRU r, z, n) in OpenVINO's order (f, i, c, o; z, r, h).
_GATE_ORDER = {"lstm": (1, 0, 2, 3), "gru": (1, 0, 2), "rnn": (0,)}
_OPTIONS: dict[str, dict[str, Any]] = {
    "gru": {"linear_before_reset": True},
    "rnn_cell": {"activations": ["tanh"], "activations_alpha": [], "activations_beta": []},
}


def absence() -> str:
    """Nothing beside the package is needed."""
    return ""


def version() -> str:
    """Its version, without the build number."""
    openvino = import_module("openvino")

    return str(openvino.__version__).partition("-")[0]


def supports(case: Case) -> bool:
    """float32, since its CPU plugin computes float64 models in float32; no gradients, masks, ragged batches."""
    return case.op in PREPARE and plain_forward(case)


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Weights are constants of the model."""
    return PREPARE[case.op](case, inputs, threads)


def _attention(case: Case, inputs: Inputs, threads: int) -> Prepared:
    ops = import_module("openvino.opset13")

    parameters = {name: _parameter(inputs[name], name) for name in "qkv"}
    node = ops.scaled_dot_product_attention(*parameters.values(), causal=case.causal)
    return _compile(threads, node, parameters, {name: inputs[name] for name in "qkv"}, inputs["q"].shape)


def _softmax(case: Case, inputs: Inputs, threads: int) -> Prepared:
    ops = import_module("openvino.opset13")

    x = inputs["x"]
    parameter = _parameter(x, "x")
    return _compile(threads, ops.softmax(parameter, -1), {"x": parameter}, {"x": x}, x.shape)


def _linear(case: Case, inputs: Inputs, threads: int) -> Prepared:
    ops = import_module("openvino.opset13")

    x, weight, bias = inputs["x"], _constant(inputs["weight"]), _constant(inputs["bias"])
    parameter = _parameter(x, "x")
    node = ops.add(ops.matmul(parameter, weight, False, True), bias)
    return _compile(threads, node, {"x": parameter}, {"x": x}, (case.sizes["M"], case.sizes["N"]))


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


def _weights(op: str, case: Case, inputs: Inputs) -> list[Array]:
    """w, r and b with gates in OpenVINO's order; of a GRU, the two biases of the candidate stay apart."""
    w, r, b_x, b_h = (_reordered(op, inputs, name) for name in WEIGHTS)
    last = 2 * case.sizes["H"]
    bias = np.concatenate([(b_x + b_h)[:last], b_x[last:], b_h[last:]]) if op == "gru" else b_x + b_h
    return [w, r, bias]


def _sequence(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """LSTMSequence, GRUSequence or RNNSequence on x[B, T, I]."""
    ops = import_module("openvino.opset13")

    s, op = case.sizes, case.op
    x = np.ascontiguousarray(inputs["x"].swapaxes(0, 1))
    parameter, zeros = _parameter(x, "x"), np.zeros((s["B"], 1, s["H"]), x.dtype)
    states = [_constant(zeros)] * (2 if op == "lstm" else 1)
    lengths = _constant(inputs.get("lengths", np.full(s["B"], s["T"])).astype(np.int32))
    weights = (_constant(value[None]) for value in _weights(op, case, inputs))
    make = getattr(ops, f"{op}_sequence")
    node = make(parameter, *states, lengths, *weights, s["H"], "forward", **_OPTIONS.get(op, {}))
    prepared = _compile(threads, node, {"x": parameter}, {"x": x}, (s["B"], s["T"], s["H"]))
    return Prepared(prepared.run, lambda result: prepared.array(result).swapaxes(0, 1))


def _cell(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """LSTMCell, GRUCell or RNNCell."""
    ops = import_module("openvino.opset13")

    s, op = case.sizes, case.op.removesuffix("_cell")
    feeds: Inputs = {name: inputs[name] for name in ("x", "h", "c") if name in inputs}
    parameters: dict[str, Any] = {name: _parameter(value, name) for name, value in feeds.items()}
    weights = map(_constant, _weights(op, case, inputs))
    options = _OPTIONS.get(case.op, _OPTIONS.get(op, {}))
    node = getattr(ops, case.op)(*parameters.values(), *weights, s["H"], **options)
    return _compile(threads, node, parameters, feeds, (s["B"], s["H"]))


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


PREPARE: dict[str, Callable[[Case, Inputs, int], Prepared]] = {
    **dict.fromkeys(GATES, _sequence),
    **dict.fromkeys((f"{name}_cell" for name in GATES), _cell),
    STACK: _stack,
    "attention": _attention,
    "linear": _linear,
    "softmax": _softmax,
}

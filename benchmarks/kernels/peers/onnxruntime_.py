"""ONNX Runtime on the CPU: a model of one node for each case, inputs and outputs bound to memory once."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.kernels.case import Array, Case, Inputs
from benchmarks.kernels.ops.recurrent import GATES, STACK, stack_suffixes
from benchmarks.kernels.peers import Prepared, plain_forward, seconds

Shapes = dict[str, tuple[int, ...]]
# PyTorch's gate blocks (LSTM i, f, g, o; GRU r, z, n) in ONNX's order (i, o, f, c; z, r, h).
_GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def absence() -> str:
    """onnx writes the models."""
    return "" if find_spec("onnx") else "needs onnx: python -m pip install onnx"


def version() -> str:
    """Its version."""
    onnxruntime = import_module("onnxruntime")

    return str(onnxruntime.__version__)


def supports(case: Case) -> bool:
    """float32 alone, for which it has all kernels; no gradients, masks, ragged batches."""
    return case.op in PREPARE and plain_forward(case)


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """A session of its own for each case."""
    return PREPARE[case.op](case, inputs, threads)


def _softmax(case: Case, inputs: Inputs, threads: int) -> Prepared:
    x = inputs["x"]
    return _session(threads, _node("Softmax", ["x"], ["y"], axis=-1), {"x": x}, {}, {"y": x.shape})


def _linear(case: Case, inputs: Inputs, threads: int) -> Prepared:
    node = _node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    constants = {"w": inputs["weight"], "b": inputs["bias"]}
    return _session(threads, node, {"x": inputs["x"]}, constants, {"y": (case.sizes["M"], case.sizes["N"])})


def _reordered(op: str, inputs: Inputs, name: str) -> Array:
    """A weight with its gates in ONNX's order, [1, rows, ...]."""
    return np.concatenate([np.split(inputs[name], GATES[op])[i] for i in _GATE_ORDER[op]])[None]


def _stack(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """A node for each layer, and between two the directions of each step side by side."""
    s, nodes, before = case.sizes, [], "x"
    constants = {"shape": np.array([s["T"], s["B"], 2 * s["H"]], np.int64)}
    for layer in range(s["L"]):
        sides = stack_suffixes(s["L"])[2 * layer : 2 * layer + 2]
        names = [f"{name}{layer}" for name in "wrb"]
        for name, kinds in zip(names, (("weight_ih",), ("weight_hh",), ("bias_ih", "bias_hh")), strict=True):
            parts = [[_reordered("lstm", inputs, kind + side) for kind in kinds] for side in sides]
            constants[name] = np.concatenate([np.concatenate(part, 1) for part in parts])
        to = "y" if layer + 1 == s["L"] else f"y{layer}"
        nodes.append(_node("LSTM", [before, *names], [f"sides{layer}"], hidden_size=s["H"], direction="bidirectional"))
        nodes.append(_node("Transpose", [f"sides{layer}"], [f"steps{layer}"], perm=[0, 2, 1, 3]))
        nodes.append(_node("Reshape", [f"steps{layer}", "shape"], [to]))
        before = to
    return _session(threads, nodes, {"x": inputs["x"]}, constants, {"y": (s["T"], s["B"], 2 * s["H"])})


def _recurrent(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """LSTM, GRU or RNN; a cell is a sequence of one step."""
    op, s = case.op.removesuffix("_cell"), case.sizes
    constants = {
        "w": _reordered(op, inputs, "weight_ih"),
        "r": _reordered(op, inputs, "weight_hh"),
        "b": np.concatenate([_reordered(op, inputs, name) for name in ("bias_ih", "bias_hh")], axis=1),
    }
    x = inputs["x"].reshape(s.get("T", 1), s["B"], s["I"])
    feeds = {"x": x} | {name: inputs[name][None] for name in "hc" if name in inputs}
    attributes: dict[str, Any] = {"hidden_size": s["H"]} | ({"linear_before_reset": 1} if op == "gru" else {})
    names = ["x", "w", "r", "b"] + (["", "h", "c"][: len(feeds)] if len(feeds) > 1 else [])
    if case.ragged:
        constants["lengths"] = inputs["lengths"].astype(np.int32)
        names.append("lengths")
    outputs: dict[str, tuple[int, ...]] = {"y": (x.shape[0], 1, s["B"], s["H"])}
    outputs |= dict.fromkeys(("y_h", "y_c") if op == "lstm" else ("y_h",), (1, s["B"], s["H"]))
    shape = (x.shape[0], s["B"], s["H"]) if case.op in GATES else (s["B"], s["H"])
    prepared = _session(threads, _node(op.upper(), names, list(outputs), **attributes), feeds, constants, outputs)
    return Prepared(prepared.run, lambda result: prepared.array(result).reshape(shape))


def _attention(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """The fastest of the operators that compute it."""
    operators = ["Attention", "MultiHeadAttention"] + (["GroupQueryAttention"] if case.causal else [])
    return min((_attention_by(operator, case, inputs, threads) for operator in operators), key=seconds)


def _attention_by(operator: str, case: Case, inputs: Inputs, threads: int) -> Prepared:
    """The standard Attention on [B, H, S, D], or one of com.microsoft on [B, S, H D].

    GroupQueryAttention is always causal, and skips the keys that no query of a block sees.
    """
    s = case.sizes
    full, packed = (s["B"], s["H"], s["S"], s["D"]), (s["B"], s["S"], s["H"] * s["D"])
    if operator == "Attention":
        node = _node(operator, ["q", "k", "v"], ["y"], is_causal=int(case.causal))
        return _session(threads, node, {name: inputs[name] for name in "qkv"}, {}, {"y": full})
    feeds = {name: np.ascontiguousarray(inputs[name].swapaxes(1, 2)).reshape(packed) for name in "qkv"}
    if operator == "MultiHeadAttention":
        node = _node(
            operator, ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=s["H"], unidirectional=int(case.causal)
        )
        prepared = _session(threads, node, feeds, {}, {"y": packed})
    else:
        names = ["q", "k", "v", "", "", "last", "total"]  # no past keys and values; the last position of each sequence
        node = _node(
            operator, names, ["y", "keys", "values"], domain="com.microsoft", num_heads=s["H"], kv_num_heads=s["H"]
        )
        constants = {"last": np.full(s["B"], s["S"] - 1, np.int32), "total": np.array([s["S"]], np.int32)}
        prepared = _session(threads, node, feeds, constants, {"y": packed, "keys": full, "values": full})
    return Prepared(
        prepared.run, lambda result: prepared.array(result).reshape(s["B"], s["S"], s["H"], s["D"]).swapaxes(1, 2)
    )


def _node(op: str, names: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> Any:
    return import_module("onnx.helper").make_node(op, names, outputs, domain=domain, **attributes)


def _session(
    threads: int, nodes: Any, feeds: Inputs, constants: Inputs, outputs: dict[str, tuple[int, ...]]
) -> Prepared:
    """A session of a node or a list of them with everything bound; `run` computes, `array` reads the first output."""
    onnxruntime = import_module("onnxruntime")
    helper, numpy_helper = import_module("onnx.helper"), import_module("onnx.numpy_helper")
    float_type = import_module("onnx").TensorProto.FLOAT
    graph = helper.make_graph(
        nodes if isinstance(nodes, list) else [nodes],
        "case",
        [helper.make_tensor_value_info(name, float_type, value.shape) for name, value in feeds.items()],
        [helper.make_tensor_value_info(name, float_type, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    kept = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) for value in feeds.values()]
    for name, value in zip(feeds, kept, strict=True):
        binding.bind_ortvalue_input(name, value)
    results = {
        name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32)
        for name, shape in outputs.items()
    }
    for name, value in results.items():
        binding.bind_ortvalue_output(name, value)

    def run() -> None:
        session.run_with_iobinding(binding)

    return Prepared(run, lambda _: np.asarray(results["y"].numpy()))


PREPARE: dict[str, Callable[[Case, Inputs, int], Prepared]] = {
    **dict.fromkeys(GATES, _recurrent),
    **dict.fromkeys((f"{name}_cell" for name in GATES), _recurrent),
    STACK: _stack,
    "attention": _attention,
    "linear": _linear,
    "softmax": _softmax,
}

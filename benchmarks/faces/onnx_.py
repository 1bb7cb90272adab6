"""ONNX models by ONNX Runtime and by fastattn.onnx."""

import io
import logging
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import fastattn as fa
import fastattn.onnx as fao
from benchmarks.faces import Pair, Program, Run

TOLERANCE = 1e-4
RATE = 16_000  # samples a second
CHUNK = 512  # samples that the detector takes at once, beside 64 of the chunk before
SHAPES = {"input": (1, CHUNK + 64), "state": (2, 1, 128)}


def programs(quick: bool) -> list[Program]:
    """A voice detector on a stream, where it is installed; recurrent networks; a layer of a sentence encoder."""
    found = []
    seconds = 2 if quick else 10
    if find_spec("silero_vad"):
        name = f"Silero VAD, {seconds} s by 32 ms"
        found.append(Program(name, "ONNX", partial(_voice, seconds, None), TOLERANCE))
        found.append(Program(f"{name}, shapes given", "ONNX", partial(_voice, seconds, SHAPES), TOLERANCE))
    for op in ("LSTM", "GRU"):
        for steps, batch, width in ((1, 1, 128),) if quick else ((1, 1, 128), (64, 32, 256)):
            name = f"{op} T{steps} B{batch} H{width}"
            found.append(Program(name, "ONNX", partial(_recurrent, op, steps, batch, width), TOLERANCE))
    if find_spec("torch") and find_spec("onnxscript"):
        layers = 1 if quick else 6
        name = f"MiniLM-shaped encoder of {layers} layer{'s' if layers > 1 else ''}, B8 L64"
        found.append(Program(name, "ONNX", partial(_encoder, layers), TOLERANCE))
    return found


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = fa.get_num_threads()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _pair(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> Pair:
    def run(session: Any) -> Run:
        return lambda: session.run(None, feeds)

    return Pair(run(_session(model.SerializeToString())), run(fao.load(model)))


def _voice(seconds: int, shapes: Any) -> Pair:
    spec = find_spec("silero_vad")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data" / "silero_vad.onnx"
    sound = np.random.default_rng(3).standard_normal((seconds * RATE // CHUNK, 1, CHUNK + 64), np.float32) * 0.1

    def run(session: Any) -> Run:
        def stream() -> list[Any]:
            state, found = np.zeros((2, 1, 128), np.float32), []
            for chunk in sound:
                out, state = session.run(None, {"input": chunk, "state": state, "sr": np.array(RATE, np.int64)})
                found.append(out)
            return [*found, state]

        return stream

    return Pair(run(_session(path.read_bytes())), run(fao.load(path, shapes=shapes)))


def _recurrent(op: str, steps: int, batch: int, width: int) -> Pair:
    rng, gates = np.random.default_rng(3), {"LSTM": 4, "GRU": 3}[op]
    weights = {
        "W": rng.uniform(-0.1, 0.1, (1, gates * width, width)),
        "R": rng.uniform(-0.1, 0.1, (1, gates * width, width)),
        "B": rng.uniform(-0.1, 0.1, (1, 2 * gates * width)),
    }
    form: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" else {}
    node = helper.make_node(op, ["x", *weights], ["y", "h"], hidden_size=width, **form)
    graph = helper.make_graph(
        [node], op,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, batch, width])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [steps, 1, batch, width]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, batch, width]),
        ],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return _pair(model, {"x": rng.standard_normal((steps, batch, width), np.float32)})


def _encoder(layers: int) -> Pair:
    import torch  # noqa: PLC0415 (of this program alone)

    torch.manual_seed(1)
    layer = torch.nn.TransformerEncoderLayer(384, 12, 1536, dropout=0.0, activation="gelu", batch_first=True)
    module = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
    x = torch.randn(8, 64, 384)
    file = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # packages that it looks for and does not need
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported: Any = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
        exported.save(file)
    return _pair(onnx.load_from_string(file.getvalue()), {"src": x.numpy()})

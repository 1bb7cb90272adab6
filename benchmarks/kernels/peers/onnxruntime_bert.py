"""The BERT of fastattn.nn once more, as a graph of ONNX Runtime that it quantises to int8, with padded batches."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.kernels.case import Array
from fastattn import nn

BATCH = 32  # sentences, as sentence-transformers has it
_OPSET = 20  # the first with Gelu


class _Graph:
    """Nodes and constants by name."""

    def __init__(self, parameters: dict[str, Array]) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self.parameters = parameters

    def constant(self, value: Any) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def dense(self, x: str, name: str) -> str:
        weight, bias = (self.parameters[f"{name}.{kind}"] for kind in ("weight", "bias"))
        return self.node("Add", self.node("MatMul", x, self.constant(weight.T.copy())), self.constant(bias))

    def norm(self, x: str, name: str, epsilon: float) -> str:
        weight, bias = (self.constant(self.parameters[f"{name}.LayerNorm.{kind}"]) for kind in ("weight", "bias"))
        return self.node("LayerNormalization", x, weight, bias, epsilon=epsilon)


def _layer(g: _Graph, x: str, mask: str, config: nn.BertConfig, name: str) -> str:
    size = config.hidden_size // config.num_attention_heads
    split, joined = g.constant([0, 0, config.num_attention_heads, size]), g.constant([0, 0, config.hidden_size])
    q, k, v = (
        g.node("Transpose", g.node("Reshape", g.dense(x, f"{name}.attention.self.{part}"), split), perm=perm)
        for part, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
    )
    scores = g.node("Mul", g.node("MatMul", q, k), g.constant(np.float32(size**-0.5)))
    heads = g.node("MatMul", g.node("Softmax", g.node("Add", scores, mask), axis=-1), v)
    out = g.node("Reshape", g.node("Transpose", heads, perm=[0, 2, 1, 3]), joined)
    y = g.node("Add", x, g.dense(out, f"{name}.attention.output.dense"))
    y = g.norm(y, f"{name}.attention.output", config.layer_norm_eps)
    hidden = g.node("Gelu", g.dense(y, f"{name}.intermediate.dense"))
    return g.norm(g.node("Add", y, g.dense(hidden, f"{name}.output.dense")), f"{name}.output", config.layer_norm_eps)


def _model(bert: nn.BertModel) -> onnx.ModelProto:
    """hidden[B, L, E] of ids[B, L] and mask[B, 1, 1, L], which is added to the scores."""
    config, own = bert.config, bert.parameters()
    g = _Graph(own)
    words = g.node("Gather", g.constant(own["embeddings.word_embeddings.weight"]), "ids")
    x = g.node("Add", words, "positions")
    x = g.norm(x, "embeddings", config.layer_norm_eps)
    for i in range(config.num_hidden_layers):
        x = _layer(g, x, "mask", config, f"encoder.layer.{i}")
    g.nodes.append(helper.make_node("Identity", [x], ["hidden"]))
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["B", "L"]),
        helper.make_tensor_value_info("positions", TensorProto.FLOAT, ["L", config.hidden_size]),
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["B", 1, 1, "L"]),
    ]
    output = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", "L", config.hidden_size])
    constants = [numpy_helper.from_array(value, name) for name, value in g.constants.items()]
    graph = helper.make_graph(g.nodes, "bert", inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)


class OnnxRuntimeBert:
    """Sentence embeddings by ONNX Runtime with the parameters of a BertModel, in float32 or quantised dynamically, with
    7 bits and scales for columns: with the defaults the least cosine of all-MiniLM-L6-v2 is 0.90."""

    def __init__(self, bert: nn.BertModel, dtype: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        own = bert.parameters()
        self._positions = (
            own["embeddings.position_embeddings.weight"] + own["embeddings.token_type_embeddings.weight"][0]
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "bert.onnx")
            onnx.save(_model(bert), file)
            if dtype == "int8":
                quantize_dynamic(file, file, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def embed(self, ids: Sequence[Array]) -> Array:
        """Embeddings [B, E] of length 1; no sequence may be empty."""
        return np.concatenate([self._batch(ids[i : i + BATCH]) for i in range(0, len(ids), BATCH)])

    def _batch(self, ids: Sequence[Array]) -> Array:
        longest = max(map(len, ids))
        padded, there = np.zeros((len(ids), longest), np.int64), np.zeros((len(ids), longest), np.float32)
        for row, mask, one in zip(padded, there, ids, strict=True):
            row[: len(one)], mask[: len(one)] = one, 1
        given = {"ids": padded, "positions": self._positions[:longest], "mask": (there[:, None, None] - 1) * 1e9}
        (hidden,) = self._session.run(None, given)
        total = (hidden * there[..., None]).sum(1)
        embeddings: Array = total / np.sqrt((total * total).sum(-1, keepdims=True))
        return embeddings

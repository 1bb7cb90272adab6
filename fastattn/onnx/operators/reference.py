"""Every other operator: that of onnx.reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import defs, helper
from onnx.reference import ReferenceEvaluator, op_run

from fastattn.onnx.graph import Call, Node, UnsupportedOperator


def reference(node: Node) -> Call:
    """The node by onnx.reference.ReferenceEvaluator."""
    single = len(node.outputs) == 1
    try:
        run: Call | None = _runner(node, [])
    except op_run.RuntimeContextError:  # a function of the types of its inputs, which come with the values
        run = None
    except (NotImplementedError, defs.SchemaError) as error:
        raise UnsupportedOperator(
            f"load: the model must have operators of fastattn or onnx, got {node.domain or 'ai.onnx'}.{node.op} "
            f"(node {node.name or node.outputs[0]!r})"
        ) from error

    def call(*inputs: Any) -> Any:
        values = [np.asarray(x) if isinstance(x, np.generic) else x for x in inputs]
        results = (run or _runner(node, values))(*values)
        return results[0] if single else results

    return call


def _runner(node: Node, values: Sequence[Any]) -> Call:
    proto = type(node.proto)()
    proto.CopyFrom(node.proto)
    proto.domain = node.domain
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in zip(node.inputs, values, strict=False)
        if name
    ]
    graph = helper.make_graph([proto], "node", infos, [])
    run: Call = ReferenceEvaluator(graph, opsets=dict(node.opsets)).rt_nodes_[0].run
    return run

"""From a GraphProto to a Graph: constants folded, what nothing needs left out."""

from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np

from fastattn.onnx.graph import Array, Graph, Node, UnsupportedOperator, array_of, read_node
from fastattn.onnx.loading import InvalidModel
from fastattn.onnx.plan import evaluate

# Not a function of their inputs.
RANDOM = frozenset(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
                    "Bernoulli", "Dropout"))  # fmt: skip
LARGEST_FOLDED = 1 << 20  # bytes: a larger value that is made of small ones is made in each run


def read_graph(proto: Any, opsets: Mapping[str, int], around: Mapping[str, Any] | None = None) -> Graph:
    """around: what is known of the values around a graph in a node."""
    constants: MutableMapping[str, Any] = ChainMap({}, dict(around or {}))
    for tensor in proto.initializer:
        constants[tensor.name] = array_of(tensor)
    inputs = [value.name for value in proto.input if value.name not in constants.maps[0]]  # type: ignore[attr-defined]
    for name in inputs:
        for known in constants.maps:  # type: ignore[attr-defined]
            known.pop(name, None)
    if proto.sparse_initializer:
        raise InvalidModel("load: the model must have dense initializers, got sparse ones")
    local, captures, nodes = set(inputs), [], []
    for node_proto in proto.node:
        node = read_node(node_proto, opsets)
        node.constants = constants
        for attribute in node_proto.attribute:
            if attribute.HasField("g"):
                node.graphs[attribute.name] = read_graph(attribute.g, opsets, constants)
        node.captures = sorted({name for graph in node.graphs.values() for name in graph.captures})
        if not _fold(node, constants):
            nodes.append(node)
            local.update(node.outputs)
    outputs = [value.name for value in proto.output]
    nodes = _needed(nodes, outputs)
    for name in (*outputs, *(name for node in nodes for name in (*node.inputs, *node.captures))):
        if name and name not in local and name not in constants and name not in captures:
            captures.append(name)
    return Graph(inputs, outputs, nodes, dict(constants), captures)


def _fold(node: Node, constants: MutableMapping[str, Any]) -> bool:
    """Puts the outputs of a node whose inputs are known among the constants; False: it has to be run."""
    if node.op == "Constant" and not node.domain:
        constants[node.outputs[0]] = constant_value(node)
        return True
    names = [*node.inputs, *node.captures]
    if any(name and name not in constants for name in names) or node.op in RANDOM or node.graphs:
        return False
    inputs = [constants[name] if name else None for name in names]
    if not all(x is None or isinstance(x, np.ndarray) for x in inputs):
        return False
    try:
        with np.errstate(all="ignore"):
            results = evaluate(node, inputs)
    except UnsupportedOperator:
        raise
    except Exception:  # it is raised again when the node is run, if it is
        return False
    results = tuple(np.asarray(x) if isinstance(x, np.generic) else x for x in results)
    given = sum(x.nbytes for x in inputs if x is not None)
    if not all(isinstance(x, np.ndarray) for x in results) or sum(x.nbytes for x in results) > max(
        LARGEST_FOLDED, 4 * given
    ):
        return False
    for name, value in zip(node.outputs, results, strict=False):
        if name:
            constants[name] = _read_only(value)
    return True


def _read_only(value: Array) -> Array:
    value = value.view()
    value.flags.writeable = False
    return value


def constant_value(node: Node) -> Any:
    """The value of a Constant."""
    (name, value), *_ = node.attributes.items()
    if name == "value":
        return value
    kinds = {"float": np.float32, "floats": np.float32, "int": np.int64, "ints": np.int64}
    kind = name.removeprefix("value_")
    if kind in ("string", "strings"):
        return _read_only(np.array(value, object))
    if kind not in kinds:
        raise UnsupportedOperator(f"load: Constant must have a dense value, got {name} (node {node.name!r})")
    return _read_only(np.array(value, kinds[kind]))


def _needed(nodes: list[Node], outputs: list[str]) -> list[Node]:
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs, node.captures)
    return kept[::-1]

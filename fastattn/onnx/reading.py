"""From a GraphProto to a Graph: constants folded, what nothing needs left out."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import helper

from fastattn.onnx.graph import Array, Graph, Node, UnsupportedOperator, array_of, read_node
from fastattn.onnx.loading import InvalidModel
from fastattn.onnx.plan import evaluate

# Not a function of their inputs.
RANDOM = frozenset(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
                    "Bernoulli", "Dropout"))  # fmt: skip
# The shapes of outputs are functions of the shapes of all inputs, ...
BY_SHAPES = frozenset((
    "Abs", "Add", "And", "Attention", "Cast", "Ceil", "Clip", "Concat", "Conv", "Div", "Equal", "Erf", "Exp",
    "Flatten", "Floor", "GRU", "Gather", "GatherElements", "Gelu", "Gemm", "Greater", "GreaterOrEqual", "IsNaN",
    "LSTM", "LayerNormalization", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "Min", "Mul", "Neg",
    "Not", "Or", "Pow", "RMSNormalization", "RNN", "Reciprocal", "Relu", "RotaryEmbedding", "Sigmoid", "Softmax",
    "Sqrt", "Sub", "Tanh", "Transpose", "Where", "Xor",
))  # fmt: skip
# ... or of the shape of the first and the values of the others.
BY_FIRST_SHAPE = frozenset((
    "Reshape", "Expand", "Slice", "Pad", "Split", "Squeeze", "Unsqueeze", "ReduceSum", "ReduceMean", "ReduceMax",
    "ReduceMin", "ReduceProd",
))  # fmt: skip
LARGEST_FOLDED = 1 << 20  # bytes: a larger value that is made of small ones is made in each run


def read_graph(proto: Any, opsets: Mapping[str, int], around: "Known | None" = None,
               shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:  # fmt: skip
    """around: what is known of the values around a graph in a node. shapes: of inputs, where all runs have them."""
    return _Reader(proto, opsets, around or Known(), shapes or {}).graph()


class Known(NamedTuple):
    """What is known of values by name."""

    constants: MutableMapping[str, Any] = {}  # noqa: RUF012 (each graph adds to a map of its own)
    stand_ins: MutableMapping[str, Array] = {}  # zeros of the shape and type of a value  # noqa: RUF012
    aliases: MutableMapping[str, str] = {}  # the value that a name means  # noqa: RUF012


class _Reader:
    """Reads the nodes of a graph in their order."""

    def __init__(
        self, proto: Any, opsets: Mapping[str, int], around: Known, shapes: Mapping[str, Sequence[int]]
    ) -> None:
        if proto.sparse_initializer:
            raise InvalidModel("load: the model must have dense initializers, got sparse ones")
        self._proto, self._opsets = proto, opsets
        self._constants, self._stand_ins, self._aliases = (dict(known) for known in around)
        self._nodes: list[Node] = []
        self._same: dict[Any, list[str]] = {}  # outputs of a node by all that it is a function of
        fixed = {tensor.name for tensor in proto.initializer}
        self._inputs = [value.name for value in proto.input if value.name not in fixed]
        for name in self._inputs:
            for known in (self._constants, self._stand_ins, self._aliases):
                known.pop(name, None)
        for value in proto.input:
            if value.name in shapes and value.type.WhichOneof("value") == "tensor_type":
                dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                self._stand_ins[value.name] = np.broadcast_to(np.zeros((), dtype), shapes[value.name])

    def graph(self) -> Graph:
        proto = self._proto
        self._take(proto, {})
        outputs = [self._meant(value.name) for value in proto.output]
        nodes = _needed(self._nodes, outputs)
        local, captures = {*self._inputs, *(name for node in nodes for name in node.outputs)}, []
        for name in (*outputs, *(name for node in nodes for name in (*node.inputs, *node.captures))):
            if name and name not in local and name not in self._constants and name not in captures:
                captures.append(name)
        return Graph(self._inputs, outputs, nodes, self._constants, captures)

    def _meant(self, name: str) -> str:
        return self._aliases.get(name, name)

    def _take(self, proto: Any, names: dict[str, str]) -> None:
        """The nodes of a graph; names: new ones of its own values."""
        for tensor in proto.initializer:
            self._constants[names.get(tensor.name, tensor.name)] = array_of(tensor)
        for node_proto in proto.node:
            self._take_node(_renamed_node(node_proto, names) if names else node_proto)

    def _take_node(self, proto: Any) -> None:
        node = read_node(proto, self._opsets)
        node.inputs = [self._meant(name) for name in node.inputs]
        node.constants = self._constants
        if node.domain == "" and node.op == "Identity":
            self._aliases[node.outputs[0]] = node.inputs[0]
            return
        if node.op == "If" and not node.domain and isinstance(self._constants.get(node.inputs[0]), np.ndarray):
            self._take_branch(node)
            return
        graphs = [attribute for attribute in proto.attribute if attribute.HasField("g")]
        if not graphs and node.op not in RANDOM and node.op != "Constant":
            wanted = tuple(name != "" for name in node.outputs)
            key = (node.domain, node.op, *node.inputs, *(a.SerializeToString() for a in proto.attribute), wanted)
            if key in self._same:
                self._aliases.update(zip(node.outputs, self._same[key], strict=True))
                self._aliases.pop("", None)
                return
            self._same[key] = node.outputs
        known = Known(self._constants, self._stand_ins, self._aliases)
        node.graphs = {attribute.name: read_graph(attribute.g, self._opsets, known) for attribute in graphs}
        node.captures = sorted({name for graph in node.graphs.values() for name in graph.captures})
        if not _fold(node, self._constants) and not self._fold_shape(node):
            self._nodes.append(node)

    def _take_branch(self, node: Node) -> None:
        """The nodes of the branch that an If always takes."""
        attribute = "then_branch" if self._constants[node.inputs[0]].item() else "else_branch"
        branch = next(a.g for a in node.proto.attribute if a.name == attribute)
        prefix = node.outputs[0] + "/"  # names of other branches may be the same
        own = [tensor.name for tensor in branch.initializer] + [name for inner in branch.node for name in inner.output]
        names = {name: prefix + name for name in own if name}
        self._take(branch, names)
        for name, value in zip(node.outputs, branch.output, strict=True):
            self._aliases[name] = self._meant(names.get(value.name, value.name))

    def _fold_shape(self, node: Node) -> bool:
        """Follows the shapes of values that are not known; True: the node is a function of shapes alone."""
        if node.domain or node.graphs or not self._stand_ins:
            return False
        first = self._stand_ins.get(node.inputs[0]) if node.inputs else None
        if node.op in ("Shape", "Size") and first is not None:
            self._constants[node.outputs[0]] = _read_only(np.asarray(evaluate(node, [first])[0]))
            return True
        if node.op not in BY_SHAPES and node.op not in BY_FIRST_SHAPE:
            return False
        inputs = [None if not name else self._constants.get(name, self._stand_ins.get(name)) for name in node.inputs]
        free = node.inputs[1:] if node.op in BY_FIRST_SHAPE else ()
        if any(x is None and name for x, name in zip(inputs, node.inputs, strict=True)):
            return False
        if any(name and name not in self._constants for name in free):
            return False
        try:
            with np.errstate(all="ignore"):
                results = evaluate(node, inputs)
        except Exception:  # it is raised again when the node is run
            return False
        for name, value in zip(node.outputs, results, strict=False):
            if name and isinstance(value, np.ndarray | np.generic):
                self._stand_ins[name] = np.broadcast_to(np.zeros((), value.dtype), value.shape)
        return False


def _renamed_node(proto: Any, names: Mapping[str, str]) -> Any:
    """A node with other names of values, also in its graphs, whose own names are none of these."""
    node = type(proto)()
    node.CopyFrom(proto)
    node.input[:] = [names.get(name, name) for name in proto.input]
    node.output[:] = [names.get(name, name) for name in proto.output]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            inner = [_renamed_node(one, names) for one in attribute.g.node]
            del attribute.g.node[:]
            attribute.g.node.extend(inner)
            for value in attribute.g.output:
                value.name = names.get(value.name, value.name)
    return node


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

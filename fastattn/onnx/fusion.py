"""Chains of nodes that fastattn has as one call.

    MatMul, (scale), (mask), Softmax, MatMul          attention
    Div, Erf, Add, Mul, Mul                            Gelu
    ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add    LayerNormalization
    MatMul, Add, (activation); Gemm, (activation)      linear
    Conv, Relu                                         convolution with its activation
    Add, LayerNormalization                            add_layer_norm

A chain is replaced where nothing else uses what lies within it.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from fastattn.onnx.graph import Array, Graph, Node
from fastattn.onnx.operators.linear import ACTIVATIONS, conv_is_known
from fastattn.onnx.operators.rows import FLOATS

OURS = "fastattn"  # the domain of fused nodes


class Chains:
    """The nodes of a graph by what they make and use, and the replacement of some by one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._replaced: dict[Node, list[Node]] = {}
        self._maker = {name: node for node in graph.nodes for name in node.outputs if name}
        self._users: dict[str, list[Node]] = {}
        self._count = Counter(graph.outputs)
        for node in graph.nodes:
            for name in (*node.inputs, *node.captures):
                self._users.setdefault(name, []).append(node)
                self._count[name] += 1

    def maker(self, name: str, *ops: str) -> Node | None:
        """The node that makes a value, if it is one of these operators and has but one output."""
        node = self._maker.get(name)
        return node if node is not None and not node.domain and node.op in ops and len(node.outputs) == 1 else None

    def only_maker(self, name: str, *ops: str) -> Node | None:
        """maker, of a value with one use."""
        return self.maker(name, *ops) if self._count[name] == 1 else None

    def only_user(self, node: Node, *ops: str) -> Node | None:
        """The one node that uses the output of a node."""
        name = node.outputs[0]
        users = self._users.get(name, [])
        if self._count[name] != 1 or len(users) != 1 or users[0].domain or users[0].op not in ops:
            return None
        return users[0] if len(users[0].outputs) == 1 and name in users[0].inputs else None

    def uses(self, name: str) -> int:
        return self._count[name]

    def outputs_of_users(self, name: str) -> list[str]:
        """The first outputs of the nodes that use a value."""
        return [node.outputs[0] for node in self._users.get(name, [])]

    def constant(self, name: str) -> Any:
        return self.graph.constants.get(name)

    def number(self, name: str) -> float | None:
        """A known value with one element."""
        value = self.constant(name)
        if not isinstance(value, np.ndarray) or value.size != 1 or value.ndim > 1 or value.dtype not in FLOATS:
            return None
        return float(value.reshape(()).astype(np.float64))

    def scalar_operand(self, node: Node) -> tuple[str, float] | None:
        """(other operand, number) of a node with two inputs of which one is known to be a number."""
        for i in (0, 1):
            number = self.number(node.inputs[i])
            if number is not None and (i == 1 or node.op != "Div"):
                return node.inputs[1 - i], number
        return None

    def replace(self, at: Node, nodes: list[Node], op: str, inputs: list[str], outputs: list[str], domain: str = OURS,
                **attributes: Any) -> None:  # fmt: skip
        """Puts one node at the place of `at` for several."""
        name = at.name or at.outputs[0]
        fused = Node(op, domain, inputs, outputs, attributes, at.opsets, name, None, {}, [], self.graph.constants)
        for node in nodes:
            self._replaced[node] = [fused] if node is at else []

    def is_replaced(self, node: Node) -> bool:
        return node in self._replaced

    def result(self) -> Graph:
        graph = self.graph
        nodes = [kept for node in graph.nodes for kept in self._replaced.get(node, [node])]
        return Graph(graph.inputs, graph.outputs, nodes, graph.constants, graph.captures)


def fuse(graph: Graph) -> Graph:
    """The graph with its chains replaced, and the graphs in its nodes."""
    for node in graph.nodes:
        node.graphs = {name: fuse(inner) for name, inner in node.graphs.items()}
    for rule in RULES:
        chains = Chains(graph)
        for node in graph.nodes:
            if not node.domain and len(node.outputs) == 1 and not chains.is_replaced(node):
                rule(chains, node)
        graph = chains.result()
    return graph


def _is(chains: Chains, node: Node, expected: float) -> bool:
    """Whether the number of a node is this one, rounded to its type or to five digits."""
    for value in map(chains.constant, node.inputs):
        if isinstance(value, np.ndarray) and value.size == 1:
            eps = 0.0 if value.dtype.itemsize > 2 else 1e-3 if value.dtype == np.float16 else 8e-3
            return math.isclose(float(value.reshape(()).astype(np.float64)), expected, rel_tol=max(eps, 2e-5))
    return False


def _gelu(chains: Chains, erf: Node) -> None:
    if erf.op != "Erf":
        return
    inner, plus = chains.only_maker(erf.inputs[0], "Div", "Mul"), chains.only_user(erf, "Add")
    product = chains.only_user(plus, "Mul") if plus else None
    if inner is None or plus is None or product is None:
        return
    scaled, one = chains.scalar_operand(inner), chains.scalar_operand(plus)
    if scaled is None or one is None or one[1] != 1:
        return
    x = scaled[0]
    if not _is(chains, inner, math.sqrt(2) if inner.op == "Div" else math.sqrt(0.5)):
        return
    other = product.inputs[1 - product.inputs.index(plus.outputs[0])]
    if other == x:  # (x (1 + erf)) / 2
        last = chains.only_user(product, "Mul")
        half = chains.scalar_operand(last) if last else None
        if last is None or half is None or half[1] != 0.5:
            return
        chains.replace(last, [inner, erf, plus, product, last], "Gelu", [x], last.outputs, "")
        return
    halved = chains.only_maker(other, "Mul")  # (x / 2) (1 + erf)
    half = chains.scalar_operand(halved) if halved else None
    if halved is not None and half == (x, 0.5):
        chains.replace(product, [inner, erf, plus, halved, product], "Gelu", [x], product.outputs, "")


def _is_mean(chains: Chains, node: Node | None) -> bool:
    """Over the last axis, which stays."""
    if node is None or not node.get("keepdims", 1):
        return False
    axes = node.get("axes")
    if axes is None and node.has(1):
        known = chains.constant(node.inputs[1])
        axes = None if known is None else known.tolist()
    return bool(axes == [-1])


def _layer_norm(chains: Chains, root: Node) -> None:
    if root.op != "Sqrt":
        return
    plus, divided = chains.only_maker(root.inputs[0], "Add"), chains.only_user(root, "Div")
    eps = chains.scalar_operand(plus) if plus else None
    if plus is None or divided is None or eps is None or divided.inputs[1] != root.outputs[0]:
        return
    variance = chains.only_maker(eps[0], "ReduceMean")
    square = chains.only_maker(variance.inputs[0], "Pow", "Mul") if variance else None
    if variance is None or square is None or not _is_mean(chains, variance):
        return
    centred = divided.inputs[0]
    squared = square.inputs[0] == centred and (
        chains.number(square.inputs[1]) == 2 if square.op == "Pow" else square.inputs[1] == centred
    )
    minus = chains.maker(centred, "Sub")
    mean = chains.only_maker(minus.inputs[1], "ReduceMean") if minus else None
    if not squared or minus is None or mean is None or not _is_mean(chains, mean) or mean.inputs[0] != minus.inputs[0]:
        return
    if chains.uses(centred) != (2 if square.op == "Pow" else 3):
        return
    weighted = chains.only_user(divided, "Mul")
    shifted = chains.only_user(weighted, "Add") if weighted else None
    if weighted is None or shifted is None:
        return
    weight = weighted.inputs[1 - weighted.inputs.index(divided.outputs[0])]
    bias = shifted.inputs[1 - shifted.inputs.index(weighted.outputs[0])]
    if not all(isinstance(value, np.ndarray) and value.ndim == 1 for value in map(chains.constant, (weight, bias))):
        return
    chains.replace(
        shifted, [mean, minus, square, variance, plus, root, divided, weighted, shifted], "LayerNormalization",
        [minus.inputs[0], weight, bias], shifted.outputs, "", epsilon=eps[1],
    )  # fmt: skip


def _without_scale(chains: Chains, name: str) -> tuple[str, float, list[Node]]:
    """The value that a number multiplies or divides, the factor, and the node of it."""
    node = chains.only_maker(name, "Mul", "Div")
    operand = chains.scalar_operand(node) if node else None
    if node is None or operand is None or (node.op == "Div" and operand[1] == 0):
        return name, 1.0, []
    return operand[0], operand[1] if node.op == "Mul" else 1 / operand[1], [node]


def _attention(chains: Chains, softmax: Node) -> None:
    if softmax.op != "Softmax" or softmax.version < 13 or softmax.get("axis", -1) not in (-1, 3):
        return
    weights, zeros, removed = softmax, False, [softmax]
    guard = _nan_guard(chains, softmax)
    if guard:
        weights, zeros, removed = guard[-1], True, [softmax, *guard]
    last = chains.only_user(weights, "MatMul")
    if last is None or last.inputs[0] != weights.outputs[0] or last.inputs[1] == weights.outputs[0]:
        return
    scores, mask = softmax.inputs[0], ""
    added = chains.only_maker(scores, "Add")
    if added is not None:
        for i in (0, 1):
            inner = _without_scale(chains, added.inputs[i])
            if chains.only_maker(inner[0], "MatMul") and chains.constant(added.inputs[i]) is None:
                scores, mask = added.inputs[i], added.inputs[1 - i]
                removed.append(added)
                break
        else:
            return
    scores, scale, nodes = _without_scale(chains, scores)
    product = chains.only_maker(scores, "MatMul")
    if product is None:
        return
    q, q_scale, q_nodes = _without_scale(chains, product.inputs[0])
    k, k_scale, k_nodes = _without_scale(chains, product.inputs[1])
    removed += [*nodes, product, *q_nodes, *k_nodes, last]
    inputs = [q, k, last.inputs[1], *([mask] if mask else [])]
    chains.replace(
        last, removed, "Attention", inputs, last.outputs, scale=scale * q_scale * k_scale, transposed_keys=True,
        axis=softmax.get("axis", -1),
        zeros=zeros,
    )  # fmt: skip


def _nan_guard(chains: Chains, softmax: Node) -> list[Node]:
    """Where(IsNaN(p), 0, p), which PyTorch exports: rows without a key are zeros."""
    name = softmax.outputs[0]
    users = [chains.maker(n, "IsNaN", "Where") for n in chains.outputs_of_users(name)]
    if len(users) != 2 or chains.uses(name) != 2 or None in users:
        return []
    test, where = sorted((node for node in users if node), key=lambda node: node.op)
    if test.op != "IsNaN" or where.op != "Where" or chains.uses(test.outputs[0]) != 1:
        return []
    if where.inputs != [test.outputs[0], where.inputs[1], name] or chains.number(where.inputs[1]) != 0:
        return []
    return [test, where]


def _linear(chains: Chains, root: Node) -> None:
    if root.op not in ("MatMul", "Gemm") or root.get("transA", 0):
        return
    weight = chains.constant(root.inputs[1])
    if not isinstance(weight, np.ndarray) or weight.ndim != 2 or weight.dtype not in FLOATS:
        return
    names, removed, last = [root.inputs[0], root.inputs[1]], [root], root
    if root.op == "Gemm":
        row = chains.constant(root.inputs[2]) if root.has(2) else None
        plain = root.get("alpha", 1.0) == 1 and root.get("beta", 1.0) == 1
        if not plain or (root.has(2) and not _is_row(row, weight.shape[0 if root.get("transB", 0) else 1])):
            return
        if root.get("transB", 0):
            names[1] = root.outputs[0] + "/transposed"
            chains.graph.constants[names[1]] = weight.T
        names += root.inputs[2:]
    else:
        plus = chains.only_user(root, "Add")
        bias = plus.inputs[1 - plus.inputs.index(root.outputs[0])] if plus else ""
        if plus is not None and _is_row(chains.constant(bias), weight.shape[1]):
            names, removed, last = [*names, bias], [*removed, plus], plus
    activated = chains.only_user(last, *ACTIVATIONS)
    activation = None
    if activated is not None:
        activation = "gelu_tanh" if activated.get("approximate") == "tanh" else ACTIVATIONS[activated.op]
        removed, last = [*removed, activated], activated
    if root.op == "Gemm" or len(removed) > 1:
        chains.replace(last, removed, "Linear", names, last.outputs, activation=activation)


def _is_row(value: Array | None, size: int) -> bool:
    return isinstance(value, np.ndarray) and value.ndim <= 1 and value.size in (1, size)


def _conv(chains: Chains, root: Node) -> None:
    relu = chains.only_user(root, "Relu") if root.op == "Conv" else None
    weight = chains.constant(root.inputs[1]) if relu else None
    bias = chains.constant(root.inputs[2]) if relu and root.has(2) else weight
    if relu is None or not isinstance(weight, np.ndarray) or not isinstance(bias, np.ndarray):
        return
    if weight.dtype not in FLOATS or not conv_is_known(root, weight):
        return
    chains.replace(relu, [root, relu], "Conv", root.inputs, relu.outputs, **root.attributes, activation="relu")


def _add_norm(chains: Chains, norm: Node) -> None:
    if norm.op != "LayerNormalization" or norm.get("axis", -1) != -1:
        return
    plus = chains.maker(norm.inputs[0], "Add")
    known = [chains.constant(name) for name in norm.inputs[1:]]
    if plus is None or chains.is_replaced(plus) or not all(isinstance(v, np.ndarray) and v.ndim == 1 for v in known):
        return
    if any(chains.constant(name) is not None for name in plus.inputs):
        return
    total = plus.outputs[0] if chains.uses(plus.outputs[0]) > 1 else ""
    # At the place of the sum, which others may use before the norm.
    chains.replace(
        plus, [plus, norm], "AddNorm", [*plus.inputs, *norm.inputs[1:]], [norm.outputs[0], total],
        epsilon=norm.get("epsilon", 1e-5),
    )  # fmt: skip


RULES: tuple[Callable[[Chains, Node], None], ...] = (_gelu, _layer_norm, _attention, _linear, _conv, _add_norm)

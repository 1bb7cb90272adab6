"""A graph as nodes with their constants known: what is read of a GraphProto, once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, numpy_helper

Array = NDArray[Any]
Call = Callable[..., Any]  # inputs, None where one is left out -> the output, or a tuple where the node has several


class UnsupportedOperator(NotImplementedError):
    """An operator that neither fastattn nor onnx.reference has."""


@dataclass(eq=False)
class Node:
    """A node of a graph. A fused one has no proto."""

    op: str
    domain: str
    inputs: list[str]  # "" where one is left out
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    opsets: Mapping[str, int] = field(default_factory=dict)
    name: str = ""
    proto: Any = None
    graphs: dict[str, "Graph"] = field(default_factory=dict)
    captures: list[str] = field(default_factory=list)  # of the graphs, from around the node; they follow the inputs
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return self.opsets[self.domain]

    def get(self, attribute: str, default: Any = None) -> Any:
        return self.attributes.get(attribute, default)

    def constant(self, index: int) -> Any:
        """The value of an input if it is known, else None."""
        return self.constants.get(self.inputs[index]) if index < len(self.inputs) and self.inputs[index] else None

    def release(self, *indices: int) -> None:
        """Inputs that the call made of the node does not need: it gets None, and their memory is free for others."""
        for index in indices:
            if index < len(self.inputs):
                self.inputs[index] = ""

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] != ""

    def __str__(self) -> str:
        return f"{self.domain + '.' if self.domain else ''}{self.op} ({self.name or self.outputs[0]})"


@dataclass(eq=False)
class Graph:
    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]
    constants: dict[str, Any]  # also those of the graphs around it
    captures: list[str]


def array_of(tensor: Any) -> Array:
    """The array of a TensorProto, not to be written to."""
    array: Array = np.asarray(numpy_helper.to_array(tensor))
    array.flags.writeable = False
    return array


def attribute_value(attribute: Any) -> Any:
    """Numbers, texts and arrays; None for graphs, which are read apart."""
    kind = attribute.type
    if kind == AttributeProto.FLOAT:
        return attribute.f
    if kind == AttributeProto.INT:
        return attribute.i
    if kind == AttributeProto.STRING:
        return attribute.s.decode("utf-8", "replace")
    if kind == AttributeProto.FLOATS:
        return list(attribute.floats)
    if kind == AttributeProto.INTS:
        return list(attribute.ints)
    if kind == AttributeProto.STRINGS:
        return [text.decode("utf-8", "replace") for text in attribute.strings]
    if kind == AttributeProto.TENSOR:
        return array_of(attribute.t)
    return None


def read_node(proto: Any, opsets: Mapping[str, int]) -> Node:
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    inputs = list(proto.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    attributes = {a.name: attribute_value(a) for a in proto.attribute}
    return Node(proto.op_type, domain, inputs, list(proto.output), attributes, opsets, proto.name, proto)

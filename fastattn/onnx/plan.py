"""A graph as a list of prepared calls on numbered values."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple

from fastattn.onnx.graph import Call, Graph, Node


class Step(NamedTuple):
    call: Call
    take: Callable[[list[Any]], Sequence[Any]]  # the inputs from all values
    put: int | tuple[int, ...]  # where the output goes, or the outputs
    free: tuple[int, ...]  # values that nothing needs afterwards


class Plan:
    """Runs a graph: plan(inputs and captures) gives its outputs.

    A value is freed after its last use. Calls of several threads do not meet: each has a list of values of its own.
    """

    def __init__(self, graph: Graph) -> None:
        from fastattn.onnx.operators import prepare  # noqa: PLC0415 (of them, some run graphs)

        calls = [prepare(node) for node in graph.nodes]  # first: a call may need fewer inputs
        self._labels = [str(node) for node in graph.nodes]
        self._values: list[Any] = [None]  # of the name ""
        self._slots = {"": 0}
        given = [*graph.inputs, *graph.captures]
        for name in given:
            self._new_slot(name)
        self._given = slice(1, 1 + len(given))
        last_use = {name: i for i, node in enumerate(graph.nodes) for name in (*node.inputs, *node.captures)}
        kept = {"", *graph.outputs}
        self._steps = []
        for i, node in enumerate(graph.nodes):
            names = [*node.inputs, *node.captures]
            inputs = tuple(self._slot_of(name, graph) for name in names)
            outputs = tuple(self._new_slot(name) if name else 0 for name in node.outputs)
            ends = {name for name in names if last_use[name] == i and name not in kept and name not in graph.constants}
            unused = {name for name in node.outputs if name not in last_use and name not in kept}
            free = tuple(self._slots[name] for name in ends | unused)
            self._steps.append(Step(calls[i], _taker(inputs), outputs[0] if len(outputs) == 1 else outputs, free))
        self._outputs = [self._slot_of(name, graph) for name in graph.outputs]

    def _new_slot(self, name: str) -> int:
        self._values.append(None)
        self._slots[name] = len(self._values) - 1
        return self._slots[name]

    def _slot_of(self, name: str, graph: Graph) -> int:
        if name not in self._slots:
            self._values[self._new_slot(name)] = graph.constants[name]
        return self._slots[name]

    def __call__(self, given: Sequence[Any]) -> list[Any]:
        values = self._values.copy()
        values[self._given] = given
        i = 0
        try:
            for i, (call, take, put, free) in enumerate(self._steps):  # noqa: B007
                result = call(*take(values))
                if isinstance(put, int):
                    values[put] = result
                else:
                    for slot, value in zip(put, result, strict=False):
                        values[slot] = value
                    values[0] = None
                for slot in free:
                    values[slot] = None
        except Exception as error:
            error.add_note(f"in the node {self._labels[i]}")
            raise
        return [values[slot] for slot in self._outputs]


def _taker(slots: tuple[int, ...]) -> Callable[[list[Any]], Sequence[Any]]:
    if not slots:
        return lambda values: ()
    if len(slots) == 1:
        return itemgetter(slice(slots[0], slots[0] + 1))
    return itemgetter(*slots)


def evaluate(node: Node, values: Sequence[Any]) -> tuple[Any, ...]:
    """The outputs of one node."""
    from fastattn.onnx.operators import prepare  # noqa: PLC0415

    result = prepare(replace(node, inputs=list(node.inputs)))(*values)
    return result if type(result) is tuple else (result,)

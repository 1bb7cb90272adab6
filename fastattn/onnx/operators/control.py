"""If, Loop, Scan and SequenceMap: operators that run graphs of their own."""

from typing import Any

import numpy as np

from fastattn.onnx.graph import Array, Call, Node, UnsupportedOperator
from fastattn.onnx.plan import Plan


def _if(node: Node) -> Call:
    then, other = _plan(node, "then_branch"), _plan(node, "else_branch")
    single = len(node.outputs) == 1

    def call(condition: Any, *captured: Any) -> Any:
        if np.size(condition) != 1:
            raise ValueError(f"If: cond must be one value, got shape {np.shape(condition)}")
        results = (then if np.asarray(condition).item() else other)(captured)
        return results[0] if single else results

    return call


def _plan(node: Node, attribute: str) -> Any:
    """What runs a graph of a node on its inputs and on all that the node captures."""
    graph = node.graphs[attribute]
    plan = Plan(graph)
    count, positions = len(graph.inputs), [node.captures.index(name) for name in graph.captures]

    def run(values: Any) -> list[Any]:
        captured = values[count:]
        return plan([*values[:count], *(captured[i] for i in positions)])

    return run


def _loop(node: Node) -> Call:
    body, graph = _plan(node, "body"), node.graphs["body"]
    carried = len(graph.inputs) - 2
    single, given = len(node.outputs) == 1, len(node.inputs)
    missing = max(0, 2 + carried - max(2, given))  # inputs that are left out at the end

    def call(*values: Any) -> Any:
        head, captured = values[:given], values[given:]
        limit, condition = head[0], head[1] if given > 1 else None
        state = [*head[2:], *[None] * missing]
        going = condition is None or bool(np.asarray(condition).item())
        last = None if limit is None else int(np.asarray(limit).item())
        scans: list[list[Any]] = [[] for _ in range(len(graph.outputs) - 1 - carried)]
        step = 0
        while going and (last is None or step < last):
            going, *results = body((np.int64(step), np.bool_(True), *state, *captured))
            going, state = bool(np.asarray(going).item()), results[:carried]
            for kept, value in zip(scans, results[carried:], strict=True):
                kept.append(value)
            step += 1
        stacked = [_stacked(kept, "Loop") for kept in scans]
        return [*state, *stacked][0] if single else (*state, *stacked)

    return call


def _stacked(values: list[Any], op: str) -> Array:
    if not values:
        raise ValueError(f"{op}: a scan output must have at least one step, got none")
    return np.stack(values)


def _scan(node: Node) -> Call:
    body, graph = _plan(node, "body"), node.graphs["body"]
    if node.version < 9:  # the batched form
        raise UnsupportedOperator("load: Scan must be that of opset 9 or later")
    scanned, given, single = int(node.get("num_scan_inputs")), len(node.inputs), len(node.outputs) == 1
    carried = given - scanned
    made = len(graph.outputs) - carried
    axes, backwards = node.get("scan_input_axes") or [0] * scanned, node.get("scan_input_directions") or [0] * scanned
    out_axes = node.get("scan_output_axes") or [0] * made
    out_backwards = node.get("scan_output_directions") or [0] * made

    def call(*values: Any) -> Any:
        state, captured = list(values[:carried]), values[given:]
        inputs = [np.moveaxis(x, axis, 0) for x, axis in zip(values[carried:given], axes, strict=True)]
        steps = len(inputs[0])
        if any(len(x) != steps for x in inputs):
            raise ValueError(f"Scan: inputs must have one length, got {[len(x) for x in inputs]}")
        results: list[list[Any]] = [[] for _ in range(made)]
        for t in range(steps):
            slices = [x[steps - 1 - t if back else t] for x, back in zip(inputs, backwards, strict=True)]
            found = body((*state, *slices, *captured))
            state = found[:carried]
            for kept, value in zip(results, found[carried:], strict=True):
                kept.append(value)
        ordered = [kept[::-1] if back else kept for kept, back in zip(results, out_backwards, strict=True)]
        arrays = [np.moveaxis(_stacked(k, "Scan"), 0, axis) for k, axis in zip(ordered, out_axes, strict=True)]
        return [*state, *arrays][0] if single else (*state, *arrays)

    return call


def _sequence_map(node: Node) -> Call:
    body, given, single = _plan(node, "body"), len(node.inputs), len(node.outputs) == 1

    def call(*values: Any) -> Any:
        inputs, captured = values[:given], values[given:]
        results: list[list[Any]] = [[] for _ in node.outputs]
        for i in range(len(inputs[0])):
            found = body((*(x[i] if isinstance(x, list) else x for x in inputs), *captured))
            for kept, value in zip(results, found, strict=True):
                kept.append(value)
        return results[0] if single else tuple(results)

    return call


MAKERS = {("", "If"): _if, ("", "Loop"): _loop, ("", "Scan"): _scan, ("", "SequenceMap"): _sequence_map}

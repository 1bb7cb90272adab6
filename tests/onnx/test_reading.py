"""What is known before a run: shapes, branches, values that are the same."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import fastattn.onnx
from tests.onnx.models import agree, floats, model, node, ops, value

RNG = np.random.default_rng(0)


def flattened():
    """Reshapes to what Shape says, and takes a branch by it."""
    then = helper.make_graph([node("Neg", "z", "t")], "then", [], [value("t", [None, None])])
    other = helper.make_graph([node("Abs", "z", "t2")], "else", [], [value("t2", [None, None])])
    nodes = [
        node("Relu", "x", "r"), node("Shape", "r", "s"), node("Gather", "s zero", "n"),
        node("Unsqueeze", "n axis", "n1"),
        node("Concat", "n1 rest", "to", axis=0), node("Reshape", "r to", "z"), node("Equal", "n two", "even"),
        helper.make_node("If", ["even"], ["y"], then_branch=then, else_branch=other),
    ]  # fmt: skip
    constants = {"zero": np.int64(0), "axis": np.array([0]), "rest": np.array([-1]), "two": np.int64(2)}
    return model(nodes, [value("x", ["a", "b", "c"])], [value("y", [None, None])], constants)


def test_shapes_that_all_runs_have_leave_what_depends_on_values():
    x = floats(RNG, 2, 3, 4)
    for first, left in ((2, "Neg"), (3, "Abs")):
        arrays = {"x": np.concatenate([x, x[:1]])[:first]}
        plain = agree(flattened(), arrays)
        session = fastattn.onnx.load(flattened(), shapes={"x": arrays["x"].shape})
        assert ops(session) == ["Relu", "Reshape", left]
        assert (session.run(None, arrays)[0] == plain.run(None, arrays)[0]).all()
        assert session.get_inputs()[0].shape == [first, 3, 4]
        with pytest.raises(ValueError, match=r"x must have shape \[., 3, 4\], got \(5, 3, 4\)"):
            session.run(None, {"x": floats(RNG, 5, 3, 4)})


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ({"w": (2,)}, "load: shapes must be of inputs of the model, x, got 'w'"),
        ({"x": (2, 3)}, r"load: shapes\['x'\] must fit \['a', 'b', 'c'\], got \[2, 3\]"),
        ({"x": (2, 3, -1)}, r"load: shapes\['x'\] must fit"),
    ],
)
def test_wrong_shapes_are_named(shapes, match):
    with pytest.raises(ValueError, match=match):
        fastattn.onnx.load(flattened(), shapes=shapes)


def test_shapes_that_depend_on_values_are_not_followed():
    nodes = [node("NonZero", "x", "i"), node("Shape", "i", "s"), node("Identity", "s", "y")]
    proto = model(nodes, [value("x", [4])], [value("y", [2], TensorProto.INT64)])
    session = fastattn.onnx.load(proto, shapes={"x": (4,)})
    assert session.run(None, {"x": np.float32([1, 0, 1, 0])})[0].tolist() == [1, 2]
    nodes = [node("Reshape", "x to", "z"), node("Shape", "z", "y")]
    proto = model(nodes, [value("x", [4]), value("to", [2], TensorProto.INT64)], [value("y", [2], TensorProto.INT64)])
    session = fastattn.onnx.load(proto, shapes={"x": (4,), "to": (2,)})
    for to in ([4, 1], [2, 2]):
        assert session.run(None, {"x": np.ones(4, np.float32), "to": np.array(to)})[0].tolist() == to


def test_equal_nodes_are_one_and_identities_none():
    nodes = [
        node("Neg", "x", "a"), node("Identity", "a", "a2"), node("Neg", "x", "b"), node("Add", "a2 b", "c"),
        node("Softmax", "c", "d", axis=0), node("Softmax", "c", "e", axis=1), node("Identity", "c", "f"),
        node("Sub", "d e", "g"),
    ]  # fmt: skip
    proto = model(nodes, [value("x", [2, 3])], [value("g", [2, 3]), value("f", [2, 3]), value("b", [2, 3])])
    session = agree(proto, {"x": floats(RNG, 2, 3)})
    assert ops(session) == ["Neg", "Add", "Softmax", "Softmax", "Sub"]


def test_random_nodes_stay_apart():
    nodes = [node("RandomNormalLike", "x", "a"), node("RandomNormalLike", "x", "b"), node("Sub", "a b", "y")]
    session = fastattn.onnx.load(model(nodes, [value("x", [50])], [value("y", [50])]))
    assert (session.run(None, {"x": np.ones(50, np.float32)})[0] != 0).any()


def test_branches_that_are_always_taken_may_have_the_same_names():
    def branch(op, name):
        return helper.make_graph(
            [node(op, "x", "inner"), node("Add", "inner one", "out")], name, [], [value("out", [3])]
        )

    def choice(output):
        return helper.make_node("If", ["yes"], [output], then_branch=branch("Neg", "t"), else_branch=branch("Abs", "e"))

    nodes = [choice("a"), choice("b"), node("Mul", "a b", "y")]
    constants = {"yes": np.array(True), "one": np.float32(1)}
    session = agree(model(nodes, [value("x", [3])], [value("y", [3])], constants), {"x": floats(RNG, 3)})
    assert ops(session) == ["Neg", "Add", "Mul"]


def test_a_branch_in_a_branch_that_is_always_taken():
    deepest = [
        helper.make_graph([node(op, "inner", name)], name, [], [value(name, [3])])
        for op, name in (("Neg", "p"), ("Abs", "q"))
    ]
    deep = helper.make_node("If", ["maybe"], ["out"], then_branch=deepest[0], else_branch=deepest[1])
    then = helper.make_graph([node("Add", "x one", "inner"), deep], "then", [], [value("out", [3])])
    other = helper.make_graph([node("Neg", "x", "out2")], "else", [], [value("out2", [3])])
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)]
    inputs = [value("x", [3]), value("maybe", [], TensorProto.BOOL)]
    proto = model(nodes, inputs, [value("y", [3])], {"yes": np.array(True), "one": np.float32(1)})
    for maybe in (True, False):
        assert ops(agree(proto, {"x": floats(RNG, 3), "maybe": np.array(maybe)})) == ["Add", "If"]


@pytest.mark.parametrize("axes", [[0], [1], [-1], [0, 2], [0, -1], [-2]])
@pytest.mark.parametrize("rank", [2, 3])
def test_new_axes(axes, rank):
    shape = [2, 3, 4][:rank]
    proto = model(
        [node("Unsqueeze", "x axes", "y")],
        [value("x", shape)],
        [value("y", [None] * (rank + len(axes)))],
        {"axes": np.array(axes)},
    )
    agree(proto, {"x": floats(RNG, *shape)})


@pytest.mark.parametrize("pads", [[0, 2, 0, 3], [1, 0, 1, 0], [0, 5, 0, 7]])
def test_reflections(pads):
    proto = model(
        [node("Pad", "x pads", "y", mode="reflect")],
        [value("x", [2, 4])],
        [value("y", [None, None])],
        {"pads": np.array(pads)},
    )
    x = floats(RNG, 2, 4)
    expected = np.pad(x, [(pads[0], pads[2]), (pads[1], pads[3])], "reflect")
    assert (fastattn.onnx.load(proto).run(None, {"x": x})[0] == expected).all()

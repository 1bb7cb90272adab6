"""Chains of nodes become one call, with the values of the chain; what is used elsewhere stays."""

import math

import numpy as np
import pytest
from onnx import TensorProto, helper

import fastattn.onnx
from fastattn.onnx.fusion import fuse
from fastattn.onnx.reading import read_graph
from tests.onnx.models import agree, floats, model, node, ops, value

B, H, L, D = 2, 3, 5, 4
SHAPE = [B, H, L, D]
RNG = np.random.default_rng(0)


def attention(before="", after="", scale=None, mask=None, shown=()):
    """q k^T as nodes, with what a graph puts between."""
    nodes = [node("Transpose", "k", "kt", perm=[0, 1, 3, 2]), node("MatMul", "q kt", "s0")]
    scores = "s0"
    if scale:
        nodes.append(node(scale, f"{scores} c", "s1"))
        scores = "s1"
    if mask:
        nodes.append(node("Add", f"{scores} m" if mask == "right" else f"m {scores}", "s2"))
        scores = "s2"
    nodes.append(node("Softmax", scores, "p", axis=-1))
    nodes += [node("MatMul", "p v", "y")]
    inputs = [value(name, SHAPE) for name in "qkv"] + ([value("m", [B, 1, L, L])] if mask else [])
    outputs = [value("y", SHAPE), *(value(name, [B, H, L, L]) for name in shown)]
    return model(nodes, inputs, outputs, {"c": np.float32(0.5)})


def feeds(mask=None):
    arrays = {name: floats(RNG, *SHAPE) for name in "qkv"}
    return arrays | ({"m": floats(RNG, B, 1, L, L)} if mask else {})


@pytest.mark.parametrize("scale", [None, "Mul", "Div"])
@pytest.mark.parametrize("mask", [None, "left", "right"])
def test_attention_that_is_written_out(scale, mask):
    session = agree(attention(scale=scale, mask=mask), feeds(mask))
    assert ops(session) == ["Transpose", "fastattn.Attention"]


@pytest.mark.parametrize("name", ["s0", "p"])
def test_scores_that_are_outputs_keep_the_chain_apart(name):
    session = agree(attention(scale="Mul", shown=[name]), feeds())
    assert "fastattn.Attention" not in ops(session)


def test_a_row_without_a_key_is_nan_as_in_softmax():
    arrays = feeds("right")
    arrays["m"][0, 0, 2] = -np.inf
    y = agree(attention(mask="right"), arrays).run(None, arrays)[0]
    assert np.isnan(y[0, :, 2]).all()
    assert np.isfinite(y[1]).all()


def test_a_row_without_a_key_is_zero_where_the_graph_says_so():
    nodes = [
        node("Mul", "q r", "q2"), node("Transpose", "k", "kt", perm=[0, 1, 3, 2]), node("Mul", "kt r", "k2"),
        node("MatMul", "q2 k2", "s"), node("Add", "s m", "t"), node("Softmax", "t", "p", axis=-1),
        node("IsNaN", "p", "n"), node("Where", "n zero p", "w"), node("MatMul", "w v", "y"),
    ]  # fmt: skip
    inputs = [value(name, SHAPE) for name in "qkv"] + [value("m", [B, 1, L, L])]
    proto = model(nodes, inputs, [value("y", SHAPE)], {"r": np.float32(math.sqrt(0.5)), "zero": np.float32(0)})
    arrays = feeds("right")
    arrays["m"][0, 0, 2] = -np.inf
    session = agree(proto, arrays)
    assert ops(session) == ["Transpose", "fastattn.Attention"]
    assert (session.run(None, arrays)[0][0, :, 2] == 0).all()


def test_attention_of_other_ranks_is_computed_as_it_is_written():
    nodes = [node("MatMul", "q kt", "s"), node("Softmax", "s", "p"), node("MatMul", "p v", "y")]
    proto = model(nodes, [value("q", [L, D]), value("kt", [D, L]), value("v", [L, D])], [value("y", [L, D])])
    session = agree(proto, {"q": floats(RNG, L, D), "kt": floats(RNG, D, L), "v": floats(RNG, L, D)})
    assert ops(session) == ["fastattn.Attention"]
    nodes = [node("MatMul", "q kt", "s"), node("Softmax", "s", "p"), node("MatMul", "p v", "y")]
    shapes = {"q": [B, H, L, D], "kt": [1, H, D, L], "v": [B, H, L, D]}
    proto = model(nodes, [value(name, shape) for name, shape in shapes.items()], [value("y", SHAPE)])
    agree(proto, {name: floats(RNG, *shape) for name, shape in shapes.items()})


def test_a_mask_that_makes_the_scores_larger():
    nodes = [
        node("MatMul", "q kt", "s"),
        node("Add", "s m", "t"),
        node("Softmax", "t", "p", axis=3),
        node("MatMul", "p v", "y"),
    ]
    shapes = {"q": [1, H, L, D], "kt": [1, H, D, L], "m": [B, 1, L, L], "v": [1, H, L, D]}
    proto = model(nodes, [value(name, shape) for name, shape in shapes.items()], [value("y", SHAPE)])
    session = agree(proto, {name: floats(RNG, *shape) for name, shape in shapes.items()})
    assert ops(session) == ["fastattn.Attention"]


def test_an_axis_that_is_not_the_last_in_five_axes():
    nodes = [node("MatMul", "q kt", "s"), node("Softmax", "s", "p", axis=3), node("MatMul", "p v", "y")]
    shapes = {"q": [2, *SHAPE], "kt": [2, B, H, D, L], "v": [2, *SHAPE]}
    proto = model(nodes, [value(name, shape) for name, shape in shapes.items()], [value("y", [2, *SHAPE])])
    agree(proto, {name: floats(RNG, *shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("form", ["divided", "multiplied", "halved", "reversed"])
def test_gelu_that_is_written_out(form):
    inner = node("Mul", "x a", "d") if form == "multiplied" else node("Div", "x c", "d")
    nodes = [inner, node("Erf", "d", "e"), node("Add", "one e" if form == "reversed" else "e one", "f")]
    if form == "halved":
        nodes += [node("Mul", "x half", "h"), node("Mul", "h f", "y")]
    else:
        nodes += [node("Mul", "x f", "g"), node("Mul", "half g" if form == "reversed" else "g half", "y")]
    numbers = {"c": math.sqrt(2), "a": math.sqrt(0.5), "one": 1, "half": 0.5}
    proto = model(nodes, [value("x", [7])], [value("y", [7])], {n: np.float32(v) for n, v in numbers.items()})
    session = agree(proto, {"x": 3 * floats(RNG, 7)})
    assert ops(session) == ["Gelu"]


def test_what_only_looks_like_gelu_stays():
    nodes = [
        node("Div", "x c", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "f"),
        node("Mul", "x f", "g"),
        node("Mul", "g half", "y"),
    ]
    numbers = {"c": math.sqrt(2), "one": 1, "half": 0.5}
    for wrong in numbers:
        constants = {n: np.float32(v * (1.25 if n == wrong else 1)) for n, v in numbers.items()}
        session = agree(model(nodes, [value("x", [7])], [value("y", [7])], constants), {"x": floats(RNG, 7)})
        assert len(ops(session)) == 5


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("opset", [14, 18])
def test_layer_norm_that_is_written_out(square, opset):
    mean = [node("ReduceMean", "x ax", "m"), node("ReduceMean", "q ax", "v")]
    if opset < 18:
        mean = [node("ReduceMean", "x", "m", axes=[-1]), node("ReduceMean", "q", "v", axes=[-1])]
    nodes = [
        mean[0], node("Sub", "x m", "c"), node("Pow", "c two", "q") if square == "Pow" else node("Mul", "c c", "q"),
        mean[1],
        node("Add", "v eps", "a"), node("Sqrt", "a", "s"), node("Div", "c s", "n"), node("Mul", "n w", "t"),
        node("Add", "t b", "y"),
    ]  # fmt: skip
    constants = {
        "two": np.float32(2),
        "eps": np.float32(1e-3),
        "w": floats(RNG, 6),
        "b": floats(RNG, 6),
        "ax": np.array([-1]),
    }
    if opset < 18:
        del constants["ax"]
    session = agree(
        model(nodes, [value("x", [4, 6])], [value("y", [4, 6])], constants, opset), {"x": floats(RNG, 4, 6)}
    )
    assert ops(session) == ["LayerNormalization"]


@pytest.mark.parametrize("activation", [None, "Relu", "Tanh", "Sigmoid", "Gelu"])
@pytest.mark.parametrize("form", ["MatMul", "Gemm", "GemmB"])
def test_linear_layers_take_their_bias_and_activation(form, activation):
    if form == "MatMul":
        nodes = [node("MatMul", "x w", "a"), node("Add", "b a", "z")]
    else:
        nodes = [node("Gemm", "x w b", "z", transB=int(form == "GemmB"))]
    nodes += [node(activation, "z", "y")] if activation else []
    w = floats(RNG, 5, 3) if form == "GemmB" else floats(RNG, 3, 5)
    proto = model(
        nodes, [value("x", [4, 3])], [value("y" if activation else "z", [4, 5])], {"w": w, "b": floats(RNG, 5)}
    )
    session = agree(proto, {"x": floats(RNG, 4, 3)})
    assert ops(session) == ["fastattn.Linear"]


def test_a_bias_that_makes_the_result_larger_is_added_apart():
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b", "y")]
    for bias, shape in ((floats(RNG, 2, 4, 1), [2, 4, 5]), (floats(RNG, 1, 5), [4, 5])):
        proto = model(nodes, [value("x", [4, 3])], [value("y", shape)], {"w": floats(RNG, 3, 5), "b": bias})
        assert ops(agree(proto, {"x": floats(RNG, 4, 3)})) == ["MatMul", "Add"]


@pytest.mark.parametrize("shown", [False, True])
def test_a_norm_takes_the_sum_before_it(shown):
    nodes = [node("Add", "x r", "z"), node("LayerNormalization", "z w b", "n"), node("Neg", "n", "y")]
    outputs = [value("y", [4, 6]), *([value("z", [4, 6])] if shown else [])]
    proto = model(
        nodes, [value("x", [4, 6]), value("r", [None, 6])], outputs, {"w": floats(RNG, 6), "b": floats(RNG, 6)}
    )
    for rows in (4, 1):
        session = agree(proto, {"x": floats(RNG, 4, 6), "r": floats(RNG, rows, 6)})
    assert ops(session) == ["fastattn.AddNorm", "Neg"]


def test_chains_in_branches_become_one_call_too():
    branch = helper.make_graph(
        [node("MatMul", "x w", "a"), node("Add", "a b", "z"), node("Relu", "z", "t")], "b", [], [value("t", [4, 5])]
    )
    nodes = [helper.make_node("If", ["cond"], ["y"], then_branch=branch, else_branch=branch)]
    proto = model(nodes, [value("x", [4, 3]), value("cond", [], TensorProto.BOOL)], [value("y", [4, 5])],
                  {"w": floats(RNG, 3, 5), "b": floats(RNG, 5)})  # fmt: skip
    agree(proto, {"x": floats(RNG, 4, 3), "cond": np.array(True)})
    (choice,) = fuse(read_graph(proto.graph, {"": 20})).nodes
    assert [inner.op for inner in choice.graphs["then_branch"].nodes] == ["Linear"]


def test_the_bits_of_a_fused_chain_do_not_depend_on_the_batch():
    session = fastattn.onnx.load(model(
        [node("MatMul", "x w", "a"), node("Add", "a b", "z"), node("Gelu", "z", "y")], [value("x", ["n", 8])],
        [value("y", ["n", 8])], {"w": floats(RNG, 8, 8), "b": floats(RNG, 8)},
    ))  # fmt: skip
    x = floats(RNG, 9, 8)
    assert (session.run(None, {"x": x})[0][3:4] == session.run(None, {"x": x[3:4]})[0]).all()

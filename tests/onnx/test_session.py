import gc
import threading
import weakref

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import fastattn as fa
import fastattn.onnx
from tests.onnx.models import agree, floats, model, node, ops, value

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def doubled():
    return model([node("Add", "x x", "y"), node("Neg", "y", "z")], [value("x", ["n", 3])],
                 [value("y", ["n", 3]), value("z", ["n", 3])])  # fmt: skip


def test_outputs_are_chosen_by_name_and_order():
    session = fastattn.onnx.load(doubled())
    z, y = session.run(["z", "y"], {"x": X})
    assert (y == 2 * X).all()
    assert (z == -2 * X).all()
    assert len(session.run(None, {"x": X})) == 2
    with pytest.raises(ValueError, match=r"Session\.run: output_names must be of y, z, got 'w'"):
        session.run(["w"], {"x": X})


def test_inputs_and_outputs_have_names_types_and_shapes():
    session = fastattn.onnx.load(doubled())
    (x,) = session.get_inputs()
    assert (x.name, x.type, x.shape) == ("x", "tensor(float)", ["n", 3])
    assert [y.name for y in session.get_outputs()] == ["y", "z"]


@pytest.mark.parametrize(
    ("feed", "error", "match"),
    [
        ({}, ValueError, "input_feed must have the input 'x', got none"),
        ({"x": X, "w": X}, ValueError, "input_feed must have inputs of the model, got 'w'"),
        ({"x": X.astype(np.float64)}, TypeError, "x must be float32, got float64"),
        ({"x": X[:, :2]}, ValueError, r"x must have shape \['n', 3\], got \(2, 2\)"),
        ({"x": X[0]}, ValueError, r"x must have shape \['n', 3\], got \(3,\)"),
        ({"x": "text"}, TypeError, "x"),
    ],
)
def test_wrong_inputs_are_named(feed, error, match):
    with pytest.raises(error, match=match):
        fastattn.onnx.load(doubled()).run(None, feed)


def test_paths_bytes_and_protos_are_one_model(tmp_path):
    proto = doubled()
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    expected = fastattn.onnx.load(proto).run(None, {"x": X})
    for source in (path, str(path), path.read_bytes()):
        for ours, other in zip(fastattn.onnx.load(source).run(None, {"x": X}), expected, strict=True):
            assert (ours == other).all()


def test_outputs_share_no_memory_with_inputs_constants_or_each_other():
    nodes = [
        node("Identity", "x", "a"),
        node("Identity", "c", "b"),
        node("Add", "x x", "d"),
        node("Identity", "d", "e"),
    ]
    proto = model(nodes, [value("x", [3])], [value(name, [3]) for name in "abde"], {"c": np.ones(3, np.float32)})
    session, x = fastattn.onnx.load(proto), np.ones(3, np.float32)
    for _ in range(2):
        results = session.run(None, {"x": x})
        assert [result.tolist() for result in results] == [[1] * 3, [1] * 3, [2] * 3, [2] * 3]
        for result in results:
            result[:] = 7
    assert x.tolist() == [1, 1, 1]


def test_values_are_freed_after_their_last_use():
    session = fastattn.onnx.load(model([node("Add", "x x", "a"), node("Neg", "a", "b"), node("Abs", "b", "y")],
                                       [value("x", [3])], [value("y", [3])]))  # fmt: skip
    seen = []
    first, _, last = session._plan._steps

    def first_call(*args):
        result = first.call(*args)
        seen.append(weakref.ref(result))
        return result

    def last_call(*args):
        gc.collect()
        seen.append(seen[0]() is None)
        return last.call(*args)

    session._plan._steps[0] = first._replace(call=first_call)
    session._plan._steps[2] = last._replace(call=last_call)
    session.run(None, {"x": np.ones(3, np.float32)})
    assert seen[1] is True


def test_constants_are_folded_and_what_nothing_needs_is_left_out():
    nodes = [
        node("Add", "c c", "two"), node("Mul", "x two", "y"), node("Exp", "x", "unused"), node("Shape", "c", "n"),
        node("Reshape", "y n", "z"),
    ]  # fmt: skip
    session = agree(
        model(nodes, [value("x", [3])], [value("z", [3])], {"c": np.ones(3, np.float32)}), {"x": np.ones(3, np.float32)}
    )
    assert ops(session) == ["Mul", "Reshape"]


def test_weights_that_are_packed_are_not_kept_twice():
    rng = np.random.default_rng(0)
    nodes = [node("MatMul", "x w", "a"), node("Gemm", "a w b", "c"), node("Relu", "c", "y")]
    proto = model(
        nodes, [value("x", ["n", 8])], [value("y", ["n", 8])], {"w": floats(rng, 8, 8), "b": floats(rng, 8)}
    )  # fmt: skip
    session = agree(proto, {"x": floats(rng, 3, 8)})
    assert not any(isinstance(kept, np.ndarray) for kept in session._plan._values)


def test_threads_share_a_session():
    rng = np.random.default_rng(0)
    session = fastattn.onnx.load(model([node("MatMul", "x w", "a"), node("Softmax", "a", "y")], [value("x", ["n", 8])],
                                       [value("y", ["n", 8])], {"w": floats(rng, 8, 8)}))  # fmt: skip
    inputs = [floats(rng, n, 8) for n in range(1, 9)]
    expected = [session.run(None, {"x": x})[0] for x in inputs]
    wrong = []

    def work():
        for _ in range(20):
            wrong.extend(n for n, x in enumerate(inputs) if (session.run(None, {"x": x})[0] != expected[n]).any())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def branches():
    then = helper.make_graph([node("Add", "x one", "a"), node("MatMul", "a w", "t")], "then", [], [value("t", [2, 3])])
    inner = helper.make_graph([node("Neg", "x", "i")], "inner", [], [value("i", [2, 3])])
    other = helper.make_graph([node("Identity", "doubled", "j")], "other", [], [value("j", [2, 3])])
    deep = helper.make_node("If", ["flag"], ["e"], then_branch=inner, else_branch=other)
    outer = helper.make_graph([deep], "else", [], [value("e", [2, 3])])
    nodes = [
        node("Add", "x x", "doubled"),
        helper.make_node("If", ["cond"], ["y"], then_branch=then, else_branch=outer),
    ]
    return model(nodes, [value("x", [2, 3]), value("cond", [], TensorProto.BOOL), value("flag", [], TensorProto.BOOL)],
                 [value("y", [2, 3])], {"one": np.float32(1), "w": np.eye(3, dtype=np.float32)})  # fmt: skip


@pytest.mark.parametrize("cond", [True, False])
@pytest.mark.parametrize("flag", [True, False])
def test_branches_see_the_values_around_them(cond, flag):
    agree(branches(), {"x": X, "cond": np.array(cond), "flag": np.array(flag)})


def test_loops_carry_and_stack():
    body = helper.make_graph(
        [node("Add", "s x", "s2"), node("Less", "i three", "going"), node("Mul", "s2 two", "out")], "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("s", [2, 3])],
        [value("going", [], TensorProto.BOOL), value("s2", [2, 3]), value("out", [2, 3])],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["m", "", "x"], ["last", "all"], body=body)]
    proto = model(nodes, [value("x", [2, 3])], [value("last", [2, 3]), value("all", [None, 2, 3])],
                  {"m": np.int64(10), "three": np.int64(3), "two": np.float32(2)})  # fmt: skip
    last, stacked = fastattn.onnx.load(proto).run(None, {"x": X})
    assert (last == 5 * X).all()
    assert (stacked == np.stack([2 * n * X for n in range(2, 6)])).all()


@pytest.mark.parametrize(("backwards", "axis"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_scans_run_both_ways_over_any_axis(backwards, axis):
    body = helper.make_graph([node("Add", "s row", "s2"), node("Identity", "s2", "out")], "body",
                             [value("s", [2]), value("row", [2])], [value("s2", [2]), value("out", [2])])  # fmt: skip
    scan = helper.make_node("Scan", ["s0", "x"], ["last", "all"], body=body, num_scan_inputs=1, scan_input_axes=[axis],
                            scan_input_directions=[backwards], scan_output_axes=[axis],
                            scan_output_directions=[backwards])  # fmt: skip
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    proto = model(
        [scan], [value("s0", [2]), value("x", [None, None])], [value("last", [2]), value("all", [None, None])]
    )
    last, stacked = fastattn.onnx.load(proto).run(None, {"s0": np.zeros(2, np.float32), "x": x if axis == 0 else x.T})
    expected = np.cumsum(x[::-1], 0)[::-1] if backwards else np.cumsum(x, 0)
    assert (stacked == (expected if axis == 0 else expected.T)).all()
    assert (last == x.sum(0)).all()


def test_functions_of_the_model_are_inlined():
    function = helper.make_function(
        "custom", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 20)]
    )
    proto = model([node("Twice", "x", "y", domain="custom")], [value("x", [2, 3])], [value("y", [2, 3])],
                  domains=["custom"], functions=[function])  # fmt: skip
    session = fastattn.onnx.load(proto)
    assert (session.run(None, {"x": X})[0] == 2 * X).all()
    assert ops(session) == ["Add"]


def test_the_caller_may_change_the_model_afterwards():
    proto = doubled()
    session = fastattn.onnx.load(proto)
    proto.graph.node[0].op_type = "Sub"
    assert (session.run(["y"], {"x": X})[0] == 2 * X).all()


@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_other_types_of_numbers(kind):
    rng = np.random.default_rng(0)
    tensor = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b", "c"), node("Relu", "c", "d"), node("Softmax", "d", "y")]
    constants = {"w": floats(rng, 4, 5).astype(kind), "b": floats(rng, 5).astype(kind)}
    proto = model(nodes, [value("x", [3, 4], tensor)], [value("y", [3, 5], tensor)], constants)
    exact = kind is np.float64
    agree(proto, {"x": floats(rng, 3, 4).astype(kind)}, rtol=1e-12 if exact else 5e-3, atol=0 if exact else 1e-3)


def test_integers_divide_towards_zero():
    proto = model([node("Div", "x d", "y")], [value("x", [4], TensorProto.INT64)], [value("y", [4], TensorProto.INT64)],
                  {"d": np.array([2, -2, 2, -2])})  # fmt: skip
    assert fastattn.onnx.load(proto).run(None, {"x": np.array([-5, -5, 5, 4])})[0].tolist() == [-2, 2, 2, -2]


def test_results_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(0)
    nodes = [node("LayerNormalization", "x g b", "n"), node("MatMul", "n w", "a"), node("Gelu", "a", "y")]
    constants = {"g": floats(rng, 32), "b": floats(rng, 32), "w": floats(rng, 32, 48)}
    session = fastattn.onnx.load(model(nodes, [value("x", [64, 32])], [value("y", [64, 48])], constants))
    x, results = floats(rng, 64, 32), []
    for threads in (1, 2):
        with fa.num_threads(threads):
            results.append(session.run(None, {"x": x})[0])
    assert (results[0] == results[1]).all()


def test_evaluator_and_session_agree_on_a_mixed_graph():
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", "x k kb", "c", pads=[1, 1], strides=[2]), node("Relu", "c", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1]), node("ReduceMean", "t axes", "m", keepdims=0),
        node("Gemm", "m w wb", "g", transB=1), node("Sigmoid", "g", "s"), node("Erf", "s", "e"),
        node("Concat", "s e", "y", axis=1),
    ]  # fmt: skip
    constants = {
        "k": floats(rng, 6, 4, 3),
        "kb": floats(rng, 6),
        "axes": np.array([1]),
        "w": floats(rng, 5, 6),
        "wb": floats(rng, 5),
    }
    session = agree(
        model(nodes, [value("x", [2, 4, None])], [value("y", [2, 10])], constants), {"x": floats(rng, 2, 4, 9)}
    )
    assert ops(session)[:2] == ["fastattn.Conv", "Transpose"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("rank", "kernel", "stride", "dilation", "pad"),
    [(1, 3, 1, 1, 0), (1, 4, 2, 2, 3), (2, 3, 2, 1, 1), (2, 1, 1, 1, 0), (3, 2, 1, 2, 1)],
)
def test_convolutions(groups, rank, kernel, stride, dilation, pad):
    rng = np.random.default_rng(0)
    conv = node(
        "Conv", "x k b", "y", group=groups, strides=[stride] * rank, dilations=[dilation] * rank, pads=[pad] * 2 * rank
    )
    constants = {"k": floats(rng, 8, 4 // groups, *[kernel] * rank), "b": floats(rng, 8)}
    proto = model([conv], [value("x", [None] * (2 + rank))], [value("y", [None] * (2 + rank))], constants)
    x = floats(rng, 2, 4, *range(7, 7 + rank))
    if groups == 1 or rank < 3:
        agree(proto, {"x": x}, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="Conv: X must be"):
        fastattn.onnx.load(proto).run(None, {"x": x[:, :3]})


def test_backend_runs_on_the_cpu_alone():
    assert fastattn.onnx.supports_device("CPU")
    assert not fastattn.onnx.supports_device("CUDA")
    assert (fastattn.onnx.run_model(doubled(), [X])[0] == 2 * X).all()
    assert (fastattn.onnx.prepare(doubled()).run({"x": X})[1] == -2 * X).all()
    assert fastattn.onnx.Backend.is_compatible(doubled())
    with pytest.raises(ValueError, match="prepare: device must be CPU, got CUDA"):
        fastattn.onnx.prepare(doubled(), "CUDA")
    with pytest.raises(ValueError, match="run: inputs must be 1 arrays, got 2"):
        fastattn.onnx.prepare(doubled()).run([X, X])


def test_an_operator_of_onnx_alone_runs_as_onnx_runs_it():
    proto = model([node("Mish", "x", "y")], [value("x", [2, 3])], [value("y", [2, 3])])
    session = fastattn.onnx.load(proto)
    assert (session.run(None, {"x": X})[0] == ReferenceEvaluator(proto).run(None, {"x": X})[0]).all()

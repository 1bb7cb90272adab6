"""Files that are broken or that mean harm: an exception that names what is wrong, and nothing is read elsewhere."""

import numpy as np
import pytest
from onnx import TensorProto, external_data_helper, helper

import fastattn.onnx
from fastattn.onnx import InvalidModel, UnsupportedOperator
from tests.onnx.models import constant, model, node, value

X = np.ones((2, 3), np.float32)


def weighted():
    return model(
        [node("MatMul", "x w", "y")], [value("x", [2, 3])], [value("y", [2, 3])], {"w": np.eye(3, dtype=np.float32)}
    )


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x07", bytes(range(256)) * 4])
def test_what_is_no_model(data, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(InvalidModel, match=r"load: .* must be a"):
            fastattn.onnx.load(source)


def test_a_source_of_another_type_and_a_missing_file(tmp_path):
    with pytest.raises(TypeError, match=r"load: model must be a path, bytes or an onnx\.ModelProto, got int"):
        fastattn.onnx.load(3)
    with pytest.raises(FileNotFoundError):
        fastattn.onnx.load(tmp_path / "none.onnx")


def test_every_damaged_byte_gives_a_result_or_a_named_exception():
    data = weighted().SerializeToString()
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 2):
            damaged[place] = rng.integers(256)
        try:
            session = fastattn.onnx.load(bytes(damaged))
        except (InvalidModel, UnsupportedOperator) as error:
            assert "load: " in str(error)
            continue
        try:
            session.run(None, {"x": X})
        except Exception as error:
            assert "Session.run" in str(error) or "in the node" in error.__notes__[0]


def test_an_operator_that_nobody_has():
    proto = model(
        [node("Frobnicate", "x", "y", domain="custom")], [value("x", [2, 3])], [value("y", [2, 3])], domains=["custom"]
    )
    with pytest.raises(UnsupportedOperator, match=r"got custom.Frobnicate \(node 'y'\)"):
        fastattn.onnx.load(proto)
    with pytest.raises(InvalidModel, match="No Op registered for Frobnicate"):
        fastattn.onnx.load(model([node("Frobnicate", "x", "y")], [value("x", [2, 3])], [value("y", [2, 3])]))


def test_a_graph_out_of_order_or_with_values_that_nothing_makes():
    with pytest.raises(InvalidModel, match="not output of any previous nodes"):
        fastattn.onnx.load(
            model([node("Neg", "a", "y"), node("Abs", "x", "a")], [value("x", [2, 3])], [value("y", [2, 3])])
        )


def test_a_fault_in_a_node_names_the_node():
    add = helper.make_node("Add", ["x", "w"], ["y"], name="the_sum")
    proto = model([add], [value("x", [2, None])], [value("y", [2, 3])],
                  {"w": np.ones(4, np.float32)})  # fmt: skip
    with pytest.raises(ValueError, match="the_sum"):
        fastattn.onnx.load(proto).run(None, {"x": X})


def save_with_data(folder, location, data=None):
    """A model whose weight is in a file beside it."""
    proto = weighted()
    weight = proto.graph.initializer[0]
    content = weight.raw_data
    external_data_helper.set_external_data(weight, location, offset=0, length=len(content))
    weight.ClearField("raw_data")
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    if data is not None:
        data.write_bytes(content)
    return path


def test_data_beside_the_model_is_read(tmp_path):
    path = save_with_data(tmp_path, "weights.bin", tmp_path / "weights.bin")
    assert (fastattn.onnx.load(path).run(None, {"x": X})[0] == X).all()


@pytest.mark.parametrize("location", ["../secret.bin", "{}/secret.bin", "folder/../../secret.bin", "link.bin", ""])
def test_data_outside_the_folder_of_the_model_is_refused(tmp_path, location):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "folder").mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = save_with_data(folder, location.format(tmp_path), tmp_path / "secret.bin")
    with pytest.raises(InvalidModel, match="must keep its data in its own folder"):
        fastattn.onnx.load(path)


def test_data_that_is_missing_short_or_without_a_folder_is_refused(tmp_path):
    path = save_with_data(tmp_path, "weights.bin")
    with pytest.raises(InvalidModel, match="no such file"):
        fastattn.onnx.load(path)
    (tmp_path / "weights.bin").write_bytes(b"123")
    with pytest.raises(InvalidModel, match="3 bytes"):
        fastattn.onnx.load(path)
    with pytest.raises(InvalidModel, match="must have a path, because tensor 'w' is in a file"):
        fastattn.onnx.load(path.read_bytes())


def test_data_of_constants_in_branches_is_checked_too(tmp_path):
    tensor = constant("c", np.ones(3, np.float32))
    external_data_helper.set_external_data(tensor, "../secret.bin")
    tensor.ClearField("raw_data")
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    branch = helper.make_graph([helper.make_node("Constant", [], ["t"], value=tensor)], "b", [], [value("t", [3])])
    nodes = [helper.make_node("If", ["cond"], ["y"], then_branch=branch, else_branch=branch)]
    proto = model(nodes, [value("cond", [], TensorProto.BOOL)], [value("y", [3])])
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModel, match="must keep its data in its own folder"):
        fastattn.onnx.load(folder / "model.onnx")


def test_a_huge_constant_is_not_kept():
    """A value that a small file makes large is made when it is needed, not when the file is read."""
    nodes = [
        node("ConstantOfShape", "n", "big"),
        node("ReduceSum", "big", "total", keepdims=0),
        node("Add", "x total", "y"),
    ]
    proto = model(nodes, [value("x", [2, 3])], [value("y", [2, 3])], {"n": np.array([1 << 20])})
    session = fastattn.onnx.load(proto)
    assert all(array.nbytes <= 1 << 20 for array in session._plan._values if isinstance(array, np.ndarray))
    assert (session.run(None, {"x": X})[0] == X).all()

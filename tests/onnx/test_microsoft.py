"""Operators of onnxruntime's own domain, against onnxruntime."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

import fastattn.onnx
from tests.onnx.models import floats, value

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: python -m pip install onnxruntime")
RNG = np.random.default_rng(0)
MASKS = {
    "none": None,
    "ends": np.array([3, 5], np.int32),
    "ends and begins": np.array([4, 5, 1, 0], np.int32),
    "keys": np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], np.int32),
    "queries by keys": RNG.integers(0, 2, (2, 5, 5)).astype(np.int32) | np.eye(5, dtype=np.int32),
}


def differences(op, arrays, outputs, constants="", integers=(), **attributes):
    """The largest difference from onnxruntime of each output."""
    fixed = constants.split()
    node = helper.make_node(op, [name if array is not None else "" for name, array in arrays.items()], outputs,
                            domain="com.microsoft", **attributes)  # fmt: skip
    given = {name: array for name, array in arrays.items() if array is not None and name not in fixed}
    infos = [value(name, array.shape, helper.np_dtype_to_tensor_dtype(array.dtype)) for name, array in given.items()]
    weights = [numpy_helper.from_array(arrays[name], name) for name in fixed]
    shown = [name for name in outputs if name]
    kinds = {name: 6 if name in integers else 1 for name in shown}

    def proto(shapes):
        graph = helper.make_graph([node], "test", infos, [value(n, s, kinds[n]) for n, s in shapes.items()], weights)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    session = onnxruntime.InferenceSession(
        proto(dict.fromkeys(shown)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, given)
    shapes = {name: list(array.shape) for name, array in zip(shown, expected, strict=True)}
    found = fastattn.onnx.load(proto(shapes)).run(None, given)
    for ours, other in zip(found, expected, strict=True):
        assert ours.shape == other.shape
        assert ours.dtype == other.dtype
    return [np.abs(ours.astype(float) - other).max() for ours, other in zip(found, expected, strict=True)]


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("constants", ["", "w b"])
def test_attention(causal, mask, constants):
    arrays = {
        "x": floats(RNG, 2, 5, 12),
        "w": np.float32(0.3) * floats(RNG, 12, 24),
        "b": floats(RNG, 24),
        "mask": MASKS[mask],
    }
    found = differences("Attention", arrays, ["y"], constants, num_heads=2, unidirectional=causal)
    assert max(found) < 1e-5


@pytest.mark.parametrize("mask", [None, RNG.integers(0, 2, (2, 8)).astype(np.int32)])
def test_attention_with_a_past(mask):
    arrays = {
        "x": floats(RNG, 2, 5, 12),
        "w": np.float32(0.3) * floats(RNG, 12, 24),
        "b": floats(RNG, 24),
        "mask": mask,
        "past": floats(RNG, 2, 2, 2, 3, 4),
    }
    assert max(differences("Attention", arrays, ["y", "present"], num_heads=2, unidirectional=1)) < 1e-5


def test_attention_with_values_of_another_size_a_bias_and_a_scale():
    arrays = {
        "x": floats(RNG, 2, 5, 12),
        "w": np.float32(0.3) * floats(RNG, 12, 28),
        "b": floats(RNG, 28),
        "mask": None,
        "past": None,
        "extra": floats(RNG, 2, 2, 5, 5),
    }
    assert max(differences("Attention", arrays, ["y"], num_heads=2, qkv_hidden_sizes=[8, 8, 12], scale=0.7)) < 1e-5


@pytest.mark.parametrize("size", [1.0, 1e-3])  # small ones tell which epsilon is meant where none is given
@pytest.mark.parametrize("outputs", [["y"], ["y", "", "", "sum"]])
def test_skip_layer_normalization(outputs, size):
    arrays = {
        "x": np.float32(size) * floats(RNG, 2, 5, 64),
        "skip": np.float32(size) * floats(RNG, 2, 5, 64),
        "g": floats(RNG, 64),
        "b": floats(RNG, 64),
        "bias": np.float32(size) * floats(RNG, 64),
    }
    assert max(differences("SkipLayerNormalization", arrays, outputs)) < 3e-6


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_embed_layer_normalization(segments, masked):
    arrays = {
        "ids": RNG.integers(0, 9, (2, 5)).astype(np.int32),
        "seg": RNG.integers(0, 2, (2, 5)).astype(np.int32) if segments else None,
        "words": floats(RNG, 9, 8), "places": floats(RNG, 7, 8), "kinds": floats(RNG, 2, 8) if segments else None,
        "g": floats(RNG, 8), "b": floats(RNG, 8),
        "mask": np.array([[1] * 5, [1, 1, 1, 0, 0]], np.int32) if masked else None,
    }  # fmt: skip
    found = differences("EmbedLayerNormalization", arrays, ["y", "count", "sum"], integers=["count"])
    assert found[0] < 1e-5
    assert found[1] == 0
    assert found[2] < 1e-6


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("columns", [False, True])
def test_dynamic_quantize_lstm(kind, columns):
    """onnxruntime rounds x to bytes too: its results are near, not equal."""
    d, inputs, hidden = 2, 7, 5
    shape = (d, 4 * hidden) if columns else (d,)
    low, zero = (-60, 0) if kind is np.int8 else (0, 30)
    zeros = np.full(shape, 0 if columns else zero, kind)

    def scale():
        return np.abs(floats(RNG, *shape)) * np.float32(0.005) + np.float32(0.002)

    def weight(size):
        return RNG.integers(low, 60, (d, size, 4 * hidden)).astype(kind)

    arrays = {
        "X": floats(RNG, 6, 3, inputs), "W": weight(inputs), "R": weight(hidden), "B": floats(RNG, d, 8 * hidden),
        "n": np.array([6, 2, 4], np.int32), "h": None, "c": None, "P": None,
        "ws": scale(), "wz": zeros, "rs": scale(), "rz": zeros,
    }  # fmt: skip
    found = differences(
        "DynamicQuantizeLSTM",
        arrays,
        ["Y", "Yh", "Yc"],
        "W R ws wz rs rz",
        hidden_size=hidden,
        direction="bidirectional",
    )
    assert max(found) < 0.05

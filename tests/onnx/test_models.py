"""Whole models: PyTorch's export of an encoder, and Silero VAD of PyPI."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastattn.onnx
from tests.onnx.encoder import exported_encoder
from tests.onnx.models import ops

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: python -m pip install onnxruntime")


def theirs(data):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def test_an_exported_encoder_agrees_with_onnxruntime():
    pytest.importorskip("torch", reason="needs PyTorch: python -m pip install torch")
    data = exported_encoder()
    session, other = fastattn.onnx.load(data), theirs(data)
    found = ops(session)
    assert found.count("fastattn.Attention") == 2
    assert found.count("fastattn.Linear") == 12
    assert found.count("fastattn.AddNorm") == 5
    rng = np.random.default_rng(0)
    for batch, length in ((1, 1), (3, 8), (2, 33)):
        feeds = {"ids": rng.integers(0, 50, (batch, length)), "kept": np.ones((batch, length), np.int64)}
        feeds["kept"][0, length // 2 + 1 :] = 0
        np.testing.assert_allclose(session.run(None, feeds)[0], other.run(None, feeds)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["silero_vad.onnx", "silero_vad_16k_op15.onnx", "silero_vad_op18_ifless.onnx"])
@pytest.mark.parametrize("shapes", [None, {"input": (1, 576), "state": (2, 1, 128)}])
def test_silero_vad_agrees_with_onnxruntime(name, shapes):
    spec = find_spec("silero_vad")
    if spec is None or spec.origin is None:
        pytest.skip("needs silero-vad: python -m pip install --no-deps silero-vad")
    path = Path(spec.origin).parent / "data" / name
    session, other = fastattn.onnx.load(path, shapes=shapes), theirs(str(path))
    rng = np.random.default_rng(0)
    time = np.arange(40 * 512) / 16000
    audio = (0.3 * np.sin(2 * np.pi * 150 * time) * (time % 0.5 > 0.2) + 0.02 * rng.standard_normal(len(time))).astype(
        np.float32
    )
    ours = expected = [None, np.zeros((2, 1, 128), np.float32)]
    for start in range(0, len(audio) - 576, 512):
        given = {"input": audio[None, start : start + 576], "sr": np.array(16000)}
        ours = session.run(None, given | {"state": ours[1]})
        expected = other.run(None, given | {"state": expected[1]})
        np.testing.assert_allclose(ours[0], expected[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(ours[1], expected[1], rtol=1e-5, atol=1e-5)

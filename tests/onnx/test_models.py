"""Whole models: PyTorch's export of an encoder, and Silero VAD of PyPI."""

import io
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastattn.onnx
from tests.onnx.models import ops

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: python -m pip install onnxruntime")


def theirs(data):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def exported_encoder(layers=2, width=48, heads=4, words=50):
    """The bytes of an encoder of BERT's form with random weights."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: python -m pip install torch")
    nn, F = torch.nn, torch.nn.functional

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
            self.out, self.up, self.down = (
                nn.Linear(width, width),
                nn.Linear(width, 4 * width),
                nn.Linear(4 * width, width),
            )
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

        def forward(self, x, mask):
            q, k, v = (p(x).view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) for p in self.qkv)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(x.shape)
            x = self.norms[0](x + self.out(attended))
            return self.norms[1](x + self.down(F.gelu(self.up(x))))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places, self.norm = (
                nn.Embedding(words, width),
                nn.Embedding(64, width),
                nn.LayerNorm(width),
            )
            self.layers = nn.ModuleList(Layer() for _ in range(layers))

        def forward(self, ids, kept):
            x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]])
            mask = (1.0 - kept[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
            for layer in self.layers:
                x = layer(x, mask)
            return x

    torch.manual_seed(0)
    file = io.BytesIO()
    axes = {name: {0: "batch", 1: "length"} for name in ("ids", "kept")}
    example = torch.ones(2, 7, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(Encoder().eval(), (example, example), file,
                          dynamo=False, opset_version=17, input_names=["ids", "kept"], output_names=["hidden"],
                          dynamic_axes=axes)  # fmt: skip
    return file.getvalue()


def test_an_exported_encoder_agrees_with_onnxruntime():
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

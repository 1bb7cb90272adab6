"""ONNX files computed by fastattn: a session with the calls of onnxruntime's, and a backend for onnx.backend.

    import fastattn.onnx
    session = fastattn.onnx.load("model.onnx")
    outputs = session.run(None, {"input": x})

Attention, recurrent networks, matrix products, norms and softmax are fastattn's. Every other operator is NumPy's or
that of onnx.reference. A file is read once into a list of calls: constants are folded, weights packed, attention that
is written out as MatMul, Softmax and MatMul becomes one call, and a value is freed after its last use.
"""

try:
    import onnx as _onnx  # noqa: F401
except ImportError as error:
    raise ImportError('fastattn.onnx needs onnx: python -m pip install "fastattn[onnx]"') from error

from fastattn.onnx.backend import Backend, prepare, run_model, supports_device
from fastattn.onnx.graph import UnsupportedOperator
from fastattn.onnx.loading import InvalidModel
from fastattn.onnx.session import Session, ValueInfo, load

__all__ = [
    "Backend",
    "InvalidModel",
    "Session",
    "UnsupportedOperator",
    "ValueInfo",
    "load",
    "prepare",
    "run_model",
    "supports_device",
]

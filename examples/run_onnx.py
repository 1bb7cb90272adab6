"""An ONNX file by fastattn, with the calls of onnxruntime: a small layer, whose attention the file writes out.

python examples/run_onnx.py [model.onnx]
"""

import sys

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

import fastattn.onnx

LAYER = """
<ir_version: 10, opset_import: ["": 20]>
layer (float[batch, length, 32] x) => (float[batch, length, 32] y)
<int64[4] heads = {0, 0, 4, 8}, int64[3] whole = {0, 0, 32}, float scale = {0.35355339}>
{
    q0 = MatMul(x, wq)
    q1 = Reshape(q0, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k0 = MatMul(x, wk)
    k1 = Reshape(k0, heads)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v0 = MatMul(x, wv)
    v1 = Reshape(v0, heads)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    product = MatMul(q, k)
    scores = Mul(product, scale)
    weights = Softmax(scores)
    mixed = MatMul(weights, v)
    apart = Transpose <perm = [0, 2, 1, 3]> (mixed)
    together = Reshape(apart, whole)
    out = MatMul(together, wo)
    y = Add(x, out)
}
"""


def layer() -> onnx.ModelProto:
    model, rng = onnx.parser.parse_model(LAYER), np.random.default_rng(0)
    for name in ("wq", "wk", "wv", "wo"):
        weight = 0.2 * rng.standard_normal((32, 32), dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return model


model = onnx.load(sys.argv[1]) if len(sys.argv) > 1 else layer()
session, rng = fastattn.onnx.load(model), np.random.default_rng(1)
feeds = {}
for info in session.get_inputs():
    feeds[info.name] = rng.standard_normal([n if isinstance(n, int) else 3 for n in info.shape], dtype=np.float32)
for info, ours, theirs in zip(
    session.get_outputs(), session.run(None, feeds), ReferenceEvaluator(model).run(None, feeds), strict=True
):
    print(f"{info.name} {ours.shape}: largest difference from onnx's evaluator: {np.abs(ours - theirs).max():.1e}")

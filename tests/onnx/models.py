"""Small models for tests."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import fastattn.onnx

FLOAT = TensorProto.FLOAT


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def model(nodes, inputs, outputs, constants=(), opset=20, domains=(), functions=()):
    """Of nodes; constants: arrays by name."""
    arrays = [constant(name, array) for name, array in dict(constants).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, arrays)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def ops(session):
    """The operators of the plan of a session, fused ones with their domain."""
    return [label.split(" ")[0] for label in session._plan._labels]


def agree(proto, feeds, rtol=1e-5, atol=1e-6):
    """A session whose outputs are those of onnx's evaluator."""
    session = fastattn.onnx.load(proto)
    found = session.run(None, feeds)
    with np.errstate(all="ignore"):
        expected = ReferenceEvaluator(proto).run(None, feeds)
    for ours, other in zip(found, expected, strict=True):
        assert ours.dtype == other.dtype
        assert ours.shape == other.shape
        np.testing.assert_allclose(ours, other, rtol=rtol, atol=atol)
    return session


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)

"""The tests of onnx.backend for the operators that fastattn has, and for those whose NumPy form is ours."""

import importlib
import warnings

import pytest
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case import node
from onnx.backend.test.runner import Runner

import fastattn.onnx

MODULES = (
    "attention rotaryembedding lstm gru rnn softmax logsoftmax layernormalization rmsnormalization gelu gemm matmul",
    "add sub mul div pow equal greater less and_ or_ not_ where clip cast shape reshape unsqueeze squeeze transpose",
    "flatten gather gatherelements concat slice split expand constantofshape reducesum reducemean reducemax reducemin",
    "reduceprod pad dropout identity if_ loop scan conv optionalhaselement optionalgetelement relu sigmoid tanh exp",
    "rangeop size sequence_map",
)
# How many the operators of fastattn have, as nodes and as the graphs of their definitions.
EXPECTED = {"attention": 185, "rotary": 16, "softmax": 21, "logsoftmax": 21, "layer": 57, "rms": 38, "gelu": 8,
            "gemm": 11, "matmul": 7, "lstm": 6, "gru": 6, "simple": 5, "rnn": 1}  # fmt: skip
LEFT_OUT = {
    "test_attention_4d_causal_fp16_expanded",  # onnx's own steps in float16; ours is a rounding away, and nearer
    "test_loop16_seq_none",  # onnx's runner cannot compare sequences of numbers
    "test_scan_sum",  # the batched form of opset 8, which is refused
}


def collect():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # casts that overflow, on purpose
        before = set(map(id, node._NodeTestCases))
        for name in " ".join(MODULES).split():
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
        return [case for case in node._NodeTestCases if id(case) not in before]


CASES = {case.name: case for case in collect() if case.name not in LEFT_OUT}


@pytest.mark.parametrize("name", CASES)
def test_node_has_the_outputs_of_its_definition(name):
    case = CASES[name]
    prepared = fastattn.onnx.prepare(case.model)
    for inputs, outputs in case.data_sets:
        found = prepared.run([as_array(x) for x in inputs])
        Runner.assert_similar_outputs([as_array(y) for y in outputs], found, case.rtol, case.atol)


def as_array(x):
    return numpy_helper.to_array(x) if isinstance(x, TensorProto) else x


@pytest.mark.parametrize("kind", EXPECTED)
def test_all_cases_of_our_operators_are_there(kind):
    found = [name for name in CASES if name.split("_")[1] == kind]
    assert len(found) >= EXPECTED[kind]

"""Recurrent nodes against onnxruntime. scripts/onnx_sweep.py draws more of the same cases."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import fastattn as fa
import fastattn.onnx
from tests.onnx.models import floats, model, node, value

SWEEP = Path(__file__).parent.parent.parent / "scripts" / "onnx_sweep.py"
CASES = 192


def sweep():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: python -m pip install onnxruntime")
    spec = importlib.util.spec_from_file_location("onnx_sweep", SWEEP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("part", range(8))
def test_drawn_recurrent_nodes_agree_with_onnxruntime(part):
    drawn = sweep()
    for seed in range(part, CASES, 8):
        case = drawn.draw(seed)
        assert drawn.difference(case) <= drawn.BOUND, (seed, case.kind, case.attributes)


def test_unknown_activations_directions_and_clips_are_named():
    inputs = [value("X", [None, None, 2]), value("W", [1, 3, 2]), value("R", [1, 3, 3])]
    for attributes, match in (
        ({"activations": ["Cube"]}, "RNN: activations must be of relu, tanh, .*, got 'Cube'"),
        ({"activations": ["Tanh", "Tanh"]}, "RNN: activations must be 1 names"),
        ({"clip": -1.0}, "RNN: clip must be at least 0, got -1.0"),
        ({"direction": "sideways"}, "RNN: direction must be forward, reverse or bidirectional, got 'sideways'"),
    ):
        proto = model([node("RNN", "X W R", "Y", hidden_size=3, **attributes)], inputs, [value("Y", [None] * 4)])
        feeds = {
            name: np.ones(shape, np.float32) for name, shape in (("X", (4, 1, 2)), ("W", (1, 3, 2)), ("R", (1, 3, 3)))
        }
        with pytest.raises(ValueError, match=match):
            fastattn.onnx.load(proto).run(None, feeds)


def test_lengths_are_checked():
    inputs = [value("X", [None, None, 2]), value("W", [1, 3, 2]), value("R", [1, 3, 3]), value("n", [None], 6)]
    proto = model([node("RNN", "X W R  n", "Y", hidden_size=3)], inputs, [value("Y", [None] * 4)])
    proto.graph.node[0].input[:] = ["X", "W", "R", "", "n"]
    feeds = {
        "X": np.ones((4, 1, 2), np.float32),
        "W": np.ones((1, 3, 2), np.float32),
        "R": np.ones((1, 3, 3), np.float32),
    }
    with pytest.raises(ValueError, match="RNN: sequence_lens"):
        fastattn.onnx.load(proto).run(None, feeds | {"n": np.array([5], np.int32)})


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("stated", [False, True])
def test_a_stream_has_the_bits_of_its_steps_at_once(kind, direction, stated):
    rng, gates, states = np.random.default_rng(0), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], "hc"[: 1 + (kind == "LSTM")]
    inputs = [value("X", [None, 2, 5]), *(value(name, [1, 2, 7]) for name in states)]
    outputs = [value("Y", [None] * 4), *(value(name + "n", [1, 2, 7]) for name in states)]
    names = f"X W R B  {' '.join(states)}".split(" ")
    if not stated:
        inputs, names = inputs[:1], names[:4]
    weights = {"W": floats(rng, 1, gates * 7, 5), "R": floats(rng, 1, gates * 7, 7), "B": floats(rng, 1, 2 * gates * 7)}
    proto = model([node(kind, "X", " ".join(output.name for output in outputs), hidden_size=7, direction=direction)],
                  inputs, outputs, weights)  # fmt: skip
    proto.graph.node[0].input[:] = names
    session = fastattn.onnx.load(proto)
    x, state = floats(rng, 4, 2, 5), {name: floats(rng, 1, 2, 7) for name in states} if stated else {}
    whole = session.run(None, {"X": x} | state)
    if not stated:
        one = session.run(None, {"X": x[:1]})
        first = session.run(None, {"X": np.repeat(x[:1], 2, 0)})[0][0 if direction == "forward" else 1]
        assert (one[0][0] == first).all()
        assert (one[1] == one[0][0]).all()
        return
    order = range(4) if direction == "forward" else range(3, -1, -1)
    for t in order:
        y, *after = session.run(None, {"X": x[t : t + 1]} | state)
        state = dict(zip(states, after, strict=True))
        assert (y[0] == whole[0][t]).all()
    for found, expected in zip(after, whole[1:], strict=True):
        assert (found == expected).all()


def test_weights_of_the_model_are_packed_once(monkeypatch):
    packed = []
    real = fa.pack_rnn
    monkeypatch.setattr(fa, "pack_rnn", lambda *args: packed.append(1) or real(*args))
    weights = {"W": np.ones((1, 3, 2), np.float32), "R": np.ones((1, 3, 3), np.float32)}
    proto = model(
        [node("RNN", "X W R", "Y", hidden_size=3)], [value("X", [None, None, 2])], [value("Y", [None] * 4)], weights
    )
    session = fastattn.onnx.load(proto)
    for _ in range(3):
        session.run(None, {"X": np.ones((4, 1, 2), np.float32)})
    assert len(packed) == 1

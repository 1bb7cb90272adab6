"""Malformed calls: one argument of a good call is replaced by something else. Then the call computes, or it raises one
of the exceptions that the contract names, with the op and what came; never anything else, and no argument is written
to.

This file is about what no list foresees; the lists of single errors are with each op's tests.
"""

import zlib

import numpy as np
import pytest

import fastattn as fa

SAMPLES = 1000  # of each op; what the values are is drawn, so more find more
ALLOWED = (TypeError, ValueError, MemoryError)  # AxisError is both a ValueError and an IndexError


def floats(*shape, dtype=np.float32):
    return np.random.default_rng(zlib.crc32(repr(shape).encode())).standard_normal(shape).astype(dtype)


def recurrent_weights(gates, size=3, hidden=4):
    return {
        "weight_ih_l0": floats(gates * hidden, size),
        "weight_hh_l0": floats(gates * hidden, hidden),
        "bias_ih_l0": floats(gates * hidden),
        "bias_hh_l0": floats(gates * hidden),
    }


def cell(gates, **states):
    return {"x": floats(2, 3), **states, "w_ih": floats(gates * 4, 3), "w_hh": floats(gates * 4, 4),
            "b_ih": floats(gates * 4), "b_hh": floats(gates * 4)}  # fmt: skip


def attention_arguments():
    return {
        "q": floats(2, 4, 5, 8), "k": floats(2, 2, 6, 8), "v": floats(2, 2, 6, 3), "mask": floats(2, 1, 5, 6),
        "causal": "top-left", "scale": 0.5, "window": (3, 2), "softcap": 5.0, "alibi_slopes": floats(4),
        "sinks": floats(4), "q_lengths": np.array([5, 3]), "kv_lengths": np.array([2, 6]), "layout": "bhld",
    }  # fmt: skip


def good_calls():
    """(op, function, arguments): calls that compute."""
    x, y = floats(3, 5), floats(3, 5)
    for name in ("exp", "tanh", "sigmoid", "relu", "gelu", "silu"):
        yield name, getattr(fa, name), {"x": x, "out": np.empty_like(x)}
    yield "gelu", fa.gelu, {"x": x, "approximate": "tanh"}
    for name in ("softmax", "log_softmax"):
        yield name, getattr(fa, name), {"x": x, "axis": 1, "scale": 2.0, "out": np.empty_like(x)}
        yield f"{name}_backward", getattr(fa, f"{name}_backward"), {"dy": x, "y": y, "axis": 0, "scale": 2.0}
    for name, bias in (("layer_norm", {"bias": floats(5)}), ("rms_norm", {})):
        yield name, getattr(fa, name), {"x": x, "weight": floats(5), **bias, "eps": 1e-5, "out": np.empty_like(x)}
    yield "linear", fa.linear, {"x": x, "weight": floats(4, 5), "bias": floats(4), "activation": "gelu",
                                "out": np.empty((3, 4), np.float32)}  # fmt: skip
    for name in ("tanh", "sigmoid", "relu", "gelu", "silu"):
        yield f"{name}_backward", getattr(fa, f"{name}_backward"), {"dy": x, "x": y}
    yield "silu_gated", fa.silu_gated, {"gate": x, "up": y, "out": np.empty_like(x)}
    yield "silu_gated_backward", fa.silu_gated_backward, {"dy": x, "gate": y, "up": x}
    ids = np.array([[0, 2], [1, 1]])
    yield "embedding", fa.embedding, {"ids": ids, "weight": x}
    logits = {"logits": floats(2, 2, 5), "targets": ids}
    options = {"ignore_index": 1, "label_smoothing": 0.1, "reduction": "sum"}
    yield "cross_entropy", fa.cross_entropy, {**logits, **options}
    rotated = floats(2, 3, 6)
    yield "rope", fa.rope, {"x": rotated, "positions": np.arange(3), "base": 100.0, "interleaved": True,
                            "out": np.empty_like(rotated)}  # fmt: skip
    linear = {"x": x, "weight": floats(4, 5), "bias": floats(4)}
    yield "linear", fa.linear_forward, {**linear, "activation": "gelu"}
    saves = {
        "linear_backward": (floats(3, 4), fa.linear_forward(**linear)[1]),
        "embedding_backward": (floats(2, 2, 5), fa.embedding_forward(ids, x)[1]),
        "cross_entropy_backward": (floats(2, 2), fa.cross_entropy_forward(**logits, reduction="none")[1]),
        "rope_backward": (rotated, fa.rope_forward(rotated, np.arange(3))[1]),
    }
    for name, (gradient, saved) in saves.items():
        first = "dloss" if name.startswith("cross") else "dy"
        yield name, getattr(fa, name), {first: gradient, "saved": saved}
    yield "pack_linear", fa.pack_linear, {"weight": x, "dtype": "float32"}
    yield "sinusoidal_positions", fa.sinusoidal_positions, {"length": 4, "dim": 6, "base": 100.0, "offset": 2}
    out = np.empty((2, 4, 5, 3), np.float32)
    yield "attention", fa.attention, attention_arguments() | {"return_lse": True, "out": out}
    yield "attention", fa.attention_forward, attention_arguments()
    starts = np.array([0, 2, 2, 7])
    yield "attention_varlen", fa.attention_varlen, {
        "q": floats(7, 4, 8), "k": floats(7, 2, 8), "v": floats(7, 2, 3), "cu_seqlens_q": starts,
        "cu_seqlens_k": starts, "causal": "bottom-right", "window": (3, None), "sinks": floats(4),
    }  # fmt: skip
    part, lse = floats(1, 2, 3, 4), floats(1, 2, 3)
    yield "merge_attention", fa.merge_attention, {"out_a": part, "lse_a": lse, "out_b": part, "lse_b": lse}
    yield "attention_weights", fa.attention_weights, {"q": floats(1, 2, 3, 4), "k": floats(1, 2, 5, 4),
                                                      "lse": floats(1, 2, 3), "heads": [1], "rows": [0, 2]}  # fmt: skip
    h, c, stacked = floats(2, 4), floats(2, 4), floats(1, 2, 4)
    yield "rnn_cell", fa.rnn_cell, cell(1, h=h) | {"nonlinearity": "relu"}
    yield "gru_cell", fa.gru_cell, cell(3, h=h) | {"linear_before_reset": False}
    yield "lstm_cell", fa.lstm_cell, cell(4, h=h, c=c) | {"peephole": floats(3, 4)}
    common = {"x": floats(6, 2, 3), "lengths": np.array([6, 0]), "batch_first": False}
    yield "rnn", fa.rnn, common | {"state": stacked, "weights": recurrent_weights(1), "nonlinearity": "tanh"}
    yield "gru", fa.gru, common | {"state": stacked, "weights": recurrent_weights(3), "linear_before_reset": True}
    yield "lstm", fa.lstm, common | {"state": (stacked, stacked.copy()), "weights": recurrent_weights(4)}
    for name, gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
        yield f"pack_{name}", getattr(fa, f"pack_{name}"), {"weights": recurrent_weights(gates), "dtype": "float32"}


CALLS = list(good_calls())

THINGS = [
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, float("nan"), float("inf"), 1e308, 1j,
    "", "tanh", "bhld", "float32", b"x", "\ud800", (), [], {}, (1,), (None, None), (-1, 2), (2**70, 2**70),
    [[1.0, 2.0], [3.0]],
    object(), Ellipsis, NotImplemented, np.float32, int, len, slice(None), range(3), {1, 2}, np.nan, np.int8(3),
    np.float64(2), np.bool_(True), np.datetime64("2020-01-01"), np.ma.masked, np.ma.array([1.0, 2.0], mask=[0, 1]),
    np.array(3.0), np.array([]), np.array([None]), np.array(["x"]), np.zeros(3, "i4,f4"), np.zeros(2, "U3"),
    np.zeros((1,) * 20), np.zeros((2, 3), ">f4"), np.zeros((2, 3), complex), np.zeros((2, 3), bool),
    np.zeros(3, np.longdouble),
]  # fmt: skip


class Hostile:
    """Looks like an array and fails."""

    def __array__(self, *arguments, **options):
        raise RuntimeError("no")


def huge(dtype, ndim):
    """More elements than any memory has: strides of 0."""
    return np.broadcast_to(np.zeros((), dtype), (2 ** (58 // max(1, ndim)),) * ndim)


def spoilt(rng, value):
    """Something else in the place of `value`."""
    if isinstance(value, np.ndarray) and rng.random() < 0.7:
        return spoilt_array(rng, value)
    if isinstance(value, dict) and rng.random() < 0.8:
        return spoilt_mapping(rng, value)
    if isinstance(value, tuple) and value and rng.random() < 0.6:
        at = rng.integers(len(value))
        return tuple(spoilt(rng, part) if i == at else part for i, part in enumerate(value))
    if rng.random() < 0.03:
        return Hostile()
    return THINGS[rng.integers(len(THINGS))]


def spoilt_array(rng, x):
    choice, axis = rng.integers(15), int(rng.integers(max(1, x.ndim)))
    types = [np.float64, np.float16, np.int64, np.int8, bool, complex, object, ">f4", np.longdouble]
    changes = [
        lambda: x.astype(types[rng.integers(len(types))]),
        lambda: x[..., None],
        lambda: x[0] if x.ndim and len(x) else x,
        lambda: np.take(x, [], axis),
        lambda: np.concatenate([x, x], axis),
        lambda: np.delete(x, 0, axis) if x.shape[axis] else x,
        lambda: x.swapaxes(0, -1),
        x.ravel,
        x.tolist,
        lambda: huge(x.dtype, x.ndim) if x.dtype.kind == "f" else -x,  # NumPy would look at all of it
        lambda: np.ma.masked_less(x, 0),
        lambda: x.astype(str),
        lambda: x * np.array(np.nan if x.dtype.kind == "f" else -1, x.dtype),
        lambda: np.full_like(x, np.inf if x.dtype.kind == "f" else 2**62),
        lambda: x[tuple(slice(None, None, -1) for _ in x.shape)],
    ]
    return changes[choice]()


def spoilt_mapping(rng, weights):
    weights, name = dict(weights), list(weights)[rng.integers(len(weights))]
    choice = rng.integers(4)
    if choice == 0:
        del weights[name]
    elif choice == 1:
        weights[f"{name}_more"] = weights[name]
    elif choice == 2:
        weights[3] = weights[name]
    else:
        weights[name] = spoilt(rng, weights[name])
    return weights


def arrays_in(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from arrays_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from arrays_in(part)


@pytest.mark.parametrize("index", range(len(CALLS)), ids=[f"{i}-{op}" for i, (op, _, _) in enumerate(CALLS)])
def test_the_good_call_computes(index):
    _, function, arguments = CALLS[index]
    function(**arguments)


@pytest.mark.parametrize("index", range(len(CALLS)), ids=[f"{i}-{op}" for i, (op, _, _) in enumerate(CALLS)])
@pytest.mark.filterwarnings("ignore")
def test_a_spoilt_argument_computes_or_is_named(index, rng):
    op, function, arguments = CALLS[index]
    inputs = [(a, a.tobytes()) for name, value in arguments.items() if name != "out" for a in arrays_in(value)]
    refused = 0
    for _ in range(SAMPLES):
        name = list(arguments)[rng.integers(len(arguments))]
        given = arguments | {name: spoilt(rng, arguments[name])}
        out = given.get("out")
        before = np.asarray(out).tobytes() if isinstance(out, np.ndarray) and out.size < 1000 else None
        try:
            function(**given)
        except ALLOWED as error:
            refused += 1
            what = f"{name}={type(given[name])} of {op}: {type(error).__name__}: {error}"
            if not isinstance(error, MemoryError):  # NumPy's own, of a copy that it cannot make
                assert str(error).split(":")[0].removesuffix("_forward") == op, what
            if before is not None:
                assert np.asarray(out).tobytes() == before, f"out was written to although {what}"
        for array, copy in inputs:
            assert array.tobytes() == copy
    assert refused > SAMPLES / 10

"""Objects whose own methods raise, lie, or answer something else than the first time: the error is ours, and names
function and argument."""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastattn as fa
from fastattn import nn
from tests import resizing
from tests.malformed_recipes import RECIPES
from tests.malformed_values import (
    Changing,
    HostileString,
    Index,
    LyingMapping,
    RaisesArray,
    RaisesEverything,
    Subclass,
    Tensor,
)

X = np.ones((2, 3), np.float32)
QKV = np.ones((1, 1, 2, 4), np.float32)


@pytest.mark.parametrize(
    "value", [RaisesArray(), RaisesEverything(), Tensor(X)], ids=lambda value: type(value).__name__
)
def test_what_no_array_can_be_made_of_is_named(value):
    with pytest.raises(TypeError, match=r"^relu: x must"):
        fa.relu(value)
    with pytest.raises(TypeError, match=r"^attention: k must"):
        fa.attention(QKV, value, QKV)
    with pytest.raises(TypeError, match=r"^Linear.load_state_dict: weight must"):
        linear = nn.Linear(3, 2)
        linear.load_state_dict(linear.parameters() | {"weight": value})


def test_numbers_flags_and_choices_that_raise_are_named():
    value = RaisesEverything()
    for call, message in (
        (lambda: fa.softmax(X, scale=value), r"^softmax: scale must be a number, got an object of RaisesEverything"),
        (lambda: fa.softmax(X, axis=value), r"^softmax: axis must be an integer"),
        (lambda: fa.num_threads(value).__enter__(), r"^num_threads: n must be an integer"),
        (lambda: fa.config.use_isa(value).__enter__(), r"^use_isa: name must"),
        (lambda: fa.config.linear_strategy(value).__enter__(), r"^linear_strategy: name must"),
        (lambda: fa.attention(QKV, QKV, QKV, causal=value), r"^attention: causal must"),
        (lambda: fa.attention(QKV, QKV, QKV, window=value), r"^attention: window must"),
        (lambda: fa.attention(QKV, QKV, QKV, layout=value), r"^attention: layout must"),
        (lambda: fa.linear(X, X, activation=value), r"^linear: activation must"),
        (lambda: fa.gelu(X, approximate=value), r"^gelu: approximate must"),
        (lambda: nn.Linear(3, 2, bias=value), r"^Linear: bias must"),
        (lambda: nn.Linear(3, 2, dtype=value), r"^Linear: dtype must"),
        (lambda: fa.KVCache(1, 1, 4, dtype=value), r"^KVCache: dtype must"),
        (lambda: fa.KVCache(value, 1, 4, dtype="float32"), r"^KVCache: batch must be an integer"),
        (
            lambda: fa.attention_weights(QKV, QKV, np.ones((1, 1, 2), np.float32), rows=value),
            r"^attention_weights: rows",
        ),
        (lambda: nn.BertModel(nn.BertConfig(5, 4, 1, 1, 4, 4)).embed(value), r"^BertModel.embed: sequences must"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_a_string_of_a_subclass_is_its_text():
    for text in (HostileString, np.str_):
        assert np.array_equal(fa.gelu(X, approximate=text("tanh")), fa.gelu(X, approximate="tanh"))
        assert np.array_equal(fa.linear(X, X, activation=text("relu")), fa.linear(X, X, activation="relu"))
        assert fa.attention(QKV, QKV, QKV, causal=text("top-left"), layout=text("bhld")).shape == QKV.shape
        assert nn.FeedForward(3, 4, activation=text("silu_gated"))(X).shape == X.shape
        assert nn.Linear(3, 2, dtype=text("float64")).dtype == np.float64
        lstm = nn.LSTM(3, 4)
        assert lstm.pack(dtype=text("int8")).weight_dtype == "int8"
        with fa.config.use_isa(text("baseline")):
            assert fa.config.get_isa() == "baseline"


def test_an_index_is_an_integer():
    assert fa.softmax(X, axis=Index(1)).shape == X.shape
    with pytest.raises(ValueError, match=r"^sinusoidal_positions: length"):
        fa.sinusoidal_positions(Index(-1), 4)


def test_arrays_that_change_are_read_once():
    """What is checked is what is computed with."""
    got = fa.attention_weights(QKV, Changing(QKV, np.ones((1, 1, 2, 9), np.float32)), np.zeros((1, 1, 2), np.float32))
    assert got.shape == (1, 1, 2, 2)
    y, saved = fa.embedding_forward([1], Changing(X, np.ones((9, 9), np.float32)))
    assert y.shape == (1, 3)
    assert saved.shape == (2, 3)
    assert fa.embedding_forward([1], X.view(Subclass))[1].shape == (2, 3)


def test_a_mapping_without_what_it_names_is_named():
    model = nn.BertModel(nn.BertConfig(5, 4, 1, 1, 4, 4))
    with pytest.raises(KeyError, match=r"BertModel\.load_state_dict: mapping"):
        model.load_state_dict(LyingMapping(model.parameters()))
    packed = model.pack()
    del packed["encoder.layer.0.weight"]
    with pytest.raises(ValueError, match=r"^BertModel: weights .* no encoder\.layer\.0\.weight"):
        model([1, 2], [0, 2], packed)


def test_inputs_that_do_not_fit_a_recurrent_module_are_blamed_on_the_input():
    lstm = nn.LSTM(3, 4)
    for call in (lstm, lstm.forward):
        with pytest.raises(ValueError, match=r"^LSTM: x must have a last axis of input_size, 3"):
            call(np.ones((5, 2, 4), np.float32))
        with pytest.raises(TypeError, match=r"^LSTM: x must be float32"):
            call(np.ones((5, 2, 3)))


def test_caches_of_steps_are_checked():
    decoder = nn.TransformerDecoder(8, 2, 12, num_layers=1)
    memory = np.ones((1, 3, 8), np.float32)
    cache, x = decoder.start(memory), np.ones((1, 1, 8), np.float32)
    layer = cache.layers[0]
    for wrong in (None, [layer], type(cache)([]), type(cache)(layer), type(cache)([None])):
        with pytest.raises((TypeError, ValueError), match=r"^TransformerDecoder\.step: cache"):
            decoder.step(x, wrong)
    for wrong in (type(layer)(None, layer.memory), type(layer)(layer.target, memory)):
        with pytest.raises(TypeError, match=r"^TransformerDecoderLayer\.step: cache\."):
            decoder.layers[0].step(x, wrong)
    narrow = layer.memory._replace(values=layer.memory.values[..., :2])
    with pytest.raises(
        ValueError, match=r"^TransformerDecoderLayer\.step: x and cache must suit .* context\.values must have"
    ):
        decoder.layers[0].step(x, type(layer)(layer.target, narrow))
    with pytest.raises(TypeError, match=r"^select: keep_memory must be True or False"):
        cache.select([0], keep_memory=np.array([True, False]))


def test_files_need_a_path():
    for wrong in (1, None, {1}, "\0", np.ma.masked):
        with pytest.raises(TypeError, match=r"^read_safetensors: path must name a file"):
            nn.read_safetensors(wrong)


def test_sentences_are_bounded():
    model = nn.Seq2Seq(5, 6, 3, 4, rng=0)
    with pytest.raises(ValueError, match=r"^Seq2Seq\.greedy: max_length must be at most"):
        model.greedy([[1]], start=0, end=1, max_length=10**9)


def test_views_larger_than_memory_are_named():
    x = np.broadcast_to(np.ones((1, 5, 8), np.float32), (2**50, 5, 8))
    with pytest.raises(MemoryError, match=r"^SinusoidalPositions: "):
        nn.SinusoidalPositions(8)(x)
    with pytest.raises(MemoryError, match=r"^relu: "):
        fa.relu(range(2**62))


def test_annotations_of_another_module_are_named():
    gru = nn.AttentionGRU(3, 4, 6, 5, rng=0)
    x, memory = np.ones((2, 1, 3), np.float32), gru.annotate(np.ones((1, 4, 6), np.float32))
    for name, width in (("annotations", 7), ("keys", 4), ("gates", 11)):
        wrong = memory._replace(**{name: np.ones((1, 4, width), np.float32)})
        with pytest.raises(ValueError, match=rf"^AttentionGRU: annotations\.{name} must be float32 of shape"):
            gru(x, wrong)
    changing = memory._replace(gates=Changing(memory.gates, memory.gates[0]))
    assert np.array_equal(gru(x, changing)[1], gru(x, memory)[1])


def test_what_a_layerless_decoder_saved_is_checked():
    decoder, x = nn.TransformerDecoder(8, 2, 12, num_layers=0), np.ones((1, 2, 8), np.float32)
    y, saved = decoder.forward(x, np.ones((1, 3, 8), np.float32))
    assert decoder.backward(y, saved)[0][1].shape == (1, 3, 8)
    for shape in ("tanh", (1, 3), (1, -3, 8), RaisesEverything()):
        wrong = saved._replace(parts=(*saved.parts[:2], shape, saved.parts[3]))
        with pytest.raises((TypeError, ValueError), match=r"^TransformerDecoder\.backward: saved\.parts\[2\] must"):
            decoder.backward(y, wrong)


MODULES = ("nn.AttentionGRU.", "nn.LSTM.step", "nn.MultiHeadAttention.__call__")


def test_no_argument_moves_another_one_under_c():
    """tests/resizing.py: methods of an argument resize all others, in a process that a stale address ends."""
    names = [name for name in RECIPES if not name.startswith(("nn.", "config.")) or name.startswith(MODULES)]
    result = subprocess.run(
        [sys.executable, "-m", "tests.resizing", *names], capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | resizing.ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[1]) > 4000, result.stdout


def _moved(array):
    array.resize(1 << 13, refcheck=False)


@pytest.mark.parametrize("batch_first", [False, True])
def test_weights_that_moved_between_forward_and_backward_are_named(batch_first):
    weights = {"weight_ih_l0": np.ones((16, 3)), "weight_hh_l0": np.ones((16, 4))}
    (y, _), saved = fa.lstm_forward(np.ones((2, 2, 3)), None, weights, batch_first=batch_first)
    fa.lstm_backward(y, saved)
    _moved(weights["weight_hh_l0"])
    with pytest.raises(ValueError, match=r"^lstm_backward: saved\.weights must keep memory and type"):
        fa.lstm_backward(y, saved)


def test_outputs_of_subclasses_are_written_and_their_methods_are_not_called():
    class Loud(np.ndarray):
        @property
        def dtype(self):
            raise RuntimeError("called")

        shape = strides = dtype
        view = None

    for dtype in (np.float32, fa.nn.Linear(1, 1).dtype):
        out = np.empty(X.shape, dtype).view(Loud)
        assert fa.relu(X, out=out) is out
        assert np.array_equal(np.asarray(out), X)


def test_slices_hold_integers():
    for wrong in (slice(RaisesEverything()), slice(0.5), slice("a", None)):
        with pytest.raises(TypeError, match=r"^attention_weights: rows must be a slice of integers, got"):
            fa.attention_weights(QKV, QKV, np.ones((1, 1, 2), np.float32), rows=wrong)

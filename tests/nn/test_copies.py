"""Copies of modules, in any state: equal bits, nothing shared."""

import copy
import pickle

import numpy as np
import pytest

import fastattn as fa
from fastattn import nn
from tests.arrays import same_bits
from tests.nn.test_construction import ARGUMENTS, make


def with_buffers(m):
    buffers = []
    data = pickle.dumps(m, 5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytearray(part) for part in buffers])


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda m, n=n: pickle.loads(pickle.dumps(m, n)) for n in (2, 4, 5)},
    "pickle with buffers": with_buffers,
}
ways = pytest.mark.parametrize("way", WAYS)
STEP = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
NUMBERS = {nn.Embedding: np.array([[1, 2]]), nn.Seq2Seq: None, nn.BertConfig: None}


def called(m):
    def x(*shape):
        return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)

    arguments = {
        nn.Embedding: (np.array([[1, 2]]),), nn.SinusoidalPositions: (x(1, 2, 4),), nn.Linear: (x(2, 3),),
        nn.LayerNorm: (x(2, 4),), nn.RMSNorm: (x(2, 4),), nn.FeedForward: (x(2, 4),),
        nn.MultiHeadAttention: (x(2, 3, 8),), nn.TransformerEncoderLayer: (x(2, 3, 8),),
        nn.TransformerEncoder: (x(2, 3, 8),), nn.TransformerDecoderLayer: (x(2, 3, 8), x(2, 2, 8)),
        nn.TransformerDecoder: (x(2, 3, 8), x(2, 2, 8)), nn.Transformer: (x(2, 3, 8), x(2, 2, 8)),
        nn.RNN: (x(5, 2, 3),), nn.GRU: (x(5, 2, 3),), nn.LSTM: (x(5, 2, 3),),
        nn.AdditiveAttention: (x(2, 1, 3), x(2, 5, 4)), nn.AttentionGRU: (x(2, 2, 3), x(2, 5, 5)),
        nn.Seq2Seq: (np.array([[1, 2]]), np.array([[1, 2]])), nn.BertModel: ([1, 2, 3], [0, 1, 3]),
    }  # fmt: skip
    result = m(*arguments[type(m)])
    while isinstance(result, tuple):
        result = result[0]
    return result


MODULES = [kind for kind in ARGUMENTS if kind is not nn.BertConfig] + [nn.BertModel]


def made(kind):
    if kind is nn.BertModel:
        return nn.BertModel(nn.BertConfig(**ARGUMENTS[nn.BertConfig]), rng=0)
    return make(kind)


@ways
@pytest.mark.parametrize("kind", MODULES)
def test_a_copy_computes_the_same_and_shares_nothing(kind, way):
    m = made(kind)
    before = called(m)
    twin = WAYS[way](m)
    assert type(twin) is kind
    assert twin.parameters().keys() == m.parameters().keys()
    assert same_bits(called(twin), before)
    for value in twin.parameters().values():
        assert value.flags.writeable and value.flags.aligned
        value[...] = 0
    assert same_bits(called(m), before)
    twin.load_state_dict(m.parameters())
    for value in m.parameters().values():
        value[...] = 0
    assert same_bits(called(twin), before)


@ways
@pytest.mark.parametrize("kind", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_module_that_has_packed_its_weights_is_copied_with_the_type_of_packing(cell, kind, way):
    m = cell(3, 4, 2, rng=1)
    if kind:
        m.pack(kind)
    _, state = m.step(STEP)
    twin = WAYS[way](m)
    wanted = m.step(STEP, state)[0]
    assert same_bits(twin.step(STEP, state)[0], wanted)
    assert same_bits(twin(STEP[None])[0], m(STEP[None])[0])
    twin.parameters()["weight_ih_l0"][...] = 0
    assert not same_bits(twin.step(STEP, state)[0], wanted)
    assert same_bits(m.step(STEP, state)[0], wanted)


def test_modules_with_16_bit_parameters_are_copied_too():
    dtype = pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes").bfloat16
    m = nn.LSTM(3, 4, dtype=dtype, rng=1)
    x = STEP.astype(dtype)
    wanted = m.step(x)[0]
    for way in WAYS.values():
        assert same_bits(way(m).step(x)[0], wanted)


@ways
def test_a_copied_decoder_goes_on_from_a_cache(way):
    m = nn.TransformerDecoder(8, 2, 12, num_layers=2, rng=0)
    x, memory = np.random.default_rng(0).standard_normal((2, 2, 3, 8), np.float32)
    cache = m.start(memory)
    m.step(x[:, :2], cache)
    twin, branch = WAYS[way](m), cache.select([0, 1])
    assert same_bits(twin.step(x[:, 2:], branch), m.step(x[:, 2:], cache))


def test_a_module_of_a_read_only_buffer_computes_but_does_not_load():
    m = nn.Linear(3, 2, rng=0)
    buffers = []
    data = pickle.dumps(m, 5, buffer_callback=buffers.append)
    twin = pickle.loads(data, buffers=[bytes(part) for part in buffers])
    assert same_bits(twin(STEP), m(STEP))
    with pytest.raises(ValueError, match=r"Linear\.load_state_dict: weight must be writable"):
        twin.load_state_dict(m.parameters())


def test_saved_values_of_modules_are_pickled():
    m = nn.FeedForward(4, 6, rng=0)
    y, saved = m.forward(np.ones((2, 4), np.float32))
    dx, grads = m.backward(y, saved)
    again, of_twin = m.backward(y, pickle.loads(pickle.dumps(saved)))
    assert same_bits(again, dx)
    assert all(same_bits(of_twin[name], grads[name]) for name in grads)


def test_copies_do_not_depend_on_the_instruction_set_in_force():
    m = nn.GRU(3, 4, rng=1)
    with fa.config.use_isa(fa.config.available_isas()[0]):
        m.step(STEP)
        twin = copy.deepcopy(m)
    assert same_bits(twin.step(STEP)[0], m.step(STEP)[0])

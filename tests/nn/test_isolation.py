"""Sequences of a batch do not affect each other: the elements of one, valid or beyond its length, change no bit of the
others, and what lies beyond the lengths reaches no result and no gradient."""

import numpy as np
import pytest

from fastattn import nn
from tests.arrays import same_bits

B, L, S, E = 3, 5, 4, 8
LENGTHS, SOURCES = [5, 3, 0], [2, 4, 3]
JUNK = [np.nan, np.inf, -np.inf, 3e38, -0.0]
SIZES = {"d_model": E, "nhead": 2, "dim_feedforward": 12}


def scrambled(module):
    rng = np.random.default_rng(7)
    for value in module.parameters().values():
        value[...] = rng.uniform(-0.5, 0.5, value.shape)
    return module


# name -> module, (shape, axis of the batch, its lengths or None) of each input, names of the lengths
def cases():
    x, memory = ((B, L, E), 0, LENGTHS), ((B, S, E), 0, SOURCES)
    for first in (False, True):
        options, two = SIZES | {"norm_first": first}, ["lengths", "memory_lengths"]
        yield f"encoder layer {first}", nn.TransformerEncoderLayer(**options), [x], ["lengths"]
        yield (
            f"decoder layer {first}",
            nn.TransformerDecoderLayer(**options),
            [x, memory],
            ["lengths", "memory_lengths"],
        )
        for norm in (False, True):
            stack = options | {"num_layers": 2, "final_norm": norm}
            yield f"encoder {first} {norm}", nn.TransformerEncoder(**stack), [x], ["lengths"]
            yield f"decoder {first} {norm}", nn.TransformerDecoder(**stack), [x, memory], two
        both = options | {"num_encoder_layers": 1, "num_decoder_layers": 1, "output_size": 7}
        names = ["source_lengths", "target_lengths"]
        yield f"transformer {first}", nn.Transformer(**both), [memory, x], names
    yield "no layers", nn.TransformerEncoder(**SIZES, num_layers=0), [x], ["lengths"]
    yield "self-attention", nn.MultiHeadAttention(E, 2, kv_heads=1), [x], ["lengths"]
    yield "attention", nn.MultiHeadAttention(E, 2), [((B, L, E), 0, None), memory], [None, "lengths"]
    yield "additive", nn.AdditiveAttention(E, E, 6), [((B, L, E), 0, None), memory], [None, "lengths"]
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        for both in (False, True):
            m = kind(E, 6, 2, bidirectional=both, batch_first=True)
            yield f"{kind.__name__} {both}", m, [x], ["lengths"]
    yield "attention gru", nn.AttentionGRU(E, 6, E, 5), [((L, B, E), 1, None), memory], [None, "lengths"]
    yield "linear", nn.Linear(E, 3), [((B, L, E), 0, None)], [None]
    yield "norm", nn.LayerNorm(E), [((B, L, E), 0, None)], [None]
    yield "rms norm", nn.RMSNorm(E), [((B, L, E), 0, None)], [None]
    yield "feed-forward", nn.FeedForward(E, 6, activation="silu_gated"), [((B, L, E), 0, None)], [None]
    yield "positions", nn.SinusoidalPositions(E), [((B, L, E), 0, None)], [None]


CASES = {name: (scrambled(module), inputs, names) for name, module, inputs, names in cases()}
everywhere = pytest.mark.parametrize("name", CASES)
TRANSFORMERS = ("encoder", "decoder", "transformer", "no")
transformers = pytest.mark.parametrize("name", [name for name in CASES if name.split()[0] in TRANSFORMERS])


def drawn(inputs):
    rng = np.random.default_rng(11)
    return [rng.standard_normal(shape).astype(np.float32) for shape, _, _ in inputs]


def options(inputs, names):
    return {name: lengths for name, (_, _, lengths) in zip(names, inputs, strict=True) if name}


def first_array(result):
    """The result proper of a module's result."""
    while isinstance(result, tuple):
        result = result[0]
    return result


def run(module, arrays, keywords):
    """Result, gradients of the inputs and of the parameters; dy is the same whatever the inputs hold."""
    with np.errstate(all="ignore"):
        call = first_array(module(*arrays, **keywords))
        result, saved = module.forward(*arrays, **keywords)
        y = first_array(result)
        dy = np.random.default_rng(13).standard_normal(y.shape).astype(np.float32)
        grads = (dy, None, None) if isinstance(module, nn.AttentionGRU) else dy
        dx, *_, of_parameters = module.backward(grads, saved)
    assert same_bits(call, y), "the call and forward differ"
    return y, dx if isinstance(dx, tuple) else (dx,), of_parameters


def others(array, axis, i):
    return np.delete(array, i, axis)


def batch_axis(module, inputs):
    """Of the result and of the gradients: all have that of the first input."""
    return inputs[0][1]


@everywhere
@pytest.mark.parametrize("value", JUNK[:3])
def test_what_one_sequence_holds_changes_no_bit_of_the_others(name, value):
    module, inputs, names = CASES[name]
    arrays, keywords = drawn(inputs), options(inputs, names)
    y, dx, _ = run(module, arrays, keywords)
    for i in range(B):
        dirty = [array.copy() for array in arrays]
        for array, (_, axis, _) in zip(dirty, inputs, strict=True):
            np.moveaxis(array, axis, 0)[i, ::2] = value
        got, got_dx, _ = run(module, dirty, keywords)
        axis = batch_axis(module, inputs)
        assert same_bits(others(got, axis, i), others(y, axis, i))
        for part, wanted, (_, axis, _) in zip(got_dx, dx, inputs, strict=True):
            assert same_bits(others(part, axis, i), others(wanted, axis, i))


@everywhere
@pytest.mark.parametrize("value", JUNK)
def test_what_lies_beyond_the_lengths_changes_no_bit_at_all(name, value):
    module, inputs, names = CASES[name]
    arrays, keywords = drawn(inputs), options(inputs, names)
    wanted = run(module, arrays, keywords)
    dirty = [array.copy() for array in arrays]
    for array, (_, _, lengths) in zip(dirty, inputs, strict=True):
        if lengths is not None:
            array[np.arange(array.shape[1]) >= np.array(lengths)[:, None]] = value
    y, dx, grads = run(module, dirty, keywords)
    assert same_bits(y, wanted[0])
    assert all(map(same_bits, dx, wanted[1]))
    assert all(same_bits(grads[key], wanted[2][key]) for key in grads)


@transformers
def test_results_and_gradients_beyond_the_lengths_are_zero(name):
    module, inputs, names = CASES[name]
    arrays, keywords = drawn(inputs), options(inputs, names)
    y, dx, _ = run(module, arrays, keywords)
    ends = inputs[-1 if name.startswith("transformer") else 0][2]
    assert not y[np.arange(L) >= np.array(ends)[:, None]].any()
    for part, (_, _, lengths) in zip(dx, inputs, strict=True):
        assert not part[np.arange(part.shape[1]) >= np.array(lengths)[:, None]].any()


@transformers
def test_what_the_gradient_holds_beyond_the_lengths_is_not_read(name):
    module, inputs, names = CASES[name]
    arrays, keywords = drawn(inputs), options(inputs, names)
    y, saved = module.forward(*arrays, **keywords)
    ends = np.array(inputs[-1 if name.startswith("transformer") else 0][2])
    dy = np.random.default_rng(13).standard_normal(y.shape).astype(np.float32)
    dirty = np.where((np.arange(L) >= ends[:, None])[..., None], np.float32(np.nan), dy)
    dx, grads = module.backward(dy, saved)
    got_dx, got = module.backward(dirty, saved)
    assert all(map(same_bits, *((d if isinstance(d, tuple) else (d,)) for d in (got_dx, dx))))
    assert all(same_bits(got[key], grads[key]) for key in grads)


def test_a_sequence_has_the_bits_it_has_alone():
    for name in ("encoder True True", "encoder layer False"):
        module, inputs, _ = CASES[name]
        (x,) = drawn(inputs)
        together = module(x, lengths=LENGTHS)
        for i, length in enumerate(LENGTHS):
            assert same_bits(together[i, :length], module(x[i : i + 1, :length])[0])


def test_sentences_of_a_ragged_batch_do_not_meet():
    model = scrambled(nn.BertModel(nn.BertConfig(20, 8, 2, 2, 12, 9), rng=0))
    wanted = model([1, 2, 3, 4, 5, 6], [0, 3, 6])
    model.parameters()["embeddings.word_embeddings.weight"][5] = np.nan
    got = model([1, 2, 3, 4, 5, 6], [0, 3, 6])
    assert same_bits(got[:3], wanted[:3])
    assert np.isnan(got[3:]).all()


@pytest.mark.parametrize("kind", ["cho", "bahdanau", "sutskever"])
def test_sources_and_targets_of_a_translation_do_not_meet(kind):
    m = nn.Seq2Seq(9, 9, 6, 8, kind=kind, rng=0)
    source, target = np.random.default_rng(0).integers(0, 8, (2, B, S))
    logits = m(source, target, SOURCES)
    m.parameters()["source.weight"][8] = np.nan
    beyond = np.arange(S) >= np.array(SOURCES)[:, None]
    assert same_bits(m(np.where(beyond, 8, source), target, SOURCES), logits)
    source[1, 0] = 8
    assert same_bits(others(m(source, target, SOURCES), 0, 1), others(logits, 0, 1))
    result, saved = m.forward(np.where(beyond, 8, np.where(source == 8, 0, source)), target, SOURCES)
    assert all(np.isfinite(value).all() for value in m.backward(np.ones_like(result), saved)[1].values())


@pytest.mark.parametrize("name", [name for name in CASES if "True" in name or name in ("positions", "additive")])
def test_the_error_state_and_the_flush_to_zero_of_the_caller_change_nothing(name):
    torch = pytest.importorskip("torch", reason="needs torch")
    module, inputs, names = CASES[name]
    arrays, keywords = [array * np.float32(1e-38) for array in drawn(inputs)], options(inputs, names)
    wanted = run(module, arrays, keywords)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers to zero")
    try:
        with np.errstate(all="raise"):
            y = first_array(module(*arrays, **keywords))
            result, saved = module.forward(*arrays, **keywords)
            dy = np.random.default_rng(13).standard_normal(y.shape).astype(np.float32)
            dx, *_, grads = module.backward(dy, saved)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(y, wanted[0])
    assert same_bits(first_array(result), wanted[0])
    assert all(map(same_bits, dx if isinstance(dx, tuple) else (dx,), wanted[1]))
    assert all(same_bits(grads[key], wanted[2][key]) for key in grads)

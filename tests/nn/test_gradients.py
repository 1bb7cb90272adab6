"""forward and backward of modules: the bits of the call, and gradients that finite differences confirm."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import nn
from tests.arrays import same_bits

STEP = 1e-6
SIZES = {"d_model": 8, "nhead": 2, "dim_feedforward": 6}
KIND = {"dtype": "f8"}


def numbers(rng, *shape):
    return rng.standard_normal(shape)


def cases():
    """name: (module, shapes of its inputs, options of the call)"""
    for first in (False, True):
        for activation in ("relu", "gelu", "gelu_tanh", "silu"):
            options = {"norm_first": first, "activation": activation} | SIZES | KIND
            yield f"encoder layer {first} {activation}", nn.TransformerEncoderLayer(**options), [(2, 4, 8)], {}
        options = {"norm_first": first} | SIZES | KIND
        layer = nn.TransformerEncoderLayer(**options, bias=False)
        yield f"encoder layer {first} causal", layer, [(2, 4, 8)], {"causal": True}
        yield f"decoder layer {first}", nn.TransformerDecoderLayer(**options), [(2, 4, 8), (2, 3, 8)], {}
        lengths = {"lengths": [4, 2], "memory_lengths": [1, 3]}
        yield f"decoder layer {first} ragged", nn.TransformerDecoderLayer(**options), [(2, 4, 8), (2, 3, 8)], lengths
        encoder = nn.TransformerEncoder(num_layers=2, final_norm=first, **options)
        yield f"encoder {first}", encoder, [(2, 4, 8)], {"lengths": [3, 4]}
        decoder = nn.TransformerDecoder(num_layers=2, final_norm=first, **options)
        yield f"decoder {first}", decoder, [(2, 4, 8), (2, 3, 8)], {}
    yield "decoder of no layers", nn.TransformerDecoder(num_layers=0, **SIZES, **KIND), [(2, 4, 8), (2, 3, 8)], {}
    for size in (None, 5):
        model = nn.Transformer(**SIZES, num_encoder_layers=1, num_decoder_layers=1, output_size=size, **KIND)
        yield f"transformer {size}", model, [(2, 3, 8), (2, 4, 8)], {"source_lengths": [3, 2]}
    mask = np.tril(np.ones((4, 4), bool))
    for kv_heads, bias in ((None, True), (2, True), (1, False)):
        module = nn.MultiHeadAttention(8, 4, kv_heads=kv_heads, bias=bias, **KIND)
        yield f"self-attention {kv_heads}", module, [(2, 4, 8)], {"mask": mask}
        yield f"attention {kv_heads}", module, [(2, 4, 8), (2, 3, 8)], {"lengths": [3, 1]}
    for activation in ("relu", "silu_gated"):
        yield f"feed-forward {activation}", nn.FeedForward(8, 6, activation=activation, **KIND), [(2, 3, 8)], {}
    yield "linear", nn.Linear(8, 5, **KIND), [(2, 3, 8)], {"activation": "tanh"}
    yield "linear without bias", nn.Linear(8, 5, bias=False, **KIND), [(2, 3, 8)], {}
    yield "positions", nn.SinusoidalPositions(8, **KIND), [(2, 3, 8)], {"offset": 2}


CASES = {name: rest for name, *rest in cases()}
every_case = pytest.mark.parametrize("name", CASES)


def scrambled(rng, module):
    """Biases and norms too, which begin as constants."""
    for value in module.parameters().values():
        value[...] = rng.standard_normal(value.shape) / 2
    return module


@every_case
@pytest.mark.usefixtures("isa")
def test_forward_has_the_bits_of_the_call_and_changes_no_input(name, rng):
    module, shapes, options = CASES[name]
    inputs = [numbers(rng, *shape) for shape in shapes]
    copies = [x.copy() for x in inputs]
    y, saved = module.forward(*inputs, **options)
    assert same_bits(y, module(*inputs, **options))
    dy = numbers(rng, *y.shape)
    kept = dy.copy()
    one, two = (module.backward(dy, saved) for _ in "ab")
    assert same_bits(dy, kept)
    assert all(map(same_bits, inputs, copies))
    assert all(map(same_bits, one[1].values(), two[1].values())), "a second backward gives other gradients"


@every_case
def test_gradients_equal_finite_differences(name, rng):
    module, shapes, options = CASES[name]
    scrambled(rng, module)
    inputs = [numbers(rng, *shape) for shape in shapes]
    y, saved = module.forward(*inputs, **options)
    dy = numbers(rng, *y.shape)
    dx, grads = module.backward(dy, saved)
    parameters = module.parameters()
    assert set(grads) == set(parameters)
    pairs = [*zip(inputs, dx if isinstance(dx, tuple) else (dx,), strict=True)]
    pairs += [(parameters[key], grads[key]) for key in grads]
    for argument, gradient in pairs:
        assert gradient.shape == argument.shape
        places = rng.permutation(argument.size)[:12]
        for index in zip(*np.unravel_index(places, argument.shape), strict=True):
            kept, sides = argument[index], []
            for step in (STEP, -STEP):
                argument[index] = kept + step
                sides.append((module(*inputs, **options) * dy).sum())
            argument[index] = kept
            assert abs((sides[0] - sides[1]) / (2 * STEP) - gradient[index]) < 3e-7, index


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", ["encoder False", "encoder True", "decoder layer False ragged", "self-attention 2"])
def test_gradients_do_not_depend_on_thread_count(name, rng):
    module, shapes, options = CASES[name]
    inputs = [numbers(rng, *shape) for shape in shapes]
    y, saved = module.forward(*inputs, **options)
    dy = numbers(rng, *y.shape)
    with fa.num_threads(1):
        grads = module.backward(dy, saved)[1]
    for n in (2, 3):
        with fa.num_threads(n):
            again = module.backward(dy, module.forward(*inputs, **options)[1])[1]
        assert all(same_bits(again[key], grads[key]) for key in grads)


@pytest.mark.parametrize("first", [False, True])
def test_nan_in_the_padding_reaches_no_gradient(first, rng):
    options = {"norm_first": first} | SIZES
    encoder = scrambled(rng, nn.TransformerEncoder(num_layers=2, **options))
    decoder = scrambled(rng, nn.TransformerDecoderLayer(**options))
    x, memory, dy = (numbers(rng, 2, 5, 8).astype("f4") for _ in range(3))
    lengths, beyond = [5, 3], (1, slice(3, None))
    dy[beyond] = 0
    calls = ((encoder, (x,), {"lengths": lengths}),
             (decoder, (x, memory), {"lengths": lengths, "memory_lengths": lengths}))  # fmt: skip
    for module, inputs, options in calls:
        expected = module.backward(dy, module.forward(*inputs, **options)[1])
        for value in inputs:
            value[beyond] = np.nan
        y, saved = module.forward(*inputs, **options)
        dx, grads = module.backward(dy, saved)
        assert np.isfinite(y).all()
        assert same_bits(y[0], module(*inputs, **options)[0])
        assert all(np.isfinite(value).all() for value in grads.values())
        for key, value in grads.items():
            np.testing.assert_allclose(value, expected[1][key], atol=1e-4, err_msg=key)
        for part, other in zip(*((d if isinstance(d, tuple) else (d,)) for d in (dx, expected[0])), strict=True):
            assert same_bits(part[0], other[0])
            assert same_bits(part[1, :3], other[1, :3])
        for value in inputs:
            value[beyond] = 1


def test_an_embedding_has_a_gradient_of_its_weight(rng):
    module = nn.Embedding(5, 3, dtype="f8")
    ids = np.array([[0, 2], [2, 4]])
    y, saved = module.forward(ids)
    assert same_bits(y, module(ids))
    assert same_bits(y, module.parameters()["weight"][ids])
    dx, grads = module.backward(np.ones((2, 2, 3)), saved)
    assert dx is None
    assert grads["weight"][:, 0].tolist() == [1, 0, 2, 0, 1]
    with pytest.raises(ValueError, match=r"Embedding: ids must lie in 0\.\.4, got 5 at \[0\]"):
        module([5])


def test_positions_add_the_table(rng):
    x = numbers(rng, 2, 3, 8).astype("f4")
    module = nn.SinusoidalPositions(8, max_length=10)
    assert same_bits(module(x, offset=4), x + fa.sinusoidal_positions(3, 8, offset=4))
    assert module.parameters() == {}
    with pytest.raises(ValueError, match=r"SinusoidalPositions: positions must lie in 0\.\.9, got 3 from 8 on"):
        module(x, offset=8)
    with pytest.raises(ValueError, match=r"SinusoidalPositions: x must have shape \[\.\.\., L, 8\]"):
        module(x[..., :5])
    with pytest.raises(TypeError, match=r"SinusoidalPositions: x must be float32, got float64"):
        module(x.astype("f8"))


@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize("page_size", [None, 2])
@pytest.mark.usefixtures("isa")
def test_attention_with_a_cache_gives_the_bits_of_the_whole_sequence(rng, kv_heads, page_size):
    module = scrambled(rng, nn.MultiHeadAttention(8, 4, kv_heads=kv_heads))
    x = numbers(rng, 2, 9, 8).astype("f4")
    cache = fa.KVCache(2, kv_heads or 4, 2, dtype="float32", page_size=page_size)
    parts = [module(x[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 9))]
    assert same_bits(np.concatenate(parts, 1), module(x, causal=True))
    assert cache.lengths.tolist() == [9, 9]


@pytest.mark.parametrize("lengths", [3, [1], [1, 7], [[1, 2]], [0.5, 1.0]])
def test_wrong_lengths_are_named_by_forward_as_by_the_call(rng, lengths):
    module, x = nn.MultiHeadAttention(8, 2), numbers(rng, 2, 5, 8).astype("f4")
    for call in (module, module.forward):
        with pytest.raises((TypeError, ValueError), match=r"MultiHeadAttention: lengths must"):
            call(x, lengths=lengths)


def test_wrong_arguments_with_a_cache_are_named(rng):
    module, x = nn.MultiHeadAttention(8, 4), np.ones((1, 2, 8), "f4")
    cache = fa.KVCache(1, 4, 2, dtype="float32")
    with pytest.raises(ValueError, match=r"MultiHeadAttention: context must be None with a cache"):
        module(x, x, cache=cache)
    with pytest.raises(ValueError, match=r"MultiHeadAttention: lengths must be None with a cache"):
        module(x, lengths=[2], cache=cache)
    with pytest.raises(ValueError, match=r"MultiHeadAttention: mask must be None with a cache"):
        module(x, mask=np.ones((2, 2), bool), cache=cache)
    with pytest.raises(ValueError, match=r"MultiHeadAttention: causal must be True with a cache"):
        module(x, causal="top-left", cache=cache)
    with pytest.raises(ValueError, match=r"append: k must have shape"):
        module(x, cache=fa.KVCache(1, 2, 2, dtype="float32"))
    assert cache.lengths.tolist() == [0]

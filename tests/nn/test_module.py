"""Modules: parameters by name, loading, and what the small layers compute."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import nn, reference
from tests.arrays import same_bits


def encoder(seed=0, **options):
    return nn.TransformerEncoderLayer(8, 2, 16, rng=np.random.default_rng(seed), **options)


def test_parameters_are_the_arrays_that_compute():
    layer = nn.Linear(3, 2)
    assert set(layer.parameters()) == {"weight", "bias"}
    layer.parameters()["weight"][...] = 0
    layer.parameters()["bias"][...] = [1, 2]
    assert layer(np.ones((1, 3), np.float32)).tolist() == [[1, 2]]


def test_a_loaded_module_computes_the_same():
    one, other = encoder(0), encoder(1)
    x = np.random.default_rng(2).standard_normal((2, 5, 8), np.float32)
    assert not same_bits(one(x), other(x))
    other.load_state_dict(one.parameters())
    assert same_bits(one(x), other(x))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("norm1.bias"), KeyError, r"no norm1\.bias"),
        (lambda s: s.update(extra=np.ones(1)), KeyError, r"unknown extra"),
        (
            lambda s: s.update({"linear2.weight": np.ones((8, 15))}),
            ValueError,
            r"linear2\.weight must have shape \(8, 16\)",
        ),
        (lambda s: s.update({"norm2.bias": np.ones(8, int)}), TypeError, r"norm2\.bias must be float32, .* got <i8"),
    ],
)
def test_a_wrong_state_dict_is_named_and_loads_nothing(change, error, message):
    state, layer = encoder(0).parameters(), encoder(1)
    before = {name: value.copy() for name, value in layer.parameters().items()}
    change(state)
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    assert all(same_bits(value, before[name]) for name, value in layer.parameters().items())


def test_the_same_generator_gives_the_same_parameters():
    assert all(map(same_bits, encoder(3).parameters().values(), encoder(3).parameters().values()))


def test_norms_give_the_gradients_of_the_functions(rng):
    x, dy = rng.standard_normal((2, 4, 6))
    for norm, backward in ((nn.LayerNorm(6, dtype="f8"), reference.layer_norm_backward),
                           (nn.RMSNorm(6, dtype="f8"), reference.rms_norm_backward)):  # fmt: skip
        y, saved = norm.forward(x)
        assert same_bits(y, norm(x))
        dx, grads = norm.backward(dy, saved)
        assert set(grads) == set(norm.parameters())
        expected = backward(dy, x, norm.parameters()["weight"])
        for got, want in zip((dx, *grads.values()), expected, strict=True):
            np.testing.assert_array_almost_equal_nulp(got + 10, want + 10, 8)


def test_a_gated_feed_forward_multiplies_by_the_gate(rng):
    m = nn.FeedForward(4, 6, activation="silu_gated", dtype="f8")
    x = rng.standard_normal((3, 4))
    gated = m.linear1(x) * fa.silu(m.gate(x))
    assert same_bits(m(x), m.linear2(gated))


def test_grouped_heads_share_keys_and_values(rng):
    m = nn.MultiHeadAttention(8, 4, kv_heads=2, dtype="f8")
    full = nn.MultiHeadAttention(8, 4, dtype="f8")
    state = m.parameters()
    for name in ("in_proj_weight", "in_proj_bias"):
        q, k, v = state[name][:8], state[name][8:12], state[name][12:]
        repeated = [np.repeat(part.reshape(2, 2, -1), 2, axis=0).reshape(8, *part.shape[1:]) for part in (k, v)]
        state[name] = np.concatenate([q, *repeated])
    full.load_state_dict(state)
    x = rng.standard_normal((2, 5, 8))
    assert same_bits(m(x), full(x))


def test_padding_does_not_change_the_results_of_a_sequence():
    m, x = encoder(), np.random.default_rng(1).standard_normal((2, 7, 8), np.float32)
    x[1, 4:] = np.nan
    for causal in (False, True):
        together = m(x, lengths=[7, 4], causal=causal)
        assert same_bits(together[1, :4], m(x[1:, :4], causal=causal)[0])
        assert same_bits(together[0], m(x[:1], causal=causal)[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.MultiHeadAttention(8, 3), ValueError, "num_heads must divide embed_dim, 8, got 3"),
        (lambda: nn.MultiHeadAttention(8, 4, kv_heads=3), ValueError, "kv_heads must divide num_heads, 4, got 3"),
        (lambda: nn.FeedForward(8, 4, activation="tanh"), ValueError, "activation must be one of relu"),
        (lambda: nn.Linear(8, 4, dtype=np.int32), TypeError, "Linear: dtype must be one of float32, float64"),
        (lambda: nn.MultiHeadAttention(8, 4)(np.ones((5, 8), "f4")), ValueError, "must have 3 axes"),
    ],
)
def test_wrong_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()

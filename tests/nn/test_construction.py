"""What modules are made of: sizes, flags, options and seeds of any sensible type, and names for what is wrong."""

import time

import numpy as np
import pytest

from fastattn import nn
from tests.arrays import same_bits

LAYER = {"d_model": 8, "nhead": 2, "dim_feedforward": 12, "activation": "relu", "layer_norm_eps": 1e-5,
         "norm_first": True, "bias": True}  # fmt: skip
RECURRENT = {"input_size": 3, "hidden_size": 4, "num_layers": 2, "bias": True, "batch_first": False,
             "bidirectional": True, "dropout": 0.0}  # fmt: skip
STACK = LAYER | {"num_layers": 2, "final_norm": True}
ARGUMENTS = {
    nn.Linear: {"in_features": 3, "out_features": 4, "bias": True},
    nn.Embedding: {"num_embeddings": 5, "embedding_dim": 3},
    nn.SinusoidalPositions: {"dim": 4, "max_length": 9},
    nn.LayerNorm: {"size": 4, "eps": 1e-5, "bias": True},
    nn.RMSNorm: {"size": 4, "eps": 1e-5},
    nn.FeedForward: {"d_model": 4, "dim_feedforward": 6, "bias": True, "activation": "relu"},
    nn.MultiHeadAttention: {"embed_dim": 8, "num_heads": 4, "kv_heads": 2, "bias": True},
    nn.TransformerEncoderLayer: LAYER,
    nn.TransformerDecoderLayer: LAYER,
    nn.TransformerEncoder: STACK,
    nn.TransformerDecoder: STACK,
    nn.Transformer: LAYER | {"num_encoder_layers": 1, "num_decoder_layers": 1, "output_size": 5},
    nn.RNN: RECURRENT | {"nonlinearity": "relu"},
    nn.GRU: RECURRENT | {"linear_before_reset": False},
    nn.LSTM: RECURRENT | {"proj_size": 2, "peephole": True, "coupled": True, "clip": 1.0},
    nn.AdditiveAttention: {"query_size": 3, "key_size": 4, "attention_size": 5},
    nn.AttentionGRU: {"input_size": 3, "hidden_size": 4, "key_size": 5, "attention_size": 6},
    nn.Seq2Seq: {"source_size": 5, "target_size": 6, "embed_size": 3, "hidden_size": 4, "kind": "sutskever",
                 "num_layers": 2, "attention_size": 3, "reverse_source": True},
    nn.BertConfig: {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "intermediate_size": 12, "max_position_embeddings": 7, "type_vocab_size": 1, "pad_token_id": 1,
                    "layer_norm_eps": 1e-5, "positions": "roberta"},
}  # fmt: skip
SEEDED = [kind for kind in ARGUMENTS if kind not in (nn.SinusoidalPositions, nn.LayerNorm, nn.RMSNorm, nn.BertConfig)]
EVERY = [(kind, name) for kind, arguments in ARGUMENTS.items() for name in arguments]
every = pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{kind.__name__}-{name}" for kind, name in EVERY])


def make(kind, /, **changes):
    return kind(**ARGUMENTS[kind] | changes)


def of_numpy(value):
    if isinstance(value, bool):
        return np.bool_(value)
    return {int: np.int64, float: np.float32, str: str}[type(value)](value)


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_numpy_scalars_are_taken_for_integers_flags_and_numbers(kind):
    changed = {name: of_numpy(value) for name, value in ARGUMENTS[kind].items()}
    seed = {"rng": 3} if kind in SEEDED else {}
    one, other = make(kind, **seed), make(kind, **changed, **seed)
    if kind is nn.BertConfig:
        assert one == nn.BertConfig(**changed | {"layer_norm_eps": 1e-5})
        return
    assert one.parameters().keys() == other.parameters().keys()
    assert all(map(same_bits, one.parameters().values(), other.parameters().values()))
    for name, value in vars(other).items():
        assert not isinstance(value, np.bool_ | np.integer), name


@every
@pytest.mark.parametrize("value", ["7", 2.5, np.ones(3), -1, [1], {}, 10**30])
def test_a_wrong_argument_is_named(kind, name, value):
    if isinstance(value, float | int) and type(ARGUMENTS[kind][name]) is float and value > 0:
        return  # a sensible number there
    with pytest.raises((TypeError, ValueError, MemoryError), match=rf"{kind.__name__}\w*: .*\b{name}\b"):
        make(kind, **{name: value})


@every
def test_an_absurd_size_is_refused_at_once(kind, name):
    if type(ARGUMENTS[kind][name]) is not int or name == "pad_token_id":
        return
    begin = time.perf_counter()
    for value in (10**9 * 12, 2**62, 2**80):
        with pytest.raises((MemoryError, ValueError), match=rf"\w+: .*\b{name}\b"):
            made = make(kind, **{name: value})
            nn.BertModel(made)
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize("kind", [*SEEDED, nn.BertModel])
def test_a_seed_is_none_an_integer_or_a_generator(kind):
    def parameters(rng):
        config = nn.BertConfig(**ARGUMENTS[nn.BertConfig])
        made = nn.BertModel(config, rng=rng) if kind is nn.BertModel else make(kind, rng=rng)
        return np.concatenate([value.ravel() for value in made.parameters().values()])

    for seed in (0, 1):
        wanted = parameters(np.random.default_rng(seed))
        for same in (seed, np.int64(seed), np.uint8(seed)):
            assert same_bits(parameters(same), wanted)
    assert not same_bits(parameters(0), parameters(1))
    assert not same_bits(parameters(None), parameters(None))
    for wrong in (True, np.False_, 0.0, "0", [1], np.random.RandomState(0), np.random):
        with pytest.raises(TypeError, match=rf"{kind.__name__}: rng must be None, an integer or"):
            parameters(wrong)
    with pytest.raises(ValueError, match=rf"{kind.__name__}: rng must be an integer of at least 0, got -1"):
        parameters(-1)


@pytest.mark.parametrize("kind", [nn.TransformerEncoder, nn.TransformerDecoder])
def test_layers_of_a_seeded_stack_differ(kind):
    own = make(kind, rng=0).parameters()
    assert not same_bits(own["layers.0.linear1.weight"], own["layers.1.linear1.weight"])


def test_a_module_is_made_under_any_error_state():
    with np.errstate(all="raise"):
        for dtype in ("float16", "float32"):
            nn.LSTM(64, 64, dtype=dtype, rng=0)
        nn.Linear(3, 3).load_state_dict({"weight": np.full((3, 3), 1e-42), "bias": np.full(3, 1e-300)})


@pytest.mark.parametrize("kind", SEEDED)
def test_what_backward_did_not_save_is_refused_by_name(kind):
    module = make(kind)
    for saved in (None, (), (1, 2), "saved", make(nn.Linear).forward(np.ones((1, 3), np.float32))[1]):
        if kind is nn.Linear and isinstance(saved, tuple) and len(saved) == 5:
            continue
        with pytest.raises((TypeError, ValueError), match=r"\w+: saved must"):
            module.backward(np.ones((2, 3, 4), np.float32), saved)


@pytest.mark.parametrize("mapping", [None, 3, [("weight", 1)], {1: np.ones(2)}, {"weight": "a", "bias": None}])
def test_a_wrong_mapping_is_named(mapping):
    for module in (nn.Linear(3, 4), nn.GRU(3, 4), nn.BertModel(nn.BertConfig(**ARGUMENTS[nn.BertConfig]))):
        with pytest.raises((TypeError, KeyError, ValueError), match=rf"{type(module).__name__}\.load_state_dict: \w+"):
            module.load_state_dict(mapping)


def test_values_to_load_may_be_parameters_of_other_names():
    module = nn.FeedForward(4, 4, rng=0)
    own = {name: value.copy() for name, value in module.parameters().items()}
    swapped = module.parameters()
    for name in ("weight", "bias"):
        one, two = f"linear1.{name}", f"linear2.{name}"
        swapped[one], swapped[two] = swapped[two][...], swapped[one][...]
    module.load_state_dict(swapped)
    for name, value in module.parameters().items():
        other = name.replace("linear1", "linear3").replace("linear2", "linear1").replace("linear3", "linear2")
        assert same_bits(value, own[other])


def test_masked_values_are_not_loaded():
    masked = np.ma.masked_array(np.ones(4, np.float32), [True, False, False, False])
    with pytest.raises(TypeError, match=r"Linear\.load_state_dict: bias must"):
        nn.Linear(3, 4).load_state_dict({"weight": np.ones((4, 3)), "bias": masked})

"""The BERT encoder against its published architecture in NumPy and float64, and where it is installed a real model."""

import importlib
import importlib.util
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastattn as fa
from benchmarks.embed import rates as embed_rates
from benchmarks.embed import sentences as embed
from fastattn import nn, reference
from tests.arrays import same_bits

SMALL = nn.BertConfig(50, 24, 2, 3, 40, 12)


def model(seed=0):
    rng = np.random.default_rng(seed)
    made = nn.BertModel(SMALL, rng=rng)
    for value in made.parameters().values():
        value[...] += 0.3 * rng.standard_normal(value.shape).astype("f4")
    return made


def sequences(rng, lengths):
    return [rng.integers(0, SMALL.vocab_size, length) for length in lengths]


def published(parameters, ids, config):
    """hidden[L, E] of one sequence, in float64."""
    p = {name: value.astype(np.float64) for name, value in parameters.items()}

    def norm(x, name):
        name = f"{name}.LayerNorm"
        return reference.layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], config.layer_norm_eps)

    def dense(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    words, positions, types = (
        p[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    )  # fmt: skip
    place = np.arange(len(ids))
    if config.positions == "roberta":
        own = np.asarray(ids) != config.pad_token_id
        place = np.where(own, config.pad_token_id + np.cumsum(own), config.pad_token_id)
    x = norm(words[ids] + positions[place] + types[0], "embeddings")
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            dense(x, f"{layer}.attention.self.{name}").reshape(len(x), config.num_attention_heads, -1).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        heads = reference.softmax(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])) @ v
        joined = heads.swapaxes(0, 1).reshape(x.shape)
        x = norm(x + dense(joined, f"{layer}.attention.output.dense"), f"{layer}.attention.output")
        hidden = reference.gelu(dense(x, f"{layer}.intermediate.dense"))
        x = norm(x + dense(hidden, f"{layer}.output.dense"), f"{layer}.output")
    return x


def published_embedding(parameters, ids, config):
    mean = published(parameters, ids, config).mean(0)
    return mean / np.sqrt(mean @ mean)


@pytest.mark.usefixtures("isa")
def test_hidden_vectors_are_those_of_the_published_architecture(rng):
    made = model()
    ids = sequences(rng, [5, 1, 0, 12, 7])
    starts = np.cumsum([0, *map(len, ids)])
    hidden = made(np.concatenate(ids), starts)
    assert hidden.shape == (25, 24)
    for begin, end, one in zip(starts, starts[1:], ids, strict=False):
        if begin == end:
            continue
        np.testing.assert_allclose(hidden[begin:end], published(made.parameters(), one, SMALL), rtol=0, atol=2e-5)


@pytest.mark.usefixtures("isa")
def test_an_embedding_does_not_depend_on_batch_threads_or_packing(rng):
    made = model()
    ids = sequences(rng, [5, 1, 12, 0, 7, 3, 3])
    with fa.num_threads(1):
        together = made.embed(ids)
    for n, size in ((1, 1), (2, 6), (3, 10_000)):
        with fa.num_threads(n):
            assert same_bits(made.embed(ids, made.pack(), batch_tokens=size), together)
    assert same_bits(np.concatenate([made.embed([one]) for one in ids]), together)
    np.testing.assert_allclose((together**2).sum(-1), [1, 1, 1, 0, 1, 1, 1], atol=1e-6)
    for got, one in zip(together, ids, strict=True):
        if len(one):
            np.testing.assert_allclose(got, published_embedding(made.parameters(), one, SMALL), rtol=0, atol=1e-5)


def test_bfloat16_points_the_same_way(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    made = model()
    ids = sequences(rng, [5, 12, 7, 3])
    cosine = (made.embed(ids, made.pack(ml_dtypes.bfloat16)) * made.embed(ids)).sum(-1)
    assert (cosine >= 0.999).all()


@pytest.mark.usefixtures("isa")
def test_int8_points_the_same_way_and_does_not_depend_on_batch_or_threads(rng):
    made = model()
    ids = sequences(rng, [5, 12, 7, 3])
    weights = made.pack("int8")
    with fa.num_threads(1):
        found = made.embed(ids, weights)
    assert ((found * made.embed(ids)).sum(-1) >= 0.999).all()
    assert same_bits(made.embed(ids, weights, batch_tokens=6), found)


def test_published_names_load_also_with_a_prefix_and_other_heads():
    one, other = model(0), model(1)
    state = {f"bert.{name}": value for name, value in one.parameters().items()}
    state |= {"bert.pooler.dense.weight": np.ones(3), "cls.predictions.bias": np.ones(3)}
    other.load_state_dict(state | {"bert.embeddings.position_ids": np.arange(3)})
    assert all(map(same_bits, one.parameters().values(), other.parameters().values()))


def test_wrong_weights_are_named_and_load_nothing():
    made, state = model(), model(1).parameters()
    before = {name: value.copy() for name, value in made.parameters().items()}
    name = "encoder.layer.1.output.dense.weight"
    with pytest.raises(KeyError, match=r"no encoder\.layer\.1\.output\.dense\.weight"):
        made.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.output\.dense\.weight must have shape \(24, 40\)"):
        made.load_state_dict(state | {name: np.ones((24, 41))})
    with pytest.raises(KeyError, match=r"unknown encoder\.layer\.2\.output\.dense\.weight"):
        made.load_state_dict(state | {"encoder.layer.2.output.dense.weight": np.ones(3)})
    assert all(same_bits(value, before[key]) for key, value in made.parameters().items())


@pytest.mark.parametrize(
    ("ids", "starts", "message"),
    [
        ([1, 50], [0, 2], r"BertModel: ids must lie in 0\.\.49, got 50 at \[1\]"),
        ([1] * 13, [0, 13], r"BertModel: cu_seqlens must be of sequences of at most 12 tokens, got 13 in 0"),
        ([1, 2], [0, 3], r"BertModel: cu_seqlens must rise from 0 to 2"),
        ([1, 2], [0, 2, 1, 2], r"BertModel: cu_seqlens must rise from 0 to 2"),
        ([1, 2], [], r"BertModel: ids must have shape \[T\]"),
        ([[1, 2]], [0, 1], r"BertModel: ids must have shape \[T\]"),
        ([1, 2], [0.0, 2.0], r"BertModel: ids must have shape \[T\] and cu_seqlens integers"),
    ],
)
def test_wrong_sequences_are_named(ids, starts, message):
    with pytest.raises(ValueError, match=message):
        model()(ids, starts)


def test_sizes_may_be_zero():
    assert model()(np.zeros(0, int), [0]).shape == (0, 24)
    assert model().embed([]).shape == (0, 24)
    assert not model().embed([[], []]).any()


def test_other_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"BertModel\.pack: dtype must be one of float32, bfloat16, int8"):
        model().pack(np.float64)
    with pytest.raises(ValueError, match=r"BertConfig: hidden_act must be 'gelu', got 'relu'"):
        nn.BertConfig.from_mapping({"hidden_act": "relu"})
    with pytest.raises(ValueError, match=r"BertModel: num_attention_heads must divide hidden_size, 24, got 5"):
        nn.BertModel(nn.BertConfig(50, 24, 2, 5, 40, 12))


# ---- models of other kinds ----

ROBERTA = {
    "model_type": "roberta", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 12, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
    "pad_token_id": 1, "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False,
    "add_cross_attention": False, "architectures": ["RobertaForMaskedLM"], "bos_token_id": 0, "torch_dtype": "float32",
}  # fmt: skip


def roberta():
    made = nn.BertModel(nn.BertConfig.from_mapping(ROBERTA), rng=0)
    for value in made.parameters().values():
        value[...] += 0.3 * np.random.default_rng(1).standard_normal(value.shape).astype("f4")
    return made


def test_positions_of_roberta_count_from_the_padding_token(rng):
    made = roberta()
    ids = [*sequences(rng, [10, 1, 0]), np.array([0, 5, 1, 7, 1, 1, 8]), np.array([1, 1])]  # 1 is padding
    starts = np.cumsum([0, *map(len, ids)])
    hidden = made(np.concatenate(ids), starts)
    for begin, end, one in zip(starts, starts[1:], ids, strict=False):
        if begin < end:
            wanted = published(made.parameters(), one, made.config)
            np.testing.assert_allclose(hidden[begin:end], wanted, rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match=r"cu_seqlens must be of sequences of at most 10 tokens, got 11 in 1"):
        made([2] * 13, [0, 2, 13])


@pytest.mark.parametrize(
    ("change", "positions", "padding"),
    [
        ({}, "roberta", 1),
        ({"model_type": "xlm-roberta", "pad_token_id": None}, "roberta", 1),
        ({"model_type": "camembert", "pad_token_id": 3}, "roberta", 3),
        ({"model_type": "bert", "pad_token_id": 0}, "bert", 0),
        ({"model_type": None, "architectures": ["XLMRobertaModel"]}, "roberta", 1),
        ({"model_type": None, "architectures": ["BertForMaskedLM"]}, "bert", 1),
        ({"model_type": None, "architectures": None}, "bert", 1),
    ],
)
def test_the_kind_of_positions_is_that_of_the_model(change, positions, padding):
    config = nn.BertConfig.from_mapping(ROBERTA | change)
    assert (config.positions, config.pad_token_id) == (positions, padding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "distilbert"},
            "model_type must be one of .*'xlm-roberta', 'camembert', got 'distil",
        ),
        ({"model_type": None, "architectures": ["ElectraModel"]}, "architectures must be of Bert, Roberta"),
        ({"model_type": None, "architectures": ["BertGenerationEncoder"]}, "architectures must be of"),
        ({"is_decoder": True}, "is_decoder must be False, got True"),
        ({"add_cross_attention": True}, "add_cross_attention must be False, got True"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder must be False, got True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute', got 'relative_key'"),
        ({"hidden_act": "silu"}, "hidden_act must be 'gelu', got 'silu'"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads must be"),
        ({"quantization_config": {"bits": 8}}, "quantization_config must be None"),
        ({"max_position_embeddings": 1}, r"max_position_embeddings must be at least pad_token_id \+ 1 = 2, got 1"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"BertConfig: {message}"):
        nn.BertConfig.from_mapping(ROBERTA | change)


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                                  "intermediate_size", "max_position_embeddings"])  # fmt: skip
def test_a_size_that_is_missing_is_named(name):
    mapping = {key: value for key, value in ROBERTA.items() if key != name}
    with pytest.raises(ValueError, match=f"BertConfig: mapping must hold {name}, got"):
        nn.BertConfig.from_mapping(mapping)


PREFIXES = ["", "bert.", "roberta.", "model.", "module.", "0.auto_model.", "module.roberta.", "model.bert.",
            "module.0.auto_model."]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("old", [False, True])
def test_published_names_load_with_the_usual_prefixes_and_the_old_names_of_norms(prefix, old):
    one, other = model(0), model(1)
    state = {prefix + name: value.copy() for name, value in one.parameters().items()}
    if old:
        state = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
            for name, value in state.items()
        }
    heads = ("lm_head.bias", "lm_head.layer_norm.weight", "classifier.dense.weight", "cls.predictions.bias",
             f"{prefix}pooler.dense.weight", "qa_outputs.bias")  # fmt: skip
    state |= {name: np.ones(3) for name in heads} | {f"{prefix}embeddings.position_ids": np.arange(3)}
    other.load_state_dict(state)
    assert all(map(same_bits, one.parameters().values(), other.parameters().values()))


def test_parameters_that_are_no_part_of_the_encoder_are_named():
    made = model()
    for extra in ("encoder.layer.0.crossattention.self.query.weight", "2.linear.weight",
                  "encoder.layer.0.attention.self.distance_embedding.weight"):  # fmt: skip
        with pytest.raises(KeyError, match="unknown"):
            made.load_state_dict(model(1).parameters() | {extra: np.ones(3)})
    name = "embeddings.LayerNorm.weight"
    with pytest.raises(ValueError, match=r"embeddings\.LayerNorm\.weight must come once, got .* and bert"):
        made.load_state_dict(model(1).parameters() | {f"bert.{name}": np.ones(24)})
    assert same_bits(made.parameters()[name], model().parameters()[name])


def test_a_roberta_model_of_transformers_gives_the_same_vectors(rng):
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    for theirs, config in ((transformers.RobertaModel, transformers.RobertaConfig),
                           (transformers.XLMRobertaModel, transformers.XLMRobertaConfig),
                           (transformers.BertModel, transformers.BertConfig)):  # fmt: skip
        options = {key: value for key, value in ROBERTA.items() if key not in ("model_type", "torch_dtype")}
        peer = theirs(config(**options)).eval()
        made = nn.BertModel(nn.BertConfig.from_mapping(peer.config.to_dict()))
        made.load_state_dict(peer.state_dict())
        for ids in (rng.integers(2, 50, 9), np.array([0, 5, 1, 7, 1, 1, 8])):
            with torch.no_grad():
                wanted = peer(torch.from_numpy(ids)[None], attention_mask=torch.ones(1, len(ids)))[0][0].numpy()
            np.testing.assert_allclose(made(ids, [0, len(ids)]), wanted, rtol=0, atol=1e-5)


# ---- the real model, where its package is installed ----


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip(embed.PACKAGE)
    pytest.importorskip("tokenizers")
    return embed.load(embed.model_folder())


SENTENCES = [
    "A man is eating food.", "Someone eats a meal.", "The stock market fell sharply on Monday.", "",
    "Attention is computed over all keys at once, while a recurrent network has to take one step after another. " * 20,
]  # fmt: skip


def test_the_real_model_equals_the_published_architecture(minilm):
    got = embed.embed(minilm, SENTENCES)
    for ids, one in zip(minilm.ids(SENTENCES), got, strict=True):
        right = published_embedding(minilm.bert.parameters(), ids, minilm.bert.config)
        assert np.abs(one - right).max() <= 1e-5
    assert [len(ids) for ids in minilm.ids(SENTENCES)][3:] == [2, 256]


def test_the_real_model_equals_torch(minilm):
    pytest.importorskip("torch", exc_type=ImportError)
    peer = importlib.import_module("benchmarks.kernels.peers.torch_bert").TorchBert(minilm.bert)
    ids = minilm.ids(SENTENCES)
    assert np.abs(minilm.bert.embed(ids) - peer.embed(ids)).max() <= 1e-5


def test_rates_are_of_the_same_embeddings_whatever_the_order(minilm):
    ids = minilm.ids(SENTENCES)
    found, vectors = embed_rates.rate(minilm.bert.embed, ids)
    assert found > 0 and same_bits(vectors, minilm.bert.embed(ids))
    rows = embed_rates.measure(minilm, ids, "float32", 1)
    assert [row["order"] for row in rows] == ["as they come", "sorted"]
    assert all(row.get("cosine", 1) > 0.99999 for row in rows)


def test_int8_is_measured_beside_onnxruntime(minilm):
    rows = embed_rates.measure(minilm, minilm.ids([one for one in SENTENCES if one]), "int8", 1)
    assert all(row["cosine"] >= 0.999 for row in rows)
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        assert all(0.9 < row["peer_cosine"] < row["cosine"] for row in rows)


def test_onnxruntime_embeds_as_the_published_architecture(rng):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    made, ids = model(), sequences(rng, [5, 12, 1])
    peer = importlib.import_module("benchmarks.kernels.peers.onnxruntime_bert").OnnxRuntimeBert(made, "float32", 1)
    assert np.abs(made.embed(ids) - peer.embed(ids)).max() <= 1e-5


def test_multiply_adds_are_those_of_the_products():
    config = nn.BertConfig(50, 24, 2, 4, 40, 12)
    linear = 3 * 24 * 24 + 24 * 24 + 2 * 24 * 40
    assert embed_rates.multiply_adds(config, [3, 5]) == 2 * (8 * linear + 2 * 24 * (9 + 25))


def test_the_real_model_in_bfloat16_points_the_same_way(minilm):
    pytest.importorskip("ml_dtypes")
    cosine = (embed.embed(minilm, SENTENCES, "bfloat16") * embed.embed(minilm, SENTENCES)).sum(-1)
    assert (cosine >= 0.999).all()


def test_the_real_model_in_int8_points_the_same_way(minilm):
    assert ((embed.embed(minilm, SENTENCES, "int8") * embed.embed(minilm, SENTENCES)).sum(-1) >= 0.999).all()


def test_sentences_that_are_spread_over_an_executor_have_the_same_bits(minilm, monkeypatch):
    monkeypatch.setattr(embed, "MPI_TOKENS", 12)
    ids, done = minilm.ids(SENTENCES), []
    with ThreadPoolExecutor(2) as executor:
        found = embed.embed_spread(executor, embed.model_folder(), 384, ids, "float32", 1, done.append)
        assert embed.embed_spread(executor, embed.model_folder(), 384, [], "float32", 1, done.append).shape == (0, 384)
    assert same_bits(found, embed.embed(minilm, SENTENCES))
    assert sum(done) == sum(map(len, ids))
    assert len(done) > 1


def test_the_command_writes_embeddings_and_answers_a_query(minilm, tmp_path, capsys):
    pytest.importorskip("rich")
    file, out = tmp_path / "lines.txt", tmp_path / "out.npy"
    file.write_text("\n\n".join(SENTENCES[:3]), encoding="utf-8")
    embed.main(
        [str(file), "--out", str(out), "--query", "a person having dinner", "--threads", str(fa.get_num_threads())]
    )
    assert same_bits(np.load(out), embed.embed(minilm, SENTENCES[:3]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "Monday" in lines[-1]


def test_broken_weight_files_of_the_real_model_are_named(minilm, tmp_path):
    folder = embed.model_folder()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, tmp_path / name)
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors: pooler\.dense\.weight must lie within the file"):
        embed.load(tmp_path)
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    header["other"] = header.pop("encoder.layer.3.output.dense.bias")
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size :])
    with pytest.raises(KeyError, match=r"no encoder\.layer\.3\.output\.dense\.bias; unknown other"):
        embed.load(tmp_path)

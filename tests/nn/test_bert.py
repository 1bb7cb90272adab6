"""The BERT encoder against its published architecture in NumPy and float64, and where it is installed a real model."""

import importlib
import json
import math
import shutil

import numpy as np
import pytest

import fastattn as fa
from benchmarks import embed, embed_rates
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
    x = norm(words[ids] + positions[: len(ids)] + types[0], "embeddings")
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
        ([1, 50], [0, 2], r"embedding: ids must lie in 0\.\.49, got 50 at \[1\]"),
        ([1] * 13, [0, 13], r"BertModel: sequences must have at most 12 tokens, got 13 in 0"),
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
    with pytest.raises(TypeError, match=r"BertModel\.pack: dtype must be one of float32, bfloat16"):
        model().pack(np.float64)
    with pytest.raises(ValueError, match=r"BertConfig: hidden_act must be 'gelu', got 'relu'"):
        nn.BertConfig.from_mapping({"hidden_act": "relu"})
    with pytest.raises(ValueError, match=r"BertModel: num_attention_heads must divide hidden_size, 24, got 5"):
        nn.BertModel(nn.BertConfig(50, 24, 2, 5, 40, 12))


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
    peer = importlib.import_module("benchmarks.peers.torch_bert").TorchBert(minilm.bert)
    ids = minilm.ids(SENTENCES)
    assert np.abs(minilm.bert.embed(ids) - peer.embed(ids)).max() <= 1e-5


def test_rates_are_of_the_same_embeddings_whatever_the_order(minilm):
    ids = minilm.ids(SENTENCES)
    found, vectors = embed_rates.rate(minilm.bert.embed, ids)
    assert found > 0 and same_bits(vectors, minilm.bert.embed(ids))
    rows = embed_rates.measure(minilm, ids, "float32", 1)
    assert [row["order"] for row in rows] == ["as they come", "sorted"]
    assert all(row.get("cosine", 1) > 0.99999 for row in rows)


def test_multiply_adds_are_those_of_the_products():
    config = nn.BertConfig(50, 24, 2, 4, 40, 12)
    linear = 3 * 24 * 24 + 24 * 24 + 2 * 24 * 40
    assert embed_rates.multiply_adds(config, [3, 5]) == 2 * (8 * linear + 2 * 24 * (9 + 25))


def test_the_real_model_in_bfloat16_points_the_same_way(minilm):
    pytest.importorskip("ml_dtypes")
    cosine = (embed.embed(minilm, SENTENCES, "bfloat16") * embed.embed(minilm, SENTENCES)).sum(-1)
    assert (cosine >= 0.999).all()


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

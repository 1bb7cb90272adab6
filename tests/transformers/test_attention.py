"""The attention function and its masks: what is handed to the kernel, what is refused, and what is left alone."""

import math

import pytest
import torch
import transformers
from transformers import masking_utils as hf
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import fastattn.torch as fat
import fastattn.transformers
from fastattn.transformers.attention import attention
from fastattn.transformers.masks import PatternMask, mask
from tests.torch.close import assert_close
from tests.transformers import comparison
from tests.transformers.architectures import build, inputs

PATTERNS = {
    "causal": hf.causal_mask_function,
    "window": hf.sliding_window_causal_mask_function(3),
    "both sides": hf.bidirectional_mask_function,
    "window on both sides": hf.sliding_window_bidirectional_mask_function(2),
    "chunks": hf.chunked_causal_mask_function(3, torch.zeros(2, dtype=torch.int64)),
    "window of another pattern": hf.and_masks(hf.sliding_window_overlay(3), hf.bidirectional_mask_function),
    "two windows": hf.and_masks(hf.sliding_window_overlay(3), hf.sliding_window_bidirectional_overlay(2)),
    "or": hf.or_masks(hf.sliding_window_overlay(3), hf.causal_mask_function),
}
POSITIONS = {
    "no past": (7, 7, 0, 0),
    "past": (4, 9, 5, 0),
    "empty static cache": (7, 12, torch.tensor(0), 0),
    "static cache": (4, 12, torch.tensor(5), 0),
    "one query of a static cache": (1, 12, torch.tensor(5), 0),
    "sliding cache": (3, 6, 9, 6),
    "keys that are gone": (4, 3, 4, 0),
}


class Attending(torch.nn.Module):
    is_causal = True


def qkv(queries=7, keys=7, heads=4, key_heads=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, heads, queries, 8), (2, key_heads, keys, 8), (2, key_heads, keys, 6))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def expected(q, k, v, whole):
    """By a mask of all pairs; a query that attends to nothing gives zeros."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~whole, -math.inf)
    return (scores.softmax(-1).nan_to_num() @ v).transpose(1, 2)


def padding_of(keys):
    present = torch.ones(2, keys, dtype=torch.bool)
    present[0, :2] = present[1, -1:] = False
    return present


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_masks_mean_what_those_of_transformers_mean(pattern, position, padded):
    queries, keys, query_start, key_start = position
    arguments = {
        "batch_size": 2, "q_length": queries, "kv_length": keys, "q_offset": query_start, "kv_offset": key_start,
        "mask_function": pattern, "attention_mask": padding_of(int(query_start) + queries) if padded else None,
        "allow_is_causal_skip": False,
    }  # fmt: skip
    whole = hf.sdpa_mask(**arguments)
    found = mask(**arguments)
    assert found.shape == whole.shape
    q, k, v = qkv(queries, keys)
    assert_close(attention(Attending(), q, k, v, found)[0], expected(q, k, v, whole))
    assert torch.equal(found & True, whole)  # and for a model that reads it
    assert_close(attention(Attending(), q, k, v, found)[0], expected(q, k, v, whole))


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("pattern", ["causal", "window", "both sides", "window on both sides"])
def test_masks_of_patterns_stay_short(pattern, padded):
    options = {"allow_is_bidirectional_skip": True, "attention_mask": padding_of(7) if padded else None}
    found = mask(2, 7, 7, mask_function=PATTERNS[pattern], **options)
    attention(Attending(), *qkv(), found)
    assert isinstance(found, PatternMask)
    assert found.whole is None


def test_a_mask_that_a_model_changes_counts_as_changed():
    found = mask(2, 7, 7)
    found[:, :, :, 0] = False
    whole = torch.ones(7, 7, dtype=torch.bool).tril()
    whole[:, 0] = False
    q, k, v = qkv()
    assert_close(attention(Attending(), q, k, v, found)[0], expected(q, k, v, whole))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 7), (1, 1, 1, 7), (2, 1, 7, 7), (2, 4, 7, 7)])
def test_masks_of_models_are_taken_as_they_are(shape, dtype):
    whole = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7
    whole[..., 0] = True
    given = whole
    if dtype is not torch.bool:
        given = torch.zeros(shape, dtype=dtype).masked_fill(~whole, torch.finfo(dtype).min)
    q, k, v = qkv()
    assert_close(attention(Attending(), q, k, v, given)[0], expected(q, k, v, whole))


@pytest.mark.parametrize("is_causal", [False, True, None])
def test_without_a_mask_only_the_argument_makes_attention_causal(is_causal):
    """A module without the attribute, and one that is causal and gets a mask of both sides, are not (as in eager)."""
    q, k, v = qkv()
    whole = torch.ones(7, 7, dtype=torch.bool)
    whole = whole.tril() if is_causal else whole
    assert_close(attention(Attending(), q, k, v, None, is_causal=is_causal)[0], expected(q, k, v, whole))


def test_without_a_mask_further_keys_are_the_empty_end_of_a_static_cache():
    q, k, v = qkv(5, 9)
    whole = torch.ones(5, 9, dtype=torch.bool).tril()
    assert_close(attention(Attending(), q, k, v, None, is_causal=True)[0], expected(q, k, v, whole))
    q, k, v = qkv(1, 9)
    assert_close(
        attention(Attending(), q, k, v, None, is_causal=True)[0], expected(q, k, v, torch.ones(1, 9, dtype=torch.bool))
    )


@pytest.mark.parametrize("given", ["none", "bool", "float", "pattern"])
def test_position_bias_is_added_to_scores(given):
    q, k, v = qkv()
    bias = torch.randn(1, 4, 7, 7, generator=torch.Generator().manual_seed(2)).requires_grad_()
    whole = torch.ones(7, 7, dtype=torch.bool).tril()
    added = torch.zeros(7, 7).masked_fill(~whole, -1e30)
    masks = {"none": None, "bool": whole, "float": added, "pattern": mask(2, 7, 7)}
    found = attention(Attending(), q, k, v, masks[given], position_bias=bias)[0]
    whole = whole if given != "none" else torch.ones_like(whole)
    reference = sdpa_attention_forward(Grouped(), q, k, v, whole, position_bias=bias)[0]
    assert_close(found, reference)
    weights = torch.randn(found.shape)
    gradients = [torch.autograd.grad((x * weights).sum(), bias)[0] for x in (found, reference)]
    assert_close(*gradients)


class Grouped(Attending):
    num_key_value_groups = 2


def test_scale_softcap_and_sinks_are_handed_on():
    q, k, v = qkv()
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    found = attention(Attending(), q, k, v, mask(2, 7, 7), scaling=0.7, softcap=1.5, s_aux=sinks)[0]
    reference = fat.attention(q, k, v, causal=True, scale=0.7, softcap=1.5, sinks=sinks.float())
    assert torch.equal(found, reference.transpose(1, 2))


def test_queries_that_are_parameters_serve_all_sequences():
    q, k, v = qkv(3, 7)
    found = attention(Attending(), q[:1], k, v, None, is_causal=False)[0]
    assert_close(found, expected(q[:1].expand_as(q), k, v, torch.ones(3, 7, dtype=torch.bool)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_results_are_contiguous_tensors_of_their_type(dtype):
    out = attention(Attending(), *qkv(dtype=dtype), mask(2, 7, 7), s_aux=torch.zeros(4))[0]
    assert out.dtype is dtype
    assert out.shape == (2, 7, 4, 6)
    assert out.is_contiguous()


# ---- dropout ----


@pytest.mark.parametrize("given", [None, "pattern"])
def test_dropout_drops_what_transformers_drops(given):
    q, k, v = qkv()
    whole = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    torch.manual_seed(0)
    found = attention(Grouped(), q, k, v, given and mask(2, 7, 7), dropout=0.5)[0]
    torch.manual_seed(0)
    reference = sdpa_attention_forward(Grouped(), q, k, v, given and whole, dropout=0.5, is_causal=False)[0]
    assert torch.equal(found, reference)


@pytest.mark.parametrize("name", ["softcap", "sinks"])
def test_dropout_with_softcap_or_sinks_is_refused(name):
    options = {"softcap": {"softcap": 2.0}, "sinks": {"s_aux": torch.zeros(4)}}[name]
    with pytest.raises(NotImplementedError, match=f"dropout must be 0 with {name}, got 0.5"):
        attention(Attending(), *qkv(), None, dropout=0.5, **options)


def test_a_model_with_dropout_trains():
    model = build("gpt2", "fastattn", attn_pdrop=0.5).train()
    first, second = (model(**inputs("decoder")).logits for _ in range(2))
    assert not torch.equal(first, second)
    first.sum().backward()


# ---- what is refused ----


@pytest.mark.parametrize("name", ["gpt2", "t5", "bert", "vit", "whisper"])
def test_output_attentions_is_refused(name):
    model = build(name, "fastattn")
    kind = {"gpt2": "decoder", "t5": "seq2seq", "bert": "encoder", "vit": "vision", "whisper": "speech"}[name]
    with pytest.raises(NotImplementedError, match="output_attentions must be False, got True"):
        model(**inputs(kind), output_attentions=True)
    model.set_attn_implementation("eager")
    assert model(**inputs(kind), output_attentions=True) is not None


@pytest.mark.parametrize("name", ["indices", "block_indices", "sinks"])
def test_attention_to_chosen_keys_is_refused(name):
    with pytest.raises(NotImplementedError, match=f"attention with `{name}`"):
        attention(Attending(), *qkv(), None, **{name: torch.zeros(1)})


def test_tensors_elsewhere_are_refused():
    with pytest.raises(TypeError, match="attention: q must be a dense tensor on the CPU, got"):
        attention(Attending(), *(x.to_sparse() for x in qkv()), None)


def test_use_refuses_what_is_no_model_or_has_no_attention():
    with pytest.raises(TypeError, match="use: model must be a model of transformers, got Linear"):
        fastattn.transformers.use(torch.nn.Linear(2, 2))
    network = transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(ValueError, match="use: model must have attention that others can compute, got ResNetModel"):
        fastattn.transformers.use(network)


# ---- what torch does with models ----


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_bit(reentrant):
    plain, checkpointed = build("phi3", "fastattn"), build("phi3", "fastattn").train()
    checkpointed.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert torch.equal(*(comparison.gradients(model, inputs("decoder")) for model in (plain, checkpointed)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_model_gives_the_outputs_of_eager_attention():
    eager, ours = comparison.pair("mistral", num_hidden_layers=1)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        found, reference = (comparison.output(model, inputs("decoder")) for model in (compiled, eager))
    assert comparison.relative(found, reference) <= comparison.FORWARD


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_layers_take_the_masks_of_the_model():
    eager, ours = comparison.pair("mistral", num_hidden_layers=1)
    for layer in ours.model.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    for left in (False, True):  # the masks are made outside of what is compiled
        with torch.no_grad():
            found, reference = (comparison.output(model, inputs("decoder", left=left)) for model in (ours, eager))
        assert comparison.relative(found, reference) <= comparison.FORWARD


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_outputs_of_sdpa(dtype):
    sdpa, ours = build("mistral", "sdpa"), build("mistral", "fastattn")
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found, reference = (comparison.output(model, inputs("decoder")).float() for model in (ours, sdpa))
    assert comparison.relative(found, reference) <= 4 * torch.finfo(dtype).eps

"""Models of transformers give with fastattn what they give with eager attention.

These are a part of scripts/transformers_sweep.py, whose result is in tests/transformers.md.
"""

import pytest
import torch

import fastattn.transformers
from tests.transformers import comparison
from tests.transformers.architectures import BYPASSING, build, inputs

DRAWN = ["mistral", "gemma2", "gpt2", "gpt_oss", "deepseek_v3", "modernbert", "bart", "t5", "whisper", "vit"]


@pytest.mark.parametrize("name", DRAWN)
def test_outputs_are_those_of_eager_attention(name):
    assert comparison.forward_difference(name) <= comparison.FORWARD


@pytest.mark.parametrize("name", ["llama", "phi3", "modernbert"])
def test_padding_on_the_left_and_no_padding_give_the_outputs_of_eager_attention(name):
    assert comparison.forward_difference(name, left=True) <= comparison.FORWARD
    assert comparison.forward_difference(name, padded=False) <= comparison.FORWARD


@pytest.mark.parametrize("name", DRAWN)
def test_gradients_are_those_of_eager_attention(name):
    assert comparison.gradients_agree(name)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt_oss", "bert", "t5"])
def test_bfloat16_is_as_near_to_float64_as_eager_attention(name):
    assert comparison.bfloat16_ratio(name) <= comparison.ERROR


@pytest.mark.parametrize("way", comparison.GENERATIONS)
@pytest.mark.parametrize("name", ["mistral", "gemma2", "t5"])
def test_generated_tokens_are_those_of_eager_attention(name, way):
    eager, ours = comparison.generated(name, way)
    assert ours == eager


@pytest.mark.parametrize("name", BYPASSING)
def test_use_refuses_models_that_compute_their_own_attention(name):
    model = build(name, "eager")
    with pytest.raises(ValueError, match=f"use: the attention of model .* got .*{type(model).__name__}"):
        fastattn.transformers.use(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["falcon", "falcon with alibi", "gpt_neo"])
def test_models_with_a_table_of_attention_classes_cannot_be_loaded(name):
    with pytest.raises(KeyError, match="fastattn"):
        build(name, "fastattn")


@pytest.mark.parametrize("name", [name for name in BYPASSING if name.partition(" ")[0] not in ("falcon", "gpt_neo")])
def test_models_that_compute_their_own_attention_get_masks_that_they_can_add(name):
    for options in ({}, {"left": True}, {"padded": False}):
        assert comparison.forward_difference(name, **options) == 0


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "bert", "t5", "wav2vec2"])
def test_use_tells_a_model_to_use_fastattn_and_transformers_takes_it_back(name):
    model = fastattn.transformers.use(build(name, "eager"))
    assert model.config._attn_implementation == "fastattn"
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["llama", "mistral", "bert as a decoder", "splinter"])
def test_models_whose_masks_are_not_causal_are_not(name):
    changes = {"is_causal": False} if name in ("llama", "mistral") else {"is_decoder": False}
    for options in ({"padded": True}, {"padded": False}):
        arguments = inputs("encoder", **options)
        with torch.no_grad():
            eager, ours = (comparison.output(model, arguments) for model in comparison.pair(name, **changes))
        assert comparison.relative(ours, eager) <= comparison.FORWARD


def test_use_changes_all_parts_of_a_model():
    model = fastattn.transformers.use(build("clip", "eager"))
    assert {part.config._attn_implementation for part in (model, model.text_model, model.vision_model)} == {"fastattn"}
    expected = comparison.output(build("clip", "eager"), inputs("pair"))
    assert comparison.relative(comparison.output(model, inputs("pair")), expected) <= comparison.FORWARD

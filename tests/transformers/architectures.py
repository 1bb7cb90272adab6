"""Small models of many architectures with drawn weights, made from configs without a network."""

from typing import Any, NamedTuple

import torch
import transformers

VOCABULARY = 97
PADDING = 0


class Architecture(NamedTuple):
    """A class of models, what it is given, and its config."""

    model: str
    kind: str  # decoder, encoder, seq2seq, vision, audio, speech (features to text), pair (images and texts)
    config: dict[str, Any]


_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PADDING,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 8}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 16}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "pad_token_id": PADDING,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BERT = _SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "type_vocab_size": 2}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "pad_token_id": PADDING,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "pad_token_id": PADDING,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
_IMAGE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_SPEECH = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_dim": (16, 16),
    "conv_stride": (4, 4),
    "conv_kernel": (8, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "vocab_size": VOCABULARY,
}
_WINDOWS = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}

ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "decoder", _GROUPED),
    "mistral": Architecture("MistralForCausalLM", "decoder", _GROUPED | {"sliding_window": 5}),
    "mixtral": Architecture("MixtralForCausalLM", "decoder", _GROUPED | _EXPERTS | {"sliding_window": 5}),
    "ministral": Architecture("MinistralForCausalLM", "decoder", _HEADS | _WINDOWS),
    "qwen2": Architecture("Qwen2ForCausalLM", "decoder", _GROUPED),
    "qwen2 with windows": Architecture(
        "Qwen2ForCausalLM", "decoder", _GROUPED | {"use_sliding_window": True, "max_window_layers": 1} | _WINDOWS
    ),
    "qwen2_moe": Architecture(
        "Qwen2MoeForCausalLM", "decoder", _GROUPED | _EXPERTS | {"shared_expert_intermediate_size": 16}
    ),
    "qwen3": Architecture("Qwen3ForCausalLM", "decoder", _HEADS),
    "qwen3_moe": Architecture("Qwen3MoeForCausalLM", "decoder", _HEADS | _EXPERTS),
    "gemma": Architecture("GemmaForCausalLM", "decoder", _HEADS | {"head_dim": 12}),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        "decoder",
        _HEADS | _WINDOWS | {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 11},
    ),
    "gemma3": Architecture("Gemma3ForCausalLM", "decoder", _HEADS | _WINDOWS | {"query_pre_attn_scalar": 11}),
    "phi": Architecture("PhiForCausalLM", "decoder", _GROUPED),
    "phi3": Architecture("Phi3ForCausalLM", "decoder", _GROUPED | {"sliding_window": 5}),
    "gpt2": Architecture("GPT2LMHeadModel", "decoder", _GPT2),
    "gpt_bigcode": Architecture("GPTBigCodeForCausalLM", "decoder", _GPT2 | {"multi_query": True}),
    "gpt_neox": Architecture("GPTNeoXForCausalLM", "decoder", _SIZES | {"hidden_dropout": 0.0}),
    "gpt_oss": Architecture("GptOssForCausalLM", "decoder", _HEADS | _EXPERTS | _WINDOWS),
    "opt": Architecture(
        "OPTForCausalLM",
        "decoder",
        _SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    ),
    "starcoder2": Architecture("Starcoder2ForCausalLM", "decoder", _GROUPED | {"sliding_window": 5}),
    "stablelm": Architecture("StableLmForCausalLM", "decoder", _GROUPED),
    "olmo": Architecture("OlmoForCausalLM", "decoder", _GROUPED),
    "olmo2": Architecture("Olmo2ForCausalLM", "decoder", _GROUPED),
    "olmo3": Architecture("Olmo3ForCausalLM", "decoder", _GROUPED | _WINDOWS),
    "cohere": Architecture("CohereForCausalLM", "decoder", _GROUPED),
    "cohere2": Architecture("Cohere2ForCausalLM", "decoder", _HEADS | _WINDOWS),
    "granite": Architecture("GraniteForCausalLM", "decoder", _GROUPED | {"attention_multiplier": 0.3}),
    "granitemoe": Architecture("GraniteMoeForCausalLM", "decoder", _GROUPED | _EXPERTS | {"attention_multiplier": 0.3}),
    "nemotron": Architecture("NemotronForCausalLM", "decoder", _HEADS),
    "persimmon": Architecture("PersimmonForCausalLM", "decoder", _SIZES),
    "glm": Architecture("GlmForCausalLM", "decoder", _HEADS),
    "glm4": Architecture("Glm4ForCausalLM", "decoder", _HEADS),
    "exaone4": Architecture("Exaone4ForCausalLM", "decoder", _HEADS | _WINDOWS),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM", "decoder", _HEADS),
    "smollm3": Architecture("SmolLM3ForCausalLM", "decoder", _GROUPED),
    "helium": Architecture("HeliumForCausalLM", "decoder", _HEADS),
    "arcee": Architecture("ArceeForCausalLM", "decoder", _HEADS),
    "seed_oss": Architecture("SeedOssForCausalLM", "decoder", _HEADS),
    "bitnet": Architecture("BitNetForCausalLM", "decoder", _GROUPED),
    "biogpt": Architecture("BioGptForCausalLM", "decoder", _SIZES | {"hidden_dropout_prob": 0.0}),
    "deepseek_v3": Architecture(
        "DeepseekV3ForCausalLM",
        "decoder",
        _SIZES
        | _EXPERTS
        | {
            "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "q_lora_rank": 16,
            "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
            "first_k_dense_replace": 1,
        },
    ),
    "llama4": Architecture(
        "Llama4ForCausalLM",
        "decoder",
        _HEADS
        | _EXPERTS
        | {
            "intermediate_size_mlp": 48, "attention_chunk_size": 5, "moe_layers": [],
            "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0],
        },
    ),
    "bert": Architecture("BertModel", "encoder", _BERT),
    "bert as a decoder": Architecture("BertLMHeadModel", "decoder", _BERT | {"is_decoder": True}),
    "roberta": Architecture("RobertaModel", "encoder", _BERT),
    "xlm_roberta": Architecture("XLMRobertaModel", "encoder", _BERT),
    "camembert": Architecture("CamembertModel", "encoder", _BERT),
    "electra": Architecture("ElectraModel", "encoder", _BERT | {"embedding_size": 16}),
    "albert": Architecture("AlbertModel", "encoder", _BERT | {"embedding_size": 16}),
    "distilbert": Architecture(
        "DistilBertModel",
        "encoder",
        {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "dropout": 0.0,
         "attention_dropout": 0.0, "max_position_embeddings": 64, "pad_token_id": PADDING},
    ),
    "splinter": Architecture("SplinterModel", "encoder", _BERT),
    "layoutlm": Architecture("LayoutLMModel", "encoder", _BERT),
    "ernie": Architecture("ErnieModel", "encoder", _BERT),
    "data2vec": Architecture("Data2VecTextModel", "encoder", _BERT),
    "markuplm": Architecture("MarkupLMModel", "encoder", _BERT),
    "modernbert": Architecture(
        "ModernBertModel",
        "encoder",
        _SIZES | {"local_attention": 6, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "esm": Architecture("EsmModel", "encoder", _BERT | {"mask_token_id": 3, "position_embedding_type": "rotary"}),
    "bart": Architecture("BartForConditionalGeneration", "seq2seq", _BART),
    "mbart": Architecture("MBartForConditionalGeneration", "seq2seq", _BART),
    "pegasus": Architecture("PegasusForConditionalGeneration", "seq2seq", _BART),
    "marian": Architecture("MarianMTModel", "seq2seq", _BART),
    "blenderbot": Architecture("BlenderbotForConditionalGeneration", "seq2seq", _BART),
    "m2m_100": Architecture("M2M100ForConditionalGeneration", "seq2seq", _BART),
    "t5": Architecture("T5ForConditionalGeneration", "seq2seq", _T5),
    "mt5": Architecture("MT5ForConditionalGeneration", "seq2seq", _T5),
    "umt5": Architecture("UMT5ForConditionalGeneration", "seq2seq", _T5),
    "vit": Architecture("ViTModel", "vision", _IMAGE),
    "deit": Architecture("DeiTModel", "vision", _IMAGE),
    "dinov2": Architecture("Dinov2Model", "vision", _IMAGE),
    "siglip": Architecture("SiglipVisionModel", "vision", _IMAGE | {"attention_dropout": 0.0}),
    "clip": Architecture(
        "CLIPModel",
        "pair",
        {"text_config": _SIZES, "vision_config": _IMAGE | {"attention_dropout": 0.0}, "projection_dim": 16},
    ),
    "wav2vec2": Architecture("Wav2Vec2Model", "audio", _SPEECH),
    "hubert": Architecture("HubertModel", "audio", _SPEECH),
    "whisper": Architecture(
        "WhisperForConditionalGeneration",
        "speech",
        _BART | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64, "suppress_tokens": None,
                 "begin_suppress_tokens": None},
    ),
}  # fmt: skip

# Models that compute their own attention, with masks from the functions that all models use.
BYPASSING = {
    "bloom": Architecture("BloomForCausalLM", "decoder", _GPT2 | {"hidden_size": 32, "hidden_dropout": 0.0}),
    "falcon": Architecture("FalconForCausalLM", "decoder", _SIZES | {"alibi": False, "hidden_dropout": 0.0}),
    "falcon with alibi": Architecture("FalconForCausalLM", "decoder", _SIZES | {"alibi": True, "hidden_dropout": 0.0}),
    "gpt_neo": Architecture(
        "GPTNeoForCausalLM",
        "decoder",
        _SIZES
        | {
            "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 5,
            "embed_dropout": 0.0, "resid_dropout": 0.0,
        },
    ),
    "mpt": Architecture(
        "MptForCausalLM", "decoder", _SIZES | {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}
    ),
    "xglm": Architecture(
        "XGLMForCausalLM",
        "decoder",
        _SIZES
        | {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "dropout": 0.0},
    ),
    "imagegpt": Architecture("ImageGPTForCausalImageModeling", "decoder", _GPT2),
    "gpt_neox_japanese": Architecture("GPTNeoXJapaneseForCausalLM", "decoder", _SIZES | {"hidden_dropout": 0.0}),
    "megatron_bert": Architecture("MegatronBertModel", "encoder", _BERT),
    "mpnet": Architecture("MPNetModel", "encoder", _BERT),
    "roformer": Architecture("RoFormerModel", "encoder", _BERT | {"embedding_size": 32}),
    "deberta": Architecture("DebertaModel", "encoder", _BERT | {"relative_attention": False}),
}  # fmt: skip


def build(name: str, attention: str, **changes: Any) -> Any:
    """The model in evaluation mode, by seed: the same weights with any attention."""
    architecture = (ARCHITECTURES | BYPASSING)[name]
    kind = getattr(transformers, architecture.model)
    config = kind.config_class(**(architecture.config | changes))
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
    draw(model)
    if model.can_generate():  # ends are as likely as any token, so sequences have several lengths
        model.generation_config.pad_token_id = PADDING
        model.generation_config.eos_token_id = 2
    return model


def draw(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights that let scores differ by several: what transformers draws makes probabilities of all keys alike."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = noise / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else parameter.detach() + 0.1 * noise
        parameter.data.copy_(values)


def inputs(kind: str, batch: int = 2, length: int = 13, left: bool = False, padded: bool = True) -> dict[str, Any]:
    """Arguments of a model's forward call. Texts are padded, the first by 4 tokens."""
    generator = torch.Generator().manual_seed(1)
    if kind == "vision":
        return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=generator)}
    if kind == "audio":
        return {"input_values": torch.randn(batch, 320, generator=generator)}
    tokens = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    present = torch.ones_like(tokens)
    if padded:
        gap = slice(0, 4) if left else slice(length - 4, length)
        tokens[0, gap], present[0, gap] = PADDING, 0
    if kind == "speech":
        features = torch.randn(batch, 8, 32, generator=generator)
        return {"input_features": features, "decoder_input_ids": tokens[:, :9]}
    texts = {"input_ids": tokens, "attention_mask": present}
    if kind == "pair":
        return texts | {"pixel_values": torch.randn(batch, 3, 16, 16, generator=generator)}
    if kind == "seq2seq":
        return texts | {"decoder_input_ids": torch.randint(3, VOCABULARY, (batch, 9), generator=generator)}
    return texts

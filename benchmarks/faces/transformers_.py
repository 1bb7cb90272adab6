"""HuggingFace models, with attention as transformers has it by default and by fastattn.transformers."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from torch import Tensor

import fastattn.transformers as fatr
from benchmarks.embed import sentences as embed
from benchmarks.embed.rates import sentences
from benchmarks.faces import Pair, Program, Run

# Of loading: nothing that a reader of the table wants.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOLERANCE = 1e-4
VOCABULARY = 1000


def programs(quick: bool) -> list[Program]:
    """Models of random weights; the sentence model where it is installed."""
    batch, length = (1, 64) if quick else (4, 128)
    group = "HuggingFace"
    found = [
        Program(f"BERT-base B{batch} L{length}", group, partial(_bert, batch, length, False), TOLERANCE),
        Program(f"BERT-base B{batch} L{length}, padding", group, partial(_bert, batch, length, True), TOLERANCE),
    ]
    for prompt, tokens in ((64, 8),) if quick else ((64, 32), (1024, 32)):
        found.append(
            Program(f"Llama-shaped, prefill {prompt}", group, partial(_prefill, prompt, torch.float32), TOLERANCE)
        )
        found.append(
            Program(f"Llama-shaped, generate {tokens} after {prompt}", group, partial(_generate, prompt, tokens), 0.0)
        )
    if not quick:
        found.append(Program("Llama-shaped, prefill 1024 bf16", group, partial(_prefill, 1024, torch.bfloat16), 5e-2))
    if find_spec(embed.PACKAGE):
        count = 32 if quick else 128
        found.append(Program(f"MiniLM, {count} sentences, padded", group, partial(_sentences, count), TOLERANCE))
    return found


def _both(model: Any, run: Callable[[Any], Run]) -> Pair:
    return Pair(run(model), run(fatr.use(deepcopy(model))))


def _bert(batch: int, length: int, padding: bool) -> Pair:
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=VOCABULARY)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    ids = torch.randint(VOCABULARY, (batch, length))
    lengths = torch.randint(length // 4, length + 1, (batch,)) if padding else torch.full((batch,), length)
    return _both(model, partial(_hidden, ids, torch.arange(length) < lengths[:, None]))


def _hidden(ids: Tensor, mask: Tensor, model: Any) -> Run:
    given = {"input_ids": ids} if bool(mask.all()) else {"input_ids": ids, "attention_mask": mask.long()}

    @torch.no_grad()
    def run() -> Tensor:
        hidden: Tensor = model(**given).last_hidden_state
        return hidden.masked_fill(~mask[..., None], 0.0)

    return run


def _llama() -> Any:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=4096,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def _prefill(length: int, dtype: torch.dtype) -> Pair:
    ids = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(2))

    def run(model: Any) -> Run:
        return torch.no_grad()(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1).logits)

    return _both(_llama().to(dtype), run)


def _generate(length: int, tokens: int) -> Pair:
    ids = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(2))

    def run(model: Any) -> Run:
        return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                                      min_new_tokens=tokens, do_sample=False, pad_token_id=0)  # fmt: skip

    return _both(_llama(), run)


def _sentences(count: int) -> Pair:
    folder = embed.model_folder()
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = embed.load(folder).ids(sentences(count))
    longest = max(map(len, ids))
    padded = torch.zeros(len(ids), longest, dtype=torch.long)
    for row, one in zip(padded, ids, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    lengths = torch.tensor([len(one) for one in ids])
    return _both(model, partial(_hidden, padded, torch.arange(longest) < lengths[:, None]))

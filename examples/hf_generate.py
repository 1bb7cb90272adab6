"""A language model of HuggingFace transformers writes with fastattn's attention: one argument, the same tokens.

The model has drawn weights, so nothing is downloaded and the text means nothing. For a trained one, replace the
config by AutoModelForCausalLM.from_pretrained(name, attn_implementation="fastattn").

Needs: python -m pip install "fastattn[transformers]"
"""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import fastattn.transformers  # noqa: F401  makes "fastattn" known

config = LlamaConfig(
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    initializer_range=0.1,
)


def model_with(attention):
    torch.manual_seed(0)  # the same weights each time
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


generator = torch.Generator().manual_seed(1)
prompts = torch.randint(3, 1000, (3, 50), generator=generator)
present = torch.ones_like(prompts)
present[0, :20] = 0  # the first is shorter: padding on the left

found = {}
for attention in ("eager", "fastattn"):
    model = model_with(attention)
    tokens = model.generate(prompts, attention_mask=present, max_new_tokens=20, do_sample=False, pad_token_id=0)
    found[attention] = tokens[:, prompts.shape[1] :]

for continuation in found["fastattn"].tolist():
    print(*continuation)
print("the same tokens as eager attention:", torch.equal(found["eager"], found["fastattn"]))

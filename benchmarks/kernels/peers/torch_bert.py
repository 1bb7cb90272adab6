"""The BERT of fastattn.nn once more, of torch.nn's encoder layers and padded batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.kernels.case import Array
from fastattn import nn

BATCH = 32  # sentences, as sentence-transformers has it
_NAMES = {
    "self_attn.out_proj": "attention.output.dense",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm1": "attention.output.LayerNorm",
    "norm2": "output.LayerNorm",
}


class TorchBert:
    """Sentence embeddings by torch with the parameters of a BertModel."""

    def __init__(self, bert: nn.BertModel, dtype: str = "float32") -> None:
        self.dtype = getattr(torch, dtype)
        self._parameters = {name: torch.from_numpy(value).to(self.dtype) for name, value in bert.parameters().items()}
        self._config = bert.config
        self._layers = [self._layer(f"encoder.layer.{i}") for i in range(bert.config.num_hidden_layers)]

    def _layer(self, name: str) -> Any:
        config, own, state = self._config, self._parameters, {}
        layer = torch.nn.TransformerEncoderLayer(
            config.hidden_size, config.num_attention_heads, config.intermediate_size, 0.0, "gelu",
            config.layer_norm_eps, batch_first=True,
        )  # fmt: skip
        for kind in ("weight", "bias"):
            parts = [own[f"{name}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
            for theirs, ours in _NAMES.items():
                state[f"{theirs}.{kind}"] = own[f"{name}.{ours}.{kind}"]
        layer.load_state_dict(state)
        return layer.to(self.dtype).eval()

    def embed(self, ids: Sequence[Array]) -> Array:
        """Embeddings [B, E] of length 1; no sequence may be empty."""
        with torch.inference_mode():
            return np.concatenate([self._batch(ids[i : i + BATCH]) for i in range(0, len(ids), BATCH)])

    def _batch(self, ids: Sequence[Array]) -> Array:
        own, longest = self._parameters, max(map(len, ids))
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(one) for one in ids], batch_first=True)
        beyond = torch.arange(longest) >= torch.tensor([len(one) for one in ids])[:, None]
        x = own["embeddings.word_embeddings.weight"][padded] + own["embeddings.token_type_embeddings.weight"][0]
        x = x + own["embeddings.position_embeddings.weight"][:longest]
        weight, bias = (own[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias"))
        x = torch.nn.functional.layer_norm(x, weight.shape, weight, bias, self._config.layer_norm_eps)
        for layer in self._layers:
            x = layer(x, src_key_padding_mask=beyond)
        total = x.float().masked_fill(beyond[..., None], 0).sum(1)
        embeddings: Array = torch.nn.functional.normalize(total, dim=1).numpy()
        return embeddings

"""The BERT encoder on ragged batches without padding, by the names of its published weights.

Source: Devlin et al. 2018, arXiv:1810.04805; sentence embeddings: Reimers and Gurevych 2019, arXiv:1908.10084.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn import _core
from fastattn.functional._types import Array
from fastattn.functional.attention_varlen import attention_varlen
from fastattn.functional.embedding import embedding
from fastattn.functional.linear import linear, pack_linear
from fastattn.functional.norm import add_layer_norm
from fastattn.nn.module import Module

_SPREAD = 0.02  # of initial weights
_OTHER_HEADS = ("cls.", "pooler.")  # of published files: what this encoder does not compute
_BATCH_TOKENS = 1024  # of hidden size 1536 in float32: 6 MB of temporaries, which a last-level cache holds


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder, by the names of config.json; the defaults are those of all-MiniLM-L6-v2."""

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "BertConfig":
        """From what config.json holds. Raises ValueError for another activation or kind of positions than BERT's."""
        for name, expected in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if mapping.get(name, expected) != expected:
                raise ValueError(f"BertConfig: {name} must be {expected!r}, got {mapping[name]!r}")
        return cls(**{field.name: mapping[field.name] for field in fields(cls) if field.name in mapping})


class BertModel(Module):
    """hidden[T, E] of the tokens ids[T] of a ragged batch, whose sequences lie one after another.

    Parameters have the names of the published weights (embeddings.word_embeddings.weight, encoder.layer.0.…). The
    arrays between the steps are in the dtype of `weights`, from `pack`: float32, or bfloat16, with sums, softmax, gelu
    and norms in float32 and each result rounded once.

    >>> model = BertModel(BertConfig(10, 8, 1, 2, 16, 12))
    >>> model([1, 5, 2, 1, 2], [0, 3, 5]).shape
    (5, 8)
    >>> model.embed([[1, 5, 2], [1, 2]]).shape
    (2, 8)
    """

    def __init__(self, config: BertConfig, *, rng: np.random.Generator | None = None) -> None:
        super().__init__(np.float32)
        rng = rng or np.random.default_rng()
        self.config = config
        if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
            raise ValueError(f"BertModel: num_attention_heads must divide hidden_size, {config.hidden_size}, "
                             f"got {config.num_attention_heads}")  # fmt: skip
        for name, shape in _shapes(config):
            if "LayerNorm" in name or len(shape) == 1:
                self._constant(name, shape, 1 if name.endswith("weight") else 0)
            else:
                self._own[name] = (_SPREAD * rng.standard_normal(shape)).astype(np.float32)

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """As of other modules. A prefix "bert." of all names is taken off; position_ids, the pooler and other heads are
        left out."""
        names = {name: name.removeprefix("bert.") for name in mapping}
        super().load_state_dict({
            own: mapping[name] for name, own in names.items()
            if not own.startswith(_OTHER_HEADS) and own != "embeddings.position_ids"
        })  # fmt: skip

    def pack(self, dtype: DTypeLike = np.float32) -> dict[str, Any]:
        """The weights as calls use them, packed once: queries, keys and values of a layer side by side. dtype: float32
        or bfloat16 (which needs ml_dtypes). They do not follow later changes of the parameters."""
        kind = np.dtype(dtype)
        if kind.name not in ("float32", "bfloat16"):
            raise TypeError(f"BertModel.pack: dtype must be float32 or bfloat16, got {kind}")
        own, packed = self._own, dict[str, Any]()
        for name in own:
            if name.startswith("encoder.") and own[name].ndim == 2:
                if ".self." not in name:
                    packed[name] = pack_linear(own[name], kind)
            else:
                packed[name] = own[name].astype(kind)
        # All tokens are of the first type.
        position, token_type = (own[f"embeddings.{part}_embeddings.weight"] for part in ("position", "token_type"))
        packed["position"] = (position + token_type[0]).astype(kind)
        for layer in _layers(self.config):
            parts = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
            weight, bias = (np.concatenate([own[f"{part}.{name}"] for part in parts]) for name in ("weight", "bias"))
            packed |= {f"{layer}.weight": pack_linear(weight, kind), f"{layer}.bias": bias.astype(kind)}
        return packed

    def __call__(self, ids: ArrayLike, cu_seqlens: ArrayLike, weights: dict[str, Any] | None = None) -> Array:
        """float32 hidden[T, E]: sequence b has the tokens ids[cu_seqlens[b] : cu_seqlens[b + 1]].

        Sequences may be empty. Raises ValueError for ids out of range, and for a sequence longer than the model's
        positions. weights: from `pack`, for many calls.
        """
        w = self.pack() if weights is None else weights
        starts = np.asarray(cu_seqlens)
        config, tokens = self.config, np.asarray(ids)
        self._check(tokens, starts)
        lengths = np.diff(starts)
        position = np.arange(len(tokens)) - np.repeat(starts[:-1], lengths)
        words = embedding(tokens, w["embeddings.word_embeddings.weight"])
        x = self._norm(words, embedding(position, w["position"]), w, "embeddings")
        for layer in _layers(config):
            x = self._layer(x, starts, w, layer)
        return x if x.dtype == np.float32 else _core.cast(x, np.dtype(np.float32))

    def embed(self, sequences: Sequence[ArrayLike], weights: dict[str, Any] | None = None, *,
              batch_tokens: int = _BATCH_TOKENS) -> Array:  # fmt: skip
        """Sentence embeddings [B, E]: the mean of the hidden vectors of each sequence's tokens, of length 1.

        An empty sequence has the embedding 0. Sequences run in batches of about batch_tokens tokens, which changes no
        bit. Errors as of the call.
        """
        w = self.pack() if weights is None else weights
        result = np.zeros((len(sequences), self.config.hidden_size), np.float32)
        for part in batches([np.size(ids) for ids in sequences], batch_tokens):
            ids = [np.asarray(sequences[i]) for i in range(part.start, part.stop)]
            starts = np.cumsum([0, *map(len, ids)])
            filled = np.flatnonzero(np.diff(starts))
            if len(filled):
                hidden = self(np.concatenate([ids[i] for i in filled]), starts, w)
                total = np.add.reduceat(hidden, starts[filled], axis=0)  # a sum: its length does not matter
                result[part.start + filled] = total / np.sqrt((total * total).sum(-1, keepdims=True))
        return result

    def _check(self, tokens: Array, starts: Array) -> None:
        if tokens.ndim != 1 or starts.ndim != 1 or starts.size == 0 or starts.dtype.kind not in "iu":
            raise ValueError(f"BertModel: ids must have shape [T] and cu_seqlens integers [B + 1], got {tokens.shape} "
                             f"and {starts.dtype} {starts.shape}")  # fmt: skip
        lengths = np.diff(starts)
        if starts[0] != 0 or starts[-1] != len(tokens) or (lengths < 0).any():
            raise ValueError(f"BertModel: cu_seqlens must rise from 0 to {len(tokens)}, the number of ids")
        most = self.config.max_position_embeddings
        if lengths.max(initial=0) > most:
            long = int(np.argmax(lengths))
            raise ValueError(f"BertModel: sequences must have at most {most} tokens, got {lengths[long]} in {long}")

    def _layer(self, x: Array, starts: Array, w: dict[str, Any], name: str) -> Array:
        config = self.config
        heads = (len(x), 3, config.num_attention_heads, config.hidden_size // config.num_attention_heads)
        projected = linear(x, w[f"{name}.weight"], w[f"{name}.bias"]).reshape(heads)
        q, k, v = projected[:, 0], projected[:, 1], projected[:, 2]
        out = attention_varlen(q, k, v, starts, starts).reshape(len(x), config.hidden_size)
        y = self._norm(x, self._dense(out, w, f"{name}.attention.output"), w, f"{name}.attention.output")
        hidden = self._dense(y, w, f"{name}.intermediate", "gelu")
        return self._norm(y, self._dense(hidden, w, f"{name}.output"), w, f"{name}.output")

    def _dense(self, x: Array, w: dict[str, Any], name: str, activation: str | None = None) -> Array:
        return linear(x, w[f"{name}.dense.weight"], w[f"{name}.dense.bias"], activation=activation)

    def _norm(self, x: Array, y: Array, w: dict[str, Any], name: str) -> Array:
        weight, bias = w[f"{name}.LayerNorm.weight"], w[f"{name}.LayerNorm.bias"]
        return add_layer_norm(x, y, weight, bias, eps=self.config.layer_norm_eps)[0]


def batches(lengths: Sequence[int], tokens: int) -> Iterator[range]:
    """Runs of consecutive sequences with at least `tokens` tokens each, but for the last.

    >>> [(r.start, r.stop) for r in batches([3, 4, 9, 1, 1], 6)]
    [(0, 2), (2, 3), (3, 5)]
    """
    if tokens < 1:
        raise ValueError(f"batches: tokens must be at least 1, got {tokens}")
    first = total = 0
    for i, length in enumerate(lengths):
        total += length
        if total >= tokens:
            yield range(first, i + 1)
            first, total = i + 1, 0
    if first < len(lengths):
        yield range(first, len(lengths))


def _layers(config: BertConfig) -> list[str]:
    return [f"encoder.layer.{i}" for i in range(config.num_hidden_layers)]


def _shapes(config: BertConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parameters."""
    n, inner = config.hidden_size, config.intermediate_size
    for name, rows in (("word", config.vocab_size), ("position", config.max_position_embeddings),
                       ("token_type", config.type_vocab_size)):  # fmt: skip
        yield f"embeddings.{name}_embeddings.weight", (rows, n)
    norms = ["embeddings"]
    for layer in _layers(config):
        parts = [(f"attention.self.{part}", n, n) for part in ("query", "key", "value")]
        parts += [("attention.output.dense", n, n), ("intermediate.dense", inner, n), ("output.dense", n, inner)]
        for part, rows, columns in parts:
            yield f"{layer}.{part}.weight", (rows, columns)
            yield f"{layer}.{part}.bias", (rows,)
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    for name in norms:
        yield f"{name}.LayerNorm.weight", (n,)
        yield f"{name}.LayerNorm.bias", (n,)

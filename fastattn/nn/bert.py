"""The encoder of BERT, RoBERTa and XLM-R on ragged batches without padding, by the names of its published weights.

Source: Devlin et al. 2018, arXiv:1810.04805; RoBERTa: Liu et al. 2019, arXiv:1907.11692; sentence embeddings: Reimers
and Gurevych 2019, arXiv:1908.10084.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn import _core
from fastattn.functional._checks import check_choice, check_dtype, check_integer
from fastattn.functional._floats import default_floats
from fastattn.functional._types import Array
from fastattn.functional.attention_varlen import attention_varlen
from fastattn.functional.embedding import embedding
from fastattn.functional.linear import linear, pack_linear
from fastattn.functional.norm import add_layer_norm
from fastattn.nn._arguments import Rng, check_eps, check_layers, check_rng, check_room, check_size
from fastattn.nn.module import Module

_SPREAD = 0.02  # of initial weights
_PREFIXES = re.compile(r"((module|model|0\.auto_model|auto_model|bert|roberta|xlm_roberta)\.)*")  # of published names
_OTHER_HEADS = ("cls.", "pooler.", "lm_head.", "classifier.", "qa_outputs.")  # what this encoder does not compute
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # constants that older files hold
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# By the model_type of config.json: how positions count, and the padding token where the file does not say.
_KINDS = {"bert": ("bert", 0), "roberta": ("roberta", 1), "xlm-roberta": ("roberta", 1), "camembert": ("roberta", 1)}
_ARCHITECTURES = {"Bert": "bert", "Roberta": "roberta", "XLMRoberta": "xlm-roberta", "Camembert": "camembert"}
# What config.json may say, and all that is implemented of it.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False,),
    "add_cross_attention": (False,), "is_encoder_decoder": (False,), "pruned_heads": ({}, None),
    "quantization_config": (None,),
}  # fmt: skip
_BATCH_TOKENS = 1024  # of hidden size 1536 in float32: 6 MB of temporaries, which a last-level cache holds


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder, by the names of config.json; the defaults are those of all-MiniLM-L6-v2.

    positions: "bert", counted from 0, or "roberta": tokens other than pad_token_id count from pad_token_id + 1, and
    pad_token_id has the position pad_token_id, so that fewer tokens fit.
    """

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    positions: str = "bert"
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        least = {"type_vocab_size": 1}
        for field in fields(self):
            if field.type is int or field.type == "int":
                size = check_size("BertConfig", field.name, getattr(self, field.name), least.get(field.name, 0))
                object.__setattr__(self, field.name, size)
        check_layers("BertConfig", self.num_hidden_layers, "num_hidden_layers")
        object.__setattr__(self, "layer_norm_eps", check_eps("BertConfig", "layer_norm_eps", self.layer_norm_eps))
        positions = check_choice("BertConfig", "positions", self.positions, ("bert", "roberta"))
        object.__setattr__(self, "positions", positions)
        if self.most_tokens < 0:
            raise ValueError(f"BertConfig: max_position_embeddings must be at least pad_token_id + 1 = "
                             f"{self.pad_token_id + 1}, got {self.max_position_embeddings}")  # fmt: skip

    @property
    def most_tokens(self) -> int:
        """Of a sequence."""
        return self.max_position_embeddings - (self.pad_token_id + 1 if self.positions == "roberta" else 0)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "BertConfig":
        """From the values of config.json, of BERT, RoBERTa, XLM-R or CamemBERT.

        Raises ValueError naming a missing value, or one that this encoder does not support: another model_type or
        activation, relative positions, a decoder, cross-attention, pruned heads, quantised weights.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"BertConfig: mapping must be a mapping of names to values, got {type(mapping).__name__}")
        for name, values in _IMPLEMENTED.items():
            value = _core.plain_text(mapping.get(name, values[0]))
            if not isinstance(value, str | int | float | dict | None) or value not in values:
                raise ValueError(f"BertConfig: {name} must be {values[0]!r}, got {_core.shown(value)}")
        positions, padding = _KINDS[_model_type(mapping)]
        given = {field.name: mapping[field.name] for field in fields(cls) if field.name in mapping}
        for name in _SIZES:
            if name not in given:
                raise ValueError(f"BertConfig: mapping must hold {name}, got {', '.join(sorted(map(str, mapping)))}")
        if given.get("pad_token_id") is None:
            given["pad_token_id"] = padding
        return cls(**given | {"positions": positions})


_OF_SIZES = ("_size", "_layers", "_embeddings")  # ends of names
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
          "max_position_embeddings")  # fmt: skip


def _model_type(mapping: Mapping[str, Any]) -> str:
    """A key of _KINDS, from model_type or, of older files, the name of the architecture."""
    name = mapping.get("model_type")
    if name is None:
        classes = mapping.get("architectures") or ["BertModel"]
        found = re.match(r"(Bert|Roberta|XLMRoberta|Camembert)(?=Model|For)", str(classes[0]))
        if found is None:
            raise ValueError(
                f"BertConfig: architectures must be of {', '.join(_ARCHITECTURES)}, got {_core.shown(classes)}"
            )
        name = _ARCHITECTURES[found[1]]
    kind: str = check_choice("BertConfig", "model_type", name, tuple(_KINDS))
    return kind


class BertModel(Module):
    """hidden[T, E] of the tokens ids[T] of a ragged batch, whose sequences are stored one after another.

    Parameters have the names of the published weights (embeddings.word_embeddings.weight, encoder.layer.0.…). The
    arrays between the steps are in the dtype of `weights`, from `pack`: float32, or bfloat16, with sums, softmax, gelu
    and norms in float32 and each result rounded once. With int8 weights they are float32, and the products with weights
    those of pack_linear's "int8".

    >>> model = BertModel(BertConfig(10, 8, 1, 2, 16, 12))
    >>> model([1, 5, 2, 1, 2], [0, 3, 5]).shape
    (5, 8)
    >>> model.embed([[1, 5, 2], [1, 2]]).shape
    (2, 8)
    """

    def __init__(self, config: BertConfig, *, rng: Rng = None) -> None:
        super().__init__(np.float32)
        if not isinstance(config, BertConfig):
            raise TypeError(f"BertModel: config must be a BertConfig, got {type(config).__name__}")
        if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
            raise ValueError(f"BertModel: num_attention_heads must divide hidden_size, {config.hidden_size}, "
                             f"got {config.num_attention_heads}")  # fmt: skip
        rng = check_rng("BertModel", rng)
        self.config = config
        n, rows = config.hidden_size, config.vocab_size + config.max_position_embeddings + config.type_vocab_size
        of_layer = n * (4 * n + 2 * config.intermediate_size)
        sizes = {field.name: getattr(config, field.name) for field in fields(config) if field.name.endswith(_OF_SIZES)}
        check_room("BertModel", rows * n + config.num_hidden_layers * of_layer, self.dtype.itemsize, **sizes)
        for name, shape in _shapes(config):
            if "LayerNorm" in name or len(shape) == 1:
                self._constant(name, shape, 1 if name.endswith("weight") else 0)
            else:
                self._normal(name, shape, _SPREAD, rng)

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """As of other modules, by the names of published files: the prefixes "bert.", "roberta.", "model.", "module."
        and "0.auto_model." are taken off, LayerNorm's gamma and beta are its weight and bias; position_ids, the pooler
        and other heads are left out. Raises ValueError for a parameter with two names."""
        if not isinstance(mapping, Mapping):
            return super().load_state_dict(mapping)
        found: dict[str, str] = {}
        for name in mapping:
            own = _PREFIXES.sub("", str(name), count=1)
            if own.startswith(_OTHER_HEADS) or own in _BUFFERS:
                continue
            for old, new in _OLD_NAMES.items():
                own = own.removesuffix(old) + new if own.endswith(old) else own
            if own in found:
                raise ValueError(f"BertModel.load_state_dict: {own} must come once, got {found[own]} and {name}")
            found[own] = name
        try:
            values = {own: mapping[name] for own, name in found.items()}
        except Exception as error:  # whatever a mapping of any type raises
            raise KeyError(f"BertModel.load_state_dict: mapping must hold what it names, got {error!r}") from None
        return super().load_state_dict(values)

    @default_floats
    def pack(self, dtype: DTypeLike = np.float32) -> dict[str, Any]:
        """The weights as calls use them, packed once: queries, keys and values of a layer side by side. dtype: float32,
        bfloat16 (which needs ml_dtypes) or int8. They do not follow later changes of the parameters."""
        kind = check_dtype("BertModel.pack", dtype, ("float32", "bfloat16", "int8"))
        with _core.DefaultFloats():
            return self._pack(kind)

    def _pack(self, kind: Any) -> dict[str, Any]:
        own, packed, arrays = self._own, dict[str, Any](), np.float32 if kind == np.int8 else kind
        for name in own:
            if name.startswith("encoder.") and own[name].ndim == 2:
                if ".self." not in name:
                    packed[name] = pack_linear(own[name], kind)
            else:
                packed[name] = own[name].astype(arrays)
        # All tokens are of the first type.
        position, token_type = (own[f"embeddings.{part}_embeddings.weight"] for part in ("position", "token_type"))
        packed["position"] = (position + token_type[0]).astype(arrays)
        for layer in _layers(self.config):
            parts = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
            weight, bias = (np.concatenate([own[f"{part}.{name}"] for part in parts]) for name in ("weight", "bias"))
            packed |= {f"{layer}.weight": pack_linear(weight, kind), f"{layer}.bias": bias.astype(arrays)}
        return packed

    def __call__(self, ids: ArrayLike, cu_seqlens: ArrayLike, weights: dict[str, Any] | None = None) -> Array:
        """float32 hidden[T, E]: sequence b has the tokens ids[cu_seqlens[b] : cu_seqlens[b + 1]].

        Sequences may be empty. Raises ValueError for ids out of range, and for a sequence longer than the model's
        positions. weights: from `pack`, for many calls.
        """
        w = self._packed(weights)
        tokens: Array = _core.checked_array(ids, "BertModel", "ids")
        starts = self._starts(tokens, _core.checked_array(cu_seqlens, "BertModel", "cu_seqlens"))
        config = self.config
        position = self._positions(tokens, starts)
        words = embedding(tokens, w["embeddings.word_embeddings.weight"])
        x = self._norm(words, embedding(position, w["position"]), w, "embeddings")
        for layer in _layers(config):
            x = self._layer(x, starts, w, layer)
        return x if x.dtype == np.float32 else _core.cast(x, np.dtype(np.float32))

    @default_floats
    def embed(self, sequences: Sequence[ArrayLike], weights: dict[str, Any] | None = None, *,
              batch_tokens: int = _BATCH_TOKENS) -> Array:  # fmt: skip
        """Sentence embeddings [B, E]: the mean of the hidden vectors of each sequence's tokens, of length 1.

        An empty sequence has the embedding 0. Sequences run in batches of about batch_tokens tokens, which changes no
        bit. Errors as of the call.
        """
        w, op = self._packed(weights), "BertModel.embed"
        batch_tokens = check_integer(op, "batch_tokens", batch_tokens, 1)
        arrays = [self._array(ids, ".embed", "sequences", ("T",)) for ids in _listed(op, sequences)]
        wrong = next((array for array in arrays if array.size and array.dtype.kind not in "iu"), None)
        if wrong is not None:
            raise TypeError(f"{op}: sequences must hold integers, got {wrong.dtype}")
        result: Array = _core.new_array((len(arrays), self.config.hidden_size), np.float32, op)
        result[...] = 0
        for part in batches([len(ids) for ids in arrays], batch_tokens):
            ids = arrays[part.start : part.stop]
            starts = np.cumsum([0, *map(len, ids)])
            filled = np.flatnonzero(np.diff(starts))
            if len(filled):
                hidden = self(np.concatenate([ids[i] for i in filled]), starts, w)
                with _core.DefaultFloats():
                    total = np.add.reduceat(hidden, starts[filled], axis=0)  # a sum: its length does not matter
                    result[part.start + filled] = total / np.sqrt((total * total).sum(-1, keepdims=True))
        return result

    def _packed(self, weights: Any) -> dict[str, Any]:
        if weights is None:
            return self.pack()
        shape = (self.config.max_position_embeddings, self.config.hidden_size)
        if not isinstance(weights, dict) or getattr(weights.get("position"), "shape", None) != shape:
            kind = type(weights).__name__
            raise TypeError(f"BertModel: weights must be what pack of such a model returned, got {kind}")
        missing = next((name for name in self._packed_names() if name not in weights), None)
        if missing is not None:
            raise ValueError(f"BertModel: weights must be what pack of such a model returned, got no {missing}")
        return weights

    def _packed_names(self) -> Iterator[str]:
        """What pack makes, beside "position"."""
        for name, value in self._own.items():
            if ".self." not in name or value.ndim == 1:
                yield name
        for layer in _layers(self.config):
            yield f"{layer}.weight"
            yield f"{layer}.bias"

    def _positions(self, tokens: Array, starts: Array) -> Array:
        """Of each token within its sequence."""
        lengths = np.diff(starts)
        if self.config.positions == "bert":
            place: Array = np.arange(len(tokens)) - np.repeat(starts[:-1], lengths)
            return place
        padding = self.config.pad_token_id
        counted = tokens != padding
        count = np.concatenate([[0], np.cumsum(counted)])
        position: Array = padding + counted * (count[1:] - np.repeat(count[starts[:-1]], lengths))
        return position

    def _starts(self, tokens: Array, given: Array) -> Array:
        """cu_seqlens as int64, a copy, after all is checked."""
        if tokens.size == 0:
            tokens = tokens.astype(np.int64)  # an empty list is one of floats
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"BertModel: ids must be integers, got {tokens.dtype}")
        if tokens.ndim != 1 or given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iu":
            raise ValueError(f"BertModel: ids must have shape [T] and cu_seqlens integers [B + 1], got {tokens.shape} "
                             f"and {given.dtype} {given.shape}")  # fmt: skip
        starts: Array = _core.checked_integers(given, "BertModel", "cu_seqlens")
        lengths = np.diff(starts)
        if starts[0] != 0 or starts[-1] != len(tokens) or (lengths < 0).any():
            raise ValueError(f"BertModel: cu_seqlens must rise from 0 to {len(tokens)}, the number of ids")
        most = self.config.most_tokens
        if lengths.max(initial=0) > most:
            long = int(np.argmax(lengths))
            raise ValueError(f"BertModel: cu_seqlens must be of sequences of at most {most} tokens, got "
                             f"{lengths[long]} in {long}")  # fmt: skip
        return starts

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


def _listed(op: str, sequences: Any) -> list[Any]:
    try:
        count = len(sequences)
        check_room(op, count, np.dtype(np.int64).itemsize, sequences=count)
        return list(sequences)
    except MemoryError:
        raise
    except Exception:  # whatever a sequence of any type raises
        raise TypeError(f"{op}: sequences must be a sequence of ids, got {type(sequences).__name__}") from None


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

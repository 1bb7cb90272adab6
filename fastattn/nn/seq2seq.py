"""Sequence to sequence: an encoder, a decoder that writes one token after the other, greedy and beam search."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn import _core
from fastattn.functional._checks import check_choice, check_flag, check_integer, check_parts
from fastattn.functional._floats import default_floats
from fastattn.functional._types import Array
from fastattn.functional.cross_entropy import cross_entropy
from fastattn.functional.rows import log_softmax
from fastattn.nn._arguments import Rng, check_layers, check_rng, check_room, check_size
from fastattn.nn.attention_gru import AttentionGRU, Memory
from fastattn.nn.layers import Embedding, Linear, added
from fastattn.nn.module import Module, Saved, prefixed
from fastattn.nn.recurrent import GRU, LSTM

_LONGEST = 100_000  # tokens of a sentence, which takes all steps where its end does not come

# Each of the three: encode(x[S, B, E], lengths) -> (memory, state); decode(x[T, B, E], memory, state) -> (features
# [T, B, features], state, weights or None); forward and backward of both together; `take` picks sequences of a batch.


class _Cho(Module):
    """One vector C for the source, C = tanh(V h): it starts the decoder, and each step and each output see it."""

    def __init__(self, embed: int, hidden: int, dtype: DTypeLike, rng: np.random.Generator) -> None:
        super().__init__(dtype)
        self.encoder = GRU(embed, hidden, linear_before_reset=False, dtype=dtype, rng=rng)
        self.summary = Linear(hidden, hidden, dtype=dtype, rng=rng)
        self.start = Linear(hidden, hidden, dtype=dtype, rng=rng)
        self.decoder = GRU(embed + hidden, hidden, linear_before_reset=False, dtype=dtype, rng=rng)
        self.features = 2 * hidden + embed

    def encode(self, x: Array, lengths: Array | None) -> tuple[Array, Array]:
        c = self.summary(self.encoder(x, None, lengths)[1][0], activation="tanh")
        return c, self.start(c, activation="tanh")[None]

    def decode(self, x: Array, memory: Array, state: Array) -> tuple[Array, Array, None]:
        inputs = _with_constant(x, memory)
        y, state = self.decoder(inputs, state)
        return np.concatenate([y, inputs], -1), state, None

    def forward(self, source: Array, lengths: Array | None, x: Array) -> tuple[Array, Any]:
        (_, last), encoder = self.encoder.forward(source, None, lengths)
        c, summary = self.summary.forward(last[0], activation="tanh")
        first, start = self.start.forward(c, activation="tanh")
        inputs = _with_constant(x, c)
        (y, _), decoder = self.decoder.forward(inputs, first[None])
        return np.concatenate([y, inputs], -1), (encoder, summary, start, decoder)

    def backward(self, dfeatures: Array, saved: Any) -> tuple[Array, Array, dict[str, Array]]:
        encoder, summary, start, decoder = check_parts("Seq2Seq.backward", "saved.parts[2]", saved, 4)
        hidden = self.decoder.hidden_size
        embed = self.decoder.input_size - hidden
        dinputs, dfirst, of_decoder = self.decoder.backward(dfeatures[..., :hidden], decoder)
        dinputs = added(dinputs, dfeatures[..., hidden:])
        dc, of_start = self.start.backward(dfirst[0], start)
        with _core.DefaultFloats():
            dc = dc + dinputs[..., embed:].sum(0)
        dlast, of_summary = self.summary.backward(dc, summary)
        dsource, _, of_encoder = self.encoder.backward((None, dlast[None]), encoder)
        grads = prefixed(encoder=of_encoder, summary=of_summary, start=of_start, decoder=of_decoder)
        return dsource, np.ascontiguousarray(dinputs[..., :embed]), grads

    @staticmethod
    def take(memory: Array | None, state: Array, rows: Array) -> tuple[Array | None, Array]:
        return None if memory is None else memory[rows], state[:, rows]


def _with_constant(x: Array, c: Array) -> Array:
    return np.concatenate([x, np.broadcast_to(c, (*x.shape[:2], c.shape[-1]))], -1)


class _Sutskever(Module):
    """Stacked LSTMs: the encoder's last state is the decoder's first, and all that the decoder sees of the source."""

    def __init__(self, embed: int, hidden: int, layers: int, dtype: DTypeLike, rng: np.random.Generator) -> None:
        super().__init__(dtype)
        self.encoder = LSTM(embed, hidden, layers, dtype=dtype, rng=rng)
        self.decoder = LSTM(embed, hidden, layers, dtype=dtype, rng=rng)
        self.features = hidden

    def encode(self, x: Array, lengths: Array | None) -> tuple[None, Any]:
        return None, self.encoder(x, None, lengths)[1]

    def decode(self, x: Array, memory: None, state: Any) -> tuple[Array, Any, None]:
        y, state = self.decoder(x, state)
        return y, state, None

    def forward(self, source: Array, lengths: Array | None, x: Array) -> tuple[Array, Any]:
        (_, state), encoder = self.encoder.forward(source, None, lengths)
        (y, _), decoder = self.decoder.forward(x, state)
        return y, (encoder, decoder)

    def backward(self, dfeatures: Array, saved: Any) -> tuple[Array, Array, dict[str, Array]]:
        encoder, decoder = check_parts("Seq2Seq.backward", "saved.parts[2]", saved, 2)
        dx, dstate, of_decoder = self.decoder.backward(dfeatures, decoder)
        dsource, _, of_encoder = self.encoder.backward((None, dstate), encoder)
        return dsource, dx, prefixed(encoder=of_encoder, decoder=of_decoder)

    @staticmethod
    def take(memory: None, state: Any, rows: Array) -> tuple[None, Any]:
        return None, tuple(part[:, rows] for part in state)


class _Bahdanau(Module):
    """Annotations of both directions, to which the decoder attends; it starts from tanh(W h) of the first one's end."""

    def __init__(self, embed: int, hidden: int, attention: int, dtype: DTypeLike, rng: np.random.Generator) -> None:
        super().__init__(dtype)
        self.encoder = GRU(embed, hidden, bidirectional=True, dtype=dtype, rng=rng)
        self.start = Linear(hidden, hidden, dtype=dtype, rng=rng)
        self.decoder = AttentionGRU(embed, hidden, 2 * hidden, attention, dtype=dtype, rng=rng)
        self.features = 3 * hidden + embed

    def encode(self, x: Array, lengths: Array | None) -> tuple[Memory, Array]:
        y, last = self.encoder(x, None, lengths)
        return self.decoder.annotate(y.swapaxes(0, 1), lengths), self.start(last[1], activation="tanh")

    def decode(self, x: Array, memory: Memory, state: Array) -> tuple[Array, Array, Array]:
        (y, context, weights), state = self.decoder(x, memory, state)
        return np.concatenate([y, x, context], -1), state, weights

    def forward(self, source: Array, lengths: Array | None, x: Array) -> tuple[Array, Any]:
        (annotations, last), encoder = self.encoder.forward(source, None, lengths)
        first, start = self.start.forward(last[1], activation="tanh")
        ((y, context, _), _), decoder = self.decoder.forward(x, annotations.swapaxes(0, 1), first, lengths)
        return np.concatenate([y, x, context], -1), (encoder, start, decoder)

    def backward(self, dfeatures: Array, saved: Any) -> tuple[Array, Array, dict[str, Array]]:
        encoder, start, decoder = check_parts("Seq2Seq.backward", "saved.parts[2]", saved, 3)
        hidden, embed = self.decoder.hidden_size, self.decoder.input_size
        dy, dinputs, dcontext = np.split(dfeatures, [hidden, hidden + embed], -1)
        (dx, dannotations), dfirst, of_decoder = self.decoder.backward((dy, dcontext, None), decoder)
        dlast, of_start = self.start.backward(dfirst, start)
        dstate = np.stack([np.zeros_like(dlast), dlast])
        dsource, _, of_encoder = self.encoder.backward((dannotations.swapaxes(0, 1), dstate), encoder)
        return dsource, added(dx, dinputs), prefixed(encoder=of_encoder, start=of_start, decoder=of_decoder)

    @staticmethod
    def take(memory: Memory | None, state: Array, rows: Array) -> tuple[Memory | None, Array]:
        if memory is None:
            return None, state[rows]
        lengths = None if memory.lengths is None else memory.lengths[rows]
        return Memory(memory.annotations[rows], memory.keys[rows], memory.gates[rows], lengths), state[rows]


class Seq2Seq(Module):
    """Encoder and decoder over tokens: logits[B, T, target_size] of source[B, S] and target[B, T], both integers.

    target is the output of the decoder so far: a start token, then the sentence; logits[:, t] are those of the token
    that follows target[:, t]. `source_lengths`[B]: tokens beyond are not read. kind:

    "bahdanau"
        A bidirectional GRU makes annotations, to which the GRU of the decoder attends before each step
        (nn.AttentionGRU; attention_size is by default hidden_size); the output sees state, token and context. With
        return_weights=True the call also returns the alignment, [B, T, S]. Source: Bahdanau et al. 2015,
        arXiv:1409.0473.
    "cho"
        One vector C of the source, of the last state of a GRU: each step of the decoder and the output see it. The
        output is linear. Source: Cho et al. 2014, arXiv:1406.1078.
    "sutskever"
        Stacked LSTMs (num_layers); the last state of the encoder starts the decoder. reverse_source=True reads the
        source from its end. Source: Sutskever et al. 2014, arXiv:1409.3215.

    Training: logits, saved = m.forward(source, target, source_lengths), then m.backward(dlogits, saved) with the
    gradient of cross_entropy. Then m.greedy or m.beam writes sentences.

    >>> m = Seq2Seq(10, 12, 4, 8, rng=np.random.default_rng(0))
    >>> m([[1, 2, 3]], [[0, 5]]).shape
    (1, 2, 12)
    """

    def __init__(self, source_size: int, target_size: int, embed_size: int, hidden_size: int, *, kind: str = "bahdanau",
                 num_layers: int = 1, attention_size: int | None = None, reverse_source: bool = False,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        kind = check_choice("Seq2Seq", "kind", kind, ("bahdanau", "cho", "sutskever"))
        source_size, target_size, embed_size, hidden_size = (
            check_size("Seq2Seq", name, value, least)
            for name, value, least in (("source_size", source_size, 0), ("target_size", target_size, 0),
                                       ("embed_size", embed_size, 1), ("hidden_size", hidden_size, 1))
        )  # fmt: skip
        num_layers = check_layers("Seq2Seq", num_layers, least=1)
        attended = hidden_size if attention_size is None else check_size("Seq2Seq", "attention_size", attention_size)
        if num_layers != 1 and kind != "sutskever":
            raise ValueError(f"Seq2Seq: num_layers must be 1 for kind={_core.shown(kind)}, got {num_layers}")
        check_room("Seq2Seq", (source_size + target_size + 3 * attended) * (embed_size + hidden_size),
                   self.dtype.itemsize, source_size=source_size, target_size=target_size, embed_size=embed_size,
                   hidden_size=hidden_size, attention_size=attended)  # fmt: skip
        rng = check_rng("Seq2Seq", rng)
        self.kind, self.reverse_source = kind, check_flag("Seq2Seq", "reverse_source", reverse_source)
        self.source = Embedding(source_size, embed_size, dtype=dtype, rng=rng)
        self.target = Embedding(target_size, embed_size, dtype=dtype, rng=rng)
        if kind == "cho":
            self.core: Any = _Cho(embed_size, hidden_size, dtype, rng)
        elif kind == "sutskever":
            self.core = _Sutskever(embed_size, hidden_size, num_layers, dtype, rng)
        else:
            self.core = _Bahdanau(embed_size, hidden_size, attended, dtype, rng)
        self.output = Linear(self.core.features, target_size, dtype=dtype, rng=rng)

    def _ids(self, source: ArrayLike, lengths: ArrayLike | None) -> tuple[Array, Array | None]:
        """source[S, B], reversed if reverse_source is set, and lengths."""
        ids = self._array(source, "", "source", ("B", "S"))
        check_room("Seq2Seq", ids.size, np.dtype(np.int64).itemsize, source=ids.size)
        checked = _core.checked_lengths(lengths, len(ids), ids.shape[1], "Seq2Seq", "source_lengths")
        if self.reverse_source:
            ends = np.full(len(ids), ids.shape[1]) if checked is None else checked
            position = ends[:, None] - 1 - np.arange(ids.shape[1])
            ids = np.take_along_axis(ids, np.where(position < 0, np.arange(ids.shape[1]), position), 1)
        return np.ascontiguousarray(ids.T), checked

    def _target_ids(self, target: ArrayLike, batch: int) -> Array:
        ids: Array = _core.checked_array(target, "Seq2Seq", "target")
        if ids.ndim != 2 or len(ids) != batch:
            raise ValueError(f"Seq2Seq: target must have shape [B, T] with the {batch} rows of source, got {ids.shape}")
        check_room("Seq2Seq", ids.size, np.dtype(np.int64).itemsize, target=ids.size)
        return np.ascontiguousarray(ids.T)

    def __call__(self, source: ArrayLike, target: ArrayLike, source_lengths: ArrayLike | None = None, *,
                 return_weights: bool = False) -> Any:  # fmt: skip
        """Logits, and with return_weights the pair (logits, alignment)."""
        if check_flag("Seq2Seq", "return_weights", return_weights) and self.kind != "bahdanau":
            raise ValueError(f"Seq2Seq: return_weights needs kind='bahdanau', got {self.kind!r}")
        ids, lengths = self._ids(source, source_lengths)
        words = self._target_ids(target, ids.shape[1])
        memory, state = self.core.encode(self.source(ids), lengths)
        features, _, weights = self.core.decode(self.target(words), memory, state)
        logits = self.output(features).swapaxes(0, 1)
        return (logits, weights) if return_weights else logits

    def forward(self, source: ArrayLike, target: ArrayLike,
                source_lengths: ArrayLike | None = None) -> tuple[Array, Saved]:  # fmt: skip
        """The logits, and what backward needs."""
        ids, lengths = self._ids(source, source_lengths)
        x, of_source = self.source.forward(ids)
        y, of_target = self.target.forward(self._target_ids(target, ids.shape[1]))
        features, core = self.core.forward(x, lengths, y)
        logits, output = self.output.forward(features)
        return logits.swapaxes(0, 1), self._saved(of_source, of_target, core, output)

    @default_floats
    def backward(self, dlogits: ArrayLike, saved: Any) -> tuple[None, dict[str, Array]]:
        """None, since tokens have no gradient, and the gradients of the parameters by name."""
        of_source, of_target, core, output = self._parts(saved, 4)
        dlogits = self._array(dlogits, ".backward", "dlogits", ("B", "T", len(self.output.parameters()["weight"])))
        dfeatures, for_output = self.output.backward(dlogits.swapaxes(0, 1), output)
        dsource, dtarget, for_core = self.core.backward(dfeatures, core)
        source, target = self.source.backward(dsource, of_source)[1], self.target.backward(dtarget, of_target)[1]
        return None, prefixed(source=source, target=target, core=for_core, output=for_output)

    @default_floats
    def log_probability(self, source: ArrayLike, target: ArrayLike, following: ArrayLike,
                        source_lengths: ArrayLike | None = None, *, ignore_index: int = -100) -> Array:  # fmt: skip
        """[B]: the log-probability of the tokens `following`[B, T], those that stand after each of target[B, T].

        Tokens equal to ignore_index do not count.
        """
        logits = self(source, target, source_lengths)
        losses = cross_entropy(logits, following, ignore_index=ignore_index, reduction="none")
        with _core.DefaultFloats():
            total: Array = -losses.sum(1)
            return total

    def greedy(self, source: ArrayLike, source_lengths: ArrayLike | None = None, *, start: int, end: int,
               max_length: int = 100) -> list[tuple[list[int], float]]:  # fmt: skip
        """For each source the sentence of the most probable next tokens, without start and end, and its
        log-probability, with that of `end` if it comes within max_length tokens."""
        return self.beam(source, source_lengths, start=start, end=end, max_length=max_length, width=1)

    @default_floats
    def beam(self, source: ArrayLike, source_lengths: ArrayLike | None = None, *, start: int, end: int,
             max_length: int = 100, width: int = 4) -> list[tuple[list[int], float]]:  # fmt: skip
        """The best sentence of a search that keeps the `width` most probable prefixes at each step."""
        op, words = "Seq2Seq.beam", len(self.output.parameters()["weight"])
        width, max_length = check_size(op, "width", width, 1), check_size(op, "max_length", max_length)
        for name, value in (("start", start), ("end", end)):
            if not 0 <= check_integer(op, name, value) < words:
                raise ValueError(f"{op}: {name} must lie in 0..{words - 1}, got {value}")
        ids, lengths = self._ids(source, source_lengths)
        batch = ids.shape[1]
        check_room(op, batch * width * (words + max_length), 8, width=width, max_length=max_length)
        if max_length > _LONGEST:
            raise ValueError(f"{op}: max_length must be at most {_LONGEST}, got {max_length}")
        if batch == 0:
            return []
        memory, state = self.core.encode(self.source(ids), lengths)
        memory, state = self.core.take(memory, state, np.repeat(np.arange(batch), width))
        last = np.full((batch, width), start)
        sentences = np.empty((batch, width, 0), np.int64)
        # One beginning at first: equal ones would fill the beam.
        score = np.where(np.arange(width) == 0, 0.0, -np.inf) + np.zeros((batch, 1))
        ended = np.zeros((batch, width), bool)
        first = width * np.arange(batch)[:, None]
        for _ in range(max_length):
            if ended.all():
                break
            features, state, _ = self.core.decode(self.target(last.reshape(1, -1)), memory, state)
            with _core.DefaultFloats():
                after = log_softmax(self.output(features)[0]).astype(np.float64).reshape(batch, width, -1)
            after[ended] = -np.inf
            after[ended, end] = 0  # an ended sentence goes on as it is
            total = added(score[..., None], after).reshape(batch, -1)
            best = np.argsort(-total, 1, kind="stable")[:, :width]
            score = np.take_along_axis(total, best, 1)
            parent, last = np.divmod(best, after.shape[2])
            sentences = np.concatenate([np.take_along_axis(sentences, parent[..., None], 1), last[..., None]], 2)
            ended = np.take_along_axis(ended, parent, 1) | (last == end)
            _, state = self.core.take(None, state, (first + parent).ravel())  # the memory of a source is one
        return [(_until(sentences[b, 0].tolist(), end), float(score[b, 0])) for b in range(batch)]


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens

"""Real text as ragged batches: sentences, token ids, passages of whole sentences, embedded and padded.

The default text is the English reference text that Python's help() shows (pydoc_data.topics): nothing is downloaded.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np

from benchmarks.kernels.case import Array

_SENTENCE_END = re.compile(r"([.!?][\"')\]]*) (?=[\"'(\[*“]?[A-Z])")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|cf|vs|Mr|Mrs|Dr|St|No)\.[\"')\]]*$")
_TOKEN = re.compile(r"\w+|[^\w\s]")


def load(path: Path | None = None) -> str:
    """The file's text, or that of the standard library."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    return "\n\n".join(import_module("pydoc_data.topics").topics.values())


def sentences(text: str) -> list[str]:
    """Sentences in order. Blank lines end a sentence; lines without a letter (rules, borders) are dropped.

    >>> sentences("See e.g. This one. And\\nthat one!\\n*****\\n\\nA title\\n\\nEnd.")
    ['See e.g. This one.', 'And that one!', 'A title', 'End.']
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line for line in paragraph.splitlines() if any(map(str.isalpha, line))]
        pending = ""
        for piece in _SENTENCE_END.sub(r"\1\n", " ".join(" ".join(lines).split())).splitlines():
            pending = f"{pending} {piece}".strip()
            if not _ABBREVIATION.search(pending):
                found.append(pending)
                pending = ""
        found.append(pending)
    return [sentence for sentence in found if any(map(str.isalpha, sentence))]


def tokens(sentence: str) -> list[str]:
    """Words and punctuation marks.

    >>> tokens("It's 3.14!")
    ['It', "'", 's', '3', '.', '14', '!']
    """
    return _TOKEN.findall(sentence)


def token_ids(split: Sequence[str]) -> tuple[list[Array], int]:
    """Ids of the tokens of each sentence, the most frequent token 0, and the size of the vocabulary."""
    lists = [[token.lower() for token in tokens(sentence)] for sentence in split]
    order = {
        token: number
        for number, (token, _) in enumerate(Counter(token for line in lists for token in line).most_common())
    }
    return [np.array([order[token] for token in line], np.int64) for line in lists], len(order)


def passages(ids: Sequence[Array], most: int) -> list[Array]:
    """Runs of whole sentences of at most `most` tokens, as long as they get. A sentence that is longer alone is cut."""
    found: list[Array] = []
    pending: list[Array] = []
    length = 0
    for sentence in ids:
        if pending and length + len(sentence) > most:
            found.append(np.concatenate(pending))
            pending, length = [], 0
        pending.append(sentence[:most])
        length += len(pending[-1])
    return [*found, np.concatenate(pending)] if pending else found


def positions(length: int, width: int) -> Array:
    """Sinusoidal positions [length, width]: sin on even columns, cos on odd ones (Vaswani et al. 2017)."""
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, width).astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """Embedded passages with their true lengths."""

    limit: int  # most tokens of a passage
    lengths: Array  # [B]
    rows: Array  # [sum of lengths, width]: passage after passage, no padding

    @property
    def padded(self) -> Array:
        """x[T, B, width], zero beyond the lengths."""
        x = np.zeros((int(self.lengths.max()), len(self.lengths), self.rows.shape[1]), self.rows.dtype)
        for b, part in enumerate(np.split(self.rows, np.cumsum(self.lengths)[:-1])):
            x[: len(part), b] = part
        return x


class Corpus:
    """A text, ready to be cut into batches of any size."""

    def __init__(self, text: str, width: int, seed: int = 1) -> None:
        split = sentences(text)
        self.ids, self.vocabulary = token_ids(split)
        if not self.ids:
            raise ValueError("the text must hold at least one sentence with a letter")
        self.sentence_lengths = np.array([len(ids) for ids in self.ids])
        self._embedding = np.random.default_rng(seed).standard_normal(
            (self.vocabulary, width), np.float32
        ) / np.float32(math.sqrt(2))

    @property
    def tokens(self) -> int:
        """Length of the text."""
        return int(self.sentence_lengths.sum())

    def batch(self, size: int, limit: int) -> Batch:
        """The first `size` passages of at most `limit` tokens, from the start again when the text runs out."""
        found = passages(self.ids, limit)
        # The last one ends where the text ends: it would be shorter than the others.
        found = found[:-1] or found
        chosen = [found[i % len(found)] for i in range(size)]
        rows = np.concatenate([self._embedding[ids] + positions(len(ids), self._embedding.shape[1]) for ids in chosen])
        return Batch(limit, np.array([len(ids) for ids in chosen], np.int64), rows)


@cache
def sentence_lengths(sentences: int) -> Array:
    """Tokens of the first sentences of the text of the standard library."""
    return Corpus(load(), 2).sentence_lengths[:sentences]

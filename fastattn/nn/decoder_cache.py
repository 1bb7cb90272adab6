"""What a transformer decoder remembers of the tokens before: the caches of its layers."""

import copy
from dataclasses import dataclass

from numpy.typing import ArrayLike

from fastattn.cache import KVCache
from fastattn.nn.attention import Context


@dataclass(frozen=True)
class LayerCache:
    """What a decoder layer has seen: keys and values of the target so far, and of the memory."""

    target: KVCache
    memory: Context

    def __copy__(self) -> "LayerCache":
        """A cache of its own, on the same memory, which no step writes."""
        return LayerCache(copy.copy(self.target), self.memory)

    def select(self, sequences: ArrayLike, *, keep_memory: bool = False) -> "LayerCache":
        """DecoderCache.select of one layer."""
        target = self.target.select(sequences)
        if not keep_memory:
            return LayerCache(target, self.memory.select(sequences))
        if len(target.lengths) != len(self.memory.keys):
            raise ValueError(f"select: sequences must have the {len(self.memory.keys)} sequences of the memory with "
                             f"keep_memory, got {len(target.lengths)}")  # fmt: skip
        return LayerCache(target, self.memory)


@dataclass(frozen=True)
class DecoderCache:
    """What the layers of a decoder have seen: TransformerDecoder.start, Transformer.start."""

    layers: list[LayerCache]

    def __copy__(self) -> "DecoderCache":
        """Caches of its own, on the same memory, which no step writes."""
        return DecoderCache([copy.copy(layer) for layer in self.layers])

    @property
    def length(self) -> int:
        """Tokens so far: the position of the next one."""
        return int(self.layers[0].target.lengths.max(initial=0)) if self.layers else 0

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values."""
        return sum(layer.target.nbytes + layer.memory.keys.nbytes + layer.memory.values.nbytes for layer in self.layers)

    def select(self, sequences: ArrayLike, *, keep_memory: bool = False) -> "DecoderCache":
        """A cache that goes on from the sequences with these indices, in this order, each as often as it is named.

        For beam search: after each step, `sequences` are the beginnings that survive. keep_memory=True leaves the
        memory of each place as it is, uncopied, where all sequences that change places share a source. This cache is
        not changed; the two share nothing that a step writes. Raises TypeError or ValueError for indices that are no
        integers in 0..batch - 1.
        """
        return DecoderCache([layer.select(sequences, keep_memory=keep_memory) for layer in self.layers])

"""The caches of the layers of a transformer decoder."""

import copy
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from fastattn.cache import KVCache, crop_all
from fastattn.functional._checks import check_flag
from fastattn.nn.attention import Context


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of a decoder layer: of the target so far, and of the memory."""

    target: KVCache
    memory: Context

    def __copy__(self) -> "LayerCache":
        """A cache of its own, on the same memory, which no step writes."""
        return LayerCache(copy.copy(self.target), self.memory)

    def crop(self, lengths: ArrayLike) -> None:
        """DecoderCache.crop of one layer."""
        crop_all(lengths, self.target)

    def select(self, sequences: ArrayLike, *, keep_memory: bool = False) -> "LayerCache":
        """DecoderCache.select of one layer."""
        keep_memory = check_flag("select", "keep_memory", keep_memory)
        target = self.target.select(sequences)
        if not keep_memory:
            return LayerCache(target, self.memory.select(sequences))
        if len(target.lengths) != len(self.memory.keys):
            raise ValueError(f"select: sequences must have the {len(self.memory.keys)} sequences of the memory with "
                             f"keep_memory, got {len(target.lengths)}")  # fmt: skip
        return LayerCache(target, self.memory)


@dataclass(frozen=True)
class DecoderCache:
    """The caches of the layers of a decoder, from TransformerDecoder.start or Transformer.start."""

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

    def crop(self, lengths: ArrayLike) -> None:
        """Removes the tokens of each sequence from lengths[b] on, in every layer; one integer is that of all
        sequences.

        For speculative decoding: a step takes several drafted tokens, and `crop` removes those that are rejected.
        Lengths are at most those of the sequences. The next steps have the bits of a cache that never had the removed
        tokens. Raises TypeError or ValueError naming the argument, and changes no layer.
        """
        crop_all(lengths, *(layer.target for layer in self.layers))

    def select(self, sequences: ArrayLike, *, keep_memory: bool = False) -> "DecoderCache":
        """A cache of the sequences with these indices, in this order; an index may occur several times.

        For beam search: after each step, `sequences` are the beams that continue. keep_memory=True does not copy
        the memory: for sequences that are exchanged only with others of the same source. This cache is
        not changed; the two share nothing that a step writes. Raises TypeError or ValueError for indices that are no
        integers in 0..batch - 1.
        """
        return DecoderCache([layer.select(sequences, keep_memory=keep_memory) for layer in self.layers])


def check_layer_cache(op: str, cache: Any) -> None:
    """What a step of a layer goes on from."""
    if not isinstance(cache, LayerCache):
        raise TypeError(f"{op}: cache must be a LayerCache, got {type(cache).__name__}")
    for name, kind in (("target", KVCache), ("memory", Context)):
        if not isinstance(getattr(cache, name), kind):
            given = type(getattr(cache, name)).__name__
            raise TypeError(f"{op}: cache.{name} must be a {kind.__name__}, got {given}")


def check_decoder_cache(op: str, cache: Any, layers: int) -> None:
    """What a step of a stack of layers goes on from."""
    if not isinstance(cache, DecoderCache):
        raise TypeError(f"{op}: cache must be a DecoderCache, got {type(cache).__name__}")
    if not isinstance(cache.layers, list) or len(cache.layers) != layers:
        given = len(cache.layers) if isinstance(cache.layers, list) else type(cache.layers).__name__
        raise ValueError(f"{op}: cache must be of {layers} layers, got {given}")
    for layer in cache.layers:
        check_layer_cache(op, layer)

"""Keys and values of what has been read so far, for attention of new tokens to all of it."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn import _core
from fastattn.functional._checks import check_integer
from fastattn.functional._types import Array
from fastattn.functional.attention import attention

_DTYPES = ("float32", "float64", "bfloat16", "float16", "int8")
_FIRST_ROOM = 64  # tokens, where the capacity is open
_INT8_LARGEST = 127
_CACHE_LINE = 64  # bytes


class KVCache:
    """Keys and values of `batch` sequences, each with a length of its own.

    Parameters
    ----------
    batch, kv_heads, head_dim, v_dim
        Sequences, key/value heads, size of a key and of a value (head_dim by default).
    dtype
        float32, float64, bfloat16 or float16: what keys, values and queries are; or int8: keys and values arrive as
        float32 and are kept as bytes with one scale for each token and head, max |x| / 127, so that each element is off
        by at most half a scale. A token with NaN or infinity in a head becomes NaN there.
    capacity
        The most tokens of a sequence; None for no limit (memory grows as needed, by doubling).
    page_size
        None: each sequence has room for as many tokens as the longest one. Otherwise sequences take pages of so many
        tokens from a common pool as they grow.

    `attend` gives the bits of `attention` on the arrays that were appended, for every dtype but int8, page size and
    history of appends. With at most 8 queries it reads keys and values from where they lie, once; with more (or under
    the strategy "blas") pages, and bytes, are put together into plain arrays first, which costs a copy of them.

    int8: attention to what the tokens became, within the error of float32. With at most 8 queries the products of
    queries and keys are sums of whole numbers in 32 bits: queries become numbers of 24 bits with a scale for each row,
    off by 2⁻²⁴ of its largest element, where one byte would have added an error as large as that of the cache. So do
    the weights of values where the CPU multiplies bytes (AVX-512 VNNI, AMX); elsewhere values become float32 in
    registers. head_dim may then be at most 65,536.

    >>> cache = KVCache(1, 2, 4, dtype="float32")
    >>> cache.append(np.ones((1, 2, 3, 4), np.float32), np.ones((1, 2, 3, 4), np.float32))
    >>> cache.lengths
    array([3])
    >>> cache.attend(np.ones((1, 8, 1, 4), np.float32)).shape
    (1, 8, 1, 4)
    """

    def __init__(self, batch: int, kv_heads: int, head_dim: int, *, v_dim: int | None = None, dtype: DTypeLike,
                 capacity: int | None = None, page_size: int | None = None) -> None:  # fmt: skip
        self._heads = _size("kv_heads", kv_heads)
        self._widths = (_size("head_dim", head_dim), _size("v_dim", head_dim if v_dim is None else v_dim))
        self._dtype = _dtype(dtype)
        self._input = np.dtype(np.float32) if self._dtype == np.int8 else self._dtype
        if self._dtype == np.int8 and self._widths[0] > _core.CACHE_LONGEST_I8:
            raise ValueError(f"KVCache: head_dim must be at most {_core.CACHE_LONGEST_I8} for int8, got {head_dim}")
        self._capacity = None if capacity is None else _size("capacity", capacity)
        self._page = None if page_size is None else _size("page_size", page_size, least=1)
        self._lengths = np.zeros(_size("batch", batch), np.int64)
        # A part is one array and its scales. Without pages the first axis is the sequence, with pages it is the page.
        self._parts = [self._new_part(width, self._first_rows(), self._first_room()) for width in self._widths]
        self._table = np.zeros((len(self._lengths), 0), np.int64)  # the pages of each sequence
        self._used = 0  # pages of the pool

    @property
    def lengths(self) -> Array:
        """The tokens of each sequence, [batch]; a copy."""
        return self._lengths.copy()

    @property
    def dtype(self) -> np.dtype[Any]:
        """What keys and values are kept as."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Memory of keys, values and scales."""
        return sum(array.nbytes for part in self._parts for array in part if array is not None)

    def append(self, k: ArrayLike, v: ArrayLike, sequences: ArrayLike | None = None) -> None:
        """Appends n tokens to each sequence, or to those with the indices `sequences`.

        k[batch or len(sequences), kv_heads, n, head_dim], v[..., v_dim] in the cache's dtype (int8: float32). Raises
        TypeError or ValueError naming the argument, and then the cache is as before.
        """
        chosen = self._chosen(sequences)
        inputs = [self._checked(*x, len(chosen)) for x in zip(("k", "v"), (k, v), self._widths, strict=True)]
        tokens = inputs[0].shape[2]
        if inputs[1].shape[2] != tokens:
            raise ValueError(f"append: v must have the {tokens} tokens of k, got shape {inputs[1].shape}")
        after = self._lengths[chosen] + tokens
        longest = int(after.max(initial=0))
        if self._capacity is not None and longest > self._capacity:
            raise ValueError(f"append: k must fit into the capacity of {self._capacity} tokens, got {tokens} more "
                             f"for a sequence of {longest - tokens}")  # fmt: skip
        if tokens == 0 or len(chosen) == 0:
            return
        new = [_quantised(x) if self._dtype == np.int8 else (x, None) for x in inputs]
        self._make_room(chosen, after)
        index, in_order = self._index(chosen, tokens)
        for part, values in zip(self._parts, new, strict=True):
            for array, value in zip(part, values, strict=True):
                if array is not None and value is not None:
                    array[index] = value if in_order else value.swapaxes(1, 2)
        self._lengths[chosen] = after

    def attend(self, q: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
               scale: float | None = None, window: tuple[int | None, int | None] | None = None, softcap: float = 0.0,
               alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
               q_lengths: ArrayLike | None = None, return_lse: bool = False,
               out: Array | None = None) -> Any:  # fmt: skip
        """`attention` of q[batch, H, n, head_dim] to all that each sequence holds; H a multiple of kv_heads.

        All options are those of `attention`; Lk is the length of the longest sequence. The n new tokens are the last
        ones where positions count: causal=True is "bottom-right", for any n.
        """
        queries = np.asarray(q)
        batch, width = len(self._lengths), self._widths[0]
        if queries.dtype != self._input:
            raise TypeError(f"attend: q must be {self._input} for a cache of {self._dtype}, got {queries.dtype}")
        if queries.ndim != 4 or (queries.shape[0], queries.shape[3]) != (batch, width):
            raise ValueError(f"attend: q must have shape ({batch}, H, n, {width}), got {queries.shape}")
        causal = "bottom-right" if causal is True else causal
        few = queries.shape[2] <= _core.CACHE_QUERIES and _core.get_attention_strategy() != "blas"
        if few and (self._page is not None or self._dtype == np.int8):
            (k, k_scales), (v, v_scales) = self._parts
            table = None if self._page is None else self._table
            return _core.cache_attention(queries, k, v, k_scales, v_scales, table, self._lengths, mask, causal, scale,
                                         window, softcap, alibi_slopes, sinks, q_lengths, out, return_lse)  # fmt: skip
        length = int(self._lengths.max(initial=0))
        k, v = (self._plain(part, length) for part in self._parts)
        return attention(queries, k, v, mask=mask, causal=causal, scale=scale, window=window, softcap=softcap,
                         alibi_slopes=alibi_slopes, sinks=sinks, q_lengths=q_lengths, kv_lengths=self._lengths,
                         return_lse=return_lse, out=out)  # fmt: skip

    def select(self, sequences: ArrayLike) -> "KVCache":
        """A cache of the sequences with these indices, in this order, each as often as it is named.

        What beam search goes on with, or a batch some of whose sequences have ended. It has copies of what they hold,
        with the bits of this cache, which is not changed; capacity and page size are the same. Raises TypeError or
        ValueError for indices that are no integers in 0..batch - 1.

        >>> cache = KVCache(2, 1, 4, dtype="float32")
        >>> tokens = np.ones((1, 1, 3, 4), np.float32)
        >>> cache.append(tokens, tokens, sequences=[1])
        >>> cache.select([1, 1, 0]).lengths
        array([3, 3, 0])
        """
        chosen = check_sequences(sequences, len(self._lengths), "select")
        new = copy.copy(self)
        new._lengths = self._lengths[chosen]
        if self._page is None:
            rows, room, tokens = len(chosen), self._parts[0][0].shape[2], int(new._lengths.max(initial=0))
            source, copied = chosen, rows
        else:
            pages = -(-new._lengths // self._page)
            taken = np.arange(self._table.shape[1]) < pages[:, None]
            source, room, tokens = self._table[chosen][taken], self._page, self._page
            new._used = copied = len(source)
            rows = copied + len(chosen)  # a page more for each, so that the next tokens find room
            new._table = np.zeros((len(chosen), self._table.shape[1]), np.int64)
            new._table[taken] = np.arange(copied)
        new._parts = [self._new_part(width, rows, room) for width in self._widths]
        for part, old in zip(new._parts, self._parts, strict=True):
            for to, array in zip(part, old, strict=True):
                if to is not None and array is not None:
                    to[:copied, :, :tokens] = array[source, :, :tokens]
        return new

    # ---- memory ----

    def _first_rows(self) -> int:
        return len(self._lengths) if self._page is None else 0

    def _first_room(self) -> int:
        return self._page or (_FIRST_ROOM if self._capacity is None else self._capacity)

    def _new_part(self, width: int, rows: int, room: int) -> tuple[Array, Array | None]:
        shape = (rows, self._heads, room)
        scales = _zeros(shape, np.dtype(np.float32)) if self._dtype == np.int8 else None
        return _zeros((*shape, width), self._dtype), scales

    def _make_room(self, chosen: Array, after: Array) -> None:
        """Room for the chosen sequences to have `after` tokens. Changes nothing if memory cannot be had."""
        rows, _, room, _ = self._parts[0][0].shape
        if self._page is None:
            if after.max() > room:
                self._parts = self._larger(rows, max(int(after.max()), 2 * room))
            return
        pages = -(-after // self._page)
        have = -(-self._lengths[chosen] // self._page)
        used = self._used + int((pages - have).sum())
        table = self._table
        if pages.max() > table.shape[1]:
            table = np.zeros((len(table), max(int(pages.max()), 2 * table.shape[1])), np.int64)
            table[:, : self._table.shape[1]] = self._table
        if used > rows:
            self._parts = self._larger(max(used, 2 * rows), room)
        slots = np.arange(table.shape[1])
        fresh = (slots >= have[:, None]) & (slots < pages[:, None])
        of_chosen = table[chosen]
        of_chosen[fresh] = np.arange(self._used, used)
        table[chosen] = of_chosen
        self._table, self._used = table, used

    def _larger(self, rows: int, room: int) -> list[tuple[Array, Array | None]]:
        parts = [self._new_part(width, rows, room) for width in self._widths]
        for new, old in zip(parts, self._parts, strict=True):
            for to, array in zip(new, old, strict=True):
                if to is not None and array is not None:
                    to[: array.shape[0], :, : array.shape[2]] = array
        return parts

    def _index(self, chosen: Array, tokens: int) -> tuple[tuple[Any, ...], bool]:
        """Where the next tokens of the chosen sequences go: an index whose result is [sequence, token, head, ...], or,
        in order, [sequence, head, token, ...]."""
        before = self._lengths[chosen]
        first = int(before[0])
        if self._page is None and len(chosen) == len(self._lengths) and (before == first).all():
            return (chosen if len(chosen) > 1 else slice(None), slice(None), slice(first, first + tokens)), True
        place = before[:, None] + np.arange(tokens)
        if self._page is None:
            return (chosen[:, None], slice(None), place), False
        return (self._table[chosen[:, None], place // self._page], slice(None), place % self._page), False

    def _plain(self, part: tuple[Array, Array | None], length: int) -> Array:
        """[batch, kv_heads, length, ...] of a part: a view, or put together from pages or bytes."""
        array, scales = part
        if self._page is not None:
            pages = self._table[:, : -(-length // self._page)]
            array, scales = (None if x is None else _joined(x, pages) for x in part)  # type: ignore[assignment]
        array = array[:, :, :length]
        return array if scales is None else array * scales[:, :, :length, None]

    # ---- checks ----

    def _chosen(self, sequences: ArrayLike | None) -> Array:
        batch = len(self._lengths)
        if sequences is None:
            return np.arange(batch)
        chosen = check_sequences(sequences, batch, "append")
        if len(np.unique(chosen)) != len(chosen):
            raise ValueError(f"append: sequences must differ from one another, got {chosen.tolist()}")
        return chosen

    def _checked(self, name: str, value: ArrayLike, width: int, sequences: int) -> Array:
        array = np.asarray(value)
        if array.dtype != self._input:
            raise TypeError(f"append: {name} must be {self._input} for a cache of {self._dtype}, got {array.dtype}")
        expected = (sequences, self._heads, width)
        if array.ndim != 4 or (array.shape[0], array.shape[1], array.shape[3]) != expected:
            raise ValueError(f"append: {name} must have shape ({sequences}, {self._heads}, n, {width}), "
                             f"got {array.shape}")  # fmt: skip
        return array


def check_sequences(sequences: ArrayLike, batch: int, op: str) -> Array:
    """Indices of sequences of a batch, as int64."""
    chosen = np.asarray(sequences)
    if chosen.dtype.kind not in "iu" and chosen.size:
        raise TypeError(f"{op}: sequences must be integers, got {chosen.dtype}")
    if chosen.ndim != 1:
        raise ValueError(f"{op}: sequences must have one axis, got shape {chosen.shape}")
    if chosen.size and (chosen.min() < 0 or chosen.max() >= batch):
        raise ValueError(f"{op}: sequences must lie in 0..{batch - 1}, got {chosen.min()}..{chosen.max()}")
    return chosen.astype(np.int64)


@contextmanager
def unchanged_on_failure(*caches: KVCache) -> Iterator[None]:
    """Takes back what was appended to the caches inside, if an exception leaves the block."""
    before = [(cache._lengths.copy(), cache._used) for cache in caches]
    try:
        yield
    except BaseException:
        for cache, (lengths, used) in zip(caches, before, strict=True):
            cache._lengths[...], cache._used = lengths, used  # room that was made since stays
        raise


def _size(name: str, value: Any, least: int = 0) -> int:
    return check_integer("KVCache", name, value, least)


def _dtype(value: DTypeLike) -> np.dtype[Any]:
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"KVCache: dtype must be one of {', '.join(_DTYPES)}, got {value!r}") from None
    if dtype.name not in _DTYPES or not dtype.isnative:
        raise TypeError(f"KVCache: dtype must be one of {', '.join(_DTYPES)}, got {dtype}")
    return dtype


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Zeros that begin with a cache line: vectors of a row that begin elsewhere, as NumPy's do, lie in two lines."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + _CACHE_LINE, np.uint8)
    first = -memory.__array_interface__["data"][0] % _CACHE_LINE
    return memory[first : first + size].view(dtype).reshape(shape)


def _quantised(x: Array) -> tuple[Array, Array]:
    """Bytes and scales of float32 x[..., width]: x is about bytes * scale."""
    scale = np.abs(x).max(-1, initial=0) / np.float32(_INT8_LARGEST)
    finite = np.isfinite(scale)
    divisor = np.where(finite & (scale > 0), scale, np.float32(1))
    whole = np.where(finite[..., None], x, np.float32(0)) / divisor[..., None]
    limit = _INT8_LARGEST
    return np.rint(whole).clip(-limit, limit).astype(np.int8), np.where(finite, scale, np.float32(np.nan))


def _joined(array: Array, pages: Array) -> Array:
    """[batch, heads, tokens, ...] of the pages [batch, n] of array[page, heads, tokens, ...]."""
    taken = array[pages].swapaxes(1, 2)
    return taken.reshape(*taken.shape[:2], taken.shape[2] * taken.shape[3], *taken.shape[4:])

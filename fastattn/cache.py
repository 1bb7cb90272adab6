"""Keys and values of the tokens so far, for attention of new tokens to all of them."""

import math
import os
import threading
from collections.abc import Sequence
from typing import Any, Self
from weakref import WeakSet

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastattn import _core
from fastattn.functional._checks import check_dtype, check_integer
from fastattn.functional._floats import default_floats
from fastattn.functional._types import Array

_DTYPES = ("float32", "float64", "bfloat16", "float16", "int8")
_FIRST_ROOM = 64  # tokens, where the capacity is open
_INT8_LARGEST = 127
_CACHE_LINE = 64  # bytes


class _Access:
    """Who uses a cache: the lock of whoever changes it, and how many attend without holding the lock."""

    __slots__ = ("__weakref__", "lock", "readers")

    def __init__(self) -> None:
        self.reset()
        _accesses.add(self)

    def reset(self) -> None:
        self.lock = threading.RLock()
        self.readers = 0


_accesses: WeakSet[_Access] = WeakSet()


def _reset_accesses() -> None:
    """In a child after fork: threads that held locks or attended are not there."""
    for access in list(_accesses):
        access.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_accesses)


class KVCache:
    """Keys and values of `batch` sequences, each with a length of its own.

    Parameters
    ----------
    batch, kv_heads, head_dim, v_dim
        Sequences, key/value heads, size of a key and of a value (head_dim by default).
    dtype
        float32, float64, bfloat16 or float16, of keys, values and queries; or int8: keys and values are given as
        float32 and kept as bytes with one scale for each token and head, max |x| / 127, with an error of each element
        of at most half a scale. A token with NaN or infinity in a head becomes NaN there.
    capacity
        The most tokens of a sequence; None for no limit (memory grows as needed, by doubling).
    page_size
        None: each sequence has room for as many tokens as the longest one. Otherwise sequences take pages of so many
        tokens from a common pool as they grow.

    `attend` gives the bits of `attention` on the arrays that were appended, for every dtype but int8, page size and
    history of appends. With at most 8 queries it reads keys and values once, in place; with more (or under the
    strategy "blas") it first copies pages, and bytes, to plain arrays.

    int8: attention to the rounded tokens, within the error of float32. With at most 8 queries the products of
    queries and keys are sums of whole numbers in 32 bits: queries become numbers of 24 bits with a scale for each row
    and an error of 2⁻²⁴ of its largest element; one byte would add an error as large as that of the cache. The same
    holds for the weights of values if the CPU multiplies bytes (AVX-512 VNNI, AMX); elsewhere values become float32 in
    registers. head_dim may then be at most 65,536.

    Threads: changes happen one after the other, and every call sees the cache between two changes. `attend` runs beside
    appends and other calls of `attend`: it reads the tokens that were there when it began. copy, deepcopy and pickle
    give caches that share nothing with this one; a pickle has the tokens, not the unused memory.

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
        self._dtype = check_dtype("KVCache", dtype, _DTYPES)
        self._input = np.dtype(np.float32) if self._dtype == np.int8 else self._dtype
        if self._dtype == np.int8 and self._widths[0] > _core.CACHE_LONGEST_I8:
            raise ValueError(f"KVCache: head_dim must be at most {_core.CACHE_LONGEST_I8} for int8, got {head_dim}")
        self._capacity = None if capacity is None else _size("capacity", capacity)
        self._page = None if page_size is None else _size("page_size", page_size, least=1)
        self._access = _Access()
        # Lengths are replaced, never changed: whoever attends keeps those of the beginning of the call.
        self._lengths = _zeros((_size("batch", batch),), np.dtype(np.int64))
        # A part is one array and its scales. Without pages the first axis is the sequence, with pages it is the page.
        # Rows and pages below the lengths do not change, but for those that `crop` gave back (see _keep_readers).
        rows = len(self._lengths) if self._page is None else 0
        self._parts = [self._new_part(width, rows, self._first_room()) for width in self._widths]
        self._table = np.zeros((len(self._lengths), 0), np.int64)  # the pages of each sequence
        self._used = 0  # pages of the pool that have been given out
        self._free = np.zeros(0, np.int64)  # those of them that came back
        self._cropped = False  # whether tokens may be overwritten that somebody attends to

    @property
    def lengths(self) -> Array:
        """The tokens of each sequence, [batch]; a copy."""
        return self._lengths.copy()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type in which keys and values are kept."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Memory of keys, values and scales."""
        return sum(array.nbytes for part in self._parts for array in part if array is not None)

    def append(self, k: ArrayLike, v: ArrayLike, sequences: ArrayLike | None = None) -> None:
        """Appends n tokens to each sequence, or to those with the indices `sequences`.

        k[batch or len(sequences), kv_heads, n, head_dim], v[..., v_dim] in the cache's dtype (int8: float32). Raises
        TypeError or ValueError naming the argument, and leaves the cache as it was.
        """
        chosen = self._chosen(sequences)
        inputs = [self._checked(*x, len(chosen)) for x in zip(("k", "v"), (k, v), self._widths, strict=True)]
        tokens = inputs[0].shape[2]
        if inputs[1].shape[2] != tokens:
            raise ValueError(f"append: v must have the {tokens} tokens of k, got shape {inputs[1].shape}")
        new = [_quantised(x) if self._dtype == np.int8 else (x, None) for x in inputs]
        with self._access.lock:
            after = self._lengths[chosen] + tokens
            longest = int(after.max(initial=0))
            room = self._parts[0][0].shape[2] if self._page is None else self._table.shape[1] * self._page
            if longest - tokens > room:  # somebody wrote to what is private; room for that would be no end of memory
                raise ValueError(f"append: lengths of the cache must lie in 0..{room}, got {longest - tokens}")
            if self._capacity is not None and longest > self._capacity:
                raise ValueError(f"append: k must fit into the capacity of {self._capacity} tokens, got {tokens} more "
                                 f"for a sequence of {longest - tokens}")  # fmt: skip
            if tokens == 0 or len(chosen) == 0:
                return
            self._keep_readers()
            self._make_room(chosen, after, longest)
            index, in_order = self._index(chosen, tokens)
            for part, values in zip(self._parts, new, strict=True):
                for array, value in zip(part, values, strict=True):
                    if array is not None and value is not None:
                        array[index] = value if in_order else value.swapaxes(1, 2)
            lengths = self._lengths.copy()
            lengths[chosen] = after
            self._lengths = lengths

    def attend(self, q: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
               scale: float | None = None, window: tuple[int | None, int | None] | None = None, softcap: float = 0.0,
               alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
               q_start: ArrayLike | None = None, bias: ArrayLike | None = None, dropout_p: float = 0.0, seed: int = 0,
               q_lengths: ArrayLike | None = None, return_lse: bool = False,
               out: Array | None = None) -> Any:  # fmt: skip
        """`attention` of q[batch, H, n, head_dim] to all that each sequence holds; H a multiple of kv_heads.

        All options are those of `attention`; Lk is the length of the longest sequence. The n queries are those of the
        last tokens unless q_start says otherwise: causal=True is "bottom-right", for any n.
        """
        queries = _core.checked_array(q, "attend", "q")
        batch, width = len(self._lengths), self._widths[0]
        if queries.dtype != self._input:
            raise TypeError(f"attend: q must be {self._input} for a cache of {self._dtype}, got {queries.dtype}")
        if queries.ndim != 4 or (queries.shape[0], queries.shape[3]) != (batch, width):
            raise ValueError(f"attend: q must have shape ({batch}, H, n, {width}), got {queries.shape}")
        causal = "bottom-right" if causal is True and q_start is None else causal
        options = (mask, causal, scale, window, softcap, alibi_slopes, sinks, q_start, bias, dropout_p, seed)
        access = self._access
        with access.lock:
            parts, lengths = self._parts, self._lengths
            table = None if self._page is None else self._table
            access.readers += 1
        try:
            if queries.shape[2] <= _core.CACHE_QUERIES and _core.get_attention_strategy() != "blas":
                (k, k_scales), (v, v_scales) = parts
                return _core.cache_attention(queries, k, v, k_scales, v_scales, table, lengths, options, q_lengths,
                                             out, return_lse)  # fmt: skip
            if queries.shape[1] % max(1, self._heads):
                raise ValueError(f"attend: q must have a multiple of the {self._heads} heads of the cache, got "
                                 f"{queries.shape[1]}")  # fmt: skip
            longest = int(lengths.max(initial=0))
            k, v = (self._plain(part, table, longest) for part in parts)
            return _core.attention(queries, k, v, options, q_lengths, lengths, "bhld", out, return_lse, False, "attend")
        finally:
            with access.lock:
                access.readers -= 1

    def crop(self, lengths: ArrayLike) -> None:
        """Removes the tokens of each sequence from lengths[b] on; one integer is that of all sequences.

        Lengths are at most those of the sequences. The cache then behaves as if the removed tokens had never been
        appended. It keeps its memory; later tokens of any sequence use the free pages. Raises TypeError or ValueError
        naming the argument, and leaves the cache as it was.

        >>> cache = KVCache(2, 1, 4, dtype="float32")
        >>> cache.append(np.ones((2, 1, 3, 4), np.float32), np.ones((2, 1, 3, 4), np.float32))
        >>> cache.crop([1, 3])
        >>> cache.lengths
        array([1, 3])
        """
        crop_all(lengths, self)

    def select(self, sequences: ArrayLike) -> "KVCache":
        """A cache of the sequences with these indices, in this order; an index may occur several times.

        For beam search, and for a batch some of whose sequences have ended. It has copies of the tokens, with the same
        bits; this cache does not change. Capacity and page size are the same. Raises TypeError or ValueError for
        indices that are no integers in 0..batch - 1.

        >>> cache = KVCache(2, 1, 4, dtype="float32")
        >>> tokens = np.ones((1, 1, 3, 4), np.float32)
        >>> cache.append(tokens, tokens, sequences=[1])
        >>> cache.select([1, 1, 0]).lengths
        array([3, 3, 0])
        """
        return self._selected(check_sequences(sequences, len(self._lengths), "select"))

    def __copy__(self) -> Self:
        return self._selected(np.arange(len(self._lengths)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, with the rows and pages in use alone, as integers of their bits: bfloat16 has no buffer."""
        with self._access.lock:
            attributes, source, tokens = self._of(np.arange(len(self._lengths)))
            kept = [[None if array is None else _bits(array)[source, :, :tokens] for array in part]
                    for part in self._parts]  # fmt: skip
        return attributes | {"_parts": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._access = _Access()
        kept = self._parts
        self._parts = self._parts_for(kept[0][0].shape[0], self._first_room(kept[0][0].shape[2]))
        for part, arrays in zip(self._parts, kept, strict=True):
            _fill(part, arrays)

    # ---- memory ----

    def _selected(self, chosen: Array) -> Self:
        """A cache of these sequences that shares nothing with this one."""
        new = object.__new__(type(self))
        with self._access.lock:
            attributes, source, tokens = self._of(chosen)
            new.__dict__.update(attributes)
            new._access = _Access()
            new._parts = new._parts_for(len(source), self._parts[0][0].shape[2])
            for part, old in zip(new._parts, self._parts, strict=True):
                _fill(part, [None if array is None else array[source, :, :tokens] for array in old])
        return new

    def _of(self, chosen: Array) -> tuple[dict[str, Any], Array, int]:
        """A cache of the chosen sequences: its attributes but for access and parts, and the rows (or pages) of the
        parts that hold its tokens, with how many of each."""
        attributes = {name: value for name, value in vars(self).items() if name not in ("_access", "_parts")}
        lengths, table = self._lengths[chosen], np.zeros((len(chosen), self._table.shape[1]), np.int64)
        source, tokens, used = chosen, int(lengths.max(initial=0)), 0
        if self._page is not None:
            taken = np.arange(table.shape[1]) < -(-lengths // self._page)[:, None]
            source, tokens = self._table[chosen][taken], self._page
            used = len(source)
            table[taken] = np.arange(used)
        new = {"_lengths": lengths, "_table": table, "_used": used, "_free": np.zeros(0, np.int64), "_cropped": False}
        return attributes | new, source, tokens

    def _parts_for(self, rows: int, room: int) -> list[tuple[Array, Array | None]]:
        """New parts for so many rows, or pages in use: a page more for each sequence, so that the next tokens find
        room."""
        if self._page is not None:
            rows += len(self._lengths)
        return [self._new_part(width, rows, room) for width in self._widths]

    def _first_room(self, tokens: int = 0) -> int:
        """Room of a row for so many tokens, at least, and the next ones; of a page."""
        return self._page or max(tokens, _FIRST_ROOM if self._capacity is None else self._capacity)

    def _new_part(self, width: int, rows: int, room: int) -> tuple[Array, Array | None]:
        shape = (rows, self._heads, room)
        array = _zeros((*shape, width), self._dtype)  # the larger of the two, which fails first
        return array, _zeros(shape, np.dtype(np.float32)) if self._dtype == np.int8 else None

    def _keep_readers(self) -> None:
        """Before tokens are written: whoever may attend to tokens that were taken back keeps their memory."""
        if self._cropped and self._access.readers:
            rows, _, room, _ = self._parts[0][0].shape
            self._parts, self._table = self._larger(rows, room), self._table.copy()
        self._cropped = False

    def _after_crop(self, wanted: Array) -> Array:
        """The lengths that the cache would be cropped to."""
        if wanted.shape not in ((), self._lengths.shape):
            raise ValueError(f"crop: lengths must be an integer or have shape {self._lengths.shape}, "
                             f"got shape {wanted.shape}")  # fmt: skip
        after = np.full(self._lengths.shape, wanted)
        wrong = (after < 0) | (after > self._lengths)
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(f"crop: lengths must lie in 0..{self._lengths[at]} for sequence {at}, got {after[at]}")
        return after

    def _cut(self, after: Array) -> None:
        """The tokens of each sequence from after[b] on are gone. Needs no memory worth naming."""
        if self._page is not None:
            slots, pages, have = (
                np.arange(self._table.shape[1]),
                -(-after // self._page),
                -(-self._lengths // self._page),
            )
            back = (slots >= pages[:, None]) & (slots < have[:, None])
            self._free = np.concatenate([self._free, self._table[back]])
        self._cropped = True
        self._lengths = after

    def _make_room(self, chosen: Array, after: Array, longest: int) -> None:
        """Room for the chosen sequences to have `after` tokens, at most `longest`. Changes nothing if memory cannot be
        had."""
        rows, _, room, _ = self._parts[0][0].shape
        if self._page is None:
            if longest > room:
                self._parts = self._larger(rows, max(longest, 2 * room))
            return
        have = -(-self._lengths[chosen] // self._page)
        more = -(-after // self._page) - have
        count = int(more.sum())
        if count == 0:
            return
        again = self._free[len(self._free) - count :] if count < len(self._free) else self._free
        used = self._used + count - len(again)
        parts = self._larger(max(used, 2 * rows), room) if used > rows else self._parts
        table, width = self._table, self._table.shape[1]
        needed = -(-longest // self._page)
        if needed > width:
            table = np.zeros((len(table), max(needed, 2 * width)), np.int64)
            table[:, :width] = self._table
        # Entries beyond the lengths: nobody reads them yet.
        slot = np.arange(count) - np.repeat(more.cumsum() - more - have, more)
        table[np.repeat(chosen, more), slot] = np.concatenate([again, np.arange(self._used, used)])
        self._parts, self._table, self._used = parts, table, used
        self._free = self._free[: len(self._free) - len(again)]

    def _larger(self, rows: int, room: int) -> list[tuple[Array, Array | None]]:
        parts = [self._new_part(width, rows, room) for width in self._widths]
        for new, old in zip(parts, self._parts, strict=True):
            _fill(new, old)
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

    @default_floats
    def _plain(self, part: tuple[Array, Array | None], table: Array | None, length: int) -> Array:
        """[batch, kv_heads, length, ...] of a part: a view, or put together from pages or bytes."""
        array, scales = part
        if table is not None:
            pages = table[:, : -(-length // array.shape[2])]
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
        array: Array = _core.checked_array(value, "append", name)
        if array.dtype != self._input:
            raise TypeError(f"append: {name} must be {self._input} for a cache of {self._dtype}, got {array.dtype}")
        expected = (sequences, self._heads, width)
        if array.ndim != 4 or (array.shape[0], array.shape[1], array.shape[3]) != expected:
            raise ValueError(f"append: {name} must have shape ({sequences}, {self._heads}, n, {width}), "
                             f"got {array.shape}")  # fmt: skip
        return array


def check_sequences(sequences: ArrayLike, batch: int, op: str) -> Array:
    """Indices of sequences of a batch, as int64; a copy."""
    chosen: Array = _core.checked_integers(sequences, op, "sequences")
    if chosen.ndim != 1:
        raise ValueError(f"{op}: sequences must have one axis, got shape {chosen.shape}")
    if chosen.size and (chosen.min() < 0 or chosen.max() >= batch):
        raise ValueError(f"{op}: sequences must lie in 0..{batch - 1}, got {chosen.min()}..{chosen.max()}")
    return chosen


class unchanged_on_failure:
    """Removes what was appended to the caches in the block, if an exception leaves it. Other threads neither change
    the caches meanwhile nor begin to attend."""

    def __init__(self, *caches: KVCache) -> None:
        self._caches = caches
        # In one order, so that no two threads wait for each other.
        self._locks = [cache._access.lock for cache in sorted(caches, key=id)]

    def __enter__(self) -> None:
        for i, lock in enumerate(self._locks):
            try:
                lock.acquire()
            except BaseException:  # an interrupt
                for held in self._locks[:i]:
                    held.release()
                raise
        self._before = [cache._lengths for cache in self._caches]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for cache, lengths in zip(self._caches, self._before, strict=True):
                if kind is not None and cache._lengths is not lengths:
                    cache._cut(lengths)  # room that was made since stays
        finally:
            for lock in self._locks:
                lock.release()


def crop_all(lengths: ArrayLike, *caches: KVCache) -> None:
    """KVCache.crop of caches with the same tokens: of all of them, or where anything is wrong of none."""
    wanted = _core.checked_integers(lengths, "crop", "lengths")
    with unchanged_on_failure(*caches):
        after = [cache._after_crop(wanted) for cache in caches]
        for cache, ends in zip(caches, after, strict=True):
            cache._cut(ends)


def _size(name: str, value: Any, least: int = 0) -> int:
    return check_integer("KVCache", name, value, least)


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Zeros that begin with a cache line: vectors of a row that begin elsewhere, as NumPy's do, lie in two lines."""
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = np.zeros(size + _CACHE_LINE, np.uint8)
        first = -memory.__array_interface__["data"][0] % _CACHE_LINE
        return memory[first : first + size].view(dtype).reshape(shape)
    except (MemoryError, ValueError, OverflowError):  # the last two: beyond what NumPy counts
        raise MemoryError(f"KVCache: no memory for an array of shape {shape}") from None


def _bits(array: Array) -> Array:
    return array.view(f"u{array.itemsize}")


def _fill(part: tuple[Array, Array | None], arrays: Sequence[Array | None]) -> None:
    """The first rows and tokens of a part become these arrays, which may be integers of the bits."""
    for to, array in zip(part, arrays, strict=True):
        if to is not None and array is not None:
            to[: array.shape[0], :, : array.shape[2]] = array if array.dtype == to.dtype else array.view(to.dtype)


@default_floats
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

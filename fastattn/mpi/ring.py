"""Ring attention: keys and values travel from process to process, and the results of the parts are merged.

Source: Liu, Zaharia and Abbeel 2023, arXiv:2310.01889. The zig-zag split: Zhu 2024,
github.com/zhuzilin/ring-flash-attention.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

import fastattn as fa
from fastattn import _core
from fastattn.functional._checks import check_choice, check_flag, check_saved
from fastattn.mpi.exchange import Exchange
from fastattn.mpi.parts import TIMEOUT, pieces

Array = NDArray[Any]
Window = tuple[int | None, int | None] | None


@dataclass(frozen=True, eq=False, repr=False)
class SavedRing:
    """What ring_attention_backward needs: the arguments and results of this process' forward call."""

    comm: Any
    q: Array
    k: Array
    v: Array
    out: Array
    lse: Array
    options: "Options"


class Options(NamedTuple):
    """What a call has beside arrays. Private."""

    causal: bool
    window: Window
    scale: float | None
    softcap: float
    layout: str
    zigzag: bool
    timeout: float | None


def ring_attention(comm: Any, q: ArrayLike, k: ArrayLike, v: ArrayLike, *, causal: bool = False, window: Window = None,
                   scale: float | None = None, softcap: float = 0.0, layout: str = "bhld", zigzag: bool = True,
                   return_lse: bool = False, timeout: float | None = TIMEOUT) -> Any:  # fmt: skip
    """Attention of this process' queries over the keys and values of all processes.

    Every process of the communicator makes the same call, each with its part of the sequence (`shard`), and gets its
    part of what attention gives for the whole. While a process computes with the keys and values at hand, those of its
    neighbour are on their way: a process holds its own part and two more.

    Parameters
    ----------
    comm
        A communicator of mpi4py (None: MPI.COMM_WORLD), or one of run_in_threads. Messages have the tags 24480 and up.
    q, k, v
        [B, H, L, D], [B, Hk, L, D], [B, Hk, L, Dv], or in the layout "blhd": the parts of this process, of the same
        shapes on all. Keys may have another length than queries where neither causal nor window relates the two.
    causal, window
        As of attention; positions are those in the whole sequence.
    scale, softcap, layout, return_lse
        As of attention.
    zigzag
        Whether the parts are those of shard with zigzag=True. Their lengths must then be even.
    timeout
        Seconds to wait for a neighbour beyond the work of this process, None for ever.

    Results are as near to the exact ones as those of attention, but not in its bits: they depend on the number of
    processes. Raises ValueError on all processes when their shapes, types or options differ, TimeoutError when one does
    not answer, RuntimeError when MPI fails.

    >>> from fastattn.mpi import run_in_threads, shard
    >>> def run(comm):
    ...     x = shard(comm, np.ones((1, 2, 8, 4)))
    ...     return ring_attention(comm, x, x, x, causal=True).shape
    >>> run_in_threads(2, run)
    [(1, 2, 4, 4), (1, 2, 4, 4)]
    """
    options = Options(causal, window, scale, softcap, layout, zigzag, timeout)
    out, lse = _forward("ring_attention", comm, q, k, v, options)[3:]
    return (out, lse) if return_lse else out


def ring_attention_forward(comm: Any, q: ArrayLike, k: ArrayLike, v: ArrayLike, *, causal: bool = False,
                           window: Window = None, scale: float | None = None, softcap: float = 0.0,
                           layout: str = "bhld", zigzag: bool = True,
                           timeout: float | None = TIMEOUT) -> tuple[Array, SavedRing]:  # fmt: skip
    """ring_attention, and what its gradients need: (out, saved). Arguments and errors as of ring_attention.

    saved keeps q, k, v and out, not copies of them: leave them as they are until backward.
    """
    options = Options(causal, window, scale, softcap, layout, zigzag, timeout)
    out, *rest = _saved("ring_attention_forward", comm, q, k, v, options)
    return out, rest[0]


def _saved(op: str, comm: Any, q: ArrayLike, k: ArrayLike, v: ArrayLike, options: Options) -> tuple[Array, SavedRing]:
    *arrays, out, lse = _forward(op, comm, q, k, v, options)
    return out, SavedRing(comm, arrays[0], arrays[1], arrays[2], out, lse, options)


# ---- pieces of queries against pieces of keys ----


class Pair(NamedTuple):
    """Rows of this process' queries and of the keys at hand, and how they lie to each other."""

    queries: slice
    keys: slice
    options: dict[str, Any]  # of attention


class Pairs:
    """The pairs of rows that attend to each other, for each step of the ring."""

    def __init__(self, exchange: Exchange, q: Array, k: Array, options: Options) -> None:
        self.rank, self.size, self.given = exchange.rank, exchange.size, options
        self.axis = 1 if options.layout == "blhd" else 2
        self.count = 2 if options.zigzag and related(options) else 1  # pieces of a process
        self.length, self.keys = q.shape[self.axis] // self.count, k.shape[self.axis]
        left, right = options.window or (None, None)
        self.left, self.right = left, 0 if options.causal else right

    def of(self, step: int) -> Iterator[Pair]:
        """After `step` shifts, the keys at hand are those of the process so many places before."""
        plain = {"scale": self.given.scale, "softcap": self.given.softcap, "layout": self.given.layout}
        if not related(self.given):
            yield Pair(slice(0, self.length), slice(0, self.keys), plain)
            return
        if self.left is None and self.right == 0:
            yield from self._causal(step, plain)
            return
        of_keys = pieces((self.rank - step) % self.size, self.size, self.given.zigzag)
        for a, own in enumerate(pieces(self.rank, self.size, self.given.zigzag)):
            for b, other in enumerate(of_keys):
                found = self._related(own - other)
                if found is not None:
                    rows, keys, options = found
                    yield Pair(self._rows(a, rows), self._rows(b, keys), plain | options)

    def _causal(self, step: int, plain: dict[str, Any]) -> Iterator[Pair]:
        """Without a window: one call for each step, not one for each pair of pieces.

        The pieces of a process are in the order of the sequence: at step 0 its rows are causal among themselves. With
        zig-zag, all queries attend to the first half of the keys of a lower rank, and the second half of the queries
        attends to all keys of a higher rank.
        """
        everything, half = slice(0, self.count * self.length), slice(0, self.length)
        if step == 0:
            yield Pair(everything, everything, plain | {"causal": "top-left"})
        elif step <= self.rank:
            yield Pair(everything, half, plain)
        elif self.given.zigzag:
            yield Pair(slice(self.length, 2 * self.length), everything, plain)

    def _rows(self, piece: int, rows: tuple[int, int]) -> slice:
        return slice(piece * self.length + rows[0], piece * self.length + rows[1])

    def _related(self, ahead: int) -> tuple[tuple[int, int], tuple[int, int], dict[str, Any]] | None:
        """Rows, keys and options where the queries are `ahead` pieces behind the keys in the sequence.

        Key j of its piece and query i of its own are i + ahead L - j apart. The bound of the window that can cut the
        block is `left` for earlier keys, `right` for later ones. What is left needs as many queries as keys.
        """
        length = self.length
        if ahead == 0:
            causal = {"causal": "top-left"} if self.given.causal else {}
            window = {} if self.given.window is None else {"window": self.given.window}
            return (0, length), (0, length), causal | window
        bound = self.left if ahead > 0 else self.right
        reach = 2 * length if bound is None else bound - (abs(ahead) - 1) * length  # j >= i + L - reach, or mirrored
        if reach <= 0:
            return None
        if reach >= 2 * length - 1:
            return (0, length), (0, length), {}
        size = min(reach, length)
        first, last = (0, size), (length - size, length)
        if ahead > 0:
            return first, last, {"window": (reach - size, None)}
        return last, first, {"window": (None, reach - size)}


def related(options: Options) -> bool:
    """Whether positions matter."""
    return bool(options.causal) or options.window is not None


# ---- forward ----


def _forward(op: str, comm: Any, q: Any, k: Any, v: Any, options: Options) -> tuple[Array, Array, Array, Array, Array]:
    """q, k, v as arrays, out and lse."""
    exchange = Exchange(op, comm, options.timeout)
    checked: list[Array] = []

    def describe() -> dict[str, Any]:
        checked[:] = _checked(op, q, k, v, options)
        shapes = {f"{name} must have one shape": x.shape for name, x in zip("qkv", checked, strict=True)}
        same = {f"{name} must be one": value for name, value in options._asdict().items() if name != "timeout"}
        return shapes | {"q must have one dtype": checked[0].dtype.name} | same

    exchange.agree(describe)
    queries, keys, values = checked
    pairs = Pairs(exchange, queries, keys, options)
    merged = _Merged(queries, values, options.layout)
    at_hand = [np.ascontiguousarray(keys), np.ascontiguousarray(values)]
    spare = [[np.empty_like(x) for x in at_hand] for _ in range(min(2, exchange.size - 1))]
    for step in range(exchange.size):
        transfer = None
        if step + 1 < exchange.size:
            transfer = exchange.shift(at_hand, spare[step % 2])
        for pair in pairs.of(step):
            part = (cut(queries, pair.queries, pairs.axis), *(cut(x, pair.keys, pairs.axis) for x in at_hand))
            merged.add(pair.queries, *fa.attention(*part, **pair.options, return_lse=True))
            if transfer is not None:
                transfer.progress()
        if transfer is not None:
            at_hand = transfer.wait()
    return queries, keys, values, *merged.result()


class _Merged:
    """The result so far, for the keys that have been at hand: in float32 for 16-bit arrays."""

    def __init__(self, q: Array, v: Array, layout: str) -> None:
        self.dtype, self.axis = q.dtype, 1 if layout == "blhd" else 2
        self.real, self.shape, self.first = real_dtype(q.dtype), (*q.shape[:3], v.shape[3]), True

    def add(self, rows: slice, out: Array, lse: Array) -> None:
        wide = out if out.dtype == self.real else _core.cast(out, np.float32)
        if self.first and wide.shape == self.shape:
            self.out, self.lse = wide, lse
        else:
            if self.first:
                self._clear()
            before = cut(self.out, rows, self.axis), cut(self.lse, rows, self.axis)
            before[0][...], before[1][...] = fa.merge_attention(*before, wide, lse)
        self.first = False

    def _clear(self) -> None:
        """Results of no keys."""
        self.out, self.lse = np.zeros(self.shape, self.real), np.full(self.shape[:3], -np.inf, self.real)

    def result(self) -> tuple[Array, Array]:
        if self.first:
            self._clear()
        return self.out if self.out.dtype == self.dtype else _core.cast(self.out, self.dtype), self.lse


def cut(x: Array, rows: slice, axis: int) -> Array:
    """Rows of the sequence."""
    return x[:, rows] if axis == 1 else x[:, :, rows]


def real_dtype(dtype: Any) -> Any:
    """Of the arithmetic on arrays of a type."""
    return np.float64 if dtype == np.float64 else np.float32


def _checked(op: str, q: Any, k: Any, v: Any, options: Options) -> list[Array]:
    arrays = [_core.checked_floats(x, op, name, 4) for name, x in zip("qkv", (q, k, v), strict=True)]
    check_choice(op, "layout", options.layout, ("bhld", "blhd"))
    for name in ("causal", "zigzag"):
        check_flag(op, name, getattr(options, name))
    axis = 1 if options.layout == "blhd" else 2
    lengths = [x.shape[axis] for x in arrays]
    if related(options) and lengths[0] != lengths[1]:
        raise ValueError(f"{op}: k must have the length of q with causal or window, got {lengths[1]} and {lengths[0]}")
    if related(options) and options.zigzag and lengths[0] % 2:
        raise ValueError(f"{op}: q must have an even length on each rank with zigzag, got {lengths[0]}")
    # All else is attention's to check, before it computes: here of no queries.
    none = cut(arrays[0], slice(0, 0), axis)
    try:
        fa.attention(none, *arrays[1:], causal="top-left" if options.causal else False, window=options.window,
                     scale=options.scale, softcap=options.softcap, layout=options.layout)  # fmt: skip
    except (TypeError, ValueError) as error:
        raise type(error)(f"{op}: {str(error).removeprefix('attention: ')}") from None
    return arrays


# ---- backward ----


def ring_attention_backward(dout: ArrayLike, saved: SavedRing) -> tuple[Array, Array, Array]:
    """Gradients (dq, dk, dv) of this process' q, k and v, from the gradient of its part of the output.

    Every process of the communicator makes the same call. Keys and values travel once more, and the sums of their
    gradients with them, in float32 for 16-bit arrays, until they are home. Errors as of ring_attention.

    Parameters
    ----------
    dout
        Gradient with respect to the output of ring_attention_forward, of its shape and dtype.
    saved
        What ring_attention_forward returned beside it.

    >>> from fastattn.mpi import run_in_threads, shard
    >>> def run(comm):
    ...     x = shard(comm, np.ones((1, 2, 8, 4)))
    ...     out, saved = ring_attention_forward(comm, x, x, x, causal=True)
    ...     return [g.shape for g in ring_attention_backward(np.ones_like(out), saved)]
    >>> run_in_threads(2, run)[0]
    [(1, 2, 4, 4), (1, 2, 4, 4), (1, 2, 4, 4)]
    """
    op = "ring_attention_backward"
    check_saved(op, saved, SavedRing)
    exchange = Exchange(op, saved.comm, saved.options.timeout)
    checked: list[Array] = []

    def describe() -> dict[str, Any]:
        checked[:] = [_checked_gradient(op, dout, saved)]
        return {"saved must be of one call, with q": saved.q.shape}

    exchange.agree(describe)
    real, pairs = real_dtype(saved.q.dtype), Pairs(exchange, saved.q, saved.k, saved.options)
    dq = np.zeros(saved.q.shape, real)
    at_hand = [np.ascontiguousarray(saved.k), np.ascontiguousarray(saved.v)]
    spare = [[np.empty_like(x) for x in at_hand] for _ in range(min(2, exchange.size - 1))]
    travelling = None  # gradients of the keys at hand, by the processes that have had them before
    for step in range(exchange.size):
        transfer = None
        if step + 1 < exchange.size:
            transfer = exchange.shift(at_hand, spare[step % 2])
        sums = [np.zeros(x.shape, real) for x in at_hand]
        for pair in pairs.of(step):
            found = _gradients(checked[0], saved, at_hand, pair, pairs.axis)
            rows = pair.queries, pair.keys, pair.keys
            for total, part, place in zip((dq, *sums), found, rows, strict=True):
                cut(total, place, pairs.axis)[...] += part
            for one in (transfer, travelling):
                if one is not None:
                    one.progress()
        if travelling is not None:
            for total, before in zip(sums, travelling.wait(), strict=True):
                np.add(total, before, out=total)
        if exchange.size > 1:
            travelling = exchange.shift(sums, [np.empty_like(x) for x in sums], GRADIENTS)
        if transfer is not None:
            at_hand = transfer.wait()
    dk, dv = sums if travelling is None else travelling.wait()
    if real != saved.q.dtype:
        dq, dk, dv = (_core.cast(x, saved.q.dtype) for x in (dq, dk, dv))
    return dq, dk, dv


GRADIENTS = 2  # tags of the gradients, after those of keys and values


def _gradients(dout: Array, saved: SavedRing, at_hand: list[Array], pair: Pair, axis: int) -> tuple[Array, ...]:
    """Those of some queries and some keys, of which the results of all keys are known."""
    q, out, lse, of_out = (cut(x, pair.queries, axis) for x in (saved.q, saved.out, saved.lse, dout))
    k, v = (cut(x, pair.keys, axis) for x in at_hand)
    part = fa.saved_attention(q, k, v, out, lse, **pair.options)
    dtype = None if q.dtype == real_dtype(q.dtype) else np.float32
    return fa.attention_backward(of_out, part, partial=True, gradient_dtype=dtype)


def _checked_gradient(op: str, dout: Any, saved: SavedRing) -> Array:
    array = _core.checked_floats(dout, op, "dout", 4)
    if array.shape != saved.out.shape:
        raise ValueError(f"{op}: dout must have shape {saved.out.shape}, got {array.shape}")
    if array.dtype != saved.out.dtype:
        raise TypeError(f"{op}: dout must be {saved.out.dtype} like the output, got {array.dtype}")
    return array

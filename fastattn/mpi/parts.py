"""Which part of a sequence a process holds.

Plain: rank r of n holds piece r of n. Zig-zag: the sequence has 2 n pieces, and rank r holds the pieces r and
2 n - 1 - r, which makes the work of causal attention the same on all ranks.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastattn.functional._checks import check_flag, check_integer
from fastattn.mpi.exchange import Exchange

Array = NDArray[Any]

TIMEOUT = 300.0  # seconds


def pieces(rank: int, size: int, zigzag: bool) -> tuple[int, ...]:
    """Numbers of the pieces that a rank holds, in this order."""
    return (rank, 2 * size - 1 - rank) if zigzag else (rank,)


def shard(comm: Any, x: ArrayLike, *, axis: int = 2, zigzag: bool = True) -> Array:
    """The part of a whole array that this process holds, as a copy.

    Parameters
    ----------
    comm
        A communicator of mpi4py (None: MPI.COMM_WORLD), or one of run_in_threads.
    x
        The whole array. Its size along `axis` must be a multiple of the number of processes, with zigzag of twice that.
    axis
        The axis of the sequence: 2 of [B, H, L, D], 1 of [B, L, H, D].
    zigzag
        Two pieces on each process, one from either end, so that causal attention is the same work for all.

    >>> from fastattn.mpi import run_in_threads
    >>> run_in_threads(2, lambda comm: shard(comm, np.arange(8), axis=0).tolist())
    [[0, 1, 6, 7], [2, 3, 4, 5]]
    """
    exchange = Exchange("shard", comm, None)
    whole = np.asarray(x)
    axis = _checked_axis("shard", axis, whole.ndim)
    zigzag = check_flag("shard", "zigzag", zigzag)
    count = exchange.size * (2 if zigzag else 1)
    if whole.shape[axis] % count:
        raise ValueError(f"shard: x must have a multiple of {count} elements on axis {axis}, got {whole.shape[axis]}")
    parts = np.split(whole, count, axis)
    return np.concatenate([parts[i] for i in pieces(exchange.rank, exchange.size, zigzag)], axis)


def unshard(comm: Any, part: ArrayLike, *, axis: int = 2, zigzag: bool = True,
            timeout: float | None = TIMEOUT) -> Array:  # fmt: skip
    """The whole array, on every process, from the part that each holds: what shard has taken apart.

    timeout: seconds to wait for other processes, None for ever. Raises ValueError on all processes when their parts
    have different shapes or types, TimeoutError when one does not answer.

    >>> from fastattn.mpi import run_in_threads
    >>> run_in_threads(2, lambda comm: unshard(comm, shard(comm, np.arange(8), axis=0), axis=0).tolist())[1]
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    exchange = Exchange("unshard", comm, timeout)
    own = np.ascontiguousarray(part)

    def describe() -> dict[str, Any]:
        place = _checked_axis("unshard", axis, own.ndim)
        check_flag("unshard", "zigzag", zigzag)
        if zigzag and own.shape[place] % 2:
            raise ValueError(f"unshard: part must have an even size on axis {place}, got {own.shape[place]}")
        return {
            "part must have one shape": own.shape,
            "part must have one dtype": own.dtype.name,
            "axis must be one": place,
            "zigzag must be one": zigzag,
        }

    exchange.agree(describe)
    place = _checked_axis("unshard", axis, own.ndim)
    found: dict[int, Array] = {}
    for rank, theirs in enumerate(exchange.gather(own)):
        numbers = pieces(rank, exchange.size, zigzag)
        found |= dict(zip(numbers, np.split(theirs, len(numbers), place), strict=True))
    return np.concatenate([found[i] for i in sorted(found)], place)


def _checked_axis(op: str, axis: Any, rank: int) -> int:
    number = check_integer(op, "axis", axis)
    if not -rank <= number < rank:
        raise np.exceptions.AxisError(f"{op}: axis must lie in {-rank}..{rank - 1}, got {number}")
    return number % rank

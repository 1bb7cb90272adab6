"""What processes send each other: never waits for ever, and faults of one are errors of all."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TAG = 0x5FA0  # of the first array of a transfer; messages of other programs on the communicator have other tags
_DESCRIPTION = 2048  # bytes of what a process says about its call
_FIRST_PAUSE, _LONGEST_PAUSE = 1e-5, 1e-3  # seconds between two looks at a request
_METHODS = ("Get_rank", "Get_size", "Isend", "Irecv", "Iallgather")
_abandoned: list[Any] = []  # requests after an error, whose buffers MPI may still use


class Exchange:
    """A communicator for one call of `op`."""

    def __init__(self, op: str, comm: Any, timeout: float | None) -> None:
        if comm is None:
            comm = _world()
        if not all(hasattr(comm, name) for name in _METHODS):
            raise TypeError(f"{op}: comm must be a communicator of mpi4py, got {type(comm).__name__}")
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise ValueError(f"{op}: timeout must be a positive number of seconds or None, got {timeout!r}")
        self.op, self.comm, self.timeout = op, comm, timeout
        self.rank, self.size = int(comm.Get_rank()), int(comm.Get_size())

    def agree(self, describe: Callable[[], dict[str, Any]]) -> None:
        """Makes sure that all processes describe the same call. What one raises in `describe` is raised on all.

        Names say what must be so, such as "q must have one shape".
        """
        fault: Exception | None = None
        try:
            own: dict[str, Any] = describe()
        except (TypeError, ValueError) as error:
            fault, own = error, {"error": str(error).removeprefix(f"{self.op}: ")[: _DESCRIPTION // 4]}
        everyone = self._gathered(own)
        if fault is not None:
            raise fault
        for rank, other in enumerate(everyone):
            if "error" in other:
                raise ValueError(f"{self.op}: on rank {rank}, {other['error']}")
        first = everyone[0]
        for name in first:
            values = [other.get(name) for other in everyone]
            if any(value != values[0] for value in values):
                got = ", ".join(f"{_shown(value)} on rank {rank}" for rank, value in enumerate(values))
                raise ValueError(f"{self.op}: {name} on all ranks, got {got}")

    def _gathered(self, own: dict[str, Any]) -> list[dict[str, Any]]:
        text = json.dumps(own).encode()
        if self.size == 1:
            return [json.loads(text)]
        sent, received = np.zeros(_DESCRIPTION, np.uint8), np.zeros((self.size, _DESCRIPTION), np.uint8)
        sent[: len(text)] = np.frombuffer(text, np.uint8)
        requests = self._started(lambda: [self.comm.Iallgather(sent, received)])
        Transfer(self, requests, [sent, received], "all ranks", []).wait()
        return [json.loads(bytes(row).rstrip(b"\0")) for row in received]

    def shift(self, arrays: Sequence[Array], into: Sequence[Array], tag: int = 0) -> "Transfer":
        """Starts to send arrays to the next process of the ring, and to receive those of the one before.

        Transfers that are on their way at the same time have different tags.
        """
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size

        def start() -> list[Any]:
            receives = [self.comm.Irecv(_bytes(a), before, TAG + tag + i) for i, a in enumerate(into)]
            return receives + [self.comm.Isend(_bytes(a), after, TAG + tag + i) for i, a in enumerate(arrays)]

        return Transfer(self, self._started(start), [*arrays, *into], _ranks(before, after), list(into))

    def gather(self, part: Array) -> Array:
        """The parts of all processes, [size, ...]."""
        everything = np.empty((self.size, *part.shape), part.dtype)
        requests = self._started(lambda: [self.comm.Iallgather(_bytes(part), _bytes(everything))])
        Transfer(self, requests, [part, everything], "all ranks", []).wait()
        return everything

    def _started(self, start: Callable[[], list[Any]]) -> list[Any]:
        try:
            return start()
        except Exception as error:
            raise self.failed("all ranks", error) from error

    def failed(self, partners: str, error: Exception) -> RuntimeError:
        return RuntimeError(f"{self.op}: rank {self.rank} cannot exchange data with {partners}: {error}")


class Transfer:
    """Messages on their way, and the arrays that they are read from and written to."""

    def __init__(self, exchange: Exchange, requests: list[Any], buffers: list[Array], partners: str,
                 results: list[Array]) -> None:  # fmt: skip
        self.exchange, self.requests, self.buffers = exchange, requests, buffers
        self.partners, self.results = partners, results

    def progress(self) -> bool:
        """Lets MPI work on the messages, which it does within its own functions only; True when all have arrived."""
        try:
            self.requests = [request for request in self.requests if not request.Test()]
        except Exception as error:
            self._abandon()
            raise self.exchange.failed(self.partners, error) from error
        return not self.requests

    def wait(self) -> list[Array]:
        """The received arrays. Raises TimeoutError when they do not come."""
        start, pause, limit = time.monotonic(), _FIRST_PAUSE, self.exchange.timeout
        while not self.progress():
            if limit is not None and time.monotonic() - start > limit:
                self._abandon()
                raise TimeoutError(
                    f"{self.exchange.op}: rank {self.exchange.rank} has waited {limit:g} s for {self.partners}: "
                    "one of them failed, or takes longer than timeout"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return self.results

    def _abandon(self) -> None:
        _abandoned.append((self.requests, self.buffers))


def _bytes(array: Array) -> Array:
    """The elements as bytes: MPI has no type for 16-bit floats."""
    return array.reshape(-1).view(np.uint8)


def _shown(value: Any) -> str:
    return f"({', '.join(map(str, value))})" if isinstance(value, list) else str(value)


def _ranks(*ranks: int) -> str:
    return " and ".join(f"rank {rank}" for rank in sorted(set(ranks)))


def _world() -> Any:
    try:
        from mpi4py import MPI  # noqa: PLC0415
    except ImportError as error:
        raise ImportError('fastattn.mpi needs mpi4py: python -m pip install "fastattn[mpi]"') from error
    return MPI.COMM_WORLD

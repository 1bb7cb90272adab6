"""Ring attention over the processes of mpiexec, against attention in one process: equal results, and the scaling.

    mpiexec -n 2 python -m benchmarks.ring [--lengths 1024,4096] [--rounds N] [--svg FILE]

Each process computes on one thread. Causal, zig-zag, float32, 8 heads of 64; forward alone, and forward with backward.
Results are first compared with one process in float64, by 1e-13. Then 1, 2, 4, ... processes are timed in turns, the
fastest of the rounds counts, and the time of a ring is that of its slowest process. --svg draws the speed over the
number of processes. Needs mpi4py and an MPI: python -m pip install mpi4py mpich.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastattn as fa
import fastattn.mpi as fam
from benchmarks.kernels.case import Array

HEADS, SIZE = 8, 64
TOLERANCE = 1e-13  # of results of size 1, in float64
VERIFIED_LENGTH = 64  # for each process
PAUSE = 1e-3  # seconds: a process that has nothing to do must not take a processor from one that has
JOBS = ("forward", "forward and backward")


class Row(NamedTuple):
    job: str
    length: int
    processes: int
    seconds: float


def arrays(length: int, dtype: Any) -> list[Array]:
    """q, k, v and the gradient of the output, whole."""
    rng = np.random.default_rng(length)
    return [x.astype(dtype) for x in rng.standard_normal((4, 1, HEADS, length, SIZE))]


def ring(comm: Any, job: str, parts: Sequence[Array]) -> list[Array]:
    """The results of the ring for the parts of this process."""
    q, k, v, dout = parts
    if job == "forward":
        return [fam.ring_attention(comm, q, k, v, causal=True)]
    out, saved = fam.ring_attention_forward(comm, q, k, v, causal=True)
    return [out, *fam.ring_attention_backward(dout, saved)]


def alone(job: str, whole: Sequence[Array]) -> list[Array]:
    """The same in one process."""
    q, k, v, dout = whole
    if job == "forward":
        return [fa.attention(q, k, v, causal=True)]
    out, saved = fa.attention_forward(q, k, v, causal=True)
    return [out, *fa.attention_backward(dout, saved)]


def largest_difference(comm: Any) -> float:
    """Of all results of the ring from those of one process, in float64."""
    whole = arrays(2 * VERIFIED_LENGTH * comm.Get_size(), np.float64)
    found = ring(comm, JOBS[1], [fam.shard(comm, x) for x in whole])
    pairs = zip((fam.unshard(comm, x) for x in found), alone(JOBS[1], whole), strict=True)
    return max(float(np.abs(got - expected).max()) for got, expected in pairs)


def together(comm: Any) -> None:
    """Waits for all processes, asleep."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(PAUSE)


def timed(world: Any, comm: Any, run: Callable[[], Any]) -> float:
    """Seconds of the slowest process of `comm` (None: this one takes no part)."""
    together(world)
    start = time.perf_counter()
    if comm is not None:
        run()
    own = time.perf_counter() - start if comm is not None else 0.0
    together(world)
    slowest: float = max(world.allgather(own))
    return slowest


def measure(world: Any, lengths: Sequence[int], rounds: int) -> list[Row]:
    """A row for each job, length and number of processes."""
    mpi = import_module("mpi4py.MPI")
    rank, size = world.Get_rank(), world.Get_size()
    counts = [n for n in (2**i for i in range(size.bit_length())) if n <= size]
    comms = [world.Split(0 if rank < n else mpi.UNDEFINED, rank) for n in counts]
    rows = []
    for job in JOBS:
        for length in lengths:
            whole = arrays(length, np.float32)
            best = dict.fromkeys(counts, np.inf)
            for _ in range(rounds):
                for n, comm in zip(counts, comms, strict=True):
                    taking_part = None if comm == mpi.COMM_NULL else comm
                    parts = [fam.shard(comm, x) for x in whole] if taking_part is not None and n > 1 else whole

                    def run(n: int = n, comm: Any = comm, parts: Sequence[Array] = parts, job: str = job) -> None:
                        alone(job, parts) if n == 1 else ring(comm, job, parts)

                    best[n] = min(best[n], timed(world, taking_part, run))
            rows += [Row(job, length, n, seconds) for n, seconds in best.items()]
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows with their speed against one process, and a bar of it."""
    lines = [f"{'job':21}  length  processes        ms  speed"]
    single = {(row.job, row.length): row.seconds for row in rows if row.processes == 1}
    for row in rows:
        speed = single[row.job, row.length] / row.seconds
        numbers = f"{row.length:7} {row.processes:10} {1e3 * row.seconds:9.1f} {speed:6.2f}"
        lines.append(f"{row.job:21} {numbers}  {'█' * round(10 * speed)}")
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """The speed over the number of processes."""
    figure = import_module("matplotlib.figure").Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    counts = sorted({row.processes for row in rows})
    axes.plot(counts, counts, ":", color="grey", label="as many times as processes")
    for job, length in dict.fromkeys((row.job, row.length) for row in rows):
        seconds = [row.seconds for row in rows if (row.job, row.length) == (job, length)]
        axes.plot(counts, [seconds[0] / s for s in seconds], "o-", label=f"{job}, {length} tokens")
    axes.set(xlabel="processes", ylabel="speed against one process", xticks=counts, ylim=0)
    axes.legend()
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ring", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--lengths", default="1024,4096", help="tokens, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--svg", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    lengths = [int(length) for length in options.lengths.split(",")]
    world = import_module("mpi4py.MPI").COMM_WORLD
    size = world.Get_size()
    if size < 2:
        parser.error("needs at least two processes: mpiexec -n 2 python -m benchmarks.ring")
    if options.rounds < 1 or any(length < 1 or length % (2 * size) for length in lengths):
        parser.error(f"--rounds must be at least 1, --lengths positive multiples of {2 * size}")
    fa.set_num_threads(1)
    difference = largest_difference(world)
    if difference > TOLERANCE:
        raise SystemExit(f"results differ by {difference:.1e} from those of one process")
    rows = measure(world, lengths, options.rounds)
    if world.Get_rank() == 0:
        print(f"largest difference from one process, float64: {difference:.1e}\n{table(rows)}")
        if options.svg:
            draw(rows, options.svg)


if __name__ == "__main__":
    main()

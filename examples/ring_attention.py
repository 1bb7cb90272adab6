"""Attention over a sequence that is spread over processes, forward and backward.

python examples/ring_attention.py runs four threads in place of processes. Processes, with mpi4py and an MPI (python -m
pip install mpi4py mpich): mpiexec -n 4 python examples/ring_attention.py
"""

import os

import numpy as np

import fastattn as fa
import fastattn.mpi as fam

HEADS, LENGTH, SIZE = 4, 1024, 32


def program(comm):
    """What each process does; what there is to say about the whole, on rank 0."""
    rng = np.random.default_rng(0)
    q, k, v, dout = rng.standard_normal((4, 1, HEADS, LENGTH, SIZE))
    # A process needs its own part only; here all make the whole, to compare with it.
    parts = [fam.shard(comm, x) for x in (q, k, v)]
    out, saved = fam.ring_attention_forward(comm, *parts, causal=True)
    gradients = fam.ring_attention_backward(fam.shard(comm, dout), saved)
    found = [fam.unshard(comm, x) for x in (out, *gradients)]
    if comm.Get_rank():
        return None
    one_out, one_saved = fa.attention_forward(q, k, v, causal=True)
    expected = (one_out, *fa.attention_backward(dout, one_saved))
    lines = [f"{comm.Get_size()} parts of {parts[0].shape[2]} tokens each"]
    for name, got, wanted in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        difference = np.abs(got - wanted).max()
        lines.append(f"{name:4} differs by {difference:.0e} from one process: within 1e-13: {difference < 1e-13}")
    return "\n".join(lines)


if any(name in os.environ for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")):  # mpiexec of MPICH or Open MPI
    from mpi4py import MPI

    text = program(MPI.COMM_WORLD)
else:
    text = fam.run_in_threads(4, program)[0]
if text:
    print(text)

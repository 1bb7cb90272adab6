"""Attention over a sequence that is spread over processes, on a communicator of mpi4py.

    from mpi4py import MPI
    import fastattn.mpi as fam
    comm = MPI.COMM_WORLD
    out = fam.ring_attention(comm, q, k, v, causal=True)    # of this process' part of the sequence

`run_in_threads` gives threads of one process a communicator of the same form, to try a program without MPI.
"""

from fastattn.mpi.local import LocalCommunicator, run_in_threads
from fastattn.mpi.parts import shard, unshard
from fastattn.mpi.ring import SavedRing, ring_attention, ring_attention_backward, ring_attention_forward

__all__ = [
    "LocalCommunicator",
    "SavedRing",
    "ring_attention",
    "ring_attention_backward",
    "ring_attention_forward",
    "run_in_threads",
    "shard",
    "unshard",
]

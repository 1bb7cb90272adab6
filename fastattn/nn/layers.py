"""Linear layers, embeddings, positions, norms and the feed-forward part of a transformer."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

import fastattn.functional.norm as F
from fastattn import _core
from fastattn.functional._checks import check_flag, check_integer
from fastattn.functional._types import Array
from fastattn.functional.elementwise import silu_gated, silu_gated_backward
from fastattn.functional.embedding import SavedEmbedding, embedding, embedding_backward, embedding_forward
from fastattn.functional.linear import SavedLinear, linear, linear_forward
from fastattn.functional.norm import SavedNorm
from fastattn.functional.positions import sinusoidal_positions
from fastattn.nn._arguments import Rng, check_eps, check_rng, check_room, check_size
from fastattn.nn.module import Module, Saved, prefixed


class Linear(Module):
    """y = x weight^T + bias: weight[out, in], bias[out].

    >>> Linear(3, 2)(np.ones((4, 3), np.float32)).shape
    (4, 2)
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, dtype: DTypeLike = np.float32,
                 rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        in_features = check_size("Linear", "in_features", in_features)
        out_features = check_size("Linear", "out_features", out_features)
        bias, rng = check_flag("Linear", "bias", bias), check_rng("Linear", rng)
        check_room("Linear", out_features * (in_features + 1), self.dtype.itemsize, in_features=in_features,
                   out_features=out_features)  # fmt: skip
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        self._uniform("weight", (out_features, in_features), bound, rng)
        if bias:
            self._uniform("bias", (out_features,), bound, rng)

    def __call__(self, x: ArrayLike, *, activation: str | None = None) -> Array:
        return linear(x, self._own["weight"], self._own.get("bias"), activation=activation)

    def forward(self, x: ArrayLike, *, activation: str | None = None) -> tuple[Array, SavedLinear]:
        """The result, and what backward needs."""
        return linear_forward(x, self._own["weight"], self._own.get("bias"), activation=activation)

    def backward(self, dy: ArrayLike, saved: SavedLinear) -> tuple[Array, dict[str, Array]]:
        """dx and the gradients of the parameters, by name."""
        return linear_gradients(dy, saved)


def linear_gradients(dy: ArrayLike, saved: SavedLinear, add_to: Array | None = None,
                     of_add_to: str = "add_to") -> tuple[Array, dict[str, Array]]:  # fmt: skip
    """dx and the gradients by name. With add_to, which messages call of_add_to, dx is added to that array, in place,
    without a pass of its own."""
    if not isinstance(saved, SavedLinear):
        raise TypeError(f"Linear.backward: saved must be what Linear.forward returned, got {type(saved).__name__}")
    x, weight, bias, z, activation = saved
    dx, dweight, dbias = _core.linear_backward(dy, x, weight, z, activation, bias, True, add_to, "linear_backward",
                                               None, of_add_to)  # fmt: skip
    return dx, {"weight": dweight, "bias": dbias} if bias else {"weight": dweight}


class Embedding(Module):
    """Rows of weight[num_embeddings, embedding_dim] by number: fastattn.embedding.

    Ids out of range raise ValueError. forward and backward as of other modules; dx is None.

    >>> Embedding(10, 4)([[1, 2, 3]]).shape
    (1, 3, 4)
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, dtype: DTypeLike = np.float32,
                 rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        rows = check_size("Embedding", "num_embeddings", num_embeddings)
        columns = check_size("Embedding", "embedding_dim", embedding_dim)
        check_room("Embedding", rows * columns, self.dtype.itemsize, num_embeddings=rows, embedding_dim=columns)
        self._normal("weight", (rows, columns), 1, check_rng("Embedding", rng))

    def __call__(self, ids: ArrayLike) -> Array:
        return embedding(ids, self._own["weight"])

    def forward(self, ids: ArrayLike) -> tuple[Array, SavedEmbedding]:
        """The result, and what backward needs."""
        return embedding_forward(ids, self._own["weight"])

    def backward(self, dy: ArrayLike, saved: SavedEmbedding) -> tuple[None, dict[str, Array]]:
        """None, since ids have no gradient, and that of the weight."""
        return None, {"weight": embedding_backward(dy, saved)}


class SinusoidalPositions(Module):
    """x[..., L, dim] + fastattn.sinusoidal_positions(L, dim, offset=offset), for positions below max_length.

    It has no parameters. Longer sequences raise ValueError.

    >>> SinusoidalPositions(4)(np.zeros((1, 2, 4), np.float32))[0, 0]
    array([0., 1., 0., 1.], dtype=float32)
    """

    def __init__(self, dim: int, *, max_length: int = 5000, base: float = 10000.0,
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(dtype)
        dim = check_size("SinusoidalPositions", "dim", dim)
        max_length = check_size("SinusoidalPositions", "max_length", max_length)
        check_room("SinusoidalPositions", max_length * dim, self.dtype.itemsize, max_length=max_length, dim=dim)
        self.table = sinusoidal_positions(max_length, dim, base=base, dtype=dtype)

    def __call__(self, x: ArrayLike, *, offset: int = 0) -> Array:
        array, (most, dim) = self._floats(x, "SinusoidalPositions", "x"), self.table.shape
        offset = check_integer("SinusoidalPositions", "offset", offset)
        if array.ndim < 2 or array.shape[-1] != dim:
            raise ValueError(f"SinusoidalPositions: x must have shape [..., L, {dim}], got {array.shape}")
        if not 0 <= offset <= most - array.shape[-2]:
            raise ValueError(f"SinusoidalPositions: positions must lie in 0..{most - 1}, got {array.shape[-2]} from "
                             f"{offset} on (the length of x, and offset)")  # fmt: skip
        out = _core.new_array(array.shape, self.dtype, "SinusoidalPositions")
        return added(array, self.table[offset : offset + array.shape[-2]], out)

    def forward(self, x: ArrayLike, *, offset: int = 0) -> tuple[Array, None]:
        """The result; backward needs nothing."""
        return self(x, offset=offset), None

    def backward(self, dy: ArrayLike, saved: None) -> tuple[Array, dict[str, Array]]:
        """dy, and no gradients."""
        if saved is not None:
            raise TypeError(f"SinusoidalPositions.backward: saved must be None, got {type(saved).__name__}")
        return self._floats(dy, "SinusoidalPositions.backward", "dy"), {}

    def _floats(self, value: ArrayLike, op: str, name: str) -> Array:
        array: Array = _core.checked_floats(value, op, name)
        if array.dtype != self.dtype:
            raise TypeError(f"{op}: {name} must be {self.dtype}, got {array.dtype}")
        return array


class LayerNorm(Module):
    """fastattn.layer_norm over the last axis of `size`.

    >>> norm = LayerNorm(2, dtype=np.float64)
    >>> y, saved = norm.forward(np.array([1.0, 3.0]))
    >>> dx, grads = norm.backward(np.array([1.0, 0.0]), saved)
    >>> grads["bias"]
    array([1., 0.])
    """

    def __init__(self, size: int, *, eps: float = 1e-5, bias: bool = True, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype)
        size, self.eps = check_size("LayerNorm", "size", size), check_eps("LayerNorm", "eps", eps)
        check_room("LayerNorm", 2 * size, self.dtype.itemsize, size=size)
        self._constant("weight", (size,), 1)
        if check_flag("LayerNorm", "bias", bias):
            self._constant("bias", (size,), 0)

    def __call__(self, x: ArrayLike) -> Array:
        return F.layer_norm(x, self._own["weight"], self._own.get("bias"), eps=self.eps)

    def after_sum(self, x: ArrayLike, residual: ArrayLike) -> tuple[Array, Array]:
        """(norm of x + residual, x + residual)."""
        return F.add_layer_norm(x, residual, self._own["weight"], self._own.get("bias"), eps=self.eps)

    def forward(self, x: ArrayLike, *, residual: ArrayLike | None = None) -> tuple[Array, SavedNorm]:
        """The result, and what backward needs; with a residual of x + residual, which is saved.x then."""
        return F.layer_norm_forward(x, self._own["weight"], self._own.get("bias"), residual=residual, eps=self.eps)

    def backward(self, dy: ArrayLike, saved: SavedNorm, *,
                 dsum: ArrayLike | None = None) -> tuple[Array, dict[str, Array]]:  # fmt: skip
        """dx (+ dsum) and the gradients of the parameters, by name. dx is the gradient of the residual, too."""
        dx, dweight, dbias = F.layer_norm_backward(dy, saved, dsum=dsum)
        return dx, {k: v for k, v in (("weight", dweight), ("bias", dbias)) if v is not None}


class RMSNorm(Module):
    """fastattn.rms_norm over the last axis of `size`.

    >>> RMSNorm(2, eps=0, dtype=np.float64)(np.array([3.0, -3.0]))
    array([ 1., -1.])
    """

    def __init__(self, size: int, *, eps: float = 1e-5, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype)
        size, self.eps = check_size("RMSNorm", "size", size), check_eps("RMSNorm", "eps", eps)
        check_room("RMSNorm", size, self.dtype.itemsize, size=size)
        self._constant("weight", (size,), 1)

    def __call__(self, x: ArrayLike) -> Array:
        return F.rms_norm(x, self._own["weight"], eps=self.eps)

    def forward(self, x: ArrayLike) -> tuple[Array, SavedNorm]:
        """The result, and what backward needs."""
        return F.rms_norm_forward(x, self._own["weight"], eps=self.eps)

    def backward(self, dy: ArrayLike, saved: SavedNorm) -> tuple[Array, dict[str, Array]]:
        """dx and the gradients of the parameters, by name."""
        dx, dweight = F.rms_norm_backward(dy, saved)
        return dx, {} if dweight is None else {"weight": dweight}


class FeedForward(Module):
    """linear2(activation(linear1(x))), or with activation="silu_gated" linear2(silu(gate(x)) * linear1(x)).

    activation: "relu", "gelu", "gelu_tanh", "silu" or "silu_gated". Source of the gate: Shazeer 2020, arXiv:2002.05202.

    >>> FeedForward(4, 8, activation="silu_gated")(np.ones((2, 4), np.float32)).shape
    (2, 4)
    """

    def __init__(self, d_model: int, dim_feedforward: int, *, activation: str = "relu", bias: bool = True,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        self.activation = check_activation(activation, "FeedForward", gated=True)
        d_model = check_size("FeedForward", "d_model", d_model)
        dim_feedforward = check_size("FeedForward", "dim_feedforward", dim_feedforward)
        bias, rng = check_flag("FeedForward", "bias", bias), check_rng("FeedForward", rng)
        check_room("FeedForward", 3 * d_model * dim_feedforward, self.dtype.itemsize, d_model=d_model,
                   dim_feedforward=dim_feedforward)  # fmt: skip
        self.linear1 = Linear(d_model, dim_feedforward, bias=bias, dtype=dtype, rng=rng)
        self.linear2 = Linear(dim_feedforward, d_model, bias=bias, dtype=dtype, rng=rng)
        if self.activation == "silu_gated":
            self.gate = Linear(d_model, dim_feedforward, bias=bias, dtype=dtype, rng=rng)

    def __call__(self, x: ArrayLike) -> Array:
        if self.activation != "silu_gated":
            return self.linear2(self.linear1(x, activation=self.activation))
        hidden = self.linear1(x)
        return self.linear2(silu_gated(self.gate(x), hidden, out=hidden))

    def forward(self, x: ArrayLike) -> tuple[Array, Saved]:
        """The result, and what backward needs."""
        if self.activation != "silu_gated":
            hidden, saved1 = self.linear1.forward(x, activation=self.activation)
            y, saved2 = self.linear2.forward(hidden)
            return y, self._saved(saved1, saved2)
        (up, saved1), (gate, saved_gate) = self.linear1.forward(x), self.gate.forward(x)
        y, saved2 = self.linear2.forward(silu_gated(gate, up))
        return y, self._saved(saved1, saved2, saved_gate, gate, up)

    def backward(self, dy: ArrayLike, saved: Any) -> tuple[Array, dict[str, Array]]:
        """dx and the gradients of the parameters, by name."""
        return feed_forward_gradients(dy, self._parts(saved, 5 if self.activation == "silu_gated" else 2))


def feed_forward_gradients(dy: ArrayLike, saved: Any, add_to: Array | None = None) -> tuple[Array, dict[str, Array]]:
    """dx (added to add_to, which may be dy) and the gradients of linear1, linear2 and gate."""
    if not isinstance(saved, tuple) or len(saved) not in (2, 5):
        raise ValueError(f"FeedForward.backward: saved must hold 2 or 5 parts, got {type(saved).__name__}")
    saved1, saved2, *gated = saved
    dhidden, grads2 = linear_gradients(dy, saved2)
    if not gated:
        dx, grads1 = linear_gradients(dhidden, saved1, add_to)
        return dx, prefixed(linear1=grads1, linear2=grads2)
    saved_gate, gate, up = gated
    dgate, dup = silu_gated_backward(dhidden, gate, up)
    dx, grads1 = linear_gradients(dup, saved1, add_to)
    dx, grads_gate = linear_gradients(dgate, saved_gate, dx)
    return dx, prefixed(linear1=grads1, linear2=grads2, gate=grads_gate)


def added(x: Array, y: Array, out: Array | None = None) -> Array:
    """x + y, whatever the caller's floating-point state."""
    with _core.DefaultFloats():
        total: Array = np.add(x, y, out=out)
        return total


def check_activation(name: str, owner: str, *, gated: bool = False) -> str:
    names = ("relu", "gelu", "gelu_tanh", "silu") + (("silu_gated",) if gated else ())
    plain = _core.plain_text(name)
    if not isinstance(plain, str) or plain not in names:
        raise ValueError(f"{owner}: activation must be one of {', '.join(names)}, got {_core.shown(name)}")
    return plain

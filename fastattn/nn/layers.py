"""Linear layers, norms and the feed-forward part of a transformer."""

import math

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

import fastattn.functional.norm as F
from fastattn.functional._types import Array
from fastattn.functional.linear import linear
from fastattn.functional.norm import SavedNorm
from fastattn.nn.module import Module

Rng = np.random.Generator | None


class Linear(Module):
    """y = x weight^T + bias: weight[out, in], bias[out].

    >>> Linear(3, 2)(np.ones((4, 3), np.float32)).shape
    (4, 2)
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, dtype: DTypeLike = np.float32,
                 rng: Rng = None) -> None:  # fmt: skip
        super().__init__(dtype)
        rng = rng or np.random.default_rng()
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        self._uniform("weight", (out_features, in_features), bound, rng)
        if bias:
            self._uniform("bias", (out_features,), bound, rng)

    def __call__(self, x: ArrayLike, *, activation: str | None = None) -> Array:
        return linear(x, self._own["weight"], self._own.get("bias"), activation=activation)


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
        self.eps = eps
        self._constant("weight", (size,), 1)
        if bias:
            self._constant("bias", (size,), 0)

    def __call__(self, x: ArrayLike) -> Array:
        return F.layer_norm(x, self._own["weight"], self._own.get("bias"), eps=self.eps)

    def after_sum(self, x: ArrayLike, residual: ArrayLike) -> tuple[Array, Array]:
        """(norm of x + residual, x + residual)."""
        return F.add_layer_norm(x, residual, self._own["weight"], self._own.get("bias"), eps=self.eps)

    def forward(self, x: ArrayLike) -> tuple[Array, SavedNorm]:
        """The result, and what backward needs."""
        return F.layer_norm_forward(x, self._own["weight"], self._own.get("bias"), eps=self.eps)

    def backward(self, dy: ArrayLike, saved: SavedNorm) -> tuple[Array, dict[str, Array]]:
        """dx and the gradients of the parameters, by name."""
        dx, dweight, dbias = F.layer_norm_backward(dy, saved)
        return dx, {k: v for k, v in (("weight", dweight), ("bias", dbias)) if v is not None}


class RMSNorm(Module):
    """fastattn.rms_norm over the last axis of `size`.

    >>> RMSNorm(2, eps=0, dtype=np.float64)(np.array([3.0, -3.0]))
    array([ 1., -1.])
    """

    def __init__(self, size: int, *, eps: float = 1e-5, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype)
        self.eps = eps
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
        rng = rng or np.random.default_rng()
        self.linear1 = Linear(d_model, dim_feedforward, bias=bias, dtype=dtype, rng=rng)
        self.linear2 = Linear(dim_feedforward, d_model, bias=bias, dtype=dtype, rng=rng)
        if activation == "silu_gated":
            self.gate = Linear(d_model, dim_feedforward, bias=bias, dtype=dtype, rng=rng)

    def __call__(self, x: ArrayLike) -> Array:
        if self.activation != "silu_gated":
            return self.linear2(self.linear1(x, activation=self.activation))
        hidden = self.linear1(x)
        return self.linear2(np.multiply(hidden, self.gate(x, activation="silu"), out=hidden))


def check_activation(name: str, owner: str, *, gated: bool = False) -> str:
    names = ("relu", "gelu", "gelu_tanh", "silu") + (("silu_gated",) if gated else ())
    if name not in names:
        raise ValueError(f"{owner}: activation must be one of {', '.join(names)}, got {name!r}")
    return name

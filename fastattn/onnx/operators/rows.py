"""Softmax, LogSoftmax, LayerNormalization, RMSNormalization, Gelu and the other activations."""

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import fastattn as fa
from fastattn.onnx.graph import Array, Call, Node
from fastattn.onnx.operators.reference import reference

FLOATS = frozenset(map(np.dtype, (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)))


def softmax_maker(function: Callable[..., Any]) -> Callable[[Node], Call]:
    def make(node: Node) -> Call:
        if node.version >= 13:
            axis = int(node.get("axis", -1))
            return lambda x: function(x, axis)
        first = int(node.get("axis", 1))  # all axes from this one on are one

        def call(x: Array) -> Array:
            start = first % x.ndim if x.ndim else 0
            result: Array = function(x.reshape(math.prod(x.shape[:start]), math.prod(x.shape[start:])))
            return result.reshape(x.shape)

        return call

    return make


def as_rows(x: Array, axis: int) -> tuple[Array, int]:
    """x with its axes from `axis` on as one, and the number of that axis."""
    start = axis % x.ndim if x.ndim else 0
    if start == x.ndim - 1:
        return x, start
    return x.reshape(*x.shape[:start], math.prod(x.shape[start:])), start


def _row_weight(weight: Array | None, x: Array, start: int) -> Array | None:
    """The weight of the axes from `start` on, as one axis; it may broadcast to them."""
    if weight is None or (weight.ndim == 1 and start == x.ndim - 1 and len(weight) == x.shape[-1]):
        return weight
    return np.broadcast_to(weight, x.shape[start:]).reshape(-1)


def _layer_norm(node: Node) -> Call | None:
    axis, eps = int(node.get("axis", -1)), float(node.get("epsilon", 1e-5))
    single = len(node.outputs) == 1

    def call(x: Array, scale: Array, bias: Array | None = None) -> Any:
        rows, start = as_rows(x, axis)
        scale_row, bias_row = _row_weight(scale, x, start), _row_weight(bias, x, start)
        if single:
            y = fa.layer_norm(rows, scale_row, bias_row, eps=eps)
            return y if y.shape == x.shape else y.reshape(x.shape)
        y, saved = fa.layer_norm_forward(rows, scale_row, bias_row, eps=eps)
        shape = (*x.shape[:start], *[1] * (x.ndim - start))
        kind = x.dtype if x.dtype == np.float64 else np.float32
        mean, rstd = (np.asarray(s, kind).reshape(shape) for s in (saved.mean, saved.rstd))
        return (y.reshape(x.shape), mean, rstd)[: len(node.outputs)]

    return call


def _rms_norm(node: Node) -> Call:
    axis, eps = int(node.get("axis", -1)), float(node.get("epsilon", 1e-5))

    def call(x: Array, scale: Array) -> Array:
        rows, start = as_rows(x, axis)
        return fa.rms_norm(rows, _row_weight(scale, x, start), eps=eps).reshape(x.shape)

    return call


def _gelu(node: Node) -> Call:
    approximate = str(node.get("approximate", "none"))
    return lambda x: fa.gelu(x, approximate=approximate)


def activation(function: Callable[..., Any]) -> Callable[[Node], Call]:
    """fastattn's function of floats; of other types onnx's."""

    def make(node: Node) -> Call:
        other: list[Call] = []

        def call(x: Array) -> Any:
            if x.dtype in FLOATS:
                return function(x)
            if not other:
                other.append(reference(node))
            return other[0](x)

        return call

    return make


def add_norm(node: Node) -> Call:
    """LayerNormalization of x + y, as a graph writes it out: (norm, sum)."""
    eps, single = float(node.get("epsilon", 1e-5)), not node.outputs[1]

    def call(x: Array, y: Array, scale: Array, bias: Array | None = None) -> Any:
        if x.shape == y.shape and scale.ndim == 1 and len(scale) == x.shape[-1] and (
            bias is None or bias.shape == scale.shape
        ):  # fmt: skip
            return fa.add_layer_norm(x, y, scale, bias, eps=eps)
        total = x + y
        start = total.ndim - 1
        norm = fa.layer_norm(total, _row_weight(scale, total, start), _row_weight(bias, total, start), eps=eps)
        return norm, None if single else total

    return call


MAKERS = {
    ("", "Softmax"): softmax_maker(fa.softmax),
    ("", "LogSoftmax"): softmax_maker(fa.log_softmax),
    ("", "LayerNormalization"): _layer_norm,
    ("", "RMSNormalization"): _rms_norm,
    ("", "Gelu"): _gelu,
    ("", "Sigmoid"): activation(fa.sigmoid),
    ("", "Tanh"): activation(fa.tanh),
    ("", "Exp"): activation(fa.exp),
    ("", "Relu"): activation(fa.relu),
    ("fastattn", "AddNorm"): add_norm,
}

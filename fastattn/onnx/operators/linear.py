"""MatMul, Gemm and Conv. Matrices that are known are packed once."""

import functools
import math
from typing import Any

import numpy as np

import fastattn as fa
from fastattn.onnx.graph import Array, Call, Node
from fastattn.onnx.operators.rows import FLOATS

# The operators that linear applies to its result.
ACTIVATIONS = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "Gelu": "gelu"}


def matmul(a: Array, b: Array) -> Array:
    """np.matmul; 16-bit floats in float32, rounded once."""
    if a.dtype.itemsize == 2 and a.dtype in FLOATS:
        return np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)
    result: Array = np.matmul(a, b)
    return result


def _matmul(node: Node) -> Call:
    b = node.constant(1)
    if b is not None and b.ndim == 2 and b.dtype in FLOATS:
        packed = fa.pack_linear(np.ascontiguousarray(b.T))
        node.release(1)
        return lambda a, _: fa.linear(a, packed)

    def call(a: Array, b: Array) -> Array:
        if b.ndim == 2 and a.ndim >= 2 and a.dtype in FLOATS and a.dtype == b.dtype:
            return fa.linear(a, b.T)
        return matmul(a, b)

    return call


def _gemm(node: Node) -> Call:
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    turned, transposed = bool(node.get("transA", 0)), bool(node.get("transB", 0))
    b, c = node.constant(1), node.constant(2)
    if b is not None and (not node.has(2) or c is not None) and b.dtype in FLOATS:
        packed = fa.pack_linear(_scaled(np.ascontiguousarray(b if transposed else b.T), alpha))
        row = None if c is None else _scaled(c, beta)
        if row is None or (row.size in (1, packed.shape[0]) and row.size == (row.shape or (1,))[-1]):
            bias = None if row is None else np.ascontiguousarray(np.broadcast_to(row.reshape(-1), (packed.shape[0],)))
            node.release(1, 2)
            return lambda a, *_: fa.linear(a.T if turned else a, packed, bias)

    def call(a: Array, b: Array, c: Array | None = None) -> Array:
        a, b = (a.T if turned else a), (b if transposed else b.T)
        y = _scaled(fa.linear(a, b) if a.dtype in FLOATS else np.matmul(a, b.T), alpha)
        return y if c is None else y + _scaled(c, beta)

    return call


def _scaled(x: Array, factor: float) -> Array:
    return x if factor == 1.0 else (x * x.dtype.type(factor)).astype(x.dtype, copy=False)


def fused_linear(node: Node) -> Call:
    """activation(x b + bias), of a matrix b that is known; the bias, [n] or a number, is too."""
    b, bias = node.constant(1), node.constant(2)
    packed = fa.pack_linear(np.ascontiguousarray(b.T))
    row = None if bias is None else np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (b.shape[1],)))
    activation = node.get("activation")
    node.release(1, 2)
    return lambda x, *_: fa.linear(x, packed, row, activation=activation)


def conv_is_known(node: Node, weight: Array) -> bool:
    """Whether _conv has this form."""
    auto, pads, groups = node.get("auto_pad", "NOTSET"), node.get("pads"), int(node.get("group", 1))
    if weight.dtype not in FLOATS or weight.ndim < 3 or auto not in ("NOTSET", "VALID"):
        return False
    return groups >= 1 and not weight.shape[0] % groups and not (auto == "NOTSET" and pads and min(pads) < 0)


def _conv(node: Node) -> Call | None:
    """A convolution as a product: of the windows of each place with the weights of each output channel."""
    weight, bias = node.constant(1), node.constant(2)
    if weight is None or (node.has(2) and bias is None) or not conv_is_known(node, weight):
        return None
    rank, groups, activation = weight.ndim - 2, int(node.get("group", 1)), node.get("activation")
    channels, kernel, each = weight.shape[1], weight.shape[2:], weight.shape[0] // groups
    pads = node.get("pads") if node.get("auto_pad", "NOTSET") == "NOTSET" else None
    strides, steps = node.get("strides") or [1] * rank, node.get("dilations") or [1] * rank
    pads = pads or [0] * (2 * rank)
    padding, is_padded = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)], any(pads)
    rows = weight.reshape(groups, each, channels * math.prod(kernel))
    biases = [None] * groups if bias is None else list(np.ascontiguousarray(bias).reshape(groups, each))
    parts = [(fa.pack_linear(np.ascontiguousarray(row)), part) for row, part in zip(rows, biases, strict=True)]
    extent = [(k - 1) * step + 1 for k, step in zip(kernel, steps, strict=True)]
    channel_last = (0, rank + 1, *range(1, rank + 1))
    node.release(1, 2)

    @functools.lru_cache(maxsize=1)  # streams have one shape
    def geometry(size: tuple[int, ...], item: int) -> tuple[Any, Any, Any, Any, Any]:
        """Of x with its padding: its shape, and where x lies in it; shape and strides of the windows (batch, places,
        channels, window), and the shape of these as rows."""
        if len(size) != rank + 2 or size[1] != channels * groups:
            raise ValueError(f"Conv: X must be [N, {channels * groups}] and {rank} more axes, got shape {size}")
        whole = tuple(a + n + b for n, (a, b) in zip(size, padding, strict=True))
        places = [(n - e) // s + 1 for n, e, s in zip(whole[2:], extent, strides, strict=True)]
        if min(places) < 1:
            raise ValueError(f"Conv: X must be at least {extent} with its padding, got shape {size}")
        batch, of_channel, *spatial = (item * math.prod(whole[axis + 1 :]) for axis in range(rank + 2))
        moves = [s * n for s, n in zip(strides, spatial, strict=True)]
        inner = [step * n for step, n in zip(steps, spatial, strict=True)]
        within = tuple(slice(a, a + n) for n, (a, _) in zip(size, padding, strict=True))
        shape, windows = (size[0], *places, channels, *kernel), (batch, *moves, of_channel, *inner)
        return whole, within, shape, windows, (size[0], *places, channels * math.prod(kernel))

    def call(x: Array, *_: Any) -> Array:
        whole, within, shape, moves, rows = geometry(x.shape, x.itemsize)
        if is_padded:
            y = np.zeros(whole, x.dtype)
            y[within] = x
            x = y
        else:
            x = np.ascontiguousarray(x)
        first, results = math.prod(whole[2:]) * channels * x.itemsize, []
        for group, (matrix, row) in enumerate(parts):
            # What each place of the output sees. NumPy checks that it is within x.
            seen = np.ndarray(shape, x.dtype, x, group * first, moves)
            results.append(fa.linear(seen.reshape(rows), matrix, row, activation=activation))
        result: Array = results[0] if groups == 1 else np.concatenate(results, -1)
        return result.transpose(channel_last)

    return call


MAKERS = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
    ("fastattn", "Linear"): fused_linear,
    ("fastattn", "Conv"): _conv,
}

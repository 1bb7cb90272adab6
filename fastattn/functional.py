"""The public functions: NumPy arrays in, NumPy arrays out. All share these rules.

Arrays are float32 or float64, one dtype per call; other dtypes raise TypeError with the fix. Any strides and any sizes, 0 included. A wrong shape or
value raises ValueError naming function, argument, expectation and what came. `out` must have the exact shape and dtype, is returned,
and may overlap the inputs. The GIL is released; calls from several threads and after fork are safe. Results do not depend on the number of
threads, on the rest of the batch, or on memory layout.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.exceptions import AxisError
from numpy.typing import ArrayLike, NDArray

from fastattn import _core
from fastattn._core import PackedLinear

Array = NDArray[Any]


# ---- element-wise ----


def exp(x: ArrayLike, *, out: Array | None = None) -> Array:
    """e^x of each element.

    Largest error 1.0 ULP, subnormal results included.

    >>> float(exp(np.float64(1)))
    2.718281828459045
    """
    return _core.map_elements("exp", x, out, "exp")


def tanh(x: ArrayLike, *, out: Array | None = None) -> Array:
    """Hyperbolic tangent of each element. Largest error 1.5 ULP (float32), 1.0 ULP (float64).

    >>> tanh(np.array([-np.inf, 0.0, np.inf]))
    array([-1.,  0.,  1.])
    """
    return _core.map_elements("tanh", x, out, "tanh")


def sigmoid(x: ArrayLike, *, out: Array | None = None) -> Array:
    """1 / (1 + e^-x) of each element. Largest error 2.0 ULP (float32), 1.0 ULP (float64), for very negative x too.

    >>> sigmoid(np.array([-np.inf, 0.0, np.inf]))
    array([0. , 0.5, 1. ])
    """
    return _core.map_elements("sigmoid", x, out, "sigmoid")


def relu(x: ArrayLike, *, out: Array | None = None) -> Array:
    """max(x, 0) of each element; NaN stays NaN.

    >>> relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return _core.map_elements("relu", x, out, "relu")


def silu(x: ArrayLike, *, out: Array | None = None) -> Array:
    """x / (1 + e^-x) of each element ("swish").

    >>> silu(np.array([0.0, 100.0]))
    array([  0., 100.])
    """
    return _core.map_elements("silu", x, out, "silu")


def gelu(x: ArrayLike, *, approximate: str = "none", out: Array | None = None) -> Array:
    """Gaussian error linear unit of each element: x Phi(x), Phi the standard normal distribution.

    approximate="tanh": x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    Largest error 3.0 ULP (float32), 1.0 ULP (float64), for very negative x too. Source: Hendrycks and Gimpel 2016, arXiv:1606.08415.

    >>> gelu(np.array([0.0, 100.0]))
    array([  0., 100.])
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return _core.map_elements("gelu" if approximate == "none" else "gelu_tanh", x, out, "gelu")


# ---- rows ----


def softmax(x: ArrayLike, axis: int = -1, *, scale: float = 1.0, out: Array | None = None) -> Array:
    """y = e^(scale x) / sum e^(scale x) over `axis`.

    Relative error of each element at most 4 eps. NaN, +inf, or nothing but -inf in a row make the row NaN.

    >>> softmax(np.array([0.0, 0.0, -np.inf]))
    array([0.5, 0.5, 0. ])
    """
    return _softmax(False, x, axis, scale, out, "softmax")


def log_softmax(x: ArrayLike, axis: int = -1, *, scale: float = 1.0, out: Array | None = None) -> Array:
    """y = scale x - log sum e^(scale x) over `axis`.

    >>> log_softmax(np.array([0.0, 0.0]))
    array([-0.69314718, -0.69314718])
    """
    return _softmax(True, x, axis, scale, out, "log_softmax")


def softmax_backward(dy: ArrayLike, y: ArrayLike, axis: int = -1, *, scale: float = 1.0) -> Array:
    """Gradient of softmax: dx = scale y (dy - sum dy y), from its result y.

    >>> softmax_backward(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    array([ 0.25, -0.25])
    """
    return _softmax_backward(False, dy, y, axis, scale, "softmax_backward")


def log_softmax_backward(dy: ArrayLike, y: ArrayLike, axis: int = -1, *, scale: float = 1.0) -> Array:
    """Gradient of log_softmax: dx = scale (dy - e^y sum dy), from its result y.

    >>> log_softmax_backward(np.array([1.0, 0.0]), np.log([0.5, 0.5]))
    array([ 0.5, -0.5])
    """
    return _softmax_backward(True, dy, y, axis, scale, "log_softmax_backward")


def softmax_forward(x: ArrayLike, axis: int = -1, *, scale: float = 1.0) -> tuple[Array, Array]:
    """softmax, and what its gradient needs: `softmax_backward(dy, saved, axis, scale=scale)`.

    >>> y, saved = softmax_forward(np.array([0.0, 0.0]))
    >>> softmax_backward(np.array([1.0, 0.0]), saved)
    array([ 0.25, -0.25])
    """
    y = softmax(x, axis, scale=scale)
    return y, y


def log_softmax_forward(x: ArrayLike, axis: int = -1, *, scale: float = 1.0) -> tuple[Array, Array]:
    """log_softmax, and what its gradient needs: `log_softmax_backward(dy, saved, axis, scale=scale)`.

    >>> y, saved = log_softmax_forward(np.array([0.0, 0.0]))
    >>> y is saved
    True
    """
    y = log_softmax(x, axis, scale=scale)
    return y, y


def _last_axis(x: ArrayLike, axis: int, op: str) -> tuple[Array, int]:
    """x as an array, and axis counted from 0."""
    array = x if isinstance(x, np.ndarray) else np.asarray(x)
    if not -array.ndim <= axis < array.ndim:
        raise AxisError(f"{op}: axis must lie in {-array.ndim}..{array.ndim - 1} for shape {array.shape}, got {axis}")
    return array, axis % array.ndim


def _softmax(log: bool, x: ArrayLike, axis: int, scale: float, out: Array | None, op: str) -> Array:
    array, axis = _last_axis(x, axis, op)
    if axis == array.ndim - 1:
        return _core.softmax_rows(log, array, scale, out, op)
    if out is not None and (out.shape != array.shape or out.dtype != array.dtype):
        raise ValueError(f"{op}: out must have shape {array.shape} and dtype {array.dtype}, got {out.shape} and {out.dtype}")
    rows = _core.softmax_rows(log, np.moveaxis(array, axis, -1), scale, None, op)
    result = np.empty(array.shape, rows.dtype) if out is None else out
    np.copyto(result, np.moveaxis(rows, -1, axis))
    return result


def _softmax_backward(log: bool, dy: ArrayLike, y: ArrayLike, axis: int, scale: float, op: str) -> Array:
    array, axis = _last_axis(y, axis, op)
    gradient = dy if isinstance(dy, np.ndarray) else np.asarray(dy)
    if axis == array.ndim - 1 or gradient.shape != array.shape:
        return _core.softmax_backward_rows(log, gradient, array, scale, op)
    rows = _core.softmax_backward_rows(log, np.moveaxis(gradient, axis, -1), np.moveaxis(array, axis, -1), scale, op)
    return np.ascontiguousarray(np.moveaxis(rows, -1, axis))


# ---- linear ----


def linear(x: ArrayLike, weight: ArrayLike | PackedLinear, bias: ArrayLike | None = None, *, activation: str | None = None,
           out: Array | None = None) -> Array:  # fmt: skip
    """y = activation(x weight^T + bias): x[..., in], weight[out, in] (PyTorch's layout), bias[out], y[..., out].

    activation: None, "relu", "gelu", "gelu_tanh", "silu", "tanh" or "sigmoid". A weight from pack_linear saves packing it again in each call.

    >>> linear(np.ones((2, 3)), np.eye(3)[:2], np.array([0.0, 1.0]))
    array([[1., 2.],
           [1., 2.]])
    """
    return _core.linear(x, weight, bias, activation, out)


def pack_linear(weight: ArrayLike, dtype: Any = None) -> PackedLinear:
    """A weight[out, in] in the layout of the kernels, for linear. dtype: float32 or float64, that of `weight` by default.

    >>> pack_linear(np.eye(3)).shape
    (3, 3)
    """
    return _core.pack_linear(weight, dtype)


# ---- attention ----


def attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, *, mask: ArrayLike | None = None, causal: bool | str = False,
              scale: float | None = None, window: tuple[int | None, int | None] | None = None,
              q_lengths: ArrayLike | None = None, kv_lengths: ArrayLike | None = None, layout: str = "bhld",
              return_lse: bool = False, out: Array | None = None) -> Any:  # fmt: skip
    """Scaled dot-product attention: out = softmax(scale q k^T + mask) v, without an Lq x Lk matrix in memory.

    Parameters
    ----------
    q, k, v
        [B, H, Lq, D], [B, Hk, Lk, D], [B, Hk, Lk, Dv]; H a multiple of Hk (query heads h share the keys of head h // (H / Hk), which are
        not copied). layout="blhd": axes 1 and 2 of q, k, v and of the results change places.
    mask
        bool (True: attend) or the dtype of q (added to the scaled scores; -inf: do not attend), broadcastable to [B, H, Lq, Lk].
        What is masked is never read into arithmetic: NaN or inf there changes nothing.
    causal
        False, "top-left" (key j <= query i) or "bottom-right" (j <= i + Lk - Lq); True when Lq == Lk.
    scale
        1 / sqrt(D) by default.
    window
        (left, right): distances on each side of the diagonal, None for no bound. The diagonal is that of `causal`, bottom-right when not causal.
    q_lengths, kv_lengths
        [B] integers in 0..L: positions beyond do not exist, also for the diagonal; their outputs are zero.
    return_lse
        Also return the natural log of the sum of exponentials of each row, [B, H, Lq] (layout "blhd": [B, Lq, H]).

    A query with nothing to attend to: zeros, lse -inf. NaN in a score, or +inf, makes its row NaN.

    Raises ValueError and TypeError naming the argument. Sources: Vaswani et al. 2017, arXiv:1706.03762; Dao et al. 2022, arXiv:2205.14135.

    >>> q = np.zeros((1, 1, 2, 4)); k = q; v = np.array([[[[1.0], [3.0]]]])
    >>> attention(q, k, v, causal=True)[0, 0, :, 0]
    array([1., 2.])
    """
    return _core.attention(q, k, v, mask, causal, scale, window, q_lengths, kv_lengths, layout, return_lse, out)


# ---- recurrent ----


def rnn_cell(x: ArrayLike, h: ArrayLike, w_ih: ArrayLike, w_hh: ArrayLike, b_ih: ArrayLike | None = None,
             b_hh: ArrayLike | None = None, *, nonlinearity: str = "tanh") -> Array:  # fmt: skip
    """One step of a vanilla RNN: h' = f(w_ih x + b_ih + w_hh h + b_hh), f "tanh", "relu" or "sigmoid".

    x[B, I], h[B, H], w_ih[H, I], w_hh[H, H], biases [H] or None. Source: Elman 1990.

    >>> rnn_cell(np.zeros((1, 2)), np.ones((1, 1)), np.zeros((1, 2)), np.ones((1, 1)), nonlinearity="relu")
    array([[1.]])
    """
    _check_nonlinearity("rnn_cell", nonlinearity)
    return _cell("rnn_cell", "rnn", nonlinearity, x, h, None, w_ih, w_hh, b_ih, b_hh, None)[0]


def gru_cell(x: ArrayLike, h: ArrayLike, w_ih: ArrayLike, w_hh: ArrayLike, b_ih: ArrayLike | None = None,
             b_hh: ArrayLike | None = None, *, linear_before_reset: bool = True) -> Array:  # fmt: skip
    """One step of a GRU. Gates r, z, n:

    r = sigmoid(W_r x + U_r h), z = sigmoid(W_z x + U_z h), h' = (1 - z) n + z h, each with its biases, and
    n = tanh(W_n x + b_n + r (U_n h + c_n)), or with linear_before_reset=False n = tanh(W_n x + b_n + U_n (r h) + c_n).

    x[B, I], h[B, H], w_ih[3 H, I], w_hh[3 H, H], biases [3 H] or None. Source: Cho et al. 2014, arXiv:1406.1078 (reset before the
    product); PyTorch and cuDNN have the other form.

    >>> gru_cell(np.zeros((1, 1)), np.ones((1, 1)), np.zeros((3, 1)), np.zeros((3, 1)))
    array([[0.5]])
    """
    cell = "gru" if linear_before_reset else "gru_reset_before"
    return _cell("gru_cell", cell, "tanh", x, h, None, w_ih, w_hh, b_ih, b_hh, None)[0]


def lstm_cell(x: ArrayLike, h: ArrayLike, c: ArrayLike, w_ih: ArrayLike, w_hh: ArrayLike, b_ih: ArrayLike | None = None,
              b_hh: ArrayLike | None = None, *, peephole: ArrayLike | None = None) -> tuple[Array, Array]:  # fmt: skip
    """One step of an LSTM. Gates i, f, g, o of w_ih x + b_ih + w_hh h + b_hh:

    c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c').
    peephole[3, H] (rows i, f, o) adds p_i c to i, p_f c to f and p_o c' to o.

    x[B, I], h and c [B, H], w_ih[4 H, I], w_hh[4 H, H], biases [4 H] or None. Returns (h', c').
    Sources: Hochreiter and Schmidhuber 1997; Gers and Schmidhuber 2000 (peephole).

    >>> h, c = lstm_cell(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1)), np.zeros((4, 1)), np.zeros((4, 1)))
    >>> c
    array([[0.5]])
    """
    return _cell("lstm_cell", "lstm", "tanh", x, h, c, w_ih, w_hh, b_ih, b_hh, peephole)


def rnn(x: ArrayLike, state: ArrayLike | None, weights: Mapping[str, Any], *, nonlinearity: str = "tanh",
        lengths: ArrayLike | None = None, batch_first: bool = False) -> tuple[Array, Array]:  # fmt: skip
    """A vanilla RNN over sequences, layer upon layer: rnn_cell at each step.

    Parameters
    ----------
    x
        [T, B, I], or [B, T, I] with batch_first.
    state
        h[layers * directions, B, H], or None for zeros.
    weights
        PyTorch's names: weight_ih_l0 [H, I], weight_hh_l0 [H, H], bias_ih_l0 and bias_hh_l0 [H] (both or none), then ..._l1 and so on; with
        ..._l0_reverse a second direction runs from the end, and the outputs of the two lie side by side.
    lengths
        [B] integers in 0..T: outputs beyond are zero, the final state of a sequence is that at its last step.

    Returns y[T, B, directions * H] (or [B, T, ...]) and the final state, shaped like `state`.

    >>> w = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.ones((1, 1))}
    >>> y, h = rnn(np.ones((3, 1, 1)), None, w, nonlinearity="relu")
    >>> y[:, 0, 0]
    array([1., 2., 3.])
    """
    _check_nonlinearity("rnn", nonlinearity)
    y, (h,) = _sequence("rnn", "rnn", nonlinearity, x, (state,), weights, lengths, batch_first)
    return y, h


def gru(x: ArrayLike, state: ArrayLike | None, weights: Mapping[str, Any], *, linear_before_reset: bool = True,
        lengths: ArrayLike | None = None, batch_first: bool = False) -> tuple[Array, Array]:  # fmt: skip
    """A GRU over sequences, layer upon layer: gru_cell at each step. Arguments and result as for rnn, with 3 H rows of weights.

    >>> w = {"weight_ih_l0": np.zeros((3, 1)), "weight_hh_l0": np.zeros((3, 1))}
    >>> y, h = gru(np.ones((2, 1, 1)), np.ones((1, 1, 1)), w)
    >>> y[:, 0, 0]
    array([0.5 , 0.25])
    """
    cell = "gru" if linear_before_reset else "gru_reset_before"
    y, (h,) = _sequence("gru", cell, "tanh", x, (state,), weights, lengths, batch_first)
    return y, h


def lstm(x: ArrayLike, state: tuple[ArrayLike, ArrayLike] | None, weights: Mapping[str, Any], *,
         lengths: ArrayLike | None = None, batch_first: bool = False) -> tuple[Array, tuple[Array, Array]]:  # fmt: skip
    """An LSTM over sequences, layer upon layer: lstm_cell at each step. Arguments as for rnn, with 4 H rows of weights; `state` and the
    final state are pairs (h, c); weights may hold weight_peephole_l0 [3, H] (rows i, f, o) for each layer and direction.

    >>> w = {"weight_ih_l0": np.zeros((4, 1)), "weight_hh_l0": np.zeros((4, 1))}
    >>> y, (h, c) = lstm(np.ones((2, 1, 1)), (np.zeros((1, 1, 1)), np.ones((1, 1, 1))), w)
    >>> c
    array([[[0.25]]])
    """
    if state is not None and (not isinstance(state, tuple | list) or len(state) != 2):
        raise ValueError(f"lstm: state must be a pair (h, c), got {type(state).__name__}")
    pair = (None, None) if state is None else tuple(state)
    y, (h, c) = _sequence("lstm", "lstm", "tanh", x, pair, weights, lengths, batch_first)
    return y, (h, c)


def _check_nonlinearity(op: str, name: str) -> None:
    if name not in ("tanh", "relu", "sigmoid"):
        raise ValueError(f"{op}: nonlinearity must be 'tanh', 'relu' or 'sigmoid', got {name!r}")


def _cell(op: str, cell: str, nonlinearity: str, x: Any, h: Any, c: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any,
          peephole: Any) -> tuple[Array, Any]:  # fmt: skip
    x = _core.checked_floats(x, op, "x", 2)
    h = _core.checked_floats(h, op, "h", 2)
    if h.shape[0] != x.shape[0]:
        raise ValueError(f"{op}: h must have the batch of x, {x.shape[0]}, got shape {h.shape}")
    weights = {"weight_ih": w_ih, "weight_hh": w_hh, "bias_ih": b_ih, "bias_hh": b_hh, "peephole": peephole}
    y = np.empty((1, *h.shape), x.dtype)
    return _core.recurrent_layer(op, cell, nonlinearity, x[None], h, c, weights, _CELL_NAMES, None, False, y)


_CELL_NAMES = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh", "peephole": "peephole"}
_WEIGHT_NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_peephole)_l(\d+)(_reverse)?")


def _layers(op: str, weights: Mapping[str, Any], peephole: bool) -> tuple[int, int]:
    """Numbers of layers and directions that `weights` holds; every name is accounted for."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"{op}: weights must be a mapping from names to arrays, got {type(weights).__name__}")
    found: dict[str, re.Match[str]] = {}
    for name in weights:
        match = _WEIGHT_NAME.fullmatch(name)
        if match is None or (match[1] == "weight_peephole" and not peephole):
            raise ValueError(f"{op}: weights must hold names such as weight_ih_l0, got {name!r}")
        found[name] = match
    layers = 1 + max((int(match[2]) for match in found.values()), default=0)
    directions = 2 if any(match[3] for match in found.values()) else 1
    kinds = {match[1] for match in found.values()} | {"weight_ih", "weight_hh"}
    expected = {f"{kind}_l{layer}{suffix}" for kind in kinds for layer in range(layers) for suffix in ("", "_reverse")[:directions]}
    missing = sorted(expected - set(found))
    if missing:
        raise ValueError(f"{op}: weights must hold {missing[0]!r} beside {', '.join(sorted(found)) or 'nothing'}")
    if ("bias_ih" in kinds) != ("bias_hh" in kinds):
        raise ValueError(f"{op}: weights must hold both biases or none, got {', '.join(sorted(found))}")
    return layers, directions


def _sequence(op: str, cell: str, nonlinearity: str, x: Any, state: tuple[Any, ...], weights: Mapping[str, Any],
              lengths: ArrayLike | None, batch_first: bool) -> tuple[Array, list[Array]]:  # fmt: skip
    x = _core.checked_floats(x, op, "x", 3)
    layers, directions = _layers(op, weights, cell == "lstm")
    if batch_first:
        x = x.swapaxes(0, 1)
    steps, batch = x.shape[:2]
    w_hh = _core.checked_floats(weights["weight_hh_l0"], op, "weight_hh_l0", 2)
    hidden = w_hh.shape[1]
    lengths = _core.checked_lengths(lengths, batch, steps, op, "lengths")
    names = ("h", "c")[: len(state)]
    shape = (layers * directions, batch, hidden)
    for name, part in zip(names, state, strict=True):
        if part is not None and np.shape(part) != shape:
            raise ValueError(f"{op}: {name} must have shape {shape}, got {np.shape(part)}")
    final = [np.empty(shape, x.dtype) for _ in names]
    for layer in range(layers):
        last = layer == layers - 1
        y = np.empty((batch, steps, directions * hidden) if batch_first and last else (steps, batch, directions * hidden), x.dtype)
        y_steps = y.swapaxes(0, 1) if batch_first and last else y
        for direction in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            own = {kind: weights.get(kind + suffix) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            own["peephole"] = weights.get("weight_peephole" + suffix)
            labels = {kind: kind + suffix for kind in own} | {"peephole": "weight_peephole" + suffix}
            index = layer * directions + direction
            h0, c0 = (None if part is None else part[index] for part in (*state, None)[:2])
            part = y_steps[:, :, direction * hidden : (direction + 1) * hidden]
            result = _core.recurrent_layer(op, cell, nonlinearity, x, h0, c0, own, labels, lengths, bool(direction), part)
            for array, value in zip(final, result, strict=False):
                array[index] = value
        x = y_steps
    return y, final

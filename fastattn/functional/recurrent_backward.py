"""Recurrent cells and sequences with their gradients: pairs of calls, forward and backward.

`..._forward` takes the arguments of the plain call and returns its result, with the same bits, and `saved`, an object
for `..._backward`. `saved` refers to x, the state, the weights and the output: do not change them before the backward
call. It keeps for each step and unit of each layer and direction: LSTM 5 numbers (4 with coupled gates, one more with a
projection), GRU 4 (3 with reset before the product), RNN none beside the output (of 16-bit arrays 1); with dropout,
also a copy of the outputs of all layers but the last. The backward call takes further memory for about 1024 rows,
whatever the number of steps.

For 16-bit arrays the saved values are float32. Gradients are computed in float32, from the rounded h of each step, and
each is rounded once. The backward call needs memory for x, the outputs and the weights in float32.

Dropout (of the output of each layer but the last, as PyTorch's) sets elements to 0 with probability `dropout` and
divides the others by 1 - dropout. Whether an element stays depends only on the seed and its layer, direction, time,
index in the batch and unit: not on threads, on the size of the batch or on other sequences. Random words are those of
Philox 4x32-10 (csrc/kernels/recurrent/dropout.c).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastattn import _core
from fastattn._core import RecurrentWeights
from fastattn.functional._checks import (
    check_flag,
    check_integer,
    check_number,
    check_parts,
    check_saved,
)
from fastattn.functional._types import Array
from fastattn.functional.recurrent import (
    _CELL_NAMES,
    NONLINEARITIES,
    Options,
    RecurrentSaved,
    _checked_clip,
    _checked_nonlinearity,
    _gru_form,
    _lstm_form,
    _run,
    _run_cell,
)

State = tuple[ArrayLike | None, ArrayLike | None]

_LARGEST_SEED = 2**64 - 1


def rnn_cell_forward(x: ArrayLike, h: ArrayLike, w_ih: ArrayLike, w_hh: ArrayLike, b_ih: ArrayLike | None = None,
                     b_hh: ArrayLike | None = None, *,
                     nonlinearity: str = "tanh") -> tuple[Array, RecurrentSaved]:  # fmt: skip
    """rnn_cell, and the values that rnn_cell_backward needs.

    >>> h, saved = rnn_cell_forward(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)),
    ...                             nonlinearity="relu")
    >>> dx, dh, dweights = rnn_cell_backward(np.ones((1, 1)), saved)
    >>> dx
    array([[1.]])
    """
    nonlinearity = _checked_nonlinearity("rnn_cell_forward", nonlinearity)
    arrays, options = (w_ih, w_hh, b_ih, b_hh, None, None), Options(nonlinearity)
    h_next, _, saved = _run_cell("rnn_cell_forward", "rnn", options, x, h, None, arrays, True)
    return h_next, saved


def rnn_cell_backward(dh: ArrayLike, saved: RecurrentSaved) -> tuple[Array, Array, dict[str, Array]]:
    """Gradients of rnn_cell from that of its result: dx, dh and a dict w_ih, w_hh, b_ih, b_hh of those that were given.

    >>> h, saved = rnn_cell_forward(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    >>> sorted(rnn_cell_backward(np.ones((1, 1)), saved)[2])
    ['w_hh', 'w_ih']
    """
    dx, state, dweights = _cell_backward("rnn_cell", dh, None, saved)
    return dx, state[0], dweights


def gru_cell_forward(x: ArrayLike, h: ArrayLike, w_ih: ArrayLike, w_hh: ArrayLike, b_ih: ArrayLike | None = None,
                     b_hh: ArrayLike | None = None, *,
                     linear_before_reset: bool = True) -> tuple[Array, RecurrentSaved]:  # fmt: skip
    """gru_cell, and the values that gru_cell_backward needs.

    >>> h, saved = gru_cell_forward(np.zeros((1, 1)), np.ones((1, 1)), np.zeros((3, 1)), np.zeros((3, 1)))
    >>> h
    array([[0.5]])
    """
    cell, arrays = _gru_form("gru_cell_forward", linear_before_reset), (w_ih, w_hh, b_ih, b_hh, None, None)
    h_next, _, saved = _run_cell("gru_cell_forward", cell, Options(), x, h, None, arrays, True)
    return h_next, saved


def gru_cell_backward(dh: ArrayLike, saved: RecurrentSaved) -> tuple[Array, Array, dict[str, Array]]:
    """Gradients of gru_cell, as rnn_cell_backward.

    >>> h, saved = gru_cell_forward(np.zeros((1, 1)), np.ones((1, 1)), np.zeros((3, 1)), np.zeros((3, 1)))
    >>> gru_cell_backward(np.ones((1, 1)), saved)[1]
    array([[0.5]])
    """
    dx, state, dweights = _cell_backward("gru_cell", dh, None, saved)
    return dx, state[0], dweights


def lstm_cell_forward(x: ArrayLike, h: ArrayLike, c: ArrayLike, w_ih: ArrayLike, w_hh: ArrayLike,
                      b_ih: ArrayLike | None = None, b_hh: ArrayLike | None = None, *,
                      peephole: ArrayLike | None = None, w_hr: ArrayLike | None = None, coupled: bool = False,
                      clip: float | None = None) -> tuple[tuple[Array, Array], RecurrentSaved]:  # fmt: skip
    """lstm_cell, and the values that lstm_cell_backward needs.

    >>> zeros, one = np.zeros((4, 1)), np.ones((1, 1))
    >>> (h, c), saved = lstm_cell_forward(np.zeros((1, 1)), np.zeros((1, 1)), one, zeros, zeros)
    >>> c
    array([[0.5]])
    """
    name, arrays = "lstm_cell_forward", (w_ih, w_hh, b_ih, b_hh, w_hr, peephole)
    options = Options(clip=_checked_clip(name, clip))
    h_next, c_next, saved = _run_cell(name, _lstm_form(name, coupled), options, x, h, c, arrays, True)
    return (h_next, c_next), saved


def lstm_cell_backward(grads: State, saved: RecurrentSaved) -> tuple[Array, tuple[Array, Array], dict[str, Array]]:
    """Gradients of lstm_cell from those of its results, a pair (dh, dc) of which either may be None.

    Returns dx, the pair of the state, and a dict w_ih, w_hh, b_ih, b_hh, w_hr, peephole of those that were given.
    A cell that has reached the clip passes no gradient on.

    >>> zeros, one = np.zeros((4, 1)), np.ones((1, 1))
    >>> (h, c), saved = lstm_cell_forward(np.zeros((1, 1)), np.zeros((1, 1)), one, zeros, zeros)
    >>> dx, (dh, dc), dweights = lstm_cell_backward((None, one), saved)
    >>> dc
    array([[0.5]])
    """
    dh, dc = _pair("lstm_cell_backward", "grads", "(dh, dc)", grads)
    return _cell_backward("lstm_cell", dh, dc, saved)


def rnn_forward(x: ArrayLike, state: ArrayLike | None, weights: Mapping[str, Any], *, nonlinearity: str = "tanh",
                lengths: ArrayLike | None = None, batch_first: bool = False, dropout: float = 0.0,
                seed: int | None = None,
                reverse: bool = False) -> tuple[tuple[Array, Array], RecurrentSaved]:  # fmt: skip
    """rnn, and the values that rnn_backward needs. Weights that pack_rnn has packed cannot be used here.

    dropout: the probability with which elements of the output of each layer but the last are dropped, in 0..1; it needs
    a seed in 0..2^64 - 1, and the same seed drops the same elements.

    >>> w = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.ones((1, 1))}
    >>> (y, h), saved = rnn_forward(np.ones((3, 1, 1)), None, w, nonlinearity="relu")
    >>> dx, dh, dweights = rnn_backward(np.ones((3, 1, 1)), saved)
    >>> dx[:, 0, 0]
    array([3., 2., 1.])
    """
    nonlinearity = _checked_nonlinearity("rnn_forward", nonlinearity)
    _check_weights("rnn_forward", weights)
    options = Options(nonlinearity, 0.0, *_checked_dropout("rnn_forward", dropout, seed),
                      check_flag("rnn_forward", "reverse", reverse))  # fmt: skip
    y, h, _, saved = _run("rnn_forward", "rnn", options, x, (state,), weights, lengths, batch_first, True)
    return (y, h), saved


def rnn_backward(grads: Any, saved: RecurrentSaved) -> tuple[Array, Array, dict[str, Array]]:
    """Backward through time: gradients of rnn from those of its results.

    Parameters
    ----------
    grads
        A pair (dy, dh), either of which may be None (zeros); or dy alone. dy is not read beyond
        the lengths.
    saved
        From rnn_forward.

    Returns dx, shaped like x and zero beyond the lengths; dh, the gradient of the initial state, also if that was
    None; and a dict with the names of the weights. dx and dh of a sequence do not depend on the rest of the batch.

    >>> w = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.ones((1, 1))}
    >>> (y, h), saved = rnn_forward(np.ones((3, 1, 1)), None, w, nonlinearity="relu")
    >>> dx, dh, dweights = rnn_backward((None, np.ones((1, 1, 1))), saved)
    >>> dweights["weight_hh_l0"]
    array([[3.]])
    """
    dy, dh = _pair("rnn_backward", "grads", "(dy, dh)", grads, alone=True)
    dx, state, dweights = _sequence_backward("rnn", dy, dh, None, saved)
    return dx, state[0], dweights


def gru_forward(x: ArrayLike, state: ArrayLike | None, weights: Mapping[str, Any], *,
                linear_before_reset: bool = True, lengths: ArrayLike | None = None, batch_first: bool = False,
                dropout: float = 0.0, seed: int | None = None,
                reverse: bool = False) -> tuple[tuple[Array, Array], RecurrentSaved]:  # fmt: skip
    """gru, and the values that gru_backward needs; dropout and seed as for rnn_forward.

    >>> w = {"weight_ih_l0": np.zeros((3, 1)), "weight_hh_l0": np.zeros((3, 1))}
    >>> (y, h), saved = gru_forward(np.ones((2, 1, 1)), np.ones((1, 1, 1)), w)
    >>> y[:, 0, 0]
    array([0.5 , 0.25])
    """
    _check_weights("gru_forward", weights)
    cell = _gru_form("gru_forward", linear_before_reset)
    options = Options("tanh", 0.0, *_checked_dropout("gru_forward", dropout, seed),
                      check_flag("gru_forward", "reverse", reverse))  # fmt: skip
    y, h, _, saved = _run("gru_forward", cell, options, x, (state,), weights, lengths, batch_first, True)
    return (y, h), saved


def gru_backward(grads: Any, saved: RecurrentSaved) -> tuple[Array, Array, dict[str, Array]]:
    """Gradients of gru; arguments and results as for rnn_backward.

    >>> w = {"weight_ih_l0": np.zeros((3, 1)), "weight_hh_l0": np.zeros((3, 1))}
    >>> (y, h), saved = gru_forward(np.ones((2, 1, 1)), np.ones((1, 1, 1)), w)
    >>> gru_backward((None, np.ones((1, 1, 1))), saved)[1]
    array([[[0.25]]])
    """
    dy, dh = _pair("gru_backward", "grads", "(dy, dh)", grads, alone=True)
    dx, state, dweights = _sequence_backward("gru", dy, dh, None, saved)
    return dx, state[0], dweights


def lstm_forward(x: ArrayLike, state: tuple[ArrayLike, ArrayLike] | None, weights: Mapping[str, Any], *,
                 coupled: bool = False, clip: float | None = None, lengths: ArrayLike | None = None,
                 batch_first: bool = False, dropout: float = 0.0, seed: int | None = None,
                 reverse: bool = False) -> tuple[tuple[Array, tuple[Array, Array]], RecurrentSaved]:  # fmt: skip
    """lstm, and the values that lstm_backward needs; dropout and seed as for rnn_forward.

    >>> w = {"weight_ih_l0": np.zeros((4, 1)), "weight_hh_l0": np.zeros((4, 1))}
    >>> (y, (h, c)), saved = lstm_forward(np.ones((2, 1, 1)), (np.zeros((1, 1, 1)), np.ones((1, 1, 1))), w)
    >>> c
    array([[[0.25]]])
    """
    _check_weights("lstm_forward", weights)
    pair = (None, None) if state is None else _pair("lstm_forward", "state", "(h, c)", state)
    options = Options("tanh", _checked_clip("lstm_forward", clip), *_checked_dropout("lstm_forward", dropout, seed),
                      check_flag("lstm_forward", "reverse", reverse))  # fmt: skip
    cell = _lstm_form("lstm_forward", coupled)
    y, h, c, saved = _run("lstm_forward", cell, options, x, pair, weights, lengths, batch_first, True)
    return (y, (h, c)), saved


def lstm_backward(grads: Any, saved: RecurrentSaved) -> tuple[Array, tuple[Array, Array], dict[str, Array]]:
    """Gradients of lstm; as rnn_backward, but the state is a pair: grads is (dy, (dh, dc)), or dy alone; dy, the pair,
    dh and dc may be None. Returns dx, (dh, dc) and the dict.

    >>> w = {"weight_ih_l0": np.zeros((4, 1)), "weight_hh_l0": np.zeros((4, 1))}
    >>> (y, (h, c)), saved = lstm_forward(np.ones((2, 1, 1)), (np.zeros((1, 1, 1)), np.ones((1, 1, 1))), w)
    >>> dx, (dh, dc), dweights = lstm_backward((None, (None, np.ones((1, 1, 1)))), saved)
    >>> dc
    array([[[0.25]]])
    """
    op = "lstm_backward"
    dy, state = _pair(op, "grads", "(dy, (dh, dc))", grads, alone=True)
    dh, dc = (None, None) if state is None else _pair(op, "the second of grads", "(dh, dc)", state)
    return _sequence_backward("lstm", dy, dh, dc, saved)


def _pair(op: str, name: str, expected: str, value: Any, alone: bool = False) -> tuple[Any, Any]:
    """Both parts of a pair; with `alone` anything that is no tuple or list is the first."""
    if alone and not isinstance(value, tuple | list):
        return value, None
    if not isinstance(value, tuple | list) or len(value) != 2:
        got = f"{len(value)} items" if isinstance(value, tuple | list) else type(value).__name__
        raise ValueError(f"{op}: {name} must be a pair {expected}, got {got}")
    first, second = value
    return first, second


def _checked_dropout(op: str, dropout: Any, seed: Any) -> tuple[float, int]:
    part = check_number(op, "dropout", dropout)
    if not 0 <= part <= 1:
        raise ValueError(f"{op}: dropout must lie in 0..1, got {dropout}")
    if seed is None and part > 0:
        raise ValueError(f"{op}: seed must be given with dropout, got None")
    number = 0 if seed is None else check_integer(op, "seed", seed)
    if not 0 <= number <= _LARGEST_SEED:
        raise ValueError(f"{op}: seed must lie in 0..2^64 - 1, got {seed}")
    return part, number


def _check_weights(op: str, weights: Any) -> None:
    if isinstance(weights, RecurrentWeights):
        raise TypeError(f"{op}: weights must be a mapping of names to arrays, got packed ones: they have no gradient")


def _check_saved(op: str, saved: Any) -> tuple[int, int]:
    """Steps and batch of what `op` saved. The arrays that C reads are checked where it gets them."""
    name = f"{op}_backward"
    check_saved(name, saved, RecurrentSaved)
    if not isinstance(saved.op, str) or saved.op != f"{op}_forward":
        raise ValueError(f"{name}: saved must come from {op}_forward, got that of {_core.shown(saved.op)}")
    weights = saved.weights
    if not isinstance(weights, RecurrentWeights) or not weights.cell.startswith(op.removesuffix("_cell")):
        raise TypeError(f"{name}: saved.weights must be those of {op}_forward, got {_core.shown(weights)}")
    if weights.isa is not None:
        raise ValueError(f"{name}: saved.weights must be as they are, got packed ones: they have no gradient")
    check_flag(name, "saved.batch_first", saved.batch_first)
    _check_options(name, saved.options)
    lanes = weights.layers * weights.directions
    check_parts(name, "saved.names", saved.names, lanes)
    for i, names in enumerate(saved.names):
        fits = isinstance(names, dict) and len(names) == len(_CELL_NAMES)
        if not fits or not all(type(label) is str for label in names.values()):
            raise ValueError(f"{name}: saved.names[{i}] must hold {len(_CELL_NAMES)} names, got {_core.shown(names)}")
    check_parts(name, "saved.ys", saved.ys, weights.layers)
    check_parts(name, "saved.activations", saved.activations, lanes)
    check_parts(name, "saved.dropped", saved.dropped, weights.layers - 1 if saved.options.dropout else 0)
    x = _core.checked_floats(saved.x, name, "saved.x", 3)
    if x is not saved.x or x.dtype != weights.dtype:
        raise TypeError(f"{name}: saved.x must be an array of {weights.dtype} like the weights, got {x.dtype}")
    return x.shape[0], x.shape[1]


def _check_options(op: str, options: Any) -> None:
    if not isinstance(options, Options):
        raise TypeError(f"{op}: saved.options must be those of the forward call, got {_core.shown(options)}")
    if type(options.nonlinearity) is not str or options.nonlinearity not in NONLINEARITIES:
        given = _core.shown(options.nonlinearity)
        raise ValueError(f"{op}: saved.options.nonlinearity must be one of {', '.join(NONLINEARITIES)}, got {given}")
    numbers = (options.clip, options.dropout)
    clip, dropout = (check_number(op, "saved.options", number) for number in numbers)
    gate_clip = check_number(op, "saved.options.gate_clip", options.gate_clip)
    if not (clip >= 0 and 0 <= dropout <= 1):
        raise ValueError(f"{op}: saved.options must hold a clip of at least 0 and a dropout in 0..1, got {numbers}")
    if gate_clip != 0:
        raise ValueError(f"{op}: saved.options.gate_clip must be 0 (with it there is no gradient), got {gate_clip}")
    check_integer(op, "saved.options.seed", options.seed, 0, _LARGEST_SEED)
    check_flag(op, "saved.options.reverse", options.reverse)


def _gradient(op: str, name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A gradient of the shape and type of its result, or None."""
    if value is None:
        return None
    array = _core.checked_floats(value, op, name, len(shape))
    if array.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {array.shape}")
    if array.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype} like the other arrays, got {array.dtype}")
    return array


def _cell_backward(op: str, dh: Any, dc: Any, saved: RecurrentSaved) -> tuple[Array, Any, dict[str, Array]]:
    _, batch = _check_saved(op, saved)
    dh = _gradient(f"{op}_backward", "dh", dh, (batch, saved.weights.output_size), saved.x.dtype)
    dc = _gradient(f"{op}_backward", "dc", dc, (batch, saved.weights.hidden_size), _cell_dtype(f"{op}_backward", saved))
    dx, state, dweights = _layers_backward(
        f"{op}_backward", saved, None, None if dh is None else dh[None], None if dc is None else dc[None]
    )
    return dx[0], tuple(part[0] for part in state), dweights


def _sequence_backward(
    op: str, dy: Any, dh: Any, dc: Any, saved: RecurrentSaved
) -> tuple[Array, Any, dict[str, Array]]:
    steps, batch = _check_saved(op, saved)
    width, lanes = saved.weights.directions * saved.weights.output_size, len(saved.activations)
    name = f"{op}_backward"
    dtype = saved.x.dtype
    dy = _gradient(name, "dy", dy, (batch, steps, width) if saved.batch_first else (steps, batch, width), dtype)
    dh = _gradient(name, "dh", dh, (lanes, batch, saved.weights.output_size), dtype)
    dc = _gradient(name, "dc", dc, (lanes, batch, saved.weights.hidden_size), _cell_dtype(name, saved))
    dx, dstate, dweights = _layers_backward(
        name, saved, dy.swapaxes(0, 1) if dy is not None and saved.batch_first else dy, dh, dc
    )
    return dx.swapaxes(0, 1) if saved.batch_first else dx, dstate, dweights


def _cell_dtype(op: str, saved: RecurrentSaved) -> Any:
    """Of the final c and its gradient: float32 where the initial c was, beside 16-bit arrays."""
    c0 = saved.x if saved.c0 is None else _core.checked_array(saved.c0, op, "saved.c0")
    return c0.dtype if c0.dtype == np.float32 else saved.x.dtype


def _layers_backward(op: str, saved: RecurrentSaved, dy: Any, dh: Any, dc: Any) -> tuple[Array, Any, dict[str, Array]]:
    """From the last layer to the first; all arrays time first. Of 16-bit arrays all is computed in float32."""
    low = saved.weights.dtype.itemsize == _LOW_BYTES
    weights = _core.widened_weights(op, saved.weights) if low else saved.weights
    dtype, (steps, batch, inputs) = weights.dtype, saved.x.shape

    def wide(value: Any, label: str) -> Any:
        if not low or value is None:
            return value
        array = _core.checked_array(value, op, label)
        if array.dtype == np.float32:
            return array
        if array.dtype != saved.weights.dtype:
            raise TypeError(f"{op}: {label} must be {saved.weights.dtype} like the weights, got {array.dtype}")
        return _core.cast(array, np.float32, op, label)

    def narrow(array: Array) -> Array:
        return _core.cast(array, saved.weights.dtype) if low else array

    ys = [wide(y, "saved.ys") for y in saved.ys]
    between = [wide(y, "saved.dropped") for y in saved.dropped] or ys[:-1]
    dx = _core.new_array((batch, steps, inputs) if saved.batch_first else (steps, batch, inputs), dtype, op)
    width = weights.directions * weights.output_size
    dxs = [dx.swapaxes(0, 1) if saved.batch_first else dx]
    dxs += [_core.new_array((steps, batch, width), dtype, op) for _ in between]
    dh0, dc0, of_lanes = _core.recurrent_backward(
        op, weights, saved.options, wide(saved.x, "saved.x"), between, ys, list(saved.activations),
        wide(saved.h0, "saved.h0"), wide(saved.c0, "saved.c0"), saved.lengths, wide(dy, "dy"), wide(dh, "dh"),
        wide(dc, "dc"), dxs, low,
    )  # fmt: skip
    dweights = {
        name: narrow(part)
        for names, parts in zip(saved.names, of_lanes, strict=True)
        for name, part in zip(names.values(), parts, strict=True)
        if part is not None
    }
    dx = narrow(dx)
    wide_cell = low and _cell_dtype(op, saved) != saved.x.dtype
    dstate = (narrow(dh0),) if dc0 is None else (narrow(dh0), dc0 if wide_cell else narrow(dc0))
    return dx.swapaxes(0, 1) if saved.batch_first else dx, dstate, dweights


_LOW_BYTES = 2  # of an element of a 16-bit array

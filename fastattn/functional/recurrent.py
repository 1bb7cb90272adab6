"""Recurrent cells and sequences."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastattn import _core
from fastattn._core import RecurrentWeights
from fastattn.functional._checks import check_choice, check_flag, check_number
from fastattn.functional._types import Array

# PyTorch's names and arrays, or the handle of pack_rnn, pack_gru or pack_lstm.
Weights = Mapping[str, Any] | RecurrentWeights

NONLINEARITIES = ("tanh", "relu", "sigmoid")


class Options(NamedTuple):
    """What a call has beside arrays. Private."""

    nonlinearity: str = "tanh"
    clip: float = 0.0  # 0: none
    dropout: float = 0.0
    seed: int = 0
    reverse: bool = False
    gate_clip: float = 0.0  # 0: none


class RecurrentSaved(NamedTuple):
    """The values that rnn_forward and the like keep for the backward call; arrays of the caller are not copied.
    Private."""

    op: str
    options: Options
    batch_first: bool
    x: Array  # time first
    h0: Any
    c0: Any
    weights: RecurrentWeights
    names: list[dict[str, str]]  # of the weights of each layer and direction
    lengths: Any
    ys: list[Array]  # of each layer, time first
    dropped: list[Array]  # what dropout left of each but the last; empty without
    activations: list[Array | None]  # of each layer and direction


def rnn_cell(x: ArrayLike, h: ArrayLike, w_ih: ArrayLike, w_hh: ArrayLike, b_ih: ArrayLike | None = None,
             b_hh: ArrayLike | None = None, *, nonlinearity: str = "tanh") -> Array:  # fmt: skip
    """One step of a vanilla RNN: h' = f(w_ih x + b_ih + w_hh h + b_hh), f "tanh", "relu" or "sigmoid".

    x[B, I], h[B, H], w_ih[H, I], w_hh[H, H], biases [H] or None. Source: Elman 1990.

    >>> rnn_cell(np.zeros((1, 2)), np.ones((1, 1)), np.zeros((1, 2)), np.ones((1, 1)), nonlinearity="relu")
    array([[1.]])
    """
    nonlinearity = _checked_nonlinearity("rnn_cell", nonlinearity)
    arrays = (w_ih, w_hh, b_ih, b_hh, None, None)
    return _run_cell("rnn_cell", "rnn", Options(nonlinearity), x, h, None, arrays, False)[0]


def gru_cell(x: ArrayLike, h: ArrayLike, w_ih: ArrayLike, w_hh: ArrayLike, b_ih: ArrayLike | None = None,
             b_hh: ArrayLike | None = None, *, linear_before_reset: bool = True) -> Array:  # fmt: skip
    """One step of a GRU. Gates r, z, n:

    r = sigmoid(W_r x + U_r h), z = sigmoid(W_z x + U_z h), h' = (1 - z) n + z h, each with its biases, and
    n = tanh(W_n x + b_n + r (U_n h + c_n)), or with linear_before_reset=False n = tanh(W_n x + b_n + U_n (r h) + c_n).

    x[B, I], h[B, H], w_ih[3 H, I], w_hh[3 H, H], biases [3 H] or None. Source: Cho et al. 2014, arXiv:1406.1078 (reset
    before the
    product); PyTorch and cuDNN have the other form.

    >>> gru_cell(np.zeros((1, 1)), np.ones((1, 1)), np.zeros((3, 1)), np.zeros((3, 1)))
    array([[0.5]])
    """
    arrays, form = (w_ih, w_hh, b_ih, b_hh, None, None), _gru_form("gru_cell", linear_before_reset)
    return _run_cell("gru_cell", form, Options(), x, h, None, arrays, False)[0]


def lstm_cell(x: ArrayLike, h: ArrayLike, c: ArrayLike, w_ih: ArrayLike, w_hh: ArrayLike, b_ih: ArrayLike | None = None,
              b_hh: ArrayLike | None = None, *, peephole: ArrayLike | None = None, w_hr: ArrayLike | None = None,
              coupled: bool = False, clip: float | None = None) -> tuple[Array, Array]:  # fmt: skip
    """One step of an LSTM. Gates i, f, g, o of w_ih x + b_ih + w_hh h + b_hh:

    c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c').
    peephole[3, H] (rows i, f, o) adds p_i c to i, p_f c to f and p_o c' to o. w_hr[P, H] projects h' = w_hr (sigmoid(o)
    tanh(c')). With coupled, the forget gate is 1 - sigmoid(i): gates are i, g, o, and peepholes i, o. clip keeps c' in
    [-clip, clip], before o and h' are computed from it; it must be positive.

    x[B, I], h[B, P], c[B, H], w_ih[4 H, I], w_hh[4 H, P], biases [4 H] or None; P = H without w_hr, 3 H rows with
    coupled. Returns (h', c').
    Sources: Hochreiter and Schmidhuber 1997; Gers and Schmidhuber 2000 (peephole); Sak, Senior and Beaufays 2014,
    arXiv:1402.1128 (projection); Greff et al. 2015, arXiv:1503.04069 (coupled gates).

    >>> h, c = lstm_cell(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1)), np.zeros((4, 1)), np.zeros((4, 1)))
    >>> c
    array([[0.5]])
    """
    options, arrays = Options(clip=_checked_clip("lstm_cell", clip)), (w_ih, w_hh, b_ih, b_hh, w_hr, peephole)
    return _run_cell("lstm_cell", _lstm_form("lstm_cell", coupled), options, x, h, c, arrays, False)[:2]


def rnn(x: ArrayLike, state: ArrayLike | None, weights: Weights, *, nonlinearity: str = "tanh",
        lengths: ArrayLike | None = None, batch_first: bool = False, reverse: bool = False,
        gate_clip: float | None = None) -> tuple[Array, Array]:  # fmt: skip
    """A vanilla RNN over sequences, layer upon layer: rnn_cell at each step.

    Parameters
    ----------
    x
        [T, B, I], or [B, T, I] with batch_first.
    state
        h[layers * directions, B, H], or None for zeros.
    weights
        PyTorch's names: weight_ih_l0 [H, I], weight_hh_l0 [H, H], bias_ih_l0 and bias_hh_l0 [H] (both or none), then
        ..._l1 and so on; with
        ..._l0_reverse a second direction runs from the end, and the outputs of the two are concatenated.
    lengths
        [B] integers in 0..T: outputs beyond are zero, the final state of a sequence is that at its last step.
    reverse
        Weights of one direction run from the end of each sequence to its start, as the ..._reverse ones do.
    gate_clip
        Clips the argument of the nonlinearity to [-gate_clip, gate_clip], as ONNX's clip does; it must be positive.
        There is no gradient: rnn_forward does not have it.

    All arrays are of one dtype: float32, float64, bfloat16 or float16. 16-bit arrays are storage: the sums, gates and c
    (of an LSTM) are float32 within a call; h is rounded at each step, and the next step takes the rounded h. The c of
    an LSTM may be float32 beside 16-bit arrays: the final c is then float32 too, and a stream in several calls never
    rounds it.

    Returns y[T, B, directions * H] (or [B, T, ...]) and the final state, shaped like `state`.

    >>> w = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.ones((1, 1))}
    >>> y, h = rnn(np.ones((3, 1, 1)), None, w, nonlinearity="relu")
    >>> y[:, 0, 0]
    array([1., 2., 3.])
    """
    nonlinearity = _checked_nonlinearity("rnn", nonlinearity)
    options = Options(nonlinearity, reverse=check_flag("rnn", "reverse", reverse),
                      gate_clip=_checked_clip("rnn", gate_clip, "gate_clip"))  # fmt: skip
    return _run("rnn", "rnn", options, x, (state,), weights, lengths, batch_first, False)[:2]


def gru(x: ArrayLike, state: ArrayLike | None, weights: Weights, *, linear_before_reset: bool = True,
        lengths: ArrayLike | None = None, batch_first: bool = False, reverse: bool = False,
        gate_clip: float | None = None) -> tuple[Array, Array]:  # fmt: skip
    """A GRU over sequences, layer upon layer: gru_cell at each step.

    Arguments and result as for rnn, with 3 H rows of weights. gate_clip clips the arguments of both sigmoids and of
    the tanh.

    >>> w = {"weight_ih_l0": np.zeros((3, 1)), "weight_hh_l0": np.zeros((3, 1))}
    >>> y, h = gru(np.ones((2, 1, 1)), np.ones((1, 1, 1)), w)
    >>> y[:, 0, 0]
    array([0.5 , 0.25])
    """
    form = _gru_form("gru", linear_before_reset)
    options = Options(reverse=check_flag("gru", "reverse", reverse),
                      gate_clip=_checked_clip("gru", gate_clip, "gate_clip"))  # fmt: skip
    return _run("gru", form, options, x, (state,), weights, lengths, batch_first, False)[:2]


def lstm(x: ArrayLike, state: tuple[ArrayLike, ArrayLike] | None, weights: Weights, *,
         coupled: bool = False, clip: float | None = None, lengths: ArrayLike | None = None,
         batch_first: bool = False, reverse: bool = False,
         gate_clip: float | None = None) -> tuple[Array, tuple[Array, Array]]:  # fmt: skip
    """An LSTM over sequences, layer upon layer: lstm_cell at each step.

    Arguments as for rnn, with 4 H rows of weights; `state` and the final state are pairs (h, c). For each layer and
    direction weights may hold weight_hr_l0 [P, H], which projects h, and so y, to P units (weight_hh_l0 is [4 H, P]
    then), and weight_peephole_l0 [3, H] (rows i, f, o). coupled (3 H rows, i, g, o; peepholes i, o) and clip as for
    lstm_cell. gate_clip clips the arguments of the gates' sigmoids, peepholes included, and of the tanh of g; c is
    clipped by clip alone.

    >>> w = {"weight_ih_l0": np.zeros((4, 1)), "weight_hh_l0": np.zeros((4, 1))}
    >>> y, (h, c) = lstm(np.ones((2, 1, 1)), (np.zeros((1, 1, 1)), np.ones((1, 1, 1))), w)
    >>> c
    array([[[0.25]]])
    """
    if state is not None and (not isinstance(state, tuple | list) or len(state) != 2):
        raise ValueError(f"lstm: state must be a pair (h, c), got {type(state).__name__}")
    pair = (None, None) if state is None else tuple(state)
    options = Options(clip=_checked_clip("lstm", clip), reverse=check_flag("lstm", "reverse", reverse),
                      gate_clip=_checked_clip("lstm", gate_clip, "gate_clip"))  # fmt: skip
    y, h, c, _ = _run("lstm", _lstm_form("lstm", coupled), options, x, pair, weights, lengths, batch_first, False)
    return y, (h, c)


def _checked_nonlinearity(op: str, name: str) -> str:
    checked: str = check_choice(op, "nonlinearity", name, NONLINEARITIES)
    return checked


_SMALLEST_CLIP = 2.0**-149  # a smaller one is 0 in float32: none


def _checked_clip(op: str, clip: Any, name: str = "clip") -> float:
    """0 for none."""
    if clip is None:
        return 0.0
    number = check_number(op, name, clip)
    if not number > 0:
        raise ValueError(f"{op}: {name} must be positive, got {clip}")
    if number < _SMALLEST_CLIP:
        raise ValueError(f"{op}: {name} must be at least 2**-149, the smallest float32, got {clip}")
    return 0.0 if number == np.inf else number


def _run_cell(op: str, cell: str, options: Options, x: Any, h: Any, c: Any, arrays: tuple[Any, ...],
              save: bool) -> tuple[Array, Any, RecurrentSaved]:  # fmt: skip
    x = _core.checked_floats(x, op, "x", 2)
    own = dict(zip(_CELL_NAMES, arrays, strict=True))
    weights = _core.recurrent_weights(op, cell, [own], [_CELL_NAMES], 1, x.shape[1], x.dtype)
    states = []
    sizes = (weights.output_size, weights.hidden_size)
    for name, state, size in zip(("h", "c"), (h, c)[: 1 + weights.has_cell], sizes, strict=False):
        states.append(_core.checked_floats(state, op, name, 2))
        if states[-1].shape != (len(x), size):
            raise ValueError(f"{op}: {name} must have shape {(len(x), size)}, got {states[-1].shape}")
    h0, c0 = (*(state[None] for state in states), None)[:2]
    y = _core.new_array((1, len(x), weights.output_size), x.dtype, op)
    activations = [_core.new_saved(weights, 1, len(x), None, op)] if save else []
    after, c_after = _core.recurrent(
        op, weights, options, x[None], h0, c0, None, [y], None, activations if save else None, "h", "c"
    )
    saved = RecurrentSaved(op, options, False, x[None], h0, c0, weights, [_CELL_NAMES], None, [y], [], activations)
    return after[0], None if c_after is None else c_after[0], saved


_CELL_NAMES = {
    "weight_ih": "w_ih",
    "weight_hh": "w_hh",
    "bias_ih": "b_ih",
    "bias_hh": "b_hh",
    "weight_hr": "w_hr",
    "peephole": "peephole",
}
_WEIGHT_NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr|weight_peephole)_l([0-9]{1,18})(_reverse)?")


def _layers(op: str, weights: Mapping[str, Any], lstm: bool) -> tuple[int, int]:
    """Numbers of layers and directions that `weights` holds; every name is accounted for."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"{op}: weights must be a mapping from names to arrays, got {type(weights).__name__}")
    found: dict[str, re.Match[str]] = {}
    for name in weights:
        match = _WEIGHT_NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None or (match[1] in ("weight_hr", "weight_peephole") and not lstm):
            raise ValueError(f"{op}: weights must hold names such as weight_ih_l0, got {_core.shown(name)}")
        found[name] = match
    layers = 1 + max((int(match[2]) for match in found.values()), default=0)
    directions = 2 if any(match[3] for match in found.values()) else 1
    kinds = {match[1] for match in found.values()} | {"weight_ih", "weight_hh"}
    expected = (
        f"{kind}_l{layer}{suffix}"
        for layer in range(layers)
        for suffix in ("", "_reverse")[:directions]
        for kind in sorted(kinds)
    )
    missing = next((name for name in expected if name not in found), None)  # soon found, whatever number `layers` is
    if missing is not None:
        raise ValueError(f"{op}: weights must hold {missing!r} beside {', '.join(sorted(found)) or 'nothing'}")
    if ("bias_ih" in kinds) != ("bias_hh" in kinds):
        raise ValueError(f"{op}: weights must hold both biases or none, got {', '.join(sorted(found))}")
    return layers, directions


def _weights(
    op: str, cell: str, weights: Any, input_size: int, dtype: Any
) -> tuple[RecurrentWeights, list[dict[str, str]]]:
    """The weights of a call from a mapping or a handle, and their names for each layer and direction."""
    if isinstance(weights, RecurrentWeights):
        if weights.cell != cell:
            raise ValueError(f"{op}: weights must be packed for {cell}, got {_core.shown(weights)}")
        if dtype is not None and weights.dtype != dtype:
            raise TypeError(f"{op}: x must be {weights.dtype} like the packed weights, got {dtype}")
        return weights, []
    layers, directions = _layers(op, weights, cell.startswith("lstm"))
    lanes, labels = [], []
    for suffix in (f"_l{layer}{side}" for layer in range(layers) for side in ("", "_reverse")[:directions]):
        names = {kind: ("weight_peephole" if kind == "peephole" else kind) + suffix for kind in _CELL_NAMES}
        lanes.append({kind: weights.get(name) for kind, name in names.items()})
        labels.append(names)
    return _core.recurrent_weights(op, cell, lanes, labels, directions, input_size, dtype), labels


def _run(op: str, cell: str, options: Options, x: Any, state: tuple[Any, ...], weights: Any,
         lengths: ArrayLike | None, batch_first: bool,
         save: bool) -> tuple[Array, Any, Any, RecurrentSaved]:  # fmt: skip
    x = _core.checked_floats(x, op, "x", 3)
    if check_flag(op, "batch_first", batch_first):
        x = x.swapaxes(0, 1)
    steps, batch, inputs = x.shape
    stack, names = _weights(op, cell, weights, inputs, x.dtype)
    if options.reverse and stack.directions > 1:
        raise ValueError(f"{op}: reverse must be False with weights of two directions, got True")
    lengths = _core.checked_lengths(lengths, batch, steps, op, "lengths")
    width = stack.directions * stack.output_size
    ys = [_core.new_array((steps, batch, width), x.dtype, op) for _ in range(stack.layers - 1)]
    y = _core.new_array((batch, steps, width) if batch_first else (steps, batch, width), x.dtype, op)
    ys.append(y.swapaxes(0, 1) if batch_first else y)
    h0, c0 = (*state, None)[:2]
    c0 = None if c0 is None else _core.checked_floats(c0, op, "state[1]", 3)
    of_h = "state[0]" if stack.has_cell else "state"
    lanes = range(stack.layers * stack.directions) if save else ()
    activations = [_core.new_saved(stack, steps, batch, lengths, op) for _ in lanes]
    dropped = [_core.new_array((steps, batch, width), x.dtype, op) for _ in ys[:-1]] if options.dropout else []
    h, c = _core.recurrent(op, stack, options, x, h0, c0, lengths, ys, dropped, activations if save else None,
                           of_h)  # fmt: skip
    saved = RecurrentSaved(op, options, batch_first, x, h0, c0, stack, names, lengths, ys, dropped, activations)
    return y, h, c, saved


def pack_rnn(weights: Mapping[str, Any], *, dtype: Any = None) -> RecurrentWeights:
    """The weights of rnn (a mapping, see there) in the layout of the kernels, for many calls.

    dtype: that of the arrays by default. "bfloat16" and "int8" (rounded to nearest; one scale for each row of a matrix)
    take a half and a quarter of the memory, and make calls with few sequences faster, since these mostly read weights.
    Arithmetic, biases, x and results stay float32. The handle keeps the current instruction set.

    >>> pack_rnn({"weight_ih_l0": np.ones((1, 2)), "weight_hh_l0": np.ones((1, 1))}).hidden_size
    1
    """
    return _pack("pack_rnn", "rnn", weights, dtype)


def pack_gru(weights: Mapping[str, Any], *, linear_before_reset: bool = True, dtype: Any = None) -> RecurrentWeights:
    """The weights of gru in the layout of the kernels, as pack_rnn; linear_before_reset must be that of the calls.

    >>> pack_gru({"weight_ih_l0": np.ones((3, 2)), "weight_hh_l0": np.ones((3, 1))}).input_size
    2
    """
    return _pack("pack_gru", _gru_form("pack_gru", linear_before_reset), weights, dtype)


def pack_lstm(weights: Mapping[str, Any], *, coupled: bool = False, dtype: Any = None) -> RecurrentWeights:
    """The weights of lstm in the layout of the kernels, as pack_rnn; coupled must be that of the calls.

    >>> w = {"weight_ih_l0": np.ones((4, 2), np.float32), "weight_hh_l0": np.ones((4, 1), np.float32)}
    >>> pack_lstm(w, dtype="int8").weight_dtype
    'int8'
    """
    return _pack("pack_lstm", _lstm_form("pack_lstm", coupled), weights, dtype)


def _pack(op: str, cell: str, weights: Mapping[str, Any], dtype: Any) -> RecurrentWeights:
    if isinstance(weights, RecurrentWeights):
        raise TypeError(f"{op}: weights must be a mapping from names to arrays, got {_core.shown(weights)}")
    stack = _weights(op, cell, weights, -1, None)[0]
    own, plain = stack.dtype.name, _core.plain_text(dtype)
    try:
        name = own if plain is None else plain if isinstance(plain, str) else np.dtype(plain).name
    except Exception:  # NumPy looks for attributes, of any object
        name = None
    if name not in (own, "bfloat16", "int8"):
        raise TypeError(f"{op}: dtype must be {own} like the weights, bfloat16 or int8, got {_core.shown(dtype)}")
    if own not in (name, "float32"):
        raise TypeError(f"{op}: weights must be float32 to be packed as {name}, got {own}")
    if name == "int8":
        with _core.DefaultFloats():
            for key, value in weights.items():
                if (
                    key.startswith("weight_")
                    and value is not None
                    and not np.isfinite(_core.checked_array(value, op, key)).all()
                ):
                    raise ValueError(f"{op}: {key} must be finite to be packed as int8")
    return _core.pack_recurrent(op, stack, name)


def _gru_form(op: str, linear_before_reset: bool) -> str:
    return "gru" if check_flag(op, "linear_before_reset", linear_before_reset) else "gru_reset_before"


def _lstm_form(op: str, coupled: bool) -> str:
    return "lstm_coupled" if check_flag(op, "coupled", coupled) else "lstm"

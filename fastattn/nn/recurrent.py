"""Recurrent networks with PyTorch's parameter names: RNN, GRU, LSTM.

Packed weights are a copy of the parameters, and follow them. A caller that changes a parameter in place has it from
`parameters()`, of the module or of one that contains it. So that call sets a mark: the next call or step compares the
parameters with the packed ones, bit by bit, and packs them again if they differ. The mark stays as long as something
else refers to a parameter or a view of it (`sys.getrefcount`); after that, steps check nothing.
"""

import math
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

import fastattn.functional.recurrent as F
from fastattn import _core
from fastattn._core import RecurrentWeights
from fastattn.functional import recurrent_backward as B
from fastattn.functional._checks import check_flag
from fastattn.functional._types import Array
from fastattn.functional.recurrent import RecurrentSaved
from fastattn.nn._arguments import Rng, check_layers, check_rng, check_room, check_size
from fastattn.nn._errors import names_itself
from fastattn.nn.module import Module

_PAIRS = (tuple, list)
_LOW_BYTES = 2  # of an element of a 16-bit array


def _references(arrays: Iterable[Array]) -> int:
    """The most references to one of the values of a dict, counted as seen from here."""
    most = 0
    for array in arrays:
        most = max(most, sys.getrefcount(array))
    return most


_OWN_REFERENCES = _references({"": np.empty(0)}.values())  # to an array that only a dict holds


class _Packed(NamedTuple):
    """Packed weights, and the parameters they were made of where others may change those."""

    weights: RecurrentWeights
    of: dict[str, Array] | None


class _Recurrent(Module):
    """What the three have in common; `_cell` names the functions that compute."""

    _cell: str
    _gates: int
    _dtypes = ("float32", "float64", "bfloat16", "float16")
    _nonlinearity = "tanh"
    _clip = 0.0
    _kept: _Packed | None  # the last packed weights
    _current: RecurrentWeights | None  # the same, if they need no comparison
    _mark: object  # of the last call of parameters()

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, bias: bool, batch_first: bool,
                 bidirectional: bool, dropout: float, dtype: DTypeLike, rng: Rng, proj_size: int = 0,
                 peephole: bool = False) -> None:  # fmt: skip
        super().__init__(dtype)
        kind = type(self).__name__
        self.input_size = check_size(kind, "input_size", input_size, 1)
        self.hidden_size = check_size(kind, "hidden_size", hidden_size, 1)
        self.num_layers = check_layers(kind, num_layers, least=1)
        self.proj_size = check_size(kind, "proj_size", proj_size)
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"{kind}: proj_size must be an integer of 0..hidden_size - 1, got {_core.shown(proj_size)}"
            )
        self.batch_first = check_flag(kind, "batch_first", batch_first)
        self.bidirectional = check_flag(kind, "bidirectional", bidirectional)
        self.dropout, _ = B._checked_dropout(kind, dropout, 0)
        self._output = self.proj_size or self.hidden_size
        self._step_name = f"{kind}.step"
        self._pack_type: Any = None
        self._drop_packed()
        bias, peephole = check_flag(kind, "bias", bias), check_flag(kind, "peephole", peephole)
        rng, bound = check_rng(kind, rng), 1 / math.sqrt(self.hidden_size)
        self._check_room()
        sides = ("", "_reverse")[: 1 + self.bidirectional]
        suffixes = [f"_l{layer}{side}" for layer in range(self.num_layers) for side in sides]
        for i, suffix in enumerate(suffixes):
            for name, shape in self._shapes(i < len(sides), bias).items():
                self._uniform(name + suffix, shape, bound, rng)
        for suffix in suffixes if peephole else ():
            self._uniform("weight_peephole" + suffix, (self._gates - 1, self.hidden_size), bound, rng)

    def _shapes(self, first: bool, bias: bool) -> dict[str, tuple[int, ...]]:
        """Of the parameters of one direction of the first layer, or of a later one."""
        rows, below = self._gates * self.hidden_size, self._output * (1 + self.bidirectional)
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, self.input_size if first else below), "weight_hh": (rows, self._output)
        }  # fmt: skip
        if bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        return shapes

    def _check_room(self) -> None:
        layers = [1, self.num_layers - 1]
        elements = sum(
            count * (1 + self.bidirectional) * sum(map(math.prod, self._shapes(first, False).values()))
            for count, first in zip(layers, (True, False), strict=True)
        )
        check_room(type(self).__name__, elements, self.dtype.itemsize, input_size=self.input_size,
                   hidden_size=self.hidden_size, num_layers=self.num_layers)  # fmt: skip

    def _options(self) -> dict[str, Any]:
        """What calls and packing take beside the weights."""
        return {}

    def __call__(self, x: ArrayLike, state: Any = None, lengths: ArrayLike | None = None) -> Any:
        """(y, final state) of x, from a state (None: zeros), as the function of the same name."""
        return getattr(F, self._cell)(
            self._input(x), state, self._weights(), lengths=lengths, batch_first=self.batch_first, **self._options()
        )

    def forward(self, x: ArrayLike, state: Any = None, lengths: ArrayLike | None = None, *,
                seed: int | None = None) -> tuple[Any, RecurrentSaved]:  # fmt: skip
        """The result of the call from the current parameters, and the values for backward.

        A module with dropout (of the output of each layer but the last, between 0 and 1) needs a seed here: an integer
        in 0..2^64 - 1, a new one for each batch; the same seed drops the same elements. `saved` has the
        seed. Calls and steps drop nothing, as torch's modules in eval mode.
        """
        function = getattr(B, self._cell + "_forward")
        result, saved = function(
            self._input(x), state, self._own, lengths=lengths, batch_first=self.batch_first, dropout=self.dropout,
            seed=seed, **self._options(),
        )  # fmt: skip
        return result, saved

    def _input(self, x: ArrayLike) -> Array:
        """x, which is wrong where it does not fit the parameters."""
        kind = type(self).__name__
        array: Array = _core.checked_floats(x, kind, "x", 3)
        if array.dtype != self.dtype:
            raise TypeError(f"{kind}: x must be {self.dtype} like the parameters, got {array.dtype}")
        if array.shape[2] != self.input_size:
            raise ValueError(f"{kind}: x must have a last axis of input_size, {self.input_size}, got {array.shape}")
        return array

    def backward(self, grads: Any, saved: RecurrentSaved) -> tuple[Array, Any, dict[str, Array]]:
        """dx, the gradient of the initial state, and the gradients of the parameters by name.

        grads is dy, or a pair of dy and the gradient of the final state, each of which may be None.
        """
        dx, dstate, dweights = getattr(B, self._cell + "_backward")(grads, saved)
        return dx, dstate, dweights

    def pack(self, dtype: Any = None) -> RecurrentWeights:
        """Packs the weights for the calls and steps that follow, as pack_rnn: also as "bfloat16" or "int8".

        They follow the parameters: after load_state_dict or a change in place, the next call or step packs them again,
        in the same type. The returned handle does not change.
        """
        self._pack_type = self._pack(self._own, dtype).weight_dtype
        self._drop_packed()
        return self._up_to_date()

    def unpack(self) -> None:
        """Calls use the parameters unpacked again; steps pack them in the type of the module."""
        self._pack_type = None
        self._drop_packed()

    @names_itself
    def parameters(self) -> dict[str, Array]:
        """The parameters by name: the arrays themselves, which may be changed in place at any time. Steps are fastest
        while nothing refers to them; otherwise each step compares them with the packed weights."""
        self._mark = object()
        self._current = None
        return super().parameters()

    def _weights(self) -> Any:
        """What a call computes with: packed weights that are up to date, or where none are wanted the parameters."""
        if self._current is not None and self._current.is_current:
            return self._current
        return self._own if self._pack_type is None else self._up_to_date()

    def _up_to_date(self) -> RecurrentWeights:
        """Packed weights with the values of the parameters, for the instruction set in force.

        Threads may be here at the same time: each gets weights that are right.
        """
        mark, kept, kind = self._mark, self._kept, self._pack_type
        shared = _references(self._own.values()) > _OWN_REFERENCES
        if (
            kept is None
            or kept.of is None
            or not kept.weights.is_current
            or not _same_bits(self._own, kept.of)
            or (kept.weights.weight_dtype != (kind or self.dtype.name))
        ):
            # Packed from a copy where the next comparison needs one.
            copies = shared or kept is not None
            values = {name: value.copy() for name, value in self._own.items()} if copies else self._own
            kept = _Packed(self._pack(values, kind), values if copies else None)
            self._kept = kept
        if not shared:
            self._current = kept.weights
            if self._mark is not mark:  # parameters(), pack() or unpack() was called meanwhile
                self._current = None
        return kept.weights

    def _pack(self, values: dict[str, Array], dtype: Any) -> RecurrentWeights:
        packed: RecurrentWeights = getattr(F, "pack_" + self._cell)(values, dtype=dtype, **self._pack_options())
        return packed

    def _drop_packed(self) -> None:
        self._mark = object()
        self._kept = self._current = None

    def _pack_options(self) -> dict[str, Any]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weights: a copy packs its own."""
        return {name: value for name, value in vars(self).items() if name not in ("_kept", "_current", "_mark")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._drop_packed()

    @names_itself
    def step(self, x: ArrayLike, state: Any = None, *, out: Any = None) -> tuple[Array, Any]:
        """One step of x[B, I]: (y[B, H], state), for streams; one direction only.

        The state is h[num_layers, B, H], for LSTM a pair (h, c); None for zeros. `out`, shaped like the state, takes
        the new one, and may be the old one: then nothing is allocated. y is the last layer of the new h, not a copy.
        In 16-bit modules c is float32, as within a call, so that a long stream loses no digits (a c of the module's
        dtype is possible too, as a state and in `out`: it is rounded at each step). The first step packs the weights
        (see pack).
        """
        packed = self._current
        if packed is None:
            packed = self._up_to_date()
        if state is None or out is None:
            batch = len(_core.checked_floats(x, self._step_name, "x", 2))
            state = self._new_state(batch, 0) if state is None else state
            out = self._new_state(batch) if out is None else out
        if self._cell != "lstm":
            done = _core.recurrent_step(self._step_name, packed, self._nonlinearity, 0.0, x, state, None, out, None)
            return (out[-1], out) if done else self._step_again(x, state, out)
        h, c = self._pair("state", state)
        h_out, c_out = self._pair("out", out)
        done = _core.recurrent_step(self._step_name, packed, "tanh", self._clip, x, h, c, h_out, c_out)
        return (h_out[-1], out) if done else self._step_again(x, state, out)

    def _step_again(self, x: ArrayLike, state: Any, out: Any) -> tuple[Array, Any]:
        """With weights packed for the instruction set that is in force now."""
        self._current = None
        return self.step(x, state, out=out)

    def _new_state(self, batch: int, value: int | None = None) -> Any:
        """A state of this value, or with any values."""
        is_lstm, low = self._cell == "lstm", self.dtype.itemsize == _LOW_BYTES
        kinds = ((self._output, self.dtype), (self.hidden_size, np.dtype(np.float32) if low else self.dtype))
        state = tuple(
            _core.new_array((self.num_layers, batch, size), kind, self._step_name)
            for size, kind in kinds[: 1 + is_lstm]
        )
        for part in state if value is not None else ():
            part[...] = value
        return state if is_lstm else state[0]

    def _pair(self, label: str, value: Any) -> Any:
        if not isinstance(value, _PAIRS) or len(value) != 2 or value[0] is None or value[1] is None:
            raise ValueError(f"{self._step_name}: {label} must be a pair (h, c), got {type(value).__name__}")
        return value


def _same_bits(arrays: dict[str, Array], others: dict[str, Array]) -> bool:
    return all(np.array_equal(_bits(value), _bits(others[name])) for name, value in arrays.items())


def _bits(array: Array) -> Array:
    bits: Array = array.view(f"u{array.itemsize}")
    return bits


class RNN(_Recurrent):
    """fastattn.rnn with parameters weight_ih_l0, ... as torch.nn.RNN: y, h = m(x, h0, lengths).

    >>> m = RNN(3, 4, rng=np.random.default_rng(0))
    >>> y, h = m(np.zeros((5, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((5, 2, 4), (1, 2, 4))
    """

    _cell, _gates = "rnn", 1

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, nonlinearity: str = "tanh",
                 bias: bool = True, batch_first: bool = False, bidirectional: bool = False, dropout: float = 0.0,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        self.nonlinearity = nonlinearity
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dropout, dtype, rng)

    @property
    def nonlinearity(self) -> str:
        """ "tanh", "relu" or "sigmoid"."""
        return self._nonlinearity

    @nonlinearity.setter
    def nonlinearity(self, value: str) -> None:
        self._nonlinearity = F._checked_nonlinearity("RNN", value)

    def _options(self) -> dict[str, Any]:
        return {"nonlinearity": self.nonlinearity}


class GRU(_Recurrent):
    """fastattn.gru with parameters as torch.nn.GRU: y, h = m(x, h0, lengths). linear_before_reset=False: the form of
    Cho et al. 2014.

    >>> m = GRU(3, 4, 2, bidirectional=True, rng=np.random.default_rng(0))
    >>> y, h = m(np.zeros((5, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((5, 2, 8), (4, 2, 4))
    """

    _cell, _gates = "gru", 3

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, linear_before_reset: bool = True,
                 bias: bool = True, batch_first: bool = False, bidirectional: bool = False, dropout: float = 0.0,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        self.linear_before_reset = linear_before_reset
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dropout, dtype, rng)

    @property
    def linear_before_reset(self) -> bool:
        """Whether the reset gate applies to U h, as in PyTorch."""
        return self._linear_before_reset

    @linear_before_reset.setter
    def linear_before_reset(self, value: bool) -> None:
        self._linear_before_reset = check_flag("GRU", "linear_before_reset", value)
        self._drop_packed()

    def _options(self) -> dict[str, Any]:
        return {"linear_before_reset": self.linear_before_reset}

    def _pack_options(self) -> dict[str, Any]:
        return self._options()


class LSTM(_Recurrent):
    """fastattn.lstm with parameters as torch.nn.LSTM: y, (h, c) = m(x, (h0, c0), lengths). peephole=True adds
    weight_peephole_l0 [3, H] (rows i, f, o), and so on; proj_size=P weight_hr_l0 [P, H], as there; coupled and clip
    as for lstm_cell.

    >>> m = LSTM(3, 4, rng=np.random.default_rng(0))
    >>> state = None
    >>> for x in np.zeros((5, 2, 3), np.float32):
    ...     y, state = m.step(x, state, out=state)
    >>> y.shape
    (2, 4)
    """

    _cell, _gates = "lstm", 4

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, bias: bool = True,
                 batch_first: bool = False, bidirectional: bool = False, dropout: float = 0.0, proj_size: int = 0,
                 peephole: bool = False, coupled: bool = False, clip: float | None = None,
                 dtype: DTypeLike = np.float32, rng: Rng = None) -> None:  # fmt: skip
        self.clip = clip
        self._coupled = check_flag("LSTM", "coupled", coupled)
        self._gates = 3 if self.coupled else 4
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dropout, dtype, rng,
                         proj_size, peephole)  # fmt: skip

    @property
    def coupled(self) -> bool:
        """Whether the forget gate is 1 - sigmoid(i)."""
        return self._coupled

    @property
    def clip(self) -> float | None:
        """What c is kept within; None: anything."""
        return self._clip or None

    @clip.setter
    def clip(self, value: float | None) -> None:
        self._clip = F._checked_clip("LSTM", value)

    def _options(self) -> dict[str, Any]:
        return {"coupled": self.coupled, "clip": self.clip}

    def _pack_options(self) -> dict[str, Any]:
        return {"coupled": self.coupled}

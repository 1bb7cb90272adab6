"""Recurrent networks with PyTorch's parameter names: RNN, GRU, LSTM."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

import fastattn.functional.recurrent as F
from fastattn import _core
from fastattn._core import RecurrentWeights
from fastattn.functional import recurrent_backward as B
from fastattn.functional._types import Array
from fastattn.functional.recurrent import RecurrentSaved
from fastattn.nn.layers import Rng
from fastattn.nn.module import Module

_PAIRS = (tuple, list)


class _Recurrent(Module):
    """What the three have in common; `_cell` names the functions that compute."""

    _cell: str
    _gates: int
    _dtypes = ("float32", "float64", "bfloat16", "float16")
    nonlinearity = "tanh"
    _clip = 0.0

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, bias: bool, batch_first: bool,
                 bidirectional: bool, dropout: float, dtype: DTypeLike, rng: Rng,
                 proj_size: int = 0) -> None:  # fmt: skip
        super().__init__(dtype)
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be an integer of at least 1, got {value!r}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        if not isinstance(proj_size, int) or not 0 <= proj_size < hidden_size:
            raise ValueError(
                f"{type(self).__name__}: proj_size must be an integer of 0..hidden_size - 1, got {proj_size!r}"
            )
        self.batch_first, self.bidirectional, self.proj_size = batch_first, bidirectional, proj_size
        self.dropout, _ = B._checked_dropout(type(self).__name__, dropout, 0)
        self._output = proj_size or hidden_size
        self._packed: RecurrentWeights | None = None
        self._step_name = f"{type(self).__name__}.step"
        rng = rng or np.random.default_rng()
        rows, bound, sides = (
            self._gates * hidden_size,
            1 / math.sqrt(hidden_size),
            ("", "_reverse")[: 1 + bidirectional],
        )
        for layer in range(num_layers):
            columns = input_size if layer == 0 else len(sides) * self._output
            for suffix in (f"_l{layer}{side}" for side in sides):
                shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, columns), "weight_hh": (rows, self._output)}
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                if proj_size:
                    shapes["weight_hr"] = (proj_size, hidden_size)
                for name, shape in shapes.items():
                    self._uniform(name + suffix, shape, bound, rng)

    def _options(self) -> dict[str, Any]:
        """What calls and packing take beside the weights."""
        return {}

    def __call__(self, x: ArrayLike, state: Any = None, lengths: ArrayLike | None = None) -> Any:
        weights = self._own if self._packed is None else self._packed
        return getattr(F, self._cell)(
            x, state, weights, lengths=lengths, batch_first=self.batch_first, **self._options()
        )

    def forward(self, x: ArrayLike, state: Any = None, lengths: ArrayLike | None = None, *,
                seed: int | None = None) -> tuple[Any, RecurrentSaved]:  # fmt: skip
        """The result of the call from the parameters as they are, and what backward needs.

        A module with dropout (of the output of each layer but the last, between 0 and 1) needs a seed here: an integer
        in 0..2^64 - 1, a new one for each batch; the same seed drops the same elements. backward knows what was
        dropped. Calls and steps drop nothing, as torch's modules in eval mode.
        """
        function = getattr(B, self._cell + "_forward")
        result, saved = function(
            x, state, self._own, lengths=lengths, batch_first=self.batch_first, dropout=self.dropout, seed=seed,
            **self._options(),
        )  # fmt: skip
        return result, saved

    def backward(self, grads: Any, saved: RecurrentSaved) -> tuple[Array, Any, dict[str, Array]]:
        """dx, the gradient of the initial state, and the gradients of the parameters by name.

        grads is dy, or a pair of dy and the gradient of the final state, each of which may be None.
        """
        dx, dstate, dweights = getattr(B, self._cell + "_backward")(grads, saved)
        return dx, dstate, dweights

    def pack(self, dtype: Any = None) -> RecurrentWeights:
        """Packs the weights for the calls and steps that follow, as pack_rnn: also as "bfloat16" or "int8".

        Parameters that are changed in place afterwards count again after the next pack() or unpack().
        """
        self._packed = getattr(F, "pack_" + self._cell)(self._own, dtype=dtype, **self._pack_options())
        return self._packed

    def _pack_options(self) -> dict[str, Any]:
        return {}

    def unpack(self) -> None:
        """Calls use the parameters as they are again."""
        self._packed = None

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        super().load_state_dict(mapping)
        self._packed = None

    def step(self, x: Array, state: Any = None, *, out: Any = None) -> tuple[Array, Any]:
        """One step of x[B, I]: (y[B, H], state), for streams; one direction only.

        The state is h[num_layers, B, H], for LSTM a pair (h, c); None for zeros. `out`, shaped like the state, takes
        the new one, and may be the old one: then nothing is allocated. y is the last layer of the new h, not a copy.
        The first step packs the weights (see pack).
        """
        packed = self._packed or self.pack()
        if state is None:
            state = self._zero_state(len(x))
        if self._cell != "lstm":
            if out is None:
                out = np.empty_like(state)
            _core.recurrent_step(self._step_name, packed, self.nonlinearity, 0.0, x, state, None, out, None)
            return out[-1], out
        h, c = self._pair("state", state)
        if out is None:
            out = np.empty_like(h), np.empty_like(c)
        h_out, c_out = self._pair("out", out)
        _core.recurrent_step(self._step_name, packed, "tanh", self._clip, x, h, c, h_out, c_out)
        return h_out[-1], out

    def _zero_state(self, batch: int) -> Any:
        h, c = (np.zeros((self.num_layers, batch, size), self.dtype) for size in (self._output, self.hidden_size))
        return (h, c) if self._cell == "lstm" else h

    def _pair(self, label: str, value: Any) -> Any:
        if not isinstance(value, _PAIRS) or len(value) != 2:
            raise ValueError(f"{self._step_name}: {label} must be a pair (h, c), got {type(value).__name__}")
        return value


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
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dropout, dtype, rng)
        F._check_nonlinearity("RNN", nonlinearity)
        self.nonlinearity = nonlinearity

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
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dropout, dtype, rng)
        self.linear_before_reset = linear_before_reset

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
        self._gates = 3 if coupled else 4
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dropout, dtype, rng,
                         proj_size)  # fmt: skip
        self.coupled, self.clip, self._clip = coupled, clip, F._checked_clip("LSTM", clip)
        if not peephole:
            return
        rng = rng or np.random.default_rng()
        for suffix in [name.removeprefix("weight_hh") for name in self._own if name.startswith("weight_hh")]:
            self._uniform("weight_peephole" + suffix, (self._gates - 1, hidden_size), 1 / math.sqrt(hidden_size), rng)

    def _options(self) -> dict[str, Any]:
        return {"coupled": self.coupled, "clip": self.clip}

    def _pack_options(self) -> dict[str, Any]:
        return {"coupled": self.coupled}

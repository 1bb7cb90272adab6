"""Recurrent networks on tensors, with gradients: weights by torch's names, or in the order of torch's modules."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastattn as fa
from fastattn.functional import recurrent as forward
from fastattn.functional import recurrent_backward as backward
from fastattn.torch.arrays import array, check_tensors, is_direct, needs_gradient, optional, tensor
from fastattn.torch.library import autocast, call, define, differentiate, empty, first_derivative, real

ROWS = {"rnn": 1, "gru": 3, "lstm": 4}  # of weights, in hidden sizes


class Form(NamedTuple):
    """What a network is beside its arrays."""

    cell: str  # "rnn", "gru" or "lstm"
    nonlinearity: str  # of an RNN
    layers: int
    directions: int
    biases: bool
    projection: bool
    batch_first: bool
    dropout: float
    seed: int

    @property
    def names(self) -> list[str]:
        """Of the weights, in the order of torch's modules."""
        kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if self.biases else [])]
        kinds += ["weight_hr"] if self.projection else []
        sides = ("", "_reverse")[: self.directions]
        return [f"{kind}_l{layer}{side}" for layer in range(self.layers) for side in sides for kind in kinds]

    @property
    def options(self) -> forward.Options:
        return forward.Options(self.nonlinearity, 0.0, self.dropout, self.seed)

    def state(self, h: Any, c: Any) -> tuple[Any, ...]:
        return (h, c) if self.cell == "lstm" else (h,)


def rnn(x: Tensor, state: Tensor | None, weights: Mapping[str, Tensor], *, nonlinearity: str = "tanh",
        lengths: Tensor | None = None, batch_first: bool = False, dropout: float = 0.0,
        seed: int = 0) -> tuple[Tensor, Tensor]:  # fmt: skip
    """fastattn.rnn on tensors, with gradients of x, state and weights; dropout and seed as of rnn_forward."""
    form, flat = _form("rnn", weights, batch_first, dropout, seed, nonlinearity)
    y, h, _ = run("rnn", form, x, state, None, flat, lengths)
    return y, h


def gru(x: Tensor, state: Tensor | None, weights: Mapping[str, Tensor], *, lengths: Tensor | None = None,
        batch_first: bool = False, dropout: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:  # fmt: skip
    """fastattn.gru on tensors, in torch's form, with gradients of x, state and weights."""
    form, flat = _form("gru", weights, batch_first, dropout, seed)
    y, h, _ = run("gru", form, x, state, None, flat, lengths)
    return y, h


def lstm(x: Tensor, state: tuple[Tensor, Tensor] | None, weights: Mapping[str, Tensor], *,
         lengths: Tensor | None = None, batch_first: bool = False, dropout: float = 0.0,
         seed: int = 0) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """fastattn.lstm on tensors, with gradients of x, state and weights (projections too; no peepholes)."""
    if state is not None and (not isinstance(state, tuple | list) or len(state) != 2):
        raise ValueError(f"lstm: state must be a pair (h, c), got {type(state).__name__}")
    form, flat = _form("lstm", weights, batch_first, dropout, seed)
    h, c = (None, None) if state is None else state
    y, h, c = run("lstm", form, x, h, c, flat, lengths)
    assert c is not None
    return y, (h, c)


def _form(op: str, weights: Mapping[str, Tensor], batch_first: bool, dropout: float, seed: int,
          nonlinearity: str = "tanh") -> tuple[Form, list[Tensor]]:  # fmt: skip
    """The form that the names of the weights say, and the weights in torch's order."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"{op}: weights must be a mapping from names to tensors, got {type(weights).__name__}")
    given = {name: weight for name, weight in weights.items() if weight is not None}
    layers = 0
    while f"weight_ih_l{layers}" in given:
        layers += 1
    form = Form(op, nonlinearity, layers, 1 + ("weight_ih_l0_reverse" in given), "bias_ih_l0" in given,
                "weight_hr_l0" in given, batch_first, float(dropout), int(seed))  # fmt: skip
    names = form.names or ["weight_ih_l0"]
    for name in names:
        if name not in given:
            raise ValueError(f"{op}: weights must hold {name!r}, got {', '.join(given) or 'nothing'}")
    for name in given:
        if name not in names:
            raise ValueError(f"{op}: weights must not hold {name!r} beside {', '.join(names)}")
    return form, [given[name] for name in names]


def run(op: str, form: Form, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor],
        lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """y, h and c of a network whose weights come in torch's order."""
    save = needs_gradient(x, h, c, *weights)
    if is_direct(x):
        if save:
            return _Recurrent.apply(form, x, h, c, lengths, *weights)
        return run_packed(op, form, x, h, c, _arrays(op, form, weights), lengths)
    check_tensors(op, x=x, h=h, c=c, lengths=lengths, **dict(zip(form.names, weights, strict=True)))
    y, last, cell, _ = call("recurrent", x, h, c, list(weights), lengths, *form, save)
    return y, last, cell if form.cell == "lstm" else None


def _arrays(op: str, form: Form, weights: Sequence[Tensor]) -> dict[str, Any]:
    return {name: array(weight, op, name) for name, weight in zip(form.names, weights, strict=True)}


def _computed(op: str, form: Form, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Any,
              lengths: Tensor | None, save: bool) -> tuple[Any, ...]:  # fmt: skip
    """y, h, c and what backward needs."""
    label = f"{form.cell}_forward" if save else op
    states = form.state(array(h, op, "state"), array(c, op, "state"))
    given = array(x, op, "x"), states, weights, array(lengths, op, "lengths")
    return forward._run(label, form.cell, form.options, *given, form.batch_first, save)


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: Form, x: Tensor, h: Tensor | None, c: Tensor | None, lengths: Tensor | None,
                *weights: Tensor) -> tuple[Tensor | None, ...]:  # fmt: skip
        arrays = _arrays(form.cell, form, weights)
        y, last, cell, ctx.saved = _computed(form.cell, form, x, h, c, arrays, lengths, True)
        result = tensor(y)
        ctx.form = form
        ctx.save_for_backward(x, h, c, result, *weights)  # their versions tell whether they were changed
        ctx.set_materialize_grads(False)
        return result, tensor(last), optional(cell)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh: Tensor | None, dc: Tensor | None = None) -> tuple[Any, ...]:
        _, h, c, *_ = made_of = ctx.saved_tensors
        dx, dstate, dweights = _gradients(ctx.form, dy, dh, dc, ctx.saved)
        dc0 = tensor(dstate[1]) if c is not None else None
        found = tensor(dx), tensor(dstate[0]) if h is not None else None, dc0
        named = (tensor(dweights[name]) for name in ctx.form.names)
        dx, dh, dc, *rest = first_derivative(ctx.form.cell, (*found, *named), dy, dh, dc, *made_of)
        return None, dx, dh, dc, None, *rest


def _gradients(form: Form, dy: Tensor | None, dh: Tensor | None, dc: Tensor | None,
               saved: forward.RecurrentSaved) -> tuple[Any, ...]:  # fmt: skip
    op = f"{form.cell}_backward"
    given = array(dy, op, "dy"), array(dh, op, "dh"), array(dc, op, "dc")
    return backward._sequence_backward(form.cell, *given, saved)


# ---- the registered operation ----

_FORM = (
    "str cell, str nonlinearity, int layers, int directions, bool biases, bool projection, bool batch_first,"
    " float dropout, SymInt seed"
)
_GIVEN = "Tensor x, Tensor? h, Tensor? c, Tensor[] weights, Tensor? lengths"
_FIELDS = len(Form._fields)


def _kernel(x: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor], lengths: Tensor | None,
            *rest: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    form, save = Form(*rest[:_FIELDS]), rest[_FIELDS]
    arrays = _arrays(form.cell, form, weights)
    y, last, cell, saved = _computed(form.cell, form, x, h, c, arrays, lengths, save)
    parts = (*saved.ys[:-1], *saved.dropped, *(a for a in saved.activations if a is not None)) if save else ()
    return tensor(y), tensor(last), empty(x) if cell is None else tensor(cell), [tensor(part) for part in parts]


def _fake(x: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor], lengths: Tensor | None,
          *rest: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    form, save = Form(*rest[:_FIELDS]), rest[_FIELDS]
    steps, batch = (x.shape[1], x.shape[0]) if form.batch_first else x.shape[:2]
    lanes, width = form.layers * form.directions, form.directions * weights[1].shape[1]
    units = weights[1].shape[0] // ROWS[form.cell]
    y = x.new_empty((batch, steps, width) if form.batch_first else (steps, batch, width))
    parts = []
    if save:
        between = (form.layers - 1) * (2 if form.dropout else 1)
        parts = [x.new_empty(steps, batch, width) for _ in range(between)]
        kinds = _kinds(form, x.dtype)
        parts += [x.new_empty(steps, batch, kinds, units, dtype=real(x.dtype)) for _ in range(lanes if kinds else 0)]
    cell = x.new_empty(lanes, batch, units, dtype=x.dtype if c is None else c.dtype)
    return y, x.new_empty(lanes, batch, weights[1].shape[1]), cell if form.cell == "lstm" else empty(x), parts


def _kinds(form: Form, dtype: torch.dtype) -> int:
    """Numbers that are kept of each step and unit (functional/recurrent_backward.py)."""
    if form.cell == "rnn":
        return int(dtype in (torch.bfloat16, torch.float16))
    return {"gru": 4, "lstm": 5}[form.cell] + form.projection


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x, h, c, weights, lengths, *rest = inputs
    y, _, cell, parts = output
    ctx.form = Form(*rest[:_FIELDS])
    ctx.save_for_backward(x, h, c, lengths, y, *weights, *parts)
    ctx.mark_non_differentiable(*parts, *(() if ctx.form.cell == "lstm" else (cell,)))


def _backward(ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor, _: Any) -> tuple[Any, ...]:
    x, h, c, lengths, y, *rest = ctx.saved_tensors
    count = len(ctx.form.names)
    of_cell = dc if ctx.form.cell == "lstm" else None
    dx, dh0, dc0, dweights = call(
        "recurrent_backward", dy, dh, of_cell, y, rest[count:], x, h, c, rest[:count], lengths, *ctx.form
    )
    return (dx, None if h is None else dh0, None if c is None else dc0, dweights, *(None,) * (_FIELDS + 2))


def _backward_kernel(dy: Tensor, dh: Tensor, dc: Tensor | None, y: Tensor, parts: list[Tensor], x: Tensor,
                     h: Tensor | None, c: Tensor | None, weights: list[Tensor], lengths: Tensor | None,
                     *rest: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    form, op = Form(*rest), f"{rest[0]}_backward"

    def steps_first(values: Any) -> Any:
        return values.swapaxes(0, 1) if form.batch_first else values

    given: Any = steps_first(array(x, op, "x"))
    stack, names = forward._weights(op, form.cell, _arrays(op, form, weights), given.shape[2], given.dtype)
    kept: list[Any] = [array(part, op, "saved") for part in parts]
    between = form.layers - 1
    dropped = between if form.dropout else 0
    activations = kept[between + dropped :] or [None] * (form.layers * form.directions)
    saved = forward.RecurrentSaved(
        f"{form.cell}_forward", form.options, form.batch_first, given, array(h, op, "state"), array(c, op, "state"),
        stack, names, array(lengths, op, "lengths"), [*kept[:between], steps_first(array(y, op, "y"))],
        kept[between : between + dropped], activations,
    )  # fmt: skip
    dx, dstate, dweights = _gradients(form, dy, dh, dc, saved)
    dc0 = tensor(dstate[1]) if len(dstate) > 1 else empty(x)
    return tensor(dx).contiguous(), tensor(dstate[0]), dc0, [tensor(dweights[name]) for name in form.names]


def _backward_fake(dy: Tensor, dh: Tensor, dc: Any, y: Tensor, parts: Any, x: Tensor, h: Any, c: Tensor | None,
                   weights: list[Tensor], lengths: Any,
                   *rest: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    form = Form(*rest)
    dc0 = empty(x) if dc is None else dc.new_empty(dc.shape)
    return x.new_empty(x.shape), dh.new_empty(dh.shape), dc0, [w.new_empty(w.shape) for w in weights[: len(form.names)]]


define(f"recurrent({_GIVEN}, {_FORM}, bool save) -> (Tensor, Tensor, Tensor, Tensor[])", _kernel, _fake)
define(
    f"recurrent_backward(Tensor dy, Tensor dh, Tensor? dc, Tensor y, Tensor[] parts, {_GIVEN}, {_FORM})"
    " -> (Tensor, Tensor, Tensor, Tensor[])",
    _backward_kernel,
    _backward_fake,
)
differentiate("recurrent", _setup, _backward)
autocast("recurrent")


def packed(op: str, form: Form, weights: Sequence[Tensor]) -> Any:
    """The weights in the layout of the kernels, for calls without gradients."""
    pack = {"rnn": fa.pack_rnn, "gru": fa.pack_gru, "lstm": fa.pack_lstm}[form.cell]
    return pack(_arrays(op, form, weights))


def run_packed(op: str, form: Form, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Any,
               lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """`run` without gradients, with weights that are packed or a mapping of arrays."""
    y, last, cell = _computed(op, form, x, h, c, weights, lengths, False)[:3]
    return tensor(y), tensor(last), optional(cell)

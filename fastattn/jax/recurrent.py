"""Recurrent networks on JAX's arrays."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import fastattn as fa
from fastattn.functional import recurrent, recurrent_backward
from fastattn.jax.operation import Arrays, Operation, known, seed_of, seed_words


class _Options(NamedTuple):
    cell: str  # "rnn", "gru" or "lstm"
    keywords: tuple[tuple[str, Any], ...]
    batch_first: bool
    dropout: float
    weights: tuple[str, ...]  # their names


def rnn(x: Any, state: Any, weights: Mapping[str, Any], *, nonlinearity: str = "tanh", lengths: Any = None,
        batch_first: bool = False, dropout: float = 0.0, seed: Any = 0) -> tuple[Any, Any]:  # fmt: skip
    """fastattn.rnn on JAX's arrays, with gradients of x, state and weights: (y, h).

    dropout as of rnn_forward; its seed may be a tracer: an integer, in 0..2^64 - 1 where it is not.

    >>> import jax.numpy as jnp
    >>> w = {"weight_ih_l0": jnp.ones((1, 1)), "weight_hh_l0": jnp.ones((1, 1))}
    >>> rnn(jnp.ones((3, 1, 1)), None, w, nonlinearity="relu")[0][:, 0, 0].tolist()
    [1.0, 2.0, 3.0]
    """
    keywords = {"nonlinearity": nonlinearity}
    y, h, _ = _run("rnn", x, (state, None), weights, lengths, batch_first, dropout, seed, keywords)
    return y, h


def gru(x: Any, state: Any, weights: Mapping[str, Any], *, linear_before_reset: bool = True, lengths: Any = None,
        batch_first: bool = False, dropout: float = 0.0, seed: Any = 0) -> tuple[Any, Any]:  # fmt: skip
    """fastattn.gru on JAX's arrays, with gradients of x, state and weights: (y, h). dropout and seed as of rnn.

    >>> import jax.numpy as jnp
    >>> w = {"weight_ih_l0": jnp.zeros((3, 1)), "weight_hh_l0": jnp.zeros((3, 1))}
    >>> gru(jnp.ones((2, 1, 1)), jnp.ones((1, 1, 1)), w)[0][:, 0, 0].tolist()
    [0.5, 0.25]
    """
    keywords = {"linear_before_reset": linear_before_reset}
    y, h, _ = _run("gru", x, (state, None), weights, lengths, batch_first, dropout, seed, keywords)
    return y, h


def lstm(x: Any, state: tuple[Any, Any] | None, weights: Mapping[str, Any], *, coupled: bool = False,
         clip: float | None = None, lengths: Any = None, batch_first: bool = False, dropout: float = 0.0,
         seed: Any = 0) -> tuple[Any, tuple[Any, Any]]:  # fmt: skip
    """fastattn.lstm on JAX's arrays, with gradients of x, state and weights: (y, (h, c)). dropout and seed as of rnn.

    >>> import jax.numpy as jnp
    >>> w = {"weight_ih_l0": jnp.zeros((4, 1)), "weight_hh_l0": jnp.zeros((4, 1))}
    >>> lstm(jnp.ones((2, 1, 1)), (jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1))), w)[1][1].tolist()
    [[[0.25]]]
    """
    if state is not None and (not isinstance(state, tuple | list) or len(state) != 2):
        raise ValueError(f"lstm: state must be a pair (h, c), got {type(state).__name__}")
    keywords = {"coupled": coupled, "clip": clip}
    y, h, c = _run("lstm", x, state or (None, None), weights, lengths, batch_first, dropout, seed, keywords)
    return y, (h, c)


def _run(op: str, x: Any, state: tuple[Any, ...], weights: Any, lengths: Any, batch_first: bool, dropout: Any,
         seed: Any, keywords: dict[str, Any]) -> tuple[Any, Any, Any]:  # fmt: skip
    if not isinstance(weights, Mapping):
        raise TypeError(f"{op}: weights must be a mapping from names to arrays, got {type(weights).__name__}")
    given = {str(name): weight for name, weight in weights.items() if weight is not None}
    plain = known(op, batch_first=batch_first, dropout=dropout, **keywords)
    names = tuple(sorted(given))
    options = _Options(op, tuple(zip(keywords, plain[2:], strict=True)), plain[0], plain[1], names)
    words = seed_words(op, seed) if dropout else None
    h, c = state
    results = _RECURRENT[op](options, x=x, h=h, c=c, lengths=lengths, seed=words, **given)
    return results["y"], results["last_h"], results.get("last_c")


def _arguments(options: _Options, arrays: Arrays) -> tuple[Any, Any, Arrays]:
    """x, state and weights."""
    h, c = arrays.get("h"), arrays.get("c")
    state = h if options.cell != "lstm" else None if h is None and c is None else (h, c)
    return arrays["x"], state, {name: arrays[name] for name in options.weights}


def _results(y: Any, state: Any) -> Arrays:
    h, c = state if isinstance(state, tuple) else (state, None)
    return {"y": y, "last_h": h} if c is None else {"y": y, "last_h": h, "last_c": c}


def _computed(options: _Options, arrays: Arrays) -> Arrays:
    if options.dropout:
        (y, state), _ = _saved(options, arrays)
    else:
        function: Any = {"rnn": fa.rnn, "gru": fa.gru, "lstm": fa.lstm}[options.cell]
        keywords: Any = dict(options.keywords) | {"lengths": arrays.get("lengths"), "batch_first": options.batch_first}
        y, state = function(*_arguments(options, arrays), **keywords)
    return _results(y, state)


def _saved(options: _Options, arrays: Arrays) -> Any:
    function: Any = {"rnn": fa.rnn_forward, "gru": fa.gru_forward, "lstm": fa.lstm_forward}[options.cell]
    keywords: Any = dict(options.keywords) | {"lengths": arrays.get("lengths"), "batch_first": options.batch_first}
    if options.dropout:
        keywords |= {"dropout": options.dropout, "seed": seed_of(arrays)}
    return function(*_arguments(options, arrays), **keywords)


def _computed_and_saved(options: _Options, arrays: Arrays) -> Arrays:
    """The arrays of RecurrentSaved beside arguments and results, numbered."""
    (y, state), saved = _saved(options, arrays)
    kept = {"ys": saved.ys[:-1], "dropped": saved.dropped, "activations": saved.activations}
    parts = {f"{kind}{i}": a for kind, values in kept.items() for i, a in enumerate(values) if a is not None}
    return _results(y, state) | parts


def _rebuilt(options: _Options, arrays: Arrays) -> recurrent.RecurrentSaved:
    """What the forward call had saved."""
    op, keywords = f"{options.cell}_backward", dict(options.keywords)
    x, _, weights = _arguments(options, arrays)
    form, clip = options.cell, 0.0
    if options.cell == "gru":
        form = recurrent._gru_form(op, keywords["linear_before_reset"])
    elif options.cell == "lstm":
        form, clip = recurrent._lstm_form(op, keywords["coupled"]), recurrent._checked_clip(op, keywords["clip"])
    numbers = recurrent.Options(keywords.get("nonlinearity", "tanh"), clip, options.dropout, seed_of(arrays))
    x, y = (a.swapaxes(0, 1) if options.batch_first else a for a in (x, arrays["y"]))
    stack, names = recurrent._weights(op, form, weights, x.shape[2], x.dtype)
    lanes = range(stack.layers * stack.directions)
    between = range(stack.layers - 1)
    return recurrent.RecurrentSaved(
        f"{options.cell}_forward", numbers, options.batch_first, x, arrays.get("h"), arrays.get("c"), stack, names,
        arrays.get("lengths"), [*(arrays[f"ys{i}"] for i in between), y],
        [arrays[f"dropped{i}"] for i in between] if options.dropout else [],
        [arrays.get(f"activations{i}") for i in lanes],
    )  # fmt: skip


def _gradients(given: tuple[_Options, tuple[str, ...]], arrays: Arrays) -> Arrays:
    options, wanted = given
    dy, dh, dc = (arrays.get(name) for name in ("dy", "dlast_h", "dlast_c"))
    dx, dstate, dweights = recurrent_backward._sequence_backward(options.cell, dy, dh, dc, _rebuilt(options, arrays))
    found = {"x": dx, **dict(zip("hc", dstate, strict=False)), **dweights}
    return {name: found[name] for name in wanted}


def _axis(options: _Options, name: str) -> int | None:
    """x and y are as the caller has them, the rest time first."""
    if name in options.weights or name == "seed":
        return None
    if name == "lengths" or (options.batch_first and name in ("x", "y", "dy")):
        return 0
    return 1


def _forward(options: _Options) -> Callable[[Arrays], Arrays]:
    return partial(_computed, options)


def _save(options: _Options) -> Callable[[Arrays], Arrays]:
    return partial(_computed_and_saved, options)


def _backward(given: tuple[_Options, tuple[str, ...]]) -> Callable[[Arrays], Arrays]:
    return partial(_gradients, given)


_RECURRENT = {
    cell: Operation(
        name=cell,
        forward=_forward,
        save=_save,
        backward=_backward,
        axis=_axis,
        results=("y", "last_h", "last_c"),
        folds=lambda options: not options.dropout,  # which depends on the place in the batch
    )
    for cell in ("rnn", "gru", "lstm")
}

"""Attention on JAX's arrays."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import fastattn as fa
from fastattn.jax.operation import Arrays, Operation, known, seed_of, seed_words

_LARGEST_RANK = 4


def attention(q: Any, k: Any, v: Any, *, mask: Any = None, causal: bool | str = False, scale: float | None = None,
              window: tuple[int | None, int | None] | None = None, softcap: float = 0.0, alibi_slopes: Any = None,
              sinks: Any = None, q_start: Any = None, bias: Any = None, q_lengths: Any = None, kv_lengths: Any = None,
              layout: str = "bhld", return_lse: bool = False, dropout_p: float = 0.0,
              seed: Any = 0) -> Any:  # fmt: skip
    """fastattn.attention on JAX's arrays: the same arguments and values.

    q, k, v, a float mask, bias, alibi_slopes and sinks have gradients, also those of lse. Options that are no arrays
    are known when JAX traces: no tracers, but for the seed of dropout. The batches of vmap become one, unless slopes or
    sinks differ between them, or with dropout.

    >>> q = jnp.ones((1, 2, 3, 4))
    >>> attention(q, q, q, causal=True).shape
    (1, 2, 3, 4)
    """
    sides = tuple(window) if isinstance(window, list) else window
    plain: dict[str, Any] = {"causal": causal, "scale": scale, "window": sides, "softcap": softcap, "layout": layout,
                             "dropout_p": dropout_p}  # fmt: skip
    options = _Options(known("attention", **plain, return_lse=return_lse)[-1], tuple(plain.items()))
    if q_start is not None and jnp.ndim(q_start) == 0:
        q_start = jnp.broadcast_to(q_start, jnp.shape(q)[:1])
    results = _ATTENTION(options, q=q, k=k, v=v, mask=_of_scores(mask), alibi_slopes=alibi_slopes, sinks=sinks,
                         q_start=q_start, bias=_of_scores(bias), q_lengths=q_lengths,
                         kv_lengths=kv_lengths, seed=seed_words("attention", seed) if dropout_p else None)  # fmt: skip
    return (results["out"], results["lse"]) if return_lse else results["out"]


def _of_scores(values: Any) -> Any:
    """A mask or bias with an axis of the batch, which vmap needs."""
    if values is None:
        return None
    values = jnp.asarray(values)
    return values.reshape((1,) * (_LARGEST_RANK - values.ndim) + values.shape)


class _Options(NamedTuple):
    return_lse: bool
    keywords: tuple[tuple[str, Any], ...]


def _forward(options: _Options) -> Callable[[Arrays], Arrays]:
    plain: Any = dict(options.keywords)
    function: Any = partial(fa.attention, **plain)
    if options.return_lse:
        return lambda arrays: dict(zip(("out", "lse"), function(**_seeded(arrays), return_lse=True), strict=True))
    return lambda arrays: {"out": function(**_seeded(arrays))}


def _seeded(arrays: Arrays) -> dict[str, Any]:
    return arrays | {"seed": seed_of(arrays)} if "seed" in arrays else arrays


def _save(options: _Options) -> Callable[[Arrays], Arrays]:
    plain = dict(options.keywords)
    function: Any = partial(fa.attention_forward, **plain)

    def run(arrays: Arrays) -> Arrays:
        out, saved = function(**_seeded(arrays))
        kept = {"out": out, "kept_lse": saved.lse, "state": saved.state}
        return kept | {"lse": saved.lse} if options.return_lse else kept

    return run


# What is no option of attention.
_OTHERS = {"q", "k", "v", "out", "lse", "kept_lse", "state", "dout", "dlse"}


def _backward(given: tuple[_Options, tuple[str, ...]]) -> Callable[[Arrays], Arrays]:
    options, wanted = given
    plain = dict(options.keywords)
    further = [name for name in wanted if name not in "qkv"]

    def run(arrays: Arrays) -> Arrays:
        given = plain | {name: x for name, x in _seeded(arrays).items() if name not in _OTHERS}
        q, k, v, out, lse, state = (arrays[name] for name in ("q", "k", "v", "out", "kept_lse", "state"))
        saved = fa.SavedAttention.of(q, k, v, out, lse, state, **given)
        dout = arrays["dout"] if "dout" in arrays else np.zeros_like(out)
        found = fa.attention_backward(dout, saved, dlse=arrays.get("dlse"), gradients=further)
        return {name: getattr(found, f"d{name}") for name in wanted}

    return run


_ATTENTION = Operation(
    name="attention",
    forward=_forward,
    save=_save,
    backward=_backward,
    axis=lambda _, name: {"alibi_slopes": None, "sinks": None, "seed": None, "state": 1}.get(name, 0),
    results=("out", "lse"),
    folds=lambda options: not dict(options.keywords)["dropout_p"],  # which depends on the place in the batch
)

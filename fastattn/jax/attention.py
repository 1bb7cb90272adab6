"""Attention on JAX's arrays."""

from typing import Any, NamedTuple

import jax

import fastattn as fa
from fastattn.jax.operation import Arrays, Operation, known

_LARGEST_RANK = 4


class _Options(NamedTuple):
    causal: bool | str
    scale: float | None
    window: tuple[int | None, int | None] | None
    softcap: float
    layout: str


def attention(q: Any, k: Any, v: Any, *, mask: Any = None, causal: bool | str = False, scale: float | None = None,
              window: tuple[int | None, int | None] | None = None, softcap: float = 0.0, alibi_slopes: Any = None,
              sinks: Any = None, q_lengths: Any = None, kv_lengths: Any = None, layout: str = "bhld",
              return_lse: bool = False) -> Any:  # fmt: skip
    """fastattn.attention on JAX's arrays: the same arguments and values.

    q, k, v, a float mask, alibi_slopes and sinks have gradients; lse has none. The other arguments but the lengths are
    known when JAX traces: no tracers. The batches of vmap become one, unless slopes or sinks differ between them.

    >>> q = jax.numpy.ones((1, 2, 3, 4))
    >>> attention(q, q, q, causal=True).shape
    (1, 2, 3, 4)
    """
    sides = tuple(window) if isinstance(window, list) else window
    options = _Options(*known("attention", causal=causal, scale=scale, window=sides, softcap=softcap, layout=layout))
    if mask is not None:
        mask = jax.numpy.asarray(mask)
        mask = mask.reshape((1,) * (_LARGEST_RANK - mask.ndim) + mask.shape)
    results = _ATTENTION(options, q=q, k=k, v=v, mask=mask, alibi_slopes=alibi_slopes, sinks=sinks,
                         q_lengths=q_lengths, kv_lengths=kv_lengths)  # fmt: skip
    return (results["out"], jax.lax.stop_gradient(results["lse"])) if return_lse else results["out"]


_NAMES = ("mask", "alibi_slopes", "sinks", "q_lengths", "kv_lengths")


def _keywords(options: _Options, arrays: Arrays) -> dict[str, Any]:
    """The arguments of fastattn.attention but q, k and v, in the order of its saved options."""
    mask, slopes, sinks, *lengths = (arrays.get(name) for name in _NAMES)
    return {
        "mask": mask,
        "causal": options.causal,
        "scale": options.scale,
        "window": options.window,
        "softcap": options.softcap,
        "alibi_slopes": slopes,
        "sinks": sinks,
        "q_lengths": lengths[0],
        "kv_lengths": lengths[1],
        "layout": options.layout,
    }


def _forward(options: _Options, arrays: Arrays) -> Arrays:
    q, k, v = (arrays[name] for name in "qkv")
    out, lse = fa.attention(q, k, v, **_keywords(options, arrays), return_lse=True)
    return {"out": out, "lse": lse}


def _save(options: _Options, arrays: Arrays) -> Arrays:
    q, k, v = (arrays[name] for name in "qkv")
    out, saved = fa.attention_forward(q, k, v, **_keywords(options, arrays))
    return {"out": out, "lse": saved.lse, "state": saved.state}


def _backward(given: tuple[_Options, tuple[str, ...]], arrays: Arrays) -> Arrays:
    options, wanted = given
    names = ("q", "k", "v", "out", "lse", "state")
    saved = fa.SavedAttention(
        options=tuple(_keywords(options, arrays).values()), **{name: arrays[name] for name in names}
    )
    further = [name for name in wanted if name not in "qkv"]
    found = fa.attention_backward(arrays["dout"], saved, gradients=further)._asdict()
    return {name: found[f"d{name}"] for name in wanted}


_ATTENTION = Operation(
    name="attention",
    forward=_forward,
    save=_save,
    backward=_backward,
    axis=lambda _, name: {"alibi_slopes": None, "sinks": None, "state": 1}.get(name, 0),
    results=("out", "lse"),
)

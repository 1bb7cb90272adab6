"""fastattn as an implementation of flash attention that torch can be told to take, for programs nobody may change.

    torch.nn.attention.activate_flash_attention_impl("fastattn")
    ...
    torch.nn.attention.restore_flash_attention_impl()

In between, torch's operator of flash attention on the CPU is fastattn's, wherever it is called from: code in C++,
functions imported by another name, compiled graphs. `patched` is the wider way for Python programs: torch calls the
operator only where it would have taken its own flash attention.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import register_flash_attention_impl

import fastattn as fa
from fastattn.torch.arrays import array, tensor
from fastattn.torch.attention import arrays_of

NAME = "fastattn"
_OP = "_scaled_dot_product_flash_attention_for_cpu"


class _Handle:
    """Keeps the operators replaced."""

    def __init__(self) -> None:
        self._library: Any = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():  # that an operator is replaced, which the user has asked for
            warnings.simplefilter("ignore")
            self._library.impl(_OP, _forward, "CPU", allow_override=True)
            self._library.impl(f"{_OP}_backward", _backward, "CPU", allow_override=True)

    def remove(self) -> None:
        self._library._destroy()


def _check(dropout_p: float) -> None:
    if dropout_p:
        raise NotImplementedError(
            f"scaled_dot_product_attention: dropout_p must be 0 in flash attention, got {dropout_p}"
        )


# Results lie in memory as torch's own do: compiled graphs count on it.


def _forward(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
             attn_mask: Tensor | None = None, scale: float | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    op = "scaled_dot_product_attention"
    _check(dropout_p)
    out = torch.empty_like(query)
    q, k, v = arrays_of(op, query=query, key=key, value=value)
    _, lse = fa.attention(q, k, v, mask=array(attn_mask, op, "attn_mask"), causal=_causal(is_causal), scale=scale,
                          out=array(out, op, "out"), return_lse=True)  # fmt: skip
    return out, tensor(lse).transpose(1, 2).contiguous().transpose(1, 2)


def _backward(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor,
              dropout_p: float, is_causal: bool, *, attn_mask: Tensor | None = None,
              scale: float | None = None) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    op = "scaled_dot_product_attention_backward"
    _check(dropout_p)
    named = {"query": query, "key": key, "value": value, "out": out, "logsumexp": logsumexp, "grad_out": grad_out}
    *given, dout = arrays_of(op, **{name: x.transpose(1, 2) for name, x in named.items()})
    saved = fa.saved_attention(*given, mask=array(attn_mask, op, "attn_mask"), causal=_causal(is_causal), scale=scale,
                               layout="blhd")  # fmt: skip
    dq, dk, dv = (tensor(x).transpose(1, 2) for x in fa.attention_backward(dout, saved))
    return dq, dk, dv


def _causal(is_causal: bool) -> bool | str:
    return "top-left" if is_causal else False


register_flash_attention_impl(NAME, register_fn=_Handle)

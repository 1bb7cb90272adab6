"""The attention function that models of transformers call."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import output_capturing

import fastattn.torch as fat
from fastattn.transformers.masks import PatternMask

# What single models hand over and no other function of transformers for the CPU takes: lists of the keys that a query
# attends to, and sinks that depend on the query.
_UNKNOWN = ("indices", "block_indices", "sinks")


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
              dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None,
              position_bias: Tensor | None = None, softcap: float | None = None, s_aux: Tensor | None = None,
              output_attentions: bool | None = None, **options: Any) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of query[B, H, T, D] to key[B, Hk, S, D] and value[B, Hk, S, Dv] as [B, T, H, Dv].

    Arguments are those of transformers' own functions; s_aux are sinks. Probabilities are not returned. Without a mask
    all queries attend to all keys, as in eager attention, unless is_causal is True: causal models get masks.
    """
    _refuse(output_attentions, options)
    if dropout:
        return _with_dropout(module, query, key, value, attention_mask, dropout, scaling, bool(is_causal),
                             position_bias, softcap, s_aux)  # fmt: skip
    if query.shape[0] != key.shape[0]:  # queries that are parameters, one for all sequences
        query = query.expand(key.shape[0], -1, -1, -1)
    causal: bool | str = False
    window = None
    mask = attention_mask
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        if is_causal and queries > 1:
            causal = "top-left"
            if keys > queries:  # the first call with a static cache, which is empty behind these
                key, value = key[:, :, :queries], value[:, :, :queries]
    elif isinstance(mask, PatternMask):
        found = _short(mask, query, key)
        if found is None:
            mask = mask.computed()
        else:
            mask, causal, window, keys = found
            key, value = key[:, :, :keys], value[:, :, :keys]
    if position_bias is not None:
        mask = _biased(position_bias[..., : key.shape[2]], mask)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(query.dtype)
    out = fat.attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask=mask, causal=causal, scale=scaling,
        window=window, softcap=softcap or 0.0, sinks=None if s_aux is None else s_aux.to(query.dtype), layout="blhd",
    )  # fmt: skip
    return out, None


def _short(mask: PatternMask, query: Tensor, key: Tensor) -> tuple[Tensor | None, bool | str, Any, int] | None:
    """Padding, causal, window and the number of keys for the kernel; None if the mask has to be computed."""
    (causal, window), sizes = mask.pattern, mask.sizes
    if mask.whole is not None or sizes.queries != query.shape[2] or sizes.keys != key.shape[2]:
        return None
    # The kernel puts the last query at the last key. Keys after it are the empty end of a static cache.
    keys = sizes.shift + sizes.queries if causal else sizes.keys
    if not 0 < keys <= sizes.keys or (window is not None and sizes.shift + sizes.queries != keys):
        return None
    padding = None if mask.padding is None else mask.padding[:, None, None, :keys]
    return padding, "bottom-right" if causal else False, window, keys


def _biased(bias: Tensor, mask: Tensor | None) -> Tensor:
    """A bias of scores and a mask as one mask of floats."""
    if mask is None:
        return bias
    return torch.where(mask, bias, -math.inf) if mask.dtype is torch.bool else bias + mask


def _with_dropout(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float,
                  scaling: float | None, is_causal: bool, position_bias: Tensor | None, softcap: float | None,
                  s_aux: Tensor | None) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' own function: fastattn drops no probabilities."""
    for name, given in (("softcap", softcap), ("sinks", s_aux)):
        if given is not None:
            raise NotImplementedError(
                f"fastattn.transformers: dropout must be 0 with {name}, got {dropout}: set the attention_dropout of "
                'the config to 0, or train with attn_implementation="eager"'
            )
    if isinstance(mask, PatternMask):
        mask = mask.computed()
    return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling,
                                  is_causal=is_causal, position_bias=position_bias)  # fmt: skip


def _refuse(output_attentions: bool | None, options: dict[str, Any]) -> None:
    """What fastattn has not, by name."""
    collected = None if torch.compiler.is_compiling() else output_capturing._active_collector.get()
    if output_attentions or any("attentions" in name for name in collected or ()):
        raise NotImplementedError(
            "fastattn.transformers: output_attentions must be False, got True: only "
            'model.set_attn_implementation("eager") keeps probabilities'
        )
    for name in _UNKNOWN:
        if options.get(name) is not None:
            raise NotImplementedError(
                f"fastattn.transformers: attention with `{name}` is not supported: use "
                'model.set_attn_implementation("eager")'
            )

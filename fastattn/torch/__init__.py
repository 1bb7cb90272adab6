"""fastattn under PyTorch: operations with gradients on CPU tensors, and modules that take the place of torch's.

    import fastattn.torch as fat
    fat.accelerate(model)                   # the modules of a model, in place
    with fat.patched():                     # F.scaled_dot_product_attention
        ...

Operations work under autograd, torch.compile, torch.export, autocast and vmap. Second derivatives and forward mode
raise. Tensors and arrays share memory; nothing is copied but what has no contiguous last axis.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError('fastattn.torch needs PyTorch: python -m pip install "fastattn[torch]"') from error

import fastattn.torch.hook as _hook  # noqa: F401 (registers itself)
from fastattn.torch.attention import attention, scaled_dot_product_attention
from fastattn.torch.flash import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from fastattn.torch.layers import additive_attention, layer_norm, linear, rms_norm
from fastattn.torch.modules import (
    GRU,
    LSTM,
    RNN,
    LayerNorm,
    Linear,
    MultiheadAttention,
    RMSNorm,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from fastattn.torch.recurrent import gru, lstm, rnn
from fastattn.torch.swap import accelerate, patched, restore
from fastattn.torch.varlen import attention_varlen

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "LayerNorm",
    "Linear",
    "MultiheadAttention",
    "RMSNorm",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "accelerate",
    "additive_attention",
    "attention",
    "attention_varlen",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "gru",
    "layer_norm",
    "linear",
    "lstm",
    "patched",
    "restore",
    "rms_norm",
    "rnn",
    "scaled_dot_product_attention",
]

"""fastattn: CPU kernels for attention and recurrent networks, NumPy arrays in, NumPy arrays out.

>>> import numpy as np
>>> import fastattn as fa
>>> q = k = v = np.ones((1, 8, 16, 64), np.float32)
>>> fa.attention(q, k, v, causal=True).shape
(1, 8, 16, 64)
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from fastattn import config
from fastattn._core import PackedLinear, RecurrentWeights
from fastattn.cache import KVCache
from fastattn.config import get_include, get_num_threads, num_threads, set_num_threads, show_config
from fastattn.functional.additive import (
    SavedAdditive,
    additive_attention,
    additive_attention_backward,
    additive_attention_forward,
)
from fastattn.functional.attention import SavedAttention, attention, attention_forward, saved_attention
from fastattn.functional.attention_backward import AttentionGradients, attention_backward, attention_varlen_backward
from fastattn.functional.attention_parts import attention_weights, merge_attention
from fastattn.functional.attention_varlen import SavedAttentionVarlen, attention_varlen, attention_varlen_forward
from fastattn.functional.cross_entropy import (
    SavedCrossEntropy,
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_forward,
)
from fastattn.functional.elementwise import (
    exp,
    gelu,
    gelu_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    silu,
    silu_backward,
    silu_gated,
    silu_gated_backward,
    tanh,
    tanh_backward,
)
from fastattn.functional.embedding import SavedEmbedding, embedding, embedding_backward, embedding_forward
from fastattn.functional.linear import SavedLinear, linear, linear_backward, linear_forward, pack_linear
from fastattn.functional.norm import (
    add_layer_norm,
    add_rms_norm,
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
)
from fastattn.functional.positions import SavedRope, rope, rope_backward, rope_forward, sinusoidal_positions
from fastattn.functional.recurrent import (
    gru,
    gru_cell,
    lstm,
    lstm_cell,
    pack_gru,
    pack_lstm,
    pack_rnn,
    rnn,
    rnn_cell,
)
from fastattn.functional.recurrent_backward import (
    gru_backward,
    gru_cell_backward,
    gru_cell_forward,
    gru_forward,
    lstm_backward,
    lstm_cell_backward,
    lstm_cell_forward,
    lstm_forward,
    rnn_backward,
    rnn_cell_backward,
    rnn_cell_forward,
    rnn_forward,
)
from fastattn.functional.rows import (
    log_softmax,
    log_softmax_backward,
    log_softmax_forward,
    softmax,
    softmax_backward,
    softmax_forward,
)

if _TYPE_CHECKING:
    from fastattn import nn

    __version__: str

__all__ = [
    "AttentionGradients",
    "KVCache",
    "PackedLinear",
    "RecurrentWeights",
    "SavedAdditive",
    "SavedAttention",
    "SavedAttentionVarlen",
    "SavedCrossEntropy",
    "SavedEmbedding",
    "SavedLinear",
    "SavedRope",
    "add_layer_norm",
    "add_rms_norm",
    "additive_attention",
    "additive_attention_backward",
    "additive_attention_forward",
    "attention",
    "attention_backward",
    "attention_forward",
    "attention_varlen",
    "attention_varlen_backward",
    "attention_varlen_forward",
    "attention_weights",
    "config",
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "embedding",
    "embedding_backward",
    "embedding_forward",
    "exp",
    "gelu",
    "gelu_backward",
    "get_include",
    "get_num_threads",
    "gru",
    "gru_backward",
    "gru_cell",
    "gru_cell_backward",
    "gru_cell_forward",
    "gru_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear",
    "linear_backward",
    "linear_forward",
    "log_softmax",
    "log_softmax_backward",
    "log_softmax_forward",
    "lstm",
    "lstm_backward",
    "lstm_cell",
    "lstm_cell_backward",
    "lstm_cell_forward",
    "lstm_forward",
    "merge_attention",
    "nn",
    "num_threads",
    "pack_gru",
    "pack_linear",
    "pack_lstm",
    "pack_rnn",
    "relu",
    "relu_backward",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "rnn",
    "rnn_backward",
    "rnn_cell",
    "rnn_cell_backward",
    "rnn_cell_forward",
    "rnn_forward",
    "rope",
    "rope_backward",
    "rope_forward",
    "saved_attention",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "silu_gated",
    "silu_gated_backward",
    "sinusoidal_positions",
    "softmax",
    "softmax_backward",
    "softmax_forward",
    "tanh",
    "tanh_backward",
]


def __getattr__(name: str) -> object:
    """fastattn.nn and the version, found at their first use: who calls functions alone does not wait for them."""
    if name == "__version__":
        return config.version()
    if name == "nn":
        from importlib import import_module  # noqa: PLC0415

        return import_module("fastattn.nn")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""fastattn: CPU kernels for attention and recurrent networks, NumPy arrays in, NumPy arrays out.

>>> import numpy as np
>>> import fastattn as fa
>>> q = k = v = np.ones((1, 8, 16, 64), np.float32)
>>> fa.attention(q, k, v, causal=True).shape
(1, 8, 16, 64)
"""

from fastattn import config
from fastattn._core import PackedLinear
from fastattn.config import get_num_threads, num_threads, set_num_threads, show_config
from fastattn.functional import (
    attention,
    exp,
    gelu,
    gru,
    gru_cell,
    linear,
    log_softmax,
    log_softmax_backward,
    log_softmax_forward,
    lstm,
    lstm_cell,
    pack_linear,
    relu,
    rnn,
    rnn_cell,
    sigmoid,
    silu,
    softmax,
    softmax_backward,
    softmax_forward,
    tanh,
)

__version__ = config.version

__all__ = [
    "PackedLinear",
    "attention",
    "config",
    "exp",
    "gelu",
    "get_num_threads",
    "gru",
    "gru_cell",
    "linear",
    "log_softmax",
    "log_softmax_backward",
    "log_softmax_forward",
    "lstm",
    "lstm_cell",
    "num_threads",
    "pack_linear",
    "relu",
    "rnn",
    "rnn_cell",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "silu",
    "softmax",
    "softmax_backward",
    "softmax_forward",
    "tanh",
]

"""Layers with parameters, by PyTorch's names: a state dict of the torch.nn layer of the same name loads.

A module is called for inference: `y = m(x)`. Recurrent networks and norms also have `result, saved = m.forward(x)` and
`dx, grads = m.backward(dy, saved)` (recurrent: `dx, dstate, grads`); there is no tape and no hidden state. Layers with
other products have no backward yet.
"""

from fastattn.nn.attention import MultiHeadAttention
from fastattn.nn.layers import FeedForward, LayerNorm, Linear, RMSNorm
from fastattn.nn.module import Module
from fastattn.nn.recurrent import GRU, LSTM, RNN
from fastattn.nn.transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "FeedForward",
    "LayerNorm",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "RMSNorm",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]

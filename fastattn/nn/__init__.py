"""Layers with parameters, by PyTorch's names: a state dict of the torch.nn layer of the same name loads.

A module is called for inference: `y = m(x)`. For training, `result, saved = m.forward(x)`, with the same bits, and
`dx, grads = m.backward(dy, saved)` with the gradients by the names of `parameters()` (recurrent: `dx, dstate, grads`;
where there is a context or memory, dx is a pair). There is no tape and no hidden state.
"""

from fastattn.nn.attention import MultiHeadAttention
from fastattn.nn.attention_gru import AdditiveAttention, AttentionGRU
from fastattn.nn.bert import BertConfig, BertModel
from fastattn.nn.layers import Embedding, FeedForward, LayerNorm, Linear, RMSNorm, SinusoidalPositions
from fastattn.nn.module import Module
from fastattn.nn.recurrent import GRU, LSTM, RNN
from fastattn.nn.safetensors import read_safetensors
from fastattn.nn.seq2seq import Seq2Seq
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
    "AdditiveAttention",
    "AttentionGRU",
    "BertConfig",
    "BertModel",
    "Embedding",
    "FeedForward",
    "LayerNorm",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "RMSNorm",
    "Seq2Seq",
    "SinusoidalPositions",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "read_safetensors",
]

"""One file for each op: its inputs, its work, its result by the specification, the sample that is compared."""

from benchmarks.kernels.case import OPS
from benchmarks.kernels.ops import (
    additive,
    attention,
    attention_gru,
    decode,
    encoder_layer,
    linear,
    recurrent,
    softmax,
)

OPS |= {
    **attention.OPS,
    **recurrent.OPS,
    "additive": additive.OP,
    "attention_gru": attention_gru.OP,
    "decode": decode.OP,
    "encoder_layer": encoder_layer.OP,
    "linear": linear.OP,
    "softmax": softmax.OP,
}

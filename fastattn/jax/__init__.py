"""fastattn under JAX: operations on the CPU with gradients, under jit, grad, vmap, remat and scan.

    import fastattn.jax as faj
    out = jax.jit(faj.attention, static_argnames="causal")(q, k, v, causal=True)

A call is one foreign function of the compiled program. Forward mode and second derivatives raise.
"""

try:
    import jax as _jax  # noqa: F401
except ImportError as error:
    raise ImportError('fastattn.jax needs JAX: python -m pip install "fastattn[jax]"') from error

from fastattn.jax.attention import attention
from fastattn.jax.linear import linear
from fastattn.jax.recurrent import gru, lstm, rnn

__all__ = ["attention", "gru", "linear", "lstm", "rnn"]

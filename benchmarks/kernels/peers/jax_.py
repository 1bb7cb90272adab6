"""JAX on the CPU: jax.nn and lax.scan, compiled by XLA before the timing; gradients by vjp."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.kernels.case import Array, Case, Inputs
from benchmarks.kernels.ops import attention
from benchmarks.kernels.ops.recurrent import GATES, GRADIENTS, WEIGHTS
from benchmarks.kernels.peers import Prepared


def absence() -> str:
    """Nothing beside the package is needed."""
    return ""


def version() -> str:
    """Its version."""
    return str(import_module("jax").__version__)


def supports(case: Case) -> bool:
    """No ragged batches; float32 and bfloat16."""
    return case.op in PREPARE and not case.ragged and case.dtype in ("float32", "bfloat16")


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """The environment has set the number of threads (NPROC) before XLA made its pool."""
    jax = import_module("jax")
    arrays = {name: jax.numpy.asarray(a, case.dtype if a.dtype.kind == "f" else None) for name, a in inputs.items()}
    return PREPARE[case.op](jax, case, arrays)


def _array(result: Any) -> Array:
    return np.asarray(result, np.float32)


def _compiled(jax: Any, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """A call that returns when the result is there."""
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


def _softmax(jax: Any, case: Case, inputs: Inputs) -> Prepared:
    return Prepared(_compiled(jax, jax.nn.softmax, inputs["x"]), _array)


def _linear(jax: Any, case: Case, inputs: Inputs) -> Prepared:
    arguments = (inputs[name] for name in ("x", "weight", "bias"))
    return Prepared(_compiled(jax, lambda x, weight, bias: x @ weight.T + bias, *arguments), _array)


def _attend(jax: Any, case: Case, inputs: Inputs) -> tuple[Callable[..., Any], list[Any]]:
    """dot_product_attention with the mask of the case, and q, k, v as it takes them: [B, S, H, D]."""
    mask = None
    if case.op != "decode" and (case.masked or case.window is not None):
        mask = attention.allowed(case, {name: np.asarray(a) for name, a in inputs.items()}, np.arange(case.sizes["S"]))

    def attend(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=case.causal and mask is None)

    return attend, [jax.numpy.swapaxes(inputs[name], 1, 2) for name in "qkv"]


def _attention(jax: Any, case: Case, inputs: Inputs) -> Prepared:
    attend, qkv = _attend(jax, case, inputs)
    return Prepared(_compiled(jax, attend, *qkv), lambda out: _array(out).swapaxes(1, 2))


def _attention_backward(jax: Any, case: Case, inputs: Inputs) -> Prepared:
    """Backward alone, after one forward call."""
    attend, qkv = _attend(jax, case, inputs)
    _, pull = jax.vjp(attend, *qkv)
    run = _compiled(jax, lambda pull, dout: pull(dout), pull, jax.numpy.swapaxes(inputs["dout"], 1, 2))
    return Prepared(run, lambda gradients: np.stack([_array(x).swapaxes(1, 2) for x in gradients]))


def _cell(jax: Any, op: str, state: Any, x: Any, w_hh: Any, b_hh: Any) -> Any:
    """The next state from the input's products x, with the gates in torch's order."""
    h = state[0]
    products, sigmoid, tanh = h @ w_hh.T + b_hh, jax.nn.sigmoid, jax.numpy.tanh
    if op == "rnn":
        return (tanh(x + products),)
    mine, theirs = (jax.numpy.split(part, GATES[op], -1) for part in (x, products))
    if op == "gru":
        r, z = (sigmoid(mine[i] + theirs[i]) for i in range(2))
        return ((1 - z) * tanh(mine[2] + r * theirs[2]) + z * h,)
    i, f, g, o = (a + b for a, b in zip(mine, theirs, strict=True))
    c = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def _network(jax: Any, op: str, inputs: Inputs) -> tuple[Callable[..., Any], list[Any]]:
    """A layer as one writes it, the products of all inputs first; and its arguments."""

    def network(x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        zeros = jax.numpy.zeros((x.shape[1], w_hh.shape[1]), x.dtype)

        def step(state: Any, x: Any) -> Any:
            state = _cell(jax, op, state, x, w_hh, b_hh)
            return state, state[0]

        return jax.lax.scan(step, (zeros,) * (2 if op == "lstm" else 1), x @ w_ih.T + b_ih)[1]

    return network, [inputs[name] for name in ("x", *WEIGHTS)]


def _sequence(jax: Any, case: Case, inputs: Inputs) -> Prepared:
    network, arguments = _network(jax, case.op, inputs)
    return Prepared(_compiled(jax, network, *arguments), _array)


def _gradients(jax: Any, case: Case, inputs: Inputs) -> Prepared:
    """Forward and backward with all gradients; dx."""
    network, arguments = _network(jax, GRADIENTS[case.op], inputs)

    def gradients(dy: Any, *arguments: Any) -> Any:
        return jax.vjp(network, *arguments)[1](dy)

    return Prepared(_compiled(jax, gradients, inputs["dy"], *arguments), lambda found: _array(found[0]))


PREPARE: dict[str, Callable[[Any, Case, Inputs], Prepared]] = {
    **dict.fromkeys(GATES, _sequence),
    **dict.fromkeys(GRADIENTS, _gradients),
    "attention": _attention,
    "attention_backward": _attention_backward,
    "decode": _attention,
    "linear": _linear,
    "softmax": _softmax,
}

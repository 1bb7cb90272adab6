"""PyTorch on the CPU: scaled_dot_product_attention and the modules of torch.nn in inference mode; gradients by
autograd."""

from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.kernels.case import Array, Case, Inputs
from benchmarks.kernels.ops import attention
from benchmarks.kernels.ops.additive import ADDITIVE
from benchmarks.kernels.ops.attention_gru import DECODER_WEIGHTS
from benchmarks.kernels.ops.recurrent import GATES, GRADIENTS, STACK, WEIGHTS
from benchmarks.kernels.peers import Prepared, seconds

_inference = ExitStack()


def absence() -> str:
    """Nothing beside the package is needed."""
    return ""


def version() -> str:
    """Version and the instruction set that it has chosen."""
    torch = import_module("torch")

    return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"


def supports(case: Case) -> bool:
    """Every case but int8 caches."""
    return case.op in PREPARE and case.dtype != "int8"


def array(tensor: Any) -> Array:
    """The same memory as an array."""
    return tensor.numpy()  # type: ignore[no-any-return]


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """In inference mode, but for gradients."""
    return PREPARE[case.op](enter_inference(threads), case, inputs)


def enter_inference(threads: int) -> Any:
    """torch, for the rest of the process with so many threads and without gradients."""
    torch = import_module("torch")

    torch.set_num_threads(threads)
    _inference.enter_context(torch.inference_mode())
    return torch


def _tensors(torch: Any, inputs: Inputs) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in inputs.items()}


def _softmax(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    x = torch.from_numpy(inputs["x"])
    return Prepared(lambda: torch.softmax(x, -1, out=x), array)


def _linear(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    x, weight, bias = linear_arguments(torch, case, inputs)
    return Prepared(lambda: torch.nn.functional.linear(x, weight, bias), lambda y: array(y.float()))


def linear_arguments(torch: Any, case: Case, inputs: Inputs) -> list[Any]:
    """x, weight and bias in the type of the case."""
    return [torch.from_numpy(inputs[name]).to(getattr(torch, case.dtype)) for name in ("x", "weight", "bias")]


def _decode(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    """Few queries on all keys and values, which torch takes as arrays."""
    kept = getattr(torch, case.dtype)
    q, k, v = (torch.from_numpy(inputs[name]).to(kept) for name in "qkv")
    attend = torch.nn.functional.scaled_dot_product_attention
    grouped = case.sizes["H"] != case.sizes["K"]
    return Prepared(lambda: attend(q, k, v, enable_gqa=grouped), lambda result: array(result.float()))


def _stack(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    tensors, s = _tensors(torch, inputs), case.sizes
    x = tensors.pop("x")
    module = torch.nn.LSTM(s["I"], s["H"], s["L"], bidirectional=True).eval()
    module.load_state_dict(tensors)
    return Prepared(lambda: module(x), lambda result: array(result[0]))


def _sequence(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    """A layer of one direction; a ragged batch as a PackedSequence."""
    module, x = _layer(torch, case.op, case, inputs).eval(), torch.from_numpy(inputs["x"])
    if case.ragged:
        lengths = torch.from_numpy(inputs["lengths"])
        return Prepared(lambda: _packed(torch, module, x, lengths), array)
    dtype = getattr(torch, case.dtype)
    module, x = module.to(dtype), x.to(dtype)
    return Prepared(
        lambda: module(x), lambda result: array(result[0].float() if case.dtype == "bfloat16" else result[0])
    )


def _layer(torch: Any, op: str, case: Case, inputs: Inputs) -> Any:
    """The module of one layer with the weights of the case."""
    module = getattr(torch.nn, op.upper())(case.sizes["I"], case.sizes["H"])
    module.load_state_dict({f"{name}_l0": torch.from_numpy(inputs[name]) for name in WEIGHTS})
    return module


def _lstm_cell(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    x, h, c, *weights = (torch.from_numpy(inputs[name]) for name in ("x", "h", "c", *WEIGHTS))
    return Prepared(lambda: torch.lstm_cell(x, (h, c), *weights), lambda result: array(result[0]))


def _cell(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    x, h, *weights = (torch.from_numpy(inputs[name]) for name in ("x", "h", *WEIGHTS))
    cell = {"gru_cell": torch.gru_cell, "rnn_cell": torch.rnn_tanh_cell}[case.op]
    return Prepared(lambda: cell(x, h, *weights), array)


def attention_arguments(torch: Any, case: Case, inputs: Inputs) -> tuple[list[Any], dict[str, Any]]:
    """q, k and v, as normal tensors, and the options of scaled_dot_product_attention."""
    with torch.inference_mode(False):
        qkv = [torch.from_numpy(inputs[name]).to(getattr(torch, case.dtype)) for name in "qkv"]
        options: dict[str, Any] = {"is_causal": case.causal}
        if case.masked or case.window is not None:
            where = attention.allowed(case, inputs, np.arange(case.sizes["S"]))
            options["attn_mask"] = torch.from_numpy(where)
    return qkv, options


def _attention(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    (q, k, v), options = attention_arguments(torch, case, inputs)
    attend = torch.nn.functional.scaled_dot_product_attention
    return Prepared(lambda: attend(q, k, v, **options), lambda result: array(result.float()))


def _attention_backward(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    """Backward alone, of a graph that is kept."""
    qkv, options = attention_arguments(torch, case, inputs)
    with torch.inference_mode(False), torch.enable_grad():
        dout = torch.from_numpy(inputs["dout"]).to(getattr(torch, case.dtype))
        arguments = [x.requires_grad_() for x in qkv]
        out = torch.nn.functional.scaled_dot_product_attention(*arguments, **options)

    def run() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(out, arguments, dout, retain_graph=True)

    return Prepared(run, lambda result: np.stack([array(x.float()) for x in result]))


def _attention_ragged(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    """The faster of padded and sequence after sequence."""
    qkv, _ = attention_arguments(torch, case, inputs)
    return min((form(torch, case, *qkv) for form in (_padded, _in_sequence)), key=seconds)


def _padded(torch: Any, case: Case, *packed: Any) -> Prepared:
    """All sequences as long as the longest, with a mask of the keys that there are."""
    lengths = torch.from_numpy(np.diff(attention.starts(case)))
    exists = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = [torch.zeros(*exists.shape, *packed[0].shape[1:]) for _ in packed]
    for whole, part in zip(padded, packed, strict=True):
        whole[exists] = part
    q, k, v = (x.transpose(1, 2).contiguous() for x in padded)
    attend = torch.nn.functional.scaled_dot_product_attention
    mask = exists[:, None, None]
    return Prepared(lambda: attend(q, k, v, mask), lambda result: array(result.transpose(1, 2)[exists]))


def _in_sequence(torch: Any, case: Case, q: Any, k: Any, v: Any) -> Prepared:
    attend, starts = torch.nn.functional.scaled_dot_product_attention, attention.starts(case)
    out, sequences = torch.empty_like(q), [slice(*ends) for ends in pairwise(starts)]

    def run() -> Any:
        for sequence in sequences:
            parts = (x[sequence].transpose(0, 1)[None] for x in (q, k, v))
            out[sequence] = attend(*parts)[0].transpose(0, 1)
        return out

    return Prepared(run, array)


def _packed(torch: Any, module: Any, x: Any, lengths: Any) -> Any:
    """y of a ragged batch, through a PackedSequence."""
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    return torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], total_length=len(x))[0]


def _additive(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    """As one writes it, with gradients by autograd."""
    with torch.inference_mode(False):
        query, keys, values, v, dcontext = (torch.from_numpy(inputs[name]) for name in ADDITIVE)
        arguments = [x.requires_grad_() for x in (query, keys, values, v)]

    def run() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            weights = torch.softmax(torch.tanh(query[:, :, None] + keys[:, None]) @ v, -1)
            return torch.autograd.grad(weights @ values, arguments, dcontext)

    return Prepared(run, lambda gradients: array(gradients[0]))


def _gradients(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    """A recurrent network forward and backward with all gradients; dx."""
    with torch.inference_mode(False), torch.enable_grad():
        module = _layer(torch, GRADIENTS[case.op], case, inputs)
        lengths = torch.from_numpy(inputs["lengths"]) if case.ragged else None
        x, dy = torch.from_numpy(inputs["x"]).requires_grad_(), torch.from_numpy(inputs["dy"])
        wanted = [x, *module.parameters()]

    def run() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            y = module(x)[0] if lengths is None else _packed(torch, module, x, lengths)
            return torch.autograd.grad(y, wanted, dy)

    return Prepared(run, lambda gradients: array(gradients[0]))


def _encoder_layer(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    """Forward and backward with all gradients; dx."""
    s = case.sizes
    with torch.inference_mode(False), torch.enable_grad():
        layer = torch.nn.TransformerEncoderLayer(s["E"], s["H"], s["F"], dropout=0.0, batch_first=True)
        layer.load_state_dict({n: torch.from_numpy(value) for n, value in inputs.items() if n not in ("x", "dy")})
        x, dy = torch.from_numpy(inputs["x"]).requires_grad_(), torch.from_numpy(inputs["dy"])
        wanted = [x, *layer.parameters()]

    def run() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(layer(x), wanted, dy)

    return Prepared(run, lambda gradients: array(gradients[0]))


def _attention_gru(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    """A loop over torch.gru_cell, as one writes it, with all gradients by autograd."""
    with torch.inference_mode(False):
        tensors = _tensors(torch, inputs)
        gradients = [tensors.pop(name) for name in ("dy", "dcontext")]
        arguments = [x.requires_grad_() for x in tensors.values()]
    x, annotations, state, weight_ih, weight_hh, bias_ih, bias_hh, query, key, v = (
        tensors[name] for name in ("x", "annotations", "state", *DECODER_WEIGHTS)
    )

    def run() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            keys, h, states, contexts = annotations @ key.T, state, [], []
            for step in x:
                weights = torch.softmax(torch.tanh((h @ query.T)[:, None] + keys) @ v, -1)
                contexts.append(torch.bmm(weights[:, None], annotations)[:, 0])
                h = torch.gru_cell(torch.cat([step, contexts[-1]], 1), h, weight_ih, weight_hh, bias_ih, bias_hh)
                states.append(h)
            return torch.autograd.grad([torch.stack(states), torch.stack(contexts)], arguments, gradients)

    return Prepared(run, lambda gradients: array(gradients[0]))


PREPARE: dict[str, Callable[[Any, Case, Inputs], Prepared]] = {
    **dict.fromkeys(GATES, _sequence),
    **dict.fromkeys(GRADIENTS, _gradients),
    STACK: _stack,
    "additive": _additive,
    "attention": _attention,
    "attention_backward": _attention_backward,
    "attention_gru": _attention_gru,
    "attention_ragged": _attention_ragged,
    "decode": _decode,
    "encoder_layer": _encoder_layer,
    "gru_cell": _cell,
    "linear": _linear,
    "lstm_cell": _lstm_cell,
    "rnn_cell": _cell,
    "softmax": _softmax,
}

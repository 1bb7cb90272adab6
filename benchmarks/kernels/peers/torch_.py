"""PyTorch on the CPU: scaled_dot_product_attention and the modules of torch.nn in inference mode; gradients by
autograd."""

from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
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


def available() -> bool:
    """Whether torch is installed."""
    return find_spec("torch") is not None


def version() -> str:
    """Version and the instruction set that it has chosen."""
    torch = import_module("torch")

    return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"


def supports(case: Case) -> bool:
    """Every case but int8 caches."""
    return case.dtype != "int8"


def _array(tensor: Any) -> Array:
    return tensor.numpy()  # type: ignore[no-any-return]


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Inference mode is entered once, for the life of the process."""
    torch = import_module("torch")

    torch.set_num_threads(threads)
    _inference.enter_context(torch.inference_mode())
    if case.op in attention.OPS:
        return _attention(torch, case, inputs)
    if case.op == "additive":
        return _additive(torch, inputs)
    if case.op in GRADIENTS:
        return _gradients(torch, case, inputs)
    if case.op == "encoder_layer":
        return _encoder_layer(torch, case, inputs)
    if case.op == "attention_gru":
        return _attention_gru(torch, inputs)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    if case.op == "decode":
        kept = getattr(torch, case.dtype)
        q, k, v = (tensors[name].to(kept) for name in "qkv")
        attend = torch.nn.functional.scaled_dot_product_attention
        grouped = case.sizes["H"] != case.sizes["K"]
        return Prepared(lambda: attend(q, k, v, enable_gqa=grouped), lambda result: _array(result.float()))
    x = tensors["x"]
    if case.op == "softmax":
        return Prepared(lambda: torch.softmax(x, -1, out=x), _array)
    if case.op == "linear":
        return Prepared(lambda: torch.nn.functional.linear(x, tensors["weight"], tensors["bias"]), _array)
    if case.op == STACK:
        s = case.sizes
        module = torch.nn.LSTM(s["I"], s["H"], s["L"], bidirectional=True).eval()
        module.load_state_dict({name: value for name, value in tensors.items() if name != "x"})
        return Prepared(lambda: module(x), lambda result: _array(result[0]))
    weights = [tensors[name] for name in WEIGHTS]
    if case.op in GATES:
        module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[case.op](
            case.sizes["I"], case.sizes["H"]
        ).eval()
        module.load_state_dict({f"{name}_l0": tensors[name] for name in WEIGHTS})
        if case.ragged:
            return Prepared(lambda: _packed(torch, module, x, tensors["lengths"]), _array)
        dtype = getattr(torch, case.dtype)
        module, x = module.to(dtype), x.to(dtype)
        return Prepared(
            lambda: module(x), lambda result: _array(result[0].float() if case.dtype == "bfloat16" else result[0])
        )
    h = tensors["h"]
    if case.op == "lstm_cell":
        c = tensors["c"]
        return Prepared(lambda: torch.lstm_cell(x, (h, c), *weights), lambda result: _array(result[0]))
    cell = {"gru_cell": torch.gru_cell, "rnn_cell": torch.rnn_tanh_cell}[case.op]
    return Prepared(lambda: cell(x, h, *weights), _array)


def _attention(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    """Backward alone, of a graph that is kept; ragged batches the faster of padded and sequence after sequence."""
    attend, dtype = torch.nn.functional.scaled_dot_product_attention, getattr(torch, case.dtype)
    with torch.inference_mode(False):
        q, k, v, *dout = (torch.from_numpy(value).to(dtype) for name, value in inputs.items() if name != "mask")
        options = {"is_causal": case.causal}
        if case.masked or case.window is not None:
            where = attention.allowed(case, inputs, np.arange(case.sizes["S"]))
            options["attn_mask"] = torch.from_numpy(where)
    if case.op == "attention_ragged":
        return min((way(torch, case, q, k, v) for way in (_padded, _in_sequence)), key=seconds)
    if case.op == "attention":
        return Prepared(lambda: attend(q, k, v, **options), lambda result: _array(result.float()))
    arguments = [x.requires_grad_() for x in (q, k, v)]
    with torch.inference_mode(False), torch.enable_grad():
        out = attend(*arguments, **options)

    def run() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(out, arguments, dout, retain_graph=True)

    return Prepared(run, lambda result: np.stack([_array(x.float()) for x in result]))


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
    return Prepared(lambda: attend(q, k, v, mask), lambda result: _array(result.transpose(1, 2)[exists]))


def _in_sequence(torch: Any, case: Case, q: Any, k: Any, v: Any) -> Prepared:
    attend, starts = torch.nn.functional.scaled_dot_product_attention, attention.starts(case)
    out, places = torch.empty_like(q), [slice(*place) for place in pairwise(starts)]

    def run() -> Any:
        for place in places:
            parts = (x[place].transpose(0, 1)[None] for x in (q, k, v))
            out[place] = attend(*parts)[0].transpose(0, 1)
        return out

    return Prepared(run, _array)


def _packed(torch: Any, module: Any, x: Any, lengths: Any) -> Any:
    """y of a ragged batch, through a PackedSequence."""
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    return torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], total_length=len(x))[0]


def _additive(torch: Any, inputs: Inputs) -> Prepared:
    """As one writes it, with gradients by autograd."""
    with torch.inference_mode(False):
        query, keys, values, v, dcontext = (torch.from_numpy(inputs[name]) for name in ADDITIVE)
        arguments = [x.requires_grad_() for x in (query, keys, values, v)]

    def run() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            weights = torch.softmax(torch.tanh(query[:, :, None] + keys[:, None]) @ v, -1)
            return torch.autograd.grad(weights @ values, arguments, dcontext)

    return Prepared(run, lambda gradients: _array(gradients[0]))


def _gradients(torch: Any, case: Case, inputs: Inputs) -> Prepared:
    """A recurrent network forward and backward with all gradients; dx."""
    with torch.inference_mode(False), torch.enable_grad():
        kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[GRADIENTS[case.op]]
        module = kind(case.sizes["I"], case.sizes["H"])
        module.load_state_dict({f"{name}_l0": torch.from_numpy(inputs[name]) for name in WEIGHTS})
        lengths = torch.from_numpy(inputs["lengths"]) if case.ragged else None
        x, dy = torch.from_numpy(inputs["x"]).requires_grad_(), torch.from_numpy(inputs["dy"])
        wanted = [x, *module.parameters()]

    def run() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            y = module(x)[0] if lengths is None else _packed(torch, module, x, lengths)
            return torch.autograd.grad(y, wanted, dy)

    return Prepared(run, lambda gradients: _array(gradients[0]))


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

    return Prepared(run, lambda gradients: _array(gradients[0]))


def _attention_gru(torch: Any, inputs: Inputs) -> Prepared:
    """A loop over torch.gru_cell, as one writes it, with all gradients by autograd."""
    with torch.inference_mode(False):
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
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

    return Prepared(run, lambda gradients: _array(gradients[0]))

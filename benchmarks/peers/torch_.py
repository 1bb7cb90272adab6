"""PyTorch on the CPU: scaled_dot_product_attention and the modules of torch.nn in inference mode; gradients by
autograd."""

from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.cases import DECODER_WEIGHTS, GATES, GRADIENTS, Array, Case, Inputs
from benchmarks.peers import Prepared
from benchmarks.plain import ADDITIVE

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
    if case.op == "additive":
        return _additive(torch, inputs)
    if case.op in GRADIENTS:
        return _gradients(torch, case, inputs)
    if case.op == "encoder_layer":
        return _encoder_layer(torch, case, inputs)
    if case.op == "attention_gru":
        return _attention_gru(torch, inputs)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    if case.op == "attention":
        q, k, v, causal = tensors["q"], tensors["k"], tensors["v"], case.causal
        attention = torch.nn.functional.scaled_dot_product_attention
        return Prepared(lambda: attention(q, k, v, is_causal=causal), _array)
    if case.op == "decode":
        kept = getattr(torch, case.dtype)
        q, k, v = (tensors[name].to(kept) for name in "qkv")
        attention = torch.nn.functional.scaled_dot_product_attention
        grouped = case.sizes["H"] != case.sizes["K"]
        return Prepared(lambda: attention(q, k, v, enable_gqa=grouped), lambda result: _array(result.float()))
    x = tensors["x"]
    if case.op == "softmax":
        return Prepared(lambda: torch.softmax(x, -1, out=x), _array)
    if case.op == "linear":
        return Prepared(lambda: torch.nn.functional.linear(x, tensors["weight"], tensors["bias"]), _array)
    weights = [tensors[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    if case.op in GATES:
        module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[case.op](
            case.sizes["I"], case.sizes["H"]
        ).eval()
        module.load_state_dict(
            {f"{name}_l0": tensors[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        )
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
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    with torch.inference_mode(False), torch.enable_grad():
        kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[GRADIENTS[case.op]]
        module = kind(case.sizes["I"], case.sizes["H"])
        module.load_state_dict({f"{name}_l0": torch.from_numpy(inputs[name]) for name in names})
        x, dy = torch.from_numpy(inputs["x"]).requires_grad_(), torch.from_numpy(inputs["dy"])
        wanted = [x, *module.parameters()]

    def run() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(module(x)[0], wanted, dy)

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

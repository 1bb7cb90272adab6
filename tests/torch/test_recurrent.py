"""Recurrent networks on tensors, against torch's modules."""

import pytest
import torch
from torch import nn
from torch.library import opcheck

import fastattn.torch as fat
from tests.torch.close import assert_close

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]

FORMS = {
    "plain": {},
    "deep and both ways": {"num_layers": 2, "bidirectional": True},
    "without biases, batch first": {"bias": False, "batch_first": True},
    "projected": {"proj_size": 3, "num_layers": 2},
    "relu": {"nonlinearity": "relu"},
}
CASES = [(kind, form) for kind in (nn.RNN, nn.GRU, nn.LSTM) for form in FORMS
         if (form != "projected" or kind is nn.LSTM) and (form != "relu" or kind is nn.RNN)]  # fmt: skip
FUNCTIONS = {nn.RNN: fat.rnn, nn.GRU: fat.gru, nn.LSTM: fat.lstm}


def leaves(values):
    return [values] if isinstance(values, torch.Tensor) else [t for value in values for t in leaves(value)]


def total(results):
    return sum(t.sin().sum() for t in leaves(results))


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_values_and_gradients_are_torchs_however_it_is_called(kind, form):
    torch.manual_seed(0)
    module = kind(5, 6, **FORMS[form])
    lanes = module.num_layers * (1 + module.bidirectional)
    x = torch.randn(3, 3, 5, requires_grad=True)
    h = torch.randn(lanes, 3, getattr(module, "proj_size", 0) or 6, requires_grad=True)
    state = (h, torch.randn(lanes, 3, 6, requires_grad=True)) if kind is nn.LSTM else h
    weights = dict(module.named_parameters())
    options = {"batch_first": module.batch_first}
    if kind is nn.RNN:
        options["nonlinearity"] = module.nonlinearity
    inputs = [x, *leaves(state), *weights.values()]

    def ours(x, state, weights):
        return FUNCTIONS[kind](x, state, weights, **options)

    expected = module(x, state)
    gradients = torch.autograd.grad(total(expected), inputs)
    with torch.no_grad():
        assert_close(leaves(ours(x, state, weights)), leaves(expected))
    for call in (ours, torch.compile(ours, fullgraph=True, backend="aot_eager")):
        results = call(x, state, weights)
        assert_close(leaves(results), leaves(expected))
        assert_close(torch.autograd.grad(total(results), inputs), gradients)
    assert_close(torch.func.grad(lambda x: total(ours(x, state, weights)))(x), gradients[0])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_the_registered_operation_is_sound(kind):
    module = kind(5, 6, num_layers=2)
    cell = kind.__name__.lower()
    x = torch.randn(4, 3, 5, requires_grad=True)
    form = cell, "tanh", 2, 1, True, False, False, 0.0, 0
    # Without lengths: what is kept for backward is unset beyond them.
    opcheck(torch.ops.fastattn.recurrent.default, (x, None, None, list(module.parameters()), None, *form, True))
    weights = [p.detach() for p in module.parameters()]
    arguments = (x.detach(), None, None, weights, torch.tensor([4, 0, 2]), *form, False)
    opcheck(torch.ops.fastattn.recurrent.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_lengths_and_seeded_dropout_do_not_depend_on_the_rest_of_the_batch():
    module = nn.GRU(5, 6, num_layers=2)
    weights, x = dict(module.named_parameters()), torch.randn(7, 3, 5)
    y, h = fat.gru(x, None, weights, lengths=torch.tensor([7, 3, 5]), dropout=0.5, seed=9)
    alone, last = fat.gru(x[:, :1], None, weights, lengths=torch.tensor([7]), dropout=0.5, seed=9)
    assert torch.equal(y[:, :1], alone)
    assert torch.equal(h[:, :1], last)
    assert not y[3:, 1].any()


def test_lengths_have_gradients_when_compiled():
    module = nn.LSTM(5, 6, num_layers=2)
    weights, lengths = dict(module.named_parameters()), torch.tensor([7, 3, 5])
    x = torch.randn(7, 3, 5, requires_grad=True)
    results = []
    for call in (fat.lstm, torch.compile(fat.lstm, fullgraph=True, backend="aot_eager")):
        y, state = call(x, None, weights, lengths=lengths)
        results.append(torch.autograd.grad(total((y, *state)), [x, *weights.values()]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_second_derivatives_raise():
    module = nn.LSTM(5, 6)
    x = torch.randn(4, 3, 5, requires_grad=True)
    y, _ = fat.lstm(x, None, dict(module.named_parameters()))
    (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(dx.sum(), x)


def test_wrong_weights_are_named():
    module = nn.LSTM(5, 6)
    weights, x = dict(module.named_parameters()), torch.randn(4, 3, 5)
    with pytest.raises(ValueError, match="lstm: weights must hold 'weight_hh_l0'"):
        fat.lstm(x, None, {name: w for name, w in weights.items() if name != "weight_hh_l0"})
    with pytest.raises(ValueError, match="lstm: weights must not hold 'weight_peephole_l0'"):
        fat.lstm(x, None, weights | {"weight_peephole_l0": torch.zeros(3, 6)})
    with pytest.raises(ValueError, match="lstm: state must be a pair"):
        fat.lstm(x, torch.zeros(1, 3, 6), weights)

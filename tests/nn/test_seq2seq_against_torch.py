"""Whole models of Seq2Seq written once more in torch: the loss, and the gradients of all parameters."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import nn
from tests.nn.oracle import DRAWS, assert_near, moved

torch = pytest.importorskip("torch", exc_type=ImportError)

B, S, T, EMBED, HIDDEN = 4, 7, 5, 6, 10
SOURCE, TARGET = 11, 9
MODELS = 6
KINDS = {
    "bahdanau": {"kind": "bahdanau", "attention_size": 8},
    "cho": {"kind": "cho"},
    "sutskever": {"kind": "sutskever", "num_layers": 2},
}


class Parts:
    """Parameters by name, and those of a part of the model."""

    def __init__(self, tensors, prefix=""):
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name):
        return self.tensors[self.prefix + name]

    def part(self, name):
        return Parts(self.tensors, f"{self.prefix}{name}.")

    def own(self):
        n = len(self.prefix)
        return {name[n:]: value for name, value in self.tensors.items() if name.startswith(self.prefix)}


def linear(p, x):
    return torch.nn.functional.linear(x, p["weight"], p["bias"])


def network(module, p, x, lengths=None, state=None):
    """A torch.nn.GRU or LSTM with the parameters p: y beyond the lengths is zero."""
    module = module.to(x.dtype)
    if lengths is None:
        return torch.func.functional_call(module, p.own(), (x, state))
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, state = torch.func.functional_call(module, p.own(), (packed,))
    return torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0], state


def reset_first_step(p, x, h):
    """A step of Cho's GRU, whose reset comes before the product: torch has none."""
    w_ih, w_hh = p["weight_ih_l0"], p["weight_hh_l0"]
    of_x = (x @ w_ih.T + p["bias_ih_l0"]).split(HIDDEN, -1)
    bias = p["bias_hh_l0"].split(HIDDEN)
    w = w_hh.split(HIDDEN)
    r, z = (torch.sigmoid(of_x[i] + h @ w[i].T + bias[i]) for i in (0, 1))
    n = torch.tanh(of_x[2] + (r * h) @ w[2].T + bias[2])
    return (1 - z) * n + z * h


def cho(p, source, lengths, target):
    h = source.new_zeros(B, HIDDEN)
    for t in range(S):
        h = torch.where((t < lengths)[:, None], reset_first_step(p.part("encoder"), source[:, t], h), h)
    c = torch.tanh(linear(p.part("summary"), h))
    h, outputs = torch.tanh(linear(p.part("start"), c)), []
    for t in range(T):
        inputs = torch.cat([target[:, t], c], -1)
        h = reset_first_step(p.part("decoder"), inputs, h)
        outputs.append(torch.cat([h, inputs], -1))
    return torch.stack(outputs, 1)


def sutskever(p, source, lengths, target):
    encoder, decoder = (torch.nn.LSTM(EMBED, HIDDEN, 2, batch_first=True) for _ in range(2))
    _, state = network(encoder, p.part("encoder"), source, lengths)
    return network(decoder, p.part("decoder"), target, state=state)[0]


def bahdanau(p, source, lengths, target):
    encoder = torch.nn.GRU(EMBED, HIDDEN, batch_first=True, bidirectional=True)
    annotations, last = network(encoder, p.part("encoder"), source, lengths)
    cell, attention = p.part("decoder"), p.part("decoder.attention")
    keys = annotations @ attention["key.weight"].T
    exists = torch.arange(S) < lengths[:, None]
    h, outputs = torch.tanh(linear(p.part("start"), last[1])), []
    for t in range(T):
        scores = torch.tanh((h @ attention["query.weight"].T)[:, None] + keys) @ attention["v"]
        context = (scores.masked_fill(~exists, -torch.inf).softmax(-1)[..., None] * annotations).sum(1)
        inputs = torch.cat([target[:, t], context], -1)
        h = torch.gru_cell(inputs, h, cell["weight_ih"], cell["weight_hh"], cell["bias_ih"], cell["bias_hh"])
        outputs.append(torch.cat([h, inputs], -1))
    return torch.stack(outputs, 1)


def in_torch(kind, parameters, source, lengths, target, following):
    """Loss and gradients, in the order of the parameters."""
    tensors = {name: torch.from_numpy(value).requires_grad_() for name, value in parameters.items()}
    p = Parts(tensors)
    source, lengths, target, following = map(torch.from_numpy, (source, lengths, target, following))
    x, y = p["source.weight"][source], p["target.weight"][target]
    logits = linear(p.part("output"), globals()[kind](p.part("core"), x, lengths, y))
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, TARGET), following.ravel())
    loss.backward()
    return [loss.detach().numpy(), *(t.grad.numpy() for t in tensors.values())]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_loss_and_all_gradients_are_those_of_torch(rng, options):
    for _ in range(MODELS):
        m = nn.Seq2Seq(SOURCE, TARGET, EMBED, HIDDEN, rng=rng, **options)
        source, target = rng.integers(0, SOURCE, (B, S)), rng.integers(0, TARGET, (B, T))
        following, lengths = rng.integers(0, TARGET, (B, T)), rng.integers(1, S + 1, B)
        logits, saved = m.forward(source, target, lengths)
        loss, of_loss = fa.cross_entropy_forward(logits, following)
        _, grads = m.backward(fa.cross_entropy_backward(1.0, of_loss), saved)
        names, arrays = zip(*m.parameters().items(), strict=True)
        assert set(names) == set(grads)
        wide = [array.astype(np.float64) for array in arrays]
        results = [
            in_torch(options["kind"], dict(zip(names, moved(wide, seed) if seed else wide, strict=True)), source,
                     lengths, target, following)
            for seed in range(DRAWS + 1)
        ]  # fmt: skip
        assert_near([("loss", np.asarray(loss)), *((name, grads[name]) for name in names)], results)

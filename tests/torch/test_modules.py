"""Modules in the place of torch's: results, gradients, and everything that must survive the change of class."""

import copy
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

import fastattn.torch as fat
from fastattn.torch import modules
from tests.torch.close import assert_close
from tests.torch.test_recurrent import leaves, total

# torch's own, of its fused path and of projections.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype:UserWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]

RECURRENT = {
    "lstm": lambda: nn.LSTM(5, 6, num_layers=2, bidirectional=True),
    "projected": lambda: nn.LSTM(5, 6, proj_size=3, batch_first=True),
    "gru": lambda: nn.GRU(5, 6, num_layers=2),
    "rnn": lambda: nn.RNN(5, 6, nonlinearity="relu", bias=False),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 5), (1, 1, 5)])
def test_recurrent_modules_give_torchs_results(name, shape):
    torch.manual_seed(1)
    module, x = RECURRENT[name](), torch.randn(shape, requires_grad=True)
    expected = module(x)
    gradients = torch.autograd.grad(total(expected), [x, *module.parameters()])
    fat.accelerate(module)
    found = module(x)
    assert_close(leaves(found), leaves(expected))
    assert_close(torch.autograd.grad(total(found), [x, *module.parameters()]), gradients)
    state = expected[1]
    with torch.no_grad():
        again = module(x, state)
        assert_close(leaves(again), leaves(fat.restore(module)(x, state)))


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("name", RECURRENT)
def test_packed_sequences_give_torchs_results(name, sort):
    torch.manual_seed(2)
    module, lengths = RECURRENT[name](), [5, 3, 2] if sort else [3, 5, 2]
    x = torch.randn(5, 3, 5, requires_grad=True)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sort)
    expected = module(packed)
    gradients = torch.autograd.grad(total(expected[0].data) + total(expected[1]), [x, *module.parameters()])
    fat.accelerate(module)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sort)
    found = module(packed)
    assert torch.equal(found[0].batch_sizes, expected[0].batch_sizes)
    assert_close(found[0].data, expected[0].data)
    assert_close(leaves(found[1]), leaves(expected[1]))
    loss = total(found[0].data) + total(found[1])
    assert_close(torch.autograd.grad(loss, [x, *module.parameters()]), gradients)


def test_weights_that_change_are_packed_anew():
    module, x = fat.accelerate(nn.LSTM(5, 6)), torch.randn(3, 2, 5)
    with torch.no_grad():
        module(x)
        module.weight_hh_l0.mul_(2)
        assert_close(module(x)[0], fat.restore(copy.deepcopy(module))(x)[0])
        module.load_state_dict(nn.LSTM(5, 6).state_dict())
        assert_close(module(x)[0], fat.restore(copy.deepcopy(module))(x)[0])
        module.weight_ih_l0.data = module.weight_ih_l0 * 3
        assert_close(module(x)[0], fat.restore(copy.deepcopy(module))(x)[0])


def test_packed_weights_are_kept_no_longer_than_the_module():
    module = fat.accelerate(nn.GRU(5, 6))
    with torch.no_grad():
        module(torch.randn(3, 2, 5))
    assert module in modules._packed
    gone = weakref.ref(module)
    del module
    assert gone() is None
    assert all(key is not None for key in modules._packed)


def test_dropout_between_layers_drops_its_share_and_follows_torchs_seed():
    module = fat.accelerate(nn.LSTM(5, 64, num_layers=2, dropout=0.5))
    x = torch.randn(20, 8, 5)
    torch.manual_seed(4)
    first = module(x)[0]
    torch.manual_seed(4)
    assert torch.equal(module(x)[0], first)
    assert not torch.equal(module(x)[0], first)
    assert torch.equal(module.eval()(x)[0], module(x)[0])


@pytest.mark.parametrize("module", [nn.LSTM(5, 6), nn.RNN(5, 6)])
def test_a_state_of_the_wrong_shape_is_named(module):
    state = torch.zeros(1, 3, 6)
    given = (state, torch.zeros(1, 2, 6)) if isinstance(module, nn.LSTM) else state
    with pytest.raises(RuntimeError, match=r"h must have shape \(1, 2, 6\), got \(1, 3, 6\)"):
        fat.accelerate(module)(torch.zeros(3, 2, 5), given)


# ---- attention ----

PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])
FLOAT_PADDING = torch.zeros(2, 5).masked_fill(PADDING, -torch.inf)
MASKS = {
    "none": {},
    "bool": {"attn_mask": torch.ones(4, 5, dtype=torch.bool).triu(2)},
    "float": {"attn_mask": torch.randn(4, 5)},
    "of each head": {"attn_mask": torch.randn(8, 4, 5)},
    "padding": {"key_padding_mask": PADDING},
    "both": {"key_padding_mask": PADDING, "attn_mask": torch.ones(4, 5, dtype=torch.bool).triu(2)},
    "both of floats": {"key_padding_mask": FLOAT_PADDING, "attn_mask": torch.randn(4, 5)},
}
HEADS = {
    "batch first": {"batch_first": True},
    "length first": {},
    "other sizes": {"kdim": 6, "vdim": 7, "bias": False},
}


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("form", HEADS)
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_multihead_attention_gives_torchs_results(masks, form, weights):
    torch.manual_seed(3)
    module = nn.MultiheadAttention(8, 4, **HEADS[form])
    sizes = module.embed_dim, module.kdim, module.vdim
    q, k, v = (torch.randn(2, n, size) for n, size in zip((4, 5, 5), sizes, strict=True))
    if not module.batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    expected = module(q, k, v, need_weights=weights, **masks)
    gradients = torch.autograd.grad(total([t for t in expected if t is not None]), list(module.parameters()))
    fat.accelerate(module)
    found = module(q, k, v, need_weights=weights, **masks)
    assert_close(found, expected)
    loss = total([t for t in found if t is not None])
    assert_close(torch.autograd.grad(loss, list(module.parameters())), gradients)
    with torch.no_grad():
        for average in (True, False) if weights else (True,):
            found = module(q, k, v, need_weights=weights, average_attn_weights=average, **masks)
            theirs = fat.restore(module)(q, k, v, need_weights=weights, average_attn_weights=average, **masks)
            fat.accelerate(module)
            assert_close(found, theirs)


def test_self_attention_causal_hints_and_single_sequences_as_torch_has_them():
    module = nn.MultiheadAttention(8, 4)
    x, mask = torch.randn(5, 8), torch.ones(5, 5, dtype=torch.bool).triu(1)
    calls = [
        lambda m: m(x, x, x),
        lambda m: m(x[:, None], x[:, None], x[:, None], attn_mask=mask, is_causal=True, need_weights=False),
        lambda m: m(x[:, None], x[:, None], x[:, None], attn_mask=mask, is_causal=True),
    ]
    with torch.no_grad():
        expected = [call(module) for call in calls]
        fat.accelerate(module)
        assert_close([call(module) for call in calls], expected)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_transformer_encoders_give_torchs_results(train, norm_first):
    torch.manual_seed(5)
    layer = nn.TransformerEncoderLayer(8, 4, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).train(train)
    x = torch.randn(2, 5, 8)
    masks = [{}, {"src_key_padding_mask": PADDING}, {"mask": torch.ones(5, 5, dtype=torch.bool).triu(1)}]
    for options in masks:
        fat.restore(model)
        with torch.set_grad_enabled(train):
            expected = model(x, **options)
            fat.accelerate(model)
            found = model(x, **options)
        inside = ~PADDING if "src_key_padding_mask" in options else torch.ones(2, 5, dtype=torch.bool)
        assert_close(found[inside], expected[inside])


@pytest.mark.usefixtures("own_sizes")
@pytest.mark.parametrize(("length", "grad", "ours"),
                         [(31, True, False), (32, True, True), (127, False, False), (128, False, True)])  # fmt: skip
def test_attention_is_taken_over_from_the_length_where_it_is_faster(length, grad, ours, monkeypatch):
    calls = []
    monkeypatch.setattr(modules, "attention", lambda *a, **k: calls.append(1) or fat.attention(*a, **k))
    module = fat.accelerate(nn.MultiheadAttention(8, 2, batch_first=True))
    x = torch.randn(1, length, 8)
    with torch.set_grad_enabled(grad):
        module(x, x, x, need_weights=False)
        module(x, x, x)  # with weights: torch's
        module(x[0], x[0], x[0], need_weights=False)
    assert len(calls) == 2 * ours


@pytest.mark.usefixtures("own_sizes")
@pytest.mark.parametrize(("length", "ours"), [(191, False), (192, True)])
def test_short_sequences_of_encoders_are_left_to_torchs_fused_layers(length, ours, monkeypatch):
    calls = []
    monkeypatch.setattr(modules, "attention", lambda *a, **k: calls.append(1) or fat.attention(*a, **k))
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = fat.accelerate(nn.TransformerEncoder(layer, 2)).eval()
    padding = torch.arange(length)[None] >= torch.tensor([[length - 3], [length]])
    with torch.no_grad():
        model(torch.randn(2, length, 8), src_key_padding_mask=padding)
    assert len(calls) == 2 * ours


def test_layers_that_are_named_give_torchs_results():
    for ours, theirs in ((fat.Linear(7, 4), nn.Linear(7, 4)), (fat.LayerNorm(7), nn.LayerNorm(7)),
                         (fat.RMSNorm(7), nn.RMSNorm(7))):  # fmt: skip
        theirs.load_state_dict(ours.state_dict())
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            x = torch.randn(3, 7, dtype=dtype)
            assert_close(ours.to(dtype)(x), theirs.to(dtype)(x))


# ---- what survives ----


def model():
    torch.manual_seed(6)
    return nn.ModuleDict(
        {"lstm": nn.LSTM(5, 8, batch_first=True), "attention": nn.MultiheadAttention(8, 2, batch_first=True)}
    )


def run(model, x):
    y, _ = model["lstm"](x)
    return model["attention"](y, y, y, need_weights=False)[0]


def test_accelerate_changes_classes_alone_and_restore_puts_them_back():
    net, x = model(), torch.randn(2, 3, 5)
    names, classes = list(net.state_dict()), [type(m) for m in net.modules()]
    parameters = list(net.parameters())
    assert fat.accelerate(net) is net
    assert isinstance(net["lstm"], nn.LSTM)
    assert type(net["lstm"]) is fat.LSTM
    assert list(net.state_dict()) == names
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    run(net, x)
    assert fat.restore(net) is net
    assert [type(m) for m in net.modules()] == classes
    with pytest.raises(TypeError, match=r"accelerate: model must be a torch.nn.Module, got list"):
        fat.accelerate([net])


def test_copies_pickles_hooks_and_types_survive():
    net, x, calls = model(), torch.randn(2, 3, 5), []
    net["lstm"].register_forward_hook(lambda *_: calls.append(1))
    expected = run(fat.accelerate(net), x)
    assert calls == [1]
    buffer = io.BytesIO()
    net["lstm"]._forward_hooks.clear()
    torch.save(net, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(buffer, weights_only=False)):
        assert torch.equal(run(other, x), expected)
    assert_close(run(net.double(), x.double()), expected.double().detach(), rough=True)
    assert run(net.bfloat16(), x.bfloat16()).dtype is torch.bfloat16


def test_a_class_that_is_derived_from_torchs_is_left_alone():
    class Mine(nn.LSTM):
        def forward(self, x):
            return "mine"

    assert type(fat.accelerate(Mine(5, 6))) is Mine


def test_autocast_gives_torchs_types():
    net, x = model(), torch.randn(2, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(fat.accelerate(net), x).dtype is torch.bfloat16
        assert net["lstm"](x)[0].dtype is torch.bfloat16


def test_a_network_learns():
    torch.manual_seed(7)
    net = fat.accelerate(nn.Sequential(nn.LSTM(5, 16)))
    head = nn.Linear(16, 1)
    x = torch.randn(6, 32, 5)
    target = x.sum(2, keepdim=True).cumsum(0).sign()
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], 0.02)
    losses = []
    for _ in range(60):
        loss = (head(net(x)[0]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3

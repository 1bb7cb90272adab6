"""State dicts of torch.nn load; the modules compute the same as torch in float64, within tests/nn/oracle.py."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import nn
from tests.nn.oracle import DRAWS, assert_near, moved

torch = pytest.importorskip("torch", exc_type=ImportError)

SIZES = {"d_model": 24, "nhead": 4, "dim_feedforward": 40}
OPTIONS = [{"norm_first": first, "activation": name, "bias": bias}
           for first, name, bias in ((False, "relu", True), (True, "gelu", True), (True, "relu", False))]  # fmt: skip


def scrambled(module):
    """Every parameter drawn anew: biases and norms too, which begin as constants."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return module.eval()


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def runs(theirs, inputs, call):
    """Results of a call of the module and its inputs in float64, then of moved ones."""
    theirs.double()
    parameters = list(theirs.parameters())
    arrays = [p.detach().numpy().copy() for p in parameters] + [x.astype(np.float64) for x in inputs]
    for seed in range(DRAWS + 1):
        own = moved(arrays, seed) if seed else arrays
        with torch.no_grad():
            for parameter, value in zip(parameters, own, strict=False):
                parameter.copy_(torch.from_numpy(value))
        yield call([torch.from_numpy(x) for x in own[len(parameters) :]])


def check(ours, theirs, *inputs, **options):
    """`options` are torch's; inputs are float32."""
    ours.load_state_dict(theirs.state_dict())

    def call(tensors):
        with torch.no_grad():
            result = theirs(*tensors, **options)
        return [(result[0] if isinstance(result, tuple) else result).numpy()]

    return list(runs(theirs, inputs, call))


def assert_same(got, results):
    assert_near([("result", got)], results)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_encoder_layer(options, causal):
    theirs = scrambled(torch.nn.TransformerEncoderLayer(**SIZES, dropout=0, batch_first=True, **options))
    ours = nn.TransformerEncoderLayer(**SIZES, **options)
    x = numbers(1, 3, 9, 24)
    mask = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1) if causal else None
    results = check(ours, theirs, x, src_mask=mask)
    assert_same(ours(x, causal=causal), results)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_decoder_layer(options):
    theirs = scrambled(torch.nn.TransformerDecoderLayer(**SIZES, dropout=0, batch_first=True, **options))
    ours = nn.TransformerDecoderLayer(**SIZES, **options)
    x, memory = numbers(1, 3, 9, 24), numbers(2, 3, 5, 24)
    mask = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1)
    results = check(ours, theirs, x, memory, tgt_mask=mask)
    assert_same(ours(x, memory), results)


def test_multi_head_attention_to_a_context():
    theirs = scrambled(torch.nn.MultiheadAttention(24, 4, batch_first=True))
    ours = nn.MultiHeadAttention(24, 4)
    x, context = numbers(1, 3, 9, 24), numbers(2, 3, 5, 24)
    padding = torch.arange(5) >= torch.tensor([5, 2, 4])[:, None]
    results = check(ours, theirs, x, context, context, key_padding_mask=padding)
    assert_same(ours(x, context, lengths=[5, 2, 4]), results)


def test_transformer():
    sizes = {"num_encoder_layers": 2, "num_decoder_layers": 2, **SIZES}
    theirs = scrambled(torch.nn.Transformer(**sizes, dropout=0, batch_first=True))
    ours = nn.Transformer(**sizes)
    source, target = numbers(1, 3, 9, 24), numbers(2, 3, 5, 24)
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    results = check(ours, theirs, source, target, tgt_mask=mask)
    assert_same(ours(source, target), results)


@pytest.mark.parametrize("name", ["Linear", "LayerNorm", "RMSNorm"])
def test_small_layers(name):
    arguments = (24, 7) if name == "Linear" else (24,)
    options = {} if name == "Linear" else {"eps": 1e-5}
    theirs = scrambled(getattr(torch.nn, name)(*arguments, **options))
    ours = getattr(nn, name)(*arguments)
    x = numbers(1, 30, 9, 24)
    results = check(ours, theirs, x)
    assert_same(ours(x), results)


def assert_same_gradients(theirs, ours, inputs, dy, our_options, their_options):
    """dx and the parameters' gradients."""
    ours.load_state_dict(theirs.state_dict())
    dx, grads = ours.backward(dy, ours.forward(*inputs, **our_options)[1])

    def call(tensors):
        *tensors, gradient = tensors
        theirs.zero_grad()
        for tensor in tensors:
            tensor.requires_grad_()
        result = theirs(*tensors, **their_options)
        (result[0] if isinstance(result, tuple) else result).backward(gradient)
        return [t.grad.numpy().copy() for t in (*tensors, *theirs.parameters())]

    names = [name for name, _ in theirs.named_parameters()]
    assert set(names) == set(grads)
    got = [*(dx if isinstance(dx, tuple) else (dx,)), *(grads[name] for name in names)]
    labels = [*map(str, range(len(inputs))), *names]
    assert_near(list(zip(labels, got, strict=True)), list(runs(theirs, [*inputs, dy], call)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_of_an_encoder_layer(options):
    theirs = scrambled(torch.nn.TransformerEncoderLayer(**SIZES, dropout=0, batch_first=True, **options)).train()
    ours = nn.TransformerEncoderLayer(**SIZES, **options)
    x, dy = numbers(1, 3, 9, 24), numbers(2, 3, 9, 24)
    assert_same_gradients(theirs, ours, [x], dy, {}, {})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_of_a_decoder_layer(options):
    theirs = scrambled(torch.nn.TransformerDecoderLayer(**SIZES, dropout=0, batch_first=True, **options)).train()
    ours = nn.TransformerDecoderLayer(**SIZES, **options)
    x, memory, dy = numbers(1, 3, 9, 24), numbers(2, 3, 5, 24), numbers(3, 3, 9, 24)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64).isinf()
    assert_same_gradients(theirs, ours, [x, memory], dy, {}, {"tgt_mask": mask})


def test_gradients_of_a_transformer():
    sizes = {"num_encoder_layers": 2, "num_decoder_layers": 2, **SIZES}
    theirs = scrambled(torch.nn.Transformer(**sizes, dropout=0, batch_first=True)).train()
    ours = nn.Transformer(**sizes)
    source, target, dy = numbers(1, 3, 9, 24), numbers(2, 3, 5, 24), numbers(3, 3, 5, 24)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64).isinf()
    assert_same_gradients(theirs, ours, [source, target], dy, {}, {"tgt_mask": mask})


@pytest.mark.parametrize(("smoothing", "reduction"), [(0.0, "mean"), (0.1, "sum"), (0.1, "none")])
def test_cross_entropy_and_its_gradient(smoothing, reduction):
    logits, targets = numbers(1, 40, 30), np.random.default_rng(2).integers(0, 30, 40)
    targets[[3, 7]] = -100
    options = {"label_smoothing": smoothing, "reduction": reduction}
    loss, saved = fa.cross_entropy_forward(logits, targets, **options)
    dloss = numbers(3, 40) if reduction == "none" else np.float32(2)
    results = []
    for seed in range(DRAWS + 1):
        wide = [logits.astype(np.float64), np.asarray(dloss, np.float64)]
        x, gradient = map(torch.from_numpy, moved(wide, seed) if seed else wide)
        x.requires_grad_()
        theirs = torch.nn.functional.cross_entropy(x, torch.from_numpy(targets), **options)
        theirs.backward(gradient)
        results.append([theirs.detach().numpy(), x.grad.numpy()])
    assert_near([("loss", np.asarray(loss)), ("dlogits", fa.cross_entropy_backward(dloss, saved))], results)

"""State dicts of torch.nn load; the modules compute the same, within twice the error of torch itself in float32."""

import numpy as np
import pytest

from fastattn import nn
from tests.errors import ErrorRule

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


def check(ours, theirs, *inputs, **options):
    """`options` are torch's; inputs are float32."""
    ours.load_state_dict(theirs.state_dict())
    tensors = [torch.from_numpy(x) for x in inputs]
    with torch.no_grad():
        single = theirs(*tensors, **options)
        double = theirs.double()(*[t.double() for t in tensors], **options)
    single, double = (r[0] if isinstance(r, tuple) else r for r in (single, double))
    return single.numpy(), double.numpy()


def assert_same(got, single, double):
    rule = ErrorRule()
    rule.add(got, single, double)
    rule.check(median=False)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_encoder_layer(options, causal):
    theirs = scrambled(torch.nn.TransformerEncoderLayer(**SIZES, dropout=0, batch_first=True, **options))
    ours = nn.TransformerEncoderLayer(**SIZES, **options)
    x = numbers(1, 3, 9, 24)
    mask = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1) if causal else None
    single, double = check(ours, theirs, x, src_mask=mask)
    assert_same(ours(x, causal=causal), single, double)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_decoder_layer(options):
    theirs = scrambled(torch.nn.TransformerDecoderLayer(**SIZES, dropout=0, batch_first=True, **options))
    ours = nn.TransformerDecoderLayer(**SIZES, **options)
    x, memory = numbers(1, 3, 9, 24), numbers(2, 3, 5, 24)
    mask = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1)
    single, double = check(ours, theirs, x, memory, tgt_mask=mask)
    assert_same(ours(x, memory), single, double)


def test_multi_head_attention_to_a_context():
    theirs = scrambled(torch.nn.MultiheadAttention(24, 4, batch_first=True))
    ours = nn.MultiHeadAttention(24, 4)
    x, context = numbers(1, 3, 9, 24), numbers(2, 3, 5, 24)
    padding = torch.arange(5) >= torch.tensor([5, 2, 4])[:, None]
    single, double = check(ours, theirs, x, context, context, key_padding_mask=padding)
    assert_same(ours(x, context, lengths=[5, 2, 4]), single, double)


def test_transformer():
    sizes = {"num_encoder_layers": 2, "num_decoder_layers": 2, **SIZES}
    theirs = scrambled(torch.nn.Transformer(**sizes, dropout=0, batch_first=True))
    ours = nn.Transformer(**sizes)
    source, target = numbers(1, 3, 9, 24), numbers(2, 3, 5, 24)
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    single, double = check(ours, theirs, source, target, tgt_mask=mask)
    assert_same(ours(source, target), single, double)


@pytest.mark.parametrize("name", ["Linear", "LayerNorm", "RMSNorm"])
def test_small_layers(name):
    arguments = (24, 7) if name == "Linear" else (24,)
    options = {} if name == "Linear" else {"eps": 1e-5}
    theirs = scrambled(getattr(torch.nn, name)(*arguments, **options))
    ours = getattr(nn, name)(*arguments)
    x = numbers(1, 30, 9, 24)
    single, double = check(ours, theirs, x)
    assert_same(ours(x), single, double)

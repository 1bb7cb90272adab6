"""Linear layers, norms and additive attention on tensors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import fastattn as fa
import fastattn.torch as fat
from tests.torch.close import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

x, weight, bias, row = (torch.randn(*shape, generator=torch.Generator().manual_seed(i))
                        for i, shape in enumerate([(3, 5, 7), (4, 7), (4,), (7,)]))  # fmt: skip
ADDITIVE = [torch.randn(*shape) for shape in ((2, 3, 4), (2, 5, 4), (2, 5, 6), (4,))]

CALLS = {
    "linear": (fat.linear, F.linear, (x, weight, bias)),
    "linear without bias": (fat.linear, F.linear, (x, weight)),
    "relu": (lambda *a: fat.linear(*a, activation="relu"), lambda *a: F.relu(F.linear(*a)), (x, weight, bias)),
    "gelu": (lambda *a: fat.linear(*a, activation="gelu"), lambda *a: F.gelu(F.linear(*a)), (x, weight, bias)),
    "layer norm": (fat.layer_norm, lambda x, w, b: F.layer_norm(x, (7,), w, b), (x, row, row + 1)),
    "layer norm alone": (fat.layer_norm, lambda x: F.layer_norm(x, (7,)), (x,)),
    "rms norm": (fat.rms_norm, lambda x, w: F.rms_norm(x, (7,), w, 1e-5), (x, row)),
    "additive attention": (
        fat.additive_attention,
        lambda q, k, values, v: ((q[:, :, None] + k[:, None]).tanh() @ v).softmax(-1) @ values,
        ADDITIVE,
    ),
}


@pytest.mark.parametrize(("ours", "theirs", "arguments"), CALLS.values(), ids=CALLS)
def test_values_and_gradients_are_torchs_however_it_is_called(ours, theirs, arguments):
    arguments = [a.clone().requires_grad_() for a in arguments]
    expected = theirs(*arguments)
    gradients = torch.autograd.grad(expected.sin().sum(), arguments)
    with torch.no_grad():
        assert_close(ours(*arguments), expected)
    for call in (ours, torch.compile(ours, fullgraph=True, backend="aot_eager")):
        y = call(*arguments)
        assert_close(y, expected)
        assert_close(torch.autograd.grad(y.sin().sum(), arguments), gradients)
    indices = tuple(range(len(arguments)))
    assert_close(torch.func.grad(lambda *a: ours(*a).sin().sum(), indices)(*arguments), gradients)


@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives_raise(name):
    ours, _, arguments = CALLS[name]
    arguments = [a.clone().requires_grad_() for a in arguments]
    first = torch.autograd.grad(ours(*arguments).sin().sum(), arguments, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(sum(g.sum() for g in first), arguments)


def test_the_registered_operations_are_sound():
    ops = torch.ops.fastattn
    given = [a.clone().requires_grad_() for a in (x, weight, bias)]
    for activation in (None, "relu", "gelu", "tanh"):
        opcheck(ops.linear.default, (*given, activation, True))
    opcheck(ops.linear.default, (x, weight, None, None, False))
    for kind, affine in (("layer", (row.clone().requires_grad_(), row.clone().requires_grad_())), ("rms", (row, None))):
        opcheck(ops.norm.default, (kind, given[0], *affine, 1e-5))
    opcheck(ops.additive_attention.default, (*(a.clone().requires_grad_() for a in ADDITIVE), None, None))


def test_additive_attention_takes_lengths_masks_and_gives_weights():
    lengths, mask = torch.tensor([5, 2]), torch.rand(2, 3, 5) > 0.3
    context, weights = fat.additive_attention(*ADDITIVE, lengths=lengths, mask=mask, return_weights=True)
    arrays = [np.asarray(a) for a in (*ADDITIVE, lengths, mask)]
    expected = fa.additive_attention(*arrays[:4], lengths=arrays[4], mask=arrays[5], return_weights=True)
    assert np.array_equal(context, expected[0])
    assert np.array_equal(weights, expected[1])


def test_a_wrong_tensor_is_named():
    with pytest.raises(ValueError, match="linear: x must have a last axis of 3, the columns of weight"):
        fat.linear(x, weight[:, :3])
    with pytest.raises(TypeError, match=r"rms_norm: weight must be .*, got float64"):
        fat.rms_norm(x, row.double())
    with pytest.raises(TypeError, match="layer_norm: x must be a tensor, got list"):
        fat.layer_norm([1.0])

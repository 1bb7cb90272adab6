"""fastattn.torch.attention_varlen: bits of each sequence alone, gradients, and what torch.library wants."""

import numpy as np
import pytest
import torch
from torch.library import opcheck

import fastattn as fa
import fastattn.torch as fat

# torch's own, of torch.jit inside of torch.compile and torch.func.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

OFFSETS = torch.tensor([0, 2, 2, 9], dtype=torch.int32)


def qkv(dtype=torch.float32, grad=True):
    generator = torch.Generator().manual_seed(5)
    shapes = (9, 4, 8), (9, 2, 8), (9, 2, 8)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad) for s in shapes]


def others(dtype=torch.float32):
    """Arrays that have gradients too."""
    return {
        "mask": torch.linspace(-1, 1, 49, dtype=dtype).reshape(7, 7).requires_grad_(),
        "alibi_slopes": torch.linspace(0.1, 0.4, 4, dtype=dtype).requires_grad_(),
        "sinks": torch.linspace(-1, 1, 4, dtype=dtype).requires_grad_(),
    }


def test_ragged_batches_have_the_bits_and_gradients_of_each_sequence_alone():
    q, k, v = qkv()
    out = fat.attention_varlen(q, k, v, OFFSETS, OFFSETS, causal=True)
    parts = [fat.attention(*(x[a:b].transpose(0, 1)[None] for x in (q, k, v)), causal=True)[0].transpose(0, 1)
             for a, b in ((0, 2), (2, 9))]  # fmt: skip
    assert torch.equal(out, torch.cat(parts))
    found = torch.autograd.grad(out.sin().sum(), (q, k, v))
    expected = torch.autograd.grad(torch.cat(parts).sin().sum(), (q, k, v))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_are_those_of_differences():
    named = others(torch.float64)

    def call(q, k, v, *rest):
        return fat.attention_varlen(q, k, v, OFFSETS, OFFSETS, causal=True, softcap=3.0,
                                    **dict(zip(named, rest, strict=True)))  # fmt: skip

    assert torch.autograd.gradcheck(call, (*qkv(torch.float64), *named.values()), fast_mode=True)


@pytest.mark.parametrize("extra", [{}, others()], ids=["none", "all"])
def test_the_registered_operation_is_sound(extra):
    arrays = *qkv(), *(extra.get(name) for name in ("mask", "bias", "alibi_slopes", "sinks"))
    options = OFFSETS, OFFSETS, "true", 0.5, [3, -1], 2.0, None, 0.0, 0
    operation = torch.ops.fastattn.attention_varlen.default
    opcheck(operation, (*arrays, *options, True))
    plain = [None if a is None else a.detach() for a in arrays]
    opcheck(operation, (*plain, *options, False), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_call_has_the_bits_of_the_direct_one(backend):
    def call(q, k, v, mask, sinks):
        return fat.attention_varlen(q, k, v, OFFSETS, OFFSETS, mask=mask, sinks=sinks, window=(3, None))

    tensors = *qkv(), others()["mask"], others()["sinks"]
    results = []
    for function in (call, torch.compile(call, fullgraph=True, backend=backend)):
        out = function(*tensors)
        results.append((out, *torch.autograd.grad(out, tensors, torch.ones_like(out))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_flash_attns_function_compiles_whole():
    q, k, v = qkv()

    def call(q, k, v):
        return fat.flash_attn_varlen_func(q, k, v, OFFSETS, OFFSETS, 7, 7, causal=True)

    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(q, k, v), call(q, k, v))


def test_positions_bias_and_dropout_have_the_bits_and_gradients_of_arrays():
    q, k, v = qkv()
    bias = torch.linspace(-1, 1, 49).reshape(7, 7).requires_grad_()
    mask = torch.arange(49).reshape(7, 7) % 5 > 0
    options = {"causal": True, "dropout_p": 0.25, "seed": 2**63 + 7}
    start = torch.tensor([1, 0, -1])
    arrays = [np.asarray(x.detach()) for x in (q, k, v)]
    expected, saved = fa.attention_varlen_forward(*arrays, OFFSETS.numpy(), OFFSETS.numpy(), q_start=start.numpy(),
                                                  mask=mask.numpy(), bias=bias.detach().numpy(), **options)  # fmt: skip
    gradients = fa.attention_varlen_backward(np.ones_like(expected), saved, gradients=["bias"])

    def call(q, k, v, bias):
        return fat.attention_varlen(q, k, v, OFFSETS, OFFSETS, q_start=start, mask=mask, bias=bias, **options)

    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        out = function(q, k, v, bias)
        found = torch.autograd.grad(out, (q, k, v, bias), torch.ones_like(out))
        np.testing.assert_array_equal(out.detach(), expected)
        for ours, theirs in zip(found, (*gradients[:3], gradients.dbias), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_autocast_takes_its_type():
    q, k, v = qkv(grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        out = fat.attention_varlen(q, k.bfloat16(), v, OFFSETS, OFFSETS)
    assert torch.equal(out, fat.attention_varlen(*(x.bfloat16() for x in (q, k, v)), OFFSETS, OFFSETS))


def test_offsets_that_are_no_tensor_are_refused_by_name_where_the_dispatcher_would_see_them():
    q, k, v = qkv()
    with (
        torch.autocast("cpu"),
        pytest.raises(TypeError, match="attention_varlen: cu_seqlens_k must be a tensor, got list"),
    ):
        fat.attention_varlen(q, k, v, OFFSETS, [0, 9])

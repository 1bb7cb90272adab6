"""fastattn as torch's flash attention: the operator's results, gradients and layouts, and torch's own back."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import (
    SDPBackend,
    activate_flash_attention_impl,
    list_flash_attention_impls,
    restore_flash_attention_impl,
    sdpa_kernel,
)

import fastattn.torch as fat
from tests.torch.close import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

SDPA = F.scaled_dot_product_attention


@pytest.fixture
def active():
    activate_flash_attention_impl("fastattn")
    yield
    restore_flash_attention_impl()


def qkv(dtype=torch.float32, layout="bhld"):
    generator = torch.Generator().manual_seed(7)
    shape = (2, 4, 33, 16) if layout == "bhld" else (2, 33, 4, 16)
    given = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]
    return [(x if layout == "bhld" else x.transpose(1, 2)).detach().requires_grad_() for x in given]


def outcome(layout, dtype=torch.float32, **options):
    q, k, v = qkv(dtype, layout)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = SDPA(q, k, v, **options)
    return out, torch.autograd.grad(out, (q, k, v), torch.ones_like(out))


MASK = torch.linspace(-2, 2, 33 * 33).reshape(33, 33)
OPTIONS = {"plain": {}, "causal": {"is_causal": True}, "mask": {"attn_mask": MASK}, "scale": {"scale": 0.3},
           "bool": {"attn_mask": MASK > -1}}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_results_gradients_and_layouts_are_torchs(options, layout):
    out, gradients = outcome(layout, **options)
    activate_flash_attention_impl("fastattn")
    try:
        found, of_ours = outcome(layout, **options)
    finally:
        restore_flash_attention_impl()
    assert_close(found, out)
    assert_close(of_ours, gradients)
    assert found.stride() == out.stride()
    assert [g.stride() for g in of_ours] == [g.stride() for g in gradients]


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_operator_has_fastattns_bits(dtype):
    q, k, v = qkv(dtype)
    assert torch.equal(SDPA(q, k, v, is_causal=True), fat.attention(q, k, v, causal=True))


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_graphs_take_it(backend):
    q, k, v = qkv()
    compiled = torch.compile(lambda q, k, v: SDPA(q, k, v, is_causal=True), fullgraph=True, backend=backend)
    out = compiled(q, k, v)
    assert torch.equal(out, fat.attention(q, k, v, causal=True))
    found = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    expected = torch.autograd.grad(fat.attention(q, k, v, causal=True), (q, k, v), torch.ones_like(out))
    assert_close(found, expected)


def test_torchs_own_is_back_after_it():
    assert "fastattn" in list_flash_attention_impls()
    q, k, v = qkv()
    before = SDPA(q, k, v)
    activate_flash_attention_impl("fastattn")
    restore_flash_attention_impl()
    assert torch.equal(SDPA(q, k, v), before)

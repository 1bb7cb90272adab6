"""Attention on tensors: values, gradients, transformations, and torch's own signature."""

import pickle
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import fastattn as fa
import fastattn.torch as fat
from fastattn.torch.attention import TORCH_ATTENTION
from tests.torch.close import assert_close

# torch's own, of torch.jit inside of torch.compile and torch.func.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def qkv(*shape, dtype=torch.float32, grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad) for _ in range(3)]


OPTIONS = {
    "none": {},
    "causal": {"causal": True},
    "window": {"window": (2, 1)},
    "scale and softcap": {"scale": 0.3, "softcap": 2.0},
    "lengths": {"q_lengths": torch.tensor([5, 9]), "kv_lengths": torch.tensor([9, 0])},
    "bool mask": {"mask": torch.arange(81).reshape(9, 9) % 4 > 0},
    "all": {
        "causal": "bottom-right",
        "alibi_slopes": torch.rand(4),
        "sinks": torch.rand(4),
        "mask": torch.rand(4, 9, 9),
    },
    "positions": {"causal": True, "q_start": torch.tensor([2, -3])},
    "position": {"window": (2, 1), "q_start": 4},
    "bias": {"mask": torch.arange(81).reshape(9, 9) % 4 > 0, "bias": torch.rand(2, 1, 9, 9)},
    "dropout": {"dropout_p": 0.3, "seed": 2**62 + 5},
}


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_tensors_have_the_bits_of_arrays(options, layout):
    q, k, v = qkv(2, 4, 9, 8) if layout == "bhld" else qkv(2, 9, 4, 8)
    plain = {name: np.asarray(value) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    out, lse = fa.attention(*map(np.asarray, (q, k, v)), **plain, layout=layout, return_lse=True)
    found, found_lse = fat.attention(q, k, v, **options, layout=layout, return_lse=True)
    np.testing.assert_array_equal(found, out)
    np.testing.assert_array_equal(found_lse, lse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tensors_are_read_without_a_copy_and_give_tensors_of_their_type(dtype):
    q, k, v = qkv(2, 4, 9, 8, dtype=dtype)
    out = fat.attention(q, k, v)
    assert out.dtype is dtype
    assert_close(out, TORCH_ATTENTION(q.double(), k.double(), v.double()).to(dtype))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_are_those_of_finite_differences(options):
    q, k, v = qkv(2, 4, 9, 3, dtype=torch.float64)
    arrays = {name: value.double().requires_grad_() for name, value in options.items()
              if isinstance(value, torch.Tensor) and value.is_floating_point()}  # fmt: skip
    others = {name: value for name, value in options.items() if name not in arrays}
    q, k, v = (x[:, :, :5].requires_grad_() if "mask" not in options and "lengths" not in str(options) else
               x.requires_grad_() for x in (q, k, v))  # fmt: skip
    assert torch.autograd.gradcheck(
        lambda q, k, v, *rest: fat.attention(q, k, v, **dict(zip(arrays, rest, strict=True)), **others),
        (q, k, v, *arrays.values()),
        fast_mode=True,
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_the_registered_operation_is_sound(name):
    options = OPTIONS[name]
    tensors = {name: value for name, value in options.items() if isinstance(value, torch.Tensor)}
    window = list(options.get("window", ()))
    causal = {True: "true"}.get(options.get("causal", False), options.get("causal", "") or "")
    q, k, v = qkv(2, 4, 9, 8, grad=True)
    start = options.get("q_start")
    arguments = (q, k, v, *(tensors.get(name) for name in ("mask", "bias", "alibi_slopes", "sinks")), causal,
                 options.get("scale"), window, options.get("softcap", 0.0),
                 torch.tensor(start) if isinstance(start, int) else start, options.get("dropout_p", 0.0),
                 options.get("seed", 0), tensors.get("q_lengths"), tensors.get("kv_lengths"), "bhld")  # fmt: skip
    operation, parts = torch.ops.fastattn.attention.default, ("test_schema", "test_faketensor")
    opcheck(operation, (*arguments, True), **({} if name in ("none", "all") else {"test_utils": parts}))
    plain = (a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
    opcheck(operation, (*plain, False), test_utils=parts)


def test_the_dispatched_call_has_the_bits_of_the_direct_one():
    q, k, v = qkv(2, 4, 9, 8, grad=True)
    mask = torch.rand(9, 9, requires_grad=True)
    results = []
    for call in (fat.attention, torch.compile(fat.attention, fullgraph=True, backend="aot_eager")):
        out = call(q, k, v, mask=mask, window=(3, None))
        results.append((out, *torch.autograd.grad(out.sin().sum(), (q, k, v, mask))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_inductor_compiles_it_whole():
    q, k, v = qkv(2, 4, 9, 8, grad=True)
    compiled = torch.compile(lambda q, k, v: fat.attention(q, k, v, causal=True).sin().sum(), fullgraph=True)
    compiled(q, k, v).backward()
    expected = torch.autograd.grad(fat.attention(q, k, v, causal=True).sin().sum(), q)[0]
    assert_close(q.grad, expected)


def test_export_keeps_it():
    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return fat.attention(q, k, v, causal=True)

    q, k, v = qkv(2, 4, 9, 8)
    exported = torch.export.export(Module(), (q, k, v)).module()
    assert torch.equal(exported(q, k, v), fat.attention(q, k, v, causal=True))


def test_autocast_takes_its_type():
    q, k, v = qkv(2, 4, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = fat.attention(q, k.bfloat16(), v)
    assert out.dtype is torch.bfloat16
    assert torch.equal(out, fat.attention(*(x.bfloat16() for x in (q, k, v))))


def test_func_grad_and_vmap_agree_with_a_loop():
    q, k, v = qkv(2, 4, 9, 8)
    found = torch.func.grad(lambda q: fat.attention(q, k, v).sin().sum())(q)
    expected = torch.func.grad(lambda q: TORCH_ATTENTION(q, k, v).sin().sum())(q)
    assert_close(found, expected)
    many = torch.stack([q, q + 1, q * 2])
    each = torch.vmap(lambda q: fat.attention(q, k, v))(many)
    assert torch.equal(each, torch.stack([fat.attention(q, k, v) for q in many]))


def registered(q, k, v):
    return torch.ops.fastattn.attention(
        q, k, v, *[None] * 4, "", None, [], 0.0, None, 0.0, 0, None, None, "bhld", True
    )[0]


def varlen(q, k, v):
    offsets = torch.tensor([0, q.shape[2]])
    return fat.attention_varlen(*(x[0].transpose(0, 1) for x in (q, k, v)), offsets, offsets)


@pytest.mark.parametrize("call", [fat.attention, registered, varlen])
def test_a_second_derivative_raises(call):
    q, k, v = qkv(1, 2, 3, 4, grad=True)
    (dq,) = torch.autograd.grad(call(q, k, v).sin().sum(), q, create_graph=True)
    for values in (q, v):
        with pytest.raises(RuntimeError, match=r"fastattn: attention.* has no second derivative"):
            torch.autograd.grad(dq.sum(), values, retain_graph=True, allow_unused=True)


def test_forward_mode_raises():
    q, k, v = qkv(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match="fastattn: attention has no forward-mode derivative"):
        torch.func.jvp(lambda q: fat.attention(q, k, v), (q,), (q,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="attention has no forward-mode derivative"):
        fat.attention(forward_ad.make_dual(q, q), k, v)


def test_a_tensor_that_is_changed_before_backward_is_noticed():
    q, k, v = qkv(1, 2, 3, 4, grad=True)
    out = fat.attention(q, k, v)
    with torch.no_grad():
        k.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_activation_checkpointing_and_inference_mode():
    q, k, v = qkv(2, 4, 9, 8, grad=True)
    checkpoint(lambda q: fat.attention(q, k, v), q, use_reentrant=False).sum().backward()
    assert_close(q.grad, torch.autograd.grad(fat.attention(q, k, v).sum(), q)[0])
    with torch.inference_mode():
        assert torch.equal(fat.attention(q, k, v), fat.attention(q, k, v))


def test_several_threads_may_call():
    q, k, v = qkv(2, 4, 33, 8)
    expected, found = fat.attention(q, k, v), []
    threads = [threading.Thread(target=lambda: found.append(fat.attention(q, k, v))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(each, expected) for each in found)


@pytest.mark.parametrize(
    ("q", "match"),
    [
        (torch.zeros(1, 2, 3, 4, device="meta"), "attention: q must be a dense tensor on the CPU, got .*meta"),
        (torch.zeros(1, 2, 3, 4).to_sparse(), "attention: q must be a dense tensor on the CPU, got a sparse"),
        (torch.zeros(1, 2, 3, 4, dtype=torch.int64), "attention: q must be"),
        (torch.zeros(1, 2, 3), "attention: q must"),
        (np.zeros((1, 2, 3, 4)), "attention: q must be a tensor, got ndarray"),
    ],
)
def test_what_is_no_dense_float_tensor_of_the_cpu_is_refused_by_name(q, match):
    k, v = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    if isinstance(q, torch.Tensor) and q.device.type == "meta":
        with pytest.raises(TypeError, match=r"attention: k must be a dense tensor on the CPU, got .*meta"):
            fat.attention(v, q, v)
        return
    with pytest.raises((TypeError, ValueError), match=match):
        fat.attention(q, k, v)


# ---- torch's signature ----

SHAPES = [(9, 8), (4, 9, 8), (2, 4, 9, 8), (2, 1, 4, 9, 8)]
MASKS = {"none": None, "2-D": (9, 9), "row": (1, 9), "heads": (4, 9, 9), "batch": (2, 1, 1, 9), "full": (2, 4, 9, 9)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_torchs_signature_gives_torchs_results(shape, mask, kind):
    if mask is not None and (len(mask) > len(shape) or (len(shape) == 5 and len(mask) > 2)):
        pytest.skip("torch does not broadcast it")
    q, k, v = qkv(*shape)
    given = None if mask is None else torch.rand(mask) > 0.3 if kind is torch.bool else torch.randn(mask)
    assert_close(fat.scaled_dot_product_attention(q, k, v, attn_mask=given), TORCH_ATTENTION(q, k, v, attn_mask=given))
    if given is None:
        assert_close(
            fat.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.4),
            TORCH_ATTENTION(q, k, v, is_causal=True, scale=0.4),
        )


def test_grouped_heads_strides_and_empty_sizes_as_torch_has_them():
    q, k, v = qkv(2, 4, 9, 8)
    sdpa = fat.scaled_dot_product_attention
    pairs = [
        ((q, k[:, :2], v[:, :2]), {"enable_gqa": True}),
        ((q, k[:, :1].expand(-1, 4, -1, -1), v), {}),
        ((q.transpose(2, 3).contiguous().transpose(2, 3), k, v), {}),
        ((q[:1], k, v), {}),
        ((q[:, :, :0], k, v), {}),
        ((q, k, v[..., :3]), {}),
    ]
    for arguments, options in pairs:
        assert_close(sdpa(*arguments, **options), TORCH_ATTENTION(*arguments, **options))


def test_a_call_that_torch_refuses_is_refused():
    q, k, v = qkv(2, 4, 9, 8)
    with pytest.raises(RuntimeError):
        fat.scaled_dot_product_attention(q, k[..., :3], v)


def test_dropout_is_torchs():
    q, k, v = qkv(2, 4, 9, 8)
    torch.manual_seed(3)
    expected = TORCH_ATTENTION(q, k, v, dropout_p=0.5)
    torch.manual_seed(3)
    assert torch.equal(fat.scaled_dot_product_attention(q, k, v, dropout_p=0.5), expected)


def test_patched_changes_torchs_function_and_puts_it_back():
    q, k, v = qkv(2, 4, 9, 8)
    with fat.patched():
        with fat.patched():
            assert F.scaled_dot_product_attention is fat.scaled_dot_product_attention
        inside = F.scaled_dot_product_attention(q, k, v)
    assert F.scaled_dot_product_attention is TORCH_ATTENTION
    assert torch.equal(inside, fat.attention(q, k, v))
    with pytest.raises(KeyError), fat.patched():
        raise KeyError
    assert F.scaled_dot_product_attention is TORCH_ATTENTION


def test_functions_pickle_by_name():
    assert pickle.loads(pickle.dumps(fat.attention)) is fat.attention

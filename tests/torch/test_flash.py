"""flash-attn's functions against the plain formula, with its alignment of the diagonal."""

import math

import pytest
import torch

import fastattn.torch as fat
from tests.torch.close import assert_close


def plain(q, k, v, causal=False, window=(-1, -1), scale=None, slopes=None, softcap=0.0):
    """[B, L, H, D] as flash-attn's own test reference has it."""
    q, k, v = (x.transpose(1, 2).double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    distance = torch.arange(k.shape[2]) - torch.arange(q.shape[2])[:, None] - (k.shape[2] - q.shape[2])
    if slopes is not None:
        s = s - slopes.double()[:, None, None] * distance.abs()
    left, right = window[0], 0 if causal else window[1]
    outside = (distance > right) & (right >= 0) | (distance < -left) & (left >= 0)
    s = s.masked_fill(outside, -math.inf)
    return (s.softmax(-1).nan_to_num() @ v).transpose(1, 2).float(), s.logsumexp(-1).float()


def qkv(length=7, keys=9, heads=4, groups=2, size=8):
    torch.manual_seed(length)
    shapes = (2, length, heads, size), (2, keys, groups, size), (2, keys, groups, size)
    return [torch.randn(s, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (2, 1), (3, -1)])
def test_attention_is_that_of_the_formula(causal, window):
    q, k, v = qkv()
    slopes = torch.rand(4)
    out, lse, rest = fat.flash_attn_func(q, k, v, causal=causal, window_size=window, alibi_slopes=slopes, softcap=3.0,
                                         softmax_scale=0.4, return_attn_probs=True)  # fmt: skip
    expected, expected_lse = plain(q, k, v, causal, window, 0.4, slopes, 3.0)
    assert rest is None
    assert_close(out, expected)
    assert_close(lse, expected_lse)
    assert_close(torch.autograd.grad(out.sin().sum(), (q, k, v)), torch.autograd.grad(expected.sin().sum(), (q, k, v)))


def test_ragged_batches_are_each_sequence_alone():
    q, k, v = (x.detach()[0] for x in qkv(9, 9))
    offsets = torch.tensor([0, 4, 9], dtype=torch.int32)
    out, lse, _ = fat.flash_attn_varlen_func(q, k, v, offsets, offsets, 5, 5, causal=True, return_attn_probs=True)
    for a, b in ((0, 4), (4, 9)):
        expected, expected_lse = plain(*(x[None, a:b] for x in (q, k, v)), causal=True)
        assert_close(out[a:b], expected[0])
        assert_close(lse[:, a:b], expected_lse[0])


@pytest.mark.parametrize("paged", [False, True])
def test_a_cache_is_written_and_read_in_place(paged):
    q, k, v = (x.detach() for x in qkv(3, 3))
    old_k, old_v = (x.detach() for x in qkv(3, 6)[1:])
    lengths = torch.tensor([6, 2], dtype=torch.int32)
    room, size = 12, 4
    cache = [torch.full((2, room, 2, 8), math.nan) for _ in range(2)]
    for whole, old in zip(cache, (old_k, old_v), strict=True):
        for b in range(2):
            whole[b, : lengths[b]] = old[b, : lengths[b]]
    options = {}
    if paged:
        table = torch.tensor([[3, 0, 5], [1, 4, 2]], dtype=torch.int32)
        pages = [torch.empty(6, size, 2, 8) for _ in range(2)]
        for page, whole in zip(pages, cache, strict=True):
            page[table.long()] = whole.unflatten(1, (3, size))
        cache, options = pages, {"block_table": table}
    out = fat.flash_attn_with_kvcache(q, *cache, k, v, cache_seqlens=lengths, causal=True, **options)
    assert lengths.tolist() == [6, 2]
    for b in range(2):
        keys, values = (torch.cat([old[b, : lengths[b]], new[b]])[None] for old, new in ((old_k, k), (old_v, v)))
        assert_close(out[b], plain(q[b : b + 1], keys, values, causal=True)[0][0])
        held = cache[0][table[b].long()].flatten(0, 1) if paged else cache[0][b]
        assert torch.equal(held[: lengths[b] + 3], keys[0])


def test_sequences_may_have_places_in_a_larger_cache():
    q, k, v = (x.detach() for x in qkv(1, 5))
    cache_k, cache_v = torch.zeros(4, 8, 2, 8), torch.zeros(4, 8, 2, 8)
    places = torch.tensor([3, 1], dtype=torch.int32)
    cache_k[places.long(), :5], cache_v[places.long(), :5] = k, v
    out, lse = fat.flash_attn_with_kvcache(q, cache_k, cache_v, cache_seqlens=5, cache_batch_idx=places,
                                           return_softmax_lse=True)  # fmt: skip
    expected, expected_lse = plain(q, k, v)
    assert_close(out, expected)
    assert_close(lse, expected_lse)


def test_what_it_has_not_is_refused_by_name():
    q, k, v = qkv()
    with pytest.raises(NotImplementedError, match="rotary_cos is not supported, got a tensor of shape"):
        fat.flash_attn_with_kvcache(q, k, v, rotary_cos=torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"cache_seqlens must lie in 0..9, got"):
        fat.flash_attn_with_kvcache(q, k, v, cache_seqlens=torch.tensor([10, 2]))
    with pytest.raises(ValueError, match="k must fit into the cache, got 9 tokens behind 3"):
        fat.flash_attn_with_kvcache(q, k, v, k.detach(), v.detach(), cache_seqlens=3)
    with pytest.raises(ValueError, match="k and v must be given both or none, got only k"):
        fat.flash_attn_with_kvcache(q, k, v, k)


def test_dropout_follows_torchs_generator():
    q, k = torch.zeros(1, 4, 2, 8), torch.zeros(1, 1000, 2, 8)
    v = torch.ones(1, 1000, 2, 8)
    offsets = torch.tensor([0, 4]), torch.tensor([0, 1000])
    for call in (lambda: fat.flash_attn_func(q, k, v, dropout_p=0.5),
                 lambda: fat.flash_attn_varlen_func(q[0], k[0], v[0], *offsets, dropout_p=0.5)):  # fmt: skip
        torch.manual_seed(1)
        first, second = call(), call()
        torch.manual_seed(1)
        assert torch.equal(call(), first)
        assert not torch.equal(first, second)
        assert (first - 1).abs().max() < 0.2  # six deviations of the mean of 1000 draws of 0 or 2

"""Attention: both strategies, both real types, masks, grouped heads, ragged batches."""

from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn import _core

BLAS = bool(_core.blas_info()[1])


def _inputs(rng: np.random.Generator, batch: int, heads: int, length: int, width: int) -> list[Any]:
    return [rng.standard_normal((batch, heads, length, width), np.float32) for _ in range(3)]


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("strategy", ["fused", "blas"])
def test_attention(benchmark: Any, rng: np.random.Generator, strategy: str, causal: bool) -> None:
    if strategy == "blas" and not BLAS:
        pytest.skip("this build has no BLAS")
    q, k, v = _inputs(rng, 1, 12, 512, 64)
    with fa.config.attention_strategy(strategy):
        benchmark(fa.attention, q, k, v, causal=causal, out=np.empty_like(q))


@pytest.mark.usefixtures("isa", "threads")
def test_attention_in_float64(benchmark: Any, rng: np.random.Generator) -> None:
    q, k, v = (a.astype(np.float64) for a in _inputs(rng, 1, 12, 512, 64))
    benchmark(fa.attention, q, k, v, out=np.empty_like(q))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", ["bool", "float32"])
def test_mask(benchmark: Any, rng: np.random.Generator, kind: str) -> None:
    q, k, v = _inputs(rng, 1, 12, 512, 64)
    mask = rng.random((512, 512)) < 0.5 if kind == "bool" else rng.standard_normal((512, 512), np.float32)
    benchmark(fa.attention, q, k, v, mask=mask, out=np.empty_like(q))


@pytest.mark.usefixtures("isa")
def test_grouped_heads(benchmark: Any, rng: np.random.Generator) -> None:
    q, k, v = _inputs(rng, 1, 12, 512, 64)
    benchmark(fa.attention, q, k[:, :3], v[:, :3], out=np.empty_like(q))


@pytest.mark.usefixtures("isa", "threads")
def test_ragged_batch(benchmark: Any, rng: np.random.Generator) -> None:
    q, k, v = _inputs(rng, 32, 4, 128, 64)
    lengths = rng.integers(1, 129, 32)
    benchmark(fa.attention, q, k, v, q_lengths=lengths, kv_lengths=lengths, out=np.empty_like(q))


def test_a_call_with_little_to_do(benchmark: Any, rng: np.random.Generator) -> None:
    q, k, v = _inputs(rng, 1, 1, 16, 64)
    benchmark(fa.attention, q, k, v, out=np.empty_like(q))

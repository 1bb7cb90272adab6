"""linear with weights packed once, packed in each call, and by BLAS."""

from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn import _core

SIZES = ((1, 768, 768), (128, 3072, 768), (1024, 1024, 1024))  # M, N, K
BLAS = bool(_core.blas_info()[1])


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("weights", ["packed", "native", "blas"])
def test_linear(benchmark: Any, rng: np.random.Generator, weights: str, size: Any) -> None:
    if weights == "blas" and not BLAS:
        pytest.skip("this build has no BLAS")
    m, n, k = size
    x, weight, bias = (rng.standard_normal(shape, np.float32) for shape in ((m, k), (n, k), (n,)))
    given = fa.pack_linear(weight) if weights == "packed" else weight
    with fa.config.linear_strategy("blas" if weights == "blas" else "native"):
        benchmark(fa.linear, x, given, bias, out=np.empty((m, n), np.float32))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_activation(benchmark: Any, rng: np.random.Generator, activation: str) -> None:
    x, weight = (
        rng.standard_normal((128, 768), np.float32),
        fa.pack_linear(rng.standard_normal((3072, 768), np.float32)),
    )
    benchmark(fa.linear, x, weight, activation=activation)

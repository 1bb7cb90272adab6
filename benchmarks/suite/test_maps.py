"""Element-wise functions on 2^18 elements: 1 MB in float32, from and to the L2 and L3 caches."""

from typing import Any

import numpy as np
import pytest

import fastattn as fa

FUNCTIONS = ("exp", "tanh", "sigmoid", "relu", "silu", "gelu")


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_map(benchmark: Any, rng: np.random.Generator, name: str, dtype: str) -> None:
    x = rng.standard_normal(1 << 18).astype(dtype)
    out = np.empty_like(x)
    benchmark(getattr(fa, name), x, out=out)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_map_of_a_few_elements(benchmark: Any, rng: np.random.Generator, name: str) -> None:
    """The cost of a call."""
    x = rng.standard_normal(16).astype(np.float32)
    benchmark(getattr(fa, name), x, out=np.empty_like(x))

"""softmax and log_softmax over the last axis, forward and backward."""

from typing import Any

import numpy as np
import pytest

import fastattn as fa

SHAPES = ((4096, 1024), (65536, 64), (8, 100_000))


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_forward(benchmark: Any, rng: np.random.Generator, name: str, shape: Any) -> None:
    x = rng.standard_normal(shape, np.float32)
    benchmark(getattr(fa, name), x, out=np.empty_like(x))


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("name", ["softmax_backward", "log_softmax_backward"])
def test_backward(benchmark: Any, rng: np.random.Generator, name: str) -> None:
    y = fa.softmax(rng.standard_normal(SHAPES[0], np.float32))
    benchmark(getattr(fa, name), rng.standard_normal(SHAPES[0], np.float32), y)

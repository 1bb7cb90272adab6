"""Cells and sequences of RNN, GRU and LSTM."""

from typing import Any

import numpy as np
import pytest

import fastattn as fa
from benchmarks.kernels.ops.recurrent import GATES


def _weights(rng: np.random.Generator, name: str, hidden: int) -> list[Any]:
    """w_ih, w_hh, b_ih, b_hh."""
    rows = GATES[name] * hidden
    return [rng.uniform(-0.1, 0.1, shape).astype(np.float32) for shape in ((rows, hidden),) * 2 + ((rows,),) * 2]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("hidden", [128, 256])
@pytest.mark.parametrize("name", GATES)
def test_cell(benchmark: Any, rng: np.random.Generator, name: str, hidden: int) -> None:
    x, h, c = rng.standard_normal((3, 1, hidden), np.float32)
    state = (h, c) if name == "lstm" else (h,)
    benchmark(getattr(fa, f"{name}_cell"), x, *state, *_weights(rng, name, hidden))


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("name", GATES)
def test_sequence(benchmark: Any, rng: np.random.Generator, name: str, batch: int) -> None:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = dict(zip(names, _weights(rng, name, 128), strict=True))
    x = rng.standard_normal((50, batch, 128), np.float32)
    benchmark(getattr(fa, name), x, None, weights)


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("name", GATES)
def test_ragged_batch(benchmark: Any, rng: np.random.Generator, name: str) -> None:
    weights = dict(zip(("weight_ih_l0", "weight_hh_l0"), _weights(rng, name, 128), strict=False))
    x = rng.standard_normal((50, 32, 128), np.float32)
    benchmark(getattr(fa, name), x, None, weights, lengths=rng.integers(1, 51, 32))

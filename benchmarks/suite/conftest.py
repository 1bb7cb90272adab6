"""What the pytest-benchmark suites share: every instruction set of this machine, one thread and all."""

from collections.abc import Iterator

import numpy as np
import pytest

import fastattn as fa


@pytest.fixture(params=fa.config.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the benchmark with each instruction set."""
    with fa.config.use_isa(request.param):
        yield request.param


@pytest.fixture(params=sorted({1, fa.get_num_threads()}), ids=lambda n: f"{n}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs the benchmark with one thread and with all."""
    with fa.num_threads(request.param):
        yield request.param


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run."""
    return np.random.default_rng(1)

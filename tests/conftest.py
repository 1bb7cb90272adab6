"""Fixtures: every instruction set, numbers of threads, strategies, and random numbers by the test's name alone."""

import os
import zlib
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest

import fastattn as fa
from fastattn import _core

# The same examples in every run, whatever the speed of the machine: a failure in one place is a failure everywhere.
hypothesis.settings.register_profile("fastattn", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fastattn")

# Tests of several threads have them, however busy the machine is. Those of smaller teams are in test_threads.py.
_core.adapt_threads(False)

HAS_BLAS = fa.config.info()["blas"] != "none"
NEEDS_BLAS = "this build has no BLAS (FASTATTN_BLAS=none)"


# With FASTATTN_ISA set, that one alone: a run without it has had them all.
ISAS = [fa.config.get_isa()] if os.environ.get("FASTATTN_ISA") else fa.config.available_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test under each instruction set of this CPU and build."""
    with fa.config.use_isa(request.param):
        yield request.param


@pytest.fixture(params=[1, 2, 3, 5], ids=lambda n: f"{n}threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs the test with several numbers of threads, also with more than there are CPUs."""
    with fa.num_threads(request.param):
        yield request.param


@pytest.fixture(params=["fused", "blas"])
def strategy(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test under each strategy of attention."""
    if request.param == "blas" and not HAS_BLAS:
        pytest.skip(NEEDS_BLAS)
    with fa.config.attention_strategy(request.param):
        yield request.param


@pytest.fixture(params=["native", "blas"])
def linear_strategy(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test under each strategy of linear."""
    if request.param == "blas" and not HAS_BLAS:
        pytest.skip(NEEDS_BLAS)
    with fa.config.linear_strategy(request.param):
        yield request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["f32", "f64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    """Runs the test with each real type."""
    return np.dtype(request.param)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers, the same in every run of the same test."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))

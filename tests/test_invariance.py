"""The eight invariances of the promises about values, bit for bit. scripts/invariance_sweep.py runs many more cases."""

import numpy as np
import pytest

import fastattn as fa
from tests import invariance
from tests.arrays import same_bits

PROBLEMS = 15


@pytest.mark.parametrize("op", invariance.OPS)
@pytest.mark.parametrize("name", invariance.INVARIANCES)
def test_bits_do_not_depend_on(isa, dtype, name, op):
    different = [seed for seed in range(PROBLEMS) if invariance.compare(name, op, seed, dtype)[1]]
    assert not different, f"{name}, {op}: seeds {different} of tests.invariance.compare"


@pytest.mark.parametrize("name", [name for name in invariance.INVARIANCES if name != "lane"])
def test_bits_of_attention_by_blas_do_not_depend_on(isa, strategy, dtype, name):
    """But for the lane: OpenBLAS computes rows by other kernels at other places of a tile."""
    different = [seed for seed in range(PROBLEMS) if invariance.compare(name, "attention", seed, dtype)[1]]
    assert not different, f"{name}, {strategy}: seeds {different} of tests.invariance.compare"


@pytest.mark.parametrize("name", ["rerun", "threads", "alignment", "layout"])
def test_bits_of_linear_by_blas_do_not_depend_on(isa, linear_strategy, dtype, name):
    different = [seed for seed in range(PROBLEMS) if invariance.compare(name, "linear", seed, dtype)[1]]
    assert not different, f"{name}, {linear_strategy}: seeds {different} of tests.invariance.compare"


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("units", [1, 7, 16, 33])
def test_a_unit_has_the_same_bits_in_every_lane(isa, dtype, rng, kind, units):
    gates = invariance.Recurrent.gates[kind]
    one = rng.standard_normal((gates, 1, 5)), rng.standard_normal((gates, 1, 1)), rng.standard_normal((gates, 1))
    weights = {
        "weight_ih_l0": np.repeat(one[0], units, 1).reshape(gates * units, 5).astype(dtype),
        "weight_hh_l0": np.repeat(np.repeat(one[1], units, 1), units, 2).reshape(gates * units, units).astype(dtype),
        "bias_ih_l0": np.repeat(one[2], units, 1).ravel().astype(dtype),
        "bias_hh_l0": np.zeros(gates * units, dtype),
    }
    y, _ = getattr(fa, kind)(rng.standard_normal((3, 2, 5)).astype(dtype), None, weights)
    assert same_bits(y, np.broadcast_to(y[..., :1], y.shape))


@pytest.mark.parametrize("n", [2, 5, 17, 67])
def test_equal_elements_of_a_row_have_equal_softmax_in_every_lane(isa, dtype, n):
    for f in (fa.softmax, fa.log_softmax):
        y = f(np.full((3, n), 0.7, dtype))
        assert same_bits(y, np.broadcast_to(y[:1, :1], y.shape))


def test_a_result_that_depends_on_its_batch_is_found(monkeypatch):
    class Sums(invariance.ElementWise):
        outputs_batch = (0,)

        def run(self, a):
            return (a["x"] + a["x"].sum(),)

    monkeypatch.setitem(invariance.OPS, "sums", Sums())
    assert invariance.compare("batch", "sums", 3, np.float32)[1] > 0
    assert invariance.compare("rerun", "sums", 3, np.float32) == (1, 0)

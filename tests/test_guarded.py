"""No kernel reads or writes outside its arrays: every family runs between inaccessible pages."""

import numpy as np
import pytest

import fastattn as fa
from tests import guarded


@pytest.mark.parametrize("family", [name for name in guarded.FAMILIES if name != "overrun"])
def test_nothing_outside_the_arrays_is_touched(family):
    cases, failure = guarded.run_in_child(family)
    assert not failure, failure
    assert cases > 400 * len(fa.config.available_isas())


def test_a_read_beyond_a_guarded_array_is_reported_with_its_case():
    cases, failure = guarded.run_in_child("overrun")
    assert cases is None
    assert "killed by signal" in failure
    assert "reads one byte too many float32" in failure


@pytest.mark.parametrize("side", guarded.SIDES)
def test_a_write_into_the_margin_is_seen(side):
    guard = guarded.Guard()
    x = guard.array(np.zeros(3, "f4"), side, 8)
    guard.check()
    guard.regions[0].bytes[x.ctypes.data - guard.regions[0].address + (-1 if side == "front" else x.nbytes)] = 0
    with pytest.raises(AssertionError, match="written"):
        guard.check()

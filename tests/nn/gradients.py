"""Gradients of modules against differences of a loss."""

import numpy as np

STEP = 1e-6
ERROR = 1e-8  # of a central difference: the step squared, and the rounding of the loss over the step


def assert_gradients(loss, arrays, gradients, rng):
    """Along a random direction of each array, changed in place, the gradient is the difference of loss()."""
    assert set(arrays) == set(gradients)
    for name, array in arrays.items():
        direction = rng.standard_normal(array.shape)
        before, sides = array.copy(), []
        for sign in (1, -1):
            array[...] = before + sign * STEP * direction
            sides.append(loss())
        array[...] = before
        difference, got = (sides[0] - sides[1]) / (2 * STEP), (gradients[name] * direction).sum()
        assert gradients[name].shape == array.shape, name
        assert abs(difference - got) <= ERROR * max(1, abs(difference), np.abs(gradients[name]).max(initial=0)), name

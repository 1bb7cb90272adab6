"""How far a right result in float32 may be from one in float64, where the whole model is an outside oracle's.

Sums of a model in float32 are exact sums of inputs and parameters that are off by at most n u each (n terms, u half an
eps): what such changes make of the result, in float64 throughout, is the same on every machine and build, which the
errors of somebody else's float32 are not. The tolerance is the largest change among DRAWS of random ones. It is loose
(errors of sums rarely add up); how accurate the functions are, their own tests say.
"""

import numpy as np

TERMS = 64  # of the longest sum of the models here, about
DRAWS = 6


def moved(arrays, seed):
    """Arrays of float64, each element off by up to TERMS u of its size."""
    rng = np.random.default_rng(seed)
    step = TERMS * np.finfo(np.float32).eps / 2
    return [np.asarray(x * (1 + step * rng.choice((-1.0, 1.0), x.shape))) for x in arrays]


def assert_near(got, results):
    """got: arrays by name, in float32; results[0] the same in float64, and results[1:] of moved inputs. Errors count in
    units of the largest element of an array, and are pooled: a gradient may cancel to nothing."""
    exact, others = results[0], results[1:]
    assert len(others) == DRAWS
    off = allowed = 0.0
    for i, (name, array) in enumerate(got):
        size = np.abs(exact[i]).max(initial=0) or 1
        assert array.shape == exact[i].shape, name
        assert np.isfinite(array).all(), name
        off = max(off, float(np.abs(array - exact[i]).max(initial=0) / size))
        allowed = max(allowed, *(float(np.abs(other[i] - exact[i]).max(initial=0) / size) for other in others))
    assert 0 < allowed < 1e-3, allowed
    assert off <= allowed, f"off by {off:.3e}, allowed are {allowed:.3e}"

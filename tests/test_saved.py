"""What a forward call saves may be anything by the time that backward reads it: changed, of another call, made by hand.

tests/saved.py draws such values, in a process of its own, which a wrong one may end.
"""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastattn as fa
from tests.malformed_recipes import RECIPES
from tests.resizing import arrays_in
from tests.saved import arrays_of, functional_pairs, same, stack

PAIRS = [pair for pair in functional_pairs() if not type(pair[3]).__name__.startswith("Recurrent")]


@pytest.mark.parametrize("kind", ["functions", "modules"])
def test_a_changed_saved_value_computes_or_is_named(kind, rng):
    command = [sys.executable, "-m", "tests.saved", kind, str(rng.integers(1000)), "3000"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1:]} ended the process\n{done.stderr}"
    assert not [line for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("index", range(len(PAIRS)), ids=[f"{i}-{pair[0]}" for i, pair in enumerate(PAIRS)])
def test_a_saved_value_that_was_pickled_gives_the_same_gradients(index):
    _, backward, gradient, saved = PAIRS[index]
    again = pickle.loads(pickle.dumps(saved))
    assert same(arrays_of(backward(gradient, again)), arrays_of(backward(gradient, saved)))


def test_ids_that_were_changed_in_place_are_named():
    _, saved = fa.embedding_forward(np.array([0, 1]), np.ones((2, 3)))
    saved.ids[1] = 10**9
    with pytest.raises(ValueError, match=r"embedding_backward: saved.ids must lie in 0..1, got 1000000000 at \[1\]"):
        fa.embedding_backward(np.ones((2, 3)), saved)


def test_targets_that_were_changed_in_place_are_named():
    _, saved = fa.cross_entropy_forward(np.ones((2, 3)), [0, 1])
    saved.targets[1] = 3
    with pytest.raises(ValueError, match=r"cross_entropy_backward: saved.targets must lie in 0..2, got 3 at \[1\]"):
        fa.cross_entropy_backward(1.0, saved)


def test_lengths_that_were_changed_in_place_are_named():
    _, saved = fa.rnn_forward(np.ones((2, 1, 3)), None, stack(1, 1, 1, 4, 3, np.float64), lengths=[2])
    saved.lengths[0] = 3
    with pytest.raises(ValueError, match=r"rnn_backward: saved.lengths must lie in 0..2, got 3..3"):
        fa.rnn_backward(np.ones((2, 1, 4)), saved)


def test_saved_values_of_the_other_norm_are_named():
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"layer_norm_backward: saved must come from layer_norm_forward"):
        fa.layer_norm_backward(x, fa.rms_norm_forward(x)[1])
    with pytest.raises(ValueError, match=r"rms_norm_backward: saved must come from rms_norm_forward"):
        fa.rms_norm_backward(x, fa.layer_norm_forward(x)[1])


def test_packed_weights_in_a_saved_value_are_named():
    weights = stack(1, 1, 1, 4, 3, np.float64)
    _, saved = fa.rnn_forward(np.ones((2, 1, 3)), None, weights)
    with pytest.raises(ValueError, match=r"rnn_backward: saved.weights must be as they are"):
        fa.rnn_backward(np.ones((2, 1, 4)), saved._replace(weights=fa.pack_rnn(weights)))


def _leave(value):
    """This number in memory that later arrays get."""
    for size in (*range(1, 260), 1000, 5000):
        for _ in range(3):
            np.full(size, value, np.float32)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("forward")])
def test_results_and_saved_values_hold_no_old_memory(name):
    for make in RECIPES[name]:
        found = []
        for value in (np.nan, 7.0):
            function, arguments = make()
            _leave(value)
            found.append([array.tobytes() for array in arrays_in(function(**arguments))])
        assert found[0] == found[1]

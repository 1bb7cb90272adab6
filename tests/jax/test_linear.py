"""Linear layers under JAX."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import fastattn as fa
import fastattn.jax as faj

ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"]


def arrays(rng, *lead):
    return [rng.standard_normal(shape, dtype=np.float32) for shape in ((*lead, 7), (5, 7), (5,))]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0, 3)])
def test_results_and_gradients_have_the_bits_of_fastattn(rng, activation, lead):
    x, weight, bias = arrays(rng, *lead)

    def loss(x, weight, bias):
        y = faj.linear(x, weight, bias, activation=activation)
        return 3 * jnp.sum(y), y

    found, y = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(x, weight, bias)
    expected, saved = fa.linear_forward(x, weight, bias, activation=activation)
    np.testing.assert_array_equal(y, expected)
    for got, wanted in zip(found, fa.linear_backward(np.full_like(expected, 3), saved), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_without_a_bias_and_on_bfloat16(rng):
    x, weight, _ = (a.astype(ml_dtypes.bfloat16) for a in arrays(rng, 3))
    np.testing.assert_array_equal(np.asarray(faj.linear(x, weight)), fa.linear(x, weight))


@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, 0), (1, 2, None)])
def test_vmap_is_a_loop(rng, axes):
    x, weight, bias = arrays(rng, 2, 3)
    given = [x, weight, bias]
    for i, axis in enumerate(axes):
        if axis is not None:
            given[i] = np.stack([given[i] * s for s in (1, 2, -1)], axis).astype(np.float32)

    def one(i):
        return [a if axis is None else np.take(a, i, axis) for a, axis in zip(given, axes, strict=True)]

    gradient = jax.grad(lambda *a: jnp.sum(faj.linear(*a, activation="silu")), argnums=(0, 1, 2))
    found = jax.vmap(faj.linear, in_axes=axes)(*given)
    np.testing.assert_array_equal(found, np.stack([fa.linear(*one(i)) for i in range(3)]))
    for got, *expected in zip(
        jax.vmap(gradient, in_axes=axes)(*given), *(gradient(*one(i)) for i in range(3)), strict=True
    ):
        np.testing.assert_array_equal(got, np.stack(expected))


def test_faults_are_named(rng):
    x, weight, bias = arrays(rng, 3)
    with pytest.raises(ValueError, match="linear: x must have a last axis of 6"):
        faj.linear(x, weight[:, 1:], bias)
    with pytest.raises(ValueError, match="linear: activation must"):
        faj.linear(x, weight, bias, activation="swish")
    with pytest.raises(TypeError, match="linear: has no forward-mode derivative"):
        jax.jvp(lambda x: faj.linear(x, weight), (x,), (x,))

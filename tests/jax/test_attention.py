"""Attention under JAX: the bits of fastattn, gradients, transformations, and errors that name what is wrong."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import fastattn as fa
import fastattn.jax as faj
from fastattn import _core
from fastattn.jax import operation

FLOAT32 = np.float32
OPTIONS = {
    "none": {},
    "causal": {"causal": True},
    "window": {"window": (2, 1)},
    "scale and softcap": {"scale": 0.3, "softcap": 2.0},
    "lengths": {"q_lengths": np.array([5, 9]), "kv_lengths": np.array([9, 0])},
    "q_start": {"q_start": np.array([2, 0]), "causal": True, "kv_lengths": np.array([9, 7])},
    "bias": {"bias": np.cos(np.arange(81, dtype=FLOAT32)).reshape(9, 9), "mask": np.arange(9) % 4 > 0},
    "bool mask": {"mask": np.arange(81).reshape(9, 9) % 4 > 0},
    "all": {
        "causal": "bottom-right",
        "alibi_slopes": np.linspace(0, 1, 4, dtype=FLOAT32),
        "sinks": np.linspace(-1, 1, 4, dtype=FLOAT32),
        "mask": np.sin(np.arange(81, dtype=FLOAT32)).reshape(9, 9),
    },
}


def qkv(rng, *shape, dtype=FLOAT32):
    return [rng.standard_normal(shape).astype(dtype) for _ in range(3)]


def loss(q, k, v, **options):
    """With a gradient that differs from element to element."""
    return jnp.sum(jnp.sin(faj.attention(q, k, v, **options)).astype(jnp.float32))


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_results_have_the_bits_of_fastattn(rng, options, layout):
    q, k, v = qkv(rng, *((2, 4, 9, 8) if layout == "bhld" else (2, 9, 4, 8)))
    out, lse = fa.attention(q, k, v, **options, layout=layout, return_lse=True)

    def call(q, k, v):
        return faj.attention(q, k, v, **options, layout=layout, return_lse=True)

    for function in (call, jax.jit(call)):
        found, found_lse = function(q, k, v)
        np.testing.assert_array_equal(found, out)
        np.testing.assert_array_equal(found_lse, lse)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_have_the_bits_of_fastattn(rng, options):
    layout = "blhd" if "causal" in options else "bhld"
    q, k, v = qkv(rng, *((2, 4, 9, 8) if layout == "bhld" else (2, 9, 4, 8)))
    names = [
        name for name in ("mask", "sinks", "alibi_slopes", "bias") if name in options and options[name].dtype != bool
    ]

    def total(q, k, v, further):
        return loss(q, k, v, **options | further, layout=layout)

    out, saved = fa.attention_forward(q, k, v, **options, layout=layout)
    expected = fa.attention_backward(np.asarray(jnp.cos(out)), saved, gradients=names)
    given = {name: options[name] for name in names}
    found = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(q, k, v, given)
    for name, value in (dict(zip("qkv", found, strict=False)) | found[3]).items():
        np.testing.assert_allclose(value, getattr(expected, f"d{name}"), rtol=0, atol=1e-6, err_msg=name)


def test_dropout_takes_a_traced_seed_and_drops_the_same_of_each_index_of_vmap(rng):
    q, k, v = qkv(rng, 2, 4, 9, 8)
    gradient = jax.jit(jax.grad(lambda q, seed: loss(q, k, v, dropout_p=0.5, seed=seed)))
    for seed in (0, 7):
        out, saved = fa.attention_forward(q, k, v, dropout_p=0.5, seed=seed)
        np.testing.assert_array_equal(faj.attention(q, k, v, dropout_p=0.5, seed=seed), out)
        expected = fa.attention_backward(np.asarray(jnp.cos(out)), saved)[0]
        np.testing.assert_allclose(gradient(q, jnp.uint32(seed)), expected, rtol=0, atol=1e-6)
    both = jax.vmap(lambda q: faj.attention(q, k, v, dropout_p=0.5, seed=7))(np.stack([q, q]))
    np.testing.assert_array_equal(both, np.stack([out, out]))


def test_lse_has_a_gradient(rng):
    q, k, v = qkv(rng, 2, 4, 9, 8)

    def total(q, k, v, of_out):
        out, lse = faj.attention(q, k, v, causal=True, q_start=1, return_lse=True)
        return of_out * jnp.sum(out) + jnp.sum(jnp.sin(lse))

    out, saved = fa.attention_forward(q, k, v, causal=True, q_start=1)
    for of_out in (0.0, 2.0):
        expected = fa.attention_backward(np.full_like(out, of_out), saved, dlse=np.cos(saved.lse))
        for found, wanted in zip(jax.grad(total, argnums=(0, 1, 2))(q, k, v, of_out), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    only_lse = jax.grad(lambda q: jnp.sum(faj.attention(q, k, v, return_lse=True)[1]))(q)
    saved = fa.attention_forward(q, k, v)[1]
    expected = fa.attention_backward(np.zeros_like(out), saved, dlse=np.ones_like(saved.lse))[0]
    np.testing.assert_array_equal(only_lse, expected)


def test_a_mask_without_a_gradient_costs_no_matrix(rng, monkeypatch):
    asked = []
    backward = fa.attention_backward

    def watched(dout, saved, **options):
        asked.append(options["gradients"])
        return backward(dout, saved, **options)

    monkeypatch.setattr(fa, "attention_backward", watched)
    q, k, v = qkv(rng, 1, 1, 5, 4)
    jax.block_until_ready(jax.grad(loss)(q, k, v, mask=np.zeros((5, 5), FLOAT32)))
    assert asked == [[]]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=["bf16", "f16"])
def test_16_bit_arrays_give_arrays_and_gradients_of_their_type(rng, dtype):
    q, k, v = qkv(rng, 2, 4, 9, 8, dtype=dtype)
    out = faj.attention(q, k, v, causal=True)
    assert out.dtype == dtype
    np.testing.assert_array_equal(np.asarray(out), fa.attention(q, k, v, causal=True))
    assert {g.dtype for g in jax.grad(loss, argnums=(0, 1, 2))(q, k, v)} == {np.dtype(dtype)}


def test_float64_works_where_jax_has_it(rng):
    with jax.enable_x64(True):
        q, k, v = qkv(rng, 1, 2, 5, 4, dtype=np.float64)
        np.testing.assert_array_equal(faj.attention(q, k, v), fa.attention(q, k, v))
        assert jax.grad(loss)(q, k, v).dtype == np.float64


@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, None), (None, 1, 2), (3, None, 0)])
def test_vmap_is_a_loop(rng, axes):
    arrays = [
        np.moveaxis(rng.standard_normal((3, 2, 4, 9, 8), dtype=FLOAT32), 0, axis) if axis is not None
        else rng.standard_normal((2, 4, 9, 8), dtype=FLOAT32) for axis in axes
    ]  # fmt: skip
    gradient = jax.grad(loss, argnums=(0, 1, 2))

    def one(i):
        return [a if axis is None else np.take(a, i, axis) for a, axis in zip(arrays, axes, strict=True)]

    found = jax.vmap(faj.attention, in_axes=axes)(*arrays)
    np.testing.assert_array_equal(found, np.stack([fa.attention(*one(i)) for i in range(3)]))
    for got, *expected in zip(
        jax.vmap(gradient, in_axes=axes)(*arrays), *(gradient(*one(i)) for i in range(3)), strict=True
    ):
        np.testing.assert_array_equal(got, np.stack(expected))


def test_vmap_over_masks_lengths_sinks_and_twice(rng):
    q, k, v = qkv(rng, 2, 4, 9, 8)
    masks, lengths = rng.random((3, 9, 9)) < 0.7, rng.integers(0, 10, (3, 2))
    sinks = rng.standard_normal((3, 4), dtype=FLOAT32)
    out = jax.vmap(lambda m, n: faj.attention(q, k, v, mask=m, kv_lengths=n))(masks, lengths)
    for i in range(3):
        np.testing.assert_array_equal(out[i], fa.attention(q, k, v, mask=masks[i], kv_lengths=lengths[i]))

    def twice(mask, sink):
        return faj.attention(q, k, v, mask=mask, sinks=sink)

    out = jax.vmap(jax.vmap(twice, in_axes=(None, 0)), in_axes=(0, None))(masks, sinks)
    for i, j in np.ndindex(3, 3):
        np.testing.assert_array_equal(out[i, j], fa.attention(q, k, v, mask=masks[i], sinks=sinks[j]))
    assert jax.vmap(faj.attention)(*qkv(rng, 0, 2, 4, 9, 8)).shape == (0, 2, 4, 9, 8)


@pytest.mark.parametrize("name", ["sinks", "bias"])
def test_a_gradient_of_what_a_batch_shares_is_one_for_each_index_of_vmap(rng, name):
    q, k, v = qkv(rng, 3, 2, 4, 9, 8)
    shared = np.zeros(4 if name == "sinks" else (9, 9), FLOAT32)

    def gradient(q, k, v):
        return jax.grad(lambda s: loss(q, k, v, **{name: s}))(shared)

    found = jax.vmap(gradient)(q, k, v)
    np.testing.assert_array_equal(found, np.stack([gradient(q[i], k[i], v[i]) for i in range(3)]))


def test_scan_and_remat_change_nothing(rng):
    q, k, v = qkv(rng, 1, 2, 9, 8)

    def layers(q):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(faj.attention)(x, k, v), None), q, length=3)[0].sum()

    def unrolled(q):
        for _ in range(3):
            q = faj.attention(q, k, v)
        return q.sum()

    for found, expected in zip(jax.value_and_grad(layers)(q), jax.value_and_grad(unrolled)(q), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_large_arrays_of_a_running_program_arrive(rng):
    x = jnp.asarray(rng.standard_normal((1, 4, 1024, 64), dtype=FLOAT32))
    found = jax.jit(lambda x: faj.attention(x * 2, x + 1, jnp.sin(x)) + faj.attention(x, x, x))(x)
    assert np.isfinite(np.asarray(found)).all()


def test_equal_calls_compile_once(rng):
    q, k, v = qkv(rng, 1, 2, 9, 8)
    faj.attention(q, k, v, window=(3, 1))
    size = operation._compiled._cache_size()
    faj.attention(q, k, v, window=[3, 1])
    assert operation._compiled._cache_size() == size


def test_a_program_that_another_process_compiled_is_read_from_its_text(rng):
    q, k, v = qkv(rng, 1, 2, 9, 8)
    run = jax.jit(faj.attention).lower(q, k, v).compile()
    expected = run(q, k, v)
    _core.xla_handler(operation._load, operation.DTYPES)  # forgets the programs that it knows
    np.testing.assert_array_equal(run(q, k, v), expected)


def test_a_program_of_another_version_is_refused(rng, monkeypatch):
    q, k, v = qkv(rng, 1, 2, 10, 8)
    run = jax.jit(faj.attention).lower(q, k, v).compile()
    monkeypatch.setattr(fa.config, "version", lambda: "0.0")
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"program must be of version 0\.0, got .*: compile it again"):
        jax.block_until_ready(run(q, k, v))


def test_calls_from_several_threads_do_not_mix(rng):
    arrays = [qkv(rng, 1, 2, 9, 8) for _ in range(8)]
    run = jax.jit(faj.attention)
    expected = [fa.attention(*each) for each in arrays]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            np.testing.assert_array_equal(list(pool.map(lambda each: np.asarray(run(*each)), arrays)), expected)


# ---- what raises ----


def test_forward_mode_and_second_derivatives_raise_by_name(rng):
    q, k, v = map(jnp.asarray, qkv(rng, 1, 2, 5, 4))
    with pytest.raises(TypeError, match="attention: has no forward-mode derivative"):
        jax.jvp(lambda q: faj.attention(q, k, v), (q,), (q,))
    with pytest.raises(TypeError, match="attention: has no second derivative"):
        jax.grad(lambda q: jax.grad(loss)(q, k, v).sum())(q)
    with pytest.raises(TypeError, match="attention: has no second derivative"):
        jax.jit(jax.hessian(loss))(q, k, v)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": np.zeros((3, 2, 5, 4), FLOAT32)}, ValueError, r"attention: k must have the batch 2 .*\(3, 2, 5, 4\)"),
        ({"v": np.zeros((2, 2, 5), FLOAT32)}, ValueError, "attention: v must"),
        ({"k": np.zeros((2, 2, 5, 4), np.float16)}, TypeError, "attention: k must be float32"),
        ({"q": np.zeros((2, 2, 5, 4), np.int32)}, TypeError, "attention: q must"),
        ({"mask": np.zeros((2, 2, 5, 9), bool)}, ValueError, "attention: mask must"),
        ({"mask": np.zeros((3, 1, 1, 5), bool)}, ValueError, "attention: mask must"),
        ({"causal": "sideways"}, ValueError, "attention: causal must"),
        ({"layout": "lbhd"}, ValueError, "attention: layout must"),
        ({"window": (1, 2, 3)}, ValueError, "attention: window must"),
        ({"sinks": np.zeros(3, FLOAT32)}, ValueError, "attention: sinks must"),
    ],
)  # fmt: skip
def test_faults_are_named_while_jax_traces(change, error, message):
    arguments = dict.fromkeys("qkv", np.zeros((2, 2, 5, 4), FLOAT32)) | change
    with pytest.raises(error, match=message):
        faj.attention(**arguments)
    options = {name: value for name, value in change.items() if not isinstance(value, np.ndarray)}
    arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    with pytest.raises(error, match=message):
        jax.jit(lambda a: faj.attention(**a, **options)).lower(arrays)


def test_values_that_are_out_of_range_are_named_when_the_program_runs():
    x = np.zeros((2, 2, 5, 4), FLOAT32)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"attention: q_lengths must lie in 0\.\.5, got 1\.\.7"):
        jax.block_until_ready(faj.attention(x, x, x, q_lengths=np.array([1, 7])))


def test_options_that_are_tracers_are_named():
    x = np.zeros((1, 1, 2, 4), FLOAT32)
    with pytest.raises(TypeError, match=r"attention: scale must be known when JAX traces .*, got a traced float32"):
        jax.jit(lambda scale: faj.attention(x, x, x, scale=scale))(0.5)

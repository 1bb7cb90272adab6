"""Every single call keeps the a-priori bound, the smallest and the most extreme too; and the bound is no empty one."""

import numpy as np
import pytest

import fastattn as fa
from tests.bounds import Bounded, bounded, share_of_bound
from tests.specification import exact
from tests.test_recurrent_backward import CELLS, backward, case, cell_weights, functions_of, joined, parts

DRAWS = 25


def normal(rng, dtype, *shapes):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def results(function, arguments, options=None):
    """Of the bounded plain implementation and of the exact one."""
    options = options or {}
    dtype = next(a.dtype for a in arguments if isinstance(a, np.ndarray) and a.dtype.kind == "f")
    found = getattr(bounded, function)(*arguments, **options)
    right = getattr(exact(dtype), function)(*arguments, **options)
    return (found, right) if isinstance(right, tuple) else ((found,), (right,))


def attention_options(rng, dtype, B, H, Lq, Lk):
    """Each option in one call of three."""
    every = {
        "scale": float(rng.uniform(-1, 1)),
        "softcap": float(rng.choice([0.5, 5, 50])),
        "alibi_slopes": rng.random(H).astype(dtype),
        "sinks": (3 * rng.standard_normal(H)).astype(dtype),
        "causal": str(rng.choice(["top-left", "bottom-right"])),
        "window": (int(rng.integers(0, 9)), None),
        "kv_lengths": rng.integers(0, Lk + 1, B),
        "mask": rng.random((B, 1, Lq, Lk)) < 0.6
        if rng.random() < 0.5
        else (10 * rng.standard_normal((H, Lq, Lk))).astype(dtype),
    }
    return {name: value for name, value in every.items() if rng.random() < 1 / 3}


def attention(rng, dtype):
    """Few keys, large scores: where a comparison of largest errors is chance."""
    B, Hk, group = rng.integers(1, 3, 3)
    Lq, Lk, D, Dv = rng.integers(1, 9, 4)
    if rng.random() < 0.2:
        Lk = rng.integers(9, 600)
    H = Hk * group
    q, k, v, dout = normal(rng, dtype, (B, H, Lq, D), (B, Hk, Lk, D), (B, Hk, Lk, Dv), (B, H, Lq, Dv))
    q *= dtype.type(10 ** rng.uniform(-1, 2.5))
    options = attention_options(rng, dtype, B, H, Lq, Lk)
    got = fa.attention(q, k, v, return_lse=True, **options)
    yield "attention", got, *results("attention", [q, k, v], options)
    got = fa.attention_backward(dout, fa.attention_forward(q, k, v, **options)[1])[:3]
    yield "attention_backward", got, *results("attention_backward", [dout, q, k, v], options)
    floats = {name: a for name, a in options.items() if isinstance(a, np.ndarray) and a.dtype == dtype}
    every = fa.attention_backward(dout, fa.attention_forward(q, k, v, **options)[1], gradients=tuple(floats))[3:]
    of_options = zip(every, *results("attention_option_gradients", [dout, q, k, v], options), strict=True)
    for part in of_options:
        if part[0] is not None:
            yield "gradient of an option", *((value,) for value in part)


def linear(rng, dtype):
    M, N, K = rng.integers(1, 12, 3)
    if rng.random() < 0.2:
        K = rng.integers(12, 1500)
    activation = str(rng.choice(["", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh"])) or None
    x, weight, bias, dy = normal(rng, dtype, (M, K), (N, K), N, (M, N))
    x *= dtype.type(10 ** rng.uniform(-2, 1))
    arguments = [x, weight, bias, activation]
    yield "linear", (fa.linear(x, weight, bias, activation=activation),), *results("linear", arguments)
    got = fa.linear_backward(dy, fa.linear_forward(x, weight, bias, activation=activation)[1])
    yield "linear_backward", got, *results("linear_backward", [dy, *arguments])


def rows(rng, dtype):
    """softmax, norms, cross-entropy."""
    m, n = rng.integers(1, 5), rng.integers(1, 40)
    x, dy, weight, bias, dloss = normal(rng, dtype, (m, n), (m, n), n, n, m)
    x = x * dtype.type(10 ** rng.uniform(-2, 2)) + dtype.type(rng.choice([0, 1, 100]))
    for name in ("softmax", "log_softmax"):
        y = getattr(fa, name)(x)
        yield name, (y,), *results(name, [x])
        yield f"{name}_backward", (getattr(fa, f"{name}_backward")(dy, y),), *results(f"{name}_backward", [dy, y])
    yield "layer_norm", (fa.layer_norm(x, weight, bias),), *results("layer_norm", [x, weight, bias])
    yield "rms_norm", (fa.rms_norm(x, weight),), *results("rms_norm", [x, weight])
    got = fa.layer_norm_backward(dy, fa.layer_norm_forward(x, weight, bias)[1])
    yield "layer_norm_backward", got, *results("layer_norm_backward", [dy, x, weight])
    got = fa.rms_norm_backward(dy, fa.rms_norm_forward(x, weight)[1])
    yield "rms_norm_backward", got, *results("rms_norm_backward", [dy, x, weight])
    targets, smoothing = rng.integers(0, n, m), float(rng.choice([0, 0.1]))
    loss, saved = fa.cross_entropy_forward(x, targets, label_smoothing=smoothing, reduction="none")
    yield "cross_entropy", (loss,), *results("cross_entropy", [x, targets, smoothing])
    got = fa.cross_entropy_backward(dloss, saved)
    yield "cross_entropy_backward", (got,), *results("cross_entropy_backward", [dloss, x, targets, smoothing])


def additive_attention(rng, dtype):
    B, T, S, A, C = rng.integers(1, 7, 5)
    arrays = normal(rng, dtype, (B, T, A), (B, S, A), (B, S, C), A)
    arrays[3] *= dtype.type(10 ** rng.uniform(-1, 2))
    (dcontext,) = normal(rng, dtype, (B, T, C))
    options = {"lengths": rng.integers(1, S + 1, B)} if rng.random() < 0.5 else {}
    got = fa.additive_attention(*arrays, **options, return_weights=True)
    yield "additive_attention", got, *results("additive_attention", arrays, options)
    got = fa.additive_attention_backward(dcontext, fa.additive_attention_forward(*arrays, **options)[1])
    yield "additive_attention_backward", got, *results("additive_attention_backward", [dcontext, *arrays], options)


def recurrent(rng, dtype):
    """Sequences of each cell, forward and backward; relu and clip have no bound where they bend."""
    name = str(rng.choice([name for name in CELLS if "relu" not in name and "clip" not in name]))
    op, own = CELLS[name][1:]
    steps, batch, inputs, hidden = rng.integers(1, 6, 4)
    x, state, weights, dy, dstate = case(rng, name, steps, batch, inputs, hidden, dtype)
    y, after = getattr(fa, op)(x, joined(name, state), weights, **own)
    found = []
    start, last = (tuple(part[0] for part in whole) for whole in (state, dstate))
    for module in (bounded, exact(dtype)):
        cell, cell_backward = functions_of(module, name, weights)
        values, end = module.sequence(cell, x, start)
        dx, dstart, dweights = module.sequence_backward(cell, cell_backward, dy, last, x, start)
        found.append(((values, *end), (dx, *dstart), [dweights[key] for key in cell_weights(weights)]))
    yield op, (y, *(part[0] for part in parts(name, after))), found[0][0], found[1][0]
    dx, dstart, dweights = backward(name, x, state, weights, dy, dstate)
    yield f"{op}_backward", (dx, *(part[0] for part in dstart)), found[0][1], found[1][1]
    got = cell_weights(dweights)
    yield f"{op}_backward, weights", list(got.values()), found[0][2], found[1][2]


def elementwise(rng, dtype):
    gate, up, dy = (rng.standard_normal(30) * 10 ** rng.uniform(-2, 1) for _ in range(3))
    gate, up, dy = (a.astype(dtype) for a in (gate, up, dy))
    yield "silu_gated", (fa.silu_gated(gate, up),), *results("silu_gated", [gate, up])
    yield "silu_gated_backward", fa.silu_gated_backward(dy, gate, up), *results("silu_gated_backward", [dy, gate, up])
    x, positions, ids = dy.reshape(5, 6), rng.integers(0, 500, 5), rng.integers(0, 3, 5)
    summed = Bounded.of((np.arange(3)[:, None] == ids).astype(dtype)) @ Bounded.of(x)
    got = fa.embedding_backward(x, fa.embedding_forward(ids, np.zeros((3, 6), dtype))[1])
    yield "embedding_backward", (got,), (summed,), (exact(dtype).embedding_backward(x, ids, 3),)
    yield "rope", (fa.rope(x, positions),), *results("rope", [x, positions])


FAMILIES = [attention, linear, rows, additive_attention, recurrent, elementwise]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_element_of_every_call_keeps_its_bound(family, isa, dtype, rng):
    for number in range(DRAWS):
        for name, got, bounds, right in family(rng, dtype):
            for part, values in enumerate(zip(got, bounds, right, strict=True)):
                share = share_of_bound(*values)
                assert share <= 1, f"{name}, draw {number}, result {part}: {share:.3g} times its bound"


def test_the_bound_of_linear_is_that_of_the_documentation(dtype, rng):
    x, weight, bias = normal(rng, dtype, (5, 70), (9, 70), 9)
    magnitudes = np.abs(x).astype(np.float64) @ np.abs(weight.T) + np.abs(bias)
    (found,), _ = results("linear", [x, weight, bias])
    assert (found.error <= 71 * np.finfo(dtype).eps / 2 * magnitudes * (1 + 1e-6)).all()
    assert (found.error >= 70 * np.finfo(dtype).eps / 2 * (magnitudes - np.abs(bias))).all()


@pytest.mark.parametrize("family", [attention, linear, rows, additive_attention], ids=lambda family: family.__name__)
def test_errors_in_half_of_the_digits_are_beyond_the_bound(family, dtype, rng):
    beyond = []
    for _ in range(5):
        for name, got, bounds, right in family(rng, dtype):
            for result, bound, true in zip(got, bounds, right, strict=True):
                off = result * dtype.type(1 + np.sqrt(np.finfo(dtype).eps))
                if np.isfinite(result).all() and np.abs(true).max(initial=0) > 1e-3:
                    beyond.append((share_of_bound(off, bound, true) > 1, name))
    assert np.mean([each for each, _ in beyond]) > 0.9, beyond

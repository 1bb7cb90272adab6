"""The specification against itself: gradients against differences, values against formulas of another kind."""

import math

import numpy as np
import pytest

from fastattn import reference

STEP = 1e-3


def differences(f, x, dy):
    """Gradient of sum(dy * f(x)) by central differences and Richardson's extrapolation: error O(STEP^4)."""
    x = np.array(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        slopes = []
        for step in (STEP, STEP / 2):
            sides = []
            for sign in (1, -1):
                moved = x.copy()
                moved[index] += sign * step
                sides.append((dy * f(moved)).sum())
            slopes.append((sides[0] - sides[1]) / (2 * step))
        gradient[index] = (4 * slopes[1] - slopes[0]) / 3
    return gradient


def assert_gradient(got, f, x, dy):
    """Both are of order 1; rounding divided by the step, and the rest of Taylor's series, stay below 1e-9."""
    np.testing.assert_allclose(got, differences(f, x, dy), rtol=1e-8, atol=1e-9)


class TestElementwise:
    """Each function at points against the math module or a second formula, written out."""

    X = np.array([-700.0, -40.0, -5.5, -1.0, -1e-9, 0.0, 1e-9, 0.3, 2.0, 20.0, 700.0])

    @pytest.mark.parametrize(
        ("function", "formula"),
        [
            (reference.exp, math.exp),
            (reference.tanh, math.tanh),
            (reference.relu, lambda x: x if x > 0 else 0.0),
            (reference.sigmoid, lambda x: 0.5 * (1 + math.tanh(x / 2)) if x > -5 else math.exp(x) / (1 + math.exp(x))),
            (reference.silu, lambda x: x / (1 + math.exp(-x))),
            (reference.gelu, lambda x: x * (0.5 - 0.5 * math.erf(-x / math.sqrt(2))) if x > -1 else
             x * 0.5 * math.erfc(-x / math.sqrt(2))),
            (lambda x: reference.gelu(x, "tanh"),
             lambda x: x / (1 + math.exp(min(709.0, -2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))),
        ],
        ids=["exp", "tanh", "relu", "sigmoid", "silu", "gelu", "gelu_tanh"],
    )  # fmt: skip
    def test_values_are_those_of_the_formula(self, function, formula):
        expected = np.array([formula(x) for x in self.X.tolist()])
        with np.errstate(over="ignore", under="ignore"):
            np.testing.assert_allclose(function(self.X), expected, rtol=1e-13, atol=1e-300)

    def test_values_at_infinity(self):
        inf = np.inf
        for function, (below, above) in {
            reference.exp: (0, inf), reference.tanh: (-1, 1), reference.sigmoid: (0, 1), reference.relu: (0, inf),
        }.items():  # fmt: skip
            np.testing.assert_array_equal(function(np.array([-inf, inf])), [below, above])

    def test_every_activation_of_linear_is_the_function_of_its_name(self):
        for name, function in reference.ACTIVATIONS.items():
            if name not in (None, "gelu_tanh"):
                assert function is getattr(reference, name)


class TestRows:
    @pytest.mark.parametrize("axis", [0, 1, 2, -2])
    def test_softmax_is_a_quotient_of_exponentials(self, rng, axis):
        x = rng.standard_normal((3, 4, 5))
        total = np.add.reduce(np.exp(0.7 * x), axis=axis, keepdims=True)
        np.testing.assert_allclose(reference.softmax(x, axis, 0.7), np.exp(0.7 * x) / total, rtol=1e-14)
        np.testing.assert_allclose(reference.log_softmax(x, axis, 0.7), 0.7 * x - np.log(total), rtol=1e-13)

    def test_softmax_sums_exactly_in_rationals(self):
        # e^(k ln 2) = 2^k: the row (0, ln 2, 2 ln 2) is (1, 2, 4) / 7.
        x = np.log(2.0) * np.arange(3)
        np.testing.assert_allclose(reference.softmax(x), np.array([1, 2, 4]) / 7, rtol=1e-15)

    @pytest.mark.parametrize("axis", [0, -1])
    @pytest.mark.parametrize("scale", [1.0, -0.3, 2.5])
    def test_softmax_backward_is_the_derivative(self, rng, axis, scale):
        x, dy = rng.standard_normal((2, 3, 4))
        y = reference.softmax(x, axis, scale)
        got = reference.softmax_backward(dy, y, axis, scale)
        assert_gradient(got, lambda x: reference.softmax(x, axis, scale), x, dy)

    @pytest.mark.parametrize("axis", [0, -1])
    @pytest.mark.parametrize("scale", [1.0, -0.3, 2.5])
    def test_log_softmax_backward_is_the_derivative(self, rng, axis, scale):
        x, dy = rng.standard_normal((2, 3, 4))
        y = reference.log_softmax(x, axis, scale)
        got = reference.log_softmax_backward(dy, y, axis, scale)
        assert_gradient(got, lambda x: reference.log_softmax(x, axis, scale), x, dy)

    def test_linear_is_a_sum_of_products(self, rng):
        x, w, b = rng.standard_normal((2, 3)), rng.standard_normal((4, 3)), rng.standard_normal(4)
        expected = [[math.fsum([b[n], *(x[m] * w[n])]) for n in range(4)] for m in range(2)]
        np.testing.assert_allclose(reference.linear(x, w, b), expected, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(reference.linear(x, w, b, "relu"), np.maximum(expected, 0), rtol=1e-13, atol=1e-14)


def attend_by_hand(q, k, v, scale, allowed, bias):
    """One loop per index of the equation, as in a textbook."""
    batch, heads, queries, _ = q.shape
    group = heads // k.shape[1]
    out = np.zeros((batch, heads, queries, v.shape[-1]))
    lse = np.full((batch, heads, queries), -np.inf)
    for b, h, i in np.ndindex(batch, heads, queries):
        terms = {}
        for j in range(k.shape[2]):
            if allowed(b, h, i, j):
                terms[j] = math.exp(scale * math.fsum(q[b, h, i] * k[b, h // group, j]) + bias(b, h, i, j))
        total = math.fsum(terms.values())
        if terms:
            lse[b, h, i] = math.log(total)
        for j, term in terms.items():
            out[b, h, i] += term / total * v[b, h // group, j]
    return out, lse


ATTENTION_CASES = {
    "plain": {},
    "scale": {"scale": -0.4},
    "causal to the end": {"causal": "bottom-right"},
    "causal from the start": {"causal": "top-left"},
    "window": {"window": (2, 1)},
    "causal window": {"window": (1, None), "causal": "bottom-right"},
    "lengths": {"q_lengths": [2, 4], "kv_lengths": [5, 3]},
    "lengths, causal": {"q_lengths": [4, 3], "kv_lengths": [1, 5], "causal": "bottom-right"},
    "bool mask": {"mask": "bool"},
    "added mask": {"mask": "float"},
}


class TestAttention:
    @pytest.fixture(params=ATTENTION_CASES, ids=lambda name: name.replace(" ", "-"))
    def case(self, request, rng):
        """q, k, v with 4 query heads over 2 of keys, and options."""
        q = rng.standard_normal((2, 4, 4, 3))
        k, v = rng.standard_normal((2, 2, 5, 3)), rng.standard_normal((2, 2, 5, 2))
        options = dict(ATTENTION_CASES[request.param])
        if options.get("mask") == "bool":
            options["mask"] = rng.random((2, 1, 4, 5)) < 0.6
            options["mask"][0, 0, 2] = False
        elif options.get("mask") == "float":
            options["mask"] = np.where(rng.random((4, 4, 5)) < 0.7, rng.standard_normal((4, 4, 5)), -np.inf)
        return q, k, v, options

    def test_values_are_those_of_the_equation(self, case):
        q, k, v, o = case
        mask = np.broadcast_to(o.get("mask", np.True_), (2, 4, 4, 5))
        left, right = o.get("window") or (None, None)
        n, m = o.get("q_lengths") or [4, 4], o.get("kv_lengths") or [5, 5]

        def allowed(b, h, i, j):
            distance = j - i if o.get("causal") == "top-left" else j - i - (m[b] - n[b])
            return (
                i < n[b] and j < m[b] and not (o.get("causal") and distance > 0)
                and (left is None or distance >= -left) and (right is None or distance <= right)
                and (mask[b, h, i, j] if mask.dtype == bool else mask[b, h, i, j] != -np.inf)
            )  # fmt: skip

        def bias(b, h, i, j):
            return 0.0 if mask.dtype == bool else mask[b, h, i, j]

        out, lse = attend_by_hand(q, k, v, o.get("scale") or 1 / math.sqrt(3), allowed, bias)
        got, got_lse = reference.attention(q, k, v, **o)
        np.testing.assert_allclose(got, out, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(got_lse, lse, rtol=1e-12, atol=1e-14)

    def test_gradients_are_the_derivatives(self, case, rng):
        q, k, v, o = case
        dout = rng.standard_normal((2, 4, 4, 2))
        dq, dk, dv = reference.attention_backward(dout, q, k, v, **o)
        assert_gradient(dq, lambda q: reference.attention(q, k, v, **o)[0], q, dout)
        assert_gradient(dk, lambda k: reference.attention(q, k, v, **o)[0], k, dout)
        assert_gradient(dv, lambda v: reference.attention(q, k, v, **o)[0], v, dout)

    def test_gradients_of_lse_are_the_derivatives(self, case, rng):
        q, k, v, o = case
        o = o | {"sinks": rng.standard_normal(4), "alibi_slopes": rng.random(4)}
        dout, dlse = rng.standard_normal((2, 4, 4, 2)), rng.standard_normal((2, 4, 4))
        both = np.concatenate([dout, dlse[..., None]], -1)

        def results(q, k, v, **o):
            out, lse = reference.attention(q, k, v, **o)
            return np.concatenate([out, lse[..., None]], -1)

        lse = reference.attention(q, k, v, **o)[1]
        both[lse == -np.inf] = dlse[lse == -np.inf] = 0
        finite = np.where(lse == -np.inf, 0, 1)[..., None]
        dq, dk, dv = reference.attention_backward(dout, q, k, v, dlse=dlse, **o)
        _, dsinks, dslopes = reference.attention_option_gradients(dout, q, k, v, dlse=dlse, **o)

        def loss(**moved):
            arguments = {"q": q, "k": k, "v": v, **o} | moved
            return np.where(finite, results(**arguments), 0)

        for name, x, gradient in (("q", q, dq), ("k", k, dk), ("v", v, dv), ("sinks", o["sinks"], dsinks),
                                  ("alibi_slopes", o["alibi_slopes"], dslopes)):  # fmt: skip
            assert_gradient(gradient, lambda x, name=name: loss(**{name: x}), x, both)

    def test_gradients_of_parts_of_the_keys_add_up(self, rng):
        q, k, v = (rng.standard_normal((2, 2, n, 3)) for n in (4, 6, 6))
        dout, dlse, o = rng.standard_normal((2, 2, 4, 3)), rng.standard_normal((2, 2, 4)), {"sinks": np.array([0.3, 1])}
        whole = reference.attention(q, k, v, **o)
        expected = reference.attention_backward(dout, q, k, v, dlse=dlse, **o)
        parts = [reference.attention_backward(dout, q, k[:, :, part], v[:, :, part], whole=whole, dlse=dlse, **o)
                 for part in (slice(0, 4), slice(4, 6))]  # fmt: skip
        got = parts[0][0] + parts[1][0], *(np.concatenate(pair, 2) for pair in list(zip(*parts, strict=True))[1:])
        for ours, right in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours, right, rtol=1e-12, atol=1e-14)
        dsinks = reference.attention_option_gradients(dout, q, k, v, dlse=dlse, **o)[1]
        own = reference.attention_option_gradients(dout, q, k[:, :, 2:], v[:, :, 2:], whole=whole, dlse=dlse, **o)[1]
        np.testing.assert_allclose(own, dsinks, rtol=1e-12)

    def test_gradients_of_mask_sinks_and_slopes_are_the_derivatives(self, case, rng):
        q, k, v, o = case
        mask = o["mask"] if o.get("mask") is not None and o["mask"].dtype != bool else rng.standard_normal((4, 1, 5))
        o = o | {"mask": mask[..., : k.shape[2]], "sinks": rng.standard_normal(4), "alibi_slopes": rng.random(4)}
        dout = rng.standard_normal((2, 4, 4, 2))
        got = reference.attention_option_gradients(dout, q, k, v, **o)
        for gradient, name in zip(got, ("mask", "sinks", "alibi_slopes"), strict=True):

            def out(x, name=name):
                return reference.attention(q, k, v, **o | {name: x})[0]

            assert_gradient(gradient, out, o[name], dout)

    def test_causal_true_is_the_diagonal_of_equal_lengths(self, rng):
        q, k, v = rng.standard_normal((3, 1, 1, 4, 2))
        for name in ("top-left", "bottom-right"):
            for a, b in zip(reference.attention(q, k, v, causal=True), reference.attention(q, k, v, causal=name),
                            strict=True):  # fmt: skip
                np.testing.assert_array_equal(a, b)


def logistic(x):
    return 1 / (1 + math.exp(-x))


class TestRecurrent:
    """One unit, one input, one sequence: the cells written out in scalars."""

    X, H, C = 0.3, -0.7, 1.1
    W = (0.2, -0.5, 0.9, 0.4)
    U = (-0.3, 0.8, 0.6, -1.2)
    A = (0.1, 0.05, -0.2, 0.3)
    B = (-0.4, 0.25, 0.35, -0.15)

    def arguments(self, gates, *state):
        column = [np.array(w[:gates])[:, None] for w in (self.W, self.U)]
        biases = [np.array(b[:gates]) for b in (self.A, self.B)]
        return (np.array([[self.X]]), *(np.array([[s]]) for s in state), *column, *biases)

    def from_x(self, gate):
        return self.W[gate] * self.X + self.A[gate]

    def from_h(self, gate, h):
        return self.U[gate] * h + self.B[gate]

    @pytest.mark.parametrize(
        ("name", "f"), [("tanh", math.tanh), ("relu", lambda a: max(a, 0.0)), ("sigmoid", logistic)]
    )
    def test_rnn_cell(self, name, f):
        got = reference.rnn_cell(*self.arguments(1, self.H), nonlinearity=name)
        assert got[0, 0] == pytest.approx(f(self.from_x(0) + self.from_h(0, self.H)), rel=1e-14)

    @pytest.mark.parametrize("after", [True, False], ids=["reset after", "reset before"])
    def test_gru_cell(self, after):
        r = logistic(self.from_x(0) + self.from_h(0, self.H))
        z = logistic(self.from_x(1) + self.from_h(1, self.H))
        inner = r * self.from_h(2, self.H) if after else self.from_h(2, r * self.H)
        n = math.tanh(self.from_x(2) + inner)
        got = reference.gru_cell(*self.arguments(3, self.H), linear_before_reset=after)
        assert got[0, 0] == pytest.approx((1 - z) * n + z * self.H, rel=1e-14)

    @pytest.mark.parametrize("peephole", [None, (0.7, -0.6, 0.5)], ids=["plain", "peephole"])
    def test_lstm_cell(self, peephole):
        p_i, p_f, p_o = peephole or (0, 0, 0)
        i, f, g, o = (self.from_x(gate) + self.from_h(gate, self.H) for gate in range(4))
        c = logistic(f + p_f * self.C) * self.C + logistic(i + p_i * self.C) * math.tanh(g)
        h = logistic(o + p_o * c) * math.tanh(c)
        weights = None if peephole is None else np.array(peephole)[:, None]
        got = reference.lstm_cell(*self.arguments(4, self.H, self.C), peephole=weights)
        assert got[0][0, 0] == pytest.approx(h, rel=1e-14)
        assert got[1][0, 0] == pytest.approx(c, rel=1e-14)

    @pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
    def test_sequence_ends_each_sequence_at_its_length(self, rng, reverse):
        x = rng.standard_normal((5, 3, 2))
        w, u = rng.standard_normal((4, 2)), rng.standard_normal((4, 4))
        lengths, start = [5, 0, 3], rng.standard_normal((3, 4))
        y, (h,) = reference.sequence(lambda x, h: reference.rnn_cell(x, h, w, u), x, (start,), lengths, reverse)
        for b, length in enumerate(lengths):
            state = start[b]
            expected = np.zeros((5, 4))
            for t in reversed(range(length)) if reverse else range(length):
                state = np.tanh(w @ x[t, b] + u @ state)
                expected[t] = state
            np.testing.assert_allclose(y[:, b], expected, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(h[b], state, rtol=1e-12, atol=1e-14)

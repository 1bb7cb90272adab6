"""Gradients of the recurrent cells and sequences: values, invariances, special values, wrong input."""

from importlib.util import find_spec

import numpy as np
import pytest

import fastattn as fa
from fastattn import reference
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

# name: gates, public name, options of the plain call
CELLS = {
    "rnn": (1, "rnn", {"nonlinearity": "tanh"}),
    "rnn relu": (1, "rnn", {"nonlinearity": "relu"}),
    "rnn sigmoid": (1, "rnn", {"nonlinearity": "sigmoid"}),
    "gru": (3, "gru", {}),
    "gru reset before": (3, "gru", {"linear_before_reset": False}),
    "lstm": (4, "lstm", {}),
    "lstm peephole": (4, "lstm", {}),
    "lstm projected": (4, "lstm", {}),
    "lstm coupled clip": (3, "lstm", {"coupled": True, "clip": 0.75}),
    "lstm coupled peephole projected": (3, "lstm", {"coupled": True}),
}
every_cell = pytest.mark.parametrize("name", CELLS)
NAMES = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh", "weight_peephole": "peephole",
         "weight_hr": "w_hr"}  # fmt: skip


def output_size(name, hidden):
    return (hidden + 1) // 2 if "projected" in name else hidden


def make_weights(rng, name, inputs, hidden, dtype, suffix="_l0", bias=True):
    rows = CELLS[name][0] * hidden
    output = output_size(name, hidden)
    shapes = {"weight_ih": (rows, inputs), "weight_hh": (rows, output)}
    if "projected" in name:
        shapes["weight_hr"] = (output, hidden)
    if bias:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if "peephole" in name:
        shapes["weight_peephole"] = (CELLS[name][0] - 1, hidden)
    bound = 1 / np.sqrt(hidden)
    return {kind + suffix: rng.uniform(-bound, bound, shape).astype(dtype) for kind, shape in shapes.items()}


def make_states(rng, name, shape, dtype):
    *rest, hidden = shape
    sizes = (output_size(name, hidden), hidden)[: 2 if name.startswith("lstm") else 1]
    return tuple(rng.standard_normal((*rest, size)).astype(dtype) for size in sizes)


def joined(name, state):
    """A state as the public functions take it."""
    return tuple(state) if name.startswith("lstm") else state[0]


def parts(name, state):
    return state if name.startswith("lstm") else (state,)


def cell_weights(weights, suffix="_l0"):
    """The weights of one layer and direction by the cells' names."""
    return {own: weights[kind + suffix] for kind, own in NAMES.items() if kind + suffix in weights}


def backward(name, x, state, weights, dy, dstate, **options):
    """dx, the gradients of the state as a tuple, and the weights' as a dict."""
    op, own = CELLS[name][1:]
    state = None if state is None else joined(name, state)
    _, saved = getattr(fa, f"{op}_forward")(x, state, weights, **own, **options)
    dx, dstate, dweights = getattr(fa, f"{op}_backward")((dy, None if dstate is None else joined(name, dstate)), saved)
    return dx, parts(name, dstate), dweights


def functions_of(module, name, weights, suffix="_l0"):
    """The cell of `module` and its gradient, with weights."""
    op, options = CELLS[name][1:]
    keywords = cell_weights(weights, suffix) | options
    cell = getattr(module, f"{op}_cell")
    gradient = getattr(module, f"{op}_cell_backward")

    def cell_backward(grads, x, *state):
        dx, dstate, dweights = gradient(grads, x, *state, **keywords)
        return dx, dstate, {key: value for key, value in dweights.items() if key in keywords}

    return lambda x, *state: cell(x, *state, **keywords), cell_backward


def case(rng, name, steps, batch, inputs, hidden, dtype):
    x = rng.standard_normal((steps, batch, inputs)).astype(dtype)
    state = make_states(rng, name, (1, batch, hidden), dtype)
    dy = rng.standard_normal((steps, batch, output_size(name, hidden))).astype(dtype)
    weights = make_weights(rng, name, inputs, hidden, dtype)
    return x, state, weights, dy, make_states(rng, name, (1, batch, hidden), dtype)


def assert_gradients_obey_the_rule(rng, name, dtype, sizes):
    x_rule, state_rule, weight_rule = ErrorRule(), ErrorRule(), ErrorRule()
    for steps, batch, inputs, hidden in sizes:
        x, state, weights, dy, dstate = case(rng, name, steps, batch, inputs, hidden, dtype)
        dx, dstate_got, dweights = backward(name, x, state, weights, dy, dstate)
        results = []
        for module in (plain, exact(dtype)):
            cell, cell_backward = functions_of(module, name, weights)
            first, last = (tuple(part[0] for part in whole) for whole in (state, dstate))
            results.append(module.sequence_backward(cell, cell_backward, dy, last, x, first))
        (plain_dx, plain_state, plain_weights), (exact_dx, exact_state, exact_weights) = results
        x_rule.add(dx, plain_dx, exact_dx)
        for got, simple, true in zip(dstate_got, plain_state, exact_state, strict=True):
            state_rule.add(got[0], simple, true)
        for kind, own in NAMES.items():
            if f"{kind}_l0" in weights:
                weight_rule.add(dweights[f"{kind}_l0"], plain_weights[own], exact_weights[own])
    for rule in (x_rule, state_rule, weight_rule):
        rule.check(backward=True)


@every_cell
def test_gradients_obey_the_error_rule(rng, isa, dtype, name):
    assert_gradients_obey_the_rule(rng, name, dtype, [(6, 50, 7, 9), (12, 33, 40, 48), (3, 64, 65, 37)])


@every_cell
def test_a_long_chunked_batch_obeys_the_error_rule(rng, name):
    assert_gradients_obey_the_rule(rng, name, np.dtype(np.float32), [(90, 29, 24, 33)])


@every_cell
def test_float64_gradients_equal_an_independent_computation(rng, isa, name):
    x, state, weights, dy, dstate = case(rng, name, 9, 5, 6, 19, np.float64)
    lengths = np.array([9, 1, 0, 4, 7])
    dx, dstate_got, dweights = backward(name, x, state, weights, dy, dstate, lengths=lengths)
    cell, cell_backward = functions_of(reference, name, weights)
    first, last = (tuple(part[0] for part in whole) for whole in (state, dstate))
    expected = reference.sequence_backward(cell, cell_backward, dy, last, x, first, lengths)
    np.testing.assert_allclose(dx, expected[0], 1e-12, 1e-12)
    for got, true in zip(dstate_got, expected[1], strict=True):
        np.testing.assert_allclose(got[0], true, 1e-12, 1e-12)
    for key, value in cell_weights(dweights).items():
        np.testing.assert_allclose(value, expected[2][key], 1e-12, 1e-12)


@every_cell
def test_reference_gradients_equal_finite_differences(rng, name):
    x, state, weights, dy, dstate = case(rng, name, 3, 2, 3, 4, np.float64)
    lengths = [3, 2]

    def loss():
        cell, _ = functions_of(reference, name, weights)
        y, last = reference.sequence(cell, x, tuple(part[0] for part in state), lengths)
        return (y * dy).sum() + sum((a * b[0]).sum() for a, b in zip(last, dstate, strict=True))

    cell, cell_backward = functions_of(reference, name, weights)
    first, final = (tuple(part[0] for part in whole) for whole in (state, dstate))
    dx, dfirst, dweights = reference.sequence_backward(cell, cell_backward, dy, final, x, first, lengths)
    pairs = [(x, dx), *((part[0], d) for part, d in zip(state, dfirst, strict=True))]
    pairs += [(weights[f"{kind}_l0"], dweights[own]) for kind, own in NAMES.items() if own in dweights]
    step = 1e-6
    for array, gradient in pairs:
        for index in list(np.ndindex(array.shape))[::3]:
            kept = array[index]
            array[index] = kept + step
            above = loss()
            array[index] = kept - step
            below = loss()
            array[index] = kept
            assert abs((above - below) / (2 * step) - gradient[index]) < 1e-7


@every_cell
def test_forward_has_the_bits_of_the_plain_call(rng, isa, threads, name):
    op, options = CELLS[name][1:]
    x, state, weights, _, _ = case(rng, name, 7, 30, 20, 34, np.float32)
    lengths = rng.integers(0, 8, 30)
    plain_result = getattr(fa, op)(x, joined(name, state), weights, lengths=lengths, **options)
    result, _ = getattr(fa, f"{op}_forward")(x, joined(name, state), weights, lengths=lengths, **options)
    assert same_bits(result[0], plain_result[0])
    for got, expected in zip(parts(name, result[1]), parts(name, plain_result[1]), strict=True):
        assert same_bits(got, expected)


def stack(rng, name, steps, batch, inputs, hidden, layers, directions, dtype):
    weights = {}
    for layer in range(layers):
        for side in ("", "_reverse")[:directions]:
            columns = inputs if layer == 0 else directions * output_size(name, hidden)
            weights |= make_weights(rng, name, columns, hidden, dtype, f"_l{layer}{side}")
    x = rng.standard_normal((steps, batch, inputs)).astype(dtype)
    state, dstate = (make_states(rng, name, (layers * directions, batch, hidden), dtype) for _ in range(2))
    dy = rng.standard_normal((steps, batch, directions * output_size(name, hidden))).astype(dtype)
    return x, state, weights, dy, dstate


def all_arrays(result):
    dx, dstate, dweights = result
    return [dx, *dstate, *(dweights[key] for key in sorted(dweights))]


@every_cell
def test_result_does_not_depend_on_thread_count(rng, isa, name):
    x, state, weights, dy, dstate = stack(rng, name, 6, 40, 17, 70, 2, 2, np.float32)
    lengths = rng.integers(0, 7, 40)
    results = []
    for n in (1, 2, 3, 5):
        with fa.num_threads(n):
            results.append(all_arrays(backward(name, x, state, weights, dy, dstate, lengths=lengths)))
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@every_cell
def test_threads_that_share_the_units_give_the_same_bits(rng, isa, name):
    """Few sequences with wide states: the team splits the units of a step."""
    x, state, weights, dy, dstate = case(rng, name, 12, 3, 20, 200, np.float32)
    results = []
    for n in (1, 2, 5):
        with fa.num_threads(n):
            results.append(all_arrays(backward(name, x, state, weights, dy, dstate)))
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@every_cell
def test_a_sequence_in_a_ragged_batch_has_the_gradients_of_the_same_alone(rng, isa, dtype, name):
    x, state, weights, dy, dstate = stack(rng, name, 10, 15, 9, 21, 2, 2, dtype)
    lengths = rng.integers(0, 11, 15)
    x[np.arange(10)[:, None] >= lengths] = np.nan
    dy[np.arange(10)[:, None] >= lengths] = np.nan
    dx, dstate_got, _ = backward(name, x, state, weights, dy, dstate, lengths=lengths)
    for b, n in enumerate(lengths):
        own = slice(b, b + 1)
        alone = [tuple(part[:, own] for part in whole) for whole in (state, dstate)]
        dx_alone, dstate_alone, _ = backward(name, x[:n, own], alone[0], weights, dy[:n, own], alone[1])
        assert same_bits(dx[:n, own], dx_alone)
        assert not dx[n:, own].any()
        for got, expected in zip(dstate_got, dstate_alone, strict=True):
            assert same_bits(got[:, own], expected)


@every_cell
def test_chunks_of_time_leave_no_trace_in_dx(rng, name):
    """A batch of 300 ends a chunk after 3 steps, a batch of 1 after 1024."""
    x, state, weights, dy, dstate = case(rng, name, 8, 300, 5, 6, np.float32)
    dx, dstate_got, _ = backward(name, x, state, weights, dy, dstate)
    for b in (0, 155, 299):
        own = slice(b, b + 1)
        alone = [tuple(part[:, own] for part in whole) for whole in (state, dstate)]
        dx_alone, dstate_alone, _ = backward(name, x[:, own], alone[0], weights, dy[:, own], alone[1])
        assert same_bits(dx[:, own], dx_alone)
        assert all(same_bits(a[:, own], b) for a, b in zip(dstate_got, dstate_alone, strict=True))


@every_cell
@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_does_not_depend_on_layout(rng, name, layout):
    x, state, weights, dy, dstate = case(rng, name, 4, 3, 6, 10, np.float32)
    change = LAYOUTS[layout]
    expected = all_arrays(backward(name, x, state, weights, dy, dstate))
    changed = backward(
        name, change(x), tuple(map(change, state)), {key: change(value) for key, value in weights.items()},
        change(dy), tuple(map(change, dstate)),
    )  # fmt: skip
    assert all(same_bits(a, b) for a, b in zip(expected, all_arrays(changed), strict=True))


@every_cell
def test_batch_first_swaps_the_axes_of_x_and_y_alone(rng, name):
    x, state, weights, dy, dstate = stack(rng, name, 5, 4, 6, 10, 2, 2, np.float32)
    expected = all_arrays(backward(name, x, state, weights, dy, dstate))
    x, dy = (array.swapaxes(0, 1).copy() for array in (x, dy))
    swapped = backward(name, x, state, weights, dy, dstate, batch_first=True)
    assert swapped[0].shape == (4, 5, 6)
    swapped = (swapped[0].swapaxes(0, 1), *swapped[1:])
    assert all(same_bits(a, b) for a, b in zip(expected, all_arrays(swapped), strict=True))


@every_cell
def test_missing_gradients_are_zeros(rng, name):
    x, state, weights, dy, dstate = case(rng, name, 4, 3, 6, 10, np.float32)
    no_state = tuple(map(np.zeros_like, dstate))
    for arguments, same in (
        ((None, dstate), (np.zeros_like(dy), dstate)),
        ((dy, None), (dy, no_state)),
        ((None, None), (np.zeros_like(dy), no_state)),
    ):
        got = all_arrays(backward(name, x, state, weights, *arguments))
        expected = all_arrays(backward(name, x, state, weights, *same))
        assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@every_cell
def test_a_missing_state_is_zeros_and_has_a_gradient(rng, name):
    x, state, weights, dy, dstate = case(rng, name, 4, 3, 6, 10, np.float32)
    expected = all_arrays(backward(name, x, tuple(map(np.zeros_like, state)), weights, dy, dstate))
    got = all_arrays(backward(name, x, None, weights, dy, dstate))
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@every_cell
def test_dy_may_stand_alone(rng, name):
    op, options = CELLS[name][1:]
    x, state, weights, dy, _ = case(rng, name, 4, 3, 6, 10, np.float32)
    _, saved = getattr(fa, f"{op}_forward")(x, joined(name, state), weights, **options)
    gradient = getattr(fa, f"{op}_backward")
    assert same_bits(gradient(dy, saved)[0], gradient((dy, None), saved)[0])


@every_cell
def test_backward_may_be_called_twice(rng, name):
    op, options = CELLS[name][1:]
    x, state, weights, dy, _ = case(rng, name, 4, 3, 6, 10, np.float32)
    _, saved = getattr(fa, f"{op}_forward")(x, joined(name, state), weights, **options)
    first, second = (getattr(fa, f"{op}_backward")(dy, saved) for _ in range(2))
    assert same_bits(first[0], second[0])
    assert all(same_bits(first[2][key], second[2][key]) for key in weights)


@every_cell
def test_a_cell_is_a_sequence_of_one_step(rng, isa, dtype, name):
    op, options = CELLS[name][1:]
    x, state, weights, dy, dstate = case(rng, name, 1, 5, 6, 21, dtype)
    dstate[0][...] = 0
    expected = backward(name, x, state, weights, dy, dstate)
    first, keywords = [part[0] for part in state], cell_weights(weights) | options
    result, saved = getattr(fa, f"{op}_cell_forward")(x[0], *first, **keywords)
    plain_result = getattr(fa, f"{op}_cell")(x[0], *first, **keywords)
    assert all(same_bits(a, b) for a, b in zip(parts(name, result), parts(name, plain_result), strict=True))
    grads = (dy[0], dstate[1][0]) if name.startswith("lstm") else dy[0]
    dx, dstate_got, dweights = getattr(fa, f"{op}_cell_backward")(grads, saved)
    assert same_bits(dx, expected[0][0])
    assert all(same_bits(a, b[0]) for a, b in zip(parts(name, dstate_got), expected[1], strict=True))
    assert dweights.keys() == cell_weights(weights).keys()
    assert all(same_bits(value, cell_weights(expected[2])[key]) for key, value in dweights.items())


@every_cell
@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (3, 0, 3, 4), (3, 2, 0, 4), (3, 2, 3, 0), (0, 0, 0, 0)])
def test_any_size_may_be_zero(rng, isa, name, sizes):
    x, state, weights, dy, dstate = case(rng, name, *sizes[:3], max(sizes[3], 1), np.float32)
    if sizes[3] == 0:
        state, dstate = (tuple(part[..., :0] for part in whole) for whole in (state, dstate))
        weights = {
            key: value[:0, :0] if "_hr" in key else
            value[:0, : 0 if "_hh" in key else None] if value.ndim == 2 and "peep" not in key else
            value[..., :0] for key, value in weights.items()
        }  # fmt: skip
        dy = dy[..., :0]
    dx, dstate_got, dweights = backward(name, x, state, weights, dy, dstate)
    assert dx.shape == x.shape
    assert not dx.any() or all(sizes[k] for k in (0, 1, 3))
    if sizes[0] == 0:
        assert all(same_bits(a, b) for a, b in zip(dstate_got, dstate, strict=True))
    assert all(dweights[key].shape == value.shape for key, value in weights.items())
    if not all(sizes[k] for k in (0, 1, 3)):
        assert not any(value.any() for value in dweights.values())


@every_cell
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_reaches_its_own_sequence_alone(rng, isa, name, value):
    x, state, weights, dy, dstate = case(rng, name, 5, 4, 6, 17, np.float32)
    expected, expected_state, _ = backward(name, x, state, weights, dy, dstate)
    dy[2, 1, 3] = value
    dx, dstate_got, _ = backward(name, x, state, weights, dy, dstate)
    others = [0, 2, 3]
    assert same_bits(dx[:, others], expected[:, others])
    assert same_bits(dx[3:], expected[3:])
    for got, before in zip(dstate_got, expected_state, strict=True):
        assert same_bits(got[:, others], before[:, others])
    if name != "rnn relu":
        assert not np.isfinite(dx[2, 1]).any()


@every_cell
def test_ten_thousand_steps_stay_finite(rng, name):
    x, state, weights, dy, dstate = case(rng, name, 10_000, 1, 3, 8, np.float32)
    dx, dstate_got, dweights = backward(name, x, state, weights, dy, dstate)
    assert all(np.isfinite(array).all() for array in (dx, *dstate_got, *dweights.values()))


@every_cell
def test_forward_keeps_as_many_numbers_as_documented(rng, name):
    op, options = CELLS[name][1:]
    x, state, weights, _, _ = case(rng, name, 50, 3, 4, 8, np.float32)
    _, saved = getattr(fa, f"{op}_forward")(x, joined(name, state), weights, **options)
    kept = {"rnn": 0, "gru": 3 if "before" in name else 4, "lstm": 4 if "coupled" in name else 5}[op]
    kept += "projected" in name
    assert sum(array.size for array in saved.activations if array is not None) == kept * 50 * 3 * 8


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("name", ["rnn", "rnn relu", "gru", "lstm", "lstm projected"])
def test_gradients_of_stacks_equal_those_of_torch(rng, name):
    torch = pytest.importorskip("torch")
    op, options = CELLS[name][1:]
    x, state, weights, dy, dstate = stack(rng, name, 8, 5, 6, 20, 2, 2, np.float64)
    lengths = np.array([8, 3, 1, 6, 8])
    form = {"proj_size": 10} if "projected" in name else {}
    module = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[op](
        6, 20, 2, bidirectional=True, dtype=torch.float64, **options, **form
    )
    module.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, *state)]
    packed = torch.nn.utils.rnn.pack_padded_sequence(tensors[0], torch.tensor(lengths), enforce_sorted=False)
    y, last = module(packed, joined(name, tensors[1:]))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=8)
    loss = (y * torch.tensor(dy)).sum()
    for part, gradient in zip(parts(name, last), dstate, strict=True):
        loss = loss + (part * torch.tensor(gradient)).sum()
    loss.backward()
    dx, dstate_got, dweights = backward(name, x, state, weights, dy, dstate, lengths=lengths)
    for got, tensor in zip((dx, *dstate_got), tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad.numpy(), 1e-11, 1e-11)
    for key, parameter in module.named_parameters():
        np.testing.assert_allclose(dweights[key], parameter.grad.numpy(), 1e-11, 1e-11)


# ---- wrong input ----


def lstm_saved(rng):
    x, state, weights, dy, dstate = case(rng, "lstm", 3, 2, 4, 5, np.float32)
    _, saved = fa.lstm_forward(x, state, weights)
    return saved, dy, dstate


def test_a_gradient_of_a_wrong_shape_is_named(rng):
    saved, dy, (dh, dc) = lstm_saved(rng)
    with pytest.raises(ValueError, match=r"lstm_backward: dy must have shape \(3, 2, 5\), got \(3, 2, 4\)"):
        fa.lstm_backward(dy[..., :4], saved)
    with pytest.raises(ValueError, match=r"lstm_backward: dh must have shape \(1, 2, 5\)"):
        fa.lstm_backward((dy, (dh[:, :1], dc)), saved)
    with pytest.raises(ValueError, match=r"lstm_backward: dc must have shape \(1, 2, 5\)"):
        fa.lstm_backward((dy, (dh, dc[..., :1])), saved)


def test_a_gradient_of_a_wrong_type_is_named(rng):
    saved, dy, _ = lstm_saved(rng)
    with pytest.raises(TypeError, match="lstm_backward: dy must be float32 like the other arrays, got float64"):
        fa.lstm_backward(dy.astype(np.float64), saved)
    with pytest.raises(TypeError, match="lstm_backward: dy must be float32, float64, bfloat16 or float16"):
        fa.lstm_backward(dy.astype(np.int32), saved)


def test_grads_and_state_that_are_no_pairs_are_named(rng):
    saved, dy, (dh, dc) = lstm_saved(rng)
    with pytest.raises(ValueError, match=r"lstm_backward: grads must be a pair \(dy, \(dh, dc\)\), got 3 items"):
        fa.lstm_backward((dy, dh, dc), saved)
    with pytest.raises(ValueError, match=r"lstm_backward: the second of grads must be a pair \(dh, dc\), got ndarray"):
        fa.lstm_backward((dy, dh), saved)
    with pytest.raises(ValueError, match=r"lstm_cell_backward: grads must be a pair \(dh, dc\), got ndarray"):
        fa.lstm_cell_backward(dy, saved)
    with pytest.raises(ValueError, match=r"lstm_forward: state must be a pair \(h, c\), got ndarray"):
        fa.lstm_forward(np.zeros((1, 1, 1)), np.zeros((1, 1, 1)), {})


def test_saved_of_another_function_is_named(rng):
    saved, dy, _ = lstm_saved(rng)
    with pytest.raises(ValueError, match="gru_backward: saved must come from gru_forward, got that of 'lstm_forward'"):
        fa.gru_backward(dy, saved)
    with pytest.raises(TypeError, match="lstm_backward: saved must be what lstm_forward returned, got ndarray"):
        fa.lstm_backward(dy, dy)


def test_packed_weights_have_no_gradient(rng):
    weights = make_weights(rng, "lstm", 4, 5, np.float32)
    with pytest.raises(TypeError, match="lstm_forward: weights must be a mapping"):
        fa.lstm_forward(np.zeros((1, 1, 4), np.float32), None, fa.pack_lstm(weights))


def test_sums_over_many_chunks_lose_nothing():
    weights = {"weight_ih_l0": np.ones((1, 1), np.float32), "weight_hh_l0": np.zeros((1, 1), np.float32)}
    x = np.ones((100_000, 1, 1), np.float32)
    (y, _), saved = fa.rnn_forward(x, None, weights, nonlinearity="relu")
    dx, _, dweights = fa.rnn_backward(np.ones_like(y), saved)
    assert (dx == 1).all()
    assert dweights["weight_ih_l0"] == len(x)

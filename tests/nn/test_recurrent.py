"""nn.RNN, GRU and LSTM: PyTorch's state dicts, forward and backward, packed weights, steps."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import nn
from tests.arrays import same_bits

MODULES = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
modules = pytest.mark.parametrize("cell", MODULES)


def parts(result):
    y, state = result
    return (y, *state) if isinstance(state, tuple) else (y, state)


@modules
def test_a_call_is_the_function_with_the_parameters(cell, dtype, rng):
    m = MODULES[cell](5, 6, 2, bidirectional=True, batch_first=True, dtype=dtype, rng=rng)
    x = rng.standard_normal((3, 7, 5)).astype(dtype)
    lengths = [7, 0, 4]
    wanted = getattr(fa, cell)(x, None, m.parameters(), lengths=lengths, batch_first=True)
    forward, _ = m.forward(x, lengths=lengths)
    m.pack()
    for got in (forward, m(x, lengths=lengths)):
        assert all(same_bits(a, b) for a, b in zip(parts(got), parts(wanted), strict=True))


@modules
def test_backward_gives_gradients_by_parameter_name(cell, rng):
    m = MODULES[cell](4, 5, dtype="float64", rng=rng)
    x, dy = rng.standard_normal((2, 6, 3, 4))[0], rng.standard_normal((6, 3, 5))
    _, saved = m.forward(x)
    dx, _, grads = m.backward(dy, saved)
    assert grads.keys() == m.parameters().keys()
    direction = rng.standard_normal(x.shape)
    step = 1e-6
    slope = ((m(x + step * direction)[0] - m(x - step * direction)[0]) * dy).sum() / (2 * step)
    assert (dx * direction).sum() == pytest.approx(slope, rel=1e-7)
    for name, parameter in m.parameters().items():
        change = rng.standard_normal(parameter.shape)
        values = []
        for sign in (1, -1):
            moved = {**m.parameters(), name: parameter + sign * step * change}
            values.append((getattr(fa, cell)(x, None, moved)[0] * dy).sum())
        assert (grads[name] * change).sum() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


@modules
@pytest.mark.parametrize("kind", [None, "bfloat16", "int8"])
def test_steps_are_those_of_the_sequence(cell, kind, rng):
    m = MODULES[cell](5, 6, 2, rng=rng)
    m.pack(kind)
    x = rng.standard_normal((4, 3, 5)).astype(np.float32)
    y, *final = parts(m(x))
    state, in_place = None, None
    for t, row in enumerate(x):
        got, state = m.step(row, state)
        assert same_bits(got, y[t])
        got, in_place = m.step(row, in_place, out=in_place)
        assert same_bits(got, y[t])
    for a, b in zip(state if isinstance(state, tuple) else (state,), final, strict=True):
        assert same_bits(a, b)


@modules
def test_state_dicts_of_torch_load_and_give_the_same_results(cell, rng):
    torch = pytest.importorskip("torch", reason="needs torch")
    theirs = getattr(torch.nn, cell.upper())(5, 6, 2, bidirectional=True)
    ours = MODULES[cell](5, 6, 2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x = rng.standard_normal((7, 3, 5)).astype(np.float32)
    with torch.no_grad():
        wanted = parts(theirs(torch.from_numpy(x)))
    for a, b in zip(parts(ours(x)), wanted, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_state_dicts_of_projected_torch_modules_load_too(rng):
    torch = pytest.importorskip("torch", reason="needs torch")
    theirs = torch.nn.LSTM(5, 6, 2, bidirectional=True, proj_size=4)
    ours = nn.LSTM(5, 6, 2, bidirectional=True, proj_size=4)
    ours.load_state_dict(theirs.state_dict())
    x = rng.standard_normal((7, 3, 5)).astype(np.float32)
    with torch.no_grad():
        wanted = parts(theirs(torch.from_numpy(x)))
    for a, b in zip(parts(ours(x)), wanted, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [None, "bfloat16", "int8"])
def test_every_form_of_lstm_steps_as_its_sequence(kind, rng):
    m = nn.LSTM(5, 7, 2, proj_size=3, peephole=True, coupled=True, clip=0.5, rng=rng)
    assert m.parameters()["weight_hr_l1"].shape == (3, 7)
    assert m.parameters()["weight_peephole_l0"].shape == (2, 7)
    m.pack(kind)
    x = rng.standard_normal((6, 2, 5)).astype(np.float32)
    y, *final = parts(m(x))
    state = None
    for t, row in enumerate(x):
        got, state = m.step(row, state, out=state)
        assert same_bits(got, y[t])
    assert all(same_bits(a, b) for a, b in zip(state, final, strict=True))


@modules
def test_dropout_is_that_of_forward_with_a_seed(cell, rng):
    m = MODULES[cell](4, 5, 3, dropout=0.5, rng=rng)
    x = rng.standard_normal((6, 2, 4)).astype(np.float32)
    (y, _), saved = m.forward(x, seed=3)
    (wanted, _), _ = getattr(fa, f"{cell}_forward")(x, None, m.parameters(), dropout=0.5, seed=3)
    assert same_bits(y, wanted)
    assert not same_bits(y, m(x)[0])
    assert m.backward(np.ones_like(y), saved)[2].keys() == m.parameters().keys()
    with pytest.raises(ValueError, match="seed must be given with dropout"):
        m.forward(x)


def test_peepholes_are_parameters(rng):
    m = nn.LSTM(3, 4, peephole=True, rng=rng)
    assert m.parameters()["weight_peephole_l0"].shape == (3, 4)
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    before = m(x)[0]
    m.parameters()["weight_peephole_l0"][...] = 0
    assert not same_bits(m(x)[0], before)


def test_loading_and_unpacking_drop_packed_weights(rng):
    m, other = nn.GRU(3, 4, rng=rng), nn.GRU(3, 4, rng=rng)
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    m.pack()
    m.load_state_dict(other.parameters())
    assert same_bits(m(x)[0], other(x)[0])
    m.pack()
    m.parameters()["weight_ih_l0"][...] = 0
    assert same_bits(m(x)[0], other(x)[0])
    m.unpack()
    assert not same_bits(m(x)[0], other(x)[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.LSTM(0, 4), ValueError, "LSTM: input_size must be"),
        (lambda: nn.LSTM(3, 4, proj_size=4), ValueError, "LSTM: proj_size must be an integer of 0..hidden_size - 1"),
        (lambda: nn.LSTM(3, 4, clip=-1.0), ValueError, "LSTM: clip must be positive"),
        (lambda: nn.GRU(3, 4, dropout=2), ValueError, "GRU: dropout must lie in 0..1"),
        (lambda: nn.RNN(3, 4, nonlinearity="gelu"), ValueError, "RNN: nonlinearity must be"),
        (lambda: nn.LSTM(3, 4).step(np.zeros((2, 3)), None), TypeError, "LSTM.step: x must be float32"),
        (lambda: nn.LSTM(3, 4).step(np.zeros((2, 4), np.float32)), ValueError, "LSTM.step: x must be"),
        (lambda: nn.LSTM(3, 4).step(np.zeros((2, 3), np.float32), np.zeros(3)), ValueError, "LSTM.step: state must"),
        (
            lambda: nn.GRU(3, 4).step(np.zeros((2, 3), np.float32), np.zeros((1,) * 20 + (2, 4), np.float32)),
            ValueError,
            r"GRU.step: h must be aligned and C-contiguous with shape \(1, 2, 4\)",
        ),
        (
            lambda: nn.GRU(3, 4).step(np.zeros((2, 3), np.float32), np.zeros((1, 2, 5), np.float32)),
            ValueError,
            r"GRU.step: h must be aligned and C-contiguous with shape \(1, 2, 4\)",
        ),
        (lambda: nn.GRU(3, 4, bidirectional=True).step(np.zeros((2, 3), np.float32)), ValueError, "one direction"),
    ],
)
def test_wrong_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()

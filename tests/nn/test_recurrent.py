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


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.LSTM(0, 4), ValueError, "LSTM: input_size must be"),
        (lambda: nn.LSTM(3, 4, proj_size=4), ValueError, "LSTM: proj_size must be an integer of 0..hidden_size - 1"),
        (lambda: nn.LSTM(3, 4, clip=-1.0), ValueError, "LSTM: clip must be positive"),
        (lambda: nn.GRU(3, 4, dropout=2), ValueError, "GRU: dropout must lie in 0..1"),
        (lambda: nn.RNN(3, 4, nonlinearity="gelu"), ValueError, "RNN: nonlinearity must be"),
        (lambda: nn.LSTM(3, 4).step(np.zeros((2, 3)), None), TypeError, "LSTM.step: x must be float32"),
        (
            lambda: nn.LSTM(3, 4).step(np.zeros((2, 4), np.float32)),
            ValueError,
            r"LSTM.step: x must have shape \(batch, 3\)",
        ),
        (lambda: nn.LSTM(3, 4).step(np.zeros((2, 3), np.float32), np.zeros(3)), ValueError, "LSTM.step: state must"),
        (
            lambda: nn.GRU(3, 4).step(np.zeros((2, 3), np.float32), np.zeros((1,) * 20 + (2, 4), np.float32)),
            ValueError,
            r"GRU.step: state must have 3 axes",
        ),
        (
            lambda: nn.GRU(3, 4).step(np.zeros((2, 3), np.float32), np.zeros((1, 2, 5), np.float32)),
            ValueError,
            r"GRU.step: state must have shape \(1, 2, 4\)",
        ),
        (
            lambda: nn.GRU(3, 4).step(np.zeros((2, 3), np.float32), out=np.zeros((1, 2, 8), np.float32)[..., ::2]),
            ValueError,
            r"GRU.step: out must be aligned and C-contiguous with shape \(1, 2, 4\)",
        ),
        (lambda: nn.GRU(3, 4, bidirectional=True).step(np.zeros((2, 3), np.float32)), ValueError, "one direction"),
    ],
)
def test_wrong_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- 16-bit modules: c stays float32 in a stream ----

LOW = pytest.mark.parametrize("low", ["bfloat16", "float16"])


def low_dtype(name):
    return np.dtype(getattr(pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes"), name, name))


@LOW
def test_a_counter_in_the_cell_of_a_stream_goes_on_beyond_the_integers_of_the_type(low):
    m = nn.LSTM(1, 1, dtype=low_dtype(low))
    for name, value in m.parameters().items():
        value[...] = 20 if name == "bias_ih_l0" else 0  # all gates open: c grows by 1
    x, state = np.zeros((1, 1), m.dtype), None
    for _ in range(4100):
        _, state = m.step(x, state, out=state)
    assert state[1].dtype == np.float32
    assert state[1].item() == 4100


@LOW
@pytest.mark.parametrize("form", [{}, {"proj_size": 3, "peephole": True, "clip": 0.5}])
def test_low_precision_streams_have_the_bits_of_the_whole_sequence(low, form, rng):
    m = nn.LSTM(5, 7, 2, dtype=low_dtype(low), rng=rng, **form)
    x = rng.standard_normal((9, 3, 5)).astype(m.dtype)
    y, (h, c) = m(x)
    state, in_place = None, None
    for t, row in enumerate(x):
        got, state = m.step(row, state)
        assert same_bits(got, y[t])
        assert same_bits(m.step(row, in_place, out=in_place)[0], y[t]) if in_place else True
        in_place = tuple(part.copy() for part in state)
    assert c.dtype == m.dtype
    assert same_bits(state[0], h)
    assert same_bits(state[1].astype(m.dtype), c)
    state = (np.zeros_like(h), np.zeros(c.shape, np.float32))
    for part in (x[:2], x[2:3], x[3:]):  # calls that go on from one another
        got, state = m(part, state)
    assert same_bits(got, y[3:])
    (got, again), _ = m.forward(x, (np.zeros_like(h), np.zeros(c.shape, np.float32)))
    assert same_bits(got, y)
    assert same_bits(again[1], state[1])


@LOW
def test_a_cell_state_of_the_type_of_the_module_is_rounded_where_it_is_asked_for(low, rng):
    m = nn.LSTM(3, 4, dtype=low_dtype(low), rng=rng)
    x = rng.standard_normal((2, 3)).astype(m.dtype)
    exact = m.step(x)[1][1]
    out = (np.zeros((1, 2, 4), m.dtype), np.zeros((1, 2, 4), m.dtype))
    assert same_bits(m.step(x, out=out)[1][1], exact.astype(m.dtype))
    again, wide = m.step(x, out)[1], m.step(x, (out[0], out[1].astype(np.float32)))[1]
    assert all(map(same_bits, again, wide))
    with pytest.raises(TypeError, match=r"LSTM\.step: state\[1\] must be"):
        m.step(x, (out[0], out[1].astype(np.float64)))
    with pytest.raises(ValueError, match=r"LSTM\.step: out must be the state itself"):
        memory = np.zeros(16, m.dtype)
        m.step(x, (out[0], memory[:8].reshape(1, 2, 4)), out=(out[0], memory.view(np.float32).reshape(1, 2, 4)))


@LOW
def test_gradients_of_a_float32_cell_state_are_those_before_the_last_rounding(low, rng):
    m = nn.LSTM(3, 4, 2, dtype=low_dtype(low), rng=rng)
    x = rng.standard_normal((5, 2, 3)).astype(m.dtype)
    h, c = rng.standard_normal((2, 2, 2, 4)).astype(m.dtype)
    dc = rng.standard_normal((2, 2, 4)).astype(m.dtype)
    _, saved = m.forward(x, (h, c))
    _, wide = m.forward(x, (h, c.astype(np.float32)))
    dx, (dh, dc0), grads = m.backward((None, (None, dc)), saved)
    wide_dx, (wide_dh, wide_dc0), wide_grads = m.backward((None, (None, dc.astype(np.float32))), wide)
    assert wide_dc0.dtype == np.float32
    assert same_bits(wide_dc0.astype(m.dtype), dc0)
    assert same_bits(wide_dx, dx)
    assert same_bits(wide_dh, dh)
    assert all(same_bits(wide_grads[name], grads[name]) for name in grads)


# ---- what a step takes ----


@modules
def test_a_step_takes_arrays_of_any_layout_and_tensors(cell, rng):
    torch = pytest.importorskip("torch", reason="needs torch")
    m = MODULES[cell](3, 4, 2, rng=rng)
    x = rng.standard_normal((2, 3)).astype(np.float32)
    y, state = m.step(x)
    wanted, _ = m.step(x, state)
    for change in (np.asfortranarray, lambda a: np.repeat(a, 2, -1)[..., ::2], torch.from_numpy):
        changed = tuple(map(change, state)) if cell == "lstm" else change(state)
        got, _ = m.step(change(x), changed)
        assert same_bits(got, wanted)
    assert same_bits(m.step(np.stack([x, x], 1)[:, 1])[0], y)


def test_a_step_names_what_it_cannot_take(rng):
    torch = pytest.importorskip("torch", reason="needs torch")
    m, x = nn.GRU(3, 4, rng=rng), np.zeros((2, 3), np.float32)
    for error, message, call in (
        (TypeError, "x must not require gradients", lambda: m.step(torch.zeros(2, 3, requires_grad=True))),
        (TypeError, "x must", lambda: m.step(np.ma.masked_array(x, x == 0))),
        (TypeError, "x must", lambda: m.step(None)),
        (TypeError, "state must", lambda: m.step(x, "state")),
        (TypeError, "out must be an ndarray", lambda: m.step(x, out=torch.zeros(1, 2, 4))),
        (TypeError, "out must be an ndarray", lambda: m.step(x, out=[[[0.0] * 4] * 2])),
        (TypeError, "out must be float32", lambda: m.step(x, out=np.zeros((1, 2, 4)))),
        (ValueError, "out must be writable", lambda: m.step(x, out=np.broadcast_to(np.float32(0), (1, 2, 4)))),
    ):
        with pytest.raises(error, match=rf"GRU\.step: {message}"):
            call()

"""No bit depends on the floating-point state of the caller, which is afterwards what it was, flags included."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastattn as fa
import fastattn.nn
from tests import float_states
from tests.arrays import same_bits

TINY = 1e-39  # times what is drawn: subnormal in float32


def draw(rng, *shape, dtype=np.float32):
    """Normal numbers, of which some are subnormal and some 0."""
    x = rng.standard_normal(shape)
    factor = rng.choice([1.0, 1.0, TINY if dtype != np.float64 else 1e-310, 0.0], shape)
    return (x * factor).astype(dtype)


def weights(rng, gates, inputs, hidden, dtype=np.float32):
    shapes = {"weight_ih": (gates * hidden, inputs), "weight_hh": (gates * hidden, hidden)}
    shapes |= {"bias_ih": (gates * hidden,), "bias_hh": (gates * hidden,)}
    first = {f"{name}_l0": draw(rng, *shape, dtype=dtype) for name, shape in shapes.items()}
    shapes["weight_ih"] = (gates * hidden, hidden)
    return first | {f"{name}_l1": draw(rng, *shape, dtype=dtype) for name, shape in shapes.items()}


def maps(rng, dtype):
    x, dy = draw(rng, 300, dtype=dtype), draw(rng, 300, dtype=dtype)
    for name in ("exp", "tanh", "sigmoid", "relu", "silu", "gelu"):
        yield name, lambda name=name: getattr(fa, name)(x)
        if name != "exp":
            yield name + "_backward", lambda name=name: getattr(fa, name + "_backward")(dy, x)
    yield "silu_gated", lambda: fa.silu_gated(x, dy)
    yield "silu_gated_backward", lambda: fa.silu_gated_backward(dy, x, dy)


def rows(rng, dtype):
    x, dy, w = (draw(rng, *shape, dtype=dtype) for shape in ((5, 37), (5, 37), (37,)))
    masked, scale, fractions = x.copy(), np.float32(0.3), np.arange(5) / 7
    masked[1] = -np.inf
    masked[2, 3:] = -1e4
    for name in ("softmax", "log_softmax"):
        y = getattr(fa, name)(x)
        yield name, lambda name=name: getattr(fa, name)(masked, scale=scale)
        yield name + "_backward", lambda name=name, y=y: getattr(fa, name + "_backward")(dy, y)
    for name in ("layer_norm", "rms_norm"):
        saved = getattr(fa, name + "_forward")(x, w)[1]
        yield name, lambda name=name: getattr(fa, name)(x, w, eps=1e-30)
        yield f"add_{name}", lambda name=name: getattr(fa, "add_" + name)(x, dy, w)
        yield name + "_backward", lambda name=name, saved=saved: getattr(fa, name + "_backward")(dy, saved)
    targets = [0, 5, 36, -100, 2]
    _, saved = fa.cross_entropy_forward(x, targets, label_smoothing=0.1)
    yield "cross_entropy", lambda: fa.cross_entropy(masked, targets)
    yield "cross_entropy_backward", lambda: fa.cross_entropy_backward(0.3, saved)
    yield "embedding", lambda: fa.embedding([1, 1, 4], x)
    yield "embedding_backward", lambda: fa.embedding_backward(dy[:3], fa.embedding_forward([1, 1, 4], x)[1])
    even = x[:, :36]
    yield "rope", lambda: fa.rope(even, [0, 1, 2, 3, 1000])
    yield "rope_backward", lambda: fa.rope_backward(even, fa.rope_forward(even, fractions)[1])
    yield "sinusoidal_positions", lambda: fa.sinusoidal_positions(20, 9, dtype=dtype)
    yield "linear", lambda: fa.linear(x, dy, activation="gelu")
    saved = fa.linear_forward(x, dy, dy[:, 0], activation="silu")[1]
    yield "linear_backward", lambda: fa.linear_backward(dy[:, :5], saved)
    for narrow in (np.float32, np.float16, "int8"):
        inputs = x.astype(np.float32 if narrow == "int8" else narrow)
        yield "pack_linear", lambda x=inputs, narrow=narrow: fa.linear(x, fa.pack_linear(dy, narrow))


def attentions(rng, dtype):
    q, k, v = (draw(rng, 2, h, n, 24, dtype=dtype) for h, n in ((4, 12), (2, 70), (2, 70)))
    dout, mask = draw(rng, 2, 4, 12, 24, dtype=dtype), rng.random((2, 1, 12, 70)) < 0.5
    mask[0, 0, 3] = False  # a row with nothing to attend to
    options = {"mask": mask, "softcap": 2.5, "alibi_slopes": np.full(4, 0.1, dtype), "sinks": np.zeros(4, dtype)}
    saved = fa.attention_forward(q, k, v, **options)[1]
    names = ["sinks", "alibi_slopes"]
    yield "attention", lambda: fa.attention(q, k, v, mask=mask, return_lse=True)
    yield "attention with options", lambda: fa.attention(q, k, v, **options, return_lse=True)
    yield "attention of one query", lambda: fa.attention(q[:, :, :1], k, v, kv_lengths=[0, 33])
    yield "attention_backward", lambda: fa.attention_backward(dout, saved, gradients=names)
    lse = saved.lse
    yield "attention_weights", lambda: fa.attention_weights(q, k, lse, mask=mask)
    yield "merge_attention", lambda: fa.merge_attention(saved.out, lse, dout, lse)
    flat, starts = q[0].swapaxes(0, 1).copy(), [0, 5, 12]
    ragged = fa.attention_varlen_forward(flat, flat, flat, starts, starts)[1]
    yield "attention_varlen", lambda: fa.attention_varlen(flat, flat, flat, starts, starts, causal=True)
    yield "attention_varlen_backward", lambda: fa.attention_varlen_backward(flat, ragged)
    query, keys, values, a = (draw(rng, *s, dtype=dtype) for s in ((2, 3, 8), (2, 9, 8), (2, 9, 5), (8,)))
    arguments = (query, keys, values, a)
    additive = fa.additive_attention_forward(*arguments, lengths=[0, 7])[1]
    yield "additive_attention", lambda: fa.additive_attention(*arguments, lengths=[0, 7])
    yield "additive_attention_backward", lambda: fa.additive_attention_backward(values[:, :3], additive)
    for kind, page in ((dtype, None), ("int8", None), ("int8", 16)):
        if kind == "int8" and dtype != np.float32:
            continue

        def cached(queries, kind=kind, page=page):
            cache = fa.KVCache(2, 2, 24, dtype=kind, page_size=page)
            cache.append(k, v)
            return cache.attend(queries, return_lse=True)

        yield f"KVCache {kind} {page}", lambda cached=cached: cached(q[:, :, :2])
        yield f"KVCache {kind} {page}, many queries", lambda cached=cached: cached(q)


def recurrences(rng, dtype):
    x = draw(rng, 4, 3, 7, dtype=dtype)
    for name, gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
        w = weights(rng, gates, 7, 9, dtype)
        _, saved = getattr(fa, name + "_forward")(x, None, w, dropout=0.3, seed=5)
        dy = draw(rng, 4, 3, 9, dtype=dtype)
        yield name, lambda name=name, w=w: getattr(fa, name)(x, None, w, lengths=[4, 0, 2])
        yield (
            name + "_forward",
            lambda name=name, w=w: getattr(fa, name + "_forward")(x, None, w, dropout=0.3, seed=5)[0],
        )
        yield name + "_backward", lambda name=name, saved=saved, dy=dy: getattr(fa, name + "_backward")(dy, saved)
        if dtype == np.float32:
            for kind in ("bfloat16", "int8"):
                pack = getattr(fa, "pack_" + name)
                yield (
                    f"pack_{name} {kind}",
                    lambda name=name, w=w, pack=pack, kind=kind: getattr(fa, name)(x, None, pack(w, dtype=kind)),
                )


def modules(rng, dtype):
    nn, x, memory = fa.nn, draw(rng, 2, 5, 8, dtype=dtype), draw(rng, 2, 3, 8, dtype=dtype)

    def new(module, *sizes, **options):
        return lambda: module(*sizes, dtype=dtype, rng=np.random.default_rng(0), **options)

    def parameters(make):
        return lambda: tuple(make().parameters().values())

    def trained(make, *inputs, **options):
        def call():
            m = make()
            y, saved = m.forward(*inputs, **options)
            dx, grads = m.backward(y, saved)[:2]
            return y, dx, grads, m(*inputs, **options)

        return call

    for name, make, inputs, options in (
        ("Linear", new(nn.Linear, 8, 3), (x,), {}),
        ("FeedForward", new(nn.FeedForward, 8, 16, activation="silu_gated"), (x,), {}),
        ("MultiHeadAttention", new(nn.MultiHeadAttention, 8, 2), (x,), {"lengths": [5, 2]}),
        ("TransformerEncoderLayer", new(nn.TransformerEncoderLayer, 8, 2, 16, norm_first=True), (x,), {}),
        ("TransformerDecoderLayer", new(nn.TransformerDecoderLayer, 8, 2, 16, norm_first=True), (x, memory), {}),
        ("Transformer", new(nn.Transformer, 8, 2, 16, num_encoder_layers=1, num_decoder_layers=1), (x, memory), {}),
        ("AdditiveAttention", new(nn.AdditiveAttention, 8, 8, 6), (x, memory), {}),
    ):
        yield name, trained(make, *inputs, **options)
        yield name + ", initial values", parameters(make)
    yield "SinusoidalPositions", lambda: nn.SinusoidalPositions(8, max_length=9, dtype=dtype)(x, offset=2)
    for name in ("RNN", "GRU", "LSTM"):
        make = new(getattr(nn, name), 8, 6, 2)
        yield name, lambda make=make: make()(x)
        yield name + ", initial values", parameters(make)
    for kind in ("bahdanau", "cho", "sutskever"):
        make, source, target = new(nn.Seq2Seq, 10, 12, 4, 8, kind=kind), [[1, 2, 3]], [[0, 5]]

        def backward(make=make, source=source, target=target):
            m = make()
            logits, saved = m.forward(source, target)
            return logits, m.backward(logits, saved)[1]

        yield f"Seq2Seq {kind}", backward
        yield f"Seq2Seq.beam {kind}", lambda make=make, source=source: make().beam(source, start=0, end=1, max_length=9)
        yield (
            f"Seq2Seq.log_probability {kind}",
            lambda make=make, source=source, target=target: make().log_probability(source, target, target),
        )

    def loaded():
        m = nn.Linear(300, 3, dtype=dtype)
        m.load_state_dict({"weight": values[0], "bias": values[1]})
        return tuple(m.parameters().values())

    values = draw(rng, 3, 300, dtype=np.float64) * 1e-36, rng.standard_normal(3)
    yield "load_state_dict", loaded
    if dtype == np.float32:
        bert = nn.BertModel(nn.BertConfig(10, 8, 1, 2, 16, 12), rng=np.random.default_rng(1))
        yield "BertModel", lambda: bert([1, 5, 2, 1, 2], [0, 3, 5])
        yield "BertModel.embed", lambda: bert.embed([[1, 5, 2], [1, 2]])


FAMILIES = (maps, rows, attentions, recurrences, modules)


def flat(result):
    """The arrays and numbers in what a call returned."""
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, tuple | list):
        return [y for part in result for y in flat(part)]
    return [] if result is None else [np.asarray(result)]


def equal(a, b):
    return len(a) == len(b) and all(map(same_bits, a, b))


@float_states.needs_state
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_no_bit_depends_on_the_state_of_the_caller(isa, dtype, rng, family):
    different = []
    for name, call in family(rng, dtype):
        expected = flat(call())
        for state, mxcsr in float_states.STATES.items():
            with float_states.under(mxcsr):
                got = flat(call())
            if not equal(expected, got):
                different.append(f"{name} ({state})")
    assert not different


@float_states.needs_state
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_the_state_of_the_caller_is_put_back_flags_included(dtype, rng, family):
    """But for `inexact` where names of layers are read: int("0") sets it in CPython."""
    different = []
    ignored = float_states.INEXACT if family in (recurrences, modules) else 0
    for name, call in family(rng, dtype):
        for mxcsr in (float_states.DEFAULT, *float_states.STATES.values()):
            with float_states.under(mxcsr):
                before = float_states.read()
                call()
                after = float_states.read()
            if (after[0] | ignored, *after[1:]) != (before[0] | ignored, *before[1:]):
                different.append((name, *("/".join(map(hex, state)) for state in (before, after))))
    assert not different


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_no_exception_is_reported_to_the_caller(dtype, rng, family):
    for name, call in family(rng, dtype):
        with np.errstate(all="raise"):
            try:
                call()
            except FloatingPointError as error:
                pytest.fail(f"{name}: {error}")
        with warnings.catch_warnings(), np.errstate(all="warn"):
            warnings.simplefilter("error")
            np.vectorize(lambda x, call=call: (call(), x)[1], otypes=[float])(np.ones(2))


@float_states.needs_state
@pytest.mark.parametrize("flags", [0, 0x3F], ids=["no flags", "all flags"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_an_op_leaves_every_flag_as_it_is(kind, flags):
    x = np.array([[1.0, -1e4, np.inf], [np.nan, 1e-30, 1e30]], kind)
    for call in (fa.softmax, fa.exp, fa.layer_norm, fa.rms_norm, lambda x: fa.attention(*[x[None, None]] * 3)):
        for mxcsr in (float_states.DEFAULT, *float_states.STATES.values()):
            with float_states.under(mxcsr, flags):
                before = float_states.read()
                call(x)
                assert float_states.read() == before


WORKERS = """
import numpy as np, fastattn as fa
from tests import float_states
x, w = np.full((4000, 200), 1e-40, "f"), np.eye(200, dtype="f")
fa.set_num_threads(3)
with float_states.under(0x9FC0):
    first = fa.linear(x, w)
print(all((y.view(np.uint32) != 0).all() for y in (first, *(fa.linear(x, w) for _ in range(9)))))
"""


@float_states.needs_state
def test_threads_started_under_flush_to_zero_keep_subnormal_numbers():
    result = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True, timeout=60, check=False,
                            cwd=Path(__file__).parents[1])  # fmt: skip
    assert result.stdout.strip() == "True", result.stderr


def test_subnormal_numbers_are_kept_when_torch_flushes_its_own():
    torch = pytest.importorskip("torch")
    x, w = np.full((4000, 200), 1e-40, "f"), np.eye(200, dtype="f")
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot flush subnormal numbers on this processor")
    try:
        results = [fa.linear(x, w) for _ in range(5)]
    finally:
        torch.set_flush_denormal(False)
    assert all((y.view(np.uint32) != 0).all() for y in results)

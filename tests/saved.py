"""Saved values that were changed between forward and backward.

`python -m tests.saved functions SEED COUNT` draws COUNT of them and prints what is wrong, a line each, and each case
before it runs, so that the last one is what ended the process; likewise `modules`.

A value is changed in one place: a field, or a part of one; or the whole is that of another forward call. backward then
computes, or raises an error that names itself and `saved` (or the gradient, where that no longer fits). Another layout
of an array changes no bit.
"""

import dataclasses
import faulthandler
import sys
import zlib

import numpy as np

import fastattn as fa

ALLOWED = (TypeError, ValueError, MemoryError)
GRADIENTS = ("saved", "dy", "dout", "dloss", "dcontext", "grads", "dh", "dc", "dsum", "gradients", "gate", "up",
             "dlogits")  # fmt: skip


def floats(*shape, dtype=np.float32):
    rng = np.random.default_rng(zlib.crc32(repr(shape).encode()))
    return rng.standard_normal(shape).astype(dtype)


def stack(gates, layers, directions, hidden, inputs, dtype, proj=0, peephole=False, bias=True):
    weights, units = {}, proj or hidden
    for layer in range(layers):
        columns = inputs if layer == 0 else directions * units
        for side in ("", "_reverse")[:directions]:
            parts = {"weight_ih": (gates * hidden, columns), "weight_hh": (gates * hidden, units)}
            parts |= {"bias_ih": (gates * hidden,), "bias_hh": (gates * hidden,)} if bias else {}
            parts |= {"weight_hr": (proj, hidden)} if proj else {}
            parts |= {"weight_peephole": (3, hidden)} if peephole else {}
            weights |= {f"{kind}_l{layer}{side}": floats(*shape, dtype=dtype) for kind, shape in parts.items()}
    return weights


def functional_pairs():
    """(name, backward, what it takes as gradients, saved)"""
    x = floats(3, 5)
    for name, bias in (("layer_norm", (floats(5),)), ("rms_norm", ())):
        for dtype in (np.float32, np.float64, np.float16):
            arguments = [np.asarray(a, dtype) for a in (x, floats(5), *bias)]
            y, saved = getattr(fa, f"{name}_forward")(*arguments)
            yield f"{name}_backward", getattr(fa, f"{name}_backward"), y, saved
    for activation in (None, "relu", "gelu", "tanh"):
        y, saved = fa.linear_forward(x, floats(4, 5), floats(4), activation=activation)
        yield "linear_backward", fa.linear_backward, y, saved
    ids = np.array([[0, 2], [1, 1]])
    y, saved = fa.embedding_forward(ids, x)
    yield "embedding_backward", fa.embedding_backward, y, saved
    for reduction in ("mean", "none"):
        loss, saved = fa.cross_entropy_forward(floats(2, 2, 5), ids, ignore_index=1, reduction=reduction)
        yield "cross_entropy_backward", fa.cross_entropy_backward, loss, saved
    y, saved = fa.rope_forward(floats(2, 3, 6), np.arange(3))
    yield "rope_backward", fa.rope_backward, y, saved
    q, k, v = floats(2, 4, 5, 8), floats(2, 2, 6, 8), floats(2, 2, 6, 3)
    out, saved = fa.attention_forward(q, k, v, mask=floats(2, 1, 5, 6), causal="top-left", window=(3, 2), softcap=5.0,
                                      alibi_slopes=floats(4), sinks=floats(4), q_lengths=np.array([5, 3]),
                                      kv_lengths=np.array([2, 6]))  # fmt: skip
    yield "attention_backward", fa.attention_backward, out, saved
    out, saved = fa.attention_forward(*(a.astype(np.float16) for a in (q, k, v)))
    yield "attention_backward", fa.attention_backward, out, saved
    starts = np.array([0, 2, 2, 7])
    out, saved = fa.attention_varlen_forward(
        floats(7, 4, 8), floats(7, 2, 8), floats(7, 2, 3), starts, starts, causal=True
    )
    yield "attention_varlen_backward", fa.attention_varlen_backward, out, saved
    arrays = floats(2, 3, 4), floats(2, 5, 4), floats(2, 5, 6), floats(4)
    context, saved = fa.additive_attention_forward(*arrays, lengths=np.array([5, 2]))
    yield "additive_attention_backward", fa.additive_attention_backward, context, saved
    yield from recurrent_pairs()


def recurrent_pairs():
    for dtype in (np.float32, np.float64, np.float16):
        h, c = floats(2, 4, dtype=dtype), floats(2, 4, dtype=dtype)
        for name, gates, states in (("rnn", 1, (h,)), ("gru", 3, (h,)), ("lstm", 4, (h, c))):
            arrays = [
                floats(*shape, dtype=dtype) for shape in ((4 * gates, 3), (4 * gates, 4), (4 * gates,), (4 * gates,))
            ]
            out, saved = getattr(fa, f"{name}_cell_forward")(floats(2, 3, dtype=dtype), *states, *arrays)
            yield f"{name}_cell_backward", getattr(fa, f"{name}_cell_backward"), out, saved
            options = {"proj": 2, "peephole": True} if name == "lstm" else {}
            weights = stack(gates, 2, 2, 4, 3, dtype, **options)
            units = options.get("proj", 4)
            state = [floats(4, 2, n, dtype=dtype) for n in (units, 4)][: len(states)]
            out, saved = getattr(fa, f"{name}_forward")(
                floats(2, 6, 3, dtype=dtype), state[0] if len(state) == 1 else tuple(state), weights,
                lengths=np.array([6, 2]), batch_first=True, dropout=0.25, seed=1,
            )  # fmt: skip
            yield f"{name}_backward", getattr(fa, f"{name}_backward"), out, saved


def module_pairs():
    rng, x, n = np.random.default_rng(0), floats(2, 5, 8), fa.nn
    memory, lengths = floats(2, 3, 8), np.array([5, 2])
    for module, arguments, options in (
        (n.Linear(8, 4, rng=rng), (x,), {}), (n.LayerNorm(8), (x,), {}), (n.RMSNorm(8), (x,), {}),
        (n.Embedding(7, 3, rng=rng), (np.array([[1, 6], [0, 0]]),), {}),
        (n.FeedForward(8, 6, rng=rng), (x,), {}), (n.FeedForward(8, 6, activation="silu_gated", rng=rng), (x,), {}),
        (n.MultiHeadAttention(8, 2, rng=rng), (x,), {"lengths": lengths}),
        (n.MultiHeadAttention(8, 2, rng=rng), (x, memory), {}),
        (n.TransformerEncoderLayer(8, 2, 6, rng=rng), (x,), {"lengths": lengths}),
        (n.TransformerDecoderLayer(8, 2, 6, norm_first=True, rng=rng), (x, memory), {}),
        (n.TransformerEncoder(8, 2, 6, num_layers=2, final_norm=True, rng=rng), (x,), {}),
        (n.TransformerDecoder(8, 2, 6, num_layers=2, rng=rng), (x, memory), {}),
        (n.Transformer(8, 2, 6, num_encoder_layers=1, num_decoder_layers=1, output_size=5, rng=rng), (memory, x), {}),
        (n.AdditiveAttention(8, 8, 4, rng=rng), (x, memory), {"lengths": np.array([3, 1])}),
        (n.RNN(8, 4, rng=rng), (x,), {}), (n.GRU(8, 4, 2, bidirectional=True, rng=rng), (x,), {}),
        (n.LSTM(8, 4, 2, proj_size=2, rng=rng), (x,), {"lengths": np.array([2, 1, 0, 2, 1])}),
    ):  # fmt: skip
        y, saved = module.forward(*arguments, **options)
        yield type(module).__name__, module.backward, y, saved
    module = n.AttentionGRU(8, 4, 8, 6, rng=rng)
    (result, h), saved = module.forward(floats(5, 2, 8), memory, lengths=np.array([3, 1]))
    yield "AttentionGRU", module.backward, (result.y, result.context, h), saved
    ids, targets = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[0, 5], [0, 1]])
    for kind in ("bahdanau", "cho", "sutskever"):
        module = n.Seq2Seq(7, 8, 4, 6, kind=kind, rng=rng)
        logits, saved = module.forward(ids, targets, np.array([3, 2]))
        yield "Seq2Seq", module.backward, logits, saved


# ---- what a saved value consists of ----


def children(value):
    """(how to say it, part, function that makes the value with another part) of each part."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            name = field.name
            yield f".{name}", getattr(value, name), lambda part, name=name: dataclasses.replace(value, **{name: part})
    elif isinstance(value, tuple) and hasattr(value, "_replace"):
        for name in value._fields:
            yield f".{name}", getattr(value, name), lambda part, name=name: value._replace(**{name: part})
    elif isinstance(value, (tuple, list)):
        for i, part in enumerate(value):
            yield f"[{i}]", part, lambda part, i=i: type(value)([*value[:i], part, *value[i + 1 :]])


def places(value, path="", wrap=lambda part: part):
    """(path, part, function from another part to another value) of all parts, the whole first."""
    yield path, value, wrap
    for name, part, remake in children(value):
        yield from places(part, path + name, lambda new, remake=remake, wrap=wrap: wrap(remake(new)))


THINGS = [
    None, True, False, 0, 1, -1, 7, 2**31, 2**62, -(2**63), 10**30, 0.5, float("nan"), float("inf"), 1e308, "", "tanh",
    "mean", b"x", (), [], {}, (1,), (-1, 2), (2**40, 2**40), (2, 3), (None, None), object(), np.float32, np.array(3.0),
    np.array([]), np.array([None]), np.zeros((2, 3)), np.zeros((2, 3), np.float32), np.zeros(2, np.int64),
    np.array([10**9]), np.full((2, 2), -1), np.zeros((1,) * 20), np.broadcast_to(np.float32(0), (2**29, 2**29)),
    np.zeros((0, 2**40), "f4"),
]  # fmt: skip


def misaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    raw[...] = np.frombuffer(x.tobytes(), np.uint8)
    return raw.view(x.dtype).reshape(x.shape)


LAYOUTS = [
    misaligned,
    np.asfortranarray,
    lambda x: np.repeat(x[..., None], 2, -1)[..., 0],
    lambda x: x[::-1].copy()[::-1] if x.ndim else x,
    lambda x: x.tolist() if x.dtype in (np.float64, np.int64) else x,
]


def damaged(rng, x):
    """An array of another type or shape, or of numbers out of range."""
    axis = int(rng.integers(max(1, x.ndim)))
    far = np.iinfo(x.dtype).max if x.dtype.kind in "iu" else np.nan
    return [
        lambda: x.astype(
            [np.float64, np.float32, np.float16, np.int64, np.int8, bool, complex, object][rng.integers(8)]
        ),
        lambda: x.astype(x.dtype.newbyteorder()),
        lambda: x[..., None],
        lambda: x[0] if x.ndim and len(x) else x,
        lambda: np.take(x, [], axis) if x.ndim else x,
        lambda: np.concatenate([x, x], axis) if x.ndim else x,
        lambda: np.delete(x, 0, axis) if x.ndim and x.shape[axis] else x,
        lambda: x.swapaxes(0, -1) if x.ndim else x,
        x.ravel,
        lambda: np.full_like(x, far),
        lambda: np.full_like(x, -1),
        lambda: np.where(np.arange(x.size).reshape(x.shape) == x.size - 1, far, x).astype(x.dtype),
        lambda: x.view(np.int32) if x.dtype == np.float32 and x.flags.c_contiguous else x,
        lambda: np.broadcast_to(np.zeros((), x.dtype), (2 ** (56 // max(1, x.ndim)),) * x.ndim),
        lambda: np.broadcast_to(x[:1], x.shape) if x.ndim and len(x) else x,
        lambda: np.ma.masked_less(x, 0),
    ][rng.integers(16)]()


def draw(rng, saved, others):
    """(what was done, another saved value, whether it means the same)"""
    choice = rng.random()
    if choice < 0.05:
        other = others[rng.integers(len(others))]
        return f"saved of {other[0]}", other[3], False
    parts = list(places(saved))
    path, part, remake = parts[rng.integers(len(parts))]
    if not isinstance(part, np.ndarray) or choice < 0.3:
        thing = THINGS[rng.integers(len(THINGS))]
        if rng.random() < 0.3:  # a part of another place, perhaps of another call
            other = others[rng.integers(len(others))] if rng.random() < 0.5 else (None, None, None, saved)
            found = list(places(other[3]))
            thing = found[rng.integers(len(found))][1]
        return f"{path} = {describe(thing)}", remake(thing), False
    if choice < 0.5:
        layout = LAYOUTS[rng.integers(len(LAYOUTS))]
        return f"{path} in another layout", remake(layout(part)), True
    new = damaged(rng, part)
    return f"{path} = {describe(new)}", remake(new), False


def describe(thing):
    if isinstance(thing, np.ndarray):
        return f"{type(thing).__name__} {thing.dtype} {thing.shape}"
    return repr(thing)[:100]


def arrays_of(gradients):
    if isinstance(gradients, np.ndarray):
        return [gradients]
    parts = gradients.values() if isinstance(gradients, dict) else gradients if isinstance(gradients, tuple) else ()
    return [array for part in parts for array in arrays_of(part)]


def same(a, b):
    return len(a) == len(b) and all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def is_named(name, message):
    """Whether a message names a function and its argument."""
    op, _, rest = message.partition(": ")
    return op in (name, f"{name}.backward") and rest.startswith(("no memory for", *GRADIENTS))


def check(rng, pairs):
    """One case; what is wrong with it, or None."""
    name, backward, gradient, saved = pairs[rng.integers(len(pairs))]
    what, changed, equal = draw(rng, saved, pairs)
    print("#", name, what.replace("\n", " "), flush=True)
    try:
        got = backward(gradient, changed)
    except ALLOWED as error:
        message = f"{type(error).__name__}: {error}"
        if equal and not (isinstance(error, TypeError) and "like the" in message):
            return f"{name}: {what}: refused although it means the same: {message}"
        return None if is_named(name, str(error)) else f"{name}: {what}: not named: {message}"
    except Exception as error:
        return f"{name}: {what}: {type(error).__name__}: {error}"
    if equal and not same(arrays_of(got), arrays_of(backward(gradient, saved))):
        return f"{name}: {what}: other gradients"
    return None


def main(kind, seed, count):
    faulthandler.enable()
    rng = np.random.default_rng(int(seed))
    pairs = list(functional_pairs() if kind == "functions" else module_pairs())
    with np.errstate(all="ignore"):
        faults = {check(rng, pairs) for _ in range(int(count))}
    for fault in sorted(faults - {None}):
        print(fault)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The plain NumPy implementation of each op, in the dtype of its arguments: the yardstick of the error rule.

Each is what one writes without this library, in arithmetic that is the same on every machine: tests/ordered.py states
the order of sums. Options of attention about who attends to whom come from the reference.
"""

import math

import numpy as np

from fastattn import reference
from tests.ordered import erfc, exp, log, matmul, mean, tanh, total


def sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + exp(-x))


def silu(x):
    with np.errstate(over="ignore"):
        return x / (1 + exp(-x))


def gelu(x):
    return x * (erfc(-x / math.sqrt(2)) / 2)


def gelu_tanh(x):
    return x / 2 * (1 + tanh(math.sqrt(2 / math.pi) * (x + x.dtype.type(0.044715) * x * x * x)))


ACTIVATIONS = {
    None: lambda x: x,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
}


def silu_gated(gate, up):
    return silu(gate) * up


def activation_backward(name, dy, x):
    s = sigmoid(x)
    if name == "gelu_tanh":
        factor = x.dtype.type(2 * math.sqrt(2 / math.pi))
        s = sigmoid(factor * (x + x.dtype.type(0.044715) * x * x * x))
        return dy * (s + x * s * (1 - s) * factor * (1 + x.dtype.type(3 * 0.044715) * x * x))
    if name == "gelu":
        density = exp(-x * x / 2) * x.dtype.type(1 / math.sqrt(2 * math.pi))
        return dy * (erfc(-x / math.sqrt(2)) / 2 + x * density)
    slope = {"tanh": lambda: 1 - tanh(x) ** 2, "sigmoid": lambda: s * (1 - s), "relu": lambda: x > 0,
             "silu": lambda: s + x * s * (1 - s), None: lambda: x.dtype.type(1)}[name]()  # fmt: skip
    return dy * slope


def silu_gated_backward(dy, gate, up):
    return activation_backward("silu", dy * up, gate), dy * silu(gate)


def softmax(x, axis=-1, scale=1.0):
    z = x * x.dtype.type(scale)
    e = exp(z - z.max(axis, keepdims=True))
    return e / total(e, axis, keepdims=True)


def log_softmax(x, axis=-1, scale=1.0):
    z = x * x.dtype.type(scale)
    z = z - z.max(axis, keepdims=True)
    return z - log(total(exp(z), axis, keepdims=True))


def softmax_backward(dy, y, axis=-1, scale=1.0):
    return y.dtype.type(scale) * y * (dy - total(dy * y, axis, keepdims=True))


def log_softmax_backward(dy, y, axis=-1, scale=1.0):
    return y.dtype.type(scale) * (dy - exp(y) * total(dy, axis, keepdims=True))


def product(x, w):
    """x w' of x[..., in] and w[out, in]."""
    return matmul(x.reshape(-1, x.shape[-1]), w.T).reshape(*x.shape[:-1], len(w))


def linear(x, weight, bias=None, activation=None):
    y = product(x, weight)
    return ACTIVATIONS[activation](y if bias is None else y + bias)


def linear_backward(dy, x, weight, bias=None, activation=None):
    """dx, dweight, dbias."""
    z = product(x, weight) if bias is None else product(x, weight) + bias
    g = activation_backward(activation, dy, z)
    return matmul(g, weight), matmul(np.ascontiguousarray(g.T), x), total(g, 0)


def cross_entropy(logits, targets, label_smoothing=0.0):
    ly, s, one = log_softmax(logits), logits.dtype.type(label_smoothing), logits.dtype.type(1)
    loss = -(one - s) * np.take_along_axis(ly, targets[..., None], -1)[..., 0]
    return loss - s * mean(ly, -1) if label_smoothing else loss


def cross_entropy_backward(dloss, logits, targets, label_smoothing=0.0):
    real, n = logits.dtype.type, logits.shape[-1]
    s = real(label_smoothing)
    wanted = (real(1) - s) * (np.arange(n) == targets[..., None]).astype(logits.dtype) + s / real(n)
    return dloss[..., None] * (softmax(logits) - wanted)


def embedding_backward(dy, ids, rows):
    dweight = np.zeros((rows, dy.shape[-1]), dy.dtype)
    np.add.at(dweight, ids, dy)
    return dweight


def rope(x, positions, base=10000.0, interleaved=False):
    n = x.shape[-1]
    wide = np.longdouble if x.dtype == np.float64 else np.float64
    angle = positions[..., None].astype(wide) * wide(base) ** (-np.arange(0, n, 2) / wide(n))
    c, s = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : n // 2], x[..., n // 2 :])
    turned = a * c - b * s, b * c + a * s
    return np.stack(turned, -1).reshape(x.shape) if interleaved else np.concatenate(turned, -1)


def _rows_total(x):
    return total(x.reshape(-1, x.shape[-1]), 0)


def layer_norm(x, weight=None, bias=None, eps=1e-5):
    x = x - mean(x, -1, keepdims=True)
    y = x / np.sqrt(mean(x * x, -1, keepdims=True) + x.dtype.type(eps))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def rms_norm(x, weight=None, eps=1e-5):
    y = x / np.sqrt(mean(x * x, -1, keepdims=True) + x.dtype.type(eps))
    return y if weight is None else y * weight


def layer_norm_backward(dy, x, weight=None, eps=1e-5):
    """dx, dweight, dbias."""
    x = x - mean(x, -1, keepdims=True)
    rstd = 1 / np.sqrt(mean(x * x, -1, keepdims=True) + x.dtype.type(eps))
    y, g = x * rstd, dy if weight is None else dy * weight
    dx = rstd * (g - mean(g, -1, keepdims=True) - y * mean(g * y, -1, keepdims=True))
    return dx, _rows_total(dy * y), _rows_total(dy)


def rms_norm_backward(dy, x, weight=None, eps=1e-5):
    """dx, dweight."""
    rstd = 1 / np.sqrt(mean(x * x, -1, keepdims=True) + x.dtype.type(eps))
    y, g = x * rstd, dy if weight is None else dy * weight
    return rstd * (g - y * mean(g * y, -1, keepdims=True)), _rows_total(dy * y)


def _attention_probabilities(q, k, mask=None, causal=False, scale=None, window=None, softcap=0.0, alibi_slopes=None,
                             sinks=None, q_lengths=None, kv_lengths=None):  # fmt: skip
    """p, lse, and the scaled scores; k of each query head."""
    dtype = q.dtype.type
    causal = "bottom-right" if causal is True else causal
    sizes = q.shape[0], q.shape[2], k.shape[2]
    scores = s = _attention_scale(q, scale) * matmul(q, k.swapaxes(-1, -2))
    if softcap:
        s = dtype(softcap) * tanh(s / dtype(softcap))
    if alibi_slopes is not None:
        distance = reference.alibi_distance(*sizes, causal, q_lengths, kv_lengths).astype(dtype)
        s = s - alibi_slopes[:, None, None] * distance
    if mask is not None and mask.dtype != bool:
        s = s + mask
    allowed = reference.attention_allowed(*sizes, mask, causal, window, q_lengths, kv_lengths)
    s = np.where(allowed, s, dtype(-np.inf))
    if sinks is not None:
        lengths = np.full(sizes[0], sizes[1]) if q_lengths is None else np.asarray(q_lengths)
        exists = np.arange(sizes[1]) < lengths[:, None]
        sink = np.where(exists[:, None, :, None], sinks[:, None, None], dtype(-np.inf))
        s = np.concatenate([s, sink], axis=-1)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    top = np.where(top == -np.inf, dtype(0), top)
    e = exp(s - top)
    sums = total(e, -1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (log(sums) + top)[..., 0]
    return (e / np.where(sums == 0, dtype(1), sums))[..., : sizes[2]], lse, scores


def _attention_scale(q, scale):
    return q.dtype.type(1 / math.sqrt(q.shape[-1] or 1) if scale is None else scale)


def _repeated(q, k, v):
    """Keys and values of each query head."""
    group = q.shape[1] // k.shape[1] if k.shape[1] else 1
    return np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)


def attention(q, k, v, **options):
    """out and lse of whole matrices of scores."""
    k, v = _repeated(q, k, v)
    p, lse, _ = _attention_probabilities(q, k, **options)
    return matmul(p, v), lse


def attention_backward(dout, q, k, v, **options):
    """dq, dk, dv from whole matrices of scores."""
    scale, softcap = _attention_scale(q, options.get("scale")), q.dtype.type(options.get("softcap", 0.0))
    shape_k, shape_v = k.shape, v.shape
    k, v = _repeated(q, k, v)
    p, _, scores = _attention_probabilities(q, k, **options)
    dp = matmul(dout, v.swapaxes(-1, -2))
    ds = scale * p * (dp - total(dp * p, -1, keepdims=True))
    if softcap:
        ds = ds * (1 - tanh(scores / softcap) ** 2)
    dk, dv = matmul(ds.swapaxes(-1, -2), q), matmul(p.swapaxes(-1, -2), dout)
    batch, heads, keys = shape_k[:3]
    group = q.shape[1] // heads if heads else 1
    return (matmul(ds, k), total(dk.reshape(batch, heads, group, keys, shape_k[-1]), 2),
            total(dv.reshape(batch, heads, group, keys, shape_v[-1]), 2))  # fmt: skip


def total_to(x, shape):
    """x summed over the axes along which `shape` was broadcast to it."""
    x = total(x, tuple(range(x.ndim - len(shape))))
    return total(x, tuple(axis for axis, size in enumerate(shape) if size == 1), keepdims=True)


def attention_option_gradients(dout, q, k, v, **options):
    """dmask, dsinks, dalibi_slopes; None where attention had no such option.

    delta is the sum of p dp, which NumPy has at hand. Where dS is summed over the keys of a row, for the slopes and for
    a mask without keys, it comes from the output, as in the documented equation: its error is that of all keys alike
    and does not cancel. Slopes' errors are 1.5 times those with the sum of p dp (2.5 in the worst of 12 draws), 0.9
    times (1.65) those with this one.
    """
    k, v = _repeated(q, k, v)
    p, lse, _ = _attention_probabilities(q, k, **options)
    dp = matmul(dout, v.swapaxes(-1, -2))
    delta, of_out = total(dp * p, -1, keepdims=True), total(dout * matmul(p, v), -1, keepdims=True)
    mask, sinks, slopes = (options.get(name) for name in ("mask", "sinks", "alibi_slopes"))
    dmask = dsinks = dslopes = None
    if mask is not None and mask.dtype != bool:
        dmask = total_to(p * (dp - (of_out if mask.shape[-1] < k.shape[2] else delta)), mask.shape)
    if sinks is not None:
        exists = lse != -np.inf
        rows = np.where(exists, exp(sinks[:, None] - np.where(exists, lse, 0)), 0).astype(q.dtype)
        dsinks = -total(rows * delta[..., 0], (0, 2))
    if slopes is not None:
        names = ("causal", "q_lengths", "kv_lengths")
        own = {name: options[name] for name in names if name in options}
        distance = reference.alibi_distance(q.shape[0], q.shape[2], k.shape[2], **own).astype(q.dtype)
        dslopes = -total(distance * (p * (dp - of_out)), (0, 2, 3))
    return dmask, dsinks, dslopes


def additive_attention(query, keys, values, v, lengths=None, mask=None):
    """context, weights."""
    e = matmul(tanh(query[:, :, None] + keys[:, None]), v[:, None])[..., 0]
    if mask is not None:
        e = np.where(mask, e, -np.inf).astype(e.dtype) if mask.dtype == bool else e + mask
    if lengths is not None:
        e = np.where(np.arange(e.shape[2]) < np.asarray(lengths)[:, None, None], e, -np.inf).astype(e.dtype)
    with np.errstate(invalid="ignore"):
        weights = np.nan_to_num(softmax(e))
    return matmul(weights, values), weights


def additive_attention_backward(dcontext, query, keys, values, v, lengths=None, mask=None):
    """dquery, dkeys, dvalues, dv."""
    weights = additive_attention(query, keys, values, v, lengths, mask)[1]
    de = softmax_backward(matmul(dcontext, values.swapaxes(1, 2)), weights)[..., None]
    t = tanh(query[:, :, None] + keys[:, None])
    u = de * v * (1 - t * t)
    return total(u, 2), total(u, 1), matmul(weights.swapaxes(1, 2), dcontext), total(de * t, (0, 1, 2))


def _affine(x, w, b):
    return product(x, w) if b is None else product(x, w) + b


def rnn_cell(x, h, w_ih, w_hh, b_ih=None, b_hh=None, nonlinearity="tanh"):
    return ACTIVATIONS[nonlinearity](_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh))


def gru_cell(x, h, w_ih, w_hh, b_ih=None, b_hh=None, linear_before_reset=True):
    hidden = h.shape[-1]
    x_r, x_z, x_n = np.split(_affine(x, w_ih, b_ih), 3, axis=-1)
    h_r, h_z, h_n = np.split(_affine(h, w_hh, b_hh), 3, axis=-1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    if not linear_before_reset:
        h_n = _affine(r * h, w_hh[2 * hidden :], None if b_hh is None else b_hh[2 * hidden :])
        r = 1
    n = tanh(x_n + r * h_n)
    return (1 - z) * n + z * h


def _lstm_gates(a, c, peephole, coupled, clip):
    """i, f, g, o and the new c, from the sums a of the gates; coupled: a of i, g, o, and f = 1 - i."""
    if coupled:
        p_i, p_o = (0, 0) if peephole is None else peephole
        a_i, a_g, a_o = np.split(a, 3, axis=-1)
        i = sigmoid(a_i + p_i * c)
        f = 1 - i
    else:
        p_i, p_f, p_o = (0, 0, 0) if peephole is None else peephole
        a_i, a_f, a_g, a_o = np.split(a, 4, axis=-1)
        i, f = sigmoid(a_i + p_i * c), sigmoid(a_f + p_f * c)
    g = tanh(a_g)
    c_next = f * c + i * g
    if clip is not None:
        c_next = np.clip(c_next, -clip, clip)
    return i, f, g, sigmoid(a_o + p_o * c_next), c_next


def attention_gru(x, annotations, h, w_ih, w_hh, b_ih, b_hh, query, key, v, lengths=None):
    """h[T, B, H], context[T, B, K], weights[B, T, S] of x[T, B, I] and annotations[B, S, K]."""
    keys, steps = product(annotations, key), []
    for x_t in x:
        context, weights = additive_attention(product(h, query)[:, None], keys, annotations, v, lengths)
        h = gru_cell(np.concatenate([x_t, context[:, 0]], 1), h, w_ih, w_hh, b_ih, b_hh)
        steps.append((h, context[:, 0], weights[:, 0]))
    y, context, weights = (np.stack(part) for part in zip(*steps, strict=True))
    return y, context, weights.swapaxes(0, 1)


def lstm_cell(x, h, c, w_ih, w_hh, b_ih=None, b_hh=None, peephole=None, w_hr=None, coupled=False, clip=None):
    *_, o, c_next = _lstm_gates(_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh), c, peephole, coupled, clip)
    h_next = o * tanh(c_next)
    return h_next if w_hr is None else product(h_next, w_hr), c_next


def sequence(cell, x, state, lengths=None, reverse=False):
    """state = cell(x[t], *state) over x[T, B, I], one sequence after another's step, as reference.sequence."""
    steps, batch = x.shape[:2]
    lengths = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    y = np.zeros((steps, *state[0].shape), x.dtype)
    rows = np.arange(batch)
    for step in range(steps):
        runs = step < lengths
        t = np.where(runs, lengths - 1 - step if reverse else step, 0)
        after = cell(x[t, rows], *state)
        after = after if isinstance(after, tuple) else (after,)
        state = tuple(np.where(runs[:, None], new, old) for new, old in zip(after, state, strict=True))
        y[t[runs], rows[runs]] = state[0][runs]
    return y, state


def _cell_gradients(da_x, da_h, x, h, w_ih, w_hh):
    dweights = {"w_ih": matmul(da_x.T, x), "w_hh": matmul(da_h.T, h), "b_ih": total(da_x, 0), "b_hh": total(da_h, 0)}
    return product(da_x, w_ih.T), product(da_h, w_hh.T), dweights


def rnn_cell_backward(grads, x, h, w_ih, w_hh, b_ih=None, b_hh=None, nonlinearity="tanh"):
    y = rnn_cell(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity)
    da = grads[0] * {"tanh": 1 - y * y, "sigmoid": y * (1 - y), "relu": (y > 0).astype(y.dtype)}[nonlinearity]
    dx, dh, dweights = _cell_gradients(da, da, x, h, w_ih, w_hh)
    return dx, (dh,), dweights


def gru_cell_backward(grads, x, h, w_ih, w_hh, b_ih=None, b_hh=None, linear_before_reset=True):
    (d,), hidden = grads, h.shape[-1]
    x_r, x_z, x_n = np.split(_affine(x, w_ih, b_ih), 3, axis=-1)
    h_r, h_z, h_n = np.split(_affine(h, w_hh, b_hh), 3, axis=-1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    if linear_before_reset:
        n = tanh(x_n + r * h_n)
    else:
        n = tanh(x_n + _affine(r * h, w_hh[2 * hidden :], None if b_hh is None else b_hh[2 * hidden :]))
    da_n, da_z = d * (1 - z) * (1 - n * n), d * (h - n) * z * (1 - z)
    if linear_before_reset:
        da_r = da_n * h_n * r * (1 - r)
        da_x, da_h = np.concatenate([da_r, da_z, da_n], -1), np.concatenate([da_r, da_z, da_n * r], -1)
        dx, dh, dweights = _cell_gradients(da_x, da_h, x, h, w_ih, w_hh)
        return dx, (d * z + dh,), dweights
    d_reset = product(da_n, w_hh[2 * hidden :].T)
    da = np.concatenate([d_reset * h * r * (1 - r), da_z, da_n], -1)
    dx, _, dweights = _cell_gradients(da, da, x, h, w_ih, w_hh)
    dweights["w_hh"] = np.concatenate([dweights["w_hh"][: 2 * hidden], matmul(da_n.T, r * h)])
    return dx, (d * z + d_reset * r + product(da[:, : 2 * hidden], w_hh[: 2 * hidden].T),), dweights


def lstm_cell_backward(grads, x, h, c, w_ih, w_hh, b_ih=None, b_hh=None, peephole=None, w_hr=None, coupled=False,
                       clip=None):  # fmt: skip
    dh, dc = grads
    i, f, g, o, c_next = _lstm_gates(_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh), c, peephole, coupled, clip)
    t, du = tanh(c_next), dh if w_hr is None else product(dh, w_hr.T)
    da_o = du * t * o * (1 - o)
    dc = dc + du * o * (1 - t * t) + (0 if peephole is None else peephole[-1] * da_o)
    if clip is not None:
        dc = np.where(np.abs(c_next) < clip, dc, 0)
    da_g = dc * i * (1 - g * g)
    if coupled:
        da_i = dc * (g - c) * i * (1 - i)
        parts, inner = [da_i, da_g, da_o], [da_i]
    else:
        da_i, da_f = dc * g * i * (1 - i), dc * c * f * (1 - f)
        parts, inner = [da_i, da_f, da_g, da_o], [da_i, da_f]
    da = np.concatenate(parts, -1)
    dx, dh_before, dweights = _cell_gradients(da, da, x, h, w_ih, w_hh)
    if w_hr is not None:
        dweights["w_hr"] = matmul(dh.T, o * t)
    dc_before = dc * f
    if peephole is not None:
        dweights["peephole"] = np.stack([*(total(d * c, 0) for d in inner), total(da_o * c_next, 0)])
        dc_before = dc_before + sum(p * d for p, d in zip(peephole[:-1], inner, strict=True))
    return dx, (dh_before, dc_before), dweights


def sequence_backward(cell, cell_backward, dy, dstate, x, state):
    """Backward through time, all sequences of one length; as reference.sequence_backward."""
    states = [state]
    for step in x[:-1]:
        after = cell(step, *states[-1])
        states.append(after if isinstance(after, tuple) else (after,))
    dx, dweights = np.empty_like(x), {}
    for t in reversed(range(len(x))):
        dx[t], dstate, own = cell_backward((dstate[0] + dy[t], *dstate[1:]), x[t], *states[t])
        dweights = {name: dweights[name] + value if dweights else value for name, value in own.items()}
    return dx, dstate, dweights

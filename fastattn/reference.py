"""The specification: every op in plain NumPy, float64, in the shortest readable form.

Tests compare the kernels with these functions, and these with finite differences. They are not fast, and promise
nothing about NaN in
masked places: tests of such promises state the expected values themselves.
"""

import math

import numpy as np

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _double(*arrays):
    return tuple(None if a is None else np.asarray(a, np.float64) for a in arrays)


# ---- element-wise ----


def exp(x):
    return np.exp(*_double(x))


def tanh(x):
    return np.tanh(*_double(x))


def sigmoid(x):
    (x,) = _double(x)
    z = np.exp(-np.abs(x))
    return np.where(x < 0, z, 1) / (1 + z)


def relu(x):
    (x,) = _double(x)
    return np.maximum(x, 0)


def silu(x):
    return np.asarray(x, np.float64) * sigmoid(x)


def gelu(x, approximate="none"):
    (x,) = _double(x)
    if approximate == "tanh":
        return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x / 2 * _erfc(-x / math.sqrt(2))


ACTIVATIONS = {None: lambda x: x, "tanh": tanh, "sigmoid": sigmoid, "relu": relu, "silu": silu, "gelu": gelu,
               "gelu_tanh": lambda x: gelu(x, "tanh")}  # fmt: skip


def silu_gated(gate, up):
    return silu(gate) * np.asarray(up, np.float64)


def _slope(name, x):
    """The derivative of an activation."""
    (x,) = _double(x)
    s = sigmoid(x)
    if name == "gelu_tanh":
        factor = 2 * np.sqrt(2 / np.float64(np.pi))
        s = sigmoid(factor * (x + 0.044715 * x**3))
        return s + x * s * (1 - s) * factor * (1 + 3 * 0.044715 * x**2)
    if name == "gelu":
        return gelu(np.where(x == 0, 1, x)) / np.where(x == 0, 1, x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return {None: 1, "tanh": 1 - np.tanh(x) ** 2, "sigmoid": s * (1 - s), "relu": x > 0,
            "silu": s + x * s * (1 - s)}[name]  # fmt: skip


def activation_backward(name, dy, x):
    """dy times the derivative at x of ACTIVATIONS[name]."""
    return np.asarray(dy, np.float64) * _slope(name, x)


def silu_gated_backward(dy, gate, up):
    """dgate, dup."""
    dy, up = _double(dy, up)
    return activation_backward("silu", dy * up, gate), dy * silu(gate)


# ---- rows ----


def softmax(x, axis=-1, scale=1.0):
    z = scale * np.asarray(x, np.float64)
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x, axis=-1, scale=1.0):
    z = scale * np.asarray(x, np.float64)
    z = z - z.max(axis, keepdims=True)
    return z - np.log(np.exp(z).sum(axis, keepdims=True))


def softmax_backward(dy, y, axis=-1, scale=1.0):
    dy, y = _double(dy, y)
    return scale * y * (dy - (dy * y).sum(axis, keepdims=True))


def log_softmax_backward(dy, y, axis=-1, scale=1.0):
    dy, y = _double(dy, y)
    return scale * (dy - np.exp(y) * dy.sum(axis, keepdims=True))


def linear(x, weight, bias=None, activation=None):
    x, weight, bias = _double(x, weight, bias)
    y = x @ weight.T
    return ACTIVATIONS[activation](y if bias is None else y + bias)


def linear_backward(dy, x, weight, bias=None, activation=None):
    """dx, dweight, dbias."""
    g = activation_backward(activation, dy, linear(x, weight, bias))
    x, weight = _double(x, weight)
    g, rows = g.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1])
    return (g @ weight).reshape(x.shape), g.T @ rows, g.sum(0)


def cross_entropy(logits, targets, label_smoothing=0.0):
    """The loss of each row."""
    ly = log_softmax(logits)
    of_target = np.take_along_axis(ly, np.asarray(targets)[..., None], -1)[..., 0]
    return -(1 - label_smoothing) * of_target - label_smoothing * ly.mean(-1)


def cross_entropy_backward(dloss, logits, targets, label_smoothing=0.0):
    """dlogits, from the gradient of each row's loss."""
    n = logits.shape[-1]
    wanted = (1 - label_smoothing) * (np.arange(n) == np.asarray(targets)[..., None]) + label_smoothing / n
    return np.asarray(dloss, np.float64)[..., None] * (softmax(logits) - wanted)


def embedding_backward(dy, ids, rows):
    """dweight."""
    (dy,) = _double(dy)
    dweight = np.zeros((rows, dy.shape[-1]))
    np.add.at(dweight, np.asarray(ids), dy)
    return dweight


def rope(x, positions, base=10000.0, interleaved=False):
    (x,) = _double(x)
    n = x.shape[-1]
    angle = np.asarray(positions, np.float64)[..., None] * np.float64(base) ** (-np.arange(0, n, 2) / np.float64(n))
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : n // 2], x[..., n // 2 :])
    c, s = np.cos(angle), np.sin(angle)
    turned = a * c - b * s, b * c + a * s
    return np.stack(turned, -1).reshape(x.shape) if interleaved else np.concatenate(turned, -1)


# ---- norms of the last axis; a missing weight, bias or residual is None ----


def _scaled(y, weight, bias=None):
    weight, bias = _double(weight, bias)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def layer_norm(x, weight=None, bias=None, eps=1e-5):
    (x,) = _double(x)
    x = x - x.mean(-1, keepdims=True)
    return _scaled(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps), weight, bias)


def rms_norm(x, weight=None, eps=1e-5):
    (x,) = _double(x)
    return _scaled(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps), weight)


def _rows_sum(x):
    return x.reshape(-1, x.shape[-1]).sum(0)


def layer_norm_backward(dy, x, weight=None, eps=1e-5):
    """dx, dweight, dbias."""
    dy, x = _double(dy, x)
    x = x - x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    y, g = x * rstd, _scaled(dy, weight)
    dx = rstd * (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True))
    return dx, _rows_sum(dy * y), _rows_sum(dy)


def rms_norm_backward(dy, x, weight=None, eps=1e-5):
    """dx, dweight."""
    dy, x = _double(dy, x)
    rstd = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    y, g = x * rstd, _scaled(dy, weight)
    return rstd * (g - y * (g * y).mean(-1, keepdims=True)), _rows_sum(dy * y)


# ---- positions ----


def sinusoidal_positions(length, dim, base=10000.0, offset=0):
    positions, columns = np.arange(offset, offset + length)[:, None], np.arange(dim)
    angle = positions * np.float64(base) ** (-(columns - columns % 2) / max(dim, 1))
    return np.where(columns % 2 == 0, np.sin(angle), np.cos(angle))


# ---- attention ----


def attention_allowed(batch, queries, keys, mask=None, causal=False, window=None, q_lengths=None, kv_lengths=None):
    """Which query attends to which key: bool, broadcastable to [batch, heads, queries, keys]."""
    q_lengths = np.full(batch, queries) if q_lengths is None else np.asarray(q_lengths)
    kv_lengths = np.full(batch, keys) if kv_lengths is None else np.asarray(kv_lengths)
    i, j = np.arange(queries)[:, None], np.arange(keys)
    i, j, n, m = i[None, None], j[None, None, None], q_lengths[:, None, None, None], kv_lengths[:, None, None, None]
    distance = j - i - (0 if causal == "top-left" else m - n)
    left, right = window or (None, None)
    allowed = (i < n) & (j < m)
    if causal:
        allowed = allowed & (distance <= 0)
    if left is not None:
        allowed = allowed & (distance >= -left)
    if right is not None:
        allowed = allowed & (distance <= right)
    if mask is not None:
        allowed = allowed & (mask if mask.dtype == bool else mask != -np.inf)
    return allowed


def alibi_distance(batch, queries, keys, causal=False, q_lengths=None, kv_lengths=None):
    """|i + offset - j|, broadcastable to [batch, heads, queries, keys]."""
    q_lengths = np.full(batch, queries) if q_lengths is None else np.asarray(q_lengths)
    kv_lengths = np.full(batch, keys) if kv_lengths is None else np.asarray(kv_lengths)
    offset = np.zeros_like(q_lengths) if causal == "top-left" else kv_lengths - q_lengths
    return np.abs(np.arange(queries)[:, None] + offset[:, None, None, None] - np.arange(keys))


def _attention_probabilities(q, k, mask=None, causal=False, scale=None, window=None, softcap=0.0, alibi_slopes=None,
                             sinks=None, q_lengths=None, kv_lengths=None):  # fmt: skip
    """p and lse."""
    q, k, alibi_slopes, sinks = _double(q, k, alibi_slopes, sinks)
    causal = "bottom-right" if causal is True else causal
    scale = 1 / math.sqrt(q.shape[-1] or 1) if scale is None else scale
    group = q.shape[1] // k.shape[1] if k.shape[1] else 1
    sizes = q.shape[0], q.shape[2], k.shape[2]
    s = scale * q @ np.repeat(k, group, axis=1).swapaxes(-1, -2)
    if softcap:
        s = softcap * np.tanh(s / softcap)
    if alibi_slopes is not None:
        s = s - alibi_slopes[:, None, None] * alibi_distance(*sizes, causal, q_lengths, kv_lengths)
    allowed = attention_allowed(*sizes, mask, causal, window, q_lengths, kv_lengths)
    if mask is not None and mask.dtype != bool:
        s = s + np.where(mask == -np.inf, 0, mask)
    s = np.where(allowed, s, -np.inf)
    sink = np.full((q.shape[0], q.shape[1], q.shape[2], 1), -np.inf, s.dtype)
    if sinks is not None:
        lengths = np.full(q.shape[0], q.shape[2]) if q_lengths is None else np.asarray(q_lengths)
        exists = np.arange(q.shape[2]) < lengths[:, None]
        sink = np.where(exists[:, None, :, None], sinks[:, None, None], sink)
    top = np.maximum(s.max(-1, keepdims=True, initial=-np.inf), sink)
    top = np.where(top == -np.inf, 0, top)
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True) + np.exp(sink - top)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    return e / np.where(total == 0, 1, total), lse


def attention(q, k, v, **options):
    """out[B, H, Lq, Dv] and lse[B, H, Lq] of q[B, H, Lq, D], k[B, Hk, Lk, D], v[B, Hk, Lk, Dv]; the options of
    fastattn.attention but layout."""
    p, lse = _attention_probabilities(q, k, **options)
    (v,) = _double(v)
    return p @ np.repeat(v, q.shape[1] // v.shape[1] if v.shape[1] else 1, axis=1), lse


def _attention_score_gradients(dout, q, k, v, **options):
    """p, the gradient of the scores after softcap, slopes and mask, rowsum(dp p), and lse."""
    p, lse = _attention_probabilities(q, k, **options)
    dout, v = _double(dout, v)
    dp = dout @ np.repeat(v, q.shape[1] // v.shape[1] if v.shape[1] else 1, axis=1).swapaxes(-1, -2)
    delta = (dp * p).sum(-1, keepdims=True)
    return p, p * (dp - delta), delta[..., 0], lse


def attention_backward(dout, q, k, v, **options):
    """dq, dk, dv."""
    p, ds, _, _ = _attention_score_gradients(dout, q, k, v, **options)
    dout, q, k, v = _double(dout, q, k, v)
    scale, softcap = options.get("scale"), options.get("softcap", 0.0)
    scale = 1 / math.sqrt(q.shape[-1] or 1) if scale is None else scale
    batch, heads, keys, _ = k.shape
    group = q.shape[1] // heads if heads else 1
    repeated = np.repeat(k, group, axis=1)
    ds = scale * ds
    if softcap:
        ds = ds * (1 - np.tanh(scale * q @ repeated.swapaxes(-1, -2) / softcap) ** 2)
    dk, dv = ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dout
    return (ds @ repeated,
            dk.reshape(batch, heads, group, keys, k.shape[-1]).sum(2),
            dv.reshape(batch, heads, group, keys, v.shape[-1]).sum(2))  # fmt: skip


def sum_to(x, shape):
    """x summed over the axes along which `shape` was broadcast to it."""
    x = x.sum(tuple(range(x.ndim - len(shape))))
    return x.sum(tuple(axis for axis, size in enumerate(shape) if size == 1), keepdims=True)


def attention_option_gradients(dout, q, k, v, **options):
    """dmask, dsinks, dalibi_slopes; None where attention had no such option."""
    _, ds, delta, lse = _attention_score_gradients(dout, q, k, v, **options)
    mask, sinks, slopes = (options.get(name) for name in ("mask", "sinks", "alibi_slopes"))
    dmask = dsinks = dslopes = None
    if mask is not None and mask.dtype != bool:
        dmask = sum_to(ds, mask.shape)
    if sinks is not None:
        (sinks,) = _double(sinks)
        exists = lse != -np.inf
        rows = np.where(exists, np.exp(sinks[:, None] - np.where(exists, lse, 0)), 0)
        dsinks = -(rows * delta).sum((0, 2))
    if slopes is not None:
        names = ("causal", "q_lengths", "kv_lengths")
        distance = alibi_distance(q.shape[0], q.shape[2], k.shape[2], **{n: options[n] for n in names if n in options})
        dslopes = -(distance * ds).sum((0, 2, 3))
    return dmask, dsinks, dslopes


# ---- additive attention: query[B, T, A], keys[B, S, A], values[B, S, C], v[A] ----


def additive_attention(query, keys, values, v, lengths=None, mask=None):
    """context, weights."""
    query, keys, values, v = _double(query, keys, values, v)
    e = np.tanh(query[:, :, None] + keys[:, None]) @ v
    allowed = np.ones(e.shape, bool)
    if lengths is not None:
        allowed &= np.arange(e.shape[2]) < np.asarray(lengths)[:, None, None]
    if mask is not None:
        mask = np.broadcast_to(mask, e.shape)
        allowed &= mask if mask.dtype == bool else mask != -np.inf
        if mask.dtype != bool:
            e = e + np.where(allowed, mask, 0)
    e = np.where(allowed, e, -np.inf)
    top = e.max(2, keepdims=True, initial=-np.inf)
    weights = np.where(allowed, np.exp(e - np.where(top == -np.inf, 0, top)), 0)
    total = weights.sum(2, keepdims=True)
    weights = np.where(allowed, weights / np.where(total == 0, 1, total), 0)
    return _over_weighted(weights, values), weights


def _over_weighted(weights, x):
    """weights @ x, where a row of x counts only with a weight that is not 0."""
    rows = np.where(weights[..., None] == 0, 0, x[:, None])
    return (weights[..., None] * rows).sum(2)


def additive_attention_backward(dcontext, query, keys, values, v, lengths=None, mask=None):
    """dquery, dkeys, dvalues, dv."""
    dcontext, query, keys, values, v = _double(dcontext, query, keys, values, v)
    weights = additive_attention(query, keys, values, v, lengths, mask)[1]
    taken = weights != 0
    dw = np.where(taken, dcontext @ values.swapaxes(1, 2), 0)
    de = np.where(taken, weights * (dw - (weights * dw).sum(2, keepdims=True)), 0)
    t = np.where(taken[..., None], np.tanh(query[:, :, None] + keys[:, None]), 0)
    u = de[..., None] * (1 - t**2) * v
    return u.sum(2), u.sum(1), _over_weighted(weights.swapaxes(1, 2), dcontext), (de[..., None] * t).sum((0, 1, 2))


# ---- recurrent cells: one step; a missing bias is None ----


def _affine(x, w, b):
    x, w, b = _double(x, w, b)
    return x @ w.T if b is None else x @ w.T + b


def rnn_cell(x, h, w_ih, w_hh, b_ih=None, b_hh=None, nonlinearity="tanh"):
    return ACTIVATIONS[nonlinearity](_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh))


def gru_cell(x, h, w_ih, w_hh, b_ih=None, b_hh=None, linear_before_reset=True):
    (h,) = _double(h)
    hidden = h.shape[-1]
    x_r, x_z, x_n = np.split(_affine(x, w_ih, b_ih), 3, axis=-1)
    h_r, h_z, h_n = np.split(_affine(h, w_hh, b_hh), 3, axis=-1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    if linear_before_reset:
        n = np.tanh(x_n + r * h_n)
    else:
        n = np.tanh(x_n + _affine(r * h, w_hh[2 * hidden :], None if b_hh is None else b_hh[2 * hidden :]))
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
    g = np.tanh(a_g)
    c_next = f * c + i * g
    if clip is not None:
        c_next = np.clip(c_next, -clip, clip)
    return i, f, g, sigmoid(a_o + p_o * c_next), c_next


def attention_gru(x, annotations, h, w_ih, w_hh, b_ih, b_hh, query, key, v, lengths=None):
    """h[T, B, H], context[T, B, K], weights[B, T, S] of x[T, B, I] and annotations[B, S, K]."""
    x, annotations, h, query, key = _double(x, annotations, h, query, key)
    keys, steps = annotations @ key.T, []
    for x_t in x:
        context, weights = additive_attention((h @ query.T)[:, None], keys, annotations, v, lengths)
        h = gru_cell(np.concatenate([x_t, context[:, 0]], 1), h, w_ih, w_hh, b_ih, b_hh)
        steps.append((h, context[:, 0], weights[:, 0]))
    y, context, weights = (np.stack(part) for part in zip(*steps, strict=True))
    return y, context, weights.swapaxes(0, 1)


def lstm_cell(x, h, c, w_ih, w_hh, b_ih=None, b_hh=None, peephole=None, w_hr=None, coupled=False, clip=None):
    c, peephole = _double(c, peephole)
    *_, o, c_next = _lstm_gates(_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh), c, peephole, coupled, clip)
    h_next = o * np.tanh(c_next)
    return h_next if w_hr is None else _affine(h_next, w_hr, None), c_next


def sequence(cell, x, state, lengths=None, reverse=False):
    """Runs state = cell(x[t], *state) over x[T, B, I]; state is a tuple of [B, H]. Returns y[T, B, H] and the state of
    each sequence at
    its last step. y is zero beyond the lengths."""
    steps, batch = x.shape[:2]
    lengths = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    state = _double(*state)
    y = np.zeros((steps, *state[0].shape))
    rows = np.arange(batch)
    for step in range(steps):
        runs = step < lengths
        t = np.where(runs, lengths - 1 - step if reverse else step, 0)
        after = cell(x[t, rows], *state)
        after = after if isinstance(after, tuple) else (after,)
        state = tuple(np.where(runs[:, None], new, old) for new, old in zip(after, state, strict=True))
        y[t[runs], rows[runs]] = state[0][runs]
    return y, state


# ---- recurrent cells backward: gradients of x, of the state (a tuple) and of the weights (a dict), from those of the
# ---- new state (a tuple)


def _cell_gradients(da_x, da_h, x, h, w_ih, w_hh, dh=0):
    """From the gradients of w_ih x + b_ih and of w_hh h + b_hh, for h handed on with gradient dh besides."""
    dweights = {"w_ih": da_x.T @ x, "w_hh": da_h.T @ h, "b_ih": da_x.sum(0), "b_hh": da_h.sum(0)}
    return da_x @ w_ih, (dh + da_h @ w_hh,), dweights


def rnn_cell_backward(grads, x, h, w_ih, w_hh, b_ih=None, b_hh=None, nonlinearity="tanh"):
    y = rnn_cell(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity)
    d, x, h, w_ih, w_hh = _double(*grads, x, h, w_ih, w_hh)
    da = d * {"tanh": 1 - y**2, "sigmoid": y * (1 - y), "relu": y > 0}[nonlinearity]
    return _cell_gradients(da, da, x, h, w_ih, w_hh)


def gru_cell_backward(grads, x, h, w_ih, w_hh, b_ih=None, b_hh=None, linear_before_reset=True):
    x_r, x_z, x_n = np.split(_affine(x, w_ih, b_ih), 3, axis=-1)
    h_r, h_z, h_n = np.split(_affine(h, w_hh, b_hh), 3, axis=-1)
    d, x, h, w_ih, w_hh = _double(*grads, x, h, w_ih, w_hh)
    hidden = h.shape[-1]
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    if not linear_before_reset:
        h_n = _affine(r * h, w_hh[2 * hidden :], None if b_hh is None else b_hh[2 * hidden :])
    n = np.tanh(x_n + (r if linear_before_reset else 1) * h_n)
    da_n, da_z = d * (1 - z) * (1 - n**2), d * (h - n) * z * (1 - z)
    if linear_before_reset:
        da_r = da_n * h_n * r * (1 - r)
        da_x, da_h = np.concatenate([da_r, da_z, da_n], -1), np.concatenate([da_r, da_z, da_n * r], -1)
        return _cell_gradients(da_x, da_h, x, h, w_ih, w_hh, d * z)
    d_reset = da_n @ w_hh[2 * hidden :]
    da = np.concatenate([d_reset * h * r * (1 - r), da_z, da_n], -1)
    dx, _, dweights = _cell_gradients(da, da, x, h, w_ih, w_hh)
    dweights["w_hh"][2 * hidden :] = da_n.T @ (r * h)
    return dx, (d * z + d_reset * r + da[:, : 2 * hidden] @ w_hh[: 2 * hidden],), dweights


def lstm_cell_backward(grads, x, h, c, w_ih, w_hh, b_ih=None, b_hh=None, peephole=None, w_hr=None, coupled=False,
                       clip=None):  # fmt: skip
    dh, dc, x, h, c, w_ih, w_hh, peephole, w_hr = _double(*grads, x, h, c, w_ih, w_hh, peephole, w_hr)
    i, f, g, o, c_next = _lstm_gates(_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh), c, peephole, coupled, clip)
    t, du = np.tanh(c_next), dh if w_hr is None else dh @ w_hr
    da_o = du * t * o * (1 - o)
    dc = dc + du * o * (1 - t**2) + (0 if peephole is None else peephole[-1] * da_o)
    if clip is not None:
        dc = np.where(np.abs(c_next) < clip, dc, 0)
    da_g = dc * i * (1 - g**2)
    if coupled:
        da_i = dc * (g - c) * i * (1 - i)
        parts, inner = [da_i, da_g, da_o], [da_i]
    else:
        da_i, da_f = dc * g * i * (1 - i), dc * c * f * (1 - f)
        parts, inner = [da_i, da_f, da_g, da_o], [da_i, da_f]
    da = np.concatenate(parts, -1)
    dx, (dh_before,), dweights = _cell_gradients(da, da, x, h, w_ih, w_hh)
    if w_hr is not None:
        dweights["w_hr"] = dh.T @ (o * t)
    dc_before = dc * f
    if peephole is not None:
        dweights["peephole"] = np.stack([*((d * c).sum(0) for d in inner), (da_o * c_next).sum(0)])
        dc_before = dc_before + sum(p * d for p, d in zip(peephole[:-1], inner, strict=True))
    return dx, (dh_before, dc_before), dweights


def sequence_backward(cell, cell_backward, dy, dstate, x, state, lengths=None, reverse=False):
    """Backward through time of `sequence`: dx, the gradients of the initial state and of the weights, from dy[T, B, H]
    and those of the final state. cell_backward(grads, x, *state) is that of cell."""
    steps, batch = x.shape[:2]
    lengths = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    (dy,), state, dstate = _double(dy), _double(*state), tuple(d.copy() for d in _double(*dstate))
    rows = np.arange(batch)
    runs, states = [], []
    for step in range(steps):
        r = rows[step < lengths]
        t = lengths[r] - 1 - step if reverse else np.full(len(r), step)
        before = tuple(part[r] for part in state)
        runs.append((t, r))
        states.append(before)
        after = cell(x[t, r], *before)
        state = tuple(part.copy() for part in state)
        for part, new in zip(state, after if isinstance(after, tuple) else (after,), strict=True):
            part[r] = new
    dx = np.zeros(x.shape, np.float64)
    dweights: dict[str, np.ndarray] = {}
    for (t, r), before in zip(reversed(runs), reversed(states), strict=True):
        dh, *rest = (d[r] for d in dstate)
        dx[t, r], grads, own = cell_backward((dh + dy[t, r], *rest), x[t, r], *before)
        for d, new in zip(dstate, grads, strict=True):
            d[r] = new
        dweights = {name: dweights.get(name, 0) + value for name, value in own.items()}
    return dx, dstate, dweights

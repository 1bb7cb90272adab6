"""The specification: every op in plain NumPy, in the shortest readable form.

The formulas are evaluated in `dtype`: float64, or another type that the caller gives. Tests compare the kernels with
these functions, and these with finite differences. They are not fast, and promise nothing about NaN in masked places:
tests of such promises state the expected values themselves.

An array type with an arithmetic of its own (`__array_ufunc__`, `__array_function__` and `astype`) keeps it: products,
sums and elementary functions are then those of the type. So one text is the exact value, in a wider type, and the plain
formula in float32 whose errors tests and benchmarks take as the yardstick.
"""

import math
from typing import Any

import numpy as np

erfc = np.frompyfunc(math.erfc, 1, 1)  # NumPy has none
_GELU_TANH = 2 * np.sqrt(2 / np.longdouble(np.pi)), 0.044715  # 2 sqrt(2 / pi), and the coefficient of x^3


def _real(dtype, *arrays):
    """The arguments in `dtype`; None stays."""
    known = (a if a is None or hasattr(a, "astype") else np.asarray(a) for a in arrays)
    return tuple(None if a is None else a.astype(dtype, copy=False) for a in known)


def _like(x, values):
    """Values in an array of the type of x."""
    y = np.empty_like(x, shape=np.shape(values))
    y[...] = values
    return y


# ---- element-wise ----


def exp(x, dtype=np.float64):
    return np.exp(*_real(dtype, x))


def tanh(x, dtype=np.float64):
    return np.tanh(*_real(dtype, x))


def sigmoid(x, dtype=np.float64):
    (x,) = _real(dtype, x)
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def relu(x, dtype=np.float64):
    (x,) = _real(dtype, x)
    return np.maximum(x, 0)


def silu(x, dtype=np.float64):
    (x,) = _real(dtype, x)
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def gelu(x, approximate="none", dtype=np.float64):
    (x,) = _real(dtype, x)
    if approximate == "tanh":
        factor, cubic = _real(dtype, *_GELU_TANH)
        return x * sigmoid(factor * (x + cubic * x * x * x), dtype)
    return x * _normal_distribution(x, dtype)


def _normal_distribution(x, dtype):
    """The probability of a standard normal number below x."""
    (twice,) = _real(dtype, erfc(-x / math.sqrt(2)))
    return twice / 2


def _gelu_tanh(x, dtype=np.float64):
    return gelu(x, "tanh", dtype)


ACTIVATIONS: Any = {None: lambda x, dtype=None: x, "tanh": tanh, "sigmoid": sigmoid, "relu": relu, "silu": silu,
                    "gelu": gelu, "gelu_tanh": _gelu_tanh}  # fmt: skip


def silu_gated(gate, up, dtype=np.float64):
    gate, up = _real(dtype, gate, up)
    return silu(gate, dtype) * up


def _slope(name, x, dtype):
    """The derivative of an activation."""
    s = sigmoid(x, dtype)
    if name == "gelu_tanh":
        factor, cubic = _real(dtype, *_GELU_TANH)
        s = sigmoid(factor * (x + cubic * x * x * x), dtype)
        return s + x * s * (1 - s) * factor * (1 + 3 * cubic * x * x)
    if name == "gelu":
        return _normal_distribution(x, dtype) + x * (np.exp(-x * x / 2) * (1 / math.sqrt(2 * math.pi)))
    return {None: 1, "tanh": 1 - np.tanh(x) ** 2, "sigmoid": s * (1 - s), "relu": x > 0,
            "silu": s + x * s * (1 - s)}[name]  # fmt: skip


def activation_backward(name, dy, x, dtype=np.float64):
    """dy times the derivative at x of ACTIVATIONS[name]."""
    dy, x = _real(dtype, dy, x)
    return dy * _slope(name, x, dtype)


def silu_gated_backward(dy, gate, up, dtype=np.float64):
    """dgate, dup."""
    dy, gate, up = _real(dtype, dy, gate, up)
    return activation_backward("silu", dy * up, gate, dtype), dy * silu(gate, dtype)


# ---- rows ----


def softmax(x, axis=-1, scale=1.0, dtype=np.float64):
    x, scale = _real(dtype, x, scale)
    z = scale * x
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x, axis=-1, scale=1.0, dtype=np.float64):
    x, scale = _real(dtype, x, scale)
    z = scale * x
    z = z - z.max(axis, keepdims=True)
    return z - np.log(np.exp(z).sum(axis, keepdims=True))


def softmax_backward(dy, y, axis=-1, scale=1.0, dtype=np.float64):
    dy, y, scale = _real(dtype, dy, y, scale)
    return scale * y * (dy - (dy * y).sum(axis, keepdims=True))


def log_softmax_backward(dy, y, axis=-1, scale=1.0, dtype=np.float64):
    dy, y, scale = _real(dtype, dy, y, scale)
    return scale * (dy - np.exp(y) * dy.sum(axis, keepdims=True))


def _affine(x, w, b=None):
    return x @ w.T if b is None else x @ w.T + b


def linear(x, weight, bias=None, activation=None, dtype=np.float64):
    return ACTIVATIONS[activation](_affine(*_real(dtype, x, weight, bias)), dtype=dtype)


_GROUP, _LARGEST_BYTE = 128, 127
_LEAST_OF_A_GROUP = 2.0**-100


def linear_int8(x, weight, bias=None, activation=None, dtype=np.float64):
    """linear with a weight packed as int8."""
    (a, sizes), (b, _) = as_bytes(x), as_bytes(weight)
    return linear(a, b / sizes, bias, activation, dtype)


def as_bytes(x):
    """What stands for rows of float32 in a product of bytes, and the size n of the group of each column: s q for H x of
    each group of 128 columns, or of the last 64 or fewer, with the Hadamard matrix H of size n, H H^T = n I, bytes q
    and a scale s."""
    x = np.asarray(x, np.float32)
    exponent = np.frexp(np.abs(x).max(-1, keepdims=True, initial=0))[1]
    values, sizes = [np.zeros((*x.shape[:-1], 0))], [np.zeros(0)]
    for first in range(0, x.shape[-1], _GROUP):
        part = np.ldexp(x[..., first : first + _GROUP], -exponent)
        n = _GROUP if part.shape[-1] > _GROUP // 2 else _GROUP // 2
        part = rotated(np.concatenate([part, np.zeros((*part.shape[:-1], n - part.shape[-1]), np.float32)], -1))
        top = np.abs(part).max(-1, keepdims=True)
        scale = np.where(top < _LEAST_OF_A_GROUP, np.float32(0), top / np.float32(_LARGEST_BYTE))
        inverse = np.float32(_LARGEST_BYTE) / np.maximum(top, np.float32(_LEAST_OF_A_GROUP))
        q = np.where(scale > 0, np.rint(part * inverse), 0)
        values.append(np.ldexp(q * scale.astype(np.float64), exponent))
        sizes.append(np.full(n, float(n)))
    return np.concatenate(values, -1), np.concatenate(sizes)


def rotated(x):
    """H x of the last axis, H the Hadamard matrix of its size n, a power of two: sums and differences of elements that
    are n / 2, then n / 4, ..., 1 apart."""
    n = distance = x.shape[-1]
    while distance > 1:
        distance //= 2
        pairs = x.reshape(*x.shape[:-1], n // (2 * distance), 2, distance)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([a + b, a - b], -2).reshape(x.shape)
    return x


def linear_backward(dy, x, weight, bias=None, activation=None, dtype=np.float64):
    """dx, dweight, dbias."""
    dy, x, weight, bias = _real(dtype, dy, x, weight, bias)
    g = activation_backward(activation, dy, _affine(x, weight, bias), dtype)
    rows, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, len(weight))
    return (g @ weight).reshape(x.shape), g.T @ rows, g.sum(0)


def cross_entropy(logits, targets, label_smoothing=0.0, dtype=np.float64):
    """The loss of each row."""
    ly = log_softmax(logits, dtype=dtype)
    (smoothing,) = _real(dtype, label_smoothing)
    of_target = np.take_along_axis(ly, np.asarray(targets)[..., None], -1)[..., 0]
    loss = -(1 - smoothing) * of_target
    return loss - smoothing * ly.mean(-1) if label_smoothing else loss


def cross_entropy_backward(dloss, logits, targets, label_smoothing=0.0, dtype=np.float64):
    """dlogits, from the gradient of each row's loss."""
    dloss, logits, smoothing, one, classes = _real(dtype, dloss, logits, label_smoothing, 1, logits.shape[-1])
    p, of_each = softmax(logits, dtype=dtype), smoothing / classes
    is_target = np.arange(logits.shape[-1]) == np.asarray(targets)[..., None]
    return dloss[..., None] * np.where(is_target, p - (one - smoothing + of_each), p - of_each)


def embedding_backward(dy, ids, rows, dtype=np.float64):
    """dweight."""
    (dy,) = _real(dtype, dy)
    dweight = np.zeros_like(dy, shape=(rows, dy.shape[-1]))
    np.add.at(dweight, np.asarray(ids), dy)
    return dweight


def rope(x, positions, base=10000.0, interleaved=False, dtype=np.float64):
    """Angles, their cosines and sines are computed in the next wider type and rounded once."""
    (x,), n = _real(dtype, x), x.shape[-1]
    wider = np.float64 if dtype == np.float32 else np.longdouble
    positions, base, columns = _real(wider, positions, base, np.arange(0, n, 2))
    angle = positions[..., None] * base ** (-columns / n)
    return rotate_pairs(x, _like(x, np.cos(angle)), _like(x, np.sin(angle)), interleaved, dtype)


def rotate_pairs(x, cos, sin, interleaved=False, dtype=np.float64):
    """rope with cosines and sines [..., D / 2]; with -sin the gradient."""
    x, c, s = _real(dtype, x, cos, sin)
    n = x.shape[-1]
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : n // 2], x[..., n // 2 :])
    rotated = a * c - b * s, b * c + a * s
    return np.stack(rotated, -1).reshape(x.shape) if interleaved else np.concatenate(rotated, -1)


# ---- norms of the last axis; a missing weight, bias or residual is None ----


def _scaled(y, weight, bias=None):
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def layer_norm(x, weight=None, bias=None, eps=1e-5, dtype=np.float64):
    x, weight, bias, eps = _real(dtype, x, weight, bias, eps)
    x = x - x.mean(-1, keepdims=True)
    return _scaled(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps), weight, bias)


def rms_norm(x, weight=None, eps=1e-5, dtype=np.float64):
    x, weight, eps = _real(dtype, x, weight, eps)
    return _scaled(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps), weight)


def _rows_sum(x):
    return x.reshape(-1, x.shape[-1]).sum(0)


def layer_norm_backward(dy, x, weight=None, eps=1e-5, dtype=np.float64):
    """dx, dweight, dbias."""
    dy, x, weight, eps = _real(dtype, dy, x, weight, eps)
    x = x - x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    y, g = x * rstd, _scaled(dy, weight)
    dx = rstd * (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True))
    return dx, _rows_sum(dy * y), _rows_sum(dy)


def rms_norm_backward(dy, x, weight=None, eps=1e-5, dtype=np.float64):
    """dx, dweight."""
    dy, x, weight, eps = _real(dtype, dy, x, weight, eps)
    rstd = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    y, g = x * rstd, _scaled(dy, weight)
    return rstd * (g - y * (g * y).mean(-1, keepdims=True)), _rows_sum(dy * y)


# ---- positions ----


def sinusoidal_positions(length, dim, base=10000.0, offset=0, dtype=np.float64):
    columns = np.arange(dim)
    positions, base, pairs = _real(dtype, np.arange(offset, offset + length)[:, None], base, columns - columns % 2)
    angle = positions * base ** (-pairs / max(dim, 1))
    return np.where(columns % 2 == 0, np.sin(angle), np.cos(angle))


# ---- attention ----


def _diagonal(batch, queries, keys, causal=False, q_lengths=None, kv_lengths=None, q_start=None):
    """The key that query 0 is aligned with, [batch, 1, 1, 1]."""
    q_lengths = np.full(batch, queries) if q_lengths is None else np.asarray(q_lengths)
    kv_lengths = np.full(batch, keys) if kv_lengths is None else np.asarray(kv_lengths)
    first = np.zeros_like(q_lengths) if causal == "top-left" else kv_lengths - q_lengths
    if q_start is not None:
        first = np.broadcast_to(q_start, first.shape)
    return first[:, None, None, None]


def attention_allowed(batch, queries, keys, mask=None, causal=False, window=None, q_lengths=None, kv_lengths=None,
                      q_start=None):  # fmt: skip
    """Which query attends to which key: bool, broadcastable to [batch, heads, queries, keys]."""
    first = _diagonal(batch, queries, keys, causal, q_lengths, kv_lengths, q_start)
    q_lengths = np.full(batch, queries) if q_lengths is None else np.asarray(q_lengths)
    kv_lengths = np.full(batch, keys) if kv_lengths is None else np.asarray(kv_lengths)
    i, j = np.arange(queries)[:, None], np.arange(keys)
    i, j, n, m = i[None, None], j[None, None, None], q_lengths[:, None, None, None], kv_lengths[:, None, None, None]
    distance = j - i - first
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


def alibi_distance(batch, queries, keys, causal=False, q_lengths=None, kv_lengths=None, q_start=None):
    """|i + offset - j|, broadcastable to [batch, heads, queries, keys]."""
    first = _diagonal(batch, queries, keys, causal, q_lengths, kv_lengths, q_start)
    return np.abs(np.arange(queries)[:, None] + first - np.arange(keys))


def _attention_scale(q, scale):
    return 1 / math.sqrt(q.shape[-1] or 1) if scale is None else scale


def _repeated(x, heads):
    """Keys or values of each query head."""
    return np.repeat(x, heads // x.shape[1] if x.shape[1] else 1, axis=1)


def _attention_probabilities(q, k, mask=None, causal=False, scale=None, window=None, softcap=0.0, alibi_slopes=None,
                             sinks=None, q_lengths=None, kv_lengths=None, q_start=None, bias=None):  # fmt: skip
    """p, the part of each row that its sink takes, lse, and the scaled products of queries and keys."""
    causal = "bottom-right" if causal is True else causal
    sizes = q.shape[0], q.shape[2], k.shape[2]
    scale, softcap, slopes, sinks = _real(q.dtype, _attention_scale(q, scale), softcap, alibi_slopes, sinks)
    scores = s = scale * (q @ _repeated(k, q.shape[1]).swapaxes(-1, -2))
    if softcap:
        s = softcap * np.tanh(s / softcap)
    if slopes is not None:
        s = s - slopes[:, None, None] * _like(q, alibi_distance(*sizes, causal, q_lengths, kv_lengths, q_start))
    allowed = attention_allowed(*sizes, mask, causal, window, q_lengths, kv_lengths, q_start)
    if bias is not None:
        allowed = allowed & (bias != -np.inf)
    elif mask is not None and mask.dtype != bool:
        bias = mask
    if bias is not None:
        s = s + np.where(allowed, *_real(q.dtype, bias, 0))
    s = np.where(allowed, s, -np.inf)
    if sinks is not None:  # one more key of the rows that exist
        lengths = np.full(sizes[0], sizes[1]) if q_lengths is None else np.asarray(q_lengths)
        exists = np.arange(sizes[1]) < lengths[:, None]
        s = np.concatenate([s, np.where(exists[:, None, :, None], sinks[:, None, None], -np.inf)], -1)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    top = np.where(top == -np.inf, 0, top)
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    p = e / np.where(total == 0, 1, total)
    return p[..., : sizes[2]], p[..., sizes[2] :], lse, scores


def random_words(seed, *counter):
    """Philox 4x32-10 (Salmon et al. 2011): four words of 32 bits for each counter of four, arrays that broadcast."""
    words = [np.asarray(part, np.uint64) for part in counter]
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        words = [second >> half ^ words[1] ^ np.uint64(key[0]), second & mask,
                   first >> half ^ words[3] ^ np.uint64(key[1]), first & mask]  # fmt: skip
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(np.broadcast_arrays(*words), -1)


def attention_dropout(shape, dropout_p, seed):
    """What probabilities [batch, heads, queries, keys] of this shape are multiplied with: 0, or 1 / (1 - dropout_p)."""
    batch, heads, queries, keys = shape
    b, h, i = (
        np.arange(n).reshape(axes) for n, axes in ((batch, (-1, 1, 1, 1)), (heads, (-1, 1, 1)), (queries, (-1, 1)))
    )
    words = random_words(seed, np.arange(-(-keys // 4)), i, b, h)
    words = words.reshape(batch, heads, queries, -1)[..., :keys]
    stays = words >= np.uint64(int(dropout_p * 2**32 + 0.5))
    return np.where(stays, 1 / (1 - dropout_p) if dropout_p < 1 else 0, 0)


def _without_dropout(options):
    """The options but dropout_p and seed, and these two."""
    rest = {name: value for name, value in options.items() if name not in ("dropout_p", "seed")}
    return rest, options.get("dropout_p", 0.0), options.get("seed", 0)


def attention(q, k, v, dtype=np.float64, **options):
    """out[B, H, Lq, Dv] and lse[B, H, Lq] of q[B, H, Lq, D], k[B, Hk, Lk, D], v[B, Hk, Lk, Dv]; the options of
    fastattn.attention but layout."""
    q, k, v = _real(dtype, q, k, v)
    options, dropout_p, seed = _without_dropout(options)
    p, _, lse, _ = _attention_probabilities(q, k, **options)
    if dropout_p:
        p = p * _like(q, attention_dropout(p.shape, dropout_p, seed))
    return p @ _repeated(v, q.shape[1]), lse


def _of_all_keys(p, of_sink, lse, whole):
    """The probabilities of a part of the keys, and of the sink, where lse is that of all keys."""
    (zero,) = _real(lse.dtype, 0)
    factor = np.where(lse == -np.inf, zero, np.exp(lse - np.where(lse == -np.inf, lse, whole)))
    return p * factor[..., None], of_sink * factor[..., None]


def attention_backward(dout, q, k, v, dtype=np.float64, whole=None, dlse=None, **options):
    """dq, dk, dv. whole: out and lse over all keys, of which k and v are a part; dlse: the gradient of lse."""
    dout, q, k, v, dlse = _real(dtype, dout, q, k, v, dlse)
    scale, softcap = _real(dtype, _attention_scale(q, options.get("scale")), options.get("softcap", 0.0))
    batch, heads, keys, _ = k.shape
    options, dropout_p, seed = _without_dropout(options)
    p, of_sink, lse, scores = _attention_probabilities(q, k, **options)
    dp = dout @ _repeated(v, q.shape[1]).swapaxes(-1, -2)
    if dropout_p:
        factor = _like(q, attention_dropout(p.shape, dropout_p, seed))
        dp = dp * factor
    if whole is None:
        delta = (dp * p).sum(-1, keepdims=True)
    else:
        out, of_all = _real(dtype, *whole)
        p, _ = _of_all_keys(p, of_sink, lse, of_all)
        delta = (dout * out).sum(-1, keepdims=True)
    if dlse is not None:
        delta = delta - dlse[..., None]
    ds = scale * p * (dp - delta)
    if softcap:
        ds = ds * (1 - np.tanh(scores / softcap) ** 2)
    kept = p * factor if dropout_p else p
    dk, dv = ds.swapaxes(-1, -2) @ q, kept.swapaxes(-1, -2) @ dout
    group = q.shape[1] // heads if heads else 1
    return (ds @ _repeated(k, q.shape[1]),
            dk.reshape(batch, heads, group, keys, k.shape[-1]).sum(2),
            dv.reshape(batch, heads, group, keys, v.shape[-1]).sum(2))  # fmt: skip


def sum_to(x, shape):
    """x summed over the axes along which `shape` was broadcast to it."""
    x = x.sum(tuple(range(x.ndim - len(shape))))
    return x.sum(tuple(axis for axis, size in enumerate(shape) if size == 1), keepdims=True)


def attention_option_gradients(dout, q, k, v, dtype=np.float64, whole=None, dlse=None, **options):
    """dmask (or of the bias), dsinks, dalibi_slopes; None where attention had no such option. whole, dlse: as of
    attention_backward.

    delta is the sum of p dp. Where the gradient of the scores is summed over the keys of a row, for the slopes and for
    a mask without keys, it comes from the output: its error is that of all keys alike and does not cancel. Beside the
    sum of p dp, the slopes of the kernels have 1.5 times the error in float32; beside the output, 0.9 times.
    """
    dout, q, k, v, dlse = _real(dtype, dout, q, k, v, dlse)
    options, dropout_p, seed = _without_dropout(options)
    p, of_sink, lse, _ = _attention_probabilities(q, k, **options)
    v = _repeated(v, q.shape[1])
    dp, kept = dout @ v.swapaxes(-1, -2), p
    if dropout_p:
        factor = _like(q, attention_dropout(p.shape, dropout_p, seed))
        dp, kept = dp * factor, p * factor
    if whole is None:
        delta, from_output = (dp * p).sum(-1, keepdims=True), (dout * (kept @ v)).sum(-1, keepdims=True)
    else:
        out, of_all = _real(dtype, *whole)
        p, of_sink = _of_all_keys(p, of_sink, lse, of_all)
        delta = from_output = (dout * out).sum(-1, keepdims=True)
    if dlse is not None:
        delta, from_output = delta - dlse[..., None], from_output - dlse[..., None]
    mask, bias, sinks, slopes = (options.get(name) for name in ("mask", "bias", "sinks", "alibi_slopes"))
    mask = mask if bias is None else bias
    dmask = dsinks = dslopes = None
    if mask is not None and mask.dtype != bool:
        dmask = sum_to(p * (dp - (from_output if mask.shape[-1] < k.shape[2] else delta)), mask.shape)
    if sinks is not None:
        dsinks = -(of_sink * delta).sum((0, 2, 3))
    if slopes is not None:
        own = {name: options[name] for name in ("causal", "q_lengths", "kv_lengths", "q_start") if name in options}
        distance = _like(q, alibi_distance(q.shape[0], q.shape[2], k.shape[2], **own))
        dslopes = -(distance * (p * (dp - from_output))).sum((0, 2, 3))
    return dmask, dsinks, dslopes


# ---- additive attention: query[B, T, A], keys[B, S, A], values[B, S, C], v[A] ----


def additive_attention(query, keys, values, v, lengths=None, mask=None, dtype=np.float64):
    """context, weights."""
    query, keys, values, v = _real(dtype, query, keys, values, v)
    e = np.tanh(query[:, :, None] + keys[:, None]) @ v
    allowed = np.ones(e.shape, bool)
    if lengths is not None:
        allowed &= np.arange(e.shape[2]) < np.asarray(lengths)[:, None, None]
    if mask is not None:
        allowed &= mask if mask.dtype == bool else mask != -np.inf
        if mask.dtype != bool:
            e = e + np.where(allowed, _real(dtype, mask)[0], 0)
    e = np.where(allowed, e, -np.inf)
    top = e.max(2, keepdims=True, initial=-np.inf)
    weights = np.exp(e - np.where(top == -np.inf, 0, top))
    total = weights.sum(2, keepdims=True)
    weights = weights / np.where(total == 0, 1, total)
    return weights @ values, weights


def additive_attention_backward(dcontext, query, keys, values, v, lengths=None, mask=None, dtype=np.float64):
    """dquery, dkeys, dvalues, dv."""
    dcontext, query, keys, values, v = _real(dtype, dcontext, query, keys, values, v)
    weights = additive_attention(query, keys, values, v, lengths, mask, dtype)[1]
    de = softmax_backward(dcontext @ values.swapaxes(1, 2), weights, dtype=dtype)[..., None]
    t = np.tanh(query[:, :, None] + keys[:, None])
    u = de * v * (1 - t**2)
    return u.sum(2), u.sum(1), weights.swapaxes(1, 2) @ dcontext, (de * t).sum((0, 1, 2))


# ---- recurrent cells: one step; a missing bias is None; gate_clip clips the arguments of activations, but not c ----


def _clipped(a, limit, dtype):
    return a if limit is None else np.clip(a, *_real(dtype, -limit, limit))


def rnn_cell(x, h, w_ih, w_hh, b_ih=None, b_hh=None, nonlinearity="tanh", gate_clip=None, dtype=np.float64):
    x, h, w_ih, w_hh, b_ih, b_hh = _real(dtype, x, h, w_ih, w_hh, b_ih, b_hh)
    a = _clipped(_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh), gate_clip, dtype)
    return ACTIVATIONS[nonlinearity](a, dtype=dtype)


def gru_cell(x, h, w_ih, w_hh, b_ih=None, b_hh=None, linear_before_reset=True, gate_clip=None, dtype=np.float64):
    x, h, w_ih, w_hh, b_ih, b_hh = _real(dtype, x, h, w_ih, w_hh, b_ih, b_hh)
    hidden = h.shape[-1]
    x_r, x_z, x_n = np.split(_affine(x, w_ih, b_ih), 3, axis=-1)
    h_r, h_z, h_n = np.split(_affine(h, w_hh, b_hh), 3, axis=-1)
    r, z = (sigmoid(_clipped(a, gate_clip, dtype), dtype) for a in (x_r + h_r, x_z + h_z))
    if linear_before_reset:
        h_n = r * h_n
    else:
        h_n = _affine(r * h, w_hh[2 * hidden :], None if b_hh is None else b_hh[2 * hidden :])
    n = np.tanh(_clipped(x_n + h_n, gate_clip, dtype))
    return (1 - z) * n + z * h


def _lstm_gates(a, c, peephole, coupled, clip, dtype, gate_clip=None):
    """i, f, g, o and the new c, from the sums a of the gates; coupled: a of i, g, o, and f = 1 - i."""

    def gate(a):
        return sigmoid(_clipped(a, gate_clip, dtype), dtype)

    if coupled:
        p_i, p_o = (0, 0) if peephole is None else peephole
        a_i, a_g, a_o = np.split(a, 3, axis=-1)
        i = gate(a_i + p_i * c)
        f = 1 - i
    else:
        p_i, p_f, p_o = (0, 0, 0) if peephole is None else peephole
        a_i, a_f, a_g, a_o = np.split(a, 4, axis=-1)
        i, f = gate(a_i + p_i * c), gate(a_f + p_f * c)
    g = np.tanh(_clipped(a_g, gate_clip, dtype))
    c_next = f * c + i * g
    if clip is not None:
        (clip,) = _real(dtype, clip)
        c_next = np.clip(c_next, -clip, clip)
    return i, f, g, gate(a_o + p_o * c_next), c_next


def attention_gru(x, annotations, h, w_ih, w_hh, b_ih, b_hh, query, key, v, lengths=None, dtype=np.float64):
    """h[T, B, H], context[T, B, K], weights[B, T, S] of x[T, B, I] and annotations[B, S, K]."""
    x, annotations, h, query, key = _real(dtype, x, annotations, h, query, key)
    keys, steps = annotations @ key.T, []
    for x_t in x:
        context, weights = additive_attention((h @ query.T)[:, None], keys, annotations, v, lengths, dtype=dtype)
        h = gru_cell(np.concatenate([x_t, context[:, 0]], 1), h, w_ih, w_hh, b_ih, b_hh, dtype=dtype)
        steps.append((h, context[:, 0], weights[:, 0]))
    y, context, weights = (np.stack(part) for part in zip(*steps, strict=True))
    return y, context, weights.swapaxes(0, 1)


def lstm_cell(x, h, c, w_ih, w_hh, b_ih=None, b_hh=None, peephole=None, w_hr=None, coupled=False, clip=None,
              gate_clip=None, dtype=np.float64):  # fmt: skip
    x, h, c, w_ih, w_hh, b_ih, b_hh, peephole, w_hr = _real(dtype, x, h, c, w_ih, w_hh, b_ih, b_hh, peephole, w_hr)
    a = _affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh)
    *_, o, c_next = _lstm_gates(a, c, peephole, coupled, clip, dtype, gate_clip)
    h_next = o * np.tanh(c_next)
    return h_next if w_hr is None else _affine(h_next, w_hr), c_next


def sequence(cell, x, state, lengths=None, reverse=False, dtype=np.float64):
    """Runs state = cell(x[t], *state) over x[T, B, I]; state is a tuple of [B, H]. Returns y[T, B, H] and the state of
    each sequence at its last step. y is zero beyond the lengths. dtype: that of the cell."""
    steps, batch = x.shape[:2]
    lengths = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    (x,), state = _real(dtype, x), _real(dtype, *state)
    y = np.zeros_like(state[0], shape=(steps, *state[0].shape))
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


def rnn_cell_backward(grads, x, h, w_ih, w_hh, b_ih=None, b_hh=None, nonlinearity="tanh", dtype=np.float64):
    d, x, h, w_ih, w_hh = _real(dtype, *grads, x, h, w_ih, w_hh)
    y = rnn_cell(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, dtype=dtype)
    da = d * {"tanh": 1 - y**2, "sigmoid": y * (1 - y), "relu": y > 0}[nonlinearity]
    return _cell_gradients(da, da, x, h, w_ih, w_hh)


def gru_cell_backward(grads, x, h, w_ih, w_hh, b_ih=None, b_hh=None, linear_before_reset=True, dtype=np.float64):
    d, x, h, w_ih, w_hh, b_ih, b_hh = _real(dtype, *grads, x, h, w_ih, w_hh, b_ih, b_hh)
    x_r, x_z, x_n = np.split(_affine(x, w_ih, b_ih), 3, axis=-1)
    h_r, h_z, h_n = np.split(_affine(h, w_hh, b_hh), 3, axis=-1)
    hidden = h.shape[-1]
    r, z = sigmoid(x_r + h_r, dtype), sigmoid(x_z + h_z, dtype)
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
                       clip=None, dtype=np.float64):  # fmt: skip
    dh, dc, x, h, c, w_ih, w_hh = _real(dtype, *grads, x, h, c, w_ih, w_hh)
    b_ih, b_hh, peephole, w_hr = _real(dtype, b_ih, b_hh, peephole, w_hr)
    a = _affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh)
    i, f, g, o, c_next = _lstm_gates(a, c, peephole, coupled, clip, dtype)
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


def sequence_backward(cell, cell_backward, dy, dstate, x, state, lengths=None, reverse=False, dtype=np.float64):
    """Backward through time of `sequence`: dx, the gradients of the initial state and of the weights, from dy[T, B, H]
    and those of the final state. cell_backward(grads, x, *state) is that of cell."""
    steps, batch = x.shape[:2]
    lengths = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    (x, dy), state, dstate = _real(dtype, x, dy), _real(dtype, *state), tuple(d.copy() for d in _real(dtype, *dstate))
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
    dx = np.zeros_like(x)
    dweights: dict[str, np.ndarray] = {}
    for (t, r), before in zip(reversed(runs), reversed(states), strict=True):
        dh, *rest = (d[r] for d in dstate)
        dx[t, r], grads, own = cell_backward((dh + dy[t, r], *rest), x[t, r], *before)
        for d, new in zip(dstate, grads, strict=True):
            d[r] = new
        dweights = {name: dweights.get(name, 0) + value for name, value in own.items()}
    return dx, dstate, dweights

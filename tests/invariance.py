"""The eight invariances of the promises about values, as functions that count the cases they compare.

A case is one call whose bits are compared with those of another call: run again, with other numbers of threads, alone
or in a batch, with masked padding, at another alignment, in another layout, in another lane, by a caller with another
floating-point state. test_invariance.py runs some cases of each, scripts/invariance_sweep.py many.
"""

from typing import ClassVar

import numpy as np

import fastattn as fa
import fastattn.nn
from tests import float_states
from tests.arrays import LAYOUTS, same_bits, unaligned

GARBAGE = (np.nan, np.inf, -np.inf, 3.0)


def _size(rng, small=True):
    return int(rng.choice((1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 23, 33))) if small else int(rng.integers(1, 150))


def _normal(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def _garbage(rng, dtype, *shape):
    return rng.choice(np.array(GARBAGE, dtype), shape)


class Op:
    """An op: `draw` makes arrays by name, `run` computes a tuple of results with the batch on `batch_axes`.

    `inputs_batch` names the batch axis of each input that has one.
    """

    inputs_batch: ClassVar[dict[str, int]]
    outputs_batch: tuple[int, ...]

    def draw(self, rng, dtype):
        raise NotImplementedError

    def run(self, a):
        raise NotImplementedError

    def take(self, a, index):
        return {n: np.take(x, index, self.inputs_batch[n]) if n in self.inputs_batch else x for n, x in a.items()}


class Attention(Op):
    inputs_batch: ClassVar = {"q": 0, "k": 0, "v": 0, "mask": 0, "bias": 0, "kv_lengths": 0}
    outputs_batch = (0, 0)

    def draw(self, rng, dtype):
        B, Hk, group, lq, lk = int(rng.integers(1, 5)), 1, int(rng.integers(1, 3)), _size(rng), _size(rng)
        if rng.random() < 0.02:
            lq, lk = int(rng.integers(90, 400)), int(rng.integers(1, 700))
        d, dv = _size(rng), _size(rng)
        a = {
            "q": _normal(rng, dtype, B, Hk * group, lq, d),
            "k": _normal(rng, dtype, B, Hk, lk, d),
            "v": _normal(rng, dtype, B, Hk, lk, dv),
        }
        if rng.random() < 0.5:
            a["mask"] = rng.random((B, 1, lq, lk)) < 0.7
        elif rng.random() < 0.5:
            a["mask"] = _normal(rng, dtype, B, 1, lq, lk)
        a["kv_lengths"] = rng.integers(0, lk + 1, B)
        if "mask" in a and a["mask"].dtype == bool and rng.random() < 0.3:
            a["bias"] = _normal(rng, dtype, B, 1, lq, lk)
        return a

    def run(self, a):
        return fa.attention(**a, return_lse=True)

    def padded(self, rng, a):
        """More keys: of other lengths, or masked; and what is there must not matter."""
        a = dict(a)
        extra, dtype = int(rng.integers(1, 40)), a["q"].dtype
        B, _, lq, _ = a["q"].shape
        lk = a["k"].shape[2]
        for name in ("k", "v"):
            shape = (*a[name].shape[:2], extra, a[name].shape[3])
            a[name] = np.concatenate([a[name], _garbage(rng, dtype, *shape)], axis=2)
        if "bias" in a:
            a["bias"] = np.concatenate([a["bias"], _garbage(rng, dtype, B, 1, lq, extra)], axis=3)
        if "mask" in a:
            fill = False if a["mask"].dtype == bool else -np.inf
            a["mask"] = np.concatenate([a["mask"], np.full((B, 1, lq, extra), fill, a["mask"].dtype)], axis=3)
            if rng.random() < 0.5 and a["mask"].dtype == bool:  # lengths as a mask
                a["mask"] = a["mask"] & (np.arange(lk + extra) < a.pop("kv_lengths")[:, None, None, None])
        return a, lambda result: result

    def moved(self, rng, a):
        """Queries, heads of a group and columns of v in another order."""
        a = dict(a)
        rows, heads = rng.permutation(a["q"].shape[2]), rng.permutation(a["q"].shape[1])
        columns = rng.permutation(a["v"].shape[3])
        a["q"] = a["q"][:, heads][:, :, rows]
        a["v"] = a["v"][..., columns]
        for name in ("mask", "bias"):
            if name in a:
                a[name] = a[name][:, :, rows]
        rows, heads, columns = np.argsort(rows), np.argsort(heads), np.argsort(columns)
        return a, lambda r: (r[0][:, heads][:, :, rows][..., columns], r[1][:, heads][:, :, rows])


class Cache(Attention):
    """Few queries on a KVCache: of bytes, in pages, or both."""

    def __init__(self, dtype=None, page_size=None):
        self.dtype, self.page_size = dtype, page_size

    def draw(self, rng, dtype):
        dtype = np.float32 if self.dtype == "int8" else dtype
        B, group, lq, lk = (int(rng.integers(1, n)) for n in (5, 5, 9, 40))
        lk = int(rng.integers(500, 1200)) if rng.random() < 0.1 else lk
        d, dv = _size(rng), _size(rng)
        shapes = {"q": (B, 2 * group, lq, d), "k": (B, 2, lk, d), "v": (B, 2, lk, dv)}
        a = {name: _normal(rng, dtype, *shape) for name, shape in shapes.items()}
        a["mask"] = rng.random((B, 1, lq, lk)) < 0.7
        return a

    def run(self, a):
        batch, heads, _, d = a["k"].shape
        cache = fa.KVCache(batch, heads, d, v_dim=a["v"].shape[3], dtype=self.dtype or a["q"].dtype,
                           page_size=self.page_size)  # fmt: skip
        for part in (slice(3), slice(3, None)):
            cache.append(a["k"][:, :, part], a["v"][:, :, part])
        return cache.attend(a["q"], mask=a["mask"], return_lse=True)

    def padded(self, rng, a):
        a, extra = dict(a), int(rng.integers(1, 40))
        for name in ("k", "v"):
            shape = (*a[name].shape[:2], extra, a[name].shape[3])
            a[name] = np.concatenate([a[name], _garbage(rng, a["q"].dtype, *shape)], axis=2)
        a["mask"] = np.concatenate([a["mask"], np.zeros((*a["mask"].shape[:3], extra), bool)], axis=3)
        return a, lambda result: result

    def moved(self, rng, a):
        """Queries, heads of a group and columns of v in another order."""
        a, group = dict(a), a["q"].shape[1] // 2
        rows, columns = rng.permutation(a["q"].shape[2]), rng.permutation(a["v"].shape[3])
        heads = np.concatenate([rng.permutation(group), group + rng.permutation(group)])
        a |= {"q": a["q"][:, heads][:, :, rows], "v": a["v"][..., columns], "mask": a["mask"][:, :, rows]}
        rows, heads, columns = np.argsort(rows), np.argsort(heads), np.argsort(columns)
        return a, lambda r: (r[0][:, heads][:, :, rows][..., columns], r[1][:, heads][:, :, rows])


class Softmax(Op):
    inputs_batch: ClassVar = {"x": 0}
    outputs_batch = (0, 0)

    def draw(self, rng, dtype):
        n = _size(rng) if rng.random() < 0.95 else int(rng.integers(1, 3000))
        return {"x": 10 * _normal(rng, dtype, _size(rng), n)}

    def run(self, a):
        return fa.softmax(a["x"]), fa.log_softmax(a["x"])

    def padded(self, rng, a):
        x = a["x"]
        extra = np.full((len(x), int(rng.integers(1, 40))), -np.inf, x.dtype)
        return {"x": np.concatenate([x, extra], axis=1)}, lambda r: tuple(y[:, : x.shape[1]] for y in r)

    def moved(self, rng, a):
        """Rows in another order; equal elements have equal results, wherever they are."""
        x = a["x"].copy()
        rows = rng.permutation(len(x))
        return {"x": x[rows]}, lambda r: tuple(y[np.argsort(rows)] for y in r)


class Linear(Op):
    inputs_batch: ClassVar = {"x": 0}
    outputs_batch = (0,)

    def draw(self, rng, dtype):
        m, n, k = _size(rng), _size(rng), _size(rng)
        if rng.random() < 0.03:
            m, n, k = (int(rng.integers(1, 150)) for _ in range(3))
        return {"x": _normal(rng, dtype, m, k), "weight": _normal(rng, dtype, n, k), "bias": _normal(rng, dtype, n)}

    def run(self, a):
        return (fa.linear(**a, activation="tanh"),)

    def padded(self, rng, a):
        """More inputs, all zero, with any finite weights."""
        extra = int(rng.integers(1, 20))
        x, w = a["x"], a["weight"]
        x = np.concatenate([x, np.zeros((len(x), extra), x.dtype)], axis=1)
        w = np.concatenate([w, _normal(rng, w.dtype, len(w), extra)], axis=1)
        return a | {"x": x, "weight": w}, lambda r: r

    def moved(self, rng, a):
        """Outputs and rows in another order."""
        rows, columns = rng.permutation(len(a["x"])), rng.permutation(len(a["weight"]))
        b = {"x": a["x"][rows], "weight": a["weight"][columns], "bias": a["bias"][columns]}
        return b, lambda r: (r[0][np.argsort(rows)][:, np.argsort(columns)],)


class LinearBackward(Op):
    """dx; the gradients of weight and bias are sums over the batch."""

    inputs_batch: ClassVar = {"x": 0, "dy": 0}
    outputs_batch = (0,)

    def draw(self, rng, dtype):
        m, n, k = _size(rng), _size(rng), _size(rng)
        if rng.random() < 0.03:
            m, n, k = (int(rng.integers(1, 150)) for _ in range(3))
        return {"x": _normal(rng, dtype, m, k), "dy": _normal(rng, dtype, m, n), "weight": _normal(rng, dtype, n, k)}

    def run(self, a):
        return fa.linear_backward(a["dy"], fa.linear_forward(a["x"], a["weight"])[1])[:1]

    def padded(self, rng, a):
        """More outputs, with gradients of zero and any finite weights."""
        extra = int(rng.integers(1, 20))
        dy, w = a["dy"], a["weight"]
        dy = np.concatenate([dy, np.zeros((len(dy), extra), dy.dtype)], axis=1)
        return a | {"dy": dy, "weight": np.concatenate([w, _normal(rng, w.dtype, extra, w.shape[1])])}, lambda r: r

    def moved(self, rng, a):
        """Inputs and rows in another order."""
        rows, columns = rng.permutation(len(a["x"])), rng.permutation(a["x"].shape[1])
        b = {"x": a["x"][rows][:, columns], "dy": a["dy"][rows], "weight": a["weight"][:, columns]}
        return b, lambda r: (r[0][np.argsort(rows)][:, np.argsort(columns)],)


class CrossEntropy(Op):
    """Losses, and gradients of the logits."""

    inputs_batch: ClassVar = {"x": 0, "targets": 0}
    outputs_batch = (0, 0)

    def draw(self, rng, dtype):
        m, n = _size(rng), _size(rng)
        return {"x": 5 * _normal(rng, dtype, m, n), "targets": rng.integers(0, n, m)}

    def run(self, a):
        loss, saved = fa.cross_entropy_forward(a["x"], a["targets"], reduction="none")
        return loss, fa.cross_entropy_backward(np.ones_like(loss), saved)

    def padded(self, rng, a):
        """More classes, whose logits are -inf; more rows, which are ignored."""
        x, targets = a["x"], a["targets"]
        m, n = x.shape
        x = np.concatenate([x, np.full((m, int(rng.integers(1, 40))), -np.inf, x.dtype)], axis=1)
        x = np.concatenate([x, _garbage(rng, x.dtype, 3, x.shape[1])])
        return {"x": x, "targets": np.append(targets, [-100] * 3)}, lambda r: (r[0][:m], r[1][:m, :n])

    def moved(self, rng, a):
        order = rng.permutation(len(a["x"]))
        return self.take(a, order), lambda r: tuple(y[np.argsort(order)] for y in r)


class Recurrent(Op):
    inputs_batch: ClassVar = {"x": 1, "h": 1, "c": 1, "lengths": 0}
    outputs_batch = (1, 1, 1)
    gates: ClassVar = {"rnn": 1, "gru": 3, "lstm": 4}

    def __init__(self, kind):
        self.kind = kind
        self.outputs_batch = (1,) * (3 if kind == "lstm" else 2)

    def draw(self, rng, dtype):
        T, B, I, H = int(rng.integers(1, 5)), int(rng.integers(1, 9)), _size(rng), _size(rng)
        if rng.random() < 0.03:
            B, H = int(rng.integers(1, 50)), int(rng.integers(30, 130))
        g = self.gates[self.kind]
        a = {
            "x": _normal(rng, dtype, T, B, I),
            "h": _normal(rng, dtype, 1, B, H),
            "weight_ih_l0": _normal(rng, dtype, g * H, I) / 4,
            "weight_hh_l0": _normal(rng, dtype, g * H, H) / 4,
            "bias_ih_l0": _normal(rng, dtype, g * H),
            "bias_hh_l0": _normal(rng, dtype, g * H),
            "lengths": rng.integers(0, T + 1, B),
        }
        if self.kind == "lstm":
            a["c"] = _normal(rng, dtype, 1, B, H)
        return a

    def run(self, a):
        weights = {n: x for n, x in a.items() if n.endswith("_l0")}
        state = (a["h"], a["c"]) if self.kind == "lstm" else a["h"]
        y, state = getattr(fa, self.kind)(a["x"], state, weights, lengths=a["lengths"])
        return (y, *state) if self.kind == "lstm" else (y, state)

    def padded(self, rng, a):
        """More time steps beyond the lengths, and garbage there."""
        T, B, I = a["x"].shape
        x = np.concatenate([a["x"], _garbage(rng, a["x"].dtype, int(rng.integers(1, 5)), B, I)])
        x[np.arange(len(x))[:, None] >= a["lengths"]] = rng.choice(GARBAGE)
        return a | {"x": x}, lambda r: (r[0][:T], *r[1:])

    def moved(self, rng, a):
        """The same unit in two lanes has the same values, and so have sequences in another order."""
        order = rng.permutation(a["x"].shape[1])
        return self.take(a, order), lambda r: tuple(np.take(y, np.argsort(order), 1) for y in r)


class AttentionGRU(Op):
    """States, contexts, weights and the last state; gradients of inputs, annotations and the first state."""

    inputs_batch: ClassVar = {"x": 1, "annotations": 0, "state": 0, "lengths": 0}
    outputs_batch = (1, 1, 0, 0, 1, 0, 0)

    def draw(self, rng, dtype):
        T, B, S = int(rng.integers(1, 4)), int(rng.integers(1, 5)), _size(rng)
        sizes = tuple(_size(rng) for _ in range(4))
        I, H, K = sizes[:3]
        a = {
            "x": _normal(rng, dtype, T, B, I),
            "annotations": _normal(rng, dtype, B, S, K),
            "state": _normal(rng, dtype, B, H),
            "lengths": rng.integers(0, S + 1, B),
        }
        drawn = fa.nn.AttentionGRU(*sizes, dtype=dtype, rng=rng).parameters()
        return a | {f"own {name}": value for name, value in drawn.items()}

    def run(self, a):
        x, annotations, state = a["x"], a["annotations"], a["state"]
        own = {name[4:]: value for name, value in a.items() if name.startswith("own ")}
        sizes = x.shape[2], state.shape[1], annotations.shape[2], len(own["attention.v"])
        m = fa.nn.AttentionGRU(*sizes, dtype=x.dtype)
        m.load_state_dict(own)
        (result, last), saved = m.forward(x, annotations, state, a["lengths"])
        (dx, dannotations), dstate, _ = m.backward((result.y, result.context, last), saved)
        return (*result, last, dx, dannotations, dstate)

    def padded(self, rng, a):
        """More annotations beyond the lengths, and garbage there."""
        B, S, K = a["annotations"].shape
        annotations = np.concatenate([a["annotations"], _garbage(rng, a["x"].dtype, B, int(rng.integers(1, 20)), K)], 1)
        beyond = np.arange(annotations.shape[1]) >= a["lengths"][:, None]
        annotations[beyond] = rng.choice(GARBAGE)

        def back(r):
            y, context, weights, last, dx, dannotations, dstate = r
            assert not weights[:, :, S:].any() and not dannotations[beyond].any()
            return y, context, weights[:, :, :S], last, dx, dannotations[:, :S], dstate

        return a | {"annotations": annotations}, back

    def moved(self, rng, a):
        """Sequences in another order."""
        order = rng.permutation(a["x"].shape[1])
        back = np.argsort(order)
        return self.take(a, order), lambda r: tuple(
            np.take(y, back, axis) for y, axis in zip(r, self.outputs_batch, strict=True)
        )


class ElementWise(Op):
    inputs_batch: ClassVar = {"x": 0}
    outputs_batch = (0,) * 5

    def draw(self, rng, dtype):
        return {"x": 4 * _normal(rng, dtype, _size(rng) if rng.random() < 0.97 else int(rng.integers(1, 40_000)))}

    def run(self, a):
        x = a["x"]
        return fa.exp(x), fa.tanh(x), fa.sigmoid(x), fa.gelu(x), fa.silu(x)

    def padded(self, rng, a):
        n = len(a["x"])
        more = _garbage(rng, a["x"].dtype, int(rng.integers(1, 40)))
        return {"x": np.concatenate([a["x"], more])}, lambda r: tuple(y[:n] for y in r)

    def moved(self, rng, a):
        order = rng.permutation(len(a["x"]))
        return {"x": a["x"][order]}, lambda r: tuple(y[np.argsort(order)] for y in r)


OPS = {
    "attention": Attention(),
    "int8 cache": Cache("int8"),
    "paged cache": Cache(page_size=5),
    "paged int8 cache": Cache("int8", page_size=16),
    "softmax": Softmax(),
    "linear": Linear(),
    "linear backward": LinearBackward(),
    "cross-entropy": CrossEntropy(),
    "rnn": Recurrent("rnn"),
    "gru": Recurrent("gru"),
    "lstm": Recurrent("lstm"),
    "attention GRU": AttentionGRU(),
    "element-wise": ElementWise(),
}


# ---- the invariances: each yields (arrays, how to bring the results back into order) for the same problem ----


def rerun(rng, op, a):
    op.run(op.draw(rng, next(iter(a.values())).dtype))  # something else in the scratch memory
    yield a, lambda r: r


def threads(rng, op, a):
    for n in rng.choice((2, 3, 4, 5, 8), 2, replace=False):
        with fa.num_threads(int(n)):
            yield a, lambda r: r


def batch(rng, op, a):
    name, axis = next(iter(op.inputs_batch.items()))
    size = a[name].shape[axis]
    for index in (np.array([rng.integers(size)]), rng.integers(0, size, rng.integers(1, 2 * size + 1))):
        yield op.take(a, index), index


def padding(rng, op, a):
    for _ in range(2):
        yield op.padded(rng, a)


def _each(function, a):
    return {n: function(x) if x.dtype.kind == "f" else x for n, x in a.items()}


def alignment(rng, op, a):
    for _ in range(2):
        item = next(iter(a.values())).itemsize
        yield _each(lambda x, item=item: unaligned(x, int(rng.integers(64 // item)) * item), a), lambda r: r
    yield _each(lambda x: unaligned(x, int(rng.integers(64))), a), lambda r: r


def layout(rng, op, a):
    for name in rng.choice(list(LAYOUTS), 2, replace=False):
        yield _each(LAYOUTS[name], a), lambda r: r


def lane(rng, op, a):
    for _ in range(2):
        yield op.moved(rng, a)


def float_state(rng, op, a):
    """The caller flushes subnormal numbers to zero, or rounds in another direction; some inputs are subnormal."""
    for mxcsr in float_states.STATES.values():
        with float_states.under(mxcsr):
            yield a, lambda r: r


INVARIANCES = {
    "rerun": rerun,
    "threads": threads,
    "batch": batch,
    "masked padding": padding,
    "alignment": alignment,
    "layout": layout,
    "lane": lane,
}
if float_states.HAS_STATE:
    INVARIANCES["floating-point state"] = float_state


def compare(invariance, op_name, seed, dtype):
    """Cases of one problem. Returns (number of cases, number that differ)."""
    op, rng = OPS[op_name], np.random.default_rng(seed)
    a = op.draw(rng, dtype)
    if invariance == "floating-point state":
        a = _each(lambda x: x * rng.choice([1, np.finfo(x.dtype).tiny / 8], x.shape).astype(x.dtype), a)
    with fa.num_threads(1):
        expected = op.run(a)
    cases = mismatches = 0
    for arrays, back in INVARIANCES[invariance](rng, op, a):
        got = op.run(arrays)
        if invariance == "batch":
            wanted = [np.take(y, back, axis) for y, axis in zip(expected, op.outputs_batch, strict=True)]
        else:
            got, wanted = back(got), expected
        cases += 1
        mismatches += not all(map(same_bits, got, wanted))
    return cases, mismatches

"""The functions, each in every library that has it. PyTorch's are the operators that its own functions and their
gradients call. Where a gradient of PyTorch takes the result of the forward call, that call is part of its job, since
fastattn's takes the input."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastattn as fa
from benchmarks.sweep import Calls, Operation, Run
from fastattn import _core, reference

Array = Any
LONG_ROWS = (64, 1024, 30522)
torch: Any = import_module("torch") if find_spec("torch") else None
aten: Any = torch.ops.aten if torch else None
bfloat16: Any = import_module("ml_dtypes").bfloat16 if find_spec("ml_dtypes") else None


def draw(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    """Normal numbers; large arrays repeat those of a quarter megabyte, which no cache notices."""
    numbers = np.random.default_rng(seed).standard_normal(min(int(np.prod(shape)), 1 << 16), np.float32)
    whole = np.resize(numbers, shape)
    return whole if dtype == "float32" else _core.cast(whole, bfloat16)


def tensor(array: Array) -> Any:
    """A tensor of the same memory."""
    if bfloat16 is not None and array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def written(operator: Any, *arguments: Any, like: Any, out: str = "out") -> Run:
    """An operator of torch that writes to memory that exists."""
    return partial(operator, *arguments, **{out: torch.empty_like(like)})


def of_numpy(dtype: str, run: Run) -> dict[str, Run]:
    """NumPy takes part in float32: it has no bfloat16 of its own."""
    return {"numpy": run} if dtype == "float32" else {}


def of_torch(make: Callable[[], Run]) -> dict[str, Run]:
    return {"torch": make()} if torch else {}


# ---- one element at a time ----


def _numpy_sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


NUMPY: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": _numpy_sigmoid,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x * x * x))),
}
NUMPY_OUT: dict[str, Callable[[Array, Array], Array]] = {
    "exp": lambda x, out: np.exp(x, out=out),
    "tanh": lambda x, out: np.tanh(x, out=out),
    "relu": lambda x, out: np.maximum(x, 0, out=out),
}


def split(name: str) -> tuple[str, dict[str, str]]:
    """The name of a function, and its options."""
    return ("gelu", {"approximate": "tanh"}) if name == "gelu_tanh" else (name, {})


def elementwise(name: str, shape: tuple[int, int], dtype: str, used: bool) -> Calls:
    x = draw(shape, dtype)
    function, options = split(name)
    ours = getattr(fa, function)
    out = np.empty_like(x)
    runs: dict[str, Run] = {"fastattn": partial(ours, x, **options, **({"out": out} if used else {}))}
    if torch:
        t = tensor(x)
        if used:
            runs["torch"] = partial(getattr(aten, function).out, t, **options, out=torch.empty_like(t))
        else:
            runs["torch"] = partial(getattr(aten, function).default, t, **options)
    if used and name in NUMPY_OUT:
        runs |= of_numpy(dtype, partial(NUMPY_OUT[name], x, np.empty_like(x)))
    elif name in NUMPY:
        runs |= of_numpy(dtype, partial(NUMPY[name], x))
    return Calls(runs, lambda: getattr(reference, function)(x, **options))


def gated(shape: tuple[int, int], dtype: str, used: bool) -> Calls:
    gate, up = draw(shape, dtype), draw(shape, dtype, 1)
    options = {"out": np.empty_like(up)} if used else {}
    runs: dict[str, Run] = {"fastattn": partial(fa.silu_gated, gate, up, **options)}
    if torch:
        a, b = tensor(gate), tensor(up)
        result, between = torch.empty_like(a), torch.empty_like(a)
        if used:
            runs["torch"] = lambda: torch.mul(aten.silu.out(a, out=between), b, out=result)
        else:
            runs["torch"] = lambda: torch.nn.functional.silu(a) * b
    runs |= of_numpy(dtype, lambda: gate / (1 + np.exp(-gate)) * up)
    return Calls(runs, lambda: reference.silu_gated(gate, up))


def _torch_slope(name: str, dy: Any, x: Any) -> Run:
    if name == "relu":
        return partial(aten.threshold_backward.default, dy, x, 0)
    if name in ("tanh", "sigmoid"):
        forward, backward = getattr(torch, name), getattr(aten, f"{name}_backward").default
        return lambda: backward(dy, forward(x))
    function, options = split(name)
    return partial(getattr(aten, f"{function}_backward").default, dy, x, **options)


def backward(name: str, shape: tuple[int, int], dtype: str, _used: bool) -> Calls:
    x, dy = draw(shape, dtype), draw(shape, dtype, 1)
    function, options = split(name)
    runs: dict[str, Run] = {"fastattn": partial(getattr(fa, f"{function}_backward"), dy, x, **options)}
    runs |= of_torch(lambda: _torch_slope(name, tensor(dy), tensor(x)))
    if name == "relu":
        runs |= of_numpy(dtype, lambda: dy * (x > 0))
    return Calls(runs, lambda: reference.activation_backward(name, dy, x))


def gated_backward(shape: tuple[int, int], dtype: str, _used: bool) -> Calls:
    dy, gate, up = (draw(shape, dtype, seed) for seed in range(3))
    runs: dict[str, Run] = {"fastattn": partial(fa.silu_gated_backward, dy, gate, up)}
    if torch:
        d, a, b = tensor(dy), tensor(gate), tensor(up)
        runs["torch"] = lambda: (aten.silu_backward.default(d * b, a), d * torch.nn.functional.silu(a))
    return Calls(runs, lambda: reference.silu_gated_backward(dy, gate, up))


def cast(to: str, shape: tuple[int, int], dtype: str, _used: bool) -> Calls:
    x = draw(shape, dtype)
    wanted = bfloat16 if to == "bfloat16" else np.float32
    runs: dict[str, Run] = {"fastattn": partial(_core.cast, x, wanted)}
    runs |= of_torch(lambda: partial(tensor(x).to, getattr(torch, to)))
    return Calls(runs, lambda: x.astype(np.float64))


# ---- rows ----


def _numpy_softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e


def _numpy_log_softmax(x: Array) -> Array:
    z = x - x.max(-1, keepdims=True)
    z -= np.log(np.exp(z).sum(-1, keepdims=True))
    return z


def softmax(name: str, shape: tuple[int, int], dtype: str, used: bool) -> Calls:
    x = draw(shape, dtype)
    runs: dict[str, Run] = {"fastattn": partial(getattr(fa, name), x, **({"out": np.empty_like(x)} if used else {}))}
    if torch:
        t, operator = tensor(x), getattr(aten, f"_{name}")
        runs["torch"] = written(operator.out, t, -1, False, like=t) if used else partial(operator.default, t, -1, False)
    runs |= of_numpy(dtype, partial(_numpy_softmax if name == "softmax" else _numpy_log_softmax, x))
    return Calls(runs, lambda: getattr(reference, name)(x))


def softmax_backward(name: str, shape: tuple[int, int], dtype: str, _used: bool) -> Calls:
    y, dy = getattr(fa, name)(draw(shape, dtype)), draw(shape, dtype, 1)
    runs: dict[str, Run] = {"fastattn": partial(getattr(fa, f"{name}_backward"), dy, y)}
    if torch:
        t = tensor(y)
        runs["torch"] = partial(getattr(aten, f"_{name}_backward_data").default, tensor(dy), t, -1, t.dtype)
    return Calls(runs, lambda: getattr(reference, f"{name}_backward")(dy, y))


def _numpy_layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    x = x - x.mean(-1, keepdims=True)
    x *= weight / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5))
    x += bias
    return x


def _numpy_rms_norm(x: Array, weight: Array) -> Array:
    return x * (weight / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5)))


def layer_norm(shape: tuple[int, int], dtype: str, used: bool) -> Calls:
    x, weight, bias = draw(shape, dtype), draw(shape[1:], dtype, 1), draw(shape[1:], dtype, 2)
    runs: dict[str, Run] = {
        "fastattn": partial(fa.layer_norm, x, weight, bias, **({"out": np.empty_like(x)} if used else {}))
    }
    if torch:
        t, w, b = tensor(x), tensor(weight), tensor(bias)
        runs["torch"] = partial(torch.nn.functional.layer_norm, t, shape[1:], w, b, 1e-5)
    runs |= of_numpy(dtype, partial(_numpy_layer_norm, x, weight, bias))
    return Calls(runs, lambda: reference.layer_norm(x, weight, bias))


def layer_norm_backward(shape: tuple[int, int], dtype: str, _used: bool) -> Calls:
    x, weight, bias = draw(shape, dtype), draw(shape[1:], dtype, 1), draw(shape[1:], dtype, 2)
    dy = draw(shape, dtype, 3)
    _, saved = fa.layer_norm_forward(x, weight, bias)
    runs: dict[str, Run] = {"fastattn": partial(fa.layer_norm_backward, dy, saved)}
    if torch:
        t, w, b = tensor(x), tensor(weight), tensor(bias)
        _, mean, rstd = aten.native_layer_norm.default(t, shape[1:], w, b, 1e-5)
        runs["torch"] = partial(
            aten.native_layer_norm_backward.default, tensor(dy), t, shape[1:], mean, rstd, w, b, [True, True, True]
        )
    return Calls(runs, lambda: reference.layer_norm_backward(dy, x, weight))


def rms_norm(shape: tuple[int, int], dtype: str, used: bool) -> Calls:
    x, weight = draw(shape, dtype), draw(shape[1:], dtype, 1)
    runs: dict[str, Run] = {"fastattn": partial(fa.rms_norm, x, weight, **({"out": np.empty_like(x)} if used else {}))}
    runs |= of_torch(lambda: partial(torch.nn.functional.rms_norm, tensor(x), shape[1:], tensor(weight), 1e-5))
    runs |= of_numpy(dtype, partial(_numpy_rms_norm, x, weight))
    return Calls(runs, lambda: reference.rms_norm(x, weight))


def rms_norm_backward(shape: tuple[int, int], dtype: str, _used: bool) -> Calls:
    x, weight, dy = draw(shape, dtype), draw(shape[1:], dtype, 1), draw(shape, dtype, 2)
    _, saved = fa.rms_norm_forward(x, weight)
    runs: dict[str, Run] = {"fastattn": partial(fa.rms_norm_backward, dy, saved)}
    if torch:
        t, w = tensor(x).clone().requires_grad_(), tensor(weight).clone().requires_grad_()
        y, d = torch.nn.functional.rms_norm(t, shape[1:], w, 1e-5), tensor(dy)
        runs["torch"] = lambda: torch.autograd.grad(y, (t, w), d, retain_graph=True)
    return Calls(runs, lambda: reference.rms_norm_backward(dy, x, weight))


def cross_entropy(shape: tuple[int, int], dtype: str, _used: bool) -> Calls:
    x, targets = draw(shape, dtype), np.random.default_rng(1).integers(0, shape[1], shape[0])
    runs: dict[str, Run] = {"fastattn": partial(fa.cross_entropy, x, targets)}
    runs |= of_torch(lambda: partial(torch.nn.functional.cross_entropy, tensor(x), torch.from_numpy(targets)))
    each = np.arange(shape[0])
    runs |= of_numpy(dtype, lambda: -_numpy_log_softmax(x)[each, targets].mean())
    return Calls(runs, lambda: reference.cross_entropy(x, targets).mean())


def cross_entropy_backward(shape: tuple[int, int], dtype: str, _used: bool) -> Calls:
    """torch's takes the probabilities, whose logarithms its forward call keeps."""
    x, targets = draw(shape, dtype), np.random.default_rng(1).integers(0, shape[1], shape[0])
    _, saved = fa.cross_entropy_forward(x, targets)
    runs: dict[str, Run] = {"fastattn": partial(fa.cross_entropy_backward, 1.0, saved)}
    if torch:
        t = tensor(x).clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(t, torch.from_numpy(targets))
        runs["torch"] = lambda: torch.autograd.grad(loss, t, retain_graph=True)
    return Calls(runs, lambda: reference.cross_entropy_backward(np.full(shape[0], 1 / shape[0]), x, targets))


TABLE_ROWS = 30522


def embedding(shape: tuple[int, int], dtype: str, _used: bool) -> Calls:
    table = draw((TABLE_ROWS, shape[1]), dtype)
    ids = np.random.default_rng(1).integers(0, TABLE_ROWS, shape[0])
    runs: dict[str, Run] = {"fastattn": partial(fa.embedding, ids, table)}
    runs |= of_torch(lambda: partial(torch.nn.functional.embedding, torch.from_numpy(ids), tensor(table)))
    runs["numpy"] = partial(np.take, table, ids, axis=0)
    return Calls(runs, lambda: table[ids])


def embedding_backward(shape: tuple[int, int], dtype: str, _used: bool) -> Calls:
    dy, ids = draw(shape, dtype), np.random.default_rng(1).integers(0, TABLE_ROWS, shape[0])
    _, saved = fa.embedding_forward(ids, np.zeros((TABLE_ROWS, shape[1]), dy.dtype))
    runs: dict[str, Run] = {"fastattn": partial(fa.embedding_backward, dy, saved)}
    if torch:
        runs["torch"] = partial(
            aten.embedding_dense_backward.default, tensor(dy), torch.from_numpy(ids), TABLE_ROWS, -1, False
        )
    return Calls(runs, lambda: reference.embedding_backward(dy, ids, TABLE_ROWS))


def rope(shape: tuple[int, int], dtype: str, used: bool) -> Calls:
    """With tables of float32, as models keep them; torch's is the form of HuggingFace's models."""
    half = shape[1] // 2
    x, angle = draw(shape, dtype), draw((shape[0], half), "float32", 1)
    cos, sin = np.cos(angle), np.sin(angle)
    options = {"out": np.empty_like(x)} if used else {}
    runs: dict[str, Run] = {"fastattn": partial(fa.rope, x, cos=cos, sin=sin, **options)}
    if torch:
        t, c, s = tensor(x), tensor(np.tile(cos, 2)), tensor(np.tile(sin, 2))
        c, s = c.to(t.dtype), s.to(t.dtype)
        runs["torch"] = lambda: t * c + torch.cat((-t[..., half:], t[..., :half]), -1) * s
    wide_cos, wide_sin = np.tile(cos, 2), np.tile(sin, 2)
    runs |= of_numpy(dtype, lambda: x * wide_cos + np.concatenate((-x[:, half:], x[:, :half]), -1) * wide_sin)
    return Calls(runs, lambda: reference.rotate_pairs(x, cos, sin))


MAPS = ("exp", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "relu")
OPERATIONS = (
    *(Operation(name, partial(elementwise, name)) for name in MAPS),
    Operation("silu_gated", gated),
    *(Operation(f"{name}_backward", partial(backward, name), has_out=False) for name in MAPS[1:]),
    Operation("silu_gated_backward", gated_backward, has_out=False),
    Operation("cast to bfloat16", partial(cast, "bfloat16"), dtypes=("float32",), has_out=False),
    Operation("cast to float32", partial(cast, "float32"), dtypes=("bfloat16",), has_out=False),
    *(Operation(name, partial(softmax, name), LONG_ROWS) for name in ("softmax", "log_softmax")),
    *(
        Operation(f"{name}_backward", partial(softmax_backward, name), LONG_ROWS, has_out=False)
        for name in ("softmax", "log_softmax")
    ),
    Operation("layer_norm", layer_norm, LONG_ROWS[:2]),
    Operation("layer_norm_backward", layer_norm_backward, LONG_ROWS[:2], has_out=False),
    Operation("rms_norm", rms_norm, LONG_ROWS[:2]),
    Operation("rms_norm_backward", rms_norm_backward, LONG_ROWS[:2], has_out=False),
    Operation("cross_entropy", cross_entropy, LONG_ROWS, has_out=False),
    Operation("cross_entropy_backward", cross_entropy_backward, LONG_ROWS, has_out=False),
    Operation("embedding", embedding, (64, 384), has_out=False),
    Operation("embedding_backward", embedding_backward, (384,), has_out=False),
    Operation("rope", rope, (64, 128)),
)

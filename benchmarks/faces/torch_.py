"""PyTorch programs, as they are and through fastattn.torch."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastattn.torch as fat
from benchmarks.faces import Pair, Program, Run

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
OF_GRADIENTS = 5.0  # times the tolerance of results
Shape = tuple[int, int, int, int, int]  # batch, heads, queries, keys, head size


def programs(quick: bool) -> list[Program]:
    """All of them; the quick ones are those of the aims."""
    attention: list[tuple[str, Shape, dict[str, Any], dict[torch.dtype, float]]] = [
        ("B8 H8 L128 D64", (8, 8, 128, 128, 64), {}, {torch.float32: 2.0, torch.bfloat16: 3.5}),
        ("causal B1 H8 L1024 D64", (1, 8, 1024, 1024, 64), {"is_causal": True},
         {torch.float32: 3.0, torch.bfloat16: 5.0}),
        ("decode B1 H32 S4096 D64", (1, 32, 1, 4096, 64), {}, {torch.float32: 1.8, torch.bfloat16: 6.0}),
    ]  # fmt: skip
    if not quick:
        attention += [
            ("B1 H8 L1024 D64", (1, 8, 1024, 1024, 64), {}, {}),
            ("B32 H12 L64 D64", (32, 12, 64, 64, 64), {}, {}),
            ("B2 H2 L16 D32", (2, 2, 16, 16, 32), {}, {}),
        ]
    found = [
        Program(f"SDPA {name} {NAMES[kind]}", "PyTorch: attention", partial(_attention, shape, options, kind, False),
                TOLERANCE[kind], wanted.get(kind, 1.0))
        for name, shape, options, wanted in attention
        for kind in NAMES
    ]  # fmt: skip
    found += [
        Program(f"SDPA {name} {NAMES[kind]}, gradients", "PyTorch: attention",
                partial(_attention, shape, options, kind, True), OF_GRADIENTS * TOLERANCE[kind])
        for name, shape, options, _ in attention[: 2 if quick else None]
        for kind in NAMES
        if shape[2] > 1
    ]  # fmt: skip
    for cell, kind in (("LSTM", nn.LSTM), ("GRU", nn.GRU), ("RNN", nn.RNN)):
        if quick and cell == "RNN":
            continue
        add = partial(_program, f"PyTorch: {cell}")
        found.append(add(f"{cell} ragged T≤64 B32 H256", partial(_recurrent, kind, 256, 64, 32, True, False), 2.0))
        for width, steps, batch in ((128, 1, 1), (256, 64, 32)) if quick else _SIZES:
            found.append(
                add(f"{cell} T{steps} B{batch} H{width}", partial(_recurrent, kind, width, steps, batch, False, False))
            )
        found.append(add(f"{cell} T64 B32 H256, gradients", partial(_recurrent, kind, 256, 64, 32, False, True)))
    add = partial(_program, "PyTorch: encoder layer")
    for batch, length in ((8, 128),) if quick else ((1, 16), (8, 128), (1, 1024)):
        name = f"B{batch} L{length} E512 H8"
        found.append(add(name, partial(_layer, batch, length, False, False)))
        found.append(add(f"{name}, padding", partial(_layer, batch, length, True, False)))
        found.append(add(f"{name}, gradients", partial(_layer, batch, length, False, True)))
    return found


_SIZES = [
    (128, 1, 1),
    (512, 1, 1),
    (64, 100, 1),
    (256, 64, 1),
    (256, 64, 8),
    (256, 64, 32),
    (512, 128, 32),
    (32, 16, 64),
]


def _program(group: str, name: str, make: Callable[[], Pair], wanted: float = 1.0) -> Program:
    scale = OF_GRADIENTS if "gradients" in name else 1.0
    return Program(name, group, make, scale * TOLERANCE[torch.float32], wanted)


def _attention(shape: Shape, options: dict[str, Any], dtype: torch.dtype, gradients: bool) -> Pair:
    batch, heads, queries, keys, size = shape
    torch.manual_seed(1)
    given = [torch.randn(batch, heads, n, size).to(dtype).requires_grad_(gradients) for n in (queries, keys, keys)]

    def run(function: Callable[..., Tensor]) -> Run:
        def attend() -> Tensor:
            return function(*given, **options)

        return _step(attend, given) if gradients else torch.no_grad()(attend)

    return Pair(run(F.scaled_dot_product_attention), run(fat.scaled_dot_product_attention))


def _step(forward: Callable[[], Tensor], given: Sequence[Tensor]) -> Run:
    """Forward, and the gradients of a fixed sum of its result."""
    weights: list[Tensor] = []

    def run() -> list[Tensor]:
        result = forward()
        if not weights:
            weights.append(torch.randn(result.shape, generator=torch.Generator().manual_seed(2)).to(result.dtype))
        return [result.detach(), *torch.autograd.grad(result, given, weights[0])]

    return run


def _recurrent(kind: Any, width: int, steps: int, batch: int, ragged: bool, gradients: bool) -> Pair:
    torch.manual_seed(1)
    module = kind(width, width)
    x: Any = torch.randn(steps, batch, width)
    if ragged:
        x = pack_padded_sequence(x, torch.randint(1, steps + 1, (batch,)), enforce_sorted=False)
    return Pair(*(_run_recurrent(m, x, gradients) for m in (module, fat.accelerate(deepcopy(module)))))


def _run_recurrent(module: nn.Module, x: Any, gradients: bool) -> Run:
    def forward() -> Any:
        y = module(x)[0]
        return y.data if isinstance(y, PackedSequence) else y

    return _step(forward, list(module.parameters())) if gradients else torch.no_grad()(forward)


def _layer(batch: int, length: int, padding: bool, gradients: bool) -> Pair:
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True).train(gradients)
    x = torch.randn(batch, length, 512)
    lengths = torch.randint(1, length + 1, (batch,))
    excluded = torch.arange(length) >= lengths[:, None] if padding else None

    def run(module: nn.Module) -> Run:
        def forward() -> Tensor:
            y: Tensor = module(x, src_key_padding_mask=excluded)
            return y if excluded is None else y.masked_fill(excluded[..., None], 0.0)

        return _step(forward, list(module.parameters())) if gradients else torch.no_grad()(forward)

    return Pair(run(layer), run(fat.accelerate(deepcopy(layer))))

"""Every case that is timed against the peers, with its target."""

import re
from collections.abc import Iterable
from typing import Any

import benchmarks.kernels.ops  # noqa: F401 (fills OPS)
from benchmarks.kernels.case import Case, Target
from benchmarks.kernels.ops.recurrent import STACK
from benchmarks.text.corpus import sentence_lengths
from fastattn import config


def _of_pairs(peak: float) -> Target:
    """Of products of bfloat16. Matrix tiles multiply 16 times as fast as the rest is computed: there, ahead of all."""
    return Target() if config.get_isa() == "amxbf16" else Target(peak=peak)


def _attention(B: int, H: int, S: int, D: int, target: Target, **options: Any) -> Case:
    """Forward; backward=True: backward alone, after a forward call that is not timed."""
    op = "attention_backward" if options.pop("backward", False) else "attention"
    window, masked = options.get("window"), options.get("masked", False)
    kind = "causal" if options.get("causal") else "mask" if masked else "full" if window is None else f"window{window}"
    dtype = {"float64": "f64", "bfloat16": "bf16"}.get(options.get("dtype", ""), "f32")
    name = f"{op.replace('_', ' ')} {dtype} {kind} B{B} H{H} S{S} D{D}"
    return Case(name, op, {"B": B, "H": H, "S": S, "D": D}, target=target, **options)


def _decode(dtype: str, H: int, K: int, S: int = 4096, **options: Any) -> Case:
    """One new token to S of them: a part of the read bandwidth; int8: 1.7 times bfloat16. A short cache of keys
    stays in caches of the CPU, which are faster."""
    sizes = {"B": 1, "H": H, "K": K, "S": S, "D": 128}
    return Case(f"decode {dtype} H{H} K{K} S{S} D128", "decode", sizes, dtype, **options)


def _recurrent(op: str, T: int, B: int, H: int, target: Target, **options: Any) -> Case:
    kind = " bfloat16" if options.get("dtype") == "bfloat16" else _packed_as(options)
    return Case(f"{op}{kind} T{T} B{B} I{H} H{H}", op, {"T": T, "B": B, "I": H, "H": H}, target=target, **options)


def _packed_as(options: dict[str, Any]) -> str:
    kind = "plain" if options.get("plain") else options.get("weights")
    return f" {kind} weights" if kind else ""


def _ragged(op: str, B: int, H: int, target: Target, **options: Any) -> Case:
    """As many steps as the longest of the first B sentences has tokens."""
    sizes = {"T": int(sentence_lengths(B).max()), "B": B, "I": H, "H": H}
    name = f"{op.replace('_gradients', ' forward and backward')} ragged text B{B} I{H} H{H}"
    return Case(name, op, sizes, ragged=True, target=target, **options)


def _gradients(op: str, T: int, B: int, H: int, target: Target, **options: Any) -> Case:
    name = f"{op} forward and backward T{T} B{B} I{H} H{H}"
    return Case(name, f"{op}_gradients", {"T": T, "B": B, "I": H, "H": H}, target=target, **options)


def _cell(op: str, B: int, H: int, target: Target, **options: Any) -> Case:
    options = {"scales": False, **options}
    name = f"{op}_cell{_packed_as(options)} B{B} I{H} H{H}"
    return Case(name, f"{op}_cell", {"B": B, "I": H, "H": H}, target=target, **options)


def _linear(M: int, N: int, K: int, **options: Any) -> Case:
    weight = " transposed weight" if options.get("transposed") else _packed_as(options)
    return Case(f"linear{weight} M{M} N{N} K{K}", "linear", {"M": M, "N": N, "K": K}, **options)


CASES: tuple[Case, ...] = (
    _attention(1, 12, 2048, 64, Target(peak=0.87)),
    _attention(1, 12, 512, 64, Target(peak=0.82), quick=True),
    _attention(8, 12, 128, 64, Target(peak=0.75), quick=True),
    _attention(1, 8, 4096, 128, Target(peak=0.88)),
    _attention(1, 12, 2048, 64, Target(peak=0.82), causal=True),
    _attention(1, 12, 512, 64, Target(peak=0.72), causal=True, quick=True),
    _attention(8, 12, 128, 64, Target(peak=0.60), causal=True),
    _attention(1, 12, 512, 64, Target(), dtype="float64"),
    _attention(1, 12, 512, 64, Target(), dtype="float64", causal=True),
    _attention(1, 1, 16, 64, Target(micros=2.5), quick=True, scales=False),
    _attention(1, 12, 2048, 64, Target(beside=0.91), masked=True, beside="attention f32 full B1 H12 S2048 D64"),
    _attention(1, 2, 8192, 64, Target()),
    _attention(1, 2, 8192, 64, Target(beside=0.8), window=256, beside="attention f32 full B1 H2 S8192 D64"),
    _attention(1, 12, 2048, 64, _of_pairs(0.75), dtype="bfloat16"),
    _attention(1, 12, 512, 64, _of_pairs(0.66), dtype="bfloat16", quick=True),
    _attention(8, 12, 128, 64, _of_pairs(0.55), dtype="bfloat16"),
    _attention(1, 12, 2048, 64, Target(peak=0.78), backward=True),
    _attention(1, 12, 512, 64, Target(), backward=True, quick=True),
    _attention(1, 12, 2048, 64, Target(peak=0.70), backward=True, causal=True),
    _attention(1, 12, 2048, 64, _of_pairs(0.60), backward=True, dtype="bfloat16"),
    _attention(256, 12, 26, 64, Target()),
    _attention(256, 12, 16, 32, Target()),
    _attention(8, 12, 26, 32, Target(peak=0.45), quick=True),
    _attention(8, 12, 49, 32, Target(peak=0.45)),
    _attention(8, 12, 49, 32, _of_pairs(0.35), dtype="bfloat16"),
    _attention(8, 12, 64, 64, Target(peak=0.45), causal=True),
    _attention(64, 12, 26, 64, Target(), backward=True),
    Case(
        "attention f32 ragged: 256 sentences H12 D64",
        "attention_ragged",
        {"B": 256, "H": 12, "D": 64},
        target=Target(beside=0.9),
        beside="attention f32 full B256 H12 S26 D64",
        quick=True,
    ),
    *(_decode(dtype, 32, K, target=Target(peak=0.9)) for dtype in ("float32", "bfloat16") for K in (32, 8)),
    _decode("bfloat16", 32, 8, 1024),
    _decode("int8", 32, 32),
    _decode("int8", 32, 8),
    _recurrent("lstm", 512, 32, 512, Target(peak=0.92)),
    _recurrent("lstm", 100, 64, 256, Target(peak=0.90), quick=True),
    _recurrent("lstm", 512, 32, 512, _of_pairs(0.82), dtype="bfloat16"),
    _recurrent("lstm", 512, 1, 512, Target(ratio=1.4)),
    _recurrent("lstm", 512, 1, 512, Target(ratio=2.5), weights="bfloat16"),
    _recurrent("lstm", 512, 1, 512, Target(ratio=2.5), weights="int8"),
    _recurrent("lstm", 100, 1, 128, Target(ratio=1.4), quick=True, scales=False),
    _recurrent("lstm", 64, 2, 256, Target(ratio=1.15), scales=False),
    _recurrent("lstm", 64, 4, 512, Target(ratio=1.15)),
    _recurrent("lstm", 32, 1, 1024, Target(ratio=1.15)),
    _recurrent("gru", 64, 2, 256, Target(ratio=1.15), scales=False),
    _recurrent("gru", 64, 4, 512, Target(ratio=1.15)),
    _recurrent("gru", 32, 1, 1024, Target(ratio=1.15)),
    _recurrent("gru", 512, 32, 512, Target(peak=0.90)),
    _recurrent("gru", 512, 1, 512, Target(ratio=1.4)),
    _recurrent("gru", 100, 64, 256, Target(peak=0.90), quick=True),
    _recurrent("rnn", 512, 32, 512, Target(peak=0.88)),
    _recurrent("rnn", 512, 1, 512, Target(ratio=1.4)),
    _recurrent("rnn", 100, 64, 256, Target(peak=0.88), quick=True),
    _gradients("lstm", 512, 32, 512, Target(peak=0.82)),
    _gradients("lstm", 100, 64, 256, Target(), quick=True),
    _gradients("gru", 512, 32, 512, Target(peak=0.80)),
    _gradients("rnn", 512, 32, 512, Target(peak=0.80)),
    _gradients("lstm", 512, 1, 512, Target()),
    _gradients("lstm", 10_000, 1, 128, Target(), scales=False),
    _ragged("lstm", 32, 512, Target(torch_ratio=3.0), quick=True),
    _ragged("lstm_gradients", 32, 512, Target(torch_ratio=3.0)),
    Case(
        "lstm 2 layers bidirectional T256 B16 I256 H256",
        STACK,
        {"T": 256, "B": 16, "I": 256, "H": 256, "L": 2},
        target=Target(ratio=1.3),
    ),
    Case(
        "additive attention and gradients B32 T50 S50 A256 C512",
        "additive",
        {"B": 32, "T": 50, "S": 50, "A": 256, "C": 512},
        target=Target(torch_ratio=5.0),
        quick=True,
    ),
    Case(
        "decoder with additive attention and gradients B32 S50 T50 H512",
        "attention_gru",
        {"B": 32, "S": 50, "T": 50, "H": 512},
        target=Target(torch_ratio=3.0),
    ),
    Case("softmax in place 4096x1024", "softmax", {"R": 4096, "C": 1024}, target=Target(torch_ratio=2.0), quick=True),
    Case(
        "encoder layer forward and backward B8 L256 E512 H8",
        "encoder_layer",
        {"B": 8, "L": 256, "E": 512, "H": 8, "F": 2048},
        target=Target(torch_ratio=1.5),
    ),
    _linear(1024, 1024, 1024, quick=True),
    _linear(128, 3072, 768),
    _linear(1, 768, 768, scales=False),
    *(_linear(M, 1024, 1024, plain=True, scales=False) for M in (1, 2, 4, 16)),
    *(_linear(M, 1024, 1024, plain=True, transposed=True, scales=False) for M in (1, 4, 16)),
    _linear(8192, 64, 64),
    _linear(4096, 384, 384),
    _cell("lstm", 1, 128, Target(micros=5, tail=3), quick=True, alone=True),
    _cell("lstm", 1, 128, Target(tail=3), weights="bfloat16", alone=True),
    _cell("lstm", 1, 256, Target(micros=22, tail=3), alone=True),
    _cell("lstm", 1, 256, Target(micros=10, tail=3), weights="bfloat16", alone=True),
    _cell("gru", 1, 256, Target()),
    _cell("rnn", 1, 256, Target()),
    *(_cell(op, 1, 256, Target(), plain=True) for op in ("lstm", "gru", "rnn")),
)


def select(pattern: str | None, quick: bool, cases: Iterable[Case] = CASES) -> list[Case]:
    """Cases in whose name the regular expression is found; without one, all or those of --quick."""
    if pattern is None:
        return [case for case in cases if case.quick or not quick]
    return [case for case in cases if re.search(pattern, case.name, re.IGNORECASE)]

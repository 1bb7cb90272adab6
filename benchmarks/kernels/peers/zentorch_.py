"""zentorch: ZenDNN's products and attention as operators of torch. Its attention is torch's own where the CPU lacks
AVX-512, so it does not take part there."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.kernels.case import Case, Inputs
from benchmarks.kernels.peers import Prepared, torch_


def absence() -> str:
    """Nothing beside the package is needed."""
    return ""


def _operators() -> Any:
    import_module("zentorch")
    return import_module("torch").ops.zentorch


def _multiplies(dtype: str) -> bool:
    """Whether it has kernels for attention, and for all products but those of float32, on this CPU."""
    operators = _operators()
    return bool(
        {"float32": operators.zentorch_is_avx512_supported, "bfloat16": operators.zentorch_is_bf16_supported}[dtype]()
    )


def version() -> str:
    """Its version, and what it leaves out on this CPU."""
    lacking = [dtype for dtype in ("float32", "bfloat16") if not _multiplies(dtype)]
    left_out = f", no attention in {' and '.join(lacking)}: needs AVX-512" if lacking else ""
    return f"{import_module('zentorch').__version__}{left_out}"


def supports(case: Case) -> bool:
    """Without gradients, masks, ragged batches, plain weights."""
    if (
        case.op not in PREPARE
        or case.masked
        or case.plain
        or case.window is not None
        or case.dtype not in ("float32", "bfloat16")
    ):
        return False
    return (case.op, case.dtype) == ("linear", "float32") or _multiplies(case.dtype)


def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """Weights are packed once."""
    return PREPARE[case.op](_operators(), torch_.enter_inference(threads), case, inputs)


def _attention(operators: Any, torch: Any, case: Case, inputs: Inputs) -> Prepared:
    (q, k, v), options = torch_.attention_arguments(torch, case, inputs)
    return Prepared(lambda: operators.zentorch_sdpa(q, k, v, **options), lambda result: torch_.array(result[0].float()))


def _linear(operators: Any, torch: Any, case: Case, inputs: Inputs) -> Prepared:
    x, weight, bias = torch_.linear_arguments(torch, case, inputs)
    packed = operators.zentorch_weight_prepack_for_linear(weight)
    return Prepared(
        lambda: operators.zentorch_linear_unary(x, packed, bias, is_weight_prepacked=True),
        lambda result: torch_.array(result.float()),
    )


PREPARE: dict[str, Callable[[Any, Any, Case, Inputs], Prepared]] = {"attention": _attention, "linear": _linear}

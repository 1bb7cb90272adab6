"""Types of the compiled module. Private: fastattn.functional and fastattn.config say what each function does."""

from collections.abc import Callable
from typing import Any, Self, final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__test__: dict[str, str]  # Cython's
__c_api__: object  # a capsule: csrc/fastattn_import.h

# ---- arrays.pxi ----
def checked_array(value: ArrayLike, op: str, name: str) -> NDArray[Any]: ...
def checked_integers(value: ArrayLike, op: str, name: str) -> NDArray[np.int64]: ...

# ---- dlpack.pxi ----
@final
class SharedMemory:
    def __init__(self, *args: object, **kwargs: object) -> None: ...  # raises TypeError: arrays of tensors have them

# ---- results.pxi ----
@final
class ResultMemory:
    def __init__(self, *args: object, **kwargs: object) -> None: ...  # raises TypeError: large arrays have them

def new_array(shape: tuple[int, ...], dtype: DTypeLike, op: str) -> NDArray[Any]: ...
def check_out(out: NDArray[Any], x: NDArray[Any], op: str) -> None: ...

# ---- float_state.pxi ----
@final
class DefaultFloats:
    def __enter__(self) -> None: ...
    def __exit__(self, *exception: object) -> None: ...

# ---- settings.pxi ----
@final
class Block:
    def __init__(self, setting: str, value: int) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *exception: object) -> None: ...

def isa_names() -> list[str]: ...
def available_isas() -> list[str]: ...
def get_isa() -> str: ...
def isa_number(name: str) -> int: ...
def set_isa(name: str) -> None: ...
def cpu_features() -> str: ...
def cpu_brand() -> str: ...
def kernel_names() -> list[str]: ...
def get_num_threads() -> int: ...
def thread_number(n: int, op: str) -> int: ...
def set_num_threads(n: int) -> None: ...
def threads_limit() -> int: ...
def adapt_threads(adapt: bool) -> None: ...
def disturb_threads(meetings: int) -> int: ...
def trim() -> None: ...
def strategy_number(kind: str, name: str) -> int: ...
def get_attention_strategy() -> str: ...
def get_linear_strategy() -> str: ...
def set_blas_path(path: str) -> None: ...
def blas_info() -> tuple[str, str, str]: ...
def probe_multiply_add(dtype: DTypeLike, rounds: int, threads: int = 1) -> float: ...
def probe_read(x: ArrayLike) -> None: ...

# ---- cast.pxi ----
def cast(x: ArrayLike, dtype: DTypeLike, op: str = ..., name: str = ...) -> NDArray[Any]: ...

# ---- rows.pxi ----
def map_elements(kind: str, x: ArrayLike, out: NDArray[Any] | None, op: str) -> NDArray[Any]: ...
def map_backward(kind: str, dy: ArrayLike, x: ArrayLike, op: str) -> NDArray[Any]: ...
def silu_gated(gate: ArrayLike, up: ArrayLike, out: NDArray[Any] | None, op: str) -> NDArray[Any]: ...
def silu_gated_backward(
    dy: ArrayLike, gate: ArrayLike, up: ArrayLike, op: str
) -> tuple[NDArray[Any], NDArray[Any]]: ...
def softmax_rows(log: bool, x: ArrayLike, scale: float, out: NDArray[Any] | None, op: str) -> NDArray[Any]: ...
def softmax_backward_rows(log: bool, dy: ArrayLike, y: ArrayLike, scale: float, op: str) -> NDArray[Any]: ...

# ---- norm.pxi ----
# (y, sum, mean, rstd) and (dx, dweight, dbias).
def norm(
    kind: str,
    x: ArrayLike,
    residual: ArrayLike | None,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    eps: float,
    out: NDArray[Any] | None,
    statistics: bool,
    op: str,
) -> tuple[NDArray[Any], NDArray[Any], Any, Any]: ...
def norm_backward(
    kind: str,
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None,
    mean: ArrayLike | None,
    rstd: ArrayLike,
    dsum: ArrayLike | None,
    bias: bool,
    op: str,
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]: ...

# ---- linear.pxi ----
@final
class PackedLinear:
    def __init__(self, *args: object, **kwargs: object) -> None: ...  # raises TypeError: pack_linear makes them
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def weight_dtype(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, memo: dict[int, Any]) -> Self: ...

def unpickled_linear(
    packing: tuple[str, str], dtype: DTypeLike, weight_dtype: str, N: int, K: int, packed: NDArray[np.uint8]
) -> PackedLinear: ...
def pack_linear(weight: ArrayLike, dtype: DTypeLike | None) -> PackedLinear: ...

# An array, with `save` the pair (y, z).
def linear(
    x: ArrayLike,
    weight: ArrayLike | PackedLinear,
    bias: ArrayLike | None,
    activation: str | None,
    out: NDArray[Any] | None,
    save: bool,
    op: str,
) -> Any: ...

# (dx, dweight, dbias).
def linear_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    z: NDArray[Any] | None,
    activation: str | None,
    bias: bool,
    with_dx: bool,
    add_to: NDArray[Any] | None,
    op: str,
    dweight_out: NDArray[Any] | None = None,
    of_add_to: str = "add_to",
) -> tuple[Any, NDArray[Any], Any]: ...

# ---- embedding.pxi ----
def embedding(ids: ArrayLike, weight: ArrayLike, op: str) -> tuple[NDArray[Any], NDArray[np.int64]]: ...
def embedding_backward(dy: ArrayLike, ids: ArrayLike, table: tuple[int, ...], op: str) -> NDArray[Any]: ...
def rope(
    x: ArrayLike,
    cosine: NDArray[Any],
    sine: NDArray[Any],
    row: NDArray[np.int64],
    interleaved: bool,
    out: NDArray[Any] | None,
    op: str,
    name: str,
) -> NDArray[Any]: ...
def rope_of_tables(
    x: ArrayLike,
    cosine: ArrayLike | None,
    sine: ArrayLike | None,
    direction: int,
    out: NDArray[Any] | None,
    op: str,
    name: str,
) -> NDArray[Any] | None: ...

# ---- cross_entropy.pxi ----
# (loss, top, sum, targets, number of targets that are not ignored).
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, ignore_index: int | None, label_smoothing: float, reduction: str, op: str
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.int64], int]: ...
def cross_entropy_backward(
    dloss: ArrayLike,
    for_each: bool,
    logits: ArrayLike,
    targets: NDArray[np.int64],
    tops: NDArray[Any],
    sums: NDArray[Any],
    ignore_index: int | None,
    label_smoothing: float,
    op: str,
) -> NDArray[Any]: ...

# ---- attention.pxi ----
# An array, with return_lse the pair (out, lse), with return_state (out, lse, state).
# options, of all forms of attention: mask, causal, scale, window, softcap, alibi_slopes, sinks, q_start, bias,
# dropout_p, seed.
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    options: tuple[Any, ...],
    q_lengths: ArrayLike | None,
    kv_lengths: ArrayLike | None,
    layout: str,
    out: NDArray[Any] | None,
    return_lse: bool,
    return_state: bool,
    op: str = ...,
) -> Any: ...

# ---- attention_varlen.pxi ----
# Results as of attention.
def attention_varlen(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    options: tuple[Any, ...],
    out: NDArray[Any] | None,
    return_lse: bool,
    return_state: bool,
) -> Any: ...

# ---- attention_parts.pxi ----
def attention_weights(
    q: ArrayLike,
    k: ArrayLike,
    lse: ArrayLike,
    heads: Any,
    rows: Any,
    options: tuple[Any, ...],
    q_lengths: ArrayLike | None,
    kv_lengths: ArrayLike | None,
    layout: str,
) -> NDArray[Any]: ...
def merge_attention(
    out_a: ArrayLike, lse_a: ArrayLike, out_b: ArrayLike, lse_b: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]: ...

# ---- attention_backward.pxi ----
# dq, dk, dv, dmask, dsinks, dalibi_slopes; the last three None where they are not wanted.
# request: (gradients, partial, dlse, gradient_dtype).
def attention_backward(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    out: ArrayLike,
    state: NDArray[Any],
    options: tuple[Any, ...],
    q_lengths: ArrayLike | None,
    kv_lengths: ArrayLike | None,
    layout: str,
    request: tuple[Any, ...],
) -> tuple[Any, Any, Any, Any, Any, Any]: ...
def attention_varlen_backward(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    out: ArrayLike,
    state: NDArray[Any],
    options: tuple[Any, ...],
    request: tuple[Any, ...],
) -> tuple[Any, Any, Any, Any, Any, Any]: ...
def attention_state(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    out: ArrayLike,
    lse: ArrayLike,
    options: tuple[Any, ...],
    q_lengths: ArrayLike | None,
    kv_lengths: ArrayLike | None,
    layout: str,
) -> NDArray[Any]: ...

# ---- additive.pxi ----
# (context, weights or None) and (dquery, dkeys, dvalues, dv).
def additive_attention(
    query: ArrayLike,
    keys: ArrayLike,
    values: ArrayLike,
    v: ArrayLike,
    lengths: ArrayLike | None,
    mask: ArrayLike | None,
    return_weights: bool,
    op: str,
) -> tuple[NDArray[Any], Any]: ...
def additive_attention_backward(
    dcontext: ArrayLike,
    query: ArrayLike,
    keys: ArrayLike,
    values: ArrayLike,
    v: ArrayLike,
    lengths: ArrayLike | None,
    weights: ArrayLike,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]: ...

# ---- cache.pxi ----
CACHE_QUERIES: int
CACHE_LONGEST_I8: int

def cache_attention(
    q: ArrayLike,
    keys: NDArray[Any],
    values: NDArray[Any],
    key_scales: NDArray[Any] | None,
    value_scales: NDArray[Any] | None,
    table: NDArray[Any] | None,
    lengths: NDArray[Any],
    options: tuple[Any, ...],
    q_lengths: ArrayLike | None,
    out: NDArray[Any] | None,
    return_lse: bool,
) -> Any: ...

# ---- attention_gru.pxi ----
# (h, context, weights, sums, saved or None) and (da, dgates, dkeys, dvalues, dannotations, dv, dh0).
def attention_gru(
    gates_x: ArrayLike,
    keys: ArrayLike,
    values: ArrayLike,
    annotations: ArrayLike,
    v: ArrayLike,
    w: ArrayLike,
    bias: ArrayLike,
    h0: ArrayLike,
    lengths: ArrayLike | None,
    save: bool,
    op: str,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], Any]: ...
def attention_gru_backward(
    dh: ArrayLike | None,
    dcontext: ArrayLike | None,
    dh_last: ArrayLike | None,
    arguments: object,
    results: object,
    op: str,
) -> tuple[NDArray[Any], ...]: ...

# ---- recurrent_weights.pxi, recurrent.pxi, recurrent_step.pxi, recurrent_backward.pxi ----
@final
class RecurrentWeights:
    def __init__(self, *args: object, **kwargs: object) -> None: ...  # raises TypeError: pack_rnn and others make them
    cell: str
    weight_dtype: str | None
    layers: int
    directions: int
    input_size: int
    hidden_size: int
    output_size: int
    @property
    def has_cell(self) -> bool: ...
    @property
    def proj_size(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def isa(self) -> str | None: ...
    @property
    def is_current(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, memo: dict[int, Any]) -> Self: ...

def from_lanes(cell: str, lanes: list[dict[str, NDArray[Any] | None]], directions: int) -> RecurrentWeights: ...
def unpickled_recurrent(
    packing: tuple[str, str],
    cell: str,
    dtype: DTypeLike,
    type_name: str,
    sizes: tuple[int, int, int, int, int],
    optional: tuple[bool, bool],
    packed: list[NDArray[np.uint8]],
) -> RecurrentWeights: ...
def recurrent_weights(
    op: str,
    cell: str,
    lanes: list[dict[str, Any]],
    names: list[dict[str, str]],
    directions: int,
    input_size: int,
    dtype: np.dtype[Any] | None,
) -> RecurrentWeights: ...
def widened_weights(op: str, weights: RecurrentWeights) -> RecurrentWeights: ...
def pack_recurrent(op: str, weights: RecurrentWeights, type_name: str) -> RecurrentWeights: ...

# (h, c), c None but for "lstm".
def recurrent(
    op: str,
    w: RecurrentWeights,
    options: Any,
    x: NDArray[Any],
    h0: ArrayLike | None,
    c0: ArrayLike | None,
    lengths: NDArray[np.int64] | None,
    ys: list[NDArray[Any]],
    dropped: list[NDArray[Any]] | None = None,
    saves: list[NDArray[Any] | None] | None = None,
    of_h: str = "state",
    of_c: str = "state[1]",
) -> tuple[NDArray[Any], Any]: ...
def new_saved(
    w: RecurrentWeights, steps: int, batch: int, lengths: NDArray[np.int64] | None, op: str
) -> NDArray[Any] | None: ...

# Gradients of the states h and c, and for each layer and direction of weight_ih, weight_hh, bias_ih, bias_hh,
# weight_hr, peephole.
def recurrent_backward(
    op: str,
    w: RecurrentWeights,
    options: Any,
    x: NDArray[Any],
    inputs: list[NDArray[Any]],
    ys: list[NDArray[Any]],
    saves: list[NDArray[Any] | None],
    h0: ArrayLike | None,
    c0: ArrayLike | None,
    lengths: NDArray[np.int64] | None,
    dy: ArrayLike | None,
    dh: ArrayLike | None,
    dc: ArrayLike | None,
    dxs: list[NDArray[Any]],
    rounded: bool,
) -> tuple[NDArray[Any], Any, list[list[Any]]]: ...
def xla_handler(
    load: Callable[[bytes], tuple[Any, Any, Any, Any, Any]], dtypes: dict[int, np.dtype[Any]]
) -> object: ...
def recurrent_step(
    op: str,
    w: RecurrentWeights,
    nonlinearity: str,
    clip: float,
    x: ArrayLike,
    h0: ArrayLike,
    c0: ArrayLike | None,
    h_out: NDArray[Any],
    c_out: NDArray[Any] | None,
) -> bool: ...
def checked_lengths(
    lengths: ArrayLike | None, batch: int, longest: int, op: str, name: str
) -> NDArray[np.int64] | None: ...
def checked_flag(value: object, op: str, name: str) -> bool: ...
def checked_integer(value: object, op: str, name: str) -> int: ...
def shown(value: object) -> str: ...
def plain_text(value: object) -> Any: ...
def checked_number(value: object, op: str, name: str) -> float: ...
def checked_floats(value: ArrayLike, op: str, name: str, ndim: int = -1) -> NDArray[Any]: ...

# Blocked attention.

cdef Py_ssize_t MOST_EMPTY_KEYS = <Py_ssize_t>1 << 31

cdef object set_strides(Array *a, fa_index *stride, int head_axis):
    """Strides of batch, head and row of a four-axis array whose heads are on `head_axis`."""
    stride[0] = a.stride[0]
    stride[1] = a.stride[head_axis]
    stride[2] = a.stride[3 - head_axis]


cdef struct AttentionInputs:
    Array q, k, v, mask, bias, slopes, sinks
    bint wide_slopes, wide_sinks  # float32 ones beside 16-bit q


cdef void hold_nothing(AttentionInputs *x) noexcept:
    x.q.held = x.k.held = x.v.held = x.mask.held = x.bias.held = x.slopes.held = x.sinks.held = False


cdef void release_inputs(AttentionInputs *x) noexcept:
    release(&x.q)
    release(&x.k)
    release(&x.v)
    release(&x.mask)
    release(&x.bias)
    release(&x.slopes)
    release(&x.sinks)


cdef object broadcast_strides(Array *a, const Py_ssize_t *full, fa_index *stride, str op, str name):
    """Strides of a held mask for each of four axes of these sizes, 0 where it is broadcast."""
    cdef int axis, missing = 4 - a.ndim
    for axis in range(4):
        stride[axis] = 0
    for axis in range(max(0, missing), 4):
        if missing < 0 or (a.shape[axis - missing] != full[axis] and a.shape[axis - missing] != 1):
            raise wrong_shape(op, name, f"broadcast to {(full[0], full[1], full[2], full[3])}", f"shape {shape_of(a)}")
        if a.shape[axis - missing] != 1:
            stride[axis] = a.stride[axis - missing]


cdef object acquire_masks(AttentionInputs *x, object mask, object bias, fa_attention_arguments *a, str op):
    """Holds a mask and a bias, ndarrays or None; sets their kind, data and strides. A bias alone is a mask of numbers;
    beside it the mask is of bytes."""
    cdef Py_ssize_t full[4]
    cdef bint is_bool
    full[0], full[1], full[2], full[3] = a.B, a.H, a.Lq, a.Lk
    a.mask_kind = FA_MASK_NONE
    a.mask = a.keep = NULL
    if mask is not None:
        is_bool = acquire_mask_buffer(&x.mask, mask, x.q.dtype, "q", op)
        a.mask_kind, a.mask = FA_MASK_BOOL if is_bool else FA_MASK_ADD, x.mask.data
        broadcast_strides(&x.mask, full, a.mask_stride, op, "mask")
    if bias is None:
        return
    if a.mask_kind == FA_MASK_ADD:
        raise TypeError(f"{op}: mask must be bool beside a bias, got {mask.dtype}; add the two")
    if acquire_mask_buffer(&x.bias, bias, x.q.dtype, "q", op, "bias"):
        raise TypeError(f"{op}: bias must be {NAMES[x.q.dtype]} like q, got bool; say mask=")
    if a.mask_kind == FA_MASK_BOOL:
        a.keep = a.mask
        memcpy(a.keep_stride, a.mask_stride, sizeof(a.keep_stride))
    a.mask_kind, a.mask = FA_MASK_ADD, x.bias.data
    broadcast_strides(&x.bias, full, a.mask_stride, op, "bias")


cdef fa_index window_side(object side, str op) except -2:
    if side is None:
        return FA_UNBOUNDED
    side = as_integer(side, op, "window", "hold integers or None")
    if side < 0:
        raise ValueError(f"{op}: window must hold distances of at least 0, got {side}")
    # Beyond any length it bounds nothing, and sums with positions must not overflow.
    return min(side, FA_FARTHEST)


cdef bint read_alignment(fa_attention_arguments *a, object causal, object window, bint placed, str op) except -1:
    """left, right and bottom_right from causal and window; whether causal=True, which needs as many queries as keys
    unless they are `placed` by q_start."""
    cdef bint is_square = False
    a.left = a.right = FA_UNBOUNDED
    a.bottom_right = True
    if causal is not False and isinstance(causal, np.bool_):
        causal = bool(causal)
    causal = plain_text(causal)
    if causal is False or causal is None:
        pass
    elif causal is True:
        is_square = not placed
        a.right = 0
    elif placed:
        raise ValueError(f"{op}: causal must be False or True with q_start, got {shown(causal)}")
    elif isinstance(causal, str) and causal == "bottom-right":
        a.right = 0
    elif isinstance(causal, str) and causal == "top-left":
        a.right = 0
        a.bottom_right = False
    else:
        raise ValueError(f"{op}: causal must be False, True, 'top-left' or 'bottom-right', got {shown(causal)}")
    if window is not None:
        try:
            left, right = window
        except Exception:  # whatever an iterator raises
            raise ValueError(f"{op}: window must be a pair (left, right), got {shown(window)}") from None
        a.left = window_side(left, op)
        a.right = min(<fa_index>a.right, window_side(right, op))
    return is_square


cdef object check_square(const fa_attention_arguments *a, str op):
    if a.Lq != a.Lk:
        raise ValueError(f"{op}: causal=True needs as many queries as keys, got {a.Lq} and {a.Lk}; "
                         "say causal='top-left' or causal='bottom-right', or where query 0 is by q_start")


cdef object as_positions(object value, Py_ssize_t batch, str op):
    """int64 positions [batch] of the first queries among the keys, from one for all or one for each sequence."""
    positions = as_integers(value, op, "q_start")
    if positions.ndim == 0:
        positions = np.full(batch, positions)
    if positions.shape != (batch,):
        raise wrong_shape(op, "q_start", f"be an integer or have shape ({batch},)", f"shape {positions.shape}")
    low, high = positions.min(initial=0), positions.max(initial=0)
    if low < -FA_FARTHEST or high > FA_FARTHEST:
        raise ValueError(f"{op}: q_start must lie in -2**60..2**60, got {low if low < -FA_FARTHEST else high}")
    return positions


cdef bint read_options(fa_attention_arguments *a, object causal, object window, object scale, object softcap,
                       bint placed, str op) except -1:
    """What depends on no array: read_alignment, and scale (unless it is None) and softcap as finite numbers."""
    a.softcap = as_float(softcap, op, "softcap")
    if not isfinite(a.softcap) or a.softcap < 0:
        raise ValueError(f"{op}: softcap must be a finite number of at least 0 (0: none), got {a.softcap}")
    if scale is not None:
        a.scale = finite(scale, op, "scale")
    return read_alignment(a, causal, window, placed, op)


cdef int head_axis_of(object layout, str op, str name="layout") except -1:
    layout = plain_text(layout)
    if isinstance(layout, str):  # arrays compare element by element
        if layout == "bhld":
            return 1
        if layout == "blhd":
            return 2
    raise ValueError(f"{op}: {name} must be 'bhld' or 'blhd', got {shown(layout)}")


cdef bint acquire_per_head(Array *a, object value, int dtype, fa_index heads, str op, str name) except -1:
    """Holds an ndarray with one number for each query head, as float32 where the dtype is a 16-bit one; whether it was
    float32 then."""
    cdef int given = dtype_beside(value, dtype)
    array = acquire_contiguous(a, value, op, name, 1, given)
    if is_low(given):
        release(a)
        acquire_contiguous(a, cast(array, float32, op, name), op, name)
    if a.shape[0] != heads:
        raise wrong_shape(op, name, f"have shape ({heads},), one number for each head of q", f"shape {shape_of(a)}")
    return given != dtype


cdef object check_power(double number, int power, int dtype, str what, str op):
    if number > ldexp(1, power):
        raise ValueError(f"{op}: {what} must be at most 2**{power} for {NAMES[dtype]}, got {number}")


cdef bint ratio_exceeds(double a, double b, int power) noexcept:
    """Whether a / b > 2**power, of positive numbers, without a division: that would raise flags of the caller."""
    cdef int of_a, of_b
    cdef double x = frexp(a, &of_a), y = frexp(b, &of_b)
    return of_a - of_b > power or of_a - of_b == power and x > y


cdef object check_numbers(fa_attention_arguments *a, int dtype, bint own_scale, str op):
    """That scale, by default that of the head size, and softcap neither overflow nor lose digits in units of log2(e) in
    the type of the arithmetic."""
    cdef bint wide = real_dtype(dtype) == FA_F64
    cdef int largest_scale = 900 if wide else 100, largest_cap = 400 if wide else 40
    if own_scale:
        check_power(fabs(a.scale), largest_scale, dtype, "scale in magnitude", op)
    else:
        a.scale = fa_attention_scale(a.D)
    if a.softcap != 0:
        check_power(a.softcap, largest_cap, dtype, "softcap", op)
        if a.softcap < ldexp(1, -largest_cap):
            raise ValueError(f"{op}: softcap must be 0 or at least 2**-{largest_cap} for {NAMES[dtype]}, "
                             f"got {a.softcap}")
        if ratio_exceeds(fabs(a.scale), a.softcap, largest_scale):
            raise ValueError(f"{op}: scale / softcap must be at most 2**{largest_scale} in magnitude for "
                             f"{NAMES[dtype]}, got {a.scale} / {a.softcap}")


cdef object set_heads(AttentionInputs *x, fa_attention_arguments *a, object slopes, object sinks, str op):
    """alibi_slopes and sinks."""
    a.alibi_slopes = a.sinks = NULL
    if slopes is not None:
        x.wide_slopes = acquire_per_head(&x.slopes, slopes, x.q.dtype, a.H, op, "alibi_slopes")
        a.alibi_slopes = x.slopes.data
    if sinks is not None:
        x.wide_sinks = acquire_per_head(&x.sinks, sinks, x.q.dtype, a.H, op, "sinks")
        a.sinks = x.sinks.data


cdef object as_seed(object value, str op):
    """An integer that fits into 64 bits without a sign."""
    number = as_integer(value, op, "seed")
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{op}: seed must lie in 0..2**64 - 1, got {number}")
    return number


cdef tuple take_options(tuple options, fa_attention_arguments *a, str op):
    """What every form of attention has: mask, causal, scale, window, softcap, alibi_slopes, sinks, q_start,
    bias, dropout_p and seed, read before any array is held. Returns what set_options does the rest with."""
    mask, causal, scale, window, softcap, alibi_slopes, sinks, q_start, bias, dropout, seed = options
    mask, bias = as_optional(mask, op, "mask"), as_optional(bias, op, "bias")
    alibi_slopes, sinks = as_optional(alibi_slopes, op, "alibi_slopes"), as_optional(sinks, op, "sinks")
    q_start = as_optional(q_start, op, "q_start")
    a.dropout, a.seed = as_float(dropout, op, "dropout_p"), as_seed(seed, op)
    if not 0 <= a.dropout <= 1:
        raise ValueError(f"{op}: dropout_p must lie in 0..1, got {a.dropout}")
    square = read_options(a, causal, window, scale, softcap, q_start is not None, op)
    return mask, bias, alibi_slopes, sinks, q_start, scale is not None, square


cdef bint needs_square(tuple taken) noexcept:
    """Whether causal is True."""
    return taken[6] is True


cdef object set_options(tuple taken, AttentionInputs *x, fa_attention_arguments *a, str op):
    """Options as far as they depend on the sizes and the dtype. The caller keeps the result alive as long as `a`."""
    cdef object positions = None
    mask, bias, alibi_slopes, sinks, q_start, has_scale, _ = taken
    if q_start is not None:
        positions = as_positions(q_start, a.B, op)
    a.q_positions = index_pointer(positions)
    check_numbers(a, x.q.dtype, has_scale, op)
    set_heads(x, a, alibi_slopes, sinks, op)
    acquire_masks(x, mask, bias, a, op)
    return positions


cdef tuple acquire_inputs(AttentionInputs *x, fa_attention_arguments *a, int head_axis, object q, object k, object v,
                          tuple options, object q_lengths, object kv_lengths, str op):
    """Checks and holds what every form of attention takes, and fills in `a` but for its outputs. The caller keeps the
    result alive as long as `a`, and calls release_inputs in any case."""
    cdef tuple taken
    hold_nothing(x)
    q, k, v = as_ndarray(q, op, "q"), as_ndarray(k, op, "k"), as_ndarray(v, op, "v")
    q_lengths, kv_lengths = as_optional(q_lengths, op, "q_lengths"), as_optional(kv_lengths, op, "kv_lengths")
    taken = take_options(options, a, op)
    acquire(&x.q, q, op, "q", 4, ALL_TYPES)
    acquire_read(&x.k, k, op, "k", 4, x.q.dtype)
    acquire_read(&x.v, v, op, "v", 4, x.q.dtype)
    a.B, a.H, a.Lq, a.D = x.q.shape[0], x.q.shape[head_axis], x.q.shape[3 - head_axis], x.q.shape[3]
    a.Hk, a.Lk, a.Dv = x.k.shape[head_axis], x.k.shape[3 - head_axis], x.v.shape[3]
    if x.k.shape[0] != a.B or x.k.shape[3] != a.D:
        raise wrong_shape(op, "k", f"have the batch {a.B} and head size {a.D} of q", f"shape {shape_of(&x.k)}")
    if x.v.shape[0] != a.B or x.v.shape[head_axis] != a.Hk or x.v.shape[3 - head_axis] != a.Lk:
        raise wrong_shape(op, "v", f"have the batch, heads and length of k, {shape_of(&x.k)[:3]}",
                          f"shape {shape_of(&x.v)}")
    if a.Hk == 0 and a.H != 0 or a.Hk != 0 and a.H % a.Hk:
        raise wrong_shape(op, "k", f"have a number of heads that divides the {a.H} of q", f"{a.Hk}")
    set_strides(&x.q, a.q_stride, head_axis)
    set_strides(&x.k, a.k_stride, head_axis)
    set_strides(&x.v, a.v_stride, head_axis)
    a.q, a.k, a.v = x.q.data, x.k.data, x.v.data

    if needs_square(taken):
        check_square(a, op)
    positions = set_options(taken, x, a, op)
    a.q_starts = a.k_starts = NULL
    a.lse_stride = a.Lq
    a.q_lengths = a.k_lengths = NULL
    if q_lengths is not None:
        q_lengths = as_lengths(q_lengths, a.B, a.Lq, op, "q_lengths")
        a.q_lengths = index_pointer(q_lengths)
    if kv_lengths is not None:
        kv_lengths = as_lengths(kv_lengths, a.B, a.Lk, op, "kv_lengths")
        a.k_lengths = index_pointer(kv_lengths)
    a.strategy = FA_ATTENTION_BLAS if by_blas(FA_SETTING_ATTENTION) else FA_ATTENTION_FUSED
    return q_lengths, kv_lengths, positions


cdef object check_keys(const fa_attention_arguments *a, const Array *out, const Array *lse, str op):
    """Keys of no columns take no memory, but each is a score: there may be more than a call ever reads."""
    if a.D == 0 and a.Lk > MOST_EMPTY_KEYS and not (is_empty(out) and is_empty(lse)):
        raise ValueError(f"{op}: k must have at most {MOST_EMPTY_KEYS} keys of no columns, got {a.Lk}")


cdef object attention_out(Array *a, object out, int ndim, const Py_ssize_t *shape, AttentionInputs *x, str op):
    """`out`, or a fresh array where C cannot write to it before all is read. Held."""
    if out is not None and acquire_sized(a, out, ndim, shape, &x.q, op, "out") and not (
        overlap(a, &x.q) or overlap(a, &x.k) or overlap(a, &x.v) or x.mask.held and overlap(a, &x.mask)
        or x.bias.held and overlap(a, &x.bias)
        or x.slopes.held and overlap(a, &x.slopes) or x.sinks.held and overlap(a, &x.sinks)
    ):
        return out
    release(a)
    return new_like(a, shape_from(ndim, shape), &x.q, op)


def attention(object q, object k, object v, tuple options, object q_lengths, object kv_lengths, object layout,
              object out, object return_lse, bint return_state, str op="attention"):
    """out; with return_lse (out, lse); with return_state (out, lse, state). options: as take_options has them."""
    cdef AttentionInputs x
    cdef Array ao, al, state
    cdef fa_attention_arguments a
    cdef Py_ssize_t shape[4]
    cdef fa_status status
    cdef int head_axis = head_axis_of(layout, op)
    cdef object kept, result, lse = None, saved = None
    cdef bint wants_lse = as_flag(return_lse, op, "return_lse") or return_state
    ao.held = al.held = state.held = False
    try:
        kept = acquire_inputs(&x, &a, head_axis, q, k, v, options, q_lengths, kv_lengths, op)
        shape[0], shape[head_axis], shape[3 - head_axis], shape[3] = a.B, a.H, a.Lq, a.Dv
        result = attention_out(&ao, out, 4, shape, &x, op)
        set_strides(&ao, a.out_stride, head_axis)
        a.out = ao.data
        a.lse = a.shift = a.sum = NULL
        if wants_lse:
            lse = new_out(&al, (a.B, a.H, a.Lq), real_dtype(x.q.dtype), op)
            a.lse = al.data
        if return_state:
            saved = new_out(&state, (2, a.B, a.H, a.Lq), real_dtype(x.q.dtype), op)
            a.shift, a.sum = state.data, state.data + state.stride[0] * state.view.itemsize
        check_keys(&a, &ao, &al, op)
        with nogil:
            status = fa_attention_forward(<fa_dtype>x.q.dtype, &a)
        raise_status(status, op)
    finally:
        release_inputs(&x)
        release(&ao)
        release(&al)
        release(&state)
    result = copy_to(out, result)
    if lse is not None and head_axis == 2:
        lse = lse.swapaxes(1, 2)
    if return_state:
        return result, lse, saved
    return (result, lse) if return_lse else result

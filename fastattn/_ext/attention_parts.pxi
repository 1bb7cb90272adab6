# Probabilities of attention on demand, and one result of two over different keys.

cdef object as_selector(object value, str op, str name):
    """None, a slice of integers, or an array: what no method of the caller's is part of."""
    if value is None:
        return None
    if type(value) is not slice:
        array = as_ndarray(value, op, name)
        return array.astype(np.int64) if array.size == 0 and array.dtype == float64 else array
    parts = (value.start, value.stop, value.step)
    return slice(*[None if part is None else as_integer(part, op, name, "be a slice of integers") for part in parts])


cdef object as_selection(object value, fa_index size, str op, str name):
    """int64 indices [n] in 0..size - 1 of a selector; None: all."""
    try:
        selected = np.arange(size) if value is None else np.arange(size)[value]
    except MemoryError:
        raise MemoryError(f"{op}: no memory for the indices that {name} selects") from None
    except Exception as error:
        raise ValueError(f"{op}: {name} must be None, a slice or integers in 0..{size - 1}, got {shown(value)} "
                         f"({error})") from None
    if selected.ndim != 1:
        raise ValueError(f"{op}: {name} must be None, a slice or integers of one axis, got {shown(value)}")
    return np.ascontiguousarray(selected, dtype=np.int64)


cdef tuple widened_options(tuple options, str op):
    """Options of attention, checked already, with float32 arrays."""
    mask, causal, scale, window, softcap, slopes, sinks, q_start, bias, dropout, seed = options
    mask, bias = as_optional(mask, op, "mask"), as_optional(bias, op, "bias")
    slopes, sinks = as_optional(slopes, op, "alibi_slopes"), as_optional(sinks, op, "sinks")
    return (widened_array(mask, op, "mask"), causal, scale, window, softcap,
            widened_array(slopes, op, "alibi_slopes"), widened_array(sinks, op, "sinks"), q_start,
            widened_array(bias, op, "bias"), dropout, seed)


def attention_weights(object q, object k, object lse, object heads, object rows, tuple options, object q_lengths,
                      object kv_lengths, object layout):
    cdef AttentionInputs x
    cdef Array al, aw
    cdef fa_attention_weights_arguments w
    cdef fa_attention_arguments *a = &w.attention
    cdef fa_status status
    cdef str op = "attention_weights"
    cdef int head_axis = head_axis_of(layout, op)
    cdef object kept, result, low = None
    al.held = aw.held = False
    q, k, lse = as_ndarray(q, op, "q"), as_ndarray(k, op, "k"), as_ndarray(lse, op, "lse")
    heads, rows = as_selector(heads, op, "heads"), as_selector(rows, op, "rows")
    try:
        # The values are not read: k stands in for them.
        kept = acquire_inputs(&x, a, head_axis, q, k, k, options, q_lengths, kv_lengths, op)
        if is_low(x.q.dtype):
            low = dtype_of(&x.q)
            release_inputs(&x)
            q, k = widened_array(q, op, "q"), widened_array(k, op, "k")
            kept = acquire_inputs(&x, a, head_axis, q, k, k, widened_options(options, op), q_lengths, kv_lengths, op)
        expected = (a.B, a.H, a.Lq) if head_axis == 1 else (a.B, a.Lq, a.H)
        acquire_rows(&al, lse, expected, head_axis, x.q.dtype, op, "lse")
        heads = as_selection(heads, a.H, op, "heads")
        rows = as_selection(rows, a.Lq, op, "rows")
        w.n_heads, w.n_rows = heads.shape[0], rows.shape[0]
        w.heads = <const fa_index *><uintptr_t>heads.ctypes.data
        w.rows = <const fa_index *><uintptr_t>rows.ctypes.data
        w.lse = al.data
        shape = (a.B, w.n_heads, w.n_rows, a.Lk) if head_axis == 1 else (a.B, w.n_rows, w.n_heads, a.Lk)
        result = new_like(&aw, shape, &x.q, op)
        set_strides(&aw, w.stride, head_axis)
        w.weights = aw.data
        a.out = a.lse = a.shift = a.sum = NULL
        with nogil:
            status = fa_attention_weights(<fa_dtype>x.q.dtype, &w)
        raise_status(status, op)
    finally:
        release_inputs(&x)
        release(&al)
        release(&aw)
    return rounded(result, low, op)


def merge_attention(object out_a, object lse_a, object out_b, object lse_b):
    cdef Array xa, la, xb, lb, ao, al
    cdef fa_status status
    cdef fa_index rows, n
    cdef str op = "merge_attention"
    cdef object out, lse, low = None
    xa.held = la.held = xb.held = lb.held = ao.held = al.held = False
    out_a, lse_a = as_ndarray(out_a, op, "out_a"), as_ndarray(lse_a, op, "lse_a")
    out_b, lse_b = as_ndarray(out_b, op, "out_b"), as_ndarray(lse_b, op, "lse_b")
    try:
        acquire_contiguous(&xa, out_a, op, "out_a", -1, ALL_TYPES)
        acquire_contiguous(&la, lse_a, op, "lse_a", -1, real_dtype(xa.dtype))
        acquire_contiguous(&xb, out_b, op, "out_b", -1, xa.dtype)
        acquire_contiguous(&lb, lse_b, op, "lse_b", -1, real_dtype(xa.dtype))
        shape = shape_of(&xa)
        if not shape:
            raise wrong_shape(op, "out_a", "have an axis at least", "shape ()")
        of_rows, n = shape[:len(shape) - 1], shape[len(shape) - 1]
        if shape_of(&xb) != shape:
            raise wrong_shape(op, "out_b", f"have the shape {shape} of out_a", f"shape {shape_of(&xb)}")
        for name, got in (("lse_a", shape_of(&la)), ("lse_b", shape_of(&lb))):
            if got != of_rows:
                raise wrong_shape(op, name, f"have shape {of_rows}, that of out_a without its last axis",
                                  f"shape {got}")
        if is_low(xa.dtype):
            low = dtype_of(&xa)
            release(&xa)
            release(&xb)
            acquire_contiguous(&xa, widened_array(out_a, op, "out_a"), op, "out_a")
            acquire_contiguous(&xb, widened_array(out_b, op, "out_b"), op, "out_b")
        out, lse = new_like(&ao, shape, &xa, op), new_like(&al, of_rows, &xa, op)
        rows = count(&la)
        with nogil:
            status = fa_attention_merge(<fa_dtype>xa.dtype, ao.data, al.data, xa.data, la.data, xb.data, lb.data, rows,
                                        n)
        raise_status(status, op)
    finally:
        release(&xa)
        release(&la)
        release(&xb)
        release(&lb)
        release(&ao)
        release(&al)
    return rounded(out, low, op), lse

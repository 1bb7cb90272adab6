# Attention of few queries to what a KVCache holds, in pages or as bytes.

CACHE_QUERIES = FA_CACHE_QUERIES        # the most queries of cache_attention
CACHE_LONGEST_I8 = FA_CACHE_LONGEST_I8  # the largest head_dim of an int8 cache


cdef object acquire_kept(Array *a, object array, int dtype, bint is_bytes, str op, str name):
    """Holds keys or values as they are kept, [rows, heads, tokens, width]."""
    if not is_bytes:
        return acquire(a, array, op, name, 4, dtype)
    PyObject_GetBuffer(array, &a.view, PyBUF_STRIDES)
    a.held = True
    fill(a)
    return array


cdef const float *scale_pointer(object scales) except? NULL:
    """The elements of contiguous float32 scales, which the caller keeps alive."""
    return <const float *><uintptr_t>scales.ctypes.data


cdef object check_pages(const fa_cache_arguments *c, fa_index pages, str op):
    """The pages in use lie in the pool."""
    cdef fa_index b, n
    for b in range(c.attention.B):
        for n in range((c.attention.k_lengths[b] + c.page_keys - 1) // c.page_keys):
            if c.table[b * c.table_stride + n] < 0 or c.table[b * c.table_stride + n] >= pages:
                raise ValueError(f"{op}: pages must lie in 0..{pages - 1}, got {c.table[b * c.table_stride + n]} for "
                                 f"sequence {b}")


def cache_attention(object q, object keys, object values, object key_scales, object value_scales, object table,
                    object lengths, object mask, object causal, object scale, object window, object softcap,
                    object alibi_slopes, object sinks, object q_lengths, object out, bint return_lse):
    """out, or (out, lse), for at most CACHE_QUERIES queries. keys, values [rows, kv_heads, tokens, width] and float32
    scales [rows, kv_heads, tokens] (or None) are a KVCache's own, contiguous, and so are the lengths [batch], int64;
    rows are sequences, or with a table[batch, n] of int64 pages."""
    cdef AttentionInputs x
    cdef Array ao, al
    cdef fa_cache_arguments c
    cdef fa_attention_arguments *a = &c.attention
    cdef Py_ssize_t full[4]
    cdef Py_ssize_t shape[4]
    cdef fa_status status
    cdef str op = "attend"
    cdef bint is_bytes = key_scales is not None
    cdef object result, lse = None
    x.q.held = x.k.held = x.v.held = x.mask.held = x.slopes.held = x.sinks.held = ao.held = al.held = False
    try:
        acquire(&x.q, q, op, "q", 4, ALL_TYPES)
        acquire_kept(&x.k, keys, x.q.dtype, is_bytes, op, "keys")
        acquire_kept(&x.v, values, x.q.dtype, is_bytes, op, "values")
        a.B, a.H, a.Lq, a.D = x.q.shape[0], x.q.shape[1], x.q.shape[2], x.q.shape[3]
        a.Hk, a.Lk, a.Dv = x.k.shape[1], lengths.max(initial=0), x.v.shape[3]
        if a.Hk == 0 and a.H != 0 or a.Hk != 0 and a.H % a.Hk:
            raise wrong_shape(op, "q", f"have a multiple of the {a.Hk} heads of the cache", f"{a.H}")
        set_strides(&x.q, a.q_stride, 1)
        set_strides(&x.k, a.k_stride, 1)
        set_strides(&x.v, a.v_stride, 1)
        a.q, a.k, a.v = x.q.data, x.k.data, x.v.data
        a.q_starts = a.k_starts = a.q_lengths = NULL
        a.k_lengths = index_pointer(lengths)
        a.lse_stride = a.Lq
        a.strategy = FA_ATTENTION_FUSED
        set_alignment(a, causal, window, op)
        set_numbers(a, scale, softcap, op)
        set_heads(&x, a, alibi_slopes, sinks, op)
        full[0], full[1], full[2], full[3] = a.B, a.H, a.Lq, a.Lk
        acquire_mask(&x.mask, mask, x.q.dtype, full, a, op)
        if q_lengths is not None:
            q_lengths = as_lengths(q_lengths, a.B, a.Lq, op, "q_lengths")
            a.q_lengths = index_pointer(q_lengths)
        c.table = NULL
        c.table_stride = c.page_keys = 0
        c.k_scale = c.v_scale = NULL
        if table is not None:
            c.table = index_pointer(table)
            c.table_stride, c.page_keys = table.shape[1], x.k.shape[2]
            check_pages(&c, x.k.shape[0], op)
        if is_bytes:
            c.k_scale, c.v_scale = scale_pointer(key_scales), scale_pointer(value_scales)
            c.scale_stride[0], c.scale_stride[1] = x.k.shape[1] * x.k.shape[2], x.k.shape[2]
        shape[0], shape[1], shape[2], shape[3] = a.B, a.H, a.Lq, a.Dv
        result = attention_out(&ao, out, 4, shape, &x, mask, alibi_slopes, sinks, op)
        set_strides(&ao, a.out_stride, 1)
        a.out = ao.data
        a.lse = a.reference = a.sum = NULL
        if return_lse:
            lse = new_out(&al, (a.B, a.H, a.Lq), real_dtype(x.q.dtype), op)
            a.lse = al.data
        with nogil:
            status = fa_cache_attention(<fa_dtype>x.q.dtype, &c)
        raise_status(status, op)
    finally:
        release_inputs(&x)
        release(&ao)
        release(&al)
    result = copy_to(out, result)
    return (result, lse) if return_lse else result

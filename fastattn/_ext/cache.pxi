# Attention of few queries to the tokens of a KVCache, in pages or as bytes.

CACHE_QUERIES = FA_CACHE_QUERIES        # the most queries of cache_attention
CACHE_LONGEST_I8 = FA_CACHE_LONGEST_I8  # the largest head_dim of an int8 cache


cdef struct KeptArrays:
    Array key_scales, value_scales
    Array lengths, table
    fa_index *numbers  # copies of the lengths, and of the pages in use


cdef void release_kept(KeptArrays *x) noexcept:
    release(&x.key_scales)
    release(&x.value_scales)
    release(&x.lengths)
    release(&x.table)
    free(x.numbers)


cdef object acquire_bytes(Array *a, object array, str op, str name):
    """Holds contiguous int8 [rows, heads, tokens, width]."""
    if not (hold(a, array, PyBUF_STRIDES | PyBUF_FORMAT) and a.view.format[0] == b"b" and a.view.ndim == 4
            and fill(a) and is_contiguous(a)):
        raise TypeError(f"{op}: {name} of the cache must be a contiguous int8 array of 4 axes")


cdef object acquire_numbers(Array *a, object array, int ndim, str op, str name):
    """Holds contiguous int64."""
    if not (hold(a, array, PyBUF_STRIDES | PyBUF_FORMAT) and a.view.itemsize == sizeof(fa_index)
            and (a.view.format[0] == b"l" or a.view.format[0] == b"q") and a.view.ndim == ndim
            and fill(a) and is_contiguous(a)):
        raise TypeError(f"{op}: {name} of the cache must be a contiguous int64 array of {ndim} axes")


cdef object check_rows(const Array *a, const Array *keys, str op, str name):
    """Another part has the rows, heads and tokens of the keys."""
    if memcmp(a.shape, keys.shape, 3 * sizeof(Py_ssize_t)) != 0:
        raise wrong_shape(op, name, f"have the rows, heads and tokens of the cache's keys, {shape_of(keys)[:3]}",
                          f"shape {shape_of(a)}")


cdef object acquire_parts(AttentionInputs *x, KeptArrays *kept, object keys, object values, object key_scales,
                          object value_scales, str op):
    """Holds keys, values and their scales, [rows, heads, tokens, ...], which fit one another and q."""
    if key_scales is None:
        acquire(&x.k, keys, op, "keys", 4, x.q.dtype)
        acquire(&x.v, values, op, "values", 4, x.q.dtype)
    else:
        if x.q.dtype != FA_F32 or x.q.shape[3] > FA_CACHE_LONGEST_I8:
            raise TypeError(f"{op}: q must be float32, of at most {FA_CACHE_LONGEST_I8} columns, for a cache of int8")
        acquire_bytes(&x.k, keys, op, "keys")
        acquire_bytes(&x.v, values, op, "values")
        acquire_contiguous(&kept.key_scales, key_scales, op, "key_scales", 3, FA_F32)
        acquire_contiguous(&kept.value_scales, value_scales, op, "value_scales", 3, FA_F32)
        check_rows(&kept.key_scales, &x.k, op, "key_scales")
        check_rows(&kept.value_scales, &x.k, op, "value_scales")
    check_rows(&x.v, &x.k, op, "values")
    if x.k.shape[3] != x.q.shape[3]:
        raise wrong_shape(op, "q", f"have the head size {x.k.shape[3]} of the cache", f"shape {shape_of(&x.q)}")


cdef object wrong_length(str op, fa_index length, fa_index b, fa_index room):
    return ValueError(f"{op}: lengths of the cache must lie in 0..{room}, got {length} for sequence {b}")


cdef fa_index copy_lengths(KeptArrays *x, fa_index batch, fa_index room, str op) except -1:
    """Lengths in 0..room into `numbers`; the largest."""
    cdef const fa_index *length = <const fa_index *>x.lengths.data
    cdef fa_index b, longest = 0
    x.numbers = <fa_index *>malloc((batch + 1) * sizeof(fa_index))
    if x.numbers == NULL:
        raise MemoryError(f"{op}: no memory for its lengths")
    for b in range(batch):
        x.numbers[b] = length[b]
        if x.numbers[b] < 0 or x.numbers[b] > room:
            raise wrong_length(op, x.numbers[b], b, room)
        longest = max(longest, x.numbers[b])
    return longest


cdef object copy_table(KeptArrays *x, fa_cache_arguments *c, fa_index pages, str op):
    """The pages in use, which lie in 0..pages - 1, behind the lengths in `numbers`."""
    cdef const fa_index *page = <const fa_index *>x.table.data
    cdef fa_index batch = c.attention.B, b, n, used
    cdef fa_index *copied
    cdef fa_index *numbers
    c.table_stride = (c.attention.Lk + c.page_keys - 1) // c.page_keys
    numbers = <fa_index *>realloc(x.numbers, (batch * (1 + c.table_stride) + 1) * sizeof(fa_index))
    if numbers == NULL:
        raise MemoryError(f"{op}: no memory for its pages")
    x.numbers = numbers
    for b in range(batch):
        copied = numbers + batch + b * c.table_stride
        used = (numbers[b] + c.page_keys - 1) // c.page_keys
        for n in range(c.table_stride):
            copied[n] = page[b * x.table.shape[1] + n] if n < used else 0
            if copied[n] < 0 or (n < used and copied[n] >= pages):
                raise ValueError(f"{op}: pages must lie in 0..{pages - 1}, got {copied[n]} for sequence {b}")
    c.table = numbers + batch


cdef object set_places(fa_cache_arguments *c, AttentionInputs *x, KeptArrays *kept, object lengths, object table,
                       str op):
    """Lengths and pages, copied first and then checked against the room of keys, values and scales."""
    cdef fa_attention_arguments *a = &c.attention
    cdef fa_index rows = x.k.shape[0], tokens = x.k.shape[2], room = tokens
    c.table = NULL
    c.table_stride = c.page_keys = 0
    acquire_numbers(&kept.lengths, lengths, 1, op, "lengths")
    if kept.lengths.shape[0] != a.B or (table is None and rows != a.B):
        raise wrong_shape(op, "q", f"have the batch {kept.lengths.shape[0]} of the cache", f"{a.B}")
    if table is not None:
        acquire_numbers(&kept.table, table, 2, op, "table")
        if kept.table.shape[0] != a.B or tokens < 1:
            raise wrong_shape(op, "table", f"have the {a.B} sequences of the cache, and pages of at least one token",
                              f"shape {shape_of(&kept.table)} and pages of {tokens}")
        c.page_keys = tokens
        # No product may overflow. An empty pool has no pages, and so no room.
        room = tokens * min(<fa_index>kept.table.shape[1], rows)
    a.Lk = copy_lengths(kept, a.B, room, op)
    if table is not None:
        copy_table(kept, c, rows, op)
    a.k_lengths = kept.numbers


def cache_attention(object q, object keys, object values, object key_scales, object value_scales, object table,
                    object lengths, tuple options, object q_lengths, object out, object return_lse):
    """out, or (out, lse), for at most CACHE_QUERIES queries. keys, values [rows, kv_heads, tokens, width] and float32
    scales [rows, kv_heads, tokens] (or None) are a KVCache's own, and so are the lengths [batch], int64; rows are
    sequences, or with a table[batch, n] of int64 pages. All are checked against one another: nothing that another
    thread, or whoever changes what is private, does to them makes C read elsewhere."""
    cdef AttentionInputs x
    cdef KeptArrays kept
    cdef Array ao, al
    cdef fa_cache_arguments c
    cdef fa_attention_arguments *a = &c.attention
    cdef Py_ssize_t shape[4]
    cdef fa_status status
    cdef str op = "attend"
    cdef bint wants_lse = as_flag(return_lse, op, "return_lse")
    cdef tuple taken
    cdef object result, positions, lse = None
    hold_nothing(&x)
    ao.held = al.held = False
    kept.key_scales.held = kept.value_scales.held = kept.lengths.held = kept.table.held = False
    kept.numbers = NULL
    q, q_lengths = as_ndarray(q, op, "q"), as_optional(q_lengths, op, "q_lengths")
    keys, values = as_ndarray(keys, op, "keys"), as_ndarray(values, op, "values")
    key_scales = as_optional(key_scales, op, "key_scales")
    value_scales = as_optional(value_scales, op, "value_scales")
    lengths, table = as_ndarray(lengths, op, "lengths"), as_optional(table, op, "table")
    taken = take_options(options, a, op)
    try:
        acquire(&x.q, q, op, "q", 4, ALL_TYPES)
        acquire_parts(&x, &kept, keys, values, key_scales, value_scales, op)
        a.B, a.H, a.Lq, a.D = x.q.shape[0], x.q.shape[1], x.q.shape[2], x.q.shape[3]
        a.Hk, a.Dv = x.k.shape[1], x.v.shape[3]
        if a.Hk == 0 and a.H != 0 or a.Hk != 0 and a.H % a.Hk:
            raise wrong_shape(op, "q", f"have a multiple of the {a.Hk} heads of the cache", f"{a.H}")
        if a.Lq > FA_CACHE_QUERIES:
            raise wrong_shape(op, "q", f"have at most {FA_CACHE_QUERIES} queries", f"{a.Lq}")
        set_strides(&x.q, a.q_stride, 1)
        set_strides(&x.k, a.k_stride, 1)
        set_strides(&x.v, a.v_stride, 1)
        a.q, a.k, a.v = x.q.data, x.k.data, x.v.data
        a.q_starts = a.k_starts = a.q_lengths = NULL
        set_places(&c, &x, &kept, lengths, table, op)
        a.lse_stride = a.Lq
        a.strategy = FA_ATTENTION_FUSED
        if needs_square(taken):
            check_square(a, op)
        positions = set_options(taken, &x, a, op)
        if q_lengths is not None:
            q_lengths = as_lengths(q_lengths, a.B, a.Lq, op, "q_lengths")
            a.q_lengths = index_pointer(q_lengths)
        c.k_scale, c.v_scale = <const float *>data_of(&kept.key_scales), <const float *>data_of(&kept.value_scales)
        c.scale_stride[0], c.scale_stride[1] = x.k.shape[1] * x.k.shape[2], x.k.shape[2]
        shape[0], shape[1], shape[2], shape[3] = a.B, a.H, a.Lq, a.Dv
        result = attention_out(&ao, out, 4, shape, &x, op)
        set_strides(&ao, a.out_stride, 1)
        a.out = ao.data
        a.lse = a.shift = a.sum = NULL
        if wants_lse:
            lse = new_out(&al, (a.B, a.H, a.Lq), real_dtype(x.q.dtype), op)
            a.lse = al.data
        with nogil:
            status = fa_cache_attention(<fa_dtype>x.q.dtype, &c)
        raise_status(status, op)
    finally:
        release_inputs(&x)
        release_kept(&kept)
        release(&ao)
        release(&al)
    result = copy_to(out, result)
    return (result, lse) if wants_lse else result

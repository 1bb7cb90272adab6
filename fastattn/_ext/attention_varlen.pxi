# Attention over ragged batches: sequences of any lengths, one after another in arrays without padding.

cdef object as_offsets(object value, Py_ssize_t total, str op, str name):
    """int64 offsets [B + 1], contiguous: from 0 to `total`, never falling. A copy."""
    offsets = as_integers(value, op, name)
    if offsets.ndim != 1 or offsets.shape[0] == 0:
        raise wrong_shape(op, name, "have shape (sequences + 1,)", f"shape {offsets.shape}")
    if first_outside(index_pointer(offsets), offsets.shape[0], total) >= 0:
        raise wrong_shape(op, name, f"lie in 0..{total}", f"{offsets.min()}..{offsets.max()}")
    first, last = offsets.item(0), offsets.item(offsets.size - 1)
    if first != 0 or last != total:
        raise wrong_shape(op, name, f"begin with 0 and end with {total}, the rows there are", f"{first} and {last}")
    steps = np.diff(offsets)
    if (steps < 0).any():
        at = int((steps < 0).argmax())
        raise wrong_shape(op, name, "never fall", f"{offsets.item(at)} before {offsets.item(at + 1)}")
    return offsets


cdef tuple acquire_ragged(AttentionInputs *x, fa_attention_arguments *a, object q, object k, object v,
                          object cu_seqlens_q, object cu_seqlens_k, tuple options):
    """As acquire_inputs, for q[Tq, H, D], k[Tk, Hk, D], v[Tk, Hk, Dv]."""
    cdef str op = "attention_varlen"
    cdef tuple taken
    hold_nothing(x)
    q, k, v = as_ndarray(q, op, "q"), as_ndarray(k, op, "k"), as_ndarray(v, op, "v")
    cu_seqlens_q = as_ndarray(cu_seqlens_q, op, "cu_seqlens_q")
    cu_seqlens_k = as_ndarray(cu_seqlens_k, op, "cu_seqlens_k")
    taken = take_options(options, a, op)
    acquire(&x.q, q, op, "q", 3, ALL_TYPES)
    acquire_read(&x.k, k, op, "k", 3, x.q.dtype)
    acquire_read(&x.v, v, op, "v", 3, x.q.dtype)
    a.H, a.D, a.Hk, a.Dv = x.q.shape[1], x.q.shape[2], x.k.shape[1], x.v.shape[2]
    if x.k.shape[2] != a.D:
        raise wrong_shape(op, "k", f"have the head size {a.D} of q", f"shape {shape_of(&x.k)}")
    if x.v.shape[0] != x.k.shape[0] or x.v.shape[1] != a.Hk:
        raise wrong_shape(op, "v", f"have the rows and heads of k, {shape_of(&x.k)[:2]}", f"shape {shape_of(&x.v)}")
    if a.Hk == 0 and a.H != 0 or a.Hk != 0 and a.H % a.Hk:
        raise wrong_shape(op, "k", f"have a number of heads that divides the {a.H} of q", f"{a.Hk}")
    starts_q = as_offsets(cu_seqlens_q, x.q.shape[0], op, "cu_seqlens_q")
    starts_k = as_offsets(cu_seqlens_k, x.k.shape[0], op, "cu_seqlens_k")
    if starts_q.shape != starts_k.shape:
        raise wrong_shape(op, "cu_seqlens_k", f"have the shape {starts_q.shape} of cu_seqlens_q",
                          f"shape {starts_k.shape}")
    lengths_q, lengths_k = np.diff(starts_q), np.diff(starts_k)
    a.B = lengths_q.shape[0]
    a.Lq, a.Lk = lengths_q.max(initial=0), lengths_k.max(initial=0)
    a.q_starts, a.k_starts = index_pointer(starts_q), index_pointer(starts_k)
    a.q_lengths, a.k_lengths = index_pointer(lengths_q), index_pointer(lengths_k)
    a.lse_stride = x.q.shape[0]
    a.q_stride[:] = [0, x.q.stride[1], x.q.stride[0]]
    a.k_stride[:] = [0, x.k.stride[1], x.k.stride[0]]
    a.v_stride[:] = [0, x.v.stride[1], x.v.stride[0]]
    a.q, a.k, a.v = x.q.data, x.k.data, x.v.data
    if needs_square(taken) and not np.array_equal(starts_q, starts_k):
        raise ValueError(f"{op}: causal=True needs as many queries as keys in each sequence, got other cu_seqlens_k"
                         " than cu_seqlens_q; say causal='top-left' or causal='bottom-right', or where queries are by"
                         " q_start")
    positions = set_options(taken, x, a, op)
    a.strategy = FA_ATTENTION_BLAS if by_blas(FA_SETTING_ATTENTION) else FA_ATTENTION_FUSED
    return starts_q, starts_k, lengths_q, lengths_k, positions


def attention_varlen(object q, object k, object v, object cu_seqlens_q, object cu_seqlens_k, tuple options, object out,
                     object return_lse, bint return_state):
    """out; with return_lse (out, lse); with return_state (out, lse, state)."""
    cdef AttentionInputs x
    cdef Array ao, al, state
    cdef fa_attention_arguments a
    cdef Py_ssize_t shape[3]
    cdef fa_status status
    cdef str op = "attention_varlen"
    cdef object kept, result, lse = None, saved = None
    cdef bint wants_lse = as_flag(return_lse, op, "return_lse") or return_state
    ao.held = al.held = state.held = False
    try:
        kept = acquire_ragged(&x, &a, q, k, v, cu_seqlens_q, cu_seqlens_k, options)
        shape[0], shape[1], shape[2] = x.q.shape[0], a.H, a.Dv
        result = attention_out(&ao, out, 3, shape, &x, op)
        a.out_stride[:] = [0, ao.stride[1], ao.stride[0]]
        a.out = ao.data
        a.lse = a.shift = a.sum = NULL
        if wants_lse:
            lse = new_out(&al, (a.H, x.q.shape[0]), real_dtype(x.q.dtype), op)
            a.lse = al.data
        if return_state:
            saved = new_out(&state, (2, a.H, x.q.shape[0]), real_dtype(x.q.dtype), op)
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
    if return_state:
        return result, lse.T, saved
    return (result, lse.T) if return_lse else result

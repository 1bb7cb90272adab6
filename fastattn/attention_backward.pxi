# Gradients of blocked attention, of padded batches and of ragged ones.

cdef struct GradientArrays:
    Array out, dout, state, dq, dk, dv


cdef void release_gradients(GradientArrays *x) noexcept:
    release(&x.out)
    release(&x.dout)
    release(&x.state)
    release(&x.dq)
    release(&x.dk)
    release(&x.dv)


cdef object set_any_strides(Array *a, fa_index *stride, int head_axis):
    """As set_strides; head_axis 0: rows, heads and columns of a ragged batch."""
    if head_axis:
        set_strides(a, stride, head_axis)
    else:
        stride[0], stride[1], stride[2] = 0, a.stride[1], a.stride[0]


cdef tuple run_backward(AttentionInputs *x, fa_attention_backward_arguments *g, object dout, object out, object state,
                        tuple shape, tuple state_shape, int head_axis, str op):
    """dq, dk, dv of the inputs in `x` and `g.forward`, with outputs of `shape`."""
    cdef GradientArrays y
    cdef fa_attention_arguments *a = &g.forward
    cdef fa_status status
    cdef int ndim = len(shape)
    y.out.held = y.dout.held = y.state.held = y.dq.held = y.dk.held = y.dv.held = False
    try:
        if x.q.dtype != real_dtype(x.q.dtype):
            raise TypeError(f"{op}: saved must be of a float32 or float64 call, got {ALL_DTYPES[x.q.dtype]}; "
                            "pass .astype(np.float32) arrays to the forward call")
        acquire(&y.dout, dout, op, "dout", ndim, x.q.dtype)
        if shape_of(&y.dout) != shape:
            raise wrong_shape(op, "dout", f"have the shape {shape} of the output", f"shape {shape_of(&y.dout)}")
        acquire(&y.out, out, op, "saved.out", ndim, x.q.dtype)
        acquire_contiguous(&y.state, state, op, "saved.state", len(state_shape), real_dtype(x.q.dtype))
        if shape_of(&y.out) != shape or shape_of(&y.state) != state_shape:
            raise ValueError(f"{op}: saved must be what the forward call returned, got an output of shape "
                             f"{shape_of(&y.out)} for {shape}")
        a.out, g.dout = y.out.data, y.dout.data
        a.lse = NULL
        a.reference, a.sum = y.state.data, y.state.data + y.state.stride[0] * y.state.view.itemsize
        set_any_strides(&y.out, a.out_stride, head_axis)
        set_any_strides(&y.dout, g.dout_stride, head_axis)
        dq = new_out(&y.dq, shape_of(&x.q), x.q.dtype, op)
        dk = new_out(&y.dk, shape_of(&x.k), x.q.dtype, op)
        dv = new_out(&y.dv, shape_of(&x.v), x.q.dtype, op)
        set_any_strides(&y.dq, g.dq_stride, head_axis)
        set_any_strides(&y.dk, g.dk_stride, head_axis)
        set_any_strides(&y.dv, g.dv_stride, head_axis)
        g.dq, g.dk, g.dv = y.dq.data, y.dk.data, y.dv.data
        with nogil:
            status = fa_attention_backward(<fa_dtype>x.q.dtype, g)
        raise_status(status, op)
    finally:
        release_gradients(&y)
    return dq, dk, dv


def attention_backward(object dout, object q, object k, object v, object out, object state, object mask, object causal,
                       object scale, object window, object softcap, object alibi_slopes, object sinks,
                       object q_lengths, object kv_lengths, object layout):
    cdef AttentionInputs x
    cdef fa_attention_backward_arguments g
    cdef fa_attention_arguments *a = &g.forward
    cdef str op = "attention_backward"
    cdef int head_axis = head_axis_of(layout, op)
    cdef object kept
    try:
        kept = acquire_inputs(&x, a, head_axis, q, k, v, mask, causal, scale, window, softcap, alibi_slopes, sinks,
                              q_lengths, kv_lengths, op)
        shape = (a.B, a.H, a.Lq, a.Dv) if head_axis == 1 else (a.B, a.Lq, a.H, a.Dv)
        return run_backward(&x, &g, dout, out, state, shape, (2, a.B, a.H, a.Lq), head_axis, op)
    finally:
        release_inputs(&x)


def attention_varlen_backward(object dout, object q, object k, object v, object cu_seqlens_q, object cu_seqlens_k,
                              object out, object state, object mask, object causal, object scale, object window,
                              object softcap, object alibi_slopes, object sinks):
    cdef AttentionInputs x
    cdef fa_attention_backward_arguments g
    cdef fa_attention_arguments *a = &g.forward
    cdef str op = "attention_varlen_backward"
    cdef object kept
    try:
        kept = acquire_ragged(&x, a, q, k, v, cu_seqlens_q, cu_seqlens_k, mask, causal, scale, window, softcap,
                              alibi_slopes, sinks)
        rows = x.q.shape[0]
        return run_backward(&x, &g, dout, out, state, (rows, a.H, a.Dv), (2, a.H, rows), 0, op)
    finally:
        release_inputs(&x)

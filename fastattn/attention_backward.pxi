# Gradients of blocked attention.

def attention_backward(object dout, object q, object k, object v, object out, object state, object mask, object causal,
                       object scale, object window, object softcap, object alibi_slopes, object sinks,
                       object q_lengths, object kv_lengths, str layout):
    cdef AttentionInputs x
    cdef Array ao, ad, state_array, aq, ak, av
    cdef fa_attention_backward_arguments g
    cdef fa_attention_arguments *a = &g.forward
    cdef fa_status status
    cdef str op = "attention_backward"
    cdef int head_axis = head_axis_of(layout, op)
    cdef object kept, dq, dk, dv
    ao.held = ad.held = state_array.held = aq.held = ak.held = av.held = False
    try:
        kept = acquire_inputs(&x, a, head_axis, q, k, v, mask, causal, scale, window, softcap, alibi_slopes, sinks,
                              q_lengths, kv_lengths)
        if x.q.dtype != real_dtype(x.q.dtype):
            raise TypeError(f"{op}: saved must be of a float32 or float64 call, got {ALL_DTYPES[x.q.dtype]}; "
                            "pass .astype(np.float32) arrays to attention_forward")
        shape = (a.B, a.H, a.Lq, a.Dv) if head_axis == 1 else (a.B, a.Lq, a.H, a.Dv)
        acquire(&ad, dout, op, "dout", 4, x.q.dtype)
        if shape_of(&ad) != shape:
            raise wrong_shape(op, "dout", f"have the shape {shape} of the output", f"shape {shape_of(&ad)}")
        acquire(&ao, out, op, "saved.out", 4, x.q.dtype)
        acquire_contiguous(&state_array, state, op, "saved.state", 4, x.q.dtype)
        if shape_of(&ao) != shape or shape_of(&state_array) != (2, a.B, a.H, a.Lq):
            raise ValueError(f"{op}: saved must be what attention_forward returned, got an output of shape "
                             f"{shape_of(&ao)} for {shape}")
        a.out, g.dout = ao.data, ad.data
        a.lse = NULL
        a.reference, a.sum = state_array.data, state_array.data + state_array.stride[0] * state_array.view.itemsize
        set_strides(&ao, a.out_stride, head_axis)
        set_strides(&ad, g.dout_stride, head_axis)
        dq = new_out(&aq, shape_of(&x.q), x.q.dtype, op)
        dk = new_out(&ak, shape_of(&x.k), x.q.dtype, op)
        dv = new_out(&av, shape_of(&x.v), x.q.dtype, op)
        set_strides(&aq, g.dq_stride, head_axis)
        set_strides(&ak, g.dk_stride, head_axis)
        set_strides(&av, g.dv_stride, head_axis)
        g.dq, g.dk, g.dv = aq.data, ak.data, av.data
        with nogil:
            status = fa_attention_backward(<fa_dtype>x.q.dtype, &g)
        raise_status(status, op)
    finally:
        release_inputs(&x)
        release(&ao)
        release(&ad)
        release(&state_array)
        release(&aq)
        release(&ak)
        release(&av)
    return dq, dk, dv

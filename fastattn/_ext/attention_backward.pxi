# Gradients of blocked attention, of padded batches and of ragged ones.

cdef dict OPTION_GRADIENTS = {"mask": 0, "sinks": 6, "alibi_slopes": 5}  # places among the options of attention


cdef struct GradientArrays:
    Array out, dout, state, dq, dk, dv, dmask, dsinks, dslopes


cdef void release_gradients(GradientArrays *x) noexcept:
    release(&x.out)
    release(&x.dout)
    release(&x.state)
    release(&x.dq)
    release(&x.dk)
    release(&x.dv)
    release(&x.dmask)
    release(&x.dsinks)
    release(&x.dslopes)


cdef object set_any_strides(Array *a, fa_index *stride, int head_axis):
    """As set_strides; head_axis 0: rows, heads and columns of a ragged batch."""
    if head_axis:
        set_strides(a, stride, head_axis)
    else:
        stride[0], stride[1], stride[2] = 0, a.stride[1], a.stride[0]


cdef set as_gradients(object names, tuple given, str op):
    """The names in `gradients`, of options that are not None in `given`: mask, sinks, alibi_slopes."""
    cdef set wanted
    if isinstance(names, str):
        raise TypeError(f"{op}: gradients must be a sequence of names, got {shown(names)}; write ({shown(names)},)")
    try:
        wanted = {plain_text(name) for name in names}
    except Exception:  # whatever an iterator raises
        raise TypeError(f"{op}: gradients must be a sequence of names, got {shown(names)}") from None
    for name in wanted:
        if not isinstance(name, str) or name not in OPTION_GRADIENTS:
            raise ValueError(f"{op}: gradients must hold names of {tuple(OPTION_GRADIENTS)}, got {shown(name)}")
        if given[OPTION_GRADIENTS[name]] is None:
            raise ValueError(f"{op}: gradients must be of arguments that the forward call had, got "
                             f"{shown(name)}, which was None there")
    return wanted


cdef object new_mask_gradient(Array *a, fa_attention_backward_arguments *g, const Array *mask, int dtype,
                              str op):
    """dmask, in the real type."""
    cdef int axis
    cdef int missing = 4 - mask.ndim
    if g.forward.mask_kind == FA_MASK_BOOL:
        raise TypeError(f"{op}: gradients must be of numbers, got 'mask', which is bool")
    result = new_out(a, shape_of(mask), real_dtype(dtype), op)
    for axis in range(4):
        # 0 where the mask has one element for all, or for one. Its own stride may be 0 where it has many.
        g.dmask_stride[axis] = a.stride[axis - missing] if axis >= missing and mask.shape[axis - missing] != 1 else 0
    g.dmask, g.dmask_size = a.data, result.size
    return result


cdef object in_type(object array, const Array *like):
    """A gradient of the real type, rounded to the 16-bit one of `like`."""
    return array if array is None or real_dtype(like.dtype) == like.dtype else cast(array, dtype_of(like))


cdef tuple run_backward(AttentionInputs *x, fa_attention_backward_arguments *g, object dout, object out, object state,
                        set wanted, tuple shape, tuple state_shape, int head_axis, str op):
    """dq, dk, dv of the inputs in `x` and `g.forward`, with outputs of `shape`; dmask, dsinks, dalibi_slopes, or None
    where not `wanted`."""
    cdef GradientArrays y
    cdef fa_attention_arguments *a = &g.forward
    cdef fa_status status
    cdef int ndim = len(shape)
    cdef object dmask = None, dsinks = None, dslopes = None
    y.out.held = y.dout.held = y.state.held = y.dq.held = y.dk.held = y.dv.held = False
    y.dmask.held = y.dsinks.held = y.dslopes.held = False
    g.dmask = g.dsinks = g.dslopes = NULL
    try:
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
        a.shift, a.sum = y.state.data, y.state.data + y.state.stride[0] * y.state.view.itemsize
        set_any_strides(&y.out, a.out_stride, head_axis)
        set_any_strides(&y.dout, g.dout_stride, head_axis)
        dq = new_like(&y.dq, shape_of(&x.q), &x.q, op)
        dk = new_like(&y.dk, shape_of(&x.k), &x.q, op)
        dv = new_like(&y.dv, shape_of(&x.v), &x.q, op)
        set_any_strides(&y.dq, g.dq_stride, head_axis)
        set_any_strides(&y.dk, g.dk_stride, head_axis)
        set_any_strides(&y.dv, g.dv_stride, head_axis)
        g.dq, g.dk, g.dv = y.dq.data, y.dk.data, y.dv.data
        if "mask" in wanted:
            dmask = new_mask_gradient(&y.dmask, g, &x.mask, x.q.dtype, op)
        if "sinks" in wanted:
            dsinks = new_out(&y.dsinks, (a.H,), real_dtype(x.q.dtype), op)
            g.dsinks = y.dsinks.data
        if "alibi_slopes" in wanted:
            dslopes = new_out(&y.dslopes, (a.H,), real_dtype(x.q.dtype), op)
            g.dslopes = y.dslopes.data
        with nogil:
            status = fa_attention_backward(<fa_dtype>x.q.dtype, g)
        raise_status(status, op)
    finally:
        release_gradients(&y)
    return (dq, dk, dv, *[in_type(gradient, &x.q) for gradient in (dmask, dsinks, dslopes)])


def attention_backward(object dout, object q, object k, object v, object out, object state, tuple options,
                       object q_lengths, object kv_lengths, object layout, object gradients):
    """dq, dk, dv, dmask, dsinks, dalibi_slopes; the last three None where `gradients` does not name them."""
    cdef AttentionInputs x
    cdef fa_attention_backward_arguments g
    cdef fa_attention_arguments *a = &g.forward
    cdef str op = "attention_backward"
    cdef int head_axis = head_axis_of(layout, op, "saved.layout")
    cdef object kept
    cdef set wanted = as_gradients(gradients, options, op)
    dout, out = as_ndarray(dout, op, "dout"), as_ndarray(out, op, "saved.out")
    state = as_ndarray(state, op, "saved.state")
    try:
        try:
            kept = acquire_inputs(&x, a, head_axis, q, k, v, options, q_lengths, kv_lengths, op)
        except (TypeError, ValueError, MemoryError) as error:
            raise of_saved(error, op) from None
        shape = (a.B, a.H, a.Lq, a.Dv) if head_axis == 1 else (a.B, a.Lq, a.H, a.Dv)
        return run_backward(&x, &g, dout, out, state, wanted, shape, (2, a.B, a.H, a.Lq), head_axis, op)
    finally:
        release_inputs(&x)


def attention_varlen_backward(object dout, object q, object k, object v, object cu_seqlens_q, object cu_seqlens_k,
                              object out, object state, tuple options, object gradients):
    """As attention_backward."""
    cdef AttentionInputs x
    cdef fa_attention_backward_arguments g
    cdef fa_attention_arguments *a = &g.forward
    cdef str op = "attention_varlen_backward"
    cdef object kept
    cdef set wanted = as_gradients(gradients, options, op)
    dout, out = as_ndarray(dout, op, "dout"), as_ndarray(out, op, "saved.out")
    state = as_ndarray(state, op, "saved.state")
    try:
        try:
            kept = acquire_ragged(&x, a, q, k, v, cu_seqlens_q, cu_seqlens_k, options)
        except (TypeError, ValueError, MemoryError) as error:
            raise of_saved(error, op) from None
        rows = x.q.shape[0]
        return run_backward(&x, &g, dout, out, state, wanted, (rows, a.H, a.Dv), (2, a.H, rows), 0, op)
    finally:
        release_inputs(&x)

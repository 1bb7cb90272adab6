# Gradients of blocked attention, of padded batches and of ragged ones.

# Places among the options of attention.
cdef dict OPTION_GRADIENTS = {"mask": 0, "sinks": 6, "alibi_slopes": 5, "bias": 8}


cdef struct GradientArrays:
    Array out, dout, dlse, state, dq, dk, dv, dmask, dsinks, dslopes


cdef void release_gradients(GradientArrays *x) noexcept:
    release(&x.out)
    release(&x.dout)
    release(&x.dlse)
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
    result = new_out(a, shape_of(mask), real_dtype(dtype), op)
    for axis in range(4):
        # 0 where the mask has one element for all, or for one. Its own stride may be 0 where it has many.
        g.dmask_stride[axis] = a.stride[axis - missing] if axis >= missing and mask.shape[axis - missing] != 1 else 0
    g.dmask, g.dmask_size = a.data, result.size
    return result


cdef tuple take_request(tuple request, tuple options, str op):
    """What a caller wants of a backward call: names of further gradients as a set, whether the keys are a part of all,
    the gradient of lse or None, the dtype of gradients or None; read before any array is held."""
    gradients, partial, dlse, dtype = request
    return (as_gradients(gradients, options, op), as_flag(partial, op, "partial"), as_optional(dlse, op, "dlse"),
            None if dtype is None else as_dtype(dtype, op, "gradient_dtype"))


cdef bint are_wide(object dtype, const Array *like, str op) except -1:
    """Whether gradients of a 16-bit `like` are float32."""
    own = dtype_of(like)
    if dtype is None or dtype == own:
        return False
    if dtype != DTYPES[real_dtype(like.dtype)]:
        expected = own if real_dtype(like.dtype) == like.dtype else f"{own} or float32"
        raise TypeError(f"{op}: gradient_dtype must be {expected} for inputs of {own}, got {dtype}")
    return True


cdef object acquire_rows(Array *a, object value, tuple shape, int head_axis, int dtype, str op, str name):
    """A number for each row of scores, laid out as the lse of a caller, as contiguous [batch, heads, rows]; those of a
    ragged batch, head_axis 0, as [heads, rows]."""
    acquire(a, value, op, name, <int>len(shape), dtype)
    if shape_of(a) != shape:
        raise wrong_shape(op, name, f"have shape {shape}", f"shape {shape_of(a)}")
    if head_axis != 1:
        release(a)
        value = value.swapaxes(-1, -2)
        acquire(a, value, op, name, <int>len(shape), dtype)
    if not is_contiguous(a):
        release(a)
        acquire_contiguous(a, value, op, name, <int>len(shape), dtype)


cdef object new_input_gradient(Array *a, const Array *of, bint wide, str op):
    """Of the shape of an input and its dtype, or float32."""
    return new_out(a, shape_of(of), FA_F32, op) if wide else new_like(a, shape_of(of), of, op)


cdef object in_type(object array, const Array *like, bint wide):
    """A gradient of the real type, rounded to the 16-bit one of `like` unless it is to be `wide`."""
    return array if array is None or wide or real_dtype(like.dtype) == like.dtype else cast(array, dtype_of(like))


cdef tuple run_backward(AttentionInputs *x, fa_attention_backward_arguments *g, object dout, object out, object state,
                        tuple taken, tuple shape, tuple state_shape, int head_axis, str op):
    """dq, dk, dv of the inputs in `x` and `g.forward`, with outputs of `shape`; dmask, dsinks, dalibi_slopes, or None
    where take_request has no name of theirs."""
    cdef GradientArrays y
    cdef fa_attention_arguments *a = &g.forward
    cdef fa_status status
    cdef int ndim = len(shape)
    cdef bint wide
    cdef object dmask = None, dsinks = None, dslopes = None
    wanted, partial, dlse, dtype = taken
    y.out.held = y.dout.held = y.dlse.held = y.state.held = y.dq.held = y.dk.held = y.dv.held = False
    y.dmask.held = y.dsinks.held = y.dslopes.held = False
    g.dmask = g.dsinks = g.dslopes = g.dlse = NULL
    g.partial = partial
    g.wide = wide = are_wide(dtype, &x.q, op)
    try:
        acquire(&y.dout, dout, op, "dout", ndim, x.q.dtype)
        if shape_of(&y.dout) != shape:
            raise wrong_shape(op, "dout", f"have the shape {shape} of the output", f"shape {shape_of(&y.dout)}")
        acquire(&y.out, out, op, "saved.out", ndim, x.q.dtype)
        acquire_contiguous(&y.state, state, op, "saved.state", len(state_shape), real_dtype(x.q.dtype))
        if shape_of(&y.out) != shape or shape_of(&y.state) != state_shape:
            raise ValueError(f"{op}: saved must be what the forward call returned, got an output of shape "
                             f"{shape_of(&y.out)} for {shape}")
        if dlse is not None:
            rows = (shape[0], shape[1], shape[2]) if head_axis else (shape[0], shape[1])
            acquire_rows(&y.dlse, dlse, rows, head_axis, real_dtype(x.q.dtype), op, "dlse")
            g.dlse = y.dlse.data
        a.out, g.dout = y.out.data, y.dout.data
        a.lse = NULL
        a.shift, a.sum = y.state.data, y.state.data + y.state.stride[0] * y.state.view.itemsize
        set_any_strides(&y.out, a.out_stride, head_axis)
        set_any_strides(&y.dout, g.dout_stride, head_axis)
        dq = new_input_gradient(&y.dq, &x.q, wide, op)
        dk = new_input_gradient(&y.dk, &x.k, wide, op)
        dv = new_input_gradient(&y.dv, &x.v, wide, op)
        set_any_strides(&y.dq, g.dq_stride, head_axis)
        set_any_strides(&y.dk, g.dk_stride, head_axis)
        set_any_strides(&y.dv, g.dv_stride, head_axis)
        g.dq, g.dk, g.dv = y.dq.data, y.dk.data, y.dv.data
        if "mask" in wanted and (a.mask_kind == FA_MASK_BOOL or a.keep != NULL):
            raise TypeError(f"{op}: gradients must be of numbers, got 'mask', which is bool")
        if "mask" in wanted or "bias" in wanted:
            dmask = new_mask_gradient(&y.dmask, g, &x.bias if x.bias.held else &x.mask, x.q.dtype, op)
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
    return (dq, dk, dv, in_type(dmask, &x.q, wide), in_type(dsinks, &x.q, wide or x.wide_sinks),
            in_type(dslopes, &x.q, wide or x.wide_slopes))


def attention_backward(object dout, object q, object k, object v, object out, object state, tuple options,
                       object q_lengths, object kv_lengths, object layout, tuple request):
    """dq, dk, dv, dmask, dsinks, dalibi_slopes; the last three None where they are not wanted. request: as
    take_request has it."""
    cdef AttentionInputs x
    cdef fa_attention_backward_arguments g
    cdef fa_attention_arguments *a = &g.forward
    cdef str op = "attention_backward"
    cdef int head_axis = head_axis_of(layout, op, "saved.layout")
    cdef object kept
    cdef tuple taken = take_request(request, options, op)
    dout, out = as_ndarray(dout, op, "dout"), as_ndarray(out, op, "saved.out")
    state = as_ndarray(state, op, "saved.state")
    try:
        try:
            kept = acquire_inputs(&x, a, head_axis, q, k, v, options, q_lengths, kv_lengths, op)
        except (TypeError, ValueError, MemoryError) as error:
            raise of_saved(error, op) from None
        shape = (a.B, a.H, a.Lq, a.Dv) if head_axis == 1 else (a.B, a.Lq, a.H, a.Dv)
        return run_backward(&x, &g, dout, out, state, taken, shape, (2, a.B, a.H, a.Lq), head_axis, op)
    finally:
        release_inputs(&x)


def attention_varlen_backward(object dout, object q, object k, object v, object cu_seqlens_q, object cu_seqlens_k,
                              object out, object state, tuple options, tuple request):
    """As attention_backward."""
    cdef AttentionInputs x
    cdef fa_attention_backward_arguments g
    cdef fa_attention_arguments *a = &g.forward
    cdef str op = "attention_varlen_backward"
    cdef object kept
    cdef tuple taken = take_request(request, options, op)
    dout, out = as_ndarray(dout, op, "dout"), as_ndarray(out, op, "saved.out")
    state = as_ndarray(state, op, "saved.state")
    try:
        try:
            kept = acquire_ragged(&x, a, q, k, v, cu_seqlens_q, cu_seqlens_k, options)
        except (TypeError, ValueError, MemoryError) as error:
            raise of_saved(error, op) from None
        rows = x.q.shape[0]
        return run_backward(&x, &g, dout, out, state, taken, (rows, a.H, a.Dv), (2, a.H, rows), 0, op)
    finally:
        release_inputs(&x)


def attention_state(object q, object k, object v, object out, object lse, tuple options, object q_lengths,
                    object kv_lengths, object layout):
    """The state[2, B, H, Lq] that backward needs, from the out and lse of an attention to these keys and perhaps
    others."""
    cdef AttentionInputs x
    cdef Array ao, al, state
    cdef fa_attention_arguments a
    cdef fa_status status
    cdef str op = "saved_attention"
    cdef int head_axis = head_axis_of(layout, op)
    cdef object kept, result
    ao.held = al.held = state.held = False
    out, lse = as_ndarray(out, op, "out"), as_ndarray(lse, op, "lse")
    try:
        kept = acquire_inputs(&x, &a, head_axis, q, k, v, options, q_lengths, kv_lengths, op)
        shape = (a.B, a.H, a.Lq) if head_axis == 1 else (a.B, a.Lq, a.H)
        acquire(&ao, out, op, "out", 4, x.q.dtype)
        if shape_of(&ao) != (*shape, a.Dv):
            raise wrong_shape(op, "out", f"have shape {(*shape, a.Dv)}", f"shape {shape_of(&ao)}")
        acquire_rows(&al, lse, shape, head_axis, real_dtype(x.q.dtype), op, "lse")
        result = new_out(&state, (2, a.B, a.H, a.Lq), real_dtype(x.q.dtype), op)
        with nogil:
            status = fa_attention_state(<fa_dtype>state.dtype, state.data,
                                        state.data + state.stride[0] * state.view.itemsize, al.data, count(&al))
        raise_status(status, op)
    finally:
        release_inputs(&x)
        release(&ao)
        release(&al)
        release(&state)
    return result

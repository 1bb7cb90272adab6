# Additive attention.

cdef struct AdditiveInputs:
    Array query, keys, values, v, mask


cdef void release_additive(AdditiveInputs *x) noexcept:
    release(&x.query)
    release(&x.keys)
    release(&x.values)
    release(&x.v)
    release(&x.mask)


cdef object set_two_strides(const Array *a, fa_index *stride):
    stride[0] = a.stride[0]
    stride[1] = a.stride[1]


cdef object acquire_additive_mask(Array *a, object mask, int dtype, fa_additive_arguments *arguments, str op):
    """Holds a mask, an ndarray; sets its kind, data and strides, 0 where it is broadcast. The last axis is copied
    unless it is contiguous and as long as the keys."""
    cdef object array = mask
    cdef tuple shape = (arguments.B, arguments.T, arguments.S)
    cdef bint is_bool = acquire_mask_buffer(a, array, dtype, "query", op)
    cdef int axis, missing = 3 - a.ndim
    for axis in range(max(0, missing), 3):
        if missing < 0 or a.shape[axis - missing] != shape[axis] and a.shape[axis - missing] != 1:
            raise wrong_shape(op, "mask", f"broadcast to {shape}", f"shape {array.shape}")
    if a.ndim == 0 or a.shape[a.ndim - 1] != arguments.S or a.stride[a.ndim - 1] != 1:
        array = np.broadcast_to(array, (*array.shape[:max(0, array.ndim - 1)], arguments.S))
        hold_copy(a, array, op, "mask")
        missing = 3 - a.ndim
    for axis in range(max(0, missing), 2):
        if a.shape[axis - missing] != 1:
            arguments.mask_stride[axis] = a.stride[axis - missing]
    arguments.mask_kind = FA_MASK_BOOL if is_bool else FA_MASK_ADD
    arguments.mask = a.data


cdef tuple acquire_additive(AdditiveInputs *x, fa_additive_arguments *a, object query, object keys, object values,
                            object v, object lengths, object mask, str op):
    """Checks and holds the inputs, those of 16 bits as float32 copies, and fills in `a` but for its outputs. Returns
    what the caller keeps alive as long as `a`, and the 16-bit dtype that results are rounded to, or None. The caller
    calls release_additive in any case."""
    cdef object low
    x.query.held = x.keys.held = x.values.held = x.v.held = x.mask.held = False
    query, keys = as_ndarray(query, op, "query"), as_ndarray(keys, op, "keys")
    values, v = as_ndarray(values, op, "values"), as_ndarray(v, op, "v")
    lengths, mask = as_optional(lengths, op, "lengths"), as_optional(mask, op, "mask")
    acquire(&x.query, query, op, "query", 3, ALL_TYPES)
    acquire_read(&x.keys, keys, op, "keys", 3, x.query.dtype)
    acquire_read(&x.values, values, op, "values", 3, x.query.dtype)
    acquire_contiguous(&x.v, v, op, "v", 1, x.query.dtype)
    a.B, a.T, a.A = x.query.shape[0], x.query.shape[1], x.query.shape[2]
    a.S, a.C = x.keys.shape[1], x.values.shape[2]
    if x.keys.shape[0] != a.B or x.keys.shape[2] != a.A:
        raise wrong_shape(op, "keys", f"have the batch {a.B} and size {a.A} of query", f"shape {shape_of(&x.keys)}")
    if x.values.shape[0] != a.B or x.values.shape[1] != a.S:
        raise wrong_shape(op, "values", f"have the batch and length of keys, {(a.B, a.S)}",
                          f"shape {shape_of(&x.values)}")
    if x.v.shape[0] != a.A:
        raise wrong_shape(op, "v", f"have shape ({a.A},), the last axis of query", f"shape {shape_of(&x.v)}")
    set_two_strides(&x.query, a.query_stride)
    set_two_strides(&x.keys, a.keys_stride)
    set_two_strides(&x.values, a.values_stride)
    a.query, a.keys, a.values, a.v = x.query.data, x.keys.data, x.values.data, x.v.data
    a.lengths = NULL
    if lengths is not None:
        lengths = as_lengths(lengths, a.B, a.S, op, "lengths")
        a.lengths = index_pointer(lengths)
    a.mask_kind = FA_MASK_NONE
    a.mask = NULL
    a.mask_stride[0] = a.mask_stride[1] = 0
    if mask is not None:
        acquire_additive_mask(&x.mask, mask, x.query.dtype, a, op)
    if is_low(x.query.dtype):
        low = dtype_of(&x.query)
        release_additive(x)
        query, keys = widened_array(query, op, "query"), widened_array(keys, op, "keys")
        values, v = widened_array(values, op, "values"), widened_array(v, op, "v")
        mask = widened_array(mask, op, "mask")
        return acquire_additive(x, a, query, keys, values, v, lengths, mask, op)[0], low
    return lengths, None


def additive_attention(object query, object keys, object values, object v, object lengths, object mask,
                       object return_weights, str op):
    """(context, weights); weights is None unless requested. Both have the dtype of query."""
    cdef AdditiveInputs x
    cdef Array ac, aw
    cdef fa_additive_arguments a
    cdef fa_status status
    cdef object kept, low, context, weights = None
    cdef bint wants_weights = as_flag(return_weights, op, "return_weights")
    ac.held = aw.held = False
    try:
        kept, low = acquire_additive(&x, &a, query, keys, values, v, lengths, mask, op)
        context = new_like(&ac, (a.B, a.T, a.C), &x.query, op)
        if wants_weights:
            weights = new_like(&aw, (a.B, a.T, a.S), &x.query, op)
        a.context, a.weights = ac.data, data_of(&aw)
        if not (is_empty(&ac) and is_empty(&aw)):
            with nogil:
                status = fa_additive_forward(<fa_dtype>x.query.dtype, &a)
            raise_status(status, op)
    finally:
        release_additive(&x)
        release(&ac)
        release(&aw)
    return rounded(context, low, op), rounded(weights, low, op)


def additive_attention_backward(object dcontext, object query, object keys, object values, object v, object lengths,
                                object weights):
    """(dquery, dkeys, dvalues, dv)."""
    cdef AdditiveInputs x
    cdef Array ag, aw, aq, ak, ax, av
    cdef fa_additive_gradients g
    cdef fa_additive_arguments *a = &g.forward
    cdef fa_status status
    cdef str op = "additive_attention_backward"
    cdef object kept, low, dquery, dkeys, dvalues, dv
    cdef int dtype
    ag.held = aw.held = aq.held = ak.held = ax.held = av.held = False
    dcontext, weights = as_ndarray(dcontext, op, "dcontext"), as_ndarray(weights, op, "saved.weights")
    try:
        try:
            kept, low = acquire_additive(&x, a, query, keys, values, v, lengths, None, op)
        except (TypeError, ValueError, MemoryError) as error:
            raise of_saved(error, op) from None
        dtype = x.query.dtype if low is None else type_of(low)
        acquire(&ag, dcontext, op, "dcontext", 3, dtype)
        if shape_of(&ag) != (a.B, a.T, a.C):
            raise wrong_shape(op, "dcontext", f"have the shape {(a.B, a.T, a.C)} of the context",
                              f"shape {shape_of(&ag)}")
        acquire_contiguous(&aw, weights, op, "saved.weights", 3, dtype)
        if shape_of(&aw) != (a.B, a.T, a.S):
            raise wrong_shape(op, "saved.weights", f"have shape {(a.B, a.T, a.S)}", f"shape {shape_of(&aw)}")
        if low is not None:
            release(&ag)
            release(&aw)
            acquire(&ag, widened_array(dcontext, op, "dcontext"), op, "dcontext", 3)
            acquire_contiguous(&aw, widened_array(weights, op, "saved.weights"), op, "saved.weights", 3)
        set_two_strides(&ag, g.dcontext_stride)
        g.dcontext, a.weights, a.context = ag.data, aw.data, NULL
        dquery = new_like(&aq, shape_of(&x.query), &x.query, op)
        dkeys = new_like(&ak, shape_of(&x.keys), &x.query, op)
        dvalues = new_like(&ax, shape_of(&x.values), &x.query, op)
        dv = new_like(&av, shape_of(&x.v), &x.query, op)
        g.dquery, g.dkeys, g.dvalues, g.dv = aq.data, ak.data, ax.data, av.data
        if not (is_empty(&aq) and is_empty(&ak) and is_empty(&ax) and is_empty(&av)):
            with nogil:
                status = fa_additive_backward(<fa_dtype>x.query.dtype, &g)
            raise_status(status, op)
    finally:
        release_additive(&x)
        release(&ag)
        release(&aw)
        release(&aq)
        release(&ak)
        release(&ax)
        release(&av)
    return rounded(dquery, low, op), rounded(dkeys, low, op), rounded(dvalues, low, op), rounded(dv, low, op)

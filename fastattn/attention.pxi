# Blocked attention.

cdef object set_strides(Array *a, fa_index *stride, int head_axis):
    """Strides of batch, head and row of a four-axis array whose heads are on `head_axis`."""
    stride[0] = a.stride[0]
    stride[1] = a.stride[head_axis]
    stride[2] = a.stride[3 - head_axis]


cdef object acquire_mask(Array *a, object mask, int dtype, const Py_ssize_t *full, fa_attention_arguments *arguments):
    """Holds a mask; sets its kind, data and strides, 0 where it is broadcast. Any layout is taken as it is: a mask may
    be large."""
    cdef str op = "attention"
    cdef object array = as_ndarray(mask, op, "mask")
    cdef Py_ssize_t item
    cdef int axis, missing
    kind = array.dtype.char
    a.held = False
    if kind != "?" and array.dtype != DTYPES[dtype]:
        raise TypeError(f"{op}: mask must be bool (True = attend) or {DTYPES[dtype]} like q (added), got {array.dtype}")
    item = array.itemsize
    if array.ctypes.data % item or any([stride % item for stride in array.strides]):
        array = array.copy()
    PyObject_GetBuffer(array, &a.view, PyBUF_STRIDES | PyBUF_FORMAT)
    a.held = True
    missing = 4 - a.view.ndim
    for axis in range(4):
        arguments.mask_stride[axis] = 0
        if axis < missing:
            continue
        if missing < 0 or (a.view.shape[axis - missing] != full[axis] and a.view.shape[axis - missing] != 1):
            raise wrong_shape(op, "mask", f"broadcast to {(full[0], full[1], full[2], full[3])}",
                              f"shape {array.shape}")
        if a.view.shape[axis - missing] != 1:
            arguments.mask_stride[axis] = a.view.strides[axis - missing] // item
    if missing < 0:
        raise wrong_shape(op, "mask", f"broadcast to {(full[0], full[1], full[2], full[3])}", f"shape {array.shape}")
    arguments.mask_kind = FA_MASK_BOOL if kind == "?" else FA_MASK_ADD
    arguments.mask = a.view.buf


cdef fa_index window_side(object side) except -2:
    if side is None:
        return FA_UNBOUNDED
    if isinstance(side, bool) or not hasattr(side, "__index__"):
        raise TypeError(f"attention: window must hold integers or None, got {side!r}")
    side = side.__index__()
    if side < 0:
        raise ValueError(f"attention: window must hold distances of at least 0, got {side}")
    # Beyond any length it bounds nothing, and sums with positions must not overflow.
    return min(side, 1 << 60)


cdef object set_alignment(fa_attention_arguments *a, object causal, object window):
    """left, right and bottom_right from causal and window."""
    a.left = a.right = FA_UNBOUNDED
    a.bottom_right = True
    if causal is False or causal is None:
        pass
    elif causal is True:
        if a.Lq != a.Lk:
            raise ValueError(f"attention: causal=True needs as many queries as keys, got {a.Lq} and {a.Lk}; "
                             "say causal='top-left' or causal='bottom-right'")
        a.right = 0
    elif isinstance(causal, str) and causal == "bottom-right":
        a.right = 0
    elif isinstance(causal, str) and causal == "top-left":
        a.right = 0
        a.bottom_right = False
    else:
        raise ValueError(f"attention: causal must be False, True, 'top-left' or 'bottom-right', got {causal!r}")
    if window is not None:
        try:
            left, right = window
        except (TypeError, ValueError):
            raise ValueError(f"attention: window must be a pair (left, right), got {window!r}") from None
        a.left = window_side(left)
        a.right = min(<fa_index>a.right, window_side(right))


def attention(object q, object k, object v, object mask, object causal, object scale, object window, object q_lengths,
              object kv_lengths, str layout, bint return_lse, object out):
    cdef Array aq, ak, av, ao, al, am
    cdef fa_attention_arguments a
    cdef fa_status status
    cdef str op = "attention"
    cdef int head_axis
    cdef Py_ssize_t full[4]
    cdef object result, lse = None
    aq.held = ak.held = av.held = ao.held = al.held = am.held = False
    if layout == "bhld":
        head_axis = 1
    elif layout == "blhd":
        head_axis = 2
    else:
        raise ValueError(f"{op}: layout must be 'bhld' or 'blhd', got {layout!r}")
    try:
        acquire(&aq, q, op, "q", 4)
        acquire(&ak, k, op, "k", 4, aq.dtype)
        acquire(&av, v, op, "v", 4, aq.dtype)
        a.B, a.H, a.Lq, a.D = aq.shape[0], aq.shape[head_axis], aq.shape[3 - head_axis], aq.shape[3]
        a.Hk, a.Lk, a.Dv = ak.shape[head_axis], ak.shape[3 - head_axis], av.shape[3]
        if ak.shape[0] != a.B or ak.shape[3] != a.D:
            raise wrong_shape(op, "k", f"have the batch {a.B} and head size {a.D} of q", f"shape {shape_of(&ak)}")
        if av.shape[0] != a.B or av.shape[head_axis] != a.Hk or av.shape[3 - head_axis] != a.Lk:
            raise wrong_shape(op, "v", f"have the batch, heads and length of k, {shape_of(&ak)[:3]}",
                              f"shape {shape_of(&av)}")
        if a.Hk == 0 and a.H != 0 or a.Hk != 0 and a.H % a.Hk:
            raise wrong_shape(op, "k", f"have a number of heads that divides the {a.H} of q", f"{a.Hk}")
        set_strides(&aq, a.q_stride, head_axis)
        set_strides(&ak, a.k_stride, head_axis)
        set_strides(&av, a.v_stride, head_axis)
        a.q, a.k, a.v = aq.data, ak.data, av.data

        set_alignment(&a, causal, window)
        if scale is None:
            a.scale = 1 / sqrt(<double>a.D) if a.D else 1.0
        else:
            a.scale = as_float(scale, op, "scale")
            if not isfinite(a.scale):
                raise ValueError(f"{op}: scale must be finite, got {a.scale}")
        full[0], full[1], full[2], full[3] = a.B, a.H, a.Lq, a.Lk
        a.mask_kind = FA_MASK_NONE
        a.mask = NULL
        if mask is not None:
            acquire_mask(&am, mask, aq.dtype, full, &a)
        a.q_lengths = a.k_lengths = NULL
        if q_lengths is not None:
            q_lengths = as_lengths(q_lengths, a.B, a.Lq, op, "q_lengths")
            a.q_lengths = index_pointer(q_lengths)
        if kv_lengths is not None:
            kv_lengths = as_lengths(kv_lengths, a.B, a.Lk, op, "kv_lengths")
            a.k_lengths = index_pointer(kv_lengths)
        a.strategy = FA_ATTENTION_BLAS if attention_strategy == 1 else FA_ATTENTION_FUSED

        shape = (a.B, a.H, a.Lq, a.Dv) if head_axis == 1 else (a.B, a.Lq, a.H, a.Dv)
        if out is not None and acquire_out(&ao, out, shape, aq.dtype, op) and not (
            overlap(&ao, &aq) or overlap(&ao, &ak) or overlap(&ao, &av)
        ):
            result = out
        else:
            release(&ao)
            result = new_out(&ao, shape, aq.dtype)
        set_strides(&ao, a.out_stride, head_axis)
        a.out = ao.data
        a.lse = a.reference = a.sum = NULL
        if return_lse:
            lse = new_out(&al, (a.B, a.H, a.Lq), aq.dtype)
            a.lse = al.data
        with nogil:
            status = fa_attention_forward(<fa_dtype>aq.dtype, &a)
        raise_status(status, op)
    finally:
        release(&aq)
        release(&ak)
        release(&av)
        release(&ao)
        release(&al)
        release(&am)
    result = copy_to(out, result)
    if not return_lse:
        return result
    return result, lse if head_axis == 1 else lse.swapaxes(1, 2)

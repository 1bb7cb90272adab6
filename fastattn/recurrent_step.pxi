# Recurrent networks: one step of a stream, where time from Python counts. Checks build no objects unless they fail.


cdef bint has_shape(const Array *a, int ndim, Py_ssize_t layers, Py_ssize_t batch, Py_ssize_t units) noexcept:
    """Whether the shape is [batch, units], or with 3 axes [layers, batch, units]; batch < 0: any."""
    return (a.shape[ndim - 1] == units and (batch < 0 or a.shape[ndim - 2] == batch)
            and (ndim == 2 or a.shape[0] == layers))


cdef object acquire_own(Array *a, object value, int ndim, Py_ssize_t batch, Py_ssize_t units, RecurrentWeights w,
                        str op, str name, bint writable):
    """Holds an array that C takes as it is: nothing is copied in a step. batch < 0: any."""
    cdef int kind, flags = PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE if writable else PyBUF_STRIDES | PyBUF_FORMAT
    if not isinstance(value, ndarray):
        raise wrong_type(op, name, value)
    if w.dtype_code == FA_BF16 and is_bfloat16(value.dtype):
        kind = FA_BF16 if hold(a, value.view(uint16), flags) else -1
    else:
        kind = format_dtype(a.view.format) if hold(a, value, flags) else -1
    if not a.held and writable and not value.flags.writeable:
        raise wrong_shape(op, name, "be writable", "a read-only array")
    if kind < 0:
        raise wrong_type(op, name, value, ALL_TYPES)
    if kind != w.dtype_code:
        raise TypeError(f"{op}: {name} must be {NAMES[w.dtype_code]} like the weights, got {value.dtype}")
    if (a.view.ndim != ndim or not fill(a) or not is_contiguous(a)
            or not has_shape(a, ndim, w.layers, batch, units)):
        shape = ", ".join(map(str, (w.layers, "batch" if batch < 0 else batch, units)[3 - ndim:]))
        raise wrong_shape(op, name, f"be aligned and C-contiguous with shape ({shape})", f"shape {value.shape}")


def recurrent_step(str op, RecurrentWeights w, str nonlinearity, double clip, object x, object h0, object c0,
                   object h_out, object c_out):
    """One step of x[B, I] from the states h0, c0 to h_out, c_out, all [layers, B, P or H] and C-contiguous; they may be
    the same arrays. Allocates nothing and takes no lock when there is little work. The output is h_out[-1]."""
    cdef Array ax, ah, ac, ah_out, ac_out
    cdef fa_recurrent_arguments lane[MOST_LANES]
    cdef fa_recurrent_arguments *a
    cdef fa_status status
    cdef Py_ssize_t i, B
    ax.held = ah.held = ac.held = ah_out.held = ac_out.held = False
    if w.directions != 1 or w.layers > MOST_LANES:
        raise ValueError(f"{op}: a step needs one direction and at most {MOST_LANES} layers, "
                         f"got {w.directions} and {w.layers}")
    try:
        acquire_own(&ax, x, 2, -1, w.input_size, w, op, "x", False)
        B = ax.shape[0]
        acquire_own(&ah, h0, 3, B, w.output_size, w, op, "h", False)
        acquire_own(&ah_out, h_out, 3, B, w.output_size, w, op, "out", True)
        if c0 is not None:
            acquire_own(&ac, c0, 3, B, w.hidden_size, w, op, "c", False)
            acquire_own(&ac_out, c_out, 3, B, w.hidden_size, w, op, "out", True)
        if (overlap(&ax, &ah_out) or (overlap(&ah, &ah_out) and not same_place(&ah, &ah_out))
                or ac.held and (overlap(&ax, &ac_out) or overlap(&ah, &ac_out) or overlap(&ac, &ah_out)
                                or overlap(&ah_out, &ac_out)
                                or overlap(&ac, &ac_out) and not same_place(&ac, &ac_out))):
            raise wrong_shape(op, "out", "be the state itself or overlap no other array", "arrays that overlap")
        for i in range(w.layers):
            a = &lane[i]
            set_lane(a, w, i, &ah, &ac, &ah_out, &ac_out)
            a.activation, a.clip = NONLINEARITIES[nonlinearity], clip
            a.dropped = a.saved = NULL
            a.T, a.B, a.lengths = 1, B, NULL
            a.x = ax.data if i == 0 else lane[i - 1].h_out
            a.x_stride[0] = 0
            a.x_stride[1] = w.input_size if i == 0 else w.output_size
            a.y = a.h_out
            a.y_stride[0], a.y_stride[1] = 0, w.output_size
        with nogil:
            status = fa_recurrent_forward(<fa_dtype>w.dtype_code, lane, w.layers, 1)
        raise_status(status, op)
    finally:
        release(&ax)
        release(&ah)
        release(&ac)
        release(&ah_out)
        release(&ac_out)

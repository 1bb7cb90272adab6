# Recurrent networks: one step of a stream, where time from Python counts. Checks build no objects unless they fail.


cdef bint has_shape(const Array *a, int ndim, Py_ssize_t layers, Py_ssize_t batch, Py_ssize_t units) noexcept:
    """Whether the shape is [batch, units], or with 3 axes [layers, batch, units]; batch < 0: any."""
    return (a.shape[ndim - 1] == units and (batch < 0 or a.shape[ndim - 2] == batch)
            and (ndim == 2 or a.shape[0] == layers))


cdef bint take(Array *a, object array, int ndim, Py_ssize_t batch, Py_ssize_t units, RecurrentWeights w, int dtype,
               int flags):
    """Holds an ndarray that C can take as it is; False, and nothing is held, when it cannot."""
    a.dtype = hold_floats(a, array, flags)
    if a.dtype < 0:
        return False
    if (a.dtype == dtype and a.view.ndim == ndim and fill(a) and is_contiguous(a)
            and has_shape(a, ndim, w.layers, batch, units)):
        return True
    release(a)
    return False


cdef object acquire_input(Array *a, object value, int ndim, Py_ssize_t batch, Py_ssize_t units, RecurrentWeights w,
                          int dtype, str op, str name):
    """Holds an input of this shape; batch < 0: any. What C cannot take as it is, is copied."""
    if type(value) is ndarray and take(a, value, ndim, batch, units, w, dtype, PyBUF_STRIDES | PyBUF_FORMAT):
        return
    acquire_contiguous(a, value, op, name, ndim, dtype)
    if not has_shape(a, ndim, w.layers, batch, units):
        raise wrong_shape(op, name, f"have shape ({sizes_of(ndim, w.layers, batch, units)})", f"shape {shape_of(a)}")


cdef object acquire_result(Array *a, object value, Py_ssize_t batch, Py_ssize_t units, RecurrentWeights w, int dtype,
                           str op):
    """Holds an array for a new state, an ndarray, which is written in place."""
    if take(a, value, 3, batch, units, w, dtype, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE):
        return
    if not value.flags.writeable:
        raise wrong_shape(op, "out", "be writable", "a read-only array")
    if type_of(value.dtype) != dtype:
        raise TypeError(f"{op}: out must be {NAMES[dtype]} like the state, got {value.dtype}")
    raise wrong_shape(op, "out", f"be aligned and C-contiguous with shape ({sizes_of(3, w.layers, batch, units)})",
                      f"shape {value.shape}")


cdef str sizes_of(int ndim, Py_ssize_t layers, Py_ssize_t batch, Py_ssize_t units):
    return ", ".join(map(str, (layers, "batch" if batch < 0 else batch, units)[3 - ndim:]))


def recurrent_step(str op, RecurrentWeights w, str nonlinearity, double clip, object x, object h0, object c0,
                   object h_out, object c_out):
    """One step of x[B, I] from the states h0, c0 to h_out, c_out, all [layers, B, P or H]; they may be the same arrays.
    Beside 16-bit arrays c0 and c_out may be float32. Copies nothing that is C-contiguous, and takes no lock when there
    is little work. The output is h_out[-1]. Does nothing and returns False where the instruction set in force is not
    that of the packed weights."""
    cdef Array ax, ah, ac, ah_out, ac_out
    cdef fa_recurrent_arguments lane[MOST_LANES]
    cdef fa_recurrent_arguments *a
    cdef fa_status status
    cdef Py_ssize_t i, B
    cdef str of_h = "state" if c0 is None else "state[0]"
    ax.held = ah.held = ac.held = ah_out.held = ac_out.held = False
    if w.lane[0].isa != fa_get_isa():
        return False
    if w.directions != 1 or w.layers > MOST_LANES:
        raise ValueError(f"{op}: a step needs one direction and at most {MOST_LANES} layers, "
                         f"got {w.directions} and {w.layers}")
    x, h0, c0 = as_ndarray(x, op, "x"), as_ndarray(h0, op, of_h), as_optional(c0, op, "state[1]")
    h_out = as_output(h_out, op, "out")
    if c0 is not None:
        c_out = as_output(c_out, op, "out")
    try:
        acquire_input(&ax, x, 2, -1, w.input_size, w, w.dtype_code, op, "x")
        B = ax.shape[0]
        acquire_input(&ah, h0, 3, B, w.output_size, w, w.dtype_code, op, of_h)
        acquire_result(&ah_out, h_out, B, w.output_size, w, w.dtype_code, op)
        if c0 is not None:
            acquire_input(&ac, c0, 3, B, w.hidden_size, w, cell_dtype(c0, w, op, "state[1]"), op, "state[1]")
            acquire_result(&ac_out, c_out, B, w.hidden_size, w, cell_dtype(c_out, w, op, "out"), op)
        if (overlap(&ax, &ah_out) or (overlap(&ah, &ah_out) and not same_place(&ah, &ah_out))
                or ac.held and (overlap(&ax, &ac_out) or overlap(&ah, &ac_out) or overlap(&ac, &ah_out)
                                or overlap(&ah_out, &ac_out)
                                or overlap(&ac, &ac_out) and not (same_place(&ac, &ac_out)
                                                                  and ac.dtype == ac_out.dtype))):
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
    return True

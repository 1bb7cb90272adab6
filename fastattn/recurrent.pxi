# One layer and direction of a recurrent network.

cdef dict CELLS = {"rnn": (FA_RNN, 1), "lstm": (FA_LSTM, 4), "gru": (FA_GRU, 3),
                   "gru_reset_before": (FA_GRU_RESET_BEFORE, 3)}
cdef dict NONLINEARITIES = {"tanh": FA_TANH, "relu": FA_RELU, "sigmoid": FA_SIGMOID}


cdef char *acquire_weight(Array *a, object value, tuple shape, int dtype, str op, str name) except? NULL:
    """Contiguous data of an optional weight, NULL for None; the shape is checked."""
    a.held = False
    if value is None:
        return NULL
    acquire_contiguous(a, value, op, name, len(shape), dtype)
    if shape_of(a) != shape:
        raise wrong_shape(op, name, f"have shape {shape}", f"shape {shape_of(a)}")
    return a.data


def recurrent_layer(str op, str cell, str nonlinearity, object x, object h0, object c0, dict weights, dict names,
                    object lengths, bint reverse, object y):
    """Runs x[T, B, I] through one layer in one direction into y[T, B, H], an array of ours with a contiguous last axis.

    `weights` holds weight_ih, weight_hh, bias_ih, bias_hh, peephole (the last three may be None); `names` are theirs in
    messages. lengths: int64 [B] from checked_lengths, or None. Returns (h, c); c is None but for lstm.
    """
    cdef Array ax, ay, ah, ac, w_ih, w_hh, b_ih, b_hh, peephole, h_out, c_out
    cdef fa_recurrent_arguments a
    cdef fa_status status
    cdef Py_ssize_t rows
    cdef object h, c = None
    ax.held = ay.held = ah.held = ac.held = w_ih.held = w_hh.held = b_ih.held = b_hh.held = peephole.held = False
    h_out.held = c_out.held = False
    try:
        acquire(&ax, x, op, "x", 3)
        PyObject_GetBuffer(y, &ay.view, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE)
        ay.held = True
        if not fill(&ay) or ay.ndim != 3:
            raise AssertionError("y must be an output array of fastattn's own")
        a.T, a.B, a.weights.I, a.weights.H = ax.shape[0], ax.shape[1], ax.shape[2], ay.shape[2]
        a.packed = NULL
        a.weights.cell, gates = CELLS[cell]
        rows = gates * a.weights.H
        a.activation = NONLINEARITIES[nonlinearity]
        for kind in ("weight_ih", "weight_hh"):
            if weights[kind] is None:
                raise wrong_type(op, names[kind], None)
        a.weights.w_ih = acquire_weight(&w_ih, weights["weight_ih"], (rows, a.weights.I), ax.dtype, op, names["weight_ih"])
        a.weights.w_hh = acquire_weight(&w_hh, weights["weight_hh"], (rows, a.weights.H), ax.dtype, op, names["weight_hh"])
        a.weights.b_ih = acquire_weight(&b_ih, weights["bias_ih"], (rows,), ax.dtype, op, names["bias_ih"])
        a.weights.b_hh = acquire_weight(&b_hh, weights["bias_hh"], (rows,), ax.dtype, op, names["bias_hh"])
        a.weights.peephole = acquire_weight(&peephole, weights["peephole"], (3, a.weights.H), ax.dtype, op, names["peephole"])
        a.h0 = acquire_weight(&ah, h0, (a.B, a.weights.H), ax.dtype, op, "h")
        a.c0 = acquire_weight(&ac, c0, (a.B, a.weights.H), ax.dtype, op, "c")
        h = new_out(&h_out, (a.B, a.weights.H), ax.dtype)
        if cell == "lstm":
            c = new_out(&c_out, (a.B, a.weights.H), ax.dtype)
        a.x, a.y, a.h_out, a.c_out = ax.data, ay.data, h_out.data, c_out.data if c is not None else NULL
        a.x_stride[0], a.x_stride[1] = ax.stride[0], ax.stride[1]
        a.y_stride[0], a.y_stride[1] = ay.stride[0], ay.stride[1]
        a.lengths = index_pointer(lengths)
        a.reverse = reverse
        with nogil:
            status = fa_recurrent_forward(<fa_dtype>ax.dtype, &a, 1, 1)
        raise_status(status, op)
    finally:
        release(&ax)
        release(&ay)
        release(&ah)
        release(&ac)
        release(&w_ih)
        release(&w_hh)
        release(&b_ih)
        release(&b_hh)
        release(&peephole)
        release(&h_out)
        release(&c_out)
    return h, c


def checked_lengths(object lengths, Py_ssize_t batch, Py_ssize_t longest, str op, str name):
    """int64 [batch] in 0..longest, contiguous; None for None."""
    return None if lengths is None else as_lengths(lengths, batch, longest, op, name)


def checked_floats(object value, str op, str name, int ndim):
    """value as an ndarray of float32 or float64 with ndim axes."""
    array = as_ndarray(value, op, name)
    if array.dtype not in DTYPES:
        raise wrong_type(op, name, array)
    if array.ndim != ndim:
        raise wrong_shape(op, name, f"have {ndim} axes", f"shape {array.shape}")
    return array

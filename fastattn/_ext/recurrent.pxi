# Recurrent networks: calls over sequences. recurrent_weights.pxi has their weights.

cdef dict NONLINEARITIES = {"tanh": FA_TANH, "relu": FA_RELU, "sigmoid": FA_SIGMOID}

cdef enum:
    MOST_LANES = 16  # layers times directions whose arguments lie on the stack


cdef int cell_dtype(object c, RecurrentWeights w, str op, str name) except -1:
    """fa_dtype of a state c that was given: that of the weights, or beside 16-bit ones float32."""
    if w.dtype_code < FA_BF16 or c is None:
        return w.dtype_code
    return FA_F32 if as_ndarray(c, op, name).dtype == float32 else w.dtype_code


cdef object set_lane(fa_recurrent_arguments *a, RecurrentWeights w, Py_ssize_t i, Array *h0, Array *c0, Array *h,
                     Array *c):
    """The weights and states of lane i, whose states are row i of those of the call."""
    cdef Py_ssize_t rows = i * h.shape[1], of_h = rows * w.output_size, of_c = rows * w.hidden_size
    a[0] = w.lane[i]
    a.h0 = h0.data + of_h * h0.view.itemsize if h0.held else NULL
    a.c0 = c0.data + of_c * c0.view.itemsize if c0.held else NULL
    a.h_out = h.data + of_h * h.view.itemsize
    a.c_out = c.data + of_c * c.view.itemsize if c.held else NULL
    a.c0_wide = c0.held and c0.dtype != w.dtype_code
    a.c_out_wide = c.held and c.dtype != w.dtype_code


cdef object acquire_own_output(Array *a, object value):
    """Holds an output array of ours of 3 axes, the last one contiguous."""
    hold_output(a, value)
    if not fill(a) or a.ndim != 3:
        raise AssertionError("y must be an output array of fastattn's own")


def recurrent(str op, RecurrentWeights w, options, object x, object h0, object c0, object lengths, list ys,
              list dropped=None, list saves=None, str of_h="state", str of_c="state[1]"):
    """Runs x[T, B, I] through all layers; ys are arrays of ours with a contiguous last axis, [T, B, directions *
    P], one for each layer. options: nonlinearity, clip and gate_clip (0: none), dropout, seed, reverse. lengths: int64
    [B] from checked_lengths, or None. c0 may be float32 beside 16-bit arrays; c is of its dtype. dropped: None, or for
    each layer but the last an array like its y for what dropout leaves of that. saves: None, or for each layer and
    direction an array from new_saved. of_h, of_c: what messages call h0 and c0. Returns (h, c); c is None but for
    lstm."""
    cdef Array ax, ay, ad, ah, ac, h_out, c_out
    cdef fa_recurrent_arguments few[MOST_LANES]
    cdef fa_recurrent_arguments *lane = few
    cdef fa_recurrent_arguments *a
    cdef fa_recurrent_arguments *below
    cdef fa_status status
    cdef Py_ssize_t i, lanes = w.layers * w.directions, at
    cdef int kind_of_c
    cdef fa_activation activation = NONLINEARITIES[options.nonlinearity]
    cdef double clip = options.clip, gate_clip = options.gate_clip, dropout = options.dropout
    cdef unsigned long long seed = options.seed
    cdef bint reverse = options.reverse
    cdef object h, c = None
    ax.held = ay.held = ad.held = ah.held = ac.held = h_out.held = c_out.held = False
    x, h0, c0 = as_ndarray(x, op, "x"), as_optional(h0, op, of_h), as_optional(c0, op, of_c)
    kind_of_c = cell_dtype(c0, w, op, of_c)
    check_places(w, op)
    if lanes > MOST_LANES:
        lane = <fa_recurrent_arguments *>calloc(lanes, sizeof(fa_recurrent_arguments))
        if lane == NULL:
            raise no_lanes(op, lanes)
    try:
        acquire(&ax, x, op, "x", 3, w.dtype_code)
        if ax.shape[2] != w.input_size:
            raise wrong_shape(op, "x", f"have a last axis of {w.input_size}, the columns of weight_ih",
                              f"shape {shape_of(&ax)}")
        acquire_optional(&ah, h0, (lanes, ax.shape[1], w.output_size), w.dtype_code, op, of_h)
        acquire_optional(&ac, c0, (lanes, ax.shape[1], w.hidden_size), kind_of_c, op, of_c)
        h = new_like(&h_out, (lanes, ax.shape[1], w.output_size), &ax, op)
        if w.has_cell:
            dtype = dtype_of(&ax) if kind_of_c == ax.dtype else float32
            c = new_held(&c_out, (lanes, ax.shape[1], w.hidden_size), dtype, kind_of_c, op)
        for i in range(lanes):
            a = &lane[i]
            set_lane(a, w, i, &ah, &ac, &h_out, &c_out)
            a.activation, a.clip, a.gate_clip = activation, clip, gate_clip
            a.T, a.B, a.lengths = ax.shape[0], ax.shape[1], index_pointer(lengths)
            if reverse:
                a.reverse = 1
            if i < w.directions:
                a.x, a.x_stride[0], a.x_stride[1] = ax.data, ax.stride[0], ax.stride[1]
            else:
                below = &lane[i // w.directions * w.directions - w.directions]
                a.x = below.y if below.dropped == NULL else below.dropped
                a.x_stride[0], a.x_stride[1] = below.y_stride[0], below.y_stride[1]
            if i % w.directions == 0:
                release(&ay)
                acquire_own_output(&ay, ys[i // w.directions])
            at = i % w.directions * w.output_size * ay.view.itemsize
            a.y = ay.data + at
            a.y_stride[0], a.y_stride[1] = ay.stride[0], ay.stride[1]
            a.saved = NULL if saves is None or saves[i] is None else <void *><uintptr_t>saves[i].ctypes.data
            a.dropped = NULL
            if dropped and i // w.directions < w.layers - 1:
                if i % w.directions == 0:
                    release(&ad)
                    acquire_own_output(&ad, dropped[i // w.directions])
                a.dropped, a.dropout, a.seed = ad.data + at, dropout, seed
        with nogil:
            status = fa_recurrent_forward(<fa_dtype>w.dtype_code, lane, w.layers, w.directions)
        raise_status(status, op)
    finally:
        release(&ax)
        release(&ay)
        release(&ad)
        release(&ah)
        release(&ac)
        release(&h_out)
        release(&c_out)
        if lane != few:
            free(lane)
    return h, c


def checked_lengths(object lengths, Py_ssize_t batch, Py_ssize_t longest, str op, str name):
    """int64 [batch] in 0..longest, contiguous; None for None."""
    return None if lengths is None else as_lengths(lengths, batch, longest, op, name)


def checked_floats(object value, str op, str name, int ndim=-1):
    """value as an ndarray of float32, float64, bfloat16 or float16, with ndim axes (-1: any number)."""
    array = as_ndarray(value, op, name)
    if type_of(array.dtype) < 0:
        raise wrong_type(op, name, array, ALL_TYPES)
    if ndim >= 0 and array.ndim != ndim:
        raise wrong_shape(op, name, f"have {ndim} axes", f"shape {array.shape}")
    return array

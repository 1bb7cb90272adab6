# Recurrent networks: what forward calls keep, and gradients.


def new_saved(RecurrentWeights w, Py_ssize_t steps, Py_ssize_t batch):
    """Where `recurrent` leaves what the backward pass of a layer and direction needs beside y, in float32 for 16-bit
    arrays; None: nothing."""
    cdef fa_index kinds = fa_recurrent_saved(&w.lane[0].weights)
    cdef int real = real_dtype(w.dtype_code)
    if w.cell == "rnn" and real == w.dtype_code:
        return None
    return empty((steps, batch, kinds, w.hidden_size), ALL_DTYPES[real])


cdef object optional_gradient(Array *a, object value, tuple shape, int dtype, str op, str name):
    """Holds a contiguous gradient, or nothing for None."""
    if value is None:
        return
    acquire_contiguous(a, value, op, name, len(shape), dtype)
    if shape_of(a) != shape:
        raise wrong_shape(op, name, f"have shape {shape}", f"shape {shape_of(a)}")


cdef void *new_gradient(list results, tuple shape, int dtype, bint wanted):
    """The elements of a fresh array, which becomes the last of the results; NULL and None when it is not wanted."""
    cdef object array = empty(shape, DTYPES[dtype]) if wanted else None
    results.append(array)
    return <void *><uintptr_t>array.ctypes.data if wanted else NULL


def recurrent_backward(str op, RecurrentWeights w, Py_ssize_t lane, options, object x, object y, object saved,
                       object h0, object c0, object lengths, object dy, object dh, object dc, object dx, bint add_dx):
    """Gradients of one layer and direction, from its x[T, B, I], y[T, B, P] and what new_saved holds. h0, c0 and the
    gradients dh, dc of the final state: [B, P or H] or None; dy[T, B, P] or None. dx: an array of ours, which is
    added to with add_dx. Returns [dh0, dc0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, peephole], None where
    there is none."""
    cdef Array ax, ay, ah, ac, ady, adh, adc, adx
    cdef fa_recurrent_arguments a = w.lane[lane]
    cdef fa_recurrent_gradients g
    cdef fa_status status
    cdef list results = []
    cdef Py_ssize_t rows = CELL_GATES[w.cell] * w.hidden_size
    ax.held = ay.held = ah.held = ac.held = ady.held = adh.held = adc.held = adx.held = False
    try:
        acquire(&ax, x, op, "x", 3, w.dtype_code)
        acquire(&ay, y, op, "y", 3, w.dtype_code)
        acquire(&adx, dx, op, "dx", 3, w.dtype_code)
        output, state = (ax.shape[1], w.output_size), (ax.shape[1], w.hidden_size)
        optional_gradient(&ah, h0, output, w.dtype_code, op, "h")
        optional_gradient(&ac, c0, state, w.dtype_code, op, "c")
        optional_gradient(&adh, dh, output, w.dtype_code, op, "dh")
        optional_gradient(&adc, dc, state, w.dtype_code, op, "dc")
        if dy is not None:
            acquire(&ady, dy, op, "dy", 3, w.dtype_code)
        a.activation, a.clip = NONLINEARITIES[options.nonlinearity], options.clip
        a.T, a.B, a.lengths = ax.shape[0], ax.shape[1], index_pointer(lengths)
        a.x, a.x_stride[0], a.x_stride[1] = ax.data, ax.stride[0], ax.stride[1]
        a.y, a.y_stride[0], a.y_stride[1] = ay.data, ay.stride[0], ay.stride[1]
        a.h0 = ah.data if ah.held else NULL
        a.c0 = ac.data if ac.held else NULL
        a.h_out = a.c_out = NULL
        a.saved = NULL if saved is None else <void *><uintptr_t>saved.ctypes.data
        g.dy = g.dh = g.dc = NULL
        g.dy_stride[0] = g.dy_stride[1] = 0
        if ady.held:
            g.dy, g.dy_stride[0], g.dy_stride[1] = ady.data, ady.stride[0], ady.stride[1]
        if adh.held:
            g.dh = adh.data
        if adc.held:
            g.dc = adc.data
        g.dx, g.dx_stride[0], g.dx_stride[1], g.add_dx = adx.data, adx.stride[0], adx.stride[1], add_dx
        g.dh0 = new_gradient(results, output, w.dtype_code, True)
        g.dc0 = new_gradient(results, state, w.dtype_code, w.has_cell)
        g.dw_ih = new_gradient(results, (rows, a.weights.I), w.dtype_code, True)
        g.dw_hh = new_gradient(results, (rows, a.weights.P), w.dtype_code, True)
        g.db_ih = new_gradient(results, (rows,), w.dtype_code, a.weights.b_ih != NULL)
        g.db_hh = new_gradient(results, (rows,), w.dtype_code, a.weights.b_hh != NULL)
        g.dw_hr = new_gradient(results, (a.weights.P, a.weights.H), w.dtype_code, a.weights.w_hr != NULL)
        g.dpeephole = new_gradient(results, (2 if w.cell == "lstm_coupled" else 3, w.hidden_size), w.dtype_code,
                                   a.weights.peephole != NULL)
        with nogil:
            status = fa_recurrent_backward(<fa_dtype>w.dtype_code, &a, &g)
        raise_status(status, op)
    finally:
        release(&ax)
        release(&ay)
        release(&ah)
        release(&ac)
        release(&ady)
        release(&adh)
        release(&adc)
        release(&adx)
    return results

# Recurrent networks: what forward calls keep, and gradients.


def new_saved(RecurrentWeights w, Py_ssize_t steps, Py_ssize_t batch, str op):
    """Where `recurrent` leaves what the backward pass of a layer and direction needs beside y, in float32 for 16-bit
    arrays; None: nothing."""
    cdef fa_index kinds = fa_recurrent_saved(&w.lane[0].weights)
    cdef int real = real_dtype(w.dtype_code)
    if w.cell == "rnn" and real == w.dtype_code:
        return None
    return new_array((steps, batch, kinds, w.hidden_size), ALL_DTYPES[real], op)


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


cdef object place_of(Array *a, object value):
    """Data and strides of an array of ours, in the place of the one held; whoever has the array keeps it alive."""
    release(a)
    acquire_own_output(a, value)


def recurrent_backward(str op, RecurrentWeights w, options, object x, list inputs, list ys, list saves, object h0,
                       object c0, object lengths, object dy, object dh, object dc, list dxs):
    """Gradients of all layers, from x[T, B, I], the inputs of the further layers, the ys of all and what new_saved
    holds. h0, c0 and the gradients dh, dc of the final state: [layers * directions, B, P or H] or None; dy[T, B,
    directions * P] or None. dxs: arrays of ours for the gradients of x and of the inputs. Returns dh0, dc0 (or None)
    and for each layer and direction [weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, peephole], None where there is
    none."""
    cdef Array ax, ah, ac, ady, adh, adc, own
    cdef fa_status status
    cdef Py_ssize_t i, layer, at, lanes = w.layers * w.directions, rows = CELL_GATES[w.cell] * w.hidden_size
    cdef Py_ssize_t output, state, item
    cdef fa_recurrent_arguments *arguments = <fa_recurrent_arguments *>calloc(lanes, sizeof(fa_recurrent_arguments))
    cdef fa_recurrent_gradients *gradients = <fa_recurrent_gradients *>calloc(lanes, sizeof(fa_recurrent_gradients))
    cdef fa_recurrent_arguments *a
    cdef fa_recurrent_gradients *g
    cdef list states = [], results = [], weights
    cdef char *dh0
    cdef char *dc0
    ax.held = ah.held = ac.held = ady.held = adh.held = adc.held = own.held = False
    try:
        if arguments == NULL or gradients == NULL:
            raise MemoryError()
        acquire(&ax, x, op, "x", 3, w.dtype_code)
        optional_gradient(&ah, h0, (lanes, ax.shape[1], w.output_size), w.dtype_code, op, "h")
        optional_gradient(&ac, c0, (lanes, ax.shape[1], w.hidden_size), w.dtype_code, op, "c")
        optional_gradient(&adh, dh, (lanes, ax.shape[1], w.output_size), w.dtype_code, op, "dh")
        optional_gradient(&adc, dc, (lanes, ax.shape[1], w.hidden_size), w.dtype_code, op, "dc")
        if dy is not None:
            acquire(&ady, dy, op, "dy", 3, w.dtype_code)
        item = ax.view.itemsize
        output, state = ax.shape[1] * w.output_size * item, ax.shape[1] * w.hidden_size * item
        dh0 = <char *>new_gradient(states, (lanes, ax.shape[1], w.output_size), w.dtype_code, True)
        dc0 = <char *>new_gradient(states, (lanes, ax.shape[1], w.hidden_size), w.dtype_code, w.has_cell)
        for i in range(lanes):
            a, g, layer, at = &arguments[i], &gradients[i], i // w.directions, i % w.directions * w.output_size * item
            a[0] = w.lane[i]
            a.activation, a.clip = NONLINEARITIES[options.nonlinearity], options.clip
            a.dropout, a.seed = options.dropout, options.seed
            a.T, a.B, a.lengths = ax.shape[0], ax.shape[1], index_pointer(lengths)
            if layer == 0:
                a.x, a.x_stride[0], a.x_stride[1] = ax.data, ax.stride[0], ax.stride[1]
            else:
                place_of(&own, inputs[layer - 1])
                a.x, a.x_stride[0], a.x_stride[1] = own.data, own.stride[0], own.stride[1]
            place_of(&own, ys[layer])
            a.y, a.y_stride[0], a.y_stride[1] = own.data + at, own.stride[0], own.stride[1]
            a.h0 = ah.data + i * output if ah.held else NULL
            a.c0 = ac.data + i * state if ac.held else NULL
            a.saved = NULL if saves[i] is None else <void *><uintptr_t>saves[i].ctypes.data
            if layer + 1 < w.layers:
                place_of(&own, dxs[layer + 1])
                g.dy, g.dy_stride[0], g.dy_stride[1] = own.data + at, own.stride[0], own.stride[1]
            elif ady.held:
                g.dy, g.dy_stride[0], g.dy_stride[1] = ady.data + at, ady.stride[0], ady.stride[1]
            place_of(&own, dxs[layer])
            g.dx, g.dx_stride[0], g.dx_stride[1], g.add_dx = own.data, own.stride[0], own.stride[1], i % w.directions
            g.dh = adh.data + i * output if adh.held else NULL
            g.dc = adc.data + i * state if adc.held else NULL
            g.dh0 = dh0 + i * output
            g.dc0 = dc0 + i * state if w.has_cell else NULL
            weights = []
            g.dw_ih = new_gradient(weights, (rows, a.weights.I), w.dtype_code, True)
            g.dw_hh = new_gradient(weights, (rows, a.weights.P), w.dtype_code, True)
            g.db_ih = new_gradient(weights, (rows,), w.dtype_code, a.weights.b_ih != NULL)
            g.db_hh = new_gradient(weights, (rows,), w.dtype_code, a.weights.b_hh != NULL)
            g.dw_hr = new_gradient(weights, (a.weights.P, a.weights.H), w.dtype_code, a.weights.w_hr != NULL)
            g.dpeephole = new_gradient(weights, (2 if w.cell == "lstm_coupled" else 3, w.hidden_size), w.dtype_code,
                                       a.weights.peephole != NULL)
            results.append(weights)
        with nogil:
            status = fa_recurrent_backward(<fa_dtype>w.dtype_code, arguments, gradients, w.layers, w.directions)
        raise_status(status, op)
    finally:
        release(&ax)
        release(&ah)
        release(&ac)
        release(&ady)
        release(&adh)
        release(&adc)
        release(&own)
        free(arguments)
        free(gradients)
    return states[0], states[1], results

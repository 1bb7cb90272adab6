# Recurrent networks: the saved values of forward calls, and gradients.


def new_saved(RecurrentWeights w, Py_ssize_t steps, Py_ssize_t batch, object lengths, str op):
    """Where `recurrent` leaves what the backward pass of a layer and direction needs beside y, in float32 for 16-bit
    arrays; None: nothing. Zeros beyond the lengths, where nothing is written: no old memory gets into a result."""
    cdef object saved
    cdef fa_index kinds = fa_recurrent_saved(&w.lane[0].weights)
    cdef int real = real_dtype(w.dtype_code)
    if w.cell == "rnn" and real == w.dtype_code:
        return None
    saved = new_array((steps, batch, kinds, w.hidden_size), DTYPES[real], op)
    if lengths is not None:
        saved[np.arange(steps)[:, None] >= lengths] = 0
    return saved


cdef void *new_gradient(list results, tuple shape, int dtype, bint wanted, str op) except? NULL:
    """The elements of a fresh array, which becomes the last of the results; NULL and None when it is not wanted."""
    cdef object array = new_empty(shape, DTYPES[dtype], op) if wanted else None
    results.append(array)
    return <void *><uintptr_t>array.ctypes.data if wanted else NULL


cdef object place_of(Array *a, object value, tuple shape, int dtype, list kept, str op, str name):
    """Data and strides of an array of this shape, in the place of the one held; `kept` keeps it alive."""
    release(a)
    acquire(a, value, op, name, <int>len(shape), dtype)
    kept.append(<object>a.view.obj)
    if shape_of(a) != shape:
        raise wrong_shape(op, name, f"have shape {shape}", f"shape {shape_of(a)}")


cdef object check_counts(tuple lists, tuple counts, str op):
    """How many arrays there are of what a forward call keeps in lists: saved.inputs and so on."""
    for name, arrays, count in zip(("dropped", "ys", "activations"), lists, counts):
        if len(arrays) != count:
            raise wrong_shape(op, f"saved.{name}", f"hold {count} arrays", f"{len(arrays)}")


def recurrent_backward(str op, RecurrentWeights w, options, object x, list inputs, list ys, list saves, object h0,
                       object c0, object lengths, object dy, object dh, object dc, list dxs, bint rounded):
    """Gradients of all layers, from x[T, B, I], the inputs of the further layers, the ys of all and what new_saved
    holds; `saved` has these, and all are checked. h0, c0 and the gradients dh, dc of the final state: [layers *
    directions, B, P or H] or None; dy[T, B, directions * P] or None. dxs: arrays of ours for the gradients of x and of
    the inputs. rounded: the arrays of the forward call had 16 bits. Returns dh0, dc0 (or None) and for each layer and
    direction [weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, peephole], None where there is none."""
    cdef Array ax, ah, ac, ady, adh, adc, own
    cdef fa_status status
    cdef Py_ssize_t i, layer, at, lanes = w.layers * w.directions, rows = CELL_GATES[w.cell] * w.hidden_size
    cdef Py_ssize_t output, state, item
    cdef fa_activation activation = NONLINEARITIES[options.nonlinearity]
    cdef double clip = options.clip, dropout = options.dropout
    cdef unsigned long long seed = options.seed
    cdef fa_recurrent_arguments *arguments = NULL
    cdef fa_recurrent_gradients *gradients = NULL
    cdef fa_recurrent_arguments *a
    cdef fa_recurrent_gradients *g
    cdef list states = [], results = [], kept = [], weights
    cdef tuple between, places, kinds
    cdef char *dh0
    cdef char *dc0
    ax.held = ah.held = ac.held = ady.held = adh.held = adc.held = own.held = False
    x, h0, c0 = as_ndarray(x, op, "saved.x"), as_optional(h0, op, "saved.h0"), as_optional(c0, op, "saved.c0")
    dy, dh, dc = as_optional(dy, op, "dy"), as_optional(dh, op, "dh"), as_optional(dc, op, "dc")
    inputs = [as_ndarray(array, op, "saved.dropped") for array in inputs]
    ys = [as_ndarray(array, op, "saved.ys") for array in ys]
    saves = [as_optional(array, op, "saved.activations") for array in saves]
    lengths = as_optional(lengths, op, "saved.lengths")
    check_places(w, op, "saved.weights")
    try:
        arguments = <fa_recurrent_arguments *>calloc(lanes, sizeof(fa_recurrent_arguments))
        gradients = <fa_recurrent_gradients *>calloc(lanes, sizeof(fa_recurrent_gradients))
        if arguments == NULL or gradients == NULL:
            raise no_lanes(op, lanes)
        check_counts((inputs, ys, saves), (w.layers - 1, w.layers, lanes), op)
        acquire(&ax, x, op, "saved.x", 3, w.dtype_code)
        if ax.shape[2] != w.input_size:
            raise wrong_shape(op, "saved.x", f"have a last axis of {w.input_size}, the columns of weight_ih",
                              f"shape {shape_of(&ax)}")
        acquire_optional(&ah, h0, (lanes, ax.shape[1], w.output_size), w.dtype_code, op, "saved.h0")
        acquire_optional(&ac, c0, (lanes, ax.shape[1], w.hidden_size), w.dtype_code, op, "saved.c0")
        acquire_optional(&adh, dh, (lanes, ax.shape[1], w.output_size), w.dtype_code, op, "dh")
        acquire_optional(&adc, dc, (lanes, ax.shape[1], w.hidden_size), w.dtype_code, op, "dc")
        lengths = checked_lengths(lengths, ax.shape[1], ax.shape[0], op, "saved.lengths")
        between = (ax.shape[0], ax.shape[1], w.directions * w.output_size)
        kinds = (ax.shape[0], ax.shape[1], fa_recurrent_saved(&w.lane[0].weights), w.hidden_size)
        if dy is not None:
            place_of(&ady, dy, between, w.dtype_code, kept, op, "dy")
        item = ax.view.itemsize
        output, state = ax.shape[1] * w.output_size * item, ax.shape[1] * w.hidden_size * item
        dh0 = <char *>new_gradient(states, (lanes, ax.shape[1], w.output_size), w.dtype_code, True, op)
        dc0 = <char *>new_gradient(states, (lanes, ax.shape[1], w.hidden_size), w.dtype_code, w.has_cell, op)
        for i in range(lanes):
            a, g, layer, at = &arguments[i], &gradients[i], i // w.directions, i % w.directions * w.output_size * item
            a[0] = w.lane[i]
            a.activation, a.clip = activation, clip
            a.dropout, a.seed = dropout, seed
            if options.reverse:
                a.reverse = 1
            a.T, a.B, a.lengths = ax.shape[0], ax.shape[1], index_pointer(lengths)
            if layer == 0:
                a.x, a.x_stride[0], a.x_stride[1] = ax.data, ax.stride[0], ax.stride[1]
            else:
                place_of(&own, inputs[layer - 1], between, w.dtype_code, kept, op, "saved.dropped")
                a.x, a.x_stride[0], a.x_stride[1] = own.data, own.stride[0], own.stride[1]
            place_of(&own, ys[layer], between, w.dtype_code, kept, op, "saved.ys")
            a.y, a.y_stride[0], a.y_stride[1] = own.data + at, own.stride[0], own.stride[1]
            a.h0 = ah.data + i * output if ah.held else NULL
            a.c0 = ac.data + i * state if ac.held else NULL
            a.saved = NULL
            if rounded or w.cell != "rnn":
                release(&own)
                acquire_shaped(&own, saves[i], kinds, w.dtype_code, op, "saved.activations")
                kept.append(<object>own.view.obj)
                a.saved = own.data
            if layer + 1 < w.layers:
                place_of(&own, dxs[layer + 1], between, w.dtype_code, kept, op, "dx")
                g.dy, g.dy_stride[0], g.dy_stride[1] = own.data + at, own.stride[0], own.stride[1]
            elif ady.held:
                g.dy, g.dy_stride[0], g.dy_stride[1] = ady.data + at, ady.stride[0], ady.stride[1]
            places = shape_of(&ax) if layer == 0 else between
            place_of(&own, dxs[layer], places, w.dtype_code, kept, op, "dx")
            g.dx, g.dx_stride[0], g.dx_stride[1], g.add_dx = own.data, own.stride[0], own.stride[1], i % w.directions
            g.dh = adh.data + i * output if adh.held else NULL
            g.dc = adc.data + i * state if adc.held else NULL
            g.dh0 = dh0 + i * output
            g.dc0 = dc0 + i * state if w.has_cell else NULL
            weights = []
            g.dw_ih = new_gradient(weights, (rows, a.weights.I), w.dtype_code, True, op)
            g.dw_hh = new_gradient(weights, (rows, a.weights.P), w.dtype_code, True, op)
            g.db_ih = new_gradient(weights, (rows,), w.dtype_code, a.weights.b_ih != NULL, op)
            g.db_hh = new_gradient(weights, (rows,), w.dtype_code, a.weights.b_hh != NULL, op)
            g.dw_hr = new_gradient(weights, (a.weights.P, a.weights.H), w.dtype_code, a.weights.w_hr != NULL, op)
            g.dpeephole = new_gradient(weights, (2 if w.cell == "lstm_coupled" else 3, w.hidden_size), w.dtype_code,
                                       a.weights.peephole != NULL, op)
            results.append(weights)
        # Without units and inputs no gradient has an element, however many steps there were.
        if not (w.hidden_size == w.output_size == 0 and is_empty(&ax)):
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

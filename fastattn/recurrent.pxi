# Recurrent networks: the weights of a stack of layers and directions, as they are or packed, and calls with them.

cdef dict CELLS = {"rnn": FA_RNN, "lstm": FA_LSTM, "lstm_coupled": FA_LSTM_COUPLED, "gru": FA_GRU,
                   "gru_reset_before": FA_GRU_RESET_BEFORE}
cdef dict CELL_GATES = {"rnn": 1, "lstm": 4, "lstm_coupled": 3, "gru": 3, "gru_reset_before": 3}
cdef dict NONLINEARITIES = {"tanh": FA_TANH, "relu": FA_RELU, "sigmoid": FA_SIGMOID}

cdef enum:
    MOST_LANES = 16  # layers times directions whose arguments lie on the stack


@cython.auto_pickle(False)
@cython.final
cdef class RecurrentWeights:
    """The weights of layers times directions: `arguments` holds them, and what a call does not change.

    Arrays stay where the caller has them, or are packed into a buffer for one instruction set (`packed`).
    """

    cdef fa_recurrent_arguments *lane  # [layers * directions]
    cdef list held  # what the pointers point into
    cdef int dtype_code
    cdef bint is_packed
    cdef readonly str cell, weight_dtype
    cdef readonly Py_ssize_t layers, directions, input_size, hidden_size
    cdef readonly Py_ssize_t output_size  # of h: hidden_size without a projection

    def __init__(self):
        raise TypeError("packed weights come from fastattn.pack_rnn, pack_gru and pack_lstm")

    def __dealloc__(self):
        free(self.lane)

    @property
    def has_cell(self):
        """Whether the state is a pair (h, c)."""
        return self.cell == "lstm" or self.cell == "lstm_coupled"

    @property
    def proj_size(self):
        """Units of h where it is projected, else 0."""
        return self.output_size if self.lane[0].weights.w_hr != NULL else 0

    @property
    def dtype(self):
        return ALL_DTYPES[self.dtype_code]

    @property
    def isa(self):
        """The instruction set of the packed layout; None when not packed."""
        return text(fa_isa_name(self.lane[0].isa)) if self.is_packed else None

    @property
    def nbytes(self):
        return sum([array.nbytes for array in self.held])

    def __repr__(self):
        return (f"<packed {self.cell}, {self.layers} x {self.directions}, {self.input_size} to {self.hidden_size}, "
                f"{self.weight_dtype}, for {self.isa}>")


cdef RecurrentWeights new_weights(str cell, Py_ssize_t layers, Py_ssize_t directions, Py_ssize_t input_size,
                                  Py_ssize_t hidden_size, Py_ssize_t output_size, int dtype):
    cdef RecurrentWeights w = RecurrentWeights.__new__(RecurrentWeights)
    w.cell, w.layers, w.directions = cell, layers, directions
    w.input_size, w.hidden_size, w.output_size, w.dtype_code = input_size, hidden_size, output_size, dtype
    w.held = []
    w.lane = <fa_recurrent_arguments *>calloc(layers * directions, sizeof(fa_recurrent_arguments))
    if w.lane == NULL:
        raise MemoryError()
    return w


cdef const void *hold_weight(RecurrentWeights w, object value, tuple shape, str op, str name) except? NULL:
    """Contiguous data of an optional weight, NULL for None; type and shape are checked."""
    cdef Array a
    if value is None:
        return NULL
    value = as_ndarray(value, op, name)
    if not (value.flags.c_contiguous and value.flags.aligned):
        value = value.copy(order="C")
    a.held = False
    try:
        acquire(&a, value, op, name, len(shape), w.dtype_code)
        if shape_of(&a) != shape:
            raise wrong_shape(op, name, f"have shape {shape}", f"shape {shape_of(&a)}")
        w.held.append(value)
        return a.data
    finally:
        release(&a)


def recurrent_weights(str op, str cell, list lanes, list names, Py_ssize_t directions, Py_ssize_t input_size,
                      object dtype):
    """The weights of a call as they are. lanes: for each layer and direction a dict with weight_ih, weight_hh, bias_ih,
    bias_hh, weight_hr, peephole (the last four may be None); `names`: the same with the names of messages.
    input_size < 0: that of the first weight_ih."""
    cdef Py_ssize_t i, gates = CELL_GATES[cell], columns, H, P
    cdef RecurrentWeights w
    cdef fa_recurrent_weights *into
    for own, labels in zip(lanes, names):
        for kind in ("weight_ih", "weight_hh"):
            if own[kind] is None:
                raise wrong_type(op, labels[kind], None)
    first = checked_floats(lanes[0]["weight_hh"], op, names[0]["weight_hh"], 2)
    P = H = first.shape[1]
    if lanes[0]["weight_hr"] is not None:
        P, H = checked_floats(lanes[0]["weight_hr"], op, names[0]["weight_hr"], 2).shape
    if input_size < 0:
        input_size = checked_floats(lanes[0]["weight_ih"], op, names[0]["weight_ih"], 2).shape[1]
    w = new_weights(cell, len(lanes) // directions, directions, input_size, H, P,
                    kind_of(first.dtype if dtype is None else dtype, op))
    for i in range(len(lanes)):
        own, labels, into = lanes[i], names[i], &w.lane[i].weights
        columns = input_size if i < directions else directions * P
        into.cell, into.I, into.H, into.P = CELLS[cell], columns, H, P
        into.w_ih = hold_weight(w, own["weight_ih"], (gates * H, columns), op, labels["weight_ih"])
        into.w_hh = hold_weight(w, own["weight_hh"], (gates * H, P), op, labels["weight_hh"])
        into.b_ih = hold_weight(w, own["bias_ih"], (gates * H,), op, labels["bias_ih"])
        into.b_hh = hold_weight(w, own["bias_hh"], (gates * H,), op, labels["bias_hh"])
        into.w_hr = hold_weight(w, own["weight_hr"], (P, H), op, labels["weight_hr"])
        peepholes = (2 if cell == "lstm_coupled" else 3, H)
        into.peephole = hold_weight(w, own["peephole"], peepholes, op, labels["peephole"])
        w.lane[i].reverse = i % directions
    return w


cdef dict WEIGHT_TYPES = {"bfloat16": FA_WEIGHT_BF16, "int8": FA_WEIGHT_INT8}


def pack_recurrent(str op, RecurrentWeights weights, str type_name):
    """The same weights in the layout of the kernels of the instruction set in force, as numbers of their own dtype, or
    of "bfloat16" or "int8" (float32 weights only)."""
    cdef RecurrentWeights w = new_weights(weights.cell, weights.layers, weights.directions, weights.input_size,
                                          weights.hidden_size, weights.output_size, weights.dtype_code)
    cdef fa_isa isa = fa_get_isa()
    cdef fa_dtype dtype = <fa_dtype>weights.dtype_code
    cdef fa_weight_type type = FA_WEIGHT_REAL
    cdef fa_status status
    cdef fa_recurrent_weights *source
    cdef uintptr_t address
    cdef Py_ssize_t i
    cdef size_t size
    if type_name != NAMES[w.dtype_code]:
        type = <fa_weight_type><int>WEIGHT_TYPES[type_name]
    w.is_packed = True
    w.weight_dtype = type_name
    for i in range(w.layers * w.directions):
        source = &weights.lane[i].weights
        size = fa_recurrent_packed_bytes(dtype, isa, type, source)
        buffer = new_array((size + 64,), np.uint8, op)
        w.held.append(buffer)
        address = (<uintptr_t>buffer.ctypes.data + 63) // 64 * 64
        w.lane[i] = weights.lane[i]
        w.lane[i].packed = <const void *>address
        w.lane[i].isa = isa
        w.lane[i].type = type
        with nogil:
            status = fa_recurrent_pack(dtype, isa, type, <void *>address, source)
        raise_status(status, op)
    return w


cdef object acquire_state(Array *a, object value, tuple shape, RecurrentWeights w, str op, str name):
    """Holds a state [layers * directions, B, H], or nothing for None: zeros."""
    if value is None:
        return
    acquire_contiguous(a, value, op, name, len(shape), w.dtype_code)
    if shape_of(a) != shape:
        raise wrong_shape(op, name, f"have shape {shape}", f"shape {shape_of(a)}")


cdef object set_lane(fa_recurrent_arguments *a, RecurrentWeights w, Py_ssize_t i, Array *h0, Array *c0, Array *h,
                     Array *c):
    """The weights and states of lane i, whose states are row i of those of the call."""
    cdef Py_ssize_t row = i * h.shape[1] * h.view.itemsize
    a[0] = w.lane[i]
    a.h0 = h0.data + row * w.output_size if h0.held else NULL
    a.c0 = c0.data + row * w.hidden_size if c0.held else NULL
    a.h_out = h.data + row * w.output_size
    a.c_out = c.data + row * w.hidden_size if c.held else NULL


cdef object acquire_own_output(Array *a, object value):
    """Holds an output array of ours of 3 axes, the last one contiguous."""
    PyObject_GetBuffer(bits_of(value), &a.view, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE)
    a.held = True
    if not fill(a) or a.ndim != 3:
        raise AssertionError("y must be an output array of fastattn's own")


def recurrent(str op, RecurrentWeights w, options, object x, object h0, object c0, object lengths, list ys,
              list dropped=None, list saves=None):
    """Runs x[T, B, I] through all layers; ys are arrays of ours with a contiguous last axis, [T, B, directions * P],
    one for each layer. options: nonlinearity, clip (0: none), dropout, seed. lengths: int64 [B] from checked_lengths,
    or None. dropped: None, or for each layer but the last an array like its y for what dropout leaves of that. saves:
    None, or for each layer and direction an array from new_saved. Returns (h, c); c is None but for lstm."""
    cdef Array ax, ay, ad, ah, ac, h_out, c_out
    cdef fa_recurrent_arguments few[MOST_LANES]
    cdef fa_recurrent_arguments *lane = few
    cdef fa_recurrent_arguments *a
    cdef fa_recurrent_arguments *below
    cdef fa_status status
    cdef Py_ssize_t i, lanes = w.layers * w.directions, at
    cdef object h, c = None
    ax.held = ay.held = ad.held = ah.held = ac.held = h_out.held = c_out.held = False
    if lanes > MOST_LANES:
        lane = <fa_recurrent_arguments *>calloc(lanes, sizeof(fa_recurrent_arguments))
        if lane == NULL:
            raise MemoryError()
    try:
        acquire(&ax, x, op, "x", 3, w.dtype_code)
        if ax.shape[2] != w.input_size:
            raise wrong_shape(op, "x", f"have a last axis of {w.input_size}, the columns of weight_ih",
                              f"shape {shape_of(&ax)}")
        acquire_state(&ah, h0, (lanes, ax.shape[1], w.output_size), w, op, "h")
        acquire_state(&ac, c0, (lanes, ax.shape[1], w.hidden_size), w, op, "c")
        h = new_out(&h_out, (lanes, ax.shape[1], w.output_size), w.dtype_code, op)
        if w.has_cell:
            c = new_out(&c_out, (lanes, ax.shape[1], w.hidden_size), w.dtype_code, op)
        for i in range(lanes):
            a = &lane[i]
            set_lane(a, w, i, &ah, &ac, &h_out, &c_out)
            a.activation, a.clip = NONLINEARITIES[options.nonlinearity], options.clip
            a.T, a.B, a.lengths = ax.shape[0], ax.shape[1], index_pointer(lengths)
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
                a.dropped, a.dropout, a.seed = ad.data + at, options.dropout, options.seed
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


def recurrent_dropout(str op, object dx, Py_ssize_t layer, Py_ssize_t directions, options):
    """Applies the dropout of a layer's output to an array of ours [T, B, directions * P], in place."""
    cdef Array a
    cdef fa_status status
    cdef double dropout = options.dropout
    cdef uint64_t seed = options.seed
    cdef int dtype = DTYPES.index(dx.dtype)
    cdef fa_index stride[2]
    a.held = False
    try:
        acquire_own_output(&a, dx)
        stride[0], stride[1] = a.stride[0], a.stride[1]
        with nogil:
            status = fa_recurrent_dropout(<fa_dtype>dtype, a.data, stride, a.data, stride, a.shape[0], a.shape[1],
                                          a.shape[2] // directions, layer, directions, dropout, seed)
        raise_status(status, op)
    finally:
        release(&a)


cdef object acquire_own(Array *a, object value, tuple shape, RecurrentWeights w, str op, str name, bint writable):
    """Holds an array that C takes as it is: nothing is copied in a step."""
    cdef int kind, flags = PyBUF_STRIDES | PyBUF_FORMAT
    if not isinstance(value, ndarray):
        raise wrong_type(op, name, value)
    if writable and not value.flags.writeable:
        raise wrong_shape(op, name, "be writable", "a read-only array")
    try:
        if w.dtype_code == FA_BF16 and is_bfloat16(value.dtype):
            PyObject_GetBuffer(value.view(uint16), &a.view, flags | PyBUF_WRITABLE if writable else flags)
            kind = FA_BF16
        else:
            PyObject_GetBuffer(value, &a.view, flags | PyBUF_WRITABLE if writable else flags)
            kind = format_dtype(a.view.format)
    except (ValueError, BufferError, TypeError):
        raise wrong_type(op, name, value, ALL_TYPES) from None
    a.held = True
    if kind != w.dtype_code:
        raise TypeError(f"{op}: {name} must be {NAMES[w.dtype_code]} like the weights, got {value.dtype}")
    if not fill(a) or not is_contiguous(a) or shape_of(a) != shape:
        raise wrong_shape(op, name, f"be aligned and C-contiguous with shape {shape}", f"shape {value.shape}")


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
        if not isinstance(x, ndarray) or x.ndim != 2:
            raise wrong_shape(op, "x", "be an array of 2 axes", f"{getattr(x, 'shape', type(x).__name__)}")
        B = x.shape[0]
        acquire_own(&ax, x, (B, w.input_size), w, op, "x", False)
        shape = (w.layers, B, w.output_size)
        acquire_own(&ah, h0, shape, w, op, "h", False)
        acquire_own(&ah_out, h_out, shape, w, op, "out", True)
        if c0 is not None:
            shape = (w.layers, B, w.hidden_size)
            acquire_own(&ac, c0, shape, w, op, "c", False)
            acquire_own(&ac_out, c_out, shape, w, op, "out", True)
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


def new_saved(RecurrentWeights w, Py_ssize_t steps, Py_ssize_t batch):
    """Where `recurrent` leaves what the backward pass of a layer and direction needs beside y; None: nothing."""
    cdef fa_index kinds = fa_recurrent_saved(&w.lane[0].weights)
    return empty((steps, batch, kinds, w.hidden_size), DTYPES[w.dtype_code]) if kinds else None


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


def checked_lengths(object lengths, Py_ssize_t batch, Py_ssize_t longest, str op, str name):
    """int64 [batch] in 0..longest, contiguous; None for None."""
    return None if lengths is None else as_lengths(lengths, batch, longest, op, name)


def checked_floats(object value, str op, str name, int ndim, bint gradients=False):
    """value as an ndarray of float32, float64 or, but for gradients, bfloat16 or float16, with ndim axes."""
    array = as_ndarray(value, op, name)
    if array.dtype not in DTYPES and (gradients or not is_low_precision(array.dtype)):
        raise wrong_type(op, name, array, REAL_TYPES if gradients else ALL_TYPES)
    if array.ndim != ndim:
        raise wrong_shape(op, name, f"have {ndim} axes", f"shape {array.shape}")
    return array

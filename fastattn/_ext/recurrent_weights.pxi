# Weights of recurrent networks: a stack of layers and directions, as they are or packed.

cdef dict CELLS = {"rnn": FA_RNN, "lstm": FA_LSTM, "lstm_coupled": FA_LSTM_COUPLED, "gru": FA_GRU,
                   "gru_reset_before": FA_GRU_RESET_BEFORE}
cdef dict CELL_GATES = {"rnn": 1, "lstm": 4, "lstm_coupled": 3, "gru": 3, "gru_reset_before": 3}


@cython.auto_pickle(False)
@cython.final
cdef class RecurrentWeights:
    """The weights of layers times directions: `arguments` holds them, and what a call does not change.

    Arrays stay where the caller has them, or are packed into a buffer for one instruction set (`packed`). Pickles of
    packed ones hold the buffer, and load where fastattn has the same version and the CPU that instruction set;
    elsewhere they raise ValueError.
    """

    cdef fa_recurrent_arguments *lane  # [layers * directions]
    cdef list held  # what the pointers point into
    cdef list places  # of arrays that are not packed: (address, bytes)
    cdef int dtype_code
    cdef readonly object dtype
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
    def isa(self):
        """The instruction set of the packed layout; None when not packed."""
        return text(fa_isa_name(self.lane[0].isa)) if self.is_packed else None

    @property
    def is_current(self):
        """Whether they are packed for the instruction set in force."""
        return self.is_packed and self.lane[0].isa == fa_get_isa()

    @property
    def nbytes(self):
        return sum([array.nbytes for array in self.held])

    def __repr__(self):
        return (f"<packed {self.cell}, {self.layers} x {self.directions}, {self.input_size} to {self.hidden_size}, "
                f"{self.weight_dtype}, for {self.isa}>")

    def __copy__(self):
        return self  # nothing in it changes but what the caller changes in arrays that are not packed

    def __deepcopy__(self, memo):
        return self if self.is_packed else from_lanes(*deepcopy(self.lanes(), memo))

    def __reduce__(self):
        if not self.is_packed:
            return from_lanes, self.lanes()
        cdef fa_recurrent_arguments *lane = self.lane
        cdef Py_ssize_t i
        packed = [packed_part(self.held[i], lane[i].packed, self.held[i].nbytes - PACKED_ALIGNMENT)
                  for i in range(self.layers * self.directions)]
        sizes = (self.layers, self.directions, self.input_size, self.hidden_size, self.output_size)
        optional = (lane.weights.w_hr != NULL, lane.weights.peephole != NULL)
        return unpickled_recurrent, (packing_of(lane.isa), self.cell, self.dtype, self.weight_dtype, sizes, optional,
                                     packed)

    cdef tuple lanes(self):
        """The arguments of from_lanes that make these weights, which are not packed."""
        cdef Py_ssize_t i
        cdef fa_recurrent_weights *own
        cdef list held = self.held[::-1], lanes = []
        for i in range(self.layers * self.directions):
            own = &self.lane[i].weights
            # In the order in which recurrent_weights holds them.
            there = (True, True, own.b_ih != NULL, own.b_hh != NULL, own.w_hr != NULL, own.peephole != NULL)
            lanes.append({kind: held.pop() if is_there else None for kind, is_there in zip(LANE_ARRAYS, there)})
        return self.cell, lanes, self.directions


cdef tuple LANE_ARRAYS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "peephole")


def from_lanes(str cell, list lanes, Py_ssize_t directions):
    """Weights that are not packed, of arrays by the names of recurrent_weights."""
    if cell not in CELLS or directions not in (1, 2) or not lanes or len(lanes) % directions:
        raise wrong_shape("RecurrentWeights", "the pickled weights", "be of a known cell, for each layer and direction",
                          f"{cell!r}, {directions} directions and {len(lanes)} of both")
    names = [dict(zip(LANE_ARRAYS, LANE_ARRAYS)) for _ in lanes]
    return recurrent_weights("RecurrentWeights", cell, lanes, names, directions, -1, None)


cdef object no_lanes(str op, Py_ssize_t lanes):
    return MemoryError(f"{op}: no memory for the arguments of {lanes} layers and directions")


cdef RecurrentWeights new_weights(str op, str cell, Py_ssize_t layers, Py_ssize_t directions, Py_ssize_t input_size,
                                  Py_ssize_t hidden_size, Py_ssize_t output_size, object dtype):
    cdef RecurrentWeights w = RecurrentWeights.__new__(RecurrentWeights)
    w.cell, w.layers, w.directions = cell, layers, directions
    w.input_size, w.hidden_size, w.output_size = input_size, hidden_size, output_size
    w.dtype, w.dtype_code = dtype, type_of(dtype)
    w.held, w.places = [], []
    w.lane = <fa_recurrent_arguments *>calloc(layers * directions, sizeof(fa_recurrent_arguments))
    if w.lane == NULL:
        raise no_lanes(op, layers * directions)
    return w


cdef object keep_weight(RecurrentWeights w, object array, const Array *a):
    w.held.append(array)
    w.places.append((<uintptr_t>a.view.buf, a.view.len))


cdef object check_places(RecurrentWeights w, str op, str name="weights"):
    """That arrays which the caller has too are where they were: NumPy can resize them in place."""
    cdef Array a
    for array, (address, size) in zip(w.held, w.places):
        a.held = False
        try:
            if (hold_floats(&a, array, PyBUF_STRIDES | PyBUF_FORMAT) != w.dtype_code or a.view.len != size
                    or <uintptr_t>a.view.buf != <uintptr_t>address):
                raise wrong_shape(op, name, "keep memory and type while they are in use", f"shape {array.shape}")
        finally:
            release(&a)


cdef const void *hold_weight(RecurrentWeights w, object value, Py_ssize_t rows, Py_ssize_t columns, str op,
                             str name) except? NULL:
    """Contiguous data of an optional weight, an ndarray of [rows, columns] (columns < 0: [rows]), NULL for None; type
    and shape are checked."""
    cdef Array a
    cdef int ndim = 1 if columns < 0 else 2
    cdef tuple shape
    if value is None:
        return NULL
    a.held = False
    if (hold_floats(&a, value, PyBUF_STRIDES | PyBUF_FORMAT) == w.dtype_code and a.view.ndim == ndim and fill(&a)
            and is_contiguous(&a) and a.shape[0] == rows and (ndim == 1 or a.shape[1] == columns)):
        keep_weight(w, value, &a)
        release(&a)
        return a.data
    release(&a)
    shape = (rows, columns)[:ndim]
    if not (value.flags.c_contiguous and value.flags.aligned):
        value = copied(value, op, name)
    try:
        acquire(&a, value, op, name, len(shape), w.dtype_code)
        if shape_of(&a) != shape:
            raise wrong_shape(op, name, f"have shape {shape}", f"shape {shape_of(&a)}")
        keep_weight(w, value, &a)
        return a.data
    finally:
        release(&a)


cdef object check_optional(list lanes, list names, str op):
    """What some layers and directions have beside their two matrices, all have: sizes and gradients follow from it."""
    for kind in ("bias_ih", "bias_hh", "weight_hr", "peephole"):
        given = lanes[0][kind] is not None
        for own, labels in zip(lanes, names):
            if (own[kind] is not None) != given:
                missing, present = (labels, names[0]) if given else (names[0], labels)
                raise wrong_shape(op, "weights", f"hold an array as {missing[kind]} beside {present[kind]}", None)


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
    if len(lanes) > 1:
        check_optional(lanes, names, op)
    lanes = [{kind: as_optional(own[kind], op, labels[kind]) for kind in LANE_ARRAYS}
             for own, labels in zip(lanes, names)]
    first = checked_floats(lanes[0]["weight_hh"], op, names[0]["weight_hh"], 2)
    P = H = first.shape[1]
    if lanes[0]["weight_hr"] is not None:
        P, H = checked_floats(lanes[0]["weight_hr"], op, names[0]["weight_hr"], 2).shape
    if input_size < 0:
        input_size = checked_floats(lanes[0]["weight_ih"], op, names[0]["weight_ih"], 2).shape[1]
    w = new_weights(op, cell, len(lanes) // directions, directions, input_size, H, P,
                    as_dtype(first.dtype if dtype is None else dtype, op))
    for i in range(len(lanes)):
        own, labels, into = lanes[i], names[i], &w.lane[i].weights
        columns = input_size if i < directions else directions * P
        into.cell, into.I, into.H, into.P = CELLS[cell], columns, H, P
        into.w_ih = hold_weight(w, own["weight_ih"], gates * H, columns, op, labels["weight_ih"])
        into.w_hh = hold_weight(w, own["weight_hh"], gates * H, P, op, labels["weight_hh"])
        into.b_ih = hold_weight(w, own["bias_ih"], gates * H, -1, op, labels["bias_ih"])
        into.b_hh = hold_weight(w, own["bias_hh"], gates * H, -1, op, labels["bias_hh"])
        into.w_hr = hold_weight(w, own["weight_hr"], P, H, op, labels["weight_hr"])
        into.peephole = hold_weight(w, own["peephole"], 2 if cell == "lstm_coupled" else 3, H, op, labels["peephole"])
        w.lane[i].reverse = i % directions
    return w


def widened_weights(str op, RecurrentWeights weights):
    """16-bit weights, not packed, as float32 ones."""
    cdef RecurrentWeights w = new_weights(op, weights.cell, weights.layers, weights.directions, weights.input_size,
                                          weights.hidden_size, weights.output_size, float32)
    cdef const void **field[6]
    cdef fa_recurrent_weights *into
    cdef Py_ssize_t i, n
    cdef list held = weights.held[::-1]
    cdef Array a
    check_places(weights, op, "saved.weights")
    for i in range(w.layers * w.directions):
        w.lane[i] = weights.lane[i]
        into = &w.lane[i].weights
        # In the order in which recurrent_weights holds them.
        field[:] = [&into.w_ih, &into.w_hh, &into.b_ih, &into.b_hh, &into.w_hr, &into.peephole]
        for n in range(6):
            if field[n][0] != NULL:
                wide = cast(held.pop(), float32)
                hold_floats(&a, wide, PyBUF_STRIDES | PyBUF_FORMAT)
                keep_weight(w, wide, &a)
                field[n][0] = a.view.buf
                release(&a)
    return w


cdef dict WEIGHT_TYPES = {"bfloat16": FA_WEIGHT_BF16, "int8": FA_WEIGHT_INT8}


def pack_recurrent(str op, RecurrentWeights weights, str type_name):
    """The same weights in the layout of the kernels of the instruction set in force, as numbers of their own dtype, or
    of "bfloat16" or "int8" (float32 weights only)."""
    cdef RecurrentWeights w = new_weights(op, weights.cell, weights.layers, weights.directions, weights.input_size,
                                          weights.hidden_size, weights.output_size, weights.dtype)
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
    check_places(weights, op)
    w.is_packed = True
    w.weight_dtype = type_name
    for i in range(w.layers * w.directions):
        source = &weights.lane[i].weights
        size = fa_recurrent_packed_bytes(dtype, isa, type, source)
        w.held.append(new_packed(size, op, &address))
        w.lane[i] = weights.lane[i]
        w.lane[i].packed = <const void *>address
        w.lane[i].isa = isa
        w.lane[i].type = type
        with nogil:
            status = fa_recurrent_pack(dtype, isa, type, <void *>address, source)
        raise_status(status, op)
    return w


def unpickled_recurrent(packing, str cell, dtype, str type_name, tuple sizes, tuple optional, list packed):
    """RecurrentWeights.__reduce__'s, of packed ones."""
    cdef str kind = "RecurrentWeights"
    cdef fa_isa isa = packed_isa(packing, kind)
    cdef object array_dtype = as_dtype(dtype, kind)
    cdef int code = type_of(array_dtype)
    cdef fa_weight_type type = FA_WEIGHT_REAL
    cdef RecurrentWeights w
    cdef fa_recurrent_weights *into
    cdef uintptr_t address
    cdef Py_ssize_t i, layers, directions, I, H, P
    layers, directions, I, H, P = sizes
    projected, has_peepholes = optional
    if type_name != NAMES[code]:
        if code != FA_F32:
            raise wrong_type(kind, "the pickled weights", None)
        type = <fa_weight_type><int>WEIGHT_TYPES[type_name]
    if (cell not in CELLS or layers < 1 or directions not in (1, 2)
            or min(I, H, P) < 0 or max(I, H, P) > LARGEST_PICKLED
            or len(packed) != layers * directions or not (projected or H == P)):
        raise wrong_shape(kind, "the pickled weights", "be of a known cell, with a part for each layer and direction",
                          f"{cell!r}, {sizes} and {len(packed)} parts")
    w = new_weights(kind, cell, layers, directions, I, H, P, array_dtype)
    w.is_packed, w.weight_dtype = True, type_name
    for i in range(layers * directions):
        into = &w.lane[i].weights
        into.cell, into.I, into.H, into.P = CELLS[cell], I if i < directions else directions * P, H, P
        # Which there are is part of the layout; of packed weights the pointers are not read otherwise.
        into.w_hr = into if projected else NULL
        into.peephole = into if has_peepholes else NULL
        w.held.append(copy_packed(packed[i], fa_recurrent_packed_bytes(<fa_dtype>code, isa, type, into), kind,
                                  &address))
        w.lane[i].packed, w.lane[i].isa, w.lane[i].type = <const void *>address, isa, type
        w.lane[i].reverse = i % directions
    return w

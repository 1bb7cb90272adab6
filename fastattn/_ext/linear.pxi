# y = activation(x w' + b), and its gradients.

cdef dict ACTIVATIONS = {
    None: FA_IDENTITY, "tanh": FA_TANH, "sigmoid": FA_SIGMOID, "relu": FA_RELU, "gelu": FA_GELU, "gelu_tanh":
    FA_GELU_TANH,
    "silu": FA_SILU,
}


cdef enum:
    PACKED_ALIGNMENT = 64      # bytes: packed weights begin with a cache line
    LARGEST_PICKLED = 1 << 28  # rows or columns: no product of two, gates and bytes overflows


@cython.auto_pickle(False)
cdef class PackedLinear:
    """Weights of a linear layer in the layout of the kernels, from fastattn.pack_linear. Read-only; keeps to the ISA it
    was packed for. Pickles hold the packed weights, and load where fastattn has the same version and the CPU that ISA;
    elsewhere they raise ValueError."""

    cdef object buffer
    cdef char *data
    cdef fa_isa isa
    cdef int dtype_code
    cdef fa_weight_type type
    cdef readonly object dtype  # of x
    cdef readonly str weight_dtype
    cdef Py_ssize_t N, K

    def __init__(self):
        raise TypeError("PackedLinear objects come from fastattn.pack_linear")

    @property
    def shape(self):
        """(out, in) of the weight."""
        return (self.N, self.K)

    @property
    def isa(self):
        return text(fa_isa_name(self.isa))

    @property
    def nbytes(self):
        return self.buffer.nbytes

    def __repr__(self):
        return f"<PackedLinear {self.N} x {self.K} {self.weight_dtype} for {text(fa_isa_name(self.isa))}>"

    def __copy__(self):
        return self  # nothing in it changes

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        packed = packed_part(self.buffer, self.data, self.nbytes - PACKED_ALIGNMENT)
        return unpickled_linear, (packing_of(self.isa), self.dtype, self.weight_dtype, self.N, self.K, packed)


cdef object new_packed(size_t size, str op, uintptr_t *address):
    """Memory for packed weights, and where they begin in it."""
    cdef object buffer = new_array((size + PACKED_ALIGNMENT,), np.uint8, op)
    cdef uintptr_t first = <uintptr_t>index_pointer(buffer)
    address[0] = (first + PACKED_ALIGNMENT - 1) // PACKED_ALIGNMENT * PACKED_ALIGNMENT
    return buffer


cdef object packed_part(object buffer, const void *data, size_t size):
    """The packed weights in a buffer from new_packed."""
    cdef size_t first = <uintptr_t>data - <uintptr_t>index_pointer(buffer)
    return buffer[first:first + size]


cdef str version():
    from fastattn.config import version as of_fastattn  # which imports this module
    return of_fastattn()


cdef tuple packing_of(fa_isa isa):
    """The sizes that the layout of packed weights depends on."""
    return version(), text(fa_isa_name(isa))


cdef fa_isa packed_isa(object packing, str kind) except *:
    """The instruction set of packed weights that were pickled; they are of use where it is there, and the layout is."""
    made_by, name = packing
    if made_by != version():
        raise ValueError(f"{kind}: pickled weights must be packed by this version of fastattn, {version()}, got "
                         f"{made_by}; pack the weights again")
    if name not in available_isas():
        raise ValueError(f"{kind}: pickled weights must be packed for an instruction set of this CPU, "
                         f"{available_isas()}, got {name!r}; pack the weights here, or pickle those under use_isa")
    return <fa_isa><int>isa_names().index(name)


cdef object copy_packed(object packed, size_t size, str kind, uintptr_t *address):
    """new_packed, with the bytes that were pickled."""
    packed = as_ndarray(packed, kind, "the pickled weights")
    if packed.dtype != np.uint8 or packed.shape != (size,):
        raise wrong_shape(kind, "the pickled weights", f"be {size} bytes", f"{packed.dtype} of shape {packed.shape}")
    buffer = new_packed(size, kind, address)
    packed_part(buffer, <const void *>address[0], size)[...] = packed
    return buffer


cdef object set_types(PackedLinear packed, object dtype, bint as_bytes):
    packed.dtype, packed.dtype_code = dtype, type_of(dtype)
    packed.type = FA_WEIGHT_INT8 if as_bytes else FA_WEIGHT_REAL
    packed.weight_dtype = "int8" if as_bytes else NAMES[packed.dtype_code]


def unpickled_linear(packing, dtype, str weight_dtype, Py_ssize_t N, Py_ssize_t K, object packed):
    """PackedLinear.__reduce__'s."""
    cdef PackedLinear linear = PackedLinear.__new__(PackedLinear)
    cdef str kind = "PackedLinear"
    cdef uintptr_t address
    if not (0 <= N <= LARGEST_PICKLED and 0 <= K <= LARGEST_PICKLED):
        raise wrong_shape(kind, "the pickled shape", f"have sizes in 0..{LARGEST_PICKLED}", f"{(N, K)}")
    set_types(linear, as_dtype(dtype, kind), weight_dtype == "int8")
    if linear.weight_dtype != weight_dtype or (linear.type != FA_WEIGHT_REAL and linear.dtype_code != FA_F32):
        raise wrong_type(kind, "the pickled weights", None)
    linear.isa, linear.N, linear.K = packed_isa(packing, kind), N, K
    linear.buffer = copy_packed(packed, fa_linear_packed_bytes(<fa_dtype>linear.dtype_code, linear.isa, linear.type, N,
                                                               K), kind, &address)
    linear.data = <char *>address
    return linear


cdef bint is_int8(object dtype):
    """Whether it is the name or the type of bytes: as_dtype knows floating-point types alone."""
    if isinstance(dtype, np.dtype):
        return dtype == np.int8
    return dtype is np.int8 or (isinstance(dtype, str) and dtype == "int8")


def pack_linear(object weight, object dtype):
    cdef Array w
    cdef PackedLinear packed = PackedLinear.__new__(PackedLinear)
    cdef str op = "pack_linear"
    cdef size_t size
    cdef uintptr_t address
    cdef fa_status status
    cdef bint as_bytes = is_int8(dtype)
    if dtype is not None:
        dtype = float32 if as_bytes else as_dtype(dtype, op)
        weight = as_ndarray(weight, op, "weight")
        if type_of(weight.dtype) < 0:
            raise wrong_type(op, "weight", weight, ALL_TYPES)
        try:
            with DefaultFloats():
                weight = weight.astype(dtype, copy=False)
        except (MemoryError, ValueError):  # ValueError: the number of bytes overflows
            raise no_memory(op, "a copy of weight", weight.shape, dtype) from None
    w.held = False
    try:
        acquire_matrix(&w, weight, op, "weight", ALL_TYPES)
        packed.isa = fa_get_isa()
        set_types(packed, dtype_of(&w), as_bytes)
        packed.N = w.shape[0]
        packed.K = w.shape[1]
        size = fa_linear_packed_bytes(<fa_dtype>w.dtype, packed.isa, packed.type, packed.N, packed.K)
        packed.buffer = new_packed(size, op, &address)
        packed.data = <char *>address
        with nogil:
            status = fa_linear_pack(<fa_dtype>w.dtype, packed.isa, packed.type, packed.data, w.data, w.stride[0],
                                    packed.N, packed.K)
        raise_status(status, op)
    finally:
        release(&w)
    return packed


cdef object acquire_matrix(Array *a, object value, str op, str name, int dtype):
    """A matrix whose row stride C can take: BLAS needs rows in rising order."""
    acquire_weight(a, value, op, name, dtype, False)


cdef bint acquire_weight(Array *a, object value, str op, str name, int dtype, bint transposable) except -1:
    """acquire_matrix; where C takes those, the transposed view of a matrix is held as it is. Whether it is one."""
    cdef object array = acquire(a, value, op, name, 2, dtype, transposable)
    if a.shape[0] > 1 and a.shape[1] > 1 and a.stride[0] == 1 and a.stride[1] >= a.shape[0]:
        return True
    if a.stride[1] != 1 or a.shape[0] > 1 and a.stride[0] < a.shape[1]:
        hold_copy(a, array, op, name)
    if a.shape[0] <= 1:
        a.stride[0] = a.shape[1]
    return False


cdef fa_activation as_activation(object name, str op, str argument) except *:
    name = plain_text(name)
    if not (name is None or isinstance(name, str)) or name not in ACTIVATIONS:
        raise ValueError(f"{op}: {argument} must be one of {list(ACTIVATIONS)}, got {shown(name)}")
    return ACTIVATIONS[name]


def linear(object x, object weight, object bias, object activation, object out, bint save, str op):
    """y, or with `save` the pair (y, z): z the sum before the activation, or y where that will do for the gradient."""
    cdef Array a, w, b, y, z
    cdef PackedLinear packed = None
    cdef fa_status status
    cdef fa_activation f
    cdef fa_linear_strategy strategy = FA_LINEAR_BLAS if by_blas(FA_SETTING_LINEAR) else FA_LINEAR_NATIVE
    cdef fa_linear_arguments arguments
    cdef Py_ssize_t N, K
    cdef object result, sums = None
    arguments.z = arguments.w = arguments.packed = arguments.bias = NULL
    arguments.ldw, arguments.isa, arguments.type = 0, FA_ISA_BASELINE, FA_WEIGHT_REAL
    arguments.w_transposed = False
    a.held = w.held = b.held = y.held = z.held = False
    f = as_activation(activation, op, "activation")
    x, bias = as_ndarray(x, op, "x"), as_optional(bias, op, "bias")
    if isinstance(weight, PackedLinear):
        packed = weight
        if save:
            raise TypeError(f"{op}: weight must be an array, which the gradient needs, got a PackedLinear")
    else:
        weight = as_ndarray(weight, op, "weight")
    try:
        acquire_contiguous(&a, x, op, "x", -1, ALL_TYPES)
        check_axis(&a, op, "x")
        if packed is not None:
            N, K = packed.N, packed.K
            if packed.dtype_code != a.dtype:
                raise TypeError(f"{op}: x must be {packed.dtype} like the packed weight, got {NAMES[a.dtype]}")
        else:
            arguments.w_transposed = acquire_weight(&w, weight, op, "weight", a.dtype, strategy == FA_LINEAR_NATIVE)
            N, K = w.shape[0], w.shape[1]
        if strategy == FA_LINEAR_BLAS and a.dtype != real_dtype(a.dtype):
            raise ValueError(f"{op}: strategy 'blas' takes float32 and float64, got {NAMES[a.dtype]}; choose 'native'")
        if a.shape[a.ndim - 1] != K:
            raise wrong_shape(op, "x", f"have a last axis of {K}, the columns of weight", f"shape {shape_of(&a)}")
        if bias is not None:
            acquire_contiguous(&b, bias, op, "bias", 1, a.dtype)
            if b.shape[0] != N:
                raise wrong_shape(op, "bias", f"have shape ({N},), the rows of weight", f"shape {shape_of(&b)}")
            arguments.bias = b.data
        shape = (*[a.shape[i] for i in range(a.ndim - 1)], N)
        if out is not None and acquire_out(&y, out, shape, &a, op) and is_contiguous(&y) and not (
            overlap(&y, &a) or (w.held and overlap(&y, &w)) or (b.held and overlap(&y, &b))
        ):
            result = out
        else:
            release(&y)
            result = new_like(&y, shape, &a, op)
        if save and f == FA_RELU:
            sums = result
        elif save and f != FA_IDENTITY:
            sums = new_like(&z, shape, &a, op)
            arguments.z = z.data
        arguments.M, arguments.N, arguments.K = rows_before(&a), N, K
        arguments.y, arguments.ldy = y.data, N
        arguments.x, arguments.ldx = a.data, K
        arguments.activation, arguments.strategy = f, strategy
        if packed is None:
            arguments.w, arguments.ldw = w.data, w.stride[1 if arguments.w_transposed else 0]
        else:
            arguments.packed, arguments.isa, arguments.type = packed.data, packed.isa, packed.type
        with nogil:
            status = fa_linear_forward(<fa_dtype>a.dtype, &arguments)
        raise_status(status, op)
    finally:
        release(&a)
        release(&w)
        release(&b)
        release(&y)
        release(&z)
    return (result, sums) if save else copy_to(out, result)


cdef Py_ssize_t rows_before(const Array *a) noexcept nogil:
    """The product of all axes but the last."""
    cdef Py_ssize_t rows = 1
    cdef int i
    for i in range(a.ndim - 1):
        rows *= a.shape[i]
    return rows


def linear_backward(object dy, object x, object weight, object z, object activation, object bias, bint with_dx,
                    object add_to, str op, object dweight_out=None, str of_add_to="add_to"):
    """(dx, dweight, dbias) from what `linear` saved; `bias`: whether there was one. add_to: a contiguous array like x,
    to which dx is added in place, and that messages call of_add_to. dweight_out: where dweight goes, rows of any
    distance. Without with_dx dx is None."""
    cdef Array g, a, w, s, dx, dw, db
    cdef fa_linear_backward_arguments arguments
    cdef fa_status status
    cdef object result = None, dweight, dbias = None
    cdef bint with_bias = as_flag(bias, op, "saved.bias")
    g.held = a.held = w.held = s.held = dx.held = dw.held = db.held = False
    arguments.activation = as_activation(activation, op, "saved.activation")
    x, weight, dy = as_ndarray(x, op, "saved.x"), as_ndarray(weight, op, "saved.weight"), as_ndarray(dy, op, "dy")
    if arguments.activation != FA_IDENTITY:
        z = as_ndarray(z, op, "saved.z")
    try:
        acquire_contiguous(&a, x, op, "saved.x", -1, ALL_TYPES)
        check_axis(&a, op, "saved.x")
        acquire_matrix(&w, weight, op, "saved.weight", a.dtype)
        if a.shape[a.ndim - 1] != w.shape[1]:
            raise wrong_shape(op, "saved.x", f"have a last axis of {w.shape[1]}, the columns of saved.weight",
                              f"shape {shape_of(&a)}")
        arguments.N, arguments.K, arguments.ldw = w.shape[0], w.shape[1], w.stride[0]
        shape = shape_of(&a)
        outputs = (*shape[:len(shape) - 1], arguments.N)
        acquire_contiguous(&g, dy, op, "dy", -1, a.dtype)
        if shape_of(&g) != outputs:
            raise wrong_shape(op, "dy", f"have the shape of the result, {outputs}", f"shape {shape_of(&g)}")
        if arguments.activation != FA_IDENTITY:
            acquire_shaped(&s, z, outputs, a.dtype, op, "saved.z")
        arguments.add_dx = add_to is not None
        if add_to is not None:
            if not (acquire_out(&dx, add_to, shape, &a, op, of_add_to) and is_contiguous(&dx)):
                raise wrong_shape(op, of_add_to, "be contiguous", "other strides")
            result = add_to
        elif with_dx:
            result = new_like(&dx, shape, &a, op)
        if dweight_out is None:
            dweight = new_like(&dw, (arguments.N, arguments.K), &a, op)
        else:
            dweight = dweight_out
            if not (acquire_out(&dw, dweight, (arguments.N, arguments.K), &a, op, "dweight_out")
                    and dw.stride[0] >= arguments.K):
                raise wrong_shape(op, "dweight_out", "have rows one after another", "other strides")
        arguments.lddw = dw.stride[0]
        if with_bias:
            dbias = new_like(&db, (arguments.N,), &a, op)
        arguments.M = rows_before(&a)
        arguments.dy, arguments.x, arguments.w, arguments.z = g.data, a.data, w.data, data_of(&s)
        arguments.dx, arguments.dw, arguments.dbias = data_of(&dx), dw.data, data_of(&db)
        with nogil:
            status = fa_linear_backward(<fa_dtype>a.dtype, &arguments)
        raise_status(status, op)
    finally:
        release(&g)
        release(&a)
        release(&w)
        release(&s)
        release(&dx)
        release(&dw)
        release(&db)
    return result, dweight, dbias

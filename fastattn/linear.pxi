# y = activation(x w' + b).

cdef dict ACTIVATIONS = {
    None: FA_IDENTITY, "tanh": FA_TANH, "sigmoid": FA_SIGMOID, "relu": FA_RELU, "gelu": FA_GELU, "gelu_tanh":
    FA_GELU_TANH,
    "silu": FA_SILU,
}


@cython.auto_pickle(False)
cdef class PackedLinear:
    """Weights of a linear layer in the layout of the kernels, from fastattn.pack_linear. Read-only; keeps to the ISA it
    was packed for."""

    cdef object buffer
    cdef char *data
    cdef fa_isa isa
    cdef int dtype_code
    cdef Py_ssize_t N, K

    def __init__(self):
        raise TypeError("PackedLinear objects come from fastattn.pack_linear")

    @property
    def shape(self):
        """(out, in) of the weight."""
        return (self.N, self.K)

    @property
    def dtype(self):
        return ALL_DTYPES[self.dtype_code]

    @property
    def isa(self):
        return text(fa_isa_name(self.isa))

    @property
    def nbytes(self):
        return self.buffer.nbytes

    def __repr__(self):
        return f"<PackedLinear {self.N} x {self.K} {self.dtype} for {text(fa_isa_name(self.isa))}>"


def pack_linear(object weight, object dtype):
    cdef Array w
    cdef PackedLinear packed = PackedLinear.__new__(PackedLinear)
    cdef str op = "pack_linear"
    cdef size_t size
    cdef uintptr_t address
    if dtype is not None:
        kind = kind_of(dtype, op)
        weight = as_ndarray(weight, op, "weight")
        if weight.dtype not in DTYPES and not is_low_precision(weight.dtype):
            raise wrong_type(op, "weight", weight, ALL_TYPES)
        weight = weight.astype(ALL_DTYPES[kind], copy=False)
    w.held = False
    try:
        acquire_matrix(&w, weight, op, "weight", ALL_TYPES)
        packed.isa = fa_get_isa()
        packed.dtype_code = w.dtype
        packed.N = w.shape[0]
        packed.K = w.shape[1]
        size = fa_linear_packed_bytes(<fa_dtype>w.dtype, packed.isa, packed.N, packed.K)
        packed.buffer = new_array((size + 64,), np.uint8, op)
        address = packed.buffer.ctypes.data
        packed.data = <char *>((address + 63) // 64 * 64)
        with nogil:
            fa_linear_pack(<fa_dtype>w.dtype, packed.isa, packed.data, w.data, w.stride[0], packed.N, packed.K)
    finally:
        release(&w)
    return packed


cdef object acquire_matrix(Array *a, object value, str op, str name, int dtype):
    """A matrix whose row stride C can take: BLAS wants rows that follow one another."""
    cdef object array = acquire(a, value, op, name, 2, dtype)
    if a.shape[0] > 1 and a.stride[0] < a.shape[1]:
        release(a)
        acquire(a, np.ascontiguousarray(array), op, name, 2, dtype)
    if a.shape[0] <= 1:
        a.stride[0] = a.shape[1]
    return array


def linear(object x, object weight, object bias, object activation, object out):
    cdef Array a, w, b, y
    cdef PackedLinear packed = None
    cdef str op = "linear"
    cdef fa_status status
    cdef fa_activation f
    cdef fa_linear_strategy strategy = FA_LINEAR_BLAS if linear_strategy == 1 else FA_LINEAR_NATIVE
    cdef Py_ssize_t N, K, M, ldy
    cdef object result
    cdef char *bias_data = NULL
    a.held = w.held = b.held = y.held = False
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
    f = ACTIVATIONS[activation]
    try:
        acquire_contiguous(&a, x, op, "x", -1, ALL_TYPES)
        if a.ndim == 0:
            raise wrong_shape(op, "x", "have at least one axis", "a scalar")
        if isinstance(weight, PackedLinear):
            packed = weight
            N, K = packed.N, packed.K
            if packed.dtype_code != a.dtype:
                raise TypeError(f"{op}: x must be {packed.dtype} like the packed weight, got {NAMES[a.dtype]}")
        else:
            acquire_matrix(&w, weight, op, "weight", a.dtype)
            N, K = w.shape[0], w.shape[1]
        if strategy == FA_LINEAR_BLAS and a.dtype != real_dtype(a.dtype):
            raise ValueError(f"{op}: strategy 'blas' takes float32 and float64, got {NAMES[a.dtype]}; choose 'native'")
        if a.shape[a.ndim - 1] != K:
            raise wrong_shape(op, "x", f"have a last axis of {K}, the columns of weight", f"shape {shape_of(&a)}")
        if bias is not None:
            acquire_contiguous(&b, bias, op, "bias", 1, a.dtype)
            if b.shape[0] != N:
                raise wrong_shape(op, "bias", f"have shape ({N},), the rows of weight", f"shape {shape_of(&b)}")
            bias_data = b.data
        shape = (*[a.shape[i] for i in range(a.ndim - 1)], N)
        if out is not None and acquire_out(&y, out, shape, a.dtype, op) and is_contiguous(&y) and not (
            overlap(&y, &a) or (w.held and overlap(&y, &w)) or (b.held and overlap(&y, &b))
        ):
            result = out
        else:
            release(&y)
            result = new_out(&y, shape, a.dtype, op)
        M = 1
        for i in range(a.ndim - 1):
            M *= a.shape[i]
        with nogil:
            if packed is None:
                status = fa_linear_forward(<fa_dtype>a.dtype, y.data, N, a.data, K, w.data, w.stride[0], bias_data,
                                           M, N, K, f, strategy)
            else:
                status = fa_linear_forward_packed(<fa_dtype>a.dtype, packed.isa, y.data, N, a.data, K, packed.data,
                                                  bias_data, M, N, K, f)
        raise_status(status, op)
    finally:
        release(&a)
        release(&w)
        release(&b)
        release(&y)
    return copy_to(out, result)

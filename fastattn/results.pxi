# Result arrays: those that a caller gives, and fresh ones.

cdef bint has_sizes(const Py_buffer *view, int ndim, const Py_ssize_t *sizes) noexcept:
    return view.ndim == ndim and memcmp(view.shape, sizes, ndim * sizeof(Py_ssize_t)) == 0


cdef bint acquire_sized(Array *a, object out, int ndim, const Py_ssize_t *sizes, int dtype, str op, str name) except -1:
    """acquire_out, of a shape that no tuple has been made of."""
    a.held = False
    if type(out) is not ndarray and not isinstance(out, ndarray):
        raise TypeError(f"{op}: {name} must be an ndarray, got {type(out).__name__}")
    if (hold(a, bits_of(out) if dtype == FA_BF16 else out, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE)
            and (dtype == FA_BF16 and is_bfloat16(out.dtype) or format_dtype(a.view.format) == dtype)
            and has_sizes(&a.view, ndim, sizes)):
        a.dtype = dtype
        if fill(a):
            return True
    else:
        shape = shape_from(ndim, sizes)
        if out.shape != shape or out.dtype != ALL_DTYPES[dtype]:
            raise wrong_shape(op, name, f"have shape {shape} and dtype {ALL_DTYPES[dtype]}",
                              f"{out.shape} and {out.dtype}")
        if not out.flags.writeable:
            raise wrong_shape(op, name, "be writable", "a read-only array")
    release(a)
    return False


cdef bint acquire_out(Array *a, object out, tuple shape, int dtype, str op, str name="out") except -1:
    """Holds a caller's output array. False (and nothing held) when the result must go through an array of our own and
    be copied: C cannot take the layout."""
    cdef Py_ssize_t sizes[8]
    cdef int i, ndim = <int>len(shape)  # at most MAX_DIMS, as of the inputs
    for i in range(ndim):
        sizes[i] = shape[i]
    return acquire_sized(a, out, ndim, sizes, dtype, op, name)


@cython.auto_pickle(False)
@cython.final
cdef class ResultMemory:
    """Memory of a large array that keeps it alive (its `base`); given back when the last view of it dies."""

    cdef fa_scratch block
    cdef Py_ssize_t size

    def __init__(self):
        raise TypeError("memory of results comes with their arrays")

    def __dealloc__(self):
        if self.block.base != NULL:
            fa_result_give(&self.block)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.block.base, self.size, 0, flags)


cdef object new_large_array(tuple shape, object dtype, Py_ssize_t size, str op):
    """An array of `size` bytes, in memory that a result before it may have left."""
    cdef ResultMemory memory = ResultMemory.__new__(ResultMemory)
    if not fa_result_take(&memory.block, size):
        raise MemoryError(f"{op}: no memory for a result of shape {shape}")
    memory.size = size
    return ndarray(shape, dtype, memory)


cdef object new_empty(tuple shape, object dtype, str op):
    try:
        return empty(shape, dtype)
    except (MemoryError, ValueError):  # ValueError: the number of bytes overflows
        raise MemoryError(f"{op}: no memory for a result of shape {shape}") from None


cpdef object new_array(tuple shape, object dtype, str op):
    """A fresh array. NumPy says how large it is, which costs a large one no memory yet."""
    cdef object out = new_empty(shape, dtype, op)
    cdef Py_ssize_t size = out.nbytes
    return out if size < <Py_ssize_t>FA_RESULT_LEAST_BYTES else new_large_array(shape, dtype, size, op)


cdef object new_out(Array *a, tuple shape, int dtype, str op):
    """A fresh output, held."""
    cdef object out = new_empty(shape, ALL_DTYPES[dtype], op)
    cdef Py_ssize_t size
    a.held = False
    hold_output(a, out, dtype)
    size = a.view.len
    if size >= <Py_ssize_t>FA_RESULT_LEAST_BYTES:
        release(a)
        out = new_large_array(shape, ALL_DTYPES[dtype], size, op)
        hold_output(a, out, dtype)
    a.dtype = dtype
    fill(a)
    return out


cdef object hold_output(Array *a, object out, int dtype):
    cdef object bits = bits_of(out) if dtype == FA_BF16 else out
    PyObject_GetBuffer(bits, &a.view, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE)
    a.held = True


def check_out(object out, object x, str op):
    """Whether `out` can take a result like x."""
    if not isinstance(out, ndarray):
        raise TypeError(f"{op}: out must be an ndarray, got {type(out).__name__}")
    if out.shape != x.shape or out.dtype != x.dtype:
        raise wrong_shape(op, "out", f"have shape {x.shape} and dtype {x.dtype}", f"{out.shape} and {out.dtype}")
    if not out.flags.writeable:
        raise wrong_shape(op, "out", "be writable", "a read-only array")


cdef object copy_to(object out, object result):
    if out is None or out is result:
        return result
    np.copyto(out, result)
    return out

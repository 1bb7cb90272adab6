# Result arrays: those that a caller gives, and fresh ones.

cdef bint has_sizes(const Py_buffer *view, int ndim, const Py_ssize_t *sizes) noexcept:
    return view.ndim == ndim and memcmp(view.shape, sizes, ndim * sizeof(Py_ssize_t)) == 0


cdef object as_output(object value, str op, str name):
    """An ndarray that results are written to, as one of no subclass: no method of it runs."""
    if type(value) is ndarray:
        return value
    if not issubclass(type(value), ndarray) or issubclass(type(value), np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} must be an ndarray, got {type(value).__name__}")
    return np.asarray(value)


cdef bint acquire_sized(Array *a, object out, int ndim, const Py_ssize_t *sizes, const Array *like, str op,
                        str name) except -1:
    """acquire_out, of a shape that no tuple has been made of."""
    cdef bint fits
    a.held = False
    out = as_output(out, op, name)
    a.dtype = hold_floats(a, out, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE)
    if a.dtype != like.dtype or not has_sizes(&a.view, ndim, sizes) or (
        a.bfloat16 != like.bfloat16 and out.dtype != dtype_of(like)
    ):
        shape, dtype = shape_from(ndim, sizes), dtype_of(like)
        if out.shape != shape or out.dtype != dtype:
            raise wrong_shape(op, name, f"have shape {shape} and dtype {dtype}", f"{out.shape} and {out.dtype}")
        raise wrong_shape(op, name, "be writable", "a read-only array")
    fits = fill(a)
    if not (fits and is_contiguous(a)) and overlaps_itself(a):
        raise wrong_shape(op, name, "have memory of its own for each element", f"strides {out.strides}")
    if not fits:
        release(a)
    return fits


cdef bint acquire_out(Array *a, object out, tuple shape, const Array *like, str op, str name="out") except -1:
    """Holds a caller's output array, which must have the type of `like`. False (and nothing held) when the result must
    go through an array of our own and be copied: C cannot take the layout."""
    cdef Py_ssize_t sizes[8]
    cdef int i, ndim = <int>len(shape)  # at most MAX_DIMS, as of the inputs
    for i in range(ndim):
        sizes[i] = shape[i]
    return acquire_sized(a, out, ndim, sizes, like, op, name)


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
    """A fresh output of float32, float64 or float16, held."""
    return new_held(a, shape, DTYPES[dtype], dtype, op)


cdef object new_like(Array *a, tuple shape, const Array *like, str op):
    """A fresh output of the dtype of `like`, held."""
    return new_held(a, shape, dtype_of(like), like.dtype, op)


cdef object new_held(Array *a, tuple shape, object dtype, int kind, str op):
    cdef object out = new_empty(shape, dtype, op)
    cdef Py_ssize_t size
    a.held = False
    hold_output(a, out)
    size = a.view.len
    if size >= <Py_ssize_t>FA_RESULT_LEAST_BYTES:
        release(a)
        out = new_large_array(shape, dtype, size, op)
        hold_output(a, out)
    a.dtype = kind
    fill(a)
    return out


cdef object hold_output(Array *a, object out):
    """Holds an array of ours."""
    if hold_floats(a, out, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE) < 0:
        raise AssertionError(f"an output of fastattn's own must be a writable array of floats, got {out.dtype}")


def check_out(object out, object x, str op):
    """Whether `out` can take a result like x."""
    cdef Array a, y
    a.held = y.held = False
    try:
        acquire(&a, x, op, "x", -1, ALL_TYPES)
        acquire_out(&y, out, shape_of(&a), &a, op)
    finally:
        release(&a)
        release(&y)


cdef object copy_to(object out, object result):
    if out is None or out is result:
        return result
    np.copyto(out, result)
    return out

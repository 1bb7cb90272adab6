# Between float32 and the 16-bit types.
#
# Ops without kernels for 16 bits check their arrays as they are, run on the float32 copies that `widened` makes, and
# round each result once: `rounded`.

def cast(object x, object dtype, str op="cast", str name="x"):
    """x, float32 or of a 16-bit type, as a contiguous array of the other: rounded to nearest even."""
    cdef Array a, y
    cdef fa_status status
    cdef object wanted = as_dtype(dtype, op)
    cdef int kind = type_of(wanted)
    a.held = y.held = False
    try:
        acquire_contiguous(&a, x, op, name, -1, ALL_TYPES)
        if (a.dtype == FA_F32) == (kind == FA_F32) or a.dtype == FA_F64 or kind == FA_F64:
            raise TypeError(f"{op}: dtype must be float32 for a 16-bit array, or a 16-bit type for float32, got "
                            f"{NAMES[kind]} for {NAMES[a.dtype]}")
        result = new_held(&y, shape_of(&a), wanted, kind, op)
        with nogil:
            status = fa_cast(<fa_dtype>max(<int>a.dtype, kind), y.data, a.data, count(&a), kind != FA_F32)
        raise_status(status, op)
    finally:
        release(&a)
        release(&y)
    return result


cdef object widened_array(object array, str op, str name):
    """A 16-bit ndarray in float32, its repeated elements still repeated; anything else as it is."""
    cdef tuple shape
    if array is None or array.dtype.itemsize != 2 or array.dtype.kind in "biu":
        return array
    shape = array.shape
    once = array[tuple([slice(0, 1) if step == 0 else slice(None) for step in array.strides])]
    wide = cast(once, float32, op, name)
    return wide if wide.shape == shape else np.broadcast_to(wide, shape)


cdef object rounded(object result, object dtype, str op):
    """A float32 result in the 16-bit `dtype`; None for the dtype: as it is."""
    return result if dtype is None or result is None else cast(result, dtype, op, "the result")

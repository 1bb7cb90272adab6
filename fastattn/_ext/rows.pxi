# Element-wise functions and softmax, with their gradients.

cdef dict MAPS = {
    "exp": FA_EXP, "tanh": FA_TANH, "sigmoid": FA_SIGMOID, "relu": FA_RELU, "gelu": FA_GELU, "gelu_tanh": FA_GELU_TANH,
    "silu": FA_SILU,
}


def map_elements(str kind, object x, object out, str op):
    """y = f(x) for the f that MAPS names."""
    cdef Array a, y
    cdef fa_activation f = MAPS[kind]
    cdef fa_status status
    cdef object result
    a.held = y.held = False
    try:
        acquire_contiguous(&a, x, op, "x", -1, ALL_TYPES)
        shape = shape_of(&a)
        if out is not None and acquire_out(&y, out, shape, &a, op) and is_contiguous(&y) and (
            same_place(&a, &y) or not overlap(&a, &y)
        ):
            result = out
        else:
            release(&y)
            result = new_like(&y, shape, &a, op)
        with nogil:
            status = fa_map(<fa_dtype>a.dtype, f, y.data, a.data, count(&a))
        raise_status(status, op)
    finally:
        release(&a)
        release(&y)
    return copy_to(out, result)


def map_backward(str kind, object dy, object x, str op):
    """dx = dy f'(x) for the f that MAPS names."""
    cdef Array g, a, d
    cdef fa_activation f = MAPS[kind]
    cdef fa_status status
    cdef object result
    g.held = a.held = d.held = False
    x, dy = as_ndarray(x, op, "x"), as_ndarray(dy, op, "dy")
    try:
        acquire_contiguous(&a, x, op, "x", -1, ALL_TYPES)
        acquire_same(&g, dy, op, "dy", &a, "x")
        result = new_like(&d, shape_of(&a), &a, op)
        with nogil:
            status = fa_map_backward(<fa_dtype>a.dtype, f, d.data, g.data, a.data, count(&a))
        raise_status(status, op)
    finally:
        release(&g)
        release(&a)
        release(&d)
    return result


def silu_gated(object gate, object up, object out, str op):
    """silu(gate) up."""
    cdef Array a, u, y
    cdef fa_status status
    cdef object result
    a.held = u.held = y.held = False
    gate, up = as_ndarray(gate, op, "gate"), as_ndarray(up, op, "up")
    try:
        acquire_contiguous(&a, gate, op, "gate", -1, ALL_TYPES)
        acquire_same(&u, up, op, "up", &a, "gate")
        shape = shape_of(&a)
        if out is not None and acquire_out(&y, out, shape, &a, op) and is_contiguous(&y) and (
            same_place(&a, &y) or not overlap(&a, &y)
        ) and (same_place(&u, &y) or not overlap(&u, &y)):
            result = out
        else:
            release(&y)
            result = new_like(&y, shape, &a, op)
        with nogil:
            status = fa_silu_gated_forward(<fa_dtype>a.dtype, y.data, a.data, u.data, count(&a))
        raise_status(status, op)
    finally:
        release(&a)
        release(&u)
        release(&y)
    return copy_to(out, result)


def silu_gated_backward(object dy, object gate, object up, str op):
    """(dgate, dup)."""
    cdef Array g, a, u, da, du
    cdef fa_status status
    cdef object dgate, dup
    g.held = a.held = u.held = da.held = du.held = False
    gate, up, dy = as_ndarray(gate, op, "gate"), as_ndarray(up, op, "up"), as_ndarray(dy, op, "dy")
    try:
        acquire_contiguous(&a, gate, op, "gate", -1, ALL_TYPES)
        acquire_same(&u, up, op, "up", &a, "gate")
        acquire_same(&g, dy, op, "dy", &a, "gate")
        dgate = new_like(&da, shape_of(&a), &a, op)
        dup = new_like(&du, shape_of(&a), &a, op)
        with nogil:
            status = fa_silu_gated_backward(<fa_dtype>a.dtype, da.data, du.data, g.data, a.data, u.data, count(&a))
        raise_status(status, op)
    finally:
        release(&g)
        release(&a)
        release(&u)
        release(&da)
        release(&du)
    return dgate, dup


cdef object check_narrowed(double number, int dtype, str op, str name):
    """Whether a number is finite in the type of the arithmetic too."""
    if real_dtype(dtype) != FA_F64 and fabs(number) > FLT_MAX:
        raise ValueError(f"{op}: {name} must be finite in float32, got {number}")


def softmax_rows(bint log, object x, object scale, object out, str op):
    """Over the last axis. `out` has the shape and dtype of x, or is None."""
    cdef double factor = finite(scale, op, "scale")
    cdef Array a, y
    cdef fa_status status
    cdef object result
    cdef Py_ssize_t n, rows
    a.held = y.held = False
    try:
        acquire_contiguous(&a, x, op, "x", -1, ALL_TYPES)
        check_narrowed(factor, a.dtype, op, "scale")
        shape = shape_of(&a)
        if out is not None and acquire_out(&y, out, shape, &a, op) and is_contiguous(&y) and (
            same_place(&a, &y) or not overlap(&a, &y)
        ):
            result = out
        else:
            release(&y)
            result = new_like(&y, shape, &a, op)
        n = a.shape[a.ndim - 1]
        rows = count(&a) // n if n else 0
        with nogil:
            status = fa_softmax_forward(<fa_dtype>a.dtype, log, y.data, n, a.data, n, rows, n, factor)
        raise_status(status, op)
    finally:
        release(&a)
        release(&y)
    return copy_to(out, result)


def softmax_backward_rows(bint log, object dy, object y, object scale, str op):
    """Over the last axis."""
    cdef double factor = finite(scale, op, "scale")
    cdef Array g, a, d
    cdef fa_status status
    cdef object result
    cdef Py_ssize_t n, rows
    g.held = a.held = d.held = False
    y, dy = as_ndarray(y, op, "y"), as_ndarray(dy, op, "dy")
    try:
        acquire_contiguous(&a, y, op, "y", -1, ALL_TYPES)
        acquire_contiguous(&g, dy, op, "dy", -1, a.dtype)
        check_narrowed(factor, a.dtype, op, "scale")
        shape = shape_of(&a)
        if shape_of(&g) != shape:
            raise wrong_shape(op, "dy", f"have the shape of y, {shape}", f"shape {shape_of(&g)}")
        result = new_like(&d, shape, &a, op)
        n = a.shape[a.ndim - 1]
        rows = count(&a) // n if n else 0
        with nogil:
            status = fa_softmax_backward(<fa_dtype>a.dtype, log, d.data, g.data, a.data, rows, n, factor)
        raise_status(status, op)
    finally:
        release(&g)
        release(&a)
        release(&d)
    return result

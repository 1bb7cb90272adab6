# Layer norm and RMS norm over the last axis.

cdef dict NORMS = {"layer": FA_LAYER_NORM, "rms": FA_RMS_NORM}


cdef object acquire_same(Array *a, object value, str op, str name, const Array *model, str model_name):
    """A contiguous array with the shape and dtype of another."""
    acquire_contiguous(a, value, op, name, -1, model.dtype)
    if shape_of(a) != shape_of(model):
        raise wrong_shape(op, name, f"have the shape of {model_name}, {shape_of(model)}", f"shape {shape_of(a)}")


cdef object acquire_like(Array *a, object value, str op, str name, const Array *model, str model_name):
    """acquire_same; None holds nothing."""
    if value is not None:
        acquire_same(a, value, op, name, model, model_name)


cdef object check_axis(const Array *a, str op, str name):
    """That there is a last axis."""
    if a.ndim == 0:
        raise wrong_shape(op, name, "have at least one axis", "a scalar")


cdef int columns_dtype(object weight, object bias, const Array *x):
    """fa_dtype of weight and bias: that of x, or beside 16-bit arrays float32."""
    cdef object first = bias if weight is None else weight
    return x.dtype if first is None else dtype_beside(first, x.dtype)


cdef object acquire_columns(Array *a, object value, str op, str name, const Array *x, int dtype):
    """A contiguous vector, one element for each column of x; None holds nothing."""
    if value is None:
        return
    acquire_contiguous(a, value, op, name, 1, dtype)
    if a.shape[0] != x.shape[x.ndim - 1]:
        raise wrong_shape(op, name, f"have shape ({x.shape[x.ndim - 1]},), the last axis of x", f"shape {shape_of(a)}")


cdef void *data_of(const Array *a) noexcept:
    return a.data if a.held else NULL


def norm(str kind, object x, object residual, object weight, object bias, object eps, object out, bint statistics,
         str op):
    """(y, sum, mean, rstd): sum is x + residual, or x itself; mean and rstd of each row if `statistics` is set."""
    cdef Array a, r, w, b, y, s, m, d
    cdef fa_norm_arguments arguments
    cdef fa_status status
    cdef int kind_of_columns
    cdef object result, total, mean = None, rstd = None
    a.held = r.held = w.held = b.held = y.held = s.held = m.held = d.held = False
    arguments.kind = NORMS[kind]
    arguments.eps = as_float(eps, op, "eps")
    if not (arguments.eps >= 0 and isfinite(arguments.eps)):
        raise ValueError(f"{op}: eps must be at least 0 and finite, got {arguments.eps}")
    x, residual = as_ndarray(x, op, "x"), as_optional(residual, op, "residual")
    weight, bias = as_optional(weight, op, "weight"), as_optional(bias, op, "bias")
    try:
        total = acquire_contiguous(&a, x, op, "x", -1, ALL_TYPES)
        check_narrowed(arguments.eps, a.dtype, op, "eps")
        check_axis(&a, op, "x")
        acquire_like(&r, residual, op, "residual", &a, "x")
        kind_of_columns = columns_dtype(weight, bias, &a)
        arguments.wide = kind_of_columns != a.dtype
        acquire_columns(&w, weight, op, "weight", &a, kind_of_columns)
        acquire_columns(&b, bias, op, "bias", &a, kind_of_columns)
        shape = shape_of(&a)
        lead = shape[:len(shape) - 1]
        if out is not None and acquire_out(&y, out, shape, &a, op) and is_contiguous(&y) and not (
            (overlap(&y, &a) and not same_place(&y, &a)) or (r.held and overlap(&y, &r))
            or (w.held and overlap(&y, &w)) or (b.held and overlap(&y, &b))
        ):
            result = out
        else:
            release(&y)
            result = new_like(&y, shape, &a, op)
        if r.held:
            total = new_like(&s, shape, &a, op)
        if statistics:
            if arguments.kind == FA_LAYER_NORM:
                mean = new_out(&m, lead, real_dtype(a.dtype), op)
            rstd = new_out(&d, lead, real_dtype(a.dtype), op)
        arguments.n = a.shape[a.ndim - 1]
        arguments.rows = rows_of(&a)
        arguments.y, arguments.x = y.data, a.data
        arguments.sum, arguments.residual = data_of(&s), data_of(&r)
        arguments.weight, arguments.bias = data_of(&w), data_of(&b)
        arguments.mean, arguments.rstd = data_of(&m), data_of(&d)
        with nogil:
            status = fa_norm_forward(<fa_dtype>a.dtype, &arguments)
        raise_status(status, op)
    finally:
        release(&a)
        release(&r)
        release(&w)
        release(&b)
        release(&y)
        release(&s)
        release(&m)
        release(&d)
    return copy_to(out, result), total, mean, rstd


cdef Py_ssize_t rows_of(const Array *a) noexcept:
    """Rows along the last axis, 0 where they are empty."""
    cdef Py_ssize_t n = a.shape[a.ndim - 1]
    return count(a) // n if n else 0


def norm_backward(str kind, object dy, object x, object weight, object mean, object rstd, object dsum, object bias,
                  str op):
    """(dx, dweight, dbias) from the sum, mean and rstd of `norm`; dweight is None without a weight, dbias unless `bias`
    asks. Both have the type of the weight."""
    cdef Array g, a, w, m, d, s, dx, dw, db
    cdef fa_norm_backward_arguments arguments
    cdef fa_status status
    cdef int kind_of_columns
    cdef object result, dweight = None, dbias = None
    cdef bint with_bias = as_flag(bias, op, "saved.bias")
    g.held = a.held = w.held = m.held = d.held = s.held = dx.held = dw.held = db.held = False
    arguments.kind = NORMS[kind]
    if (mean is None) != (arguments.kind == FA_RMS_NORM):
        raise wrong_shape(op, "saved", f"come from {kind}_norm_forward", "that of another norm")
    x, dy, dsum = as_ndarray(x, op, "saved.x"), as_ndarray(dy, op, "dy"), as_optional(dsum, op, "dsum")
    weight, rstd = as_optional(weight, op, "saved.weight"), as_ndarray(rstd, op, "saved.rstd")
    mean = as_optional(mean, op, "saved.mean")
    try:
        acquire_contiguous(&a, x, op, "saved.x", -1, ALL_TYPES)
        check_axis(&a, op, "saved.x")
        acquire_same(&g, dy, op, "dy", &a, "x")
        acquire_like(&s, dsum, op, "dsum", &a, "x")
        kind_of_columns = columns_dtype(weight, None, &a)
        arguments.wide = kind_of_columns != a.dtype
        acquire_columns(&w, weight, op, "saved.weight", &a, kind_of_columns)
        shape = shape_of(&a)
        lead = shape[:len(shape) - 1]
        acquire_shaped(&d, rstd, lead, real_dtype(a.dtype), op, "saved.rstd")
        acquire_optional(&m, mean, lead, real_dtype(a.dtype), op, "saved.mean")
        result = new_like(&dx, shape, &a, op)
        arguments.n = a.shape[a.ndim - 1]
        arguments.rows = rows_of(&a)
        if w.held:
            dweight = new_like(&dw, (arguments.n,), &w, op)
        if with_bias:
            dbias = new_like(&db, (arguments.n,), &w if w.held else &a, op)
        arguments.dx, arguments.dweight, arguments.dbias = dx.data, data_of(&dw), data_of(&db)
        arguments.dy, arguments.x, arguments.weight = g.data, a.data, data_of(&w)
        arguments.dsum, arguments.mean, arguments.rstd = data_of(&s), data_of(&m), d.data
        with nogil:
            status = fa_norm_backward(<fa_dtype>a.dtype, &arguments)
        raise_status(status, op)
    finally:
        release(&g)
        release(&a)
        release(&w)
        release(&m)
        release(&d)
        release(&s)
        release(&dx)
        release(&dw)
        release(&db)
    return result, dweight, dbias

# Cross-entropy of rows of logits, and its gradient.


def cross_entropy(object logits, object targets, object ignore_index, object label_smoothing, str reduction, str op):
    """(loss, top, sum, targets, number of targets that are not ignored). The three beside loss have the shape of
    targets, and top and sum are float32 for 16-bit logits."""
    cdef Array x, loss, top, total
    cdef fa_cross_entropy_arguments arguments
    cdef fa_status status
    cdef object losses, tops, sums, ids, result
    cdef Py_ssize_t counted
    cdef double number = 0
    cdef bint reduces = reduction != "none", divides = reduction == "mean"
    cdef int kind
    x.held = loss.held = top.held = total.held = False
    arguments.smoothing = as_smoothing(label_smoothing, op, "label_smoothing")
    arguments.ignored = as_ignored(ignore_index, op, "ignore_index")
    logits, targets = as_ndarray(logits, op, "logits"), as_ndarray(targets, op, "targets")
    try:
        acquire_contiguous(&x, logits, op, "logits", -1, ALL_TYPES)
        check_axis(&x, op, "logits")
        shape = shape_of(&x)
        lead = shape[:len(shape) - 1]
        arguments.n = x.shape[x.ndim - 1]
        ids = as_ids(targets, arguments.n, op, "targets", None if ignore_index is None else arguments.ignored)
        if ids.shape != lead:
            raise wrong_shape(op, "targets", f"have shape {lead}, that of logits but for the last axis",
                              f"shape {ids.shape}")
        losses = new_out(&loss, lead, real_dtype(x.dtype), op)
        tops = new_out(&top, lead, real_dtype(x.dtype), op)
        sums = new_out(&total, lead, real_dtype(x.dtype), op)
        dtype = dtype_of(&x)
        arguments.rows = rows_before(&x)
        arguments.x, arguments.target = x.data, index_pointer(ids)
        arguments.loss, arguments.top, arguments.sum = loss.data, top.data, total.data
        kind = real_dtype(x.dtype)
        with nogil:
            status = fa_cross_entropy_forward(<fa_dtype>x.dtype, &arguments)
            counted = arguments.rows - count_equal(arguments.target, arguments.rows, arguments.ignored)
            if status == FA_OK and reduces:
                number = fa_mean(<fa_dtype>kind, loss.data, arguments.rows, counted if divides else 1)
        raise_status(status, op)
        result = scalar(number, x.dtype) if reduces else losses
        if is_low(x.dtype):
            result = cast(np.asarray(result), dtype_of(&x), op)
            result = result[()] if reduces else result
    finally:
        release(&x)
        release(&loss)
        release(&top)
        release(&total)
    return result, tops, sums, ids, counted


cdef object scalar(double number, int dtype):
    """A number that is exact in the type of the arithmetic, as NumPy's."""
    cdef fa_float_state callers = fa_float_enter()  # which may flush small numbers to zero
    cdef object result = (np.float64 if dtype == FA_F64 else np.float32)(number)
    fa_float_leave(&callers)
    return result


cdef Py_ssize_t count_equal(const fa_index *numbers, Py_ssize_t count, fa_index wanted) noexcept nogil:
    cdef Py_ssize_t i, found = 0
    for i in range(count):
        found += numbers[i] == wanted
    return found


cdef double as_smoothing(object value, str op, str name) except? -1.0:
    cdef double smoothing = as_float(value, op, name)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"{op}: {name} must lie in 0..1, got {value}")
    return smoothing


def cross_entropy_backward(object dloss, bint for_each, object logits, object targets, object tops, object sums,
                           object ignore_index, object label_smoothing, str op):
    """dlogits, from dloss and what `cross_entropy` returned. for_each: dloss is an array of the shape of targets, and
    otherwise the number that all its elements are."""
    cdef Array x, d, top, total, g
    cdef fa_cross_entropy_arguments arguments
    cdef fa_status status
    cdef object result
    x.held = d.held = top.held = total.held = g.held = False
    arguments.smoothing = as_smoothing(label_smoothing, op, "saved.label_smoothing")
    arguments.ignored = as_ignored(ignore_index, op, "saved.ignore_index")
    logits, targets = as_ndarray(logits, op, "saved.logits"), as_ndarray(targets, op, "saved.targets")
    tops, sums = as_ndarray(tops, op, "saved.top"), as_ndarray(sums, op, "saved.sum")
    dloss = as_ndarray(dloss, op, "dloss") if for_each else as_float(dloss, op, "dloss")
    try:
        acquire_contiguous(&x, logits, op, "saved.logits", -1, ALL_TYPES)
        check_axis(&x, op, "saved.logits")
        shape = shape_of(&x)
        lead = shape[:len(shape) - 1]
        arguments.n = x.shape[x.ndim - 1]
        acquire_shaped(&top, tops, lead, real_dtype(x.dtype), op, "saved.top")
        acquire_shaped(&total, sums, lead, real_dtype(x.dtype), op, "saved.sum")
        ids = as_ids(targets, arguments.n, op, "saved.targets", None if ignore_index is None else arguments.ignored)
        if ids.shape != lead:
            raise wrong_shape(op, "saved.targets", f"have shape {lead}, that of logits but for the last axis",
                              f"shape {ids.shape}")
        if for_each:
            acquire_contiguous(&g, dloss, op, "dloss", -1, x.dtype)
            if x.dtype != real_dtype(x.dtype):
                release(&g)
                dloss = cast(dloss, float32, op, "dloss")
            acquire_same(&g, dloss, op, "dloss", &top, "targets")
        else:
            filled = new_out(&g, lead, real_dtype(x.dtype), op)
            with DefaultFloats():
                filled.fill(dloss)
        result = new_like(&d, shape, &x, op)
        arguments.rows = rows_before(&x)
        arguments.x, arguments.target = x.data, index_pointer(ids)
        arguments.top, arguments.sum, arguments.loss = top.data, total.data, NULL
        with nogil:
            status = fa_cross_entropy_backward(<fa_dtype>x.dtype, &arguments, d.data, g.data)
        raise_status(status, op)
    finally:
        release(&x)
        release(&d)
        release(&top)
        release(&total)
        release(&g)
    return result


cdef fa_index as_ignored(object ignore_index, str op, str name) except? -1:
    """A number that no valid id is, where nothing is ignored."""
    if ignore_index is None:
        return INT64_MIN
    try:
        return as_integer(ignore_index, op, name, "be an integer or None")
    except OverflowError:
        raise ValueError(f"{op}: {name} must fit into 64 bits, got {shown(ignore_index)}") from None

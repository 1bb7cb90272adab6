# Cross-entropy of rows of logits, and its gradient.


def cross_entropy(object logits, object targets, object ignore_index, object label_smoothing, str op):
    """(loss, top, sum, targets), all of the shape of targets."""
    cdef Array x, loss, top, total
    cdef fa_cross_entropy_arguments arguments
    cdef fa_status status
    cdef object losses, tops, sums, ids
    x.held = loss.held = top.held = total.held = False
    arguments.smoothing = as_float(label_smoothing, op, "label_smoothing")
    if not 0 <= arguments.smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing must lie in 0..1, got {label_smoothing}")
    try:
        acquire_contiguous(&x, logits, op, "logits")
        if x.ndim == 0:
            raise wrong_shape(op, "logits", "have at least one axis", "a scalar")
        shape = shape_of(&x)
        lead = shape[:len(shape) - 1]
        arguments.n = x.shape[x.ndim - 1]
        arguments.ignored = as_ignored(ignore_index, op)
        ids = as_ids(targets, arguments.n, op, "targets", None if ignore_index is None else arguments.ignored)
        if ids.shape != lead:
            raise wrong_shape(op, "targets", f"have shape {lead}, that of logits but for the last axis",
                              f"shape {ids.shape}")
        losses = new_out(&loss, lead, x.dtype, op)
        tops = new_out(&top, lead, x.dtype, op)
        sums = new_out(&total, lead, x.dtype, op)
        arguments.rows = rows_before(&x)
        arguments.x, arguments.target = x.data, index_pointer(ids)
        arguments.loss, arguments.top, arguments.sum = loss.data, top.data, total.data
        with nogil:
            status = fa_cross_entropy_forward(<fa_dtype>x.dtype, &arguments)
        raise_status(status, op)
    finally:
        release(&x)
        release(&loss)
        release(&top)
        release(&total)
    return losses, tops, sums, ids


def cross_entropy_backward(object dloss, object logits, object targets, object tops, object sums, object ignore_index,
                           object label_smoothing, str op):
    """dlogits, from dloss of the shape of targets and what `cross_entropy` returned."""
    cdef Array x, d, top, total, g
    cdef fa_cross_entropy_arguments arguments
    cdef fa_status status
    cdef object result
    x.held = d.held = top.held = total.held = g.held = False
    arguments.smoothing = label_smoothing
    arguments.ignored = as_ignored(ignore_index, op)
    try:
        acquire_contiguous(&x, logits, op, "logits")
        acquire_contiguous(&top, tops, op, "saved", -1, x.dtype)
        acquire_contiguous(&total, sums, op, "saved", -1, x.dtype)
        acquire_same(&g, dloss, op, "dloss", &top, "targets")
        result = new_out(&d, shape_of(&x), x.dtype, op)
        arguments.n = x.shape[x.ndim - 1]
        arguments.rows = rows_before(&x)
        arguments.x, arguments.target = x.data, index_pointer(targets)
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


cdef fa_index as_ignored(object ignore_index, str op) except? -1:
    """A number that no valid id is, where nothing is ignored."""
    if ignore_index is None:
        return INT64_MIN
    try:
        return index(ignore_index)
    except TypeError:
        raise TypeError(f"{op}: ignore_index must be an integer or None, got {ignore_index!r}") from None
    except OverflowError:
        raise ValueError(f"{op}: ignore_index must fit into 64 bits, got {ignore_index!r}") from None

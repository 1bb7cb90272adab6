# Rows of a table by number, and rotary positions.


cdef object as_ids(object value, Py_ssize_t count, str op, str name, object ignored=None):
    """int64 ids in 0..count - 1 (or `ignored`), contiguous: a copy."""
    ids = as_integers(value, op, name)
    if first_outside(index_pointer(ids), ids.size, count - 1) < 0:
        return ids
    wrong = (ids < 0) | (ids >= count)
    if ignored is not None:
        wrong &= ids != ignored
    if wrong.any():
        place = np.argwhere(wrong)[0]
        raise ValueError(f"{op}: {name} must lie in 0..{count - 1}, got {ids[tuple(place)]} at [{listed(place)}]")
    return ids


def embedding(object ids, object weight, str op):
    """(weight[ids], ids as they were used)."""
    cdef Array w, y
    cdef fa_status status
    cdef const fa_index *id
    cdef object result
    cdef Py_ssize_t rows
    w.held = y.held = False
    weight, ids = as_ndarray(weight, op, "weight"), as_ndarray(ids, op, "ids")
    try:
        acquire_contiguous(&w, weight, op, "weight", 2, ALL_TYPES)
        numbers = as_ids(ids, w.shape[0], op, "ids")
        result = new_like(&y, (*numbers.shape, w.shape[1]), &w, op)
        id, rows = index_pointer(numbers), numbers.size
        with nogil:
            status = fa_embedding_forward(<fa_dtype>w.dtype, y.data, w.data, id, rows, w.shape[1])
        raise_status(status, op)
    finally:
        release(&w)
        release(&y)
    return result, numbers


cdef object check_table(object shape, str op, str name):
    """A shape of two axes."""
    cdef object most = 1 << 62
    cdef bint fits = type(shape) is tuple and len(shape) == 2
    if not fits or not all([type(n) is int and 0 <= n < most for n in shape]):
        raise wrong_shape(op, name, "be a shape (rows, columns)", shown(shape))


def embedding_backward(object dy, object ids, object table, str op):
    """dweight of shape `table` from dy and the ids that `embedding` returned."""
    cdef Array g, d
    cdef fa_status status
    cdef const fa_index *id
    cdef object result
    cdef Py_ssize_t rows
    g.held = d.held = False
    check_table(table, op, "saved.shape")
    ids, dy = as_ids(ids, table[0], op, "saved.ids"), as_ndarray(dy, op, "dy")
    try:
        acquire_contiguous(&g, dy, op, "dy", -1, ALL_TYPES)
        if shape_of(&g) != (*ids.shape, table[1]):
            raise wrong_shape(op, "dy", f"have shape {(*ids.shape, table[1])}", f"shape {shape_of(&g)}")
        result = new_like(&d, table, &g, op)
        id, rows = index_pointer(ids), ids.size
        with nogil:
            status = fa_embedding_backward(<fa_dtype>g.dtype, d.data, g.data, id, d.shape[0], rows, d.shape[1])
        raise_status(status, op)
    finally:
        release(&g)
        release(&d)
    return result


def rope(object x, object cosine, object sine, object row, bint interleaved, object out, str op, str name):
    """x[..., n] with each row rotated by row[...] of the tables, an index within them. `name` is that of x."""
    cdef Array a, c, s, y
    cdef fa_status status
    cdef const fa_index *position = index_pointer(row)
    cdef object result
    cdef Py_ssize_t n, row_count = row.size
    a.held = c.held = s.held = y.held = False
    try:
        acquire_contiguous(&a, x, op, name, -1, ALL_TYPES)
        check_axis(&a, op, name)
        shape = shape_of(&a)
        n = a.shape[a.ndim - 1]
        # Another thread may give x another shape while its tables are made.
        if count(&a) and row.size != rows_before(&a):
            raise wrong_shape(op, name, "keep its shape during the call", f"shape {shape}")
        table = (cosine.shape[0], n if interleaved else n // 2)
        acquire_shaped(&c, cosine, table, real_dtype(a.dtype), op, name)
        acquire_shaped(&s, sine, table, real_dtype(a.dtype), op, name)
        result = rope_result(&y, out, shape, &a, &c, &s, op)
        with nogil:
            status = fa_rope(<fa_dtype>a.dtype, y.data, a.data, c.data, s.data, position, row_count, n, interleaved)
        raise_status(status, op)
    finally:
        release(&a)
        release(&c)
        release(&s)
        release(&y)
    return copy_to(out, result)


def rope_of_tables(object x, object cosine, object sine, int direction, object out, str op, str name):
    """rope in halves where cosines and sines [..., n / 2] are reals whose rows are those of x, or of its last axes
    before the columns; back for a direction of -1. None of other tables, which need another form first."""
    cdef Array a, c, s, y
    cdef fa_status status
    cdef fa_index *position
    cdef object result, numbers
    cdef Py_ssize_t i, n, rows, of_table, lead
    if type(cosine) is not ndarray or type(sine) is not ndarray:
        return None
    a.held = c.held = s.held = y.held = False
    try:
        acquire_contiguous(&a, x, op, name, -1, ALL_TYPES)
        kind = DTYPES[real_dtype(a.dtype)]
        if cosine.dtype != kind or sine.dtype != kind or not 1 <= cosine.ndim <= a.ndim:
            return None
        if direction < 0:
            sine = np.negative(sine)
        acquire_contiguous(&c, cosine, op, name, -1, real_dtype(a.dtype))
        acquire_contiguous(&s, sine, op, name, -1, real_dtype(a.dtype))
        n, lead = a.shape[a.ndim - 1], c.ndim - 1
        if (
            s.ndim != c.ndim or memcmp(s.shape, c.shape, c.ndim * sizeof(Py_ssize_t)) != 0 or 2 * c.shape[lead] != n
            or memcmp(c.shape, a.shape + (a.ndim - c.ndim), lead * sizeof(Py_ssize_t)) != 0
        ):
            return None
        rows, of_table = rows_before(&a), rows_before(&c)
        result = rope_result(&y, out, shape_of(&a), &a, &c, &s, op)
        numbers = new_empty((rows,), int64, op)
        position = <fa_index *>index_pointer(numbers)
        with nogil:
            for i in range(rows):
                position[i] = i if i < of_table else position[i - of_table]
            status = fa_rope(<fa_dtype>a.dtype, y.data, a.data, c.data, s.data, position, rows, n, False)
        raise_status(status, op)
    finally:
        release(&a)
        release(&c)
        release(&s)
        release(&y)
    return copy_to(out, result)


cdef object rope_result(Array *y, object out, tuple shape, const Array *a, const Array *c, const Array *s, str op):
    """`out`, held, if rows can be rotated in it; else a fresh array."""
    if out is not None and acquire_out(y, out, shape, a, op) and is_contiguous(y) and (
        same_place(a, y) or not overlap(a, y)
    ) and not (overlap(c, y) or overlap(s, y)):
        return out
    release(y)
    return new_like(y, shape, a, op)

# A GRU with additive attention: the decoder of Bahdanau et al. 2015.

cdef struct AttentionGruArrays:
    Array gates_x, keys, values, annotations, v, w, bias, h0, h, context, weights, sums, saved


cdef void release_attention_gru(AttentionGruArrays *x) noexcept:
    release(&x.gates_x)
    release(&x.keys)
    release(&x.values)
    release(&x.annotations)
    release(&x.v)
    release(&x.w)
    release(&x.bias)
    release(&x.h0)
    release(&x.h)
    release(&x.context)
    release(&x.weights)
    release(&x.sums)
    release(&x.saved)


cdef object acquire_attention_gru(AttentionGruArrays *x, fa_attention_gru *a, object gates_x, object keys,
                                  object values, object annotations, object v, object w, object bias, object h0,
                                  object lengths, str op):
    """Checks and holds the inputs, and fills in `a` but for its outputs. The caller keeps the result alive as long as
    `a`, and calls release_attention_gru in any case."""
    cdef int dtype
    x.gates_x.held = x.keys.held = x.values.held = x.annotations.held = x.v.held = False
    x.w.held = x.bias.held = x.h0.held = False
    x.h.held = x.context.held = x.weights.held = x.sums.held = x.saved.held = False
    keys, values, annotations = (
        as_ndarray(keys, op, "keys"), as_ndarray(values, op, "values"), as_ndarray(annotations, op, "annotations")
    )
    gates_x, h0, v = as_ndarray(gates_x, op, "x"), as_ndarray(h0, op, "state"), as_ndarray(v, op, "v")
    w, bias, lengths = as_ndarray(w, op, "w"), as_ndarray(bias, op, "bias"), as_optional(lengths, op, "lengths")
    acquire_contiguous(&x.keys, keys, op, "keys", 3)
    dtype = x.keys.dtype
    acquire_contiguous(&x.h0, h0, op, "state", 2, dtype)
    acquire_contiguous(&x.gates_x, gates_x, op, "x", 3, dtype)
    a.B, a.S, a.A = x.keys.shape[0], x.keys.shape[1], x.keys.shape[2]
    a.T, a.H = x.gates_x.shape[0], x.h0.shape[1]
    if x.gates_x.shape[1] != a.B or x.gates_x.shape[2] != 3 * a.H:
        raise wrong_shape(op, "x", f"have the batch {a.B} of the annotations", f"{x.gates_x.shape[1]}")
    if x.h0.shape[0] != a.B:
        raise wrong_shape(op, "state", f"have the batch {a.B} of the annotations", f"shape {shape_of(&x.h0)}")
    acquire_shaped(&x.values, values, (a.B, a.S, 3 * a.H), dtype, op, "values")
    acquire_contiguous(&x.annotations, annotations, op, "annotations", 3, dtype)
    a.K = x.annotations.shape[2]
    if x.annotations.shape[0] != a.B or x.annotations.shape[1] != a.S:
        raise wrong_shape(op, "annotations", f"have the batch and length {(a.B, a.S)} of their keys",
                          f"shape {shape_of(&x.annotations)}")
    acquire_shaped(&x.v, v, (a.A,), dtype, op, "v")
    acquire_shaped(&x.w, w, (a.A + 3 * a.H, a.H), dtype, op, "w")
    acquire_shaped(&x.bias, bias, (a.A + 3 * a.H,), dtype, op, "bias")
    a.gates_x, a.keys, a.values, a.v = x.gates_x.data, x.keys.data, x.values.data, x.v.data
    a.annotations = x.annotations.data
    a.w, a.bias, a.h0 = x.w.data, x.bias.data, x.h0.data
    a.lengths = NULL
    if lengths is not None:
        lengths = as_lengths(lengths, a.B, a.S, op, "lengths")
        a.lengths = index_pointer(lengths)
    return lengths


def attention_gru(object gates_x, object keys, object values, object annotations, object v, object w, object bias,
                  object h0, object lengths, bint save, str op):
    """(h, context, weights, sums, saved); saved is None unless `save` is set."""
    cdef AttentionGruArrays x
    cdef fa_attention_gru a
    cdef fa_status status
    cdef object kept, h, context, weights, sums, saved = None
    try:
        kept = acquire_attention_gru(&x, &a, gates_x, keys, values, annotations, v, w, bias, h0, lengths, op)
        h = new_like(&x.h, (a.T, a.B, a.H), &x.keys, op)
        context = new_like(&x.context, (a.T, a.B, a.K), &x.keys, op)
        weights = new_like(&x.weights, (a.B, a.T, a.S), &x.keys, op)
        sums = new_like(&x.sums, (a.T, a.B, a.A + 3 * a.H), &x.keys, op)
        if save:
            saved = new_like(&x.saved, (a.T, a.B, 4 * a.H), &x.keys, op)
        a.h, a.weights, a.sums, a.saved = x.h.data, x.weights.data, x.sums.data, data_of(&x.saved)
        a.context = x.context.data
        with nogil:
            status = fa_attention_gru_forward(<fa_dtype>x.keys.dtype, &a)
        raise_status(status, op)
    finally:
        release_attention_gru(&x)
    return h, context, weights, sums, saved


cdef tuple parts_of(object value, int count, str op, str name):
    """A tuple of so many parts."""
    if type(value) is not tuple or len(value) != count:
        raise wrong_shape(op, name, f"have {count} parts", type(value).__name__)
    return value


def attention_gru_backward(object dh, object dcontext, object dh_last, object arguments, object results, str op):
    """(da, dgates, dkeys, dvalues, dannotations, dv, dh0) from the arguments (gates_x ... lengths) and results of
    attention_gru."""
    cdef AttentionGruArrays x
    cdef Array ay, al, aw, ada, ag, ak, ax, an, av, a0
    cdef fa_attention_gru_gradients g
    cdef fa_attention_gru *a = &g.forward
    cdef fa_status status
    cdef int dtype
    cdef object kept, da, dgates, dkeys, dvalues, dannotations, dv, dh0
    ay.held = al.held = aw.held = ada.held = ag.held = ak.held = ax.held = an.held = av.held = a0.held = False
    gates_x, keys, values, annotations, v, w, bias, h0, lengths = parts_of(arguments, 9, op, "saved.arguments")
    h, _, weights, sums, saved = parts_of(results, 5, op, "saved.results")
    h, weights = as_ndarray(h, op, "saved.h"), as_ndarray(weights, op, "saved.weights")
    sums, saved = as_ndarray(sums, op, "saved.sums"), as_ndarray(saved, op, "saved.gates")
    dh, dh_last = as_optional(dh, op, "dy"), as_optional(dh_last, op, "dstate")
    dcontext = as_optional(dcontext, op, "dcontext")
    try:
        try:
            kept = acquire_attention_gru(&x, a, gates_x, keys, values, annotations, v, w, bias, h0, lengths, op)
        except (TypeError, ValueError, MemoryError) as error:
            raise of_saved(error, op) from None
        dtype = x.keys.dtype
        acquire_shaped(&x.h, h, (a.T, a.B, a.H), dtype, op, "saved.h")
        acquire_shaped(&x.weights, weights, (a.B, a.T, a.S), dtype, op, "saved.weights")
        acquire_shaped(&x.sums, sums, (a.T, a.B, a.A + 3 * a.H), dtype, op, "saved.sums")
        acquire_shaped(&x.saved, saved, (a.T, a.B, 4 * a.H), dtype, op, "saved.gates")
        a.h, a.weights, a.sums, a.saved = x.h.data, x.weights.data, x.sums.data, x.saved.data
        a.context = NULL
        acquire_optional(&ay, dh, (a.T, a.B, a.H), dtype, op, "dy")
        acquire_optional(&al, dh_last, (a.B, a.H), dtype, op, "dstate")
        acquire_optional(&aw, dcontext, (a.T, a.B, a.K), dtype, op, "dcontext")
        g.dh, g.dh_last, g.dcontext = data_of(&ay), data_of(&al), data_of(&aw)
        da = new_like(&ada, (a.T, a.B, a.A + 3 * a.H), &x.keys, op)
        dgates = new_like(&ag, (a.T, a.B, 3 * a.H), &x.keys, op)
        dkeys = new_like(&ak, shape_of(&x.keys), &x.keys, op)
        dvalues = new_like(&ax, shape_of(&x.values), &x.keys, op)
        dannotations = new_like(&an, shape_of(&x.annotations), &x.keys, op)
        g.dannotations = an.data
        dv = new_like(&av, shape_of(&x.v), &x.keys, op)
        dh0 = new_like(&a0, shape_of(&x.h0), &x.keys, op)
        g.da, g.dgates, g.dkeys, g.dvalues, g.dv, g.dh0 = ada.data, ag.data, ak.data, ax.data, av.data, a0.data
        with nogil:
            status = fa_attention_gru_backward(<fa_dtype>dtype, &g)
        raise_status(status, op)
    finally:
        release_attention_gru(&x)
        release(&ay)
        release(&al)
        release(&aw)
        release(&ada)
        release(&ag)
        release(&ak)
        release(&ax)
        release(&an)
        release(&av)
        release(&a0)
    return da, dgates, dkeys, dvalues, dannotations, dv, dh0

# Arrays as C sees them, and every check on them.
#
# An Array holds the buffer of an ndarray while C works on it. `acquire` accepts what C can take as it is: float32 or
# float64 (or for ops that have them bfloat16 or float16), aligned, last axis contiguous, other strides whole elements;
# anything else that is an array of such floats is copied first, so no layout is ever wrong.
# `as_ndarray` is the only way in for other objects that export memory (buffer, __array__, DLPack), shared and
# not copied, so that overlaps show in addresses whatever the object. Tensors come through dlpack.pxi.
# No method of an argument runs while an Array is held: it could resize what is held already, and NumPy moves memory
# under a buffer that is exported. So every op converts its arguments to ndarrays and numbers first, and acquires then.
# bfloat16 is the dtype of that name, from whatever package (ml_dtypes): it is never imported, and since its arrays
# export no buffer, their bits are held as uint16. Results have the dtype of their input, of the same package.
# All messages have one form: "op: argument must be ..., got ...".
# Small calls take a few microseconds, and much of that is here: checks build no objects unless they fail.

cdef int MAX_DIMS = 8
cdef Py_ssize_t LONGEST_SHOWN = 200  # characters of a value in an error message
# More bytes than an address space holds: only a view with strides of 0 has them, and no call would come to its end.
cdef Py_ssize_t MOST_BYTES = <Py_ssize_t>1 << 47
cdef Py_ssize_t MOST_REPEATED = <Py_ssize_t>1 << 40  # bytes of a view that repeats elements: a minute of reading

cdef struct Array:
    Py_buffer view
    bint held
    PyObject *bfloat16   # while held: the dtype of an array of bfloat16, else NULL
    char *data
    int ndim
    int dtype            # fa_dtype
    Py_ssize_t shape[8]
    Py_ssize_t stride[8]  # in elements
    char *first          # the lowest byte of an element, and the one beyond the highest
    char *end

cdef object ndarray = np.ndarray
cdef object empty = np.empty
cdef object float32 = np.dtype(np.float32)
cdef object float64 = np.dtype(np.float64)
cdef object uint16 = np.dtype(np.uint16)
cdef object int64 = np.dtype(np.int64)
cdef object uint64 = np.dtype(np.uint64)
cdef tuple NAMES = ("float32", "float64", "bfloat16", "float16")
cdef tuple DTYPES = (float32, float64, None, np.dtype(np.float16))  # by fa_dtype; bfloat16 has many, see dtype_of
cdef str ANY_FLOAT = "float32, float64, bfloat16 or float16"
cdef char NATIVE_ORDER = c"<" if sys.byteorder == "little" else c">"  # in buffer formats

# What `acquire` takes besides one fa_dtype.
cdef enum:
    REAL_TYPES = -1  # float32 or float64
    ALL_TYPES = -2   # bfloat16 and float16 too
    DEEPEST = 64     # nested lists; NumPy has no more axes


# ---- messages ----

cdef object wrong_shape(str op, str name, str expected, object got):
    return ValueError(f"{op}: {name} must {expected}, got {got}")


cdef object of_saved(object error, str op):
    """An error of the arguments of a forward call, which a backward call has from `saved`."""
    return type(error)(f"{op}: saved.{str(error).partition(': ')[2]}")


cdef str spelled(int kind):
    """The argument of `astype` that gives this fa_dtype."""
    return "'bfloat16'" if kind == FA_BF16 else f"np.{NAMES[kind]}"


cdef object wrong_type(str op, str name, object array, int wanted=REAL_TYPES):
    dtype = getattr(array, "dtype", None)
    expected = ANY_FLOAT if wanted == ALL_TYPES else "float32 or float64"
    if not isinstance(dtype, np.dtype):
        return TypeError(f"{op}: {name} must be an array of {expected}, got {type(array).__name__}")
    if not dtype.isnative and type_of(dtype.newbyteorder("=")) >= 0:
        fix = f"pass {name}.astype({name}.dtype.newbyteorder('='))"
    elif type_of(dtype) > FA_F64 and wanted != ALL_TYPES:
        fix = f"{op} has no {NAMES[type_of(dtype)]} kernels: pass {name}.astype(np.float32)"
    elif dtype.kind in "biu":
        fix = f"pass {name}.astype(np.float32)"
    else:
        fix = f"pass {name}.astype(np.float32) or {name}.astype(np.float64)"
    return TypeError(f"{op}: {name} must be {expected} in native byte order, got {dtype.str} ({dtype}); {fix}")


cpdef str shown(object value):
    """value for an error message, whatever its own words for itself are."""
    try:
        words = repr(value)
    except Exception:
        return f"an object of {type(value).__name__}"
    return words if len(words) <= LONGEST_SHOWN else words[:LONGEST_SHOWN] + "..."


cpdef object plain_text(object value):
    """A string as an exact str, since a subclass may compare otherwise; anything else as it is."""
    return str.__str__(value) if isinstance(value, str) and type(value) is not str else value


# ---- from objects to ndarrays ----

cdef object as_ndarray(object value, str op, str name):
    """value as an ndarray and no subclass, without changing its dtype; of the same memory, where it has any."""
    return value if type(value) is ndarray else exported(value, op, name)


cdef object as_optional(object value, str op, str name):
    """as_ndarray; None for None."""
    return None if value is None else as_ndarray(value, op, name)


cdef object exported(object value, str op, str name):
    cdef object array = None
    cdef str fault = None
    try:
        if holds_masked(value, 0):
            fault = f"have no masked elements, got {type(value).__name__} with some: pass filled(...)"
        elif not isinstance(value, ndarray) and getattr(value, "requires_grad", False):
            fault = f"not require gradients, got one that does: pass {name}.detach()"
        else:
            array = np.asanyarray(exporter(value))
            if holds_masked(array, 0):
                fault = f"have no masked elements, got {type(value).__name__} with some"
            array = np.asarray(array)
    except MemoryError:
        raise MemoryError(f"{op}: no memory for a copy of {name}") from None
    except Exception as error:
        fault = unreadable(value, error)
    if fault is None and array.dtype.kind == "O" and not isinstance(value, ndarray):
        fault = f"be an array of numbers, got {type(value).__name__}"
    if fault is not None:
        raise TypeError(f"{op}: {name} must {fault}")
    return array


cdef bint holds_masked(object value, int depth) except -1:
    """Whether it is a masked array with masked elements, or a list that holds one: NumPy would take what is hidden."""
    if isinstance(value, (list, tuple)):
        if depth < DEEPEST:
            for item in value:
                if isinstance(item, (list, tuple, ndarray)) and holds_masked(item, depth + 1):
                    return True
        return False
    return isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value)


cdef object exporter(object value):
    """What np.asanyarray can read: value itself, or of a tensor the array of its memory."""
    if isinstance(value, (ndarray, list, tuple, int, float)) or PyObject_CheckBuffer(value):
        return value
    if hasattr(value, "is_neg") and value.is_neg():
        raise TypeError("its negative bit is set: pass resolve_neg()")
    array = borrowed(value)
    if array is not None:
        return array
    torch = sys.modules.get("torch")
    if hasattr(value, "__dlpack__") and (torch is not None and isinstance(value, torch.Tensor) or not (
        hasattr(value, "__array__") or hasattr(value, "__array_interface__") or hasattr(value, "__array_struct__")
    )):
        return exported_by_dlpack(value)
    return value


cdef str unreadable(object value, object error):
    """What an object that could not be read must be, by what it is; its attributes may raise anything."""
    kind = type(value).__name__
    try:
        layout, device = str(getattr(value, "layout", "")), getattr(value, "device", None)
        if "sparse" in layout:
            return f"be dense, got {kind} of {layout}: pass to_dense()"
        if getattr(device, "type", "cpu") != "cpu":
            return f"be on the CPU, got {kind} on {device}"
        if any([base.__name__ == "Tracer" for base in type(value).__mro__]):
            return f"have values, got {kind}, which JAX traces with: fastattn.jax has functions for that"
        reason = str(error).partition("\n")[0]
    except Exception:
        return f"be an array, got {kind}"
    return f"be an array, got {kind} ({reason})"


# ---- types ----

cdef int format_dtype(const char *format) noexcept:
    """fa_dtype of a buffer format, -1 when it is none of them in native order. NumPy writes "=" before the letter when
    the array is not aligned; ctypes always writes an order."""
    if format == NULL:
        return -1
    if format[0] == b"=" or format[0] == b"@" or format[0] == NATIVE_ORDER:
        format += 1
    if format[0] == b"f" and format[1] == 0:
        return FA_F32
    if format[0] == b"d" and format[1] == 0:
        return FA_F64
    if format[0] == b"e" and format[1] == 0:
        return FA_F16
    return -1


cdef bint is_bfloat16(object dtype):
    return dtype.itemsize == 2 and dtype.type.__name__ == "bfloat16" and dtype.isnative


cdef int type_of(object dtype) except -2:
    """fa_dtype of an np.dtype, -1 when it is none of them in native order."""
    if is_bfloat16(dtype):
        return FA_BF16
    if dtype == float32:
        return FA_F32
    if dtype == float64:
        return FA_F64
    return FA_F16 if dtype == DTYPES[FA_F16] else -1


cdef object as_dtype(object dtype, str op, str name="dtype"):
    """The np.dtype of one of the four types, from what NumPy takes for one."""
    cdef str expected = "float32, float64, float16 or bfloat16 (which needs ml_dtypes to be installed and imported)"
    if isinstance(dtype, np.dtype) and type_of(dtype) >= 0:
        return dtype
    try:
        wanted = np.dtype(plain_text(dtype))
    except Exception:
        raise TypeError(f"{op}: {name} must be {expected}, got {shown(dtype)}") from None
    if type_of(wanted) < 0:
        raise TypeError(f"{op}: {name} must be {expected}, got {wanted.str} ({wanted})")
    return wanted


cdef object dtype_of(const Array *a):
    """The np.dtype of what is held."""
    return <object>a.bfloat16 if a.bfloat16 != NULL else DTYPES[a.dtype]


cdef int real_dtype(int dtype) noexcept:
    """fa_dtype of the arithmetic for arrays of `dtype`."""
    return FA_F64 if dtype == FA_F64 else FA_F32


cdef bint is_low(int dtype) noexcept:
    """Whether it is bfloat16 or float16."""
    return real_dtype(dtype) != dtype


cdef int dtype_beside(object array, int dtype):
    """fa_dtype that an ndarray of few numbers must have beside arrays of `dtype`: float32 too, where those are of 16
    bits."""
    return FA_F32 if is_low(dtype) and array.dtype == float32 else dtype


# ---- buffers ----

cdef bint hold(Array *a, object array, int flags):
    """Holds the buffer, if there is one. (Catching an exception costs more than asking, also when none comes.)"""
    a.held = get_buffer(array, &a.view, flags) == 0
    a.bfloat16 = NULL
    if not a.held:
        PyErr_Clear()
    return a.held


cdef int hold_floats(Array *a, object array, int flags) except -2:
    """Holds the buffer of an array of floats and returns its fa_dtype; -1, and nothing held, of anything else."""
    cdef int kind
    cdef object dtype
    if hold(a, array, flags):
        kind = format_dtype(a.view.format)
        if kind >= 0:
            return kind
        release(a)
    dtype = array.dtype
    if not is_bfloat16(dtype) or not hold(a, array.view(uint16), flags):
        return -1
    a.bfloat16 = <PyObject *>dtype
    Py_INCREF(dtype)
    return FA_BF16


cdef void release(Array *a) noexcept:
    if not a.held:
        return
    a.held = False
    PyBuffer_Release(&a.view)
    if a.bfloat16 != NULL:
        Py_DECREF(<object>a.bfloat16)


cdef object copied(object array, str op, str name):
    """A contiguous copy."""
    try:
        return array.copy(order="C")
    except (MemoryError, ValueError):  # ValueError: the number of bytes overflows
        raise no_memory(op, f"a contiguous copy of {name}", array.shape, array.dtype) from None


cdef object no_memory(str op, str purpose, tuple shape, object dtype):
    return MemoryError(f"{op}: no memory for {purpose}, shape {shape} of {dtype}")


cdef object hold_copy(Array *a, object array, str op, str name):
    """Holds a contiguous copy of the array of floats or truths that is held."""
    cdef int flags = PyBUF_STRIDES | PyBUF_FORMAT
    cdef object copy = copied(array, op, name)
    release(a)
    if copy.dtype.kind == "b":
        hold(a, copy, flags)
    else:
        hold_floats(a, copy, flags)
    measure(a)


cdef bint measure(Array *a) noexcept:
    """Shape, strides and extent from the buffer of at most MAX_DIMS axes; False when elements are not aligned, or not
    whole elements apart."""
    cdef Py_ssize_t item = a.view.itemsize  # a power of 2: dividing would be half of the time
    cdef int i, log_item = ctz(item)
    cdef bint is_empty = False, whole = True
    a.ndim = a.view.ndim
    a.data = a.first = a.end = <char *>a.view.buf
    for i in range(a.ndim):
        a.shape[i] = a.view.shape[i]
        is_empty = is_empty or a.shape[i] == 0
    for i in range(a.ndim):
        # The stride of an axis of one element, or of an empty array, means nothing; NumPy may have put anything there.
        if a.shape[i] <= 1 or is_empty:
            a.stride[i] = 1 if i == a.ndim - 1 else 0
            continue
        whole = whole and a.view.strides[i] & (item - 1) == 0
        a.stride[i] = a.view.strides[i] >> log_item
        if a.stride[i] < 0:
            a.first += (a.shape[i] - 1) * a.view.strides[i]
        else:
            a.end += (a.shape[i] - 1) * a.view.strides[i]
    if not is_empty:
        a.end += item
    return whole and <uintptr_t>a.data & (item - 1) == 0


cdef bint fill(Array *a) noexcept:
    """measure; False when C cannot take the layout."""
    return measure(a) and (a.ndim == 0 or a.stride[a.ndim - 1] == 1)


cdef object acquire(Array *a, object value, str op, str name, int ndim=-1, int dtype=REAL_TYPES, bint any_layout=False):
    """Holds the buffer of `value`. Checks its type (one of a group, or an fa_dtype) and number of axes (unless -1). The
    last axis is contiguous, unless C takes any layout."""
    cdef object array = as_ndarray(value, op, name)
    cdef int kind = hold_floats(a, array, PyBUF_STRIDES | PyBUF_FORMAT)
    if kind < 0 or dtype == REAL_TYPES and kind > FA_F64:
        raise wrong_type(op, name, array, dtype)
    if dtype >= 0 and kind != dtype:
        raise TypeError(f"{op}: {name} must be {NAMES[dtype]} like the other arrays, got {NAMES[kind]}; "
                        f"pass {name}.astype({spelled(dtype)})")
    if ndim >= 0 and a.view.ndim != ndim:
        raise wrong_shape(op, name, f"have {ndim} axes", f"shape {array.shape}")
    if a.view.ndim > MAX_DIMS:
        raise wrong_shape(op, name, f"have at most {MAX_DIMS} axes", f"shape {array.shape}")
    if a.view.len > MOST_BYTES:
        raise wrong_shape(op, name, f"have at most {MOST_BYTES} bytes", f"shape {array.shape} of {array.dtype}")
    a.dtype = kind
    if not (measure(a) if any_layout else fill(a)):
        hold_copy(a, array, op, name)
    return array


cdef object acquire_read(Array *a, object value, str op, str name, int ndim, int dtype):
    """acquire, of an array that a call reads whole, however small its result is."""
    cdef object array = acquire(a, value, op, name, ndim, dtype)
    if a.view.len > MOST_REPEATED and a.end - a.first < a.view.len:
        raise wrong_shape(op, name, f"have at most {MOST_REPEATED} bytes where it repeats elements",
                          f"shape {array.shape} of {array.dtype}")
    return array


cdef object acquire_contiguous(Array *a, object value, str op, str name, int ndim=-1, int dtype=REAL_TYPES):
    """acquire, and C-contiguous: copied if need be."""
    cdef object array = acquire(a, value, op, name, ndim, dtype)
    if not is_contiguous(a):
        hold_copy(a, array, op, name)
    return array


cdef object acquire_shaped(Array *a, object value, tuple shape, int dtype, str op, str name):
    """A contiguous array of this shape."""
    acquire_contiguous(a, value, op, name, <int>len(shape), dtype)
    if shape_of(a) != shape:
        raise wrong_shape(op, name, f"have shape {shape}", f"shape {shape_of(a)}")


cdef object acquire_optional(Array *a, object value, tuple shape, int dtype, str op, str name):
    """acquire_shaped; None holds nothing."""
    if value is not None:
        acquire_shaped(a, value, shape, dtype, op, name)


cdef bint acquire_mask_buffer(Array *a, object array, int dtype, str like, str op, str name="mask") except -1:
    """Holds a mask of any layout, for it may be large; whether it is bool."""
    cdef int kind = -1, flags = PyBUF_STRIDES | PyBUF_FORMAT
    cdef bint is_bool = array.dtype.char == "?"
    if array.ndim > MAX_DIMS:
        raise wrong_shape(op, name, "have at most 4 axes", f"shape {array.shape}")
    if not is_bool:
        kind = hold_floats(a, array, flags)
    if not (hold(a, array, flags) if is_bool else kind == dtype):
        expected = "bool (True = attend) or " if name == "mask" else ""
        raise TypeError(f"{op}: {name} must be {expected}{NAMES[dtype]} like {like} (added), got {array.dtype}")
    if not measure(a):
        hold_copy(a, array, op, name)
    return is_bool


cdef bint is_contiguous(const Array *a) noexcept:
    cdef Py_ssize_t expected = 1
    cdef int i
    for i in range(a.ndim):
        if a.shape[i] == 0:
            return True
    for i in range(a.ndim - 1, -1, -1):
        if a.shape[i] != 1 and a.stride[i] != expected:
            return False
        expected *= a.shape[i]
    return True


cdef Py_ssize_t count(const Array *a) noexcept nogil:
    cdef Py_ssize_t n = 1
    cdef int i
    for i in range(a.ndim):
        n *= a.shape[i]
    return n


cdef bint is_empty(const Array *a) noexcept:
    """Whether nothing is held, or nothing is in it."""
    return not a.held or count(a) == 0


cdef tuple shape_from(int ndim, const Py_ssize_t *sizes):
    return tuple([sizes[i] for i in range(ndim)])


cdef tuple shape_of(const Array *a):
    return shape_from(a.ndim, a.shape)


cdef bint overlap(const Array *a, const Array *b) noexcept:
    """Whether the extents overlap. May be true of arrays that interleave without sharing an element."""
    return a.first < b.end and b.first < a.end


cdef bint overlaps_itself(const Array *a) except -1:
    """Whether two elements share memory, in whatever layout."""
    cdef Py_ssize_t reach = a.view.itemsize, step
    cdef list axes = []
    cdef bint nested = True
    if count(a) == 0:
        return False
    for i in range(a.ndim):
        if a.shape[i] > 1:
            axes.append((abs(a.view.strides[i]), a.shape[i]))
    for step, size in sorted(axes):
        nested = nested and step >= reach
        reach += (size - 1) * step
    if nested:
        return False
    if count(a) * a.view.itemsize > reach:
        return True
    places = np.zeros((), np.int64)
    for step, size in axes:
        places = np.add.outer(places, np.arange(size) * step)
    return bool((np.diff(np.sort(places, axis=None)) < a.view.itemsize).any())


cdef bint same_place(const Array *a, const Array *b) noexcept:
    """The same elements at the same addresses."""
    return (a.data == b.data and a.ndim == b.ndim
            and memcmp(a.shape, b.shape, a.ndim * sizeof(Py_ssize_t)) == 0
            and memcmp(a.stride, b.stride, a.ndim * sizeof(Py_ssize_t)) == 0)


def checked_array(object value, str op, str name):
    """value as an ndarray of any dtype."""
    return as_ndarray(value, op, name)


cdef object raise_status(fa_status status, str op):
    if status == FA_NOMEM:
        raise MemoryError(f"{op}: no memory for its working buffers")
    if status == FA_NOBLAS:
        raise RuntimeError(f"{op}: strategy 'blas' needs a BLAS, "
                           f"and this build ({text(fa_blas_provider())}) has none that loads")


cdef str text(const char *s):
    return s.decode("utf-8", "replace")


# ---- numbers and flags ----

cdef double widened(object value) except? -1.0:
    """value as a float, under the default floating-point state: the caller's may count a subnormal float32 as 0."""
    cdef fa_float_state callers = fa_float_enter()
    try:
        return float(value)
    finally:
        fa_float_leave(&callers)


cdef double as_float(object value, str op, str name) except? -1.0:
    if type(value) is float:
        return value
    try:
        # float() would read texts, and take the hidden number of what is masked or the only one of an array with axes.
        if isinstance(value, (str, bytes, bytearray)) or holds_masked(value, 0) or getattr(value, "ndim", 0):
            raise TypeError
        return widened(value)
    except OverflowError:
        raise ValueError(f"{op}: {name} must be finite, got an integer beyond all floats") from None
    except Exception:  # whatever __float__ of any type raises
        raise TypeError(f"{op}: {name} must be a number, got {shown(value)}") from None


cdef object as_integer(object value, str op, str name, str expected="be an integer"):
    """An int from an integer of any type but bool."""
    if type(value) is int:
        return value
    try:
        if isinstance(value, bool) or holds_masked(value, 0) or getattr(value, "ndim", 0):
            raise TypeError
        return index(value)
    except Exception:  # whatever __index__ of any type raises
        raise TypeError(f"{op}: {name} must {expected}, got {shown(value)}") from None


def checked_integer(object value, str op, str name):
    return as_integer(value, op, name)


cdef bint as_flag(object value, str op, str name) except -1:
    """True or False: the truth of anything else is a guess, and of some things an error."""
    if value is True or value is False:
        return value is True
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{op}: {name} must be True or False, got {shown(value)}")


def checked_flag(object value, str op, str name):
    return as_flag(value, op, name)


def checked_number(object value, str op, str name):
    return as_float(value, op, name)


cdef double finite(object value, str op, str name) except? -1.0:
    cdef double number = as_float(value, op, name)
    if not isfinite(number):
        raise ValueError(f"{op}: {name} must be finite, got {number}")
    return number


# ---- indices ----

cdef object as_integers(object value, str op, str name):
    """int64 in rows without gaps, from integers of any type. A copy, to be checked after it is made: the caller's may
    change during the call."""
    array = as_ndarray(value, op, name)
    kind = array.dtype.kind
    if kind not in "iu" and (array.size or array.dtype != float64):  # NumPy makes [] one of float64
        raise TypeError(f"{op}: {name} must be integers, got {array.dtype}")
    wide = uint64 if kind == "u" else int64
    try:
        numbers = array.astype(wide, order="C")
    except (MemoryError, ValueError):  # ValueError: the number of bytes overflows
        raise MemoryError(f"{op}: no memory for a copy of {name} of shape {array.shape}") from None
    if kind != "u":
        return numbers
    signed = numbers.view(int64)
    if array.itemsize == 8 and signed.min(initial=0) < 0:
        place = np.argwhere(signed < 0)[0]
        raise ValueError(f"{op}: {name} must fit into 63 bits, got {numbers[tuple(place)]} at [{listed(place)}]")
    return signed


cdef str listed(object place):
    return ", ".join([str(i) for i in place])


def checked_integers(object value, str op, str name):
    return as_integers(value, op, name)


cdef Py_ssize_t first_outside(const fa_index *numbers, Py_ssize_t count, fa_index most) noexcept nogil:
    """Where the first number stands that is not in 0..most, or -1."""
    cdef Py_ssize_t i
    for i in range(count):
        if numbers[i] < 0 or numbers[i] > most:
            return i
    return -1


cdef object as_lengths(object value, Py_ssize_t batch, Py_ssize_t longest, str op, str name):
    """int64 lengths [batch] in 0..longest, contiguous: a copy, which is what is checked. (The caller's array may be
    much larger, and may change at any moment.)"""
    cdef object array = as_ndarray(value, op, name)
    if array.shape != (batch,):
        raise wrong_shape(op, name, f"have shape ({batch},)", f"shape {array.shape}")
    lengths = as_integers(array, op, name)
    if lengths.shape != (batch,):
        raise wrong_shape(op, name, f"have shape ({batch},)", f"shape {lengths.shape}")
    if first_outside(index_pointer(lengths), batch, longest) >= 0:
        raise wrong_shape(op, name, f"lie in 0..{longest}", f"{lengths.min()}..{lengths.max()}")
    return lengths


cdef const fa_index *index_pointer(object numbers) except? NULL:
    """The elements of an array from as_integers, which the caller keeps alive."""
    cdef Py_buffer view
    if numbers is None:
        return NULL
    PyObject_GetBuffer(numbers, &view, PyBUF_SIMPLE)
    PyBuffer_Release(&view)
    return <const fa_index *>view.buf

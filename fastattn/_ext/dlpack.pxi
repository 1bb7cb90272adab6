# Tensors of other libraries by DLPack, as ndarrays of the same memory.

cdef extern from "dlpack.h" nogil:
    cdef enum:
        DL_CPU
        DL_CUDA_HOST
        DL_ROCM_HOST
        DL_INT
        DL_UINT
        DL_FLOAT
        DL_BFLOAT
        DL_COMPLEX
        DL_BOOL

    ctypedef struct dl_tensor:
        char *data
        int device_type
        int ndim
        int code
        int bits
        int lanes
        int64_t *shape
        int64_t *strides
        uint64_t byte_offset

    ctypedef struct dl_managed_tensor:
        dl_tensor tensor

    ctypedef struct dl_managed_tensor_versioned:
        unsigned int major
        dl_tensor tensor

    ctypedef struct dl_exchange_api:
        unsigned int major
        int (*borrow)(void *value, dl_tensor *tensor) except -1

cdef dict LETTERS = {DL_INT: "i", DL_UINT: "u", DL_FLOAT: "f", DL_COMPLEX: "c", DL_BOOL: "b"}  # of dtypes
cdef object own_bfloat16 = None


@cython.auto_pickle(False)
@cython.final
cdef class SharedMemory:
    """Memory of another object, which it keeps alive; an array's `base`. Read-only."""

    cdef object owner
    cdef char *data
    cdef Py_ssize_t size

    def __init__(self):
        raise TypeError("shared memory comes with arrays")

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, 1, flags)


cdef object bfloat16_dtype():
    """The dtype of this name that a package has added to NumPy, or else one of ours, whose elements are bits."""
    global own_bfloat16
    try:
        return np.dtype("bfloat16")
    except TypeError:
        if own_bfloat16 is None:
            own_bfloat16 = np.dtype((type("bfloat16", (np.void,), {"__module__": "fastattn"}), 2))
        return own_bfloat16


cdef object dlpack_dtype(const dl_tensor *t):
    cdef str letter = LETTERS.get(t.code)
    if t.code == DL_BFLOAT and t.bits == 16 and t.lanes == 1:
        return bfloat16_dtype()
    if letter is None or t.lanes != 1 or t.bits % 8:
        raise TypeError(f"elements of DLPack's type {t.code} with {t.bits} bits and {t.lanes} lanes")
    return np.dtype(f"{letter}{t.bits // 8}")


cdef object dlpack_array(const dl_tensor *t, object owner):
    """The array of a tensor that `owner` keeps alive."""
    cdef SharedMemory memory
    cdef Py_ssize_t item, low = 0, high = 0, step = 1
    cdef bint is_empty = False
    cdef int i
    cdef list shape = [0] * t.ndim, strides = [0] * t.ndim
    if t.device_type not in (DL_CPU, DL_CUDA_HOST, DL_ROCM_HOST):
        raise TypeError(f"it is on a device of DLPack's type {t.device_type}")
    dtype = dlpack_dtype(t)
    item = dtype.itemsize
    for i in range(t.ndim - 1, -1, -1):
        shape[i] = t.shape[i]
        strides[i] = item * (step if t.strides == NULL else t.strides[i])
        step *= t.shape[i]
        is_empty = is_empty or t.shape[i] == 0
        if strides[i] < 0:
            low += (t.shape[i] - 1) * strides[i]
        else:
            high += (t.shape[i] - 1) * strides[i]
    if is_empty:
        return new_empty(tuple(shape), dtype, "dlpack")
    if t.data == NULL:
        raise TypeError("it has no memory")
    memory = SharedMemory.__new__(SharedMemory)
    memory.owner, memory.data, memory.size = owner, t.data + t.byte_offset + low, high - low + item
    return ndarray(tuple(shape), dtype, memory, -low, tuple(strides))


cdef object borrowed(object value):
    """The array of a tensor whose type has DLPack's exchange API; None of any other object."""
    cdef const dl_exchange_api *api
    cdef dl_tensor t
    capsule = getattr(type(value), "__dlpack_c_exchange_api__", None)
    if capsule is None or not PyCapsule_IsValid(capsule, "dlpack_exchange_api"):
        return None
    api = <const dl_exchange_api *>PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
    if api.major != 1 or api.borrow == NULL:
        return None
    api.borrow(<void *>value, &t)
    return dlpack_array(&t, value)


cdef object exported_by_dlpack(object value):
    """The array of an object that has __dlpack__. A capsule that nobody consumes frees its tensor when it dies."""
    cdef const dl_managed_tensor_versioned *versioned
    try:
        capsule = value.__dlpack__(max_version=(1, 0))
    except TypeError:
        capsule = value.__dlpack__()
    if PyCapsule_IsValid(capsule, "dltensor"):
        return dlpack_array(&(<const dl_managed_tensor *>PyCapsule_GetPointer(capsule, "dltensor")).tensor, capsule)
    versioned = <const dl_managed_tensor_versioned *>PyCapsule_GetPointer(capsule, "dltensor_versioned")
    if versioned.major != 1:
        raise TypeError(f"version {versioned.major} of DLPack")
    return dlpack_array(&versioned.tensor, capsule)

# A handler of XLA's foreign functions that calls Python, with arrays in XLA's own buffers. The structures are those of
# XLA's C interface (xla/ffi/api/c_api.h, version 0.3), as far as they are read here; later minor versions only add to
# them.

ctypedef struct XlaExtension:
    size_t size
    int kind
    XlaExtension *next

ctypedef struct XlaVersion:
    size_t size
    XlaExtension *extension
    int major
    int minor

ctypedef struct XlaMetadata:
    size_t size
    XlaVersion version
    unsigned int traits

ctypedef struct XlaMetadataExtension:
    XlaExtension base
    XlaMetadata *metadata

ctypedef struct XlaErrorArguments:
    size_t size
    XlaExtension *extension
    const char *message
    int code

ctypedef struct XlaApi:
    size_t size
    XlaExtension *extension
    XlaVersion version
    const void *internal
    void *(*create_error)(XlaErrorArguments *arguments) noexcept nogil

ctypedef struct XlaBuffer:
    size_t size
    XlaExtension *extension
    int dtype
    char *data
    int64_t rank
    int64_t *dims

ctypedef struct XlaBuffers:
    size_t size
    XlaExtension *extension
    int64_t count
    int *types
    XlaBuffer **items

ctypedef struct XlaText:
    const char *data
    size_t length

ctypedef struct XlaAttributes:
    size_t size
    XlaExtension *extension
    int64_t count
    int *types
    XlaText **names
    XlaText **items

ctypedef struct XlaCall:
    size_t size
    XlaExtension *extension
    const XlaApi *api
    void *context
    int stage
    XlaBuffers arguments
    XlaBuffers results
    XlaAttributes attributes

cdef enum:
    XLA_MAJOR = 0
    XLA_MINOR = 3
    XLA_METADATA = 1  # kind of an extension: XLA asks for the version
    XLA_STRING = 4  # type of an attribute
    XLA_INVALID_ARGUMENT = 3
    XLA_RESOURCE_EXHAUSTED = 8
    XLA_INTERNAL = 13

cdef extern from "Python.h":
    object PyMemoryView_FromMemory(char *data, Py_ssize_t size, int flags)
    int PyBUF_READ
    int PyBUF_WRITE

cdef object xla_function = None  # function(program, inputs, outputs)
cdef dict xla_dtypes = {}  # dtype by XLA's number


def xla_handler(object function, dict dtypes):
    """A capsule with the handler that calls function(program, inputs, outputs): the text of its only attribute, and
    lists of arrays, which are there during the call only. dtypes: by XLA's numbers of types. The last function given
    counts."""
    global xla_function, xla_dtypes
    xla_function, xla_dtypes = function, dtypes
    return PyCapsule_New(<void *>xla_handle, NULL, NULL)


cdef void *xla_handle(XlaCall *call) noexcept nogil:
    """NULL, or an error of XLA."""
    cdef XlaMetadata *metadata
    if call.extension != NULL and call.extension.kind == XLA_METADATA:
        metadata = (<XlaMetadataExtension *>call.extension).metadata
        metadata.version.size, metadata.version.extension = sizeof(XlaVersion), NULL
        metadata.version.major, metadata.version.minor = XLA_MAJOR, XLA_MINOR
        metadata.traits = 0
        return NULL
    with gil:
        return xla_run(call)


cdef void *xla_run(XlaCall *call) noexcept:
    try:
        if call.attributes.count != 1 or call.attributes.types[0] != XLA_STRING:
            raise TypeError("a program must have one attribute, a text")
        program = call.attributes.items[0].data[:call.attributes.items[0].length]
        xla_function(program, xla_arrays(&call.arguments, PyBUF_READ), xla_arrays(&call.results, PyBUF_WRITE))
    except (ValueError, TypeError) as error:
        return xla_error(call, error, XLA_INVALID_ARGUMENT)
    except MemoryError as error:
        return xla_error(call, error, XLA_RESOURCE_EXHAUSTED)
    except BaseException as error:
        return xla_error(call, error, XLA_INTERNAL)
    return NULL


cdef list xla_arrays(const XlaBuffers *buffers, int access):
    cdef list arrays = []
    cdef XlaBuffer *buffer
    cdef Py_ssize_t size
    cdef int64_t i, j
    for i in range(buffers.count):
        buffer = buffers.items[i]
        dtype = xla_dtypes.get(buffer.dtype)
        if dtype is None:
            raise TypeError(f"an array must have a type that fastattn knows, got XLA's number {buffer.dtype}")
        shape, size = [], dtype.itemsize
        for j in range(buffer.rank):
            shape.append(buffer.dims[j])
            size *= buffer.dims[j]
        memory = PyMemoryView_FromMemory(buffer.data, size, access) if size else None  # no elements: perhaps no memory
        arrays.append(ndarray(shape, dtype, memory))
    return arrays


cdef void *xla_error(XlaCall *call, object error, int code) noexcept:
    cdef XlaErrorArguments arguments
    message = f"{type(error).__name__}: {error}".encode("utf-8", "replace")
    arguments.size, arguments.extension, arguments.message, arguments.code = sizeof(arguments), NULL, message, code
    return call.api.create_error(&arguments)

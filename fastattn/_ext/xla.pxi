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

cdef object xla_load = None
cdef dict xla_programs = {}
cdef dict xla_dtypes = {}  # dtype by XLA's number


def xla_handler(object load, dict dtypes):
    """A capsule with a handler for programs whose only attribute is a text. load(text), once for each text, returns

        (names of arguments, their numbers of axes, names of results, function, mapped)

    and function(arrays) returns the results by name, mapped(arrays) where an argument has another number of axes. The
    arrays are there during the call only. dtypes: by XLA's numbers of types. The last call of xla_handler counts."""
    global xla_load, xla_dtypes
    xla_load, xla_dtypes = load, dtypes
    xla_programs.clear()
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
        xla_compute(call)
    except (ValueError, TypeError) as error:
        return xla_error(call, error, XLA_INVALID_ARGUMENT)
    except MemoryError as error:
        return xla_error(call, error, XLA_RESOURCE_EXHAUSTED)
    except BaseException as error:
        return xla_error(call, error, XLA_INTERNAL)
    return NULL


cdef object xla_compute(XlaCall *call):
    cdef dict arrays = {}
    cdef bint as_known = True
    cdef int64_t i
    if call.attributes.count != 1 or call.attributes.types[0] != XLA_STRING:
        raise TypeError("a program must have one attribute, a text")
    text = call.attributes.items[0].data[:call.attributes.items[0].length]
    program = xla_programs.get(text)
    if program is None:
        program = xla_programs[text] = xla_load(text)
    names, ranks, results, function, mapped = program
    if len(names) != call.arguments.count or len(results) != call.results.count:
        raise TypeError(f"a program must have {len(names)} arguments and {len(results)} results, got "
                        f"{call.arguments.count} and {call.results.count}")
    for i in range(call.arguments.count):
        arrays[names[i]] = xla_array(call.arguments.items[i], PyBUF_READ)
        as_known = as_known and call.arguments.items[i].rank == ranks[i]
    found = function(arrays) if as_known else mapped(arrays)
    for i in range(call.results.count):
        xla_array(call.results.items[i], PyBUF_WRITE)[...] = found[results[i]]


cdef object xla_array(const XlaBuffer *buffer, int access):
    cdef Py_ssize_t size
    cdef int64_t i
    dtype = xla_dtypes.get(buffer.dtype)
    if dtype is None:
        raise TypeError(f"an array must have a type that fastattn knows, got XLA's number {buffer.dtype}")
    shape, size = [], dtype.itemsize
    for i in range(buffer.rank):
        shape.append(buffer.dims[i])
        size *= buffer.dims[i]
    # Without elements there may be no memory.
    return ndarray(shape, dtype, PyMemoryView_FromMemory(buffer.data, size, access) if size else None)


cdef void *xla_error(XlaCall *call, object error, int code) noexcept:
    cdef XlaErrorArguments arguments
    message = f"{type(error).__name__}: {error}".encode("utf-8", "replace")
    arguments.size, arguments.extension, arguments.message, arguments.code = sizeof(arguments), NULL, message, code
    return call.api.create_error(&arguments)

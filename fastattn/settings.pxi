# Threads, instruction sets, strategies, BLAS: what fastattn.config offers.

cdef int attention_strategy = -1  # -1: auto
cdef int linear_strategy = -1
cdef tuple ATTENTION_STRATEGIES = ("fused", "blas")
cdef tuple LINEAR_STRATEGIES = ("native", "blas")


def isa_names():
    """Every ISA of this build, lowest first."""
    return [text(fa_isa_name(<fa_isa>i)) for i in range(FA_ISA_COUNT)]


def available_isas():
    return [text(fa_isa_name(<fa_isa>i)) for i in range(FA_ISA_COUNT) if fa_isa_usable(<fa_isa>i)]


def get_isa():
    return text(fa_isa_name(fa_get_isa()))


def set_isa(name):
    names = isa_names()
    if name not in names:
        raise ValueError(f"use_isa: name must be one of {available_isas()}, got {name!r}")
    if not fa_set_isa(<fa_isa><int>names.index(name)):
        raise ValueError(f"use_isa: name must be available here ({available_isas()}), got {name!r}")


def cpu_features():
    return text(fa_cpu_features())


def cpu_brand():
    return text(fa_cpu_brand()).strip()


def kernel_names():
    """The kernels of csrc/kernels/kernels.def."""
    names = []
    while fa_kernel_name(len(names)) != NULL:
        names.append(text(fa_kernel_name(len(names))))
    return names


def get_num_threads():
    return fa_get_num_threads()


def set_num_threads(n):
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"set_num_threads: n must be an integer, got {n!r}")
    n = n.__index__()
    if not 1 <= n <= FA_MAX_THREADS:
        raise ValueError(f"set_num_threads: n must lie in 1..{FA_MAX_THREADS}, got {n}")
    fa_set_num_threads(n)


def trim():
    """Gives kept memory back."""
    fa_scratch_trim()


cdef int find_strategy(object name, tuple names, str what) except -2:
    if name == "auto":
        return -1
    if name not in names:
        raise ValueError(f"{what}: name must be one of {('auto', *names)}, got {name!r}")
    if name == "blas" and not fa_blas_load():
        raise ValueError(f"{what}: 'blas' needs a BLAS, "
                         f"and this build ({text(fa_blas_provider())}) has none that loads")
    return names.index(name)


def set_attention_strategy(name):
    global attention_strategy
    attention_strategy = find_strategy(name, ATTENTION_STRATEGIES, "attention_strategy")


def get_attention_strategy():
    return "auto" if attention_strategy < 0 else ATTENTION_STRATEGIES[attention_strategy]


def set_linear_strategy(name):
    global linear_strategy
    linear_strategy = find_strategy(name, LINEAR_STRATEGIES, "linear_strategy")


def get_linear_strategy():
    return "auto" if linear_strategy < 0 else LINEAR_STRATEGIES[linear_strategy]


cdef bytes blas_path_bytes = b""


def set_blas_path(path):
    """Where the vendored library lies. Once, at import."""
    global blas_path_bytes
    blas_path_bytes = path.encode()
    fa_blas_path(blas_path_bytes)


def blas_info():
    """(provider, core, version); the last two are empty when there is none. Loads the library."""
    return text(fa_blas_provider()), text(fa_blas_core()), text(fa_blas_version())


def probe_multiply_add(dtype, rounds, threads=1):
    """Runs independent multiply-adds on `threads` threads at once; returns how many (scalars, all threads). For
    benchmarks, which take the time."""
    cdef fa_dtype kind = <fa_dtype>kind_of(dtype, "probe_multiply_add")
    cdef fa_index n = rounds
    cdef int members = threads
    cdef double done
    with nogil:
        done = fa_probe_multiply_add(kind, n, members)
    return done


def probe_read(x):
    """Reads the contiguous array x once, on one thread. For benchmarks, which take the time."""
    cdef Array a
    a.held = False
    try:
        acquire_contiguous(&a, x, "probe_read", "x")
        with nogil:
            fa_probe_read(<fa_dtype>a.dtype, a.data, count(&a))
    finally:
        release(&a)

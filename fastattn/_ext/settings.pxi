# Threads, instruction sets, strategies, BLAS: the functions of fastattn.config.

cdef tuple ATTENTION_STRATEGIES = ("auto", "fused", "blas")  # a setting is the place here
cdef tuple LINEAR_STRATEGIES = ("auto", "native", "blas")
cdef int BLAS = 2
cdef tuple SETTINGS = ("threads", "isa", "attention", "linear")  # in the order of fa_setting

cdef list blocks = [[] for _ in SETTINGS]  # of each setting those in force, by the time they began


@cython.final
@cython.auto_pickle(False)
cdef class Block:
    """`with Block(setting, value):` gives the calling thread a setting of its own, as csrc/runtime/settings.h says."""
    cdef fa_setting setting
    cdef int value
    cdef object thread

    def __init__(self, str setting, int value):
        self.setting, self.value = <fa_setting><int>SETTINGS.index(setting), value

    def __enter__(self):
        cdef list own = blocks[self.setting]
        self.thread = get_ident()
        with cython.critical_section(own):
            own.append(self)
            publish(self.setting, own, self.thread)

    def __exit__(self, *exception):
        cdef list own = blocks[self.setting]
        with cython.critical_section(own):
            own.remove(self)
            publish(self.setting, own, self.thread)


cdef object publish(fa_setting setting, list of_setting, object thread):
    """Tells C the latest block, and the latest of a thread, which calls."""
    cdef Block block
    cdef int own = FA_UNSET, latest = FA_UNSET
    for block in of_setting:
        latest = block.value
        if block.thread == thread:
            own = latest
    fa_setting_of_thread(setting, own)
    fa_setting_of_blocks(setting, latest)


cdef object set_setting(fa_setting setting, int value):
    """Of the block that the thread is in, else of the process."""
    cdef Block block, own = None
    cdef list of_setting = blocks[setting]
    cdef object thread = get_ident()
    with cython.critical_section(of_setting):
        for block in of_setting:
            if block.thread == thread:
                own = block
        if own is None:
            fa_setting_set(setting, value)
        else:
            own.value = value
            publish(setting, of_setting, thread)


cdef bint by_blas(fa_setting setting):
    return fa_setting_get(setting) == BLAS


def isa_names():
    """Every ISA of this build, lowest first."""
    return [text(fa_isa_name(<fa_isa>i)) for i in range(FA_ISA_COUNT)]


def available_isas():
    return [text(fa_isa_name(<fa_isa>i)) for i in range(FA_ISA_COUNT) if fa_isa_usable(<fa_isa>i)]


def get_isa():
    return text(fa_isa_name(fa_get_isa()))


def isa_number(name):
    """The setting for an ISA that is available."""
    names = isa_names()
    name = plain_text(name)
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"use_isa: name must be one of {available_isas()}, got {shown(name)}")
    number = names.index(name)
    if not fa_isa_usable(<fa_isa><int>number):
        raise ValueError(f"use_isa: name must be available here ({available_isas()}), got {shown(name)}")
    return number


def set_isa(name):
    set_setting(FA_SETTING_ISA, isa_number(name))


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


def thread_number(n, op):
    """The setting for at most n threads."""
    n = as_integer(n, op, "n")
    if not 1 <= n <= FA_MAX_THREADS:
        raise ValueError(f"{op}: n must lie in 1..{FA_MAX_THREADS}, got {n}")
    return n


def set_num_threads(n):
    set_setting(FA_SETTING_THREADS, thread_number(n, "set_num_threads"))


def threads_limit():
    """The most threads that a call uses now: fewer than get_num_threads while the machine is busy."""
    return fa_threads_limit()


def adapt_threads(bint adapt):
    """Whether teams of threads do without those that are late, and become smaller while the machine is busy."""
    fa_threads_adapt(adapt)


def disturb_threads(int meetings):
    """For tests: every so many meetings a team dissolves, as if a thread had been late; 0: none. Returns how many have
    since the last call."""
    return fa_threads_disturb(meetings)


def trim():
    """Gives kept memory back."""
    fa_scratch_trim()


def strategy_number(kind, name):
    """The setting for a strategy of "attention" or "linear"."""
    cdef tuple names = ATTENTION_STRATEGIES if kind == "attention" else LINEAR_STRATEGIES
    name = plain_text(name)
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"{kind}_strategy: name must be one of {names}, got {shown(name)}")
    if name == "blas" and not fa_blas_load():
        raise ValueError(f"{kind}_strategy: 'blas' needs a BLAS, "
                         f"and this build ({text(fa_blas_provider())}) has none that loads")
    return names.index(name)


def get_attention_strategy():
    return ATTENTION_STRATEGIES[max(0, fa_setting_get(FA_SETTING_ATTENTION))]


def get_linear_strategy():
    return LINEAR_STRATEGIES[max(0, fa_setting_get(FA_SETTING_LINEAR))]


cdef bytes blas_path_bytes = b""


def set_blas_path(path):
    """The path of the vendored library. Once, at import."""
    global blas_path_bytes
    blas_path_bytes = path.encode()
    fa_blas_path(blas_path_bytes)


def blas_info():
    """(provider, core, version); the last two are empty when there is none. Loads the library."""
    return text(fa_blas_provider()), text(fa_blas_core()), text(fa_blas_version())


def probe_multiply_add(dtype, rounds, threads=1):
    """Runs independent multiply-adds on `threads` threads at once; returns how many (scalars, all threads). For
    benchmarks, which take the time."""
    cdef fa_dtype kind = <fa_dtype>type_of(as_dtype(dtype, "probe_multiply_add"))
    cdef fa_index n = rounds
    cdef int team = threads
    cdef double done
    with nogil:
        done = fa_probe_multiply_add(kind, n, team)
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

# The floating-point state of arithmetic beside the ops: NumPy's, in checks and tables.

cdef object errstate = np.errstate


@cython.final
@cython.auto_pickle(False)
cdef class DefaultFloats:
    """`with DefaultFloats():` NumPy computes under the default floating-point state, as ops do; none of its exceptions
    is reported, and the caller's state, flags included, is as it was afterwards."""
    cdef fa_float_state callers
    cdef fa_long_double_state callers_long
    cdef object errors

    def __enter__(self):
        self.errors = errstate(all="ignore")
        self.errors.__enter__()
        self.callers_long = fa_long_double_enter()
        self.callers = fa_float_enter()

    def __exit__(self, *exception):
        fa_float_leave(&self.callers)
        fa_long_double_leave(&self.callers_long)
        self.errors.__exit__(None, None, None)

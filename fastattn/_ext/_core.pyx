# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False, freethreading_compatible=True
"""The compiled half of fastattn: arrays are checked here, in one place, and handed to C with the GIL released.

Private: import fastattn instead. arrays.pxi has the checks and their messages, one file per family the calls.
"""

import sys
from copy import deepcopy
from operator import index
from threading import get_ident

import numpy as np

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_SIMPLE,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.float cimport FLT_MAX
from libc.math cimport fabs, frexp, isfinite, ldexp
from libc.stdint cimport INT64_MIN, int64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy

from _csrc cimport *

cdef extern from "Python.h":
    int get_buffer "PyObject_GetBuffer"(object exporter, Py_buffer *view, int flags) noexcept
    void PyErr_Clear() noexcept

cdef extern from *:
    int ctz "__builtin_ctzll"(unsigned long long) noexcept

include "arrays.pxi"
include "dlpack.pxi"
include "results.pxi"
include "float_state.pxi"
include "settings.pxi"
include "cast.pxi"
include "rows.pxi"
include "norm.pxi"
include "linear.pxi"
include "embedding.pxi"
include "cross_entropy.pxi"
include "attention.pxi"
include "attention_varlen.pxi"
include "attention_parts.pxi"
include "attention_backward.pxi"
include "cache.pxi"
include "additive.pxi"
include "attention_gru.pxi"
include "recurrent_weights.pxi"
include "recurrent.pxi"
include "recurrent_step.pxi"
include "recurrent_backward.pxi"
include "xla.pxi"

fa_init()

__c_api__ = PyCapsule_New(<void *>&fa_c_api, FA_API_CAPSULE, NULL)  # what csrc/fastattn_import.h imports

"""The floating-point state of this thread, read and set through the C library: for tests that call under another."""

import contextlib
import ctypes
import platform
import sys
from collections.abc import Iterator

import pytest

_SIZE, _MXCSR, _X87_CONTROL, _X87_STATUS = 32, 28, 0, 4  # bytes of glibc's fenv_t, and offsets in it
_FLAGS = 0x3F
INEXACT = 0x20
DEFAULT = 0x1F80
# MXCSR: flush to zero and denormals are zero, or a rounding mode in bits 13 and 14.
STATES = {"flush to zero": 0x9FC0, "down": 0x3F80, "up": 0x5F80, "to zero": 0x7F80}

HAS_STATE = sys.platform == "linux" and platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"
needs_state = pytest.mark.skipif(not HAS_STATE, reason="MXCSR is read through glibc on x86-64 here")
_libm = ctypes.CDLL("libm.so.6") if HAS_STATE else None


def _environment() -> ctypes.Array:
    environment = ctypes.create_string_buffer(_SIZE)
    _libm.fegetenv(environment)
    return environment


def read() -> tuple[int, int, int]:
    """MXCSR, control word and exception flags of the x87."""
    raw = _environment().raw
    mxcsr, control, status = (
        int.from_bytes(raw[at : at + size], "little") for at, size in ((_MXCSR, 4), (_X87_CONTROL, 2), (_X87_STATUS, 2))
    )
    return mxcsr, control, status & _FLAGS


@contextlib.contextmanager
def under(mxcsr: int, flags: int = 0) -> Iterator[None]:
    """With this MXCSR, its rounding mode in the x87 too, and these exception flags in both."""
    saved, changed = _environment(), _environment()
    control = 0x37F | (mxcsr >> 13 & 3) << 10
    for at, size, value in ((_MXCSR, 4, mxcsr | flags), (_X87_CONTROL, 2, control), (_X87_STATUS, 2, flags)):
        changed[at : at + size] = value.to_bytes(size, "little")
    _libm.fesetenv(changed)
    try:
        yield
    finally:
        _libm.fesetenv(saved)

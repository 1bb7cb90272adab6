"""Ways to lay out the same values in memory. Each takes an array and returns an equal one."""

import numpy as np


def _filler(x):
    """What lies between the elements: NaN, or for integers an absurd number."""
    return 77 if x.dtype.kind in "iu" else np.nan


def negative_strides(x):
    """Every axis stored backwards."""
    index = (slice(None, None, -1),) * x.ndim
    return x[index].copy()[index]


def spaced(x):
    """Every axis with a gap after each element."""
    store = np.full([2 * n for n in x.shape], _filler(x), x.dtype)
    view = store[(slice(None, None, 2),) * x.ndim]
    view[...] = x
    return view


def padded_rows(x):
    """The last axis contiguous, rows a prime distance apart."""
    if x.ndim == 0:
        return x.copy()
    store = np.full((*x.shape[:-1], x.shape[-1] + 7), _filler(x), x.dtype)
    store[..., : x.shape[-1]] = x
    return store[..., : x.shape[-1]]


def fortran(x):
    """The first axis contiguous."""
    return np.asfortranarray(x)


def unaligned(x, offset=1):
    """Starts `offset` bytes beyond an aligned address."""
    store = np.zeros(x.nbytes + offset + 64, np.uint8)
    start = -store.ctypes.data % 64 + offset
    view = store[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def element_aligned(x):
    """Aligned to one element and no more."""
    return unaligned(x, x.itemsize)


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "negative strides": negative_strides,
    "spaced": spaced,
    "padded rows": padded_rows,
    "fortran": fortran,
    "unaligned": unaligned,
    "element aligned": element_aligned,
    "read-only": read_only,
}


def same_bits(a, b):
    """Whether two arrays have the same shape, dtype and bits; NaNs are alike."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits = f"u{a.itemsize}"
    return bool(np.all((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))))

"""No result depends on what earlier calls left on the stack, where kernels keep scales and digits of a block."""

import ctypes

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits
from tests.low_precision import BFLOAT16

WORDS = [0xFFFFFFFF, 0x7FC07FC0, 0x7F800000, 0x7F7FFFFF, 0]  # NaN, NaN of 16 bits too, infinity, the largest number, 0


class Filling(ctypes.Structure):
    """More than the frames of any kernel."""

    _fields_ = (("words", ctypes.c_uint32 * 65536),)


FILLINGS = [Filling.from_buffer(np.full(65536, word, np.uint32)) for word in WORDS]
TAKE = ctypes.CFUNCTYPE(ctypes.c_int, Filling)(ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value)


def assert_stack_does_not_matter(call):
    results = []
    with fa.num_threads(1):
        for filling in FILLINGS:
            TAKE(filling)  # what is passed by value is copied to the stack, where the next call finds it
            results.append(call())
    for result in results:
        for got, expected in zip(result, results[-1], strict=True):
            assert same_bits(got, expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kept", ["int8", "float32", BFLOAT16], ids=str)
@pytest.mark.parametrize("page_size", [None, 1, 15, 33])
@pytest.mark.parametrize(("heads", "tokens", "head_dim", "v_dim"), [(4, 81, 24, 40), (2, 130, 64, 5), (8, 530, 3, 65)])
def test_of_a_cache(rng, kept, page_size, heads, tokens, head_dim, v_dim):
    dtype = np.float32 if kept == "int8" else np.dtype(kept)
    q, k, v = (rng.standard_normal((1, h, n, d)).astype(dtype)
               for h, n, d in ((heads, 3, head_dim), (2, tokens, head_dim), (2, tokens, v_dim)))  # fmt: skip
    cache = fa.KVCache(1, 2, head_dim, v_dim=v_dim, dtype=kept, page_size=page_size)
    cache.append(k, v)
    for queries in (1, 3):
        for options in ({}, {"causal": "bottom-right", "window": (20, 0)}, {"softcap": 3.0, "window": (37, 1)}):
            assert_stack_does_not_matter(lambda n=queries, o=options: cache.attend(q[:, :, :n], return_lse=True, **o))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize(("queries", "keys", "head_dim", "v_dim"), [(5, 70, 24, 40), (33, 81, 9, 5), (150, 300, 65, 7)])
@pytest.mark.parametrize("value", [1, np.nan, np.inf])
def test_of_attention_and_its_gradients(rng, dtype, queries, keys, head_dim, v_dim, value):
    q, k, v, dout = (rng.standard_normal((1, h, n, d)).astype(dtype) for h, n, d in
                     ((4, queries, head_dim), (2, keys, head_dim), (2, keys, v_dim), (4, queries, v_dim)))  # fmt: skip
    v[0, 0, 60, 3] = dout[0, 1, 4, 0] = value

    def call():
        out, saved = fa.attention_forward(q, k, v, window=(20, 9))
        return out, *fa.attention_backward(dout, saved)

    assert_stack_does_not_matter(call)


@pytest.mark.usefixtures("isa")
def test_of_rows(rng, dtype):
    x = rng.standard_normal((3, 37)).astype(dtype)
    x[1] = np.finfo(dtype).max / 2
    targets = np.array([0, 1, 2])
    assert_stack_does_not_matter(
        lambda: (fa.softmax(x), fa.layer_norm(x), fa.rms_norm(x), fa.cross_entropy(x, targets, label_smoothing=0.1))
    )

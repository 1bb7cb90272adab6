"""Tensors of other libraries: by DLPack's exchange API, by __dlpack__, and what is refused."""

import ctypes
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits

FLOAT, BFLOAT, INT = 2, 4, 0
CPU, CUDA = 1, 2


class Tensor(ctypes.Structure):
    """csrc/dlpack.h's dl_tensor, with the rest of dl_managed_tensor behind."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    ]  # fmt: skip


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Producer:
    """Something that has nothing but an old __dlpack__, with any entries."""

    def __init__(self, x, strides=None, **changes):
        self.x = x
        self.shape = (ctypes.c_int64 * x.ndim)(*x.shape)
        self.strides = None if strides is None else (ctypes.c_int64 * x.ndim)(*strides)
        entries = {"data": x.ctypes.data, "device_type": CPU, "ndim": x.ndim, "code": FLOAT, "bits": 8 * x.itemsize,
                   "lanes": 1, "shape": self.shape, "strides": self.strides} | changes  # fmt: skip
        self.tensor = Tensor(**entries)

    def __dlpack__(self):
        return new_capsule(ctypes.addressof(self.tensor), b"dltensor", None)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def layouts(torch, x):
    """Tensors of the values of x[a, b], some in odd places."""
    t = torch.from_numpy(x.copy())
    yield t
    yield t.T.contiguous().T
    yield torch.nn.functional.pad(t, (1, 2))[:, 1:-2]
    yield t.repeat_interleave(2, 0)[::2]
    yield torch.nn.Parameter(t, requires_grad=False)


def test_tensors_of_any_layout_are_the_arrays_of_their_memory(torch, rng):
    for dtype in (np.float32, np.float64, np.float16):
        x = rng.standard_normal((5, 17)).astype(dtype)
        for tensor in layouts(torch, x):
            assert same_bits(fa.softmax(tensor), fa.softmax(x))
    one = torch.ones(1, 3).expand(4, 3)
    assert same_bits(fa.softmax(one), fa.softmax(np.ones((4, 3), np.float32)))
    assert fa.softmax(torch.ones(0, 3)).shape == (0, 3)
    assert fa.embedding(torch.tensor([1, 0]), torch.eye(2)).tolist() == [[0, 1], [1, 0]]
    assert fa.attention(*torch.ones(3, 1, 1, 2, 4), mask=torch.eye(2) > 0).shape == (1, 1, 2, 4)


def test_a_tensor_is_read_where_it_lies(torch):
    t = torch.zeros(2, 3, dtype=torch.bfloat16)
    pytest.importorskip("ml_dtypes")
    saved = fa.rms_norm_forward(t, eps=1.0)[1]
    assert saved.x.ctypes.data == t.data_ptr()
    assert not saved.x.flags.writeable


def test_the_memory_of_a_tensor_is_kept_as_long_as_its_array(torch):
    for make in (lambda: torch.zeros(3), lambda: torch.zeros(3).requires_grad_().detach()):
        tensor = make()
        dead = weakref.ref(tensor)
        saved = fa.rms_norm_forward(tensor)[1]
        del tensor
        gc.collect()
        assert dead() is not None
        del saved
        gc.collect()
        assert dead() is None


BITS = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, torch, fastattn as fa
x = torch.arange(24).reshape(2, 3, 4).to(torch.bfloat16)
q = x.reshape(1, 2, 3, 4)
results = [fa.softmax(x), fa.attention(q, q, q), fa.linear(x, x[0]), fa.layer_norm(x, torch.ones(4))]
results += [fa.softmax(fa.softmax(x)), fa.gelu_backward(x, x)]
assert all(r.dtype.itemsize == 2 for r in results)
print(*[r.view(np.uint16).tobytes().hex() for r in results])
"""


def test_bfloat16_needs_no_package(torch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.arange(24).reshape(2, 3, 4).astype(ml_dtypes.bfloat16)
    q = x.reshape(1, 2, 3, 4)
    expected = [fa.softmax(x), fa.attention(q, q, q), fa.linear(x, x[0]), fa.layer_norm(x, np.ones(4, np.float32))]
    expected += [fa.softmax(fa.softmax(x)), fa.gelu_backward(x, x)]
    run = subprocess.run([sys.executable, "-c", BITS], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [r.view(np.uint16).tobytes().hex() for r in expected]


def test_objects_with_dlpack_alone_are_read(rng):
    x = rng.standard_normal((4, 6)).astype(np.float32)
    expected = fa.softmax(x)
    assert same_bits(fa.softmax(Producer(x)), expected)
    assert same_bits(fa.softmax(Producer(x, (6, 1))), expected)
    assert same_bits(fa.softmax(Producer(x, (-6, -1), data=x.ctypes.data + x.nbytes - 4)), fa.softmax(x[::-1, ::-1]))
    assert same_bits(fa.softmax(Producer(x[:2], byte_offset=4)), fa.softmax(x.ravel()[1:13].reshape(2, 6)))
    assert same_bits(fa.softmax(Producer(x, device_type=3)), expected)
    assert fa.softmax(Producer(x[:0], data=None)).shape == (0, 6)
    bf16 = pytest.importorskip("ml_dtypes").bfloat16
    low = x.astype(bf16)
    got = fa.softmax(Producer(low.view(np.uint16), code=BFLOAT))
    assert got.dtype == bf16
    assert got.tobytes() == fa.softmax(low).tobytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device_type": CUDA}, "on a device of DLPack's type 2"),
        ({"data": None}, "it has no memory"),
        ({"lanes": 2}, "2 lanes"),
        ({"code": 9, "bits": 8}, "DLPack's type 9"),
        ({"code": INT}, "int32"),
        ({"bits": 128}, "float128|longdouble|type 2 with 128"),
    ],
)
def test_tensors_that_no_kernel_reads_are_refused(changes, message):
    x = np.ones((2, 8), np.float32)
    with pytest.raises(TypeError, match=f"softmax: x must .*({message})"):
        fa.softmax(Producer(x, **changes))


def test_tensors_are_refused_by_what_they_are(torch):
    t = torch.ones(2, 3)
    inner = []
    refused = [
        (t.clone().requires_grad_(), r"not require gradients, got one that does: pass x.detach\(\)"),
        (t.to("meta"), "be on the CPU, got Tensor on meta"),
        (t.to(torch.bfloat16).to("meta"), "be on the CPU, got Tensor on meta"),
        (t.to_sparse(), r"be dense, got Tensor of torch.sparse_coo: pass to_dense\(\)"),
        (torch.randn(3, dtype=torch.complex64).conj().imag, r"negative bit is set: pass resolve_neg\(\)"),
        (t.to(torch.float8_e4m3fn), "be an array, got Tensor"),
        (torch._efficientzerotensor((2, 3)), "it has no memory"),
        (t > 0, "be float32"),
    ]
    for tensor, message in refused:
        with pytest.raises(TypeError, match=f"softmax: x must {message}|softmax: x must be an array.*{message}"):
            fa.softmax(tensor)

    def call(t):
        with pytest.raises(TypeError, match=r"softmax: x must be an array, got (Tensor|GradTrackingTensor)"):
            fa.softmax(t)
        inner.append(t)
        return t.sum()

    torch.vmap(call)(t)
    assert inner


def test_tracers_of_jax_are_refused_by_name():
    class Tracer:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("no values")

    class DynamicJaxprTracer(Tracer):
        pass

    with pytest.raises(TypeError, match=r"softmax: x must have values, got DynamicJaxprTracer, which JAX traces with"):
        fa.softmax(DynamicJaxprTracer())


def test_attributes_that_raise_do_no_harm():
    class Hostile:
        def __getattr__(self, name):
            raise RuntimeError(name)

    with pytest.raises(TypeError, match="softmax: x must be an array, got Hostile"):
        fa.softmax(Hostile())

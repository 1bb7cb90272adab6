"""What an argument may be: one table of objects that hold memory, tried in the place of arguments of every function.

An object that shares memory counts as the array of that memory; one that cannot be read is refused with the names of
function and argument.
"""

import array
import mmap
import subprocess
import sys
from multiprocessing import RawArray

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastattn as fa
from tests.arrays import LAYOUTS, same_bits
from tests.test_malformed import CALLS

DRAWS = 12  # objects of each kind for each function


class Only:
    """An object with nothing but the named attributes of another."""

    def __init__(self, other, *names):
        for name in names:
            setattr(self, name, getattr(other, name))


class OnlyArray:
    def __init__(self, x):
        self._x = x

    def __array__(self, dtype=None, copy=None):
        return self._x


class OnlyDlpack:
    def __init__(self, x):
        self._x = x

    def __dlpack__(self, **options):
        return self._x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._x.__dlpack_device__()


def of_ctypes(x):
    kind = np.ctypeslib.as_ctypes_type(x.dtype)
    for size in reversed(x.shape):
        kind = kind * size
    return kind.from_buffer_copy(x.tobytes())


def of_raw_array(x):
    flat = RawArray(np.ctypeslib.as_ctypes_type(x.dtype), max(1, x.size))
    shaped = np.frombuffer(flat, x.dtype)[: x.size].reshape(x.shape)
    shaped[...] = x
    return memoryview(shaped)


def of_array_module(x):
    flat = array.array({"float32": "f", "float64": "d", "int64": "l"}[x.dtype.name], x.tobytes())
    return memoryview(flat).cast("B").cast(flat.typecode, x.shape)


def of_mmap(x):
    shared = np.frombuffer(mmap.mmap(-1, max(1, x.nbytes)), x.dtype, x.size).reshape(x.shape)
    shared[...] = x
    return shared


def of_torch(x):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(x.copy())


class Mine(np.ndarray):
    """A subclass that would change results, were it not for its memory alone."""

    def __getitem__(self, at):
        raise AssertionError("a subclass is taken for what it holds")


HOLDERS = {
    "ctypes": of_ctypes,
    "RawArray": of_raw_array,
    "array.array": of_array_module,
    "mmap": of_mmap,
    "memoryview": memoryview,
    "read-only memoryview": lambda x: memoryview(x).toreadonly(),
    "bytes behind a dtype": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "torch": of_torch,
    "only __array__": OnlyArray,
    "only __dlpack__": OnlyDlpack,
    "only __array_interface__": lambda x: Only(x, "__array_interface__"),
    "subclass": lambda x: x.copy().view(Mine),
    "recarray": lambda x: x.copy().view(np.recarray),
    "unmasked masked array": np.ma.array,
    "little-endian by name": lambda x: x.view(x.dtype.newbyteorder("=").str),
}


def data_arguments(arguments):
    """The names of arguments that are arrays; out is written to and not read."""
    return [
        name for name, value in arguments.items()
        if isinstance(value, np.ndarray) and name != "out" and value.ndim and value.size
    ]  # fmt: skip


def flat(result):
    """The arrays of a result, whatever it is made of."""
    if isinstance(result, np.ndarray | np.generic):
        return [np.asarray(result)]
    if isinstance(result, tuple | list) and "Saved" not in type(result).__name__:  # that keeps what came
        return [x for part in result for x in flat(part)]
    if isinstance(result, dict):
        return flat(list(result.values()))
    return []


def fresh(arguments):
    return {name: value.copy() if name == "out" else value for name, value in arguments.items()}


EVERY_CALL = pytest.mark.parametrize(
    "call", [call for call in CALLS if data_arguments(call[2])], ids=lambda call: f"{call[0]}"
)


@EVERY_CALL
def test_whatever_holds_memory_counts_as_its_array(call, rng):
    _, function, arguments = call
    expected = flat(function(**fresh(arguments)))
    for name in data_arguments(arguments):
        for holder in rng.choice(list(HOLDERS), 6, replace=False):
            given = fresh(arguments) | {name: HOLDERS[holder](arguments[name])}
            got = flat(function(**given))
            assert all(map(same_bits, got, expected)), f"{name} as {holder}"
            assert all(type(x) is np.ndarray for x in got)


@EVERY_CALL
def test_layouts_change_no_bit_of_any_function(call, rng):
    _, function, arguments = call
    expected = flat(function(**fresh(arguments)))
    names = data_arguments(arguments)
    for layout in rng.choice(list(LAYOUTS), 4, replace=False):
        got = flat(function(**fresh(arguments) | {name: LAYOUTS[layout](arguments[name]) for name in names}))
        assert all(map(same_bits, got, expected)), layout


@EVERY_CALL
def test_broadcast_views_give_the_bits_of_their_copies(call):
    """Strides of 0 along each axis in turn, and along all."""
    _, function, arguments = call
    for name in data_arguments(arguments):
        x = arguments[name]
        if x.dtype.kind != "f":  # offsets and the like do not bear one value for all
            continue
        for axes in [*((axis,) for axis in range(x.ndim)), tuple(range(x.ndim))]:
            one = x[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(x.ndim))]
            view = np.broadcast_to(one, x.shape)
            results = [flat(function(**fresh(arguments) | {name: given})) for given in (view, view.copy())]
            assert all(map(same_bits, *results)), f"{name} along {axes}"
        windows = as_strided(x.ravel(), x.shape, [x.itemsize] * x.ndim)
        results = [flat(function(**fresh(arguments) | {name: given})) for given in (windows, windows.copy())]
        assert all(map(same_bits, *results)), f"{name} of overlapping windows"


def with_gradient(torch, x):
    return torch.from_numpy(x.copy()).requires_grad_()


def refused_objects(x):
    """Objects of the values of x that no function may compute with, and what the message has to say."""
    swapped = x.astype(x.dtype.newbyteorder())
    yield swapped, "native byte order"
    yield Only(swapped, "__array_interface__"), "native byte order"
    masked = np.ma.array(x, mask=np.arange(x.size).reshape(x.shape) == 0)
    yield masked, "masked"
    yield OnlyArray(masked), "masked"
    yield [masked] if x.ndim == 1 else list(masked), "masked"
    for kind in (complex, object, np.longdouble, "datetime64[s]", "U5", bool, np.int32, "f4,f4"):
        other = np.zeros(x.shape, kind)
        if other.dtype != np.float64:  # long double is no other type everywhere
            yield other, "must be"
    yield OnlyArray(None), "must be"
    torch = pytest.importorskip("torch")
    for tensor in (
        with_gradient(torch, x),
        torch.from_numpy(x.copy()).to("meta"),
        torch.from_numpy(x.copy()).to_sparse(),
        torch.from_numpy(x.copy()).to(torch.float8_e4m3fn),
        torch.from_numpy(x.copy()).to(torch.bfloat16).to("meta"),
    ):
        yield tensor, "must"


@EVERY_CALL
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_array_of_floats_is_refused_by_name(call, rng):
    op, function, arguments = call
    for name in data_arguments(arguments):
        x = arguments[name]
        if x.dtype.kind != "f" or name in ("mask", "positions", "dloss"):  # of which more kinds are right
            continue
        refused = list(refused_objects(x))
        for at in rng.choice(len(refused), min(DRAWS, len(refused)), replace=False):
            value, words = refused[at]
            with pytest.raises(TypeError, match=words) as raised:
                function(**fresh(arguments) | {name: value})
            text = str(raised.value)
            assert text.split(":", maxsplit=1)[0].removesuffix("_forward") == op, text
            assert name.split("_")[0] in text, text


@EVERY_CALL
def test_masked_integers_and_masks_are_refused(call):
    _, function, arguments = call
    for name in data_arguments(arguments):
        x = arguments[name]
        masked = np.ma.array(x, mask=np.arange(x.size).reshape(x.shape) == 0)
        with pytest.raises(TypeError, match=f"{name} must have no masked elements"):
            function(**fresh(arguments) | {name: masked})


@EVERY_CALL
def test_integers_of_any_type_and_byte_order_have_their_values(call):
    _, function, arguments = call
    expected = flat(function(**fresh(arguments)))
    for name in data_arguments(arguments):
        if arguments[name].dtype.kind == "i":
            for kind in (">i8", "<i4", ">u2", "u8", "i1"):
                got = flat(function(**fresh(arguments) | {name: arguments[name].astype(kind)}))
                assert all(map(same_bits, got, expected)), f"{name} of {kind}"


OUT_CALLS = pytest.mark.parametrize("call", [c for c in CALLS if "out" in c[2]], ids=lambda call: call[0])


def overlapping(shape, dtype):
    """Arrays of this shape whose elements share memory."""
    store = np.zeros(4 * int(np.prod(shape)) + 8, dtype)
    item = store.itemsize
    plain = [item * int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    for axis in range(len(shape)):
        if shape[axis] > 1:
            yield as_strided(store, shape, [0 if i == axis else stride for i, stride in enumerate(plain)])
            yield as_strided(store, shape, [item if i == axis else stride for i, stride in enumerate(plain)])
    yield as_strided(store, shape, [item * 2] * len(shape))


@OUT_CALLS
def test_out_that_overlaps_itself_is_refused(call):
    op, function, arguments = call
    out = arguments["out"]
    some = 0
    for own in overlapping(out.shape, out.dtype):
        places = {sum(i * s for i, s in zip(at, own.strides, strict=True)) for at in np.ndindex(own.shape)}
        if len(places) == own.size:
            continue
        some += 1
        with pytest.raises(ValueError, match=f"^{op}: out must have memory of its own"):
            function(**arguments | {"out": own})
    assert some


@OUT_CALLS
def test_out_of_interleaved_elements_is_written(call):
    """Axes that lie in one another without sharing an element: steps of 2 in a row, an odd step between rows."""
    _, function, arguments = call
    expected = function(**fresh(arguments))
    expected = expected[0] if isinstance(expected, tuple) else expected
    store = np.zeros(8 * expected.size + 64, expected.dtype)
    step = 2 * expected.shape[-1] - 3  # odd, and below the reach of a row of steps of 2
    rows = [step * int(np.prod(expected.shape[axis + 1 : -1])) for axis in range(expected.ndim - 1)]
    out = as_strided(store, expected.shape, [store.itemsize * n for n in (*rows, 2)])
    function(**arguments | {"out": out})
    assert same_bits(out, expected)


@OUT_CALLS
@pytest.mark.parametrize("holder", ["torch", "__array__", "interface", "__array_interface__ of a view"])
def test_overlap_of_out_is_seen_through_any_object(call, holder):
    """Each argument in turn has elements in the memory of out."""
    _, function, arguments = call
    out = arguments["out"]
    for name in data_arguments(arguments):
        x = arguments[name]
        if x.dtype != out.dtype:
            continue
        store = np.zeros(x.size + out.size, out.dtype)
        for at in (0, 1, x.size // 2):
            own, shared = store[at : at + out.size].reshape(out.shape), store[: x.size].reshape(x.shape)
            shared[...] = x
            given = {
                "torch": lambda a: pytest.importorskip("torch").from_numpy(a),
                "__array__": OnlyArray,
                "interface": lambda a: Only(a, "__array_interface__"),
                "__array_interface__ of a view": lambda a: Only(a[...], "__array_interface__"),
            }[holder](shared)
            expected = function(**fresh(arguments))
            got = function(**arguments | {name: given, "out": own})
            assert all(map(same_bits, flat(got), flat(expected))), f"{name} from {at}"


@pytest.mark.parametrize("keyed", ["mask", "alibi_slopes", "sinks"])
def test_a_transposed_tensor_of_out_as_an_option_of_attention(keyed, rng):
    torch = pytest.importorskip("torch")
    q, k, v = (rng.standard_normal((1, 4, 4, 4)).astype(np.float32) for _ in range(3))
    out = rng.standard_normal((1, 4, 4, 4)).astype(np.float32)
    option = torch.from_numpy(out)[0, 0].mT if keyed == "mask" else torch.from_numpy(out)[0, 0, 0]
    expected = fa.attention(q, k, v, **{keyed: option.numpy().copy()})
    assert same_bits(fa.attention(q, k, v, **{keyed: option}, out=out), expected)


@OUT_CALLS
def test_out_must_be_a_plain_writable_ndarray(call):
    op, function, arguments = call
    torch = pytest.importorskip("torch")
    out = arguments["out"]
    for wrong in (torch.from_numpy(out.copy()), memoryview(out.copy()), np.ma.array(out.copy()), OnlyArray(out)):
        with pytest.raises(TypeError, match=f"^{op}: out must be an ndarray"):
            function(**arguments | {"out": wrong})
    with pytest.raises(ValueError, match=f"^{op}: out must be writable"):
        function(**arguments | {"out": LAYOUTS["read-only"](out)})
    with pytest.raises(ValueError, match=f"^{op}: out must have shape"):
        function(**arguments | {"out": out.astype(out.dtype.newbyteorder())})


# ---- gradients of broadcast arguments ----


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (3,), (2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("varlen", [False, True])
def test_the_gradient_of_a_mask_depends_on_its_shape_and_not_on_its_strides(axes, varlen, rng):
    q, k, v, dout = (rng.standard_normal((2, 3, 4, 5)) for _ in range(4))
    mask = np.broadcast_to(rng.standard_normal([1 if axis in axes else n for axis, n in enumerate((2, 3, 4, 4))]),
                           (2, 3, 4, 4))  # fmt: skip
    starts = [0, 4, 8]

    def gradient(mask):
        if varlen:
            ragged = [x.swapaxes(1, 2).reshape(8, 3, 5) for x in (q, k, v, dout)]
            _, saved = fa.attention_varlen_forward(*ragged[:3], starts, starts, mask=mask)
            return fa.attention_varlen_backward(ragged[3], saved, gradients=["mask"]).dmask
        _, saved = fa.attention_forward(q, k, v, mask=mask)
        return fa.attention_backward(dout, saved, gradients=["mask"]).dmask

    assert same_bits(gradient(mask), gradient(mask.copy()))


# ---- bfloat16 ----


class bfloat16(np.void):
    """A dtype of this name from another package than ml_dtypes."""


OTHER = np.dtype((bfloat16, 2))


def low_precision_calls():
    return [call for call in CALLS if "bfloat16" in fa_dtypes(call)]


def fa_dtypes(call):
    _, function, arguments = call
    ml_dtypes = pytest.importorskip("ml_dtypes")
    try:
        function(**as_bfloat16(arguments, np.dtype(ml_dtypes.bfloat16)))
    except TypeError:
        return ()
    return ("bfloat16",)


def as_bfloat16(arguments, dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")

    def convert(value):
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            return value.astype(ml_dtypes.bfloat16).view(np.uint16).view(dtype)
        if isinstance(value, dict):
            return {name: convert(part) for name, part in value.items()}
        return tuple(map(convert, value)) if isinstance(value, tuple) else value

    return {name: None if name == "dtype" else convert(value) for name, value in arguments.items() if name != "out"}


def test_results_are_of_the_bfloat16_of_their_input_in_any_order():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    usual = np.dtype(ml_dtypes.bfloat16)
    calls = [call for call in low_precision_calls() if not call[0].startswith("pack_")]  # NumPy names OTHER bfloat1616
    assert len(calls) > 15
    for op, function, arguments in calls:
        expected = flat(function(**as_bfloat16(arguments, usual)))
        for dtype in (OTHER, usual, OTHER):
            got = flat(function(**as_bfloat16(arguments, dtype)))
            for x, y in zip(got, expected, strict=True):
                assert x.dtype == (dtype if y.dtype == usual else y.dtype), op
                assert x.tobytes() == y.tobytes(), op


def test_bfloat16_of_foreign_byte_order_is_refused():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for op, function, arguments in low_precision_calls():
        if not any(isinstance(value, np.ndarray | dict) for value in arguments.values()):
            continue
        swapped = as_bfloat16(arguments, np.dtype(ml_dtypes.bfloat16).newbyteorder())
        with pytest.raises(TypeError, match=f"^{op}.*native byte order"):
            function(**swapped)


def test_tensors_of_bfloat16_are_read_where_they_lie():
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    for op, function, arguments in low_precision_calls():
        plain = as_bfloat16(arguments, np.dtype(ml_dtypes.bfloat16))
        expected = flat(function(**plain))
        for name, value in plain.items():
            if isinstance(value, np.ndarray) and value.dtype == ml_dtypes.bfloat16:
                tensor = torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
                got = flat(function(**plain | {name: tensor}))
                assert all(x.tobytes() == y.tobytes() for x, y in zip(got, expected, strict=True)), f"{op} {name}"


def test_packed_weights_keep_the_bfloat16_they_were_packed_from():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    weight = np.ones((3, 4), ml_dtypes.bfloat16)
    assert fa.pack_linear(weight.view(OTHER)).dtype == OTHER
    assert fa.pack_linear(weight).dtype == ml_dtypes.bfloat16
    assert fa.pack_linear(np.ones((3, 4)), "bfloat16").dtype == ml_dtypes.bfloat16


WITHOUT_ML_DTYPES = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, fastattn as fa
from fastattn import nn
calls = [
    lambda: fa.KVCache(1, 1, 4, dtype="bfloat16"),
    lambda: fa.pack_linear(np.ones((2, 2)), "bfloat16"),
    lambda: nn.GRU(2, 3, dtype="bfloat16"),
    lambda: nn.BertModel(nn.BertConfig(10, 8, 1, 2, 16, 12)).pack("bfloat16"),
    lambda: nn.TransformerDecoder(8, 2, 16, num_layers=1).start(np.ones((1, 2, 8), np.float32), dtype="bfloat16"),
]
for call in calls:
    try:
        call()
    except TypeError as error:
        print(error)
weights = {"weight_ih_l0": np.ones((1, 2), np.float32), "weight_hh_l0": np.ones((1, 1), np.float32)}
print(fa.pack_rnn(weights, dtype="bfloat16").weight_dtype)
"""


def test_bfloat16_by_name_says_which_package_defines_it():
    """A fresh process: once ml_dtypes is imported, NumPy knows the name. Weights of recurrent networks need no arrays
    of bfloat16."""
    run = subprocess.run([sys.executable, "-c", WITHOUT_ML_DTYPES], capture_output=True, text=True, check=True)
    *errors, packed = run.stdout.splitlines()
    assert packed == "bfloat16"
    ops = ("KVCache", "pack_linear", "GRU", "BertModel.pack", "TransformerDecoder.start")
    for op, error in zip(ops, errors, strict=True):
        assert error.startswith(f"{op}: dtype must be "), error
        assert "ml_dtypes" in error, error
        assert "install" in error, error


# ---- scalars, flags and empty lists ----


def test_an_empty_list_is_one_of_integers():
    none = np.zeros((0, 1, 3, 4), np.float32)
    assert fa.attention(none, none, none, q_lengths=[], kv_lengths=[]).shape == (0, 1, 3, 4)
    assert fa.embedding([], np.ones((3, 2))).shape == (0, 2)
    weights = {"weight_ih_l0": np.ones((1, 2)), "weight_hh_l0": np.ones((1, 1))}
    assert fa.rnn(np.zeros((3, 0, 2)), None, weights, lengths=[])[0].shape == (3, 0, 1)
    assert fa.attention_weights(none, none, none[..., 0], heads=[], rows=[]).shape == (0, 0, 0, 3)


def numpy_scalars(value):
    if isinstance(value, bool):
        return [np.bool_(value)]
    if isinstance(value, int):
        return [np.int64(value), np.int8(value), np.array(value)]
    if isinstance(value, float):
        return [np.float64(value), np.array(value)] + [np.float32(value)] * bool(value == np.float32(value))
    if isinstance(value, tuple) and value and all(isinstance(part, int) for part in value):
        return [tuple(np.int64(part) for part in value), np.array(value)]
    return []


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0])
def test_numbers_and_flags_may_be_of_numpy(call):
    _, function, arguments = call
    expected = flat(function(**fresh(arguments)))
    for name, value in arguments.items():
        for scalar in numpy_scalars(value):
            got = flat(function(**fresh(arguments) | {name: scalar}))
            assert all(map(same_bits, got, expected)), f"{name}={scalar!r}"


def test_causal_may_be_a_truth_of_numpy(rng):
    x = rng.standard_normal((1, 2, 5, 4))
    assert same_bits(fa.attention(x, x, x, causal=np.True_), fa.attention(x, x, x, causal=True))
    assert same_bits(fa.attention(x, x, x, causal=np.False_), fa.attention(x, x, x))
    rows = x[0].swapaxes(0, 1)
    expected = fa.attention_varlen(rows, rows, rows, [0, 5], [0, 5], causal=True)
    assert same_bits(fa.attention_varlen(rows, rows, rows, [0, 5], [0, 5], causal=np.True_), expected)


@pytest.mark.parametrize("wrong", [np.array([1.0]), [1.0], np.ma.masked, "1", b"1", None, 1j, np.array(None)])
def test_a_number_is_no_array_with_axes_and_nothing_masked(wrong):
    with pytest.raises(TypeError, match=r"^softmax: scale must be a number"):
        fa.softmax(np.ones(3), scale=wrong)

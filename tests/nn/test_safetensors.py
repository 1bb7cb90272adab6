"""Files of named arrays: what is written is read, and what is wrong is named."""

import json

import numpy as np
import pytest

from fastattn import nn


def write(path, header, numbers=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + numbers)
    return path


def entry(shape=(2,), first=0, end=8, kind="F32"):
    return {"dtype": kind, "shape": list(shape), "data_offsets": [first, end]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


def test_every_type_is_read(path):
    arrays = {
        kind: np.arange(6).reshape(2, 3).astype(dtype)
        for kind, dtype in (("F64", "f8"), ("F32", "f4"), ("F16", "f2"), ("I64", "i8"), ("I32", "i4"), ("I16", "i2"),
                            ("I8", "i1"), ("U64", "u8"), ("U32", "u4"), ("U16", "u2"), ("U8", "u1"), ("BOOL", "?"))
    }  # fmt: skip
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for kind, array in arrays.items():
        header[kind] = entry(array.shape, len(numbers), len(numbers) + array.nbytes, kind)
        numbers += array.tobytes()
    found = nn.read_safetensors(write(path, header, numbers))
    assert set(found) == set(arrays)
    for kind, array in arrays.items():
        assert found[kind].dtype == array.dtype
        assert np.array_equal(found[kind], array)
        assert not found[kind].flags.writeable


def test_bfloat16_becomes_float32(path):
    bits = np.array([0x3F80, 0xC000, 0x7F80], np.uint16)
    (found,) = nn.read_safetensors(write(path, {"x": entry((3,), 0, 6, "BF16")}, bits.tobytes())).values()
    assert found.dtype == np.float32
    assert found.tolist() == [1, -2, np.inf]


def test_files_of_the_library_itself_are_read(path):
    library = pytest.importorskip("safetensors.numpy")
    arrays = {name: np.random.default_rng(0).standard_normal(shape, np.float32)
              for name, shape in (("a", (3, 4)), ("b", ()), ("c", (0, 5)))}  # fmt: skip
    library.save_file(arrays, path)
    found = nn.read_safetensors(path)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_an_empty_file_of_no_tensors_is_read(path):
    assert nn.read_safetensors(write(path, {})) == {}


EIGHT = bytes(8)


@pytest.mark.parametrize(
    ("header", "numbers", "size", "message"),
    [
        ({"w": entry()}, bytes(7), None, r"w must lie within the file's 7 bytes of numbers, got \[0, 8\]"),
        ({"w": entry()}, bytes(9), None, r"numbers must end with those of w, at byte 8, got 9 bytes"),
        ({"w": entry()}, EIGHT, 2**60, r"the header must fit into the file .* got 1152921504606846976"),
        ({"w": entry()}, b"", 10_000, r"the header must fit into the file .* got 10000"),
        ({"w": entry((3,))}, EIGHT, None, r"w must have 12 bytes for F32 \[3\], got 8"),
        ({"w": entry((1,), 0, 4), "v": entry((2,), 2, 10)}, bytes(10), None, r"v must not overlap w"),
        ({"w": entry((1,), 0, 4), "v": entry((1,), 6, 10)}, bytes(10), None, r"v must begin at byte 4, where w ends"),
        ({"w": entry((1,), 4, 8)}, EIGHT, None, r"w must begin at byte 0, where the header ends, got 4"),
        ({"w": entry(kind="F8_E4M3")}, EIGHT, None, r"w must have one of the types .* got 'F8_E4M3'"),
        ({"w": entry(kind=["F32"])}, EIGHT, None, r"w must have one of the types"),
        ({"w": entry((-2,))}, EIGHT, None, r"w must have a shape of sizes, got \[-2\]"),
        ({"w": entry((2**40, 2**40))}, EIGHT, None, r"w must have a shape of sizes"),
        ({"w": entry((True, 2))}, EIGHT, None, r"w must have a shape of sizes"),
        ({"w": entry((2,), 8, 0)}, EIGHT, None, r"w must lie within the file"),
        ({"w": {"dtype": "F32", "shape": [2]}}, EIGHT, None, r"w must have dtype, shape and data_offsets"),
        ({"w": 5}, EIGHT, None, r"w must have dtype, shape and data_offsets, got 5"),
        ([1], b"", None, r"the header must be a JSON object, got list"),
        (b"{not json", b"", None, r"the header must be JSON"),
        (b"\xff\xfe", b"", None, r"the header must be JSON"),
        (b'{"w": 1, "w": 2}', b"", None, r"the header must be JSON, each name once, got w stands there twice"),
        (b"[" * 100_000, b"", None, r"the header must be JSON"),
    ],
)
def test_what_is_wrong_is_named(path, header, numbers, size, message):
    with pytest.raises(ValueError, match=r"read_safetensors: file\.safetensors: " + message):
        nn.read_safetensors(write(path, header, numbers, size))


def test_a_file_of_a_few_bytes_is_named(path):
    path.write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"the file must hold a header, got 3 bytes"):
        nn.read_safetensors(path)
    with pytest.raises(OSError, match="nothing"):
        nn.read_safetensors(path.with_name("nothing"))


def test_a_file_cut_anywhere_raises(path):
    whole = write(path, {"w": entry((1,), 0, 4), "v": entry((1,), 4, 8)}, EIGHT).read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"read_safetensors: file\.safetensors"):
            nn.read_safetensors(path)

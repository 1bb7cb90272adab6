"""Reading files of named arrays in the safetensors format (https://github.com/huggingface/safetensors), with checks.

A file is the size of its header, 8 bytes little-endian; the header, JSON that gives each tensor's type, shape and
offsets; and the data, which fill the rest without overlap.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from fastattn import _core
from fastattn.functional._types import Array

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_PREFIX = 8  # bytes of the header's size
_LARGEST_HEADER = 100_000_000  # bytes, as the format has it
_LARGEST_SIZE = 2**62


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The tensors of a file by name: read-only arrays; bfloat16 becomes float32, which holds it exactly.

    Everything in the header is checked before a tensor is made. Raises ValueError that names the file and the tensor:
    header too large or no JSON, an unknown type, data outside of the file, of the wrong size, or overlapping those of
    another tensor, bytes that belong to no tensor; OSError if the file cannot be read.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "one.safetensors"
    >>> header = b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    >>> _ = path.write_bytes(len(header).to_bytes(8, "little") + header + np.float32([1, 2]).tobytes())
    >>> read_safetensors(path)
    {'x': array([1., 2.], dtype=float32)}
    """
    try:
        name = os.fsdecode(path)
        data = np.fromfile(name, np.uint8)
    except OSError:
        raise
    except MemoryError:
        raise MemoryError(f"read_safetensors: no memory for the file at path {path!r}") from None
    except Exception as error:  # no path, or one that no file can have
        raise TypeError(f"read_safetensors: path must name a file, got {_core.shown(path)} ({error})") from None
    data.flags.writeable = False
    label = f"read_safetensors: {Path(name).name}"
    header, begin = _header(data, label)
    entries = {name: _entry(entry, len(data) - begin, f"{label}: {name}") for name, entry in header.items()}
    end, last = 0, ""
    for name, (_, _, first, after) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if first < end:
            raise ValueError(f"{label}: {name} must not overlap {last}, got bytes {first}..{after} after ..{end}")
        if first > end:
            raise ValueError(
                f"{label}: {name} must begin at byte {end}, where {last or 'the header'} ends, got {first}"
            )
        end, last = after, name
    if end != len(data) - begin:
        raise ValueError(f"{label}: numbers must end with those of {last or 'no tensor'}, at byte {end}, "
                         f"got {len(data) - begin} bytes")  # fmt: skip
    return {name: _tensor(data[begin + entry[2] : begin + entry[3]], *entry[:2]) for name, entry in entries.items()}


def _header(data: Array, label: str) -> tuple[dict[str, Any], int]:
    """The entries by name, and where the numbers begin."""
    if len(data) < _PREFIX:
        raise ValueError(f"{label}: the file must hold a header, got {len(data)} bytes")
    size = int.from_bytes(data[:_PREFIX].tobytes(), "little")
    if size > min(_LARGEST_HEADER, len(data) - _PREFIX):
        raise ValueError(f"{label}: the header must fit into the file ({len(data)} bytes) and into "
                         f"{_LARGEST_HEADER} bytes, got {size}")  # fmt: skip

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands there twice")
        return found

    try:
        text = data[_PREFIX : _PREFIX + size].tobytes().decode("utf-8")
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{label}: the header must be JSON, each name once, got {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{label}: the header must be a JSON object, got {type(header).__name__}")
    header.pop("__metadata__", None)
    return header, _PREFIX + size


def _entry(entry: Any, room: int, label: str) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape and place of a tensor, all checked."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{label} must have dtype, shape and data_offsets, got {entry!r:.100}")
    kind, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f"{label} must have one of the types {', '.join(_DTYPES)}, got {kind!r:.100}")
    if not _are_sizes(shape) or math.prod(shape) > _LARGEST_SIZE:
        raise ValueError(f"{label} must have a shape of sizes, got {shape!r:.100}")
    if not _are_sizes(place) or len(place) != 2 or not place[0] <= place[1] <= room:
        raise ValueError(f"{label} must lie within the file's {room} bytes of numbers, got {place!r:.100}")
    size = math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize
    if place[1] - place[0] != size:
        raise ValueError(f"{label} must have {size} bytes for {kind} {shape}, got {place[1] - place[0]}")
    return kind, tuple(shape), place[0], place[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _tensor(data: Array, kind: str, shape: tuple[int, ...]) -> Array:
    values = data.view(_DTYPES[kind]).reshape(shape)
    if kind != "BF16":
        return values
    wide: Array = (values.astype(np.uint32) << 16).view(np.float32)
    wide.flags.writeable = False
    return wide

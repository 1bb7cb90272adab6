"""What setup.py asks of object files and libraries: the system and machine that they are for, their unwind table.

ELF (Linux), Mach-O (macOS) and COFF (Windows), by the bytes of their headers.
"""

import struct
from pathlib import Path
from typing import NamedTuple

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
_MACH_MACHINES = {0x01000007: "x86_64", 0x0100000C: "aarch64"}
_COFF_MACHINES = {0x8664: "x86_64", 0xAA64: "aarch64"}


class Target(NamedTuple):
    """What a binary is for."""

    system: str  # "linux", "macos" or "windows"
    machine: str  # "x86_64", "aarch64", or a number that none of these has


SUFFIXES = {"linux": ".so", "macos": ".dylib", "windows": ".dll"}
"""Of shared libraries."""


def target_of(path: Path) -> Target:
    """Of an object or library. Raises ValueError for a file of another kind, and for one of several machines."""
    head = path.read_bytes()[:4096]
    if head[:4] == b"\x7fELF":
        order = "<" if head[5] == 1 else ">"
        return Target("linux", _name(_ELF_MACHINES, struct.unpack_from(order + "H", head, 18)[0]))
    if head[:4] == b"\xcf\xfa\xed\xfe":
        return Target("macos", _name(_MACH_MACHINES, struct.unpack_from("<I", head, 4)[0]))
    if head[:4] in (b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf"):
        raise ValueError(f"{path.name} is for several machines: build for one at a time (one -arch)")
    if head[:2] == b"MZ":
        (start,) = struct.unpack_from("<I", head, 0x3C)
        if head[start : start + 4] == b"PE\0\0":
            return Target("windows", _name(_COFF_MACHINES, struct.unpack_from("<H", head, start + 4)[0]))
    if len(head) >= 20 and struct.unpack_from("<H", head)[0] in _COFF_MACHINES:
        return Target("windows", _COFF_MACHINES[struct.unpack_from("<H", head)[0]])
    raise ValueError(f"{path.name} is no object or library of Linux, macOS or Windows")


def _name(machines: dict[int, str], number: int) -> str:
    return machines.get(number, str(number))


def check_same(library: Path, wanted: Target) -> None:
    """Raises ValueError where a library is for another system or machine."""
    found = target_of(library)
    if found != wanted:
        raise ValueError(f"{library} is for {' '.join(found)}, and the compiler's objects for {' '.join(wanted)}")


def clear_unwind_table(path: Path) -> None:
    """Empties the table by which exceptions would pass through a library that neither throws nor calls back.

    Half a megabyte of the wheel. All else of the file stays where it is; the empty table is a valid one. Libraries that
    are not 64-bit, little-endian ELF keep theirs.
    """
    library = bytearray(path.read_bytes())
    if not library.startswith(b"\x7fELF\2\1"):
        return
    index, index_offset, index_size = _section(library, b".eh_frame_hdr")
    table, offset, size = _section(library, b".eh_frame")
    library[offset : offset + size] = bytes(size)  # a length of 0 ends the table
    # Version 1; encodings: relative to the field, plain, relative to the index; the table's place; 0 entries.
    empty = struct.pack("<4BiI", 1, 0x1B, 0x03, 0x3B, table - (index + 4), 0)
    library[index_offset : index_offset + index_size] = empty.ljust(index_size, b"\0")
    path.write_bytes(library)


def _section(library: bytearray, name: bytes) -> tuple[int, int, int]:
    """Address, offset in the file and size of a section."""
    (headers,) = struct.unpack_from("<Q", library, 0x28)
    size, count, names = struct.unpack_from("<3H", library, 0x3A)
    fields = [struct.unpack_from("<2I4Q", library, headers + i * size) for i in range(count)]
    for offset_of_name, _, _, address, offset, length in fields:
        start = fields[names][4] + offset_of_name
        if library[start : library.index(0, start)] == name:
            return address, offset, length
    raise ValueError(f"the library has no section {name.decode()}")

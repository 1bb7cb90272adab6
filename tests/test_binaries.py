"""csrc/binaries.py: what setup.py asks of objects and libraries, so that no wheel has parts for two machines."""

import importlib.util
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


binaries = load(ROOT / "csrc" / "binaries.py", "binaries")


def elf(machine, order="<"):
    return (
        b"\x7fELF"
        + bytes([2, 1 if order == "<" else 2])
        + bytes(10)
        + struct.pack(order + "2H", 3, machine)
        + bytes(44)
    )


def portable_executable(machine):
    return (
        b"MZ" + bytes(0x3A) + struct.pack("<I", 0x80) + bytes(0x40) + b"PE\0\0" + struct.pack("<H", machine) + bytes(18)
    )


@pytest.mark.parametrize(
    ("head", "system", "machine"),
    [
        (elf(62), "linux", "x86_64"),
        (elf(183), "linux", "aarch64"),
        (elf(22, ">"), "linux", "22"),
        (b"\xcf\xfa\xed\xfe" + struct.pack("<I", 0x01000007) + bytes(24), "macos", "x86_64"),
        (b"\xcf\xfa\xed\xfe" + struct.pack("<I", 0x0100000C) + bytes(24), "macos", "aarch64"),
        (portable_executable(0x8664), "windows", "x86_64"),
        (portable_executable(0xAA64), "windows", "aarch64"),
        (struct.pack("<H", 0x8664) + bytes(40), "windows", "x86_64"),
        (struct.pack("<H", 0xAA64) + bytes(40), "windows", "aarch64"),
    ],
)
def test_headers_tell_system_and_machine(head, system, machine, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(head)
    assert binaries.target_of(path) == (system, machine)


@pytest.mark.parametrize(
    "head", [b"", b"\0" * 100, b"MZ" + bytes(100), b"#!/bin/sh\n", b"\xca\xfe\xba\xbe" + bytes(60)]
)
def test_other_files_and_several_machines_are_refused(head, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(head)
    with pytest.raises(ValueError, match="file is"):
        binaries.target_of(path)


def test_a_library_for_another_machine_is_an_error(tmp_path):
    library = tmp_path / "library.so"
    library.write_bytes(elf(183))
    binaries.check_same(library, binaries.Target("linux", "aarch64"))
    with pytest.raises(ValueError, match=r"for linux aarch64, and the compiler's objects for linux x86_64"):
        binaries.check_same(library, binaries.Target("linux", "x86_64"))


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="links a library with the compiler of Linux"
)
def test_a_library_works_without_its_unwind_table(tmp_path):
    source, library = tmp_path / "add.c", tmp_path / "add.so"
    source.write_text("int add(int a, int b) { return a + b; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-fasynchronous-unwind-tables", "-o", library, source], check=True)
    before = library.read_bytes()
    binaries.clear_unwind_table(library)
    after = library.read_bytes()
    assert len(after) == len(before)
    assert after != before
    code = f"import ctypes; print(ctypes.CDLL({str(library)!r}).add(2, 3))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "5\n"

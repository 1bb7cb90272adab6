"""The C API that other extensions compile with: headers in get_include(), functions in a capsule."""

import ctypes
import importlib.machinery
import importlib.util
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import fastattn as fa
from fastattn import _core
from tests.arrays import same_bits

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "tests" / "c_api.c"
CAPSULE = b"fastattn._core.__c_api__"
STRICT = ("-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers")

compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
python_headers = Path(sysconfig.get_path("include"))
needs_compiler = pytest.mark.skipif(
    not shutil.which(compiler) or not (python_headers / "Python.h").exists(),
    reason="needs a C compiler and the headers of Python",
)


def built(source, folder, *options, headers=None):
    """The path of an extension module c_api made from a source."""
    target = folder / f"c_api{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [f"-I{headers or fa.get_include()}", f"-I{python_headers}"]
    command = [compiler, "-shared", "-fPIC", "-O1", *STRICT, *includes, *options, str(source), "-o", str(target)]
    subprocess.run(command, check=True, timeout=120)
    return target


def loaded(path):
    loader = importlib.machinery.ExtensionFileLoader("c_api", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("c_api", loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    return loaded(built(SOURCE, tmp_path_factory.mktemp("c_api")))


@needs_compiler
def test_an_extension_computes_the_bits_of_the_python_calls(extension, rng):
    x = rng.standard_normal((7, 33), np.float32)
    y = np.empty_like(x)
    assert extension.softmax(y.ctypes.data, x.ctypes.data, *x.shape) == 0
    assert same_bits(y, fa.softmax(x))
    q, k, v = rng.standard_normal((3, 2, 3, 20, 16), np.float32)
    out = np.empty_like(q)
    assert extension.attention(*(a.ctypes.data for a in (out, q, k, v)), *q.shape) == 0
    assert same_bits(out, fa.attention(q, k, v, causal=True))
    assert extension.threads == fa.get_num_threads()


@needs_compiler
@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("#define FA_API_VERSION ", "#define FA_API_VERSION 1000"),
        ("    fa_norm_arguments norm;", "    fa_norm_arguments norm, larger;"),
    ],
    ids=["a later version", "other arguments"],
)
def test_an_extension_of_other_headers_is_refused(here, there, tmp_path):
    headers = tmp_path / "include"
    shutil.copytree(fa.get_include(), headers)
    text = (headers / "fastattn.h").read_text(encoding="utf-8")
    assert here in text
    (headers / "fastattn.h").write_text(text.replace(here, there), encoding="utf-8")
    with pytest.raises(ImportError, match="compile it again"):
        loaded(built(SOURCE, tmp_path, headers=headers))


@needs_compiler
@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("standard", ["c++11", "c++20"])
def test_headers_are_cpp_too(standard):
    source = """#include <fastattn_import.h>
        fa_status one(float *x, fa_index n) {
            const fa_api *api = fa_import();
            return api ? api->softmax_forward(FA_F32, 0, x, n, x, n, 1, n, 1.0) : FA_NOMEM;
        }"""
    command = ["c++", "-fsyntax-only", f"-std={standard}", *STRICT, f"-I{fa.get_include()}", f"-I{python_headers}"]
    subprocess.run([*command, "-xc++", "-"], input=source, text=True, check=True, timeout=120)


def test_the_capsule_has_the_name_of_its_place():
    is_valid = ctypes.pythonapi.PyCapsule_IsValid
    is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]
    assert is_valid(_core.__c_api__, CAPSULE)


def test_installed_headers_are_those_of_the_sources():
    for header in Path(fa.get_include()).iterdir():
        assert header.read_bytes() == (ROOT / "csrc" / header.name).read_bytes()


def test_every_structure_of_arguments_counts_in_the_layout():
    text = (ROOT / "csrc" / "fastattn.h").read_text(encoding="utf-8")
    layout = re.search(r"typedef struct \{([^}]*)\} fa_api_arguments;", text)[1]
    within = {"fa_attention_arguments", "fa_additive_arguments", "fa_attention_gru", "fa_recurrent_weights"}
    names = set(re.findall(r"^\} (fa_\w+);", text, re.MULTILINE)) - within - {"fa_api", "fa_api_arguments"}
    assert {name for name in names if f" {name} " not in layout} == set()


def test_every_function_is_in_the_table():
    text = (ROOT / "csrc" / "fastattn.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^(?:fa_status|fa_index|size_t|double) fa_(\w+)\(", text, re.MULTILINE))
    assert declared == set(re.findall(r"\bF\((\w+)\)", text))

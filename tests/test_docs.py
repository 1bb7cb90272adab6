"""What the documentation shows is what happens, the stub is the module, and the import stays light."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastattn as fa
from fastattn import _core

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, *(path for path in DOCS if ">>> " in path.read_text(encoding="utf-8"))]
STUB = ROOT / "fastattn" / "_core.pyi"
MODULES = [
    fa.__name__,
    *(m.name for m in pkgutil.walk_packages(fa.__path__, "fastattn.") if m.name != "fastattn._core"),
]
PUBLIC = {"np": np, "fa": fa, **{name: getattr(fa, name) for name in fa.__all__}}  # what examples may use


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_modules_give_what_they_show(name):
    if name.startswith("fastattn.torch"):
        pytest.importorskip("torch", reason='needs PyTorch: python -m pip install "fastattn[torch]"')
    if name.startswith("fastattn.transformers"):
        pytest.importorskip("transformers", reason='needs transformers: python -m pip install "fastattn[transformers]"')
    if name.startswith("fastattn.jax"):
        pytest.importorskip("jax", reason='needs JAX: python -m pip install "fastattn[jax]"')
    if name.startswith("fastattn.onnx"):
        pytest.importorskip("onnx", reason='needs onnx: python -m pip install "fastattn[onnx]"')
    module = importlib.import_module(name)
    globs = PUBLIC | vars(module)
    assert doctest.testmod(module, globs=globs).failed == 0


def page_examples(path):
    """The examples of a page of Markdown, one after another; the end of a block of code ends the last one's result."""
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "\n".join("" if line.startswith("```") else line for line in lines)
    return doctest.DocTestParser().get_doctest(text, {"np": np, "fa": fa}, path.stem, str(path), 0)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_examples_of_pages_give_what_they_show(path):
    for package in re.findall(r">>> import (ml_dtypes|torch|transformers|jax|onnx)", path.read_text(encoding="utf-8")):
        pytest.importorskip(package)
    test = page_examples(path)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def public_functions():
    return [name for name in fa.__all__ if inspect.isfunction(getattr(fa, name))]


@pytest.mark.parametrize("name", public_functions())
def test_every_public_function_explains_itself(name):
    """One line, and an example, its own or that of the call it belongs to."""
    function = getattr(fa, name)
    text = inspect.getdoc(function)
    assert text
    assert text.splitlines()[0].rstrip()[-1] in ".:,", name
    settings = function.__module__ == "fastattn.config"
    assert settings or ">>>" in text, f"{name} has no example"
    assert set(inspect.get_annotations(function)) >= set(inspect.signature(function).parameters), name


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
    listed = set(re.findall(r"^   (\w+)$", text, re.MULTILINE))
    public = {*fa.__all__, *fa.nn.__all__, *public_names(fa.config)} - {"config", "nn"}
    assert listed == public


def public_names(module):
    """The functions that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isfunction(value) and value.__module__ == module.__name__
    ]


def test_every_public_function_is_in_the_readme():
    text = README.read_text(encoding="utf-8")
    section = text[text.index("## What there is") : text.index("## What it promises")]
    named = set(re.findall(r"[A-Za-z_]\w*", " ".join(re.findall(r"`([^`]*)`", section))))
    suffixes = ("_forward", "_backward", "_cell")
    for name in [*public_functions(), *(n for n in fa.__all__ if inspect.isclass(getattr(fa, n)))]:
        base = name
        while base not in named and base.endswith(suffixes):
            base = base.removesuffix(next(s for s in suffixes if base.endswith(s)))
        # Pairs stand there once, as "`..._forward`, `..._backward`". What a pair saves, and handles, are no calls.
        assert base in named or name.startswith(("Saved", "Packed")) or name == "RecurrentWeights", name


def test_every_file_that_pages_link_to_is_there():
    found = 0
    for page in [README, *DOCS, *(ROOT / name for name in ("CONTRIBUTING.md", "csrc/README.md", "examples/README.md"))]:
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
        assert not [link for link in links if not (page.parent / link).exists()], page
        found += len(links)
    assert found > 40


def test_the_public_names_are_those_of_the_package():
    assert sorted(fa.__all__) == fa.__all__
    loaded = {name for name in vars(fa) if not name.startswith("_")}
    submodules = {name for _, name, _ in pkgutil.iter_modules(fa.__path__)}
    assert loaded - submodules <= set(fa.__all__)


def test_every_name_of_the_compiled_module_has_a_stub():
    stub = {
        node.name if hasattr(node, "name") else node.target.id
        for node in ast.parse(STUB.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AnnAssign)
    }
    names = {
        name for name, value in vars(_core).items()
        if not name.startswith("_") and (inspect.isclass(value) or callable(value)) and value is not np.ndarray
    }  # fmt: skip
    own = {name for name in names if getattr(getattr(_core, name), "__module__", "fastattn._core") == "fastattn._core"}
    assert own <= stub
    assert {name for name in stub if not name.startswith("__")} <= set(vars(_core))


@pytest.mark.skipif(not find_spec("mypy"), reason="mypy is not installed")
def test_stubs_agree_with_the_compiled_module():
    command = [sys.executable, "-m", "mypy.stubtest", "--mypy-config-file", "pyproject.toml", "fastattn._core"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_import_loads_nothing_heavy():
    heavy = ["torch", "scipy", "ml_dtypes", "subprocess", "multiprocessing", "threadpoolctl", "ctypes", "matplotlib"]
    code = "import sys, numpy; before = set(sys.modules); import fastattn; "
    code += f"print(set({heavy}) & (set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "set()"


def test_modules_are_there_without_an_import_of_their_own():
    code = "import sys, fastattn as fa; print('fastattn.nn' in sys.modules, fa.nn.RNN.__name__, hasattr(fa, 'no'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["False", "RNN", "False"]


def test_names_of_kernels_are_unique():
    names = _core.kernel_names()
    assert names
    assert all(names)
    assert len(set(names)) == len(names)


def test_the_list_of_kernels_is_kernels_def():
    text = (ROOT / "csrc" / "kernels" / "kernels.def").read_text()
    assert set(re.findall(r"^FA_KERNEL\([A-Z]+, (\w+),", text, re.MULTILINE)) == set(_core.kernel_names())


def test_every_kernel_is_described_in_the_map_of_the_sources():
    text = (ROOT / "csrc" / "README.md").read_text(encoding="utf-8")
    missing = [name for name in _core.kernel_names() if f"`{name}`" not in text]
    assert not missing

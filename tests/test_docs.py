"""What the documentation shows is what happens, and the import stays light."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastattn as fa

README = Path(__file__).parent.parent / "README.md"
MODULES = [
    fa.__name__,
    *(m.name for m in pkgutil.walk_packages(fa.__path__, "fastattn.") if m.name != "fastattn._core"),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_modules_give_what_they_show(name):
    assert doctest.testmod(importlib.import_module(name), extraglobs={"np": np, "fa": fa}).failed == 0


def test_examples_of_the_readme_give_what_they_show():
    text = "\n".join(line for line in README.read_text(encoding="utf-8").splitlines() if not line.startswith("```"))
    test = doctest.DocTestParser().get_doctest(text, {"np": np, "fa": fa}, "README", str(README), 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_import_loads_nothing_heavy():
    heavy = ["torch", "scipy", "ml_dtypes", "subprocess", "multiprocessing"]
    code = "import sys, numpy; before = set(sys.modules); import fastattn; "
    code += f"print(set({heavy}) & (set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "set()"


def test_names_of_kernels_are_unique():
    names = fa._core.kernel_names()
    assert names
    assert all(names)
    assert len(set(names)) == len(names)

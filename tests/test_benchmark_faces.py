"""python -m benchmarks.faces: results are compared before they are timed, and the page has every row."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="the extra bench")
pytest.importorskip("rich", reason="the extra bench")

from benchmarks.faces import Pair, Program, difference
from benchmarks.faces import __main__ as command


def test_difference_is_that_of_the_worst_array_and_knows_nan():
    plain = {"a": np.array([1.0, -4.0]), "b": [np.zeros(3), None]}
    assert difference({"a": np.array([1.0, -3.0]), "b": [np.full(3, 0.125), None]}, plain) == 0.25
    assert difference({"a": np.array([1.0, np.nan]), "b": [np.zeros(3), None]}, plain) == np.inf
    assert difference({"a": np.zeros(3), "b": [np.zeros(3), None]}, plain) == np.inf


def programs(quick):
    x = np.arange(4.0)
    right = Program("right", "group", lambda: Pair(lambda: x, lambda: x), 0.0)
    wrong = Program("wrong", "group", lambda: Pair(lambda: x, lambda: x + 1.0), 0.1, 3.0)
    return [right] if quick else [right, wrong]


@pytest.fixture
def of_ours(monkeypatch):
    module = ModuleType("benchmarks.faces.ours")
    module.programs = programs
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(command, "FACES", {"ours": (), "other": ("a_package_that_nobody_has",)})


@pytest.mark.usefixtures("of_ours")
def test_page_and_numbers_have_every_row_and_what_is_missing(tmp_path, capsys):
    assert command.main(["--quick", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "faces.json").read_text())
    assert [(row["name"], row["threads"], row["difference"]) for row in data["rows"]] == [("right", 1, 0.0)]
    assert data["missing"] == {"other": "a_package_that_nobody_has is not installed"}
    page = (tmp_path / "faces.html").read_text()
    assert "<td>right</td>" in page
    assert "a_package_that_nobody_has" in page
    assert "right" in capsys.readouterr().out


@pytest.mark.usefixtures("of_ours")
def test_a_result_that_differs_fails_the_command(tmp_path, capsys):
    assert command.main(["--rounds", "1", "--threads", "1", "--out", str(tmp_path)]) == 1
    assert "NOT VERIFIED: wrong, 1 threads" in capsys.readouterr().out


def test_torch_programs_agree(tmp_path):
    pytest.importorskip("torch", reason="the extra torch")
    only = "PyTorch.*(B2 H2 L16.*f32$|LSTM T1 B1 H128|B1 L16 E512 H8, padding)"
    assert command.main(["--only", only, "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]) == 0
    assert len(json.loads((tmp_path / "faces.json").read_text())["rows"]) == 3


@pytest.mark.parametrize(
    ("package", "only"), [("transformers", "MiniLM, 32|prefill 64"), ("onnxruntime", "LSTM T1|GRU T1|Silero")]
)
def test_programs_of_other_libraries_agree(package, only, tmp_path):
    pytest.importorskip(package, reason="of the benchmarked libraries")
    assert command.main(["--quick", "--only", only, "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "faces.json").read_text())["rows"]

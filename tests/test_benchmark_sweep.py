"""python -m benchmarks.sweep: all libraries compute the same before they are timed, and the file has every case."""

import json

import numpy as np
import pytest

pytest.importorskip("rich", reason="the extra bench")
pytest.importorskip("ml_dtypes", reason="the extra bench")

from benchmarks.sweep import Calls, Operation, measure, operations
from benchmarks.sweep import __main__ as command

SMALL = (64, 1 << 13)  # bytes


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    monkeypatch.setattr(measure, "SIZES", SMALL)
    monkeypatch.setattr(operations, "TABLE_ROWS", 100)


@pytest.mark.parametrize("operation", operations.OPERATIONS, ids=lambda operation: operation.name)
def test_libraries_agree_on_every_function(operation):
    for case in measure.cases([operation], list(SMALL), ["float32", "bfloat16"], [1]):
        calls = operation.make(case.shape, case.dtype, case.used)
        assert measure.compare(calls, case)[1] == "", case.name


def test_cases_repeat_no_shape_and_cover_memory_and_threads():
    softmax = next(o for o in operations.OPERATIONS if o.name == "softmax")
    found = measure.cases([softmax], [64, 1 << 13], ["float32"], [1, 2])
    assert {(case.shape, case.used, case.threads) for case in found} == {
        (shape, used, threads)
        for shape in ((1, 16), (32, 64), (2, 1024))
        for used in (False, True)
        for threads in (1, 2)
    }
    assert len(found) == 12


def test_file_has_every_case(tmp_path, capsys):
    assert (
        command.main(["--only", "^(relu|layer_norm)$", "--rounds", "1", "--threads", "2", "--out", str(tmp_path)]) == 0
    )
    data = json.loads((tmp_path / "sweep.json").read_text())
    assert {(row["operation"], row["dtype"], row["memory"], row["threads"]) for row in data["rows"]} == {
        (operation, dtype, memory, threads)
        for operation in ("relu", "layer_norm")
        for dtype in ("float32", "bfloat16")
        for memory in ("fresh", "used")
        for threads in (1, 2)
    }
    assert "Behind" in capsys.readouterr().out


def test_a_result_that_differs_fails_the_command(tmp_path, capsys, monkeypatch):
    def make(shape, dtype, used):
        x = np.ones(shape, np.float32)
        return Calls({"fastattn": lambda: x + 1, "other": lambda: x}, lambda: x)

    monkeypatch.setattr(operations, "OPERATIONS", (Operation("wrong", make, dtypes=("float32",), has_out=False),))
    assert command.main(["--quick", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]) == 1
    assert "NOT VERIFIED: wrong 1 x 16 float32 fresh, 1 threads" in capsys.readouterr().out

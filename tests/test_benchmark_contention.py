"""python -m benchmarks.contention: rows are verified, complete, and stand beside what the machine does."""

import json
import os
import time

import pytest

pytest.importorskip("rich", reason="the extra bench")

from benchmarks.contention import QUICK, Row, Situation
from benchmarks.contention import __main__ as command
from benchmarks.contention import measure as measured
from benchmarks.kernels.case import Case


def row(p50, p99):
    return Row("case", "fastattn", "quiet", 1.0, p50, p99, 1.0, 1.0)


def test_the_aim_is_of_the_median_and_of_the_tail():
    assert row(2.5, 5.0).met
    assert not row(2.6, 5.0).met
    assert not row(2.5, 5.1).met


def test_situations_say_what_else_runs():
    assert str(Situation(0)) == "quiet"
    assert str(Situation(2, threads=4)) == "2 busy per core, 4 threads call"
    assert str(Situation(1, processes=2)) == "1 busy per core, 2 processes"


def processor_time(process):
    with open(f"/proc/{process.pid}/stat") as stat:
        return sum(map(int, stat.read().rsplit(")", 1)[1].split()[11:13]))


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="asks Linux how long a process has run")
def test_busy_processes_run_inside_the_block_alone():
    busy = measured.BusyProcesses(2)
    try:
        first, second = busy._processes
        time.sleep(0.3)
        before = processor_time(first)
        with busy.running(1):
            deadline = time.monotonic() + 30
            while processor_time(first) < before + 5 and time.monotonic() < deadline:
                time.sleep(0.01)
        time.sleep(0.05)
        ended = processor_time(first)
        assert ended >= before + 5
        time.sleep(0.2)
        assert processor_time(first) == ended
        assert processor_time(second) < before + 5
    finally:
        busy.close()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(measured, "CASES", (Case("softmax 8 x 8", "softmax", {"R": 8, "C": 8}, alone=True),))


@pytest.mark.usefixtures("small")
def test_every_situation_has_a_row(tmp_path, capsys):
    assert command.main(["--quick", "--peers", "none", "--seconds", "0.02", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "contention.json").read_text())
    assert [row["situation"] for row in data["rows"]] == [str(situation) for situation in QUICK]
    assert all(0 < row["p50"] <= row["p99"] for row in data["rows"])
    assert all(0 < row["one_p50"] <= row["one_p99"] for row in data["rows"])
    assert data["wrong"] == {}
    assert "softmax 8 x 8" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_a_wrong_result_fails_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measured.verify, "errors", lambda case, inputs: (case.inputs(1)["x"] * 0.0, 1e-9))
    assert command.main(["--quick", "--peers", "none", "--seconds", "0.02", "--out", str(tmp_path)]) == 1
    assert "NOT MEASURED: fastattn, softmax 8 x 8" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--threads", "0"], ["--peers", "tensorflow"]])
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        command.main(wrong)
    assert wrong[0].lstrip("-") in capsys.readouterr().err

"""Threads and settings of the process: environment, restoring, fork, concurrent callers, limits."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import same_bits

X = np.random.default_rng(0).standard_normal((4000, 257)).astype(np.float32)


def run(code, **environment):
    clean = {
        k: v for k, v in os.environ.items() if k not in ("FASTATTN_NUM_THREADS", "OMP_NUM_THREADS", "FASTATTN_ISA")
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"FASTATTN_NUM_THREADS": "3"}, "3"),
        ({"OMP_NUM_THREADS": "4,2"}, "4"),
        ({"FASTATTN_NUM_THREADS": "3", "OMP_NUM_THREADS": "4"}, "3"),
    ],
)
def test_the_environment_sets_the_number_of_threads(environment, wanted):
    assert run("import fastattn as fa; print(fa.get_num_threads())", **environment).stdout.strip() == wanted


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this platform")
def test_affinity_limits_the_default_number_of_threads():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); import fastattn as fa"
    assert run(code + "; print(fa.get_num_threads())").stdout.strip() == "1"


def test_an_unknown_instruction_set_is_refused_at_import():
    result = run("import fastattn", FASTATTN_ISA="mmx")
    assert result.returncode != 0
    assert "ImportError: FASTATTN_ISA" in result.stderr


def test_settings_are_restored_after_an_exception():
    before = fa.config.get_isa(), fa.get_num_threads()
    with pytest.raises(ZeroDivisionError), fa.config.use_isa("baseline"), fa.num_threads(7):
        raise ZeroDivisionError
    assert (fa.config.get_isa(), fa.get_num_threads()) == before


@pytest.mark.parametrize("name", ["use_isa", "attention_strategy", "linear_strategy"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=name), getattr(fa.config, name)("nonsense"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_children_compute_the_same_bits_also_nested():
    with fa.num_threads(3):
        wanted = fa.softmax(X)
        child = os.fork()
        if child == 0:
            good = same_bits(fa.softmax(X), wanted)
            inner = os.fork()
            if inner == 0:
                os._exit(0 if same_bits(fa.softmax(X), wanted) else 1)
            os._exit(0 if good and os.waitpid(inner, 0)[1] == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_concurrent_callers_get_the_same_bits():
    with fa.num_threads(3):
        wanted, good = fa.softmax(X), []
        callers = [
            threading.Thread(target=lambda: good.extend(same_bits(fa.softmax(X), wanted) for _ in range(5)))
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert len(good) == 20
    assert all(good)


def test_an_idle_process_uses_no_processor():
    with fa.num_threads(3):
        fa.softmax(X)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.1

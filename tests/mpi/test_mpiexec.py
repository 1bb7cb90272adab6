"""The same under MPI, in two processes."""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastattn as fa

NEEDS = 'needs mpi4py and an MPI with mpiexec: python -m pip install "fastattn[mpi]" mpich'
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
pytestmark = pytest.mark.skipif(not find_spec("mpi4py") or MPIEXEC is None, reason=NEEDS)

PROGRAM = """
import os, sys
import numpy as np
from mpi4py import MPI
import fastattn as fa, fastattn.mpi as fam

comm = MPI.COMM_WORLD
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((2, heads, 64, 8)) for heads in (4, 2, 2))
parts = [fam.shard(comm, x) for x in (q, k, v)]
"""


def run(code, processes=2):
    environment = os.environ | {"PYTHONPATH": str(Path(fa.__file__).parent.parent)}
    command = [MPIEXEC, "-n", str(processes), sys.executable, "-c", PROGRAM + code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_results_of_two_processes_are_those_of_one():
    result = run("""
for window in (None, (20, 5)):
    options = {"causal": True, "window": window}
    out, saved = fam.ring_attention_forward(comm, *parts, **options)
    found = [out, *fam.ring_attention_backward(np.cos(out), saved)]
    whole, saved = fa.attention_forward(q, k, v, **options)
    for got, wanted in zip(found, (whole, *fa.attention_backward(np.cos(whole), saved))):
        print(np.abs(fam.unshard(None, got) - wanted).max() < 1e-13)
""")
    assert result.returncode == 0, result.stderr
    assert (result.stdout.count("True"), result.stdout.count("False")) == (16, 0)  # lines of two processes may mix


def test_benchmark_compares_times_and_draws(tmp_path):
    file = tmp_path / "ring.svg"
    result = run(f"""
from benchmarks import ring
ring.main(["--lengths", "64", "--rounds", "1", "--svg", {str(file)!r}])
""")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("largest difference from one process, float64: ")
    assert len(lines) == 6  # a heading, and two jobs by one and two processes
    assert file.read_text(encoding="utf-8").startswith("<?xml")


def test_the_example_runs_in_processes():
    example = Path(__file__).parent.parent.parent / "examples" / "ring_attention.py"
    result = run(f"import runpy; runpy.run_path({str(example)!r}, run_name='__main__')")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("within 1e-13: True") == 4


def test_different_shapes_are_named_by_both_processes():
    result = run("""
try:
    fam.ring_attention(comm, *(x[:, :, : 16 + 2 * comm.rank] for x in parts))
except ValueError as error:
    print(error)
""")
    assert result.returncode == 0, result.stderr
    message = "q must have one shape on all ranks, got (2, 4, 16, 8) on rank 0, (2, 4, 18, 8) on rank 1"
    assert result.stdout.count(message) == 2


@pytest.mark.parametrize("death", ["os._exit(3)", "raise SystemExit(3)"])
def test_a_process_that_dies_ends_the_others_with_an_error(death):
    result = run(f"""
if comm.rank == 1:
    {death}
fam.ring_attention(comm, *parts, timeout=1)
print("came through")
""")
    assert result.returncode != 0
    assert "came through" not in result.stdout

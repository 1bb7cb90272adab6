"""The main job, step by step: peaks, encoders on text, kernels against peers, report."""

import argparse
import re
from dataclasses import asdict, replace
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.kernels import cases, machine, peers, runner
from benchmarks.kernels.case import Case
from benchmarks.report import summary, terminal
from benchmarks.report.report import Report
from benchmarks.text import claim, encoders
from benchmarks.text import corpus as text
from fastattn import config

SETTINGS = {False: runner.Settings(rounds=7, turn_seconds=0.1), True: runner.Settings(rounds=2, turn_seconds=0.02)}
CLAIM_ROUNDS = {False: 3, True: 1}


class Steps:
    """A progress bar; a line for each step where the output is no terminal."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._console, self._total, self._done = console, total, 0
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def next(self, description: str) -> None:
        """Begins a step."""
        if not self._console.is_terminal:
            self._console.print(f"[{self._done + 1}/{self._total}] {description}", markup=False, highlight=False)
        self._bar.update(self._task, completed=self._done, description=description)
        self._done += 1

    def detail(self, description: str) -> None:
        """What the step is doing."""
        self._bar.update(self._task, description=description)


class Peaks:
    """The limit beside a case, measured between the rounds: GFLOP/s, or GB/s for cases without flops."""

    def __init__(self) -> None:
        self._memory = np.ones(machine.READ_BYTES // 4, np.float32)

    def __call__(self, case: Case, threads: int) -> float:
        if case.flops:
            return machine.multiply_add_peak(case.dtype, threads, 0.01)
        return machine.read_bandwidth(self._memory, threads, repeats=1)


def contenders(names: str) -> tuple[list[peers.Contender], dict[str, str]]:
    """The requested libraries that are installed (ours always), and why others are missing."""
    wanted = {name.strip() for name in names.split(",")}
    known = {contender.name for contender in peers.CONTENDERS}
    unknown = wanted - known - {"all", "none"}
    if unknown:
        raise SystemExit(f"--peers: {', '.join(sorted(unknown))} is not among {', '.join(sorted(known))}")
    chosen = [c for c in peers.CONTENDERS if c.ours or "all" in wanted or c.name in wanted]
    return [c for c in chosen if c.installed()], {c.name: c.how_to_install for c in chosen if not c.installed()}


def thread_counts(most: int) -> list[int]:
    """1, 2, 4, ... and the most."""
    return sorted({most} | {2**i for i in range(most.bit_length()) if 2**i <= most})


def run(arguments: argparse.Namespace) -> int:
    """The whole job; the exit code."""
    started = perf_counter()
    quick, only = arguments.quick, arguments.only
    console = terminal.console()
    libraries, missing = contenders(arguments.peers)
    most = arguments.threads or config.get_num_threads()
    settings = replace(SETTINGS[quick], rounds=arguments.rounds or SETTINGS[quick].rounds)
    selected = cases.select(only, quick)
    with_text = only is None or re.search(only, "text", re.IGNORECASE) is not None
    if not selected and not with_text:
        raise SystemExit(f"--only: no case is named like {only!r}")
    corpus = text.Corpus(text.load(arguments.text), encoders.WIDTH) if with_text else None
    batches = claim.sizes(corpus, quick) if corpus else []
    with Steps(console, 1 + len(batches) + bool(selected) + len(selected)) as steps:
        steps.next("peaks of the machine")
        description = machine.describe()
        peaks = machine.peaks(sorted({1, most}), 0.05 if quick else 0.3)
        console.print(terminal.peak_table(peaks, description))
        on_text = None
        if corpus:
            rounds = arguments.rounds or CLAIM_ROUNDS[quick]
            on_text = claim.measure(corpus, quick, thread_counts(most), rounds, steps.next)
            console.print(terminal.claim_table(on_text))
        results: list[runner.Result] = []
        with runner.Team(libraries, sorted({1, most}), settings) as team:
            if selected:
                steps.next("starting the libraries")
                team.start()
                beside = Peaks()
            for case in selected:
                steps.next(case.name)
                results.append(team.race(case, beside, steps.detail))
    rows = summary.rows(results)
    report = Report(
        description,
        peaks,
        team.versions,
        missing | team.missing,
        asdict(settings),
        on_text,
        rows,
        perf_counter() - started,
    )
    if rows:
        console.print(terminal.case_table(rows))
        console.print(summary.score(rows))
    _complain(console, report)
    if arguments.csv:
        summary.write_csv(arguments.csv, rows)
    page = report.write(arguments.out)
    console.print(f"{report.seconds:.0f} s. The page: {page.resolve()}", highlight=False, soft_wrap=True)
    return 0 if report.verified else 1


def _complain(console: Console, report: Report) -> None:
    """Failures and missing libraries, in a line each."""
    for name, reason in report.missing.items():
        console.print(f"{name}: {reason}", highlight=False)
    for row in report.rows:
        for m in row.failures:
            console.print(
                f"{m.contender}, {row.case.name}, {m.threads} threads: {m.message}",
                markup=False,
                highlight=False,
                style="yellow",
            )
        if not row.verified:
            console.print(
                f"NOT VERIFIED: {row.case.name}, {row.threads} threads (allowed error {row.error_limit:.1e})",
                style="bold red",
            )
    for name, (error, allowed) in (report.claim.errors if report.claim else {}).items():
        if not error <= allowed:
            console.print(f"NOT VERIFIED: {name} encoder: error {error:.1e}, allowed {allowed:.1e}", style="bold red")

"""Dates written out in several languages, to ISO form: one vector for the whole sentence against attention.

A sentence has some dates, each in a language and form of its own ("mercredi 5 mars 2014; 3. Mai 1987"), and becomes
"2014-03-05 1987-05-03", character by character. So its length grows with the number of dates, and all of it matters.
"""

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastattn as fa
from benchmarks.claims import LeftOut, Part, Settings, Tick
from benchmarks.claims.adam import Adam
from benchmarks.report import plots

Array = NDArray[Any]

LANGUAGES = ("en", "de", "fr", "es", "it", "nl", "pt", "tr")
FORMS = ("medium", "long", "full")
YEARS = (1900, 2100)
START, END = 0, 1  # of the target's alphabet
TARGET = "\x02\x03 -0123456789"  # start, end, and what is written
KINDS = {"bahdanau": "attention (Bahdanau)", "cho": "one vector C (Cho)", "sutskever": "one vector C (Sutskever)"}
MOST = 4  # dates in a sentence
TRAINED = 0.9  # part of single dates that attention has exact, below which nothing is compared
HELD_OUT = 10  # every so many days is never seen in training


@dataclass(frozen=True)
class Plan:
    """How much is trained."""

    steps: int
    batch: int
    hidden: int
    most: int  # dates in a sentence
    tested: int  # sentences of each number of dates
    rate: float = 2e-3


FULL, QUICK = Plan(1500, 64, 128, MOST, 500), Plan(60, 32, 48, 2, 100)


class Dates:
    """Draws sentences and what they are to become."""

    def __init__(self, seed: int) -> None:
        self._format: Callable[..., str] = import_module("babel.dates").format_date
        self._known: dict[tuple[int, str, str], str] = {}
        self._first = datetime.date(YEARS[0], 1, 1).toordinal()
        self._last = datetime.date(YEARS[1], 1, 1).toordinal()
        sample = np.random.default_rng(seed)
        letters = {letter for held_out in (False, True) for source, _ in self.sentences(2000, 1, sample, held_out)
                   for letter in source} | {";", " "}  # fmt: skip
        self.alphabet = {letter: i + 1 for i, letter in enumerate(sorted(letters))}  # 0: padding, and the unknown

    def sentences(self, count: int, dates: int, rng: np.random.Generator, held_out: bool) -> Iterator[tuple[str, str]]:
        """(sentence, ISO form) pairs."""
        for _ in range(count):
            days = [self._day(rng, held_out) for _ in range(dates)]
            written = [self._written(day, rng) for day in days]
            yield "; ".join(written), " ".join(datetime.date.fromordinal(day).isoformat() for day in days)

    def batch(self, pairs: Sequence[tuple[str, str]]) -> tuple[Array, Array, Array, Array]:
        """Source ids and lengths, what the decoder sees, and what it is to write."""
        lengths = np.array([len(source) for source, _ in pairs])
        source = np.zeros((len(pairs), lengths.max()), np.int64)
        for row, (text, _) in zip(source, pairs, strict=True):
            row[: len(text)] = [self.alphabet.get(letter, 0) for letter in text]
        target = np.array([[START, *map(TARGET.index, text), END] for _, text in pairs])
        return source, lengths, target[:, :-1], target[:, 1:]

    def _day(self, rng: np.random.Generator, held_out: bool) -> int:
        while True:
            day = int(rng.integers(self._first, self._last))
            if (day % HELD_OUT == 0) == held_out:
                return day

    def _written(self, day: int, rng: np.random.Generator) -> str:
        key = day, str(rng.choice(LANGUAGES)), str(rng.choice(FORMS))
        if key not in self._known:
            self._known[key] = self._format(datetime.date.fromordinal(day), key[2], locale=key[1])
        return self._known[key]


@dataclass
class Trained:
    """A model after its training."""

    model: fa.nn.Seq2Seq
    losses: list[float]
    right: dict[int, list[bool]] = field(default_factory=dict)  # by dates in a sentence: each date exact?
    lengths: dict[int, list[int]] = field(default_factory=dict)  # characters of the sentence of each of those

    def accuracy(self, dates: int) -> float:
        """Part of the dates that are exact."""
        return float(np.mean(self.right[dates]))


def train(kind: str, dates: Dates, plan: Plan, settings: Settings, tick: Tick) -> Trained:
    """Trains on sentences of 1 to plan.most dates, and tests on days it has not seen."""
    rng = np.random.default_rng([settings.seed, sorted(KINDS).index(kind)])
    model = fa.nn.Seq2Seq(len(dates.alphabet) + 1, len(TARGET), plan.hidden // 4, plan.hidden, kind=kind,
                          reverse_source=kind == "sutskever", rng=rng)  # fmt: skip
    adam, losses = Adam(model.parameters(), rate=plan.rate), []
    for step in range(plan.steps):
        # The last third with falling steps: the rest is noise of the batches.
        adam.rate = plan.rate * min(1.0, 3 * (plan.steps - step) / plan.steps)
        # One date at first, which teaches most; then all numbers in turn.
        count = 1 + step % plan.most if step > plan.steps // 10 else 1
        source, lengths, seen, wanted = dates.batch(list(dates.sentences(plan.batch, count, rng, False)))
        logits, saved = model.forward(source, seen, lengths)
        loss, of_loss = fa.cross_entropy_forward(logits, wanted)
        adam.step(model.backward(fa.cross_entropy_backward(1.0, of_loss), saved)[1])
        losses.append(float(loss))
        if step % 20 == 0:
            tick(f"{KINDS[kind]}: step {step} of {plan.steps}, loss {np.mean(losses[-20:]):.3f}")
    trained = Trained(model, losses)
    for count in range(1, plan.most + 1):
        tick(f"{KINDS[kind]}: testing sentences of {count} dates")
        pairs = list(dates.sentences(plan.tested, count, np.random.default_rng([settings.seed, 99, count]), True))
        source, lengths, *_ = dates.batch(pairs)
        written = model.greedy(source, lengths, start=START, end=END, max_length=11 * count + 2)
        trained.right[count], trained.lengths[count] = [], []
        for (text, right), (tokens, _) in zip(pairs, written, strict=True):
            got = "".join(TARGET[token] for token in tokens).split(" ")
            trained.right[count] += [i < len(got) and got[i] == date for i, date in enumerate(right.split(" "))]
            trained.lengths[count] += [len(text)] * count
    return trained


def alignment(trained: Trained, dates: Dates, settings: Settings) -> str:
    """Where the decoder looks while it writes one sentence of two dates."""
    rng = np.random.default_rng([settings.seed, 7])
    pair = next(iter(dates.sentences(1, 2, rng, True)))
    source, lengths, seen, wanted = dates.batch([pair])
    _, weights = trained.model(source, seen, lengths, return_weights=True)
    rows = [TARGET[token] if token != END else "end" for token in wanted[0]]
    return plots.heat_map(
        weights[0], "input, the keys", "output, the queries", columns=list(pair[0]), rows=rows, height=5
    )


def measure(settings: Settings, tick: Tick) -> Part:
    """Trains all three, and compares them over the length."""
    if find_spec("babel") is None:
        raise LeftOut('dates: needs the package babel: python -m pip install -e ".[bench]"')
    plan = QUICK if settings.quick else FULL
    dates = Dates(settings.seed)
    trained = {kind: train(kind, dates, plan, settings, tick) for kind in KINDS}
    counts = range(1, plan.most + 1)
    mean_length = [float(np.mean(trained["bahdanau"].lengths[count])) for count in counts]
    table = [
        [KINDS[kind], f"{sum(p.size for p in t.model.parameters().values()):,}", f"{np.mean(t.losses[-50:]):.3f}",
         *(f"{100 * t.accuracy(count):.1f} %" for count in counts)]
        for kind, t in trained.items()
    ]  # fmt: skip
    head = ["model", "parameters", "last loss", *(f"{n} date{'s' if n > 1 else ''}" for n in counts)]
    curves = {KINDS[kind]: (mean_length, [100 * t.accuracy(count) for count in counts]) for kind, t in trained.items()}
    return Part(
        "A fixed vector against attention, on dates",
        "A vector of fixed size loses information on long sentences; attention does not. The alignment can be seen.",
        [
            f"Sentences of 1 to {plan.most} dates in {len(LANGUAGES)} languages become ISO form, letter by letter."
            f" {plan.steps} steps of {plan.batch} sentences with Adam, {plan.hidden} units; tested on"
            f" {plan.tested} sentences of each number of dates, of days that training has not seen.",
            *findings({kind: [t.accuracy(count) for count in counts] for kind, t in trained.items()}),
        ],
        [plots.lines(curves, "characters of the sentence (mean)", "exact dates, %"),
         alignment(trained["bahdanau"], dates, settings)],
        [{"head": head, "rows": table, "text": (0,)}],
        {kind: {"losses": t.losses, "accuracy": [t.accuracy(count) for count in counts], "characters": mean_length}
         for kind, t in trained.items()},
    )  # fmt: skip


def findings(accuracy: dict[str, list[float]]) -> list[str]:
    """What the accuracies by number of dates say."""
    found = [
        f"{KINDS[kind]}: {100 * values[0]:.1f} % of the dates exact in sentences of one,"
        f" {100 * values[-1]:.1f} % in sentences of {len(values)}."
        for kind, values in accuracy.items()
    ]
    if accuracy["bahdanau"][0] < TRAINED:
        return [*found, "The training was too short to compare them."]
    lost = {kind: values[0] - values[-1] for kind, values in accuracy.items()}
    behind = [kind for kind in ("cho", "sutskever") if lost[kind] > lost["bahdanau"] + 0.05]
    if len(behind) == 2:
        found.append("With length both fixed vectors fall behind attention, as the text says.")
    elif behind:
        found.append(
            f"With length {KINDS[behind[0]]} falls behind attention, as the text says; the other does not here."
        )
    else:
        found.append(
            "In this run the fixed vectors do not fall behind attention with length, other than the text says."
        )
    return found

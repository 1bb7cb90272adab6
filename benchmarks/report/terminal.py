"""What the terminal shows: tables, by rich."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.kernels.peers import CONTENDERS
from benchmarks.report.summary import Row
from benchmarks.text.claim import Claim


def time_text(seconds: float | None) -> str:
    """Three figures and a unit."""
    if seconds is None:
        return "–"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale or unit == "µs":
            return f"{_figures(seconds / scale)} {unit}"
    raise AssertionError("the last unit takes everything")


def _figures(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def number(value: float | None, form: str) -> str:
    """A number, or a dash for none."""
    return "–" if value is None else format(value, form)


def rate_text(row: Row) -> str:
    """GFLOP/s or GB/s."""
    rate = row.rate(row.seconds)
    return "–" if rate is None else f"{_figures(rate)}{'' if row.case.flops else ' GB/s'}"


def ours_text(row: Row) -> str:
    """The fastest call; where calls are timed alone, the median and the 99th percentile."""
    return time_text(row.seconds) if row.p99 is None else f"{time_text(row.p50)}\np99 {time_text(row.p99)}"


def met_mark(met: bool | None) -> str:
    """Whether a target is reached, in a character."""
    return {True: "✓", False: "✗", None: " "}[met]


LETTERS = {contender.name: contender.letter for contender in CONTENDERS}


def _letters(rows: Sequence[Row]) -> str:
    """What the letters of the libraries in these rows stand for."""
    seen = {name for row in rows for name in row.took_part}
    return ", ".join(f"{letter} {name}" for name, letter in LETTERS.items() if name in seen) or "none"


WIDTH = 100  # characters that the tables need


def console() -> Console:
    """The terminal, or where there is none an output wide enough for the tables."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)


def case_table(rows: Sequence[Row]) -> Table:
    """The kernels against the peers, in lines of at most WIDTH characters; the page and the CSV file have the rest."""
    table = Table(
        title="Kernels against peers",
        caption="ours: fastest call (steps: median, 99th percentile); peak: part of the multiply-add peak of the same "
        "rounds (softmax, decode: of the read bandwidth); met: the target; "
        "ratio: best peer / ours; scale: against one thread; peers: who took part, " + _letters(rows),
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=0,
    )
    table.add_column("case", width=31)
    table.add_column("thr", justify="right", no_wrap=True)
    for heading in ("ours", "peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    for heading in ("best peer", "peers"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ratio", "scale"):
        table.add_column(heading, justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        best = row.best
        table.add_row(
            row.case.name,
            str(row.threads),
            ours_text(row),
            number(row.part(row.seconds), ".2f"),
            _judged(met_mark(row.met), row.met),
            f"{best.contender} {time_text(best.minimum)}" if best else "–",
            "".join(LETTERS[name] for name in row.took_part) or "–",
            _judged(number(row.ratio, ".2f"), None if row.ratio is None else row.ratio > 1),
            _judged(number(row.scaling, ".2f"), row.scaling_met),
            end_section=i + 1 < len(rows) and rows[i + 1].case.op != row.case.op,
        )
    return table


def _judged(text: str, good: bool | None) -> Text:
    """Green or red; plain where there is nothing to judge."""
    return Text(text, style={True: "green", False: "red", None: ""}[good])


def claim_table(claim: Claim) -> Table:
    """Time per token of each encoder, and where attention is overtaken."""
    table = Table(
        title=f"Encoders on text: width {claim.width}, {next(iter(claim.parameters.values())):,} parameters each",
        caption="µs per token; speed-up: against one thread; crossing: tokens from which attention takes longer",
    )
    for heading in ("passages", "thr", "encoder"):
        table.add_column(heading)
    limits = sorted({point.limit for point in claim.points})
    shown = limits if len(limits) <= 5 else [limits[i * (len(limits) - 1) // 4] for i in range(5)]
    for limit in shown:
        table.add_column(f"≤ {limit}", justify="right")
    for heading in ("speed-up", "crossing"):
        table.add_column(heading, justify="right")
    groups = sorted({(point.batch, point.threads) for point in claim.points})
    for batch, threads in groups:
        for encoder in claim.layers:
            series = claim.series(encoder, batch, threads)
            times = {point.limit: 1e6 * point.seconds / point.tokens for point in series}
            single = claim.series(encoder, batch, 1)[-1].seconds
            where = None if encoder == "attention" else claim.crossing(encoder, batch, threads)
            table.add_row(
                str(batch),
                str(threads),
                encoder,
                *(_figures(times[limit]) if limit in times else "" for limit in shown),
                f"{single / series[-1].seconds:.2f}" if threads > 1 else "–",
                "" if encoder == "attention" else "beyond" if where is None else f"{where:.0f}",
                end_section=encoder == "attention",
            )
    return table


def peak_table(peaks: dict[str, Any], description: dict[str, Any]) -> Table:
    """The machine and its limits."""
    table = Table(
        title=f"{description['cpu']}, {description['caches'] or 'caches unknown'}", caption="best of many probes"
    )
    counts = [entry["threads"] for entry in peaks["read"]]
    table.add_column("peak")
    for threads in counts:
        table.add_column(f"{threads} thread{'s' if threads > 1 else ''}", justify="right")
    for isa, dtype in dict.fromkeys((entry["isa"], entry["dtype"]) for entry in peaks["multiply_add"]):
        values = [e["gflops"] for e in peaks["multiply_add"] if (e["isa"], e["dtype"]) == (isa, dtype)]
        table.add_row(f"multiply-add {dtype} {isa}", *(f"{value:.1f} GFLOP/s" for value in values))
    table.add_row("memory read", *(f"{entry['gbytes']:.1f} GB/s" for entry in peaks["read"]))
    return table

"""The page's figures, as SVG text without external resources.

Colours are CSS variables, so that the page's light and dark themes rule them.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.kernels.case import Array
from benchmarks.report.summary import OURS, OWN_NAMES, Row
from benchmarks.text.claim import Claim, Point

# Stand-ins that matplotlib accepts, and what they become in the page.
_TEXT, _GRID, _BACK = "#010101", "#020202", "#040404"
_SERIES = {
    "rnn": "#030301",
    "gru": "#030302",
    "lstm": "#030303",
    "attention": "#030304",
    "fastattn": "#030304",
    "fastattn-blas": "#030305",
    "torch": "#030301",
    "onnxruntime": "#030302",
    "openvino": "#030303",
    "numpy": "#030306",
}
_CSS = {_TEXT: "currentColor", _GRID: "var(--grid)", _BACK: "var(--back)"} | {
    colour: f"var(--series-{colour[-1]})" for colour in _SERIES.values()
}
_CURVES = sorted({*_SERIES.values()})
_CURVE_MARKERS = "ovs^D*"
_CURVE_DASHES = ("-", "--", "-", "-", ":", "-")
_WIDTH = 10.5  # inches of 96 px, nearly the page
_LABEL_LINES = 1.9  # heights of a bar, for the name of a group
_MARKERS = {"rnn": "v", "gru": "^", "lstm": "s", "attention": "o"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and colour
    "svg.hashsalt": "fastattn",  # the same figure has the same text
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _GRID,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def _svg(figure: Figure) -> str:
    """The <svg> element of the figure, with the page's colours."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"font: ([\d.]+px|[\d]+ [\d.]+px) [^;\"]*",
        lambda m: f"font-size: {m[1].split()[-1]}" + ("; font-weight: 600" if " " in m[1] else ""),
        svg,
    )
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    return svg


def alone(svg: str, theme: str) -> str:
    """A picture of the page as a file of its own: the colours of a theme of page.css, and a font."""
    styles = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", styles, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", blocks[0 if theme == "light" else 1]))
    svg = re.sub(r"var\(--([\w-]+)\)", lambda m: colours[m[1]], svg).replace("currentColor", colours["fore"])
    return svg.replace("<svg ", "<svg font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\" ", 1) + "\n"


def headline(jobs: Sequence[Any], labels: Mapping[str, str], footnote: str = "") -> str:
    """The speed of each library on each job, that of the fastest being 1: a group of bars under the name of the job.

    Narrow, so that text stays legible on a telephone. A library without a bar has not been measured on the job.
    """
    names = [name for name in labels if any(name in job.seconds for job in jobs)]
    lines = sum(len(job.seconds) + _LABEL_LINES for job in jobs)
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(5.0, 0.8 + 0.17 * lines), layout="constrained")
        y = 0.0
        for job in jobs:
            axes.annotate(job.label, (0, y + 0.45 * _LABEL_LINES), va="center", weight="bold")
            y += _LABEL_LINES
            best = min(job.seconds.values())
            for name in names:
                if name in job.seconds:
                    speed = best / job.seconds[name]
                    axes.barh(y, speed, 0.85, color=_SERIES[name])
                    axes.annotate(f"{speed:.2f}", (speed + 0.01, y), va="center", fontsize=9)
                    y += 1
        for name in names:
            axes.barh(0, 0, color=_SERIES[name], label=labels[name])
        axes.set_yticks([])
        axes.set_ylim(y, -0.2)
        axes.set_xlim(0, 1.1)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel("speed, the fastest = 1 (longer is better)" + (f"\n{footnote}" if footnote else ""))
        figure.legend(loc="outside upper left", ncols=len(names), columnspacing=1.2, handlelength=1.2)
        return _svg(figure)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _length(point: Point) -> float:
    """Mean tokens of a passage."""
    return point.tokens / point.batch


def _length_axis(axes: Axes, lengths: Sequence[float]) -> None:
    """Powers of two (every second when there are many), as plain numbers."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(lengths) / 1.15, max(lengths) * 1.15)


def encoders_over_length(claim: Claim) -> str:
    """Time per token over the length of the passages, crossings marked: a panel for each batch and thread count."""
    batches = sorted({p.batch for p in claim.points})
    counts = sorted({p.threads for p in claim.points})
    with mpl.rc_context(_STYLE):
        figure, grid = plt.subplots(
            len(batches),
            len(counts),
            figsize=(_WIDTH, 3.0 * len(batches)),
            sharey="row",
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        for i, batch in enumerate(batches):
            for j, threads in enumerate(counts):
                _panel_over_length(grid[i][j], claim, batch, threads)
                if i == len(batches) - 1:
                    grid[i][j].set_xlabel("tokens in a passage (mean)")
            grid[i][0].set_ylabel("µs per token")
        _length_axis(grid[0][0], [_length(p) for p in claim.points])
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper left", ncols=5)
        return _svg(figure)


def _panel_over_length(axes: Axes, claim: Claim, batch: int, threads: int) -> None:
    for encoder, layers in claim.layers.items():
        points = claim.series(encoder, batch, threads)
        label = f"{encoder.upper() if encoder != 'attention' else 'self-attention'} ({layers} layers)"
        axes.plot(
            [_length(p) for p in points],
            [1e6 * p.seconds / p.tokens for p in points],
            _MARKERS[encoder] + "-",
            color=_SERIES[encoder],
            label=label,
            markersize=4,
            linewidth=1.8 if encoder == "attention" else 1.3,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(True, linewidth=0.6)
    axes.set_title(f"{batch} passage{'s' if batch > 1 else ''} at once, {_threads(threads)}")
    _mark_crossings(axes, claim, batch, threads)


def _mark_crossings(axes: Axes, claim: Claim, batch: int, threads: int) -> None:
    """A ring where attention's curve crosses each recurrence, and a line with the length at that of the LSTM."""
    attention = claim.series("attention", batch, threads)
    for encoder in claim.layers:
        where = None if encoder == "attention" else claim.crossing(encoder, batch, threads)
        if not where:
            continue
        height = _interpolate(attention, where)
        axes.plot(
            [where],
            [height],
            "o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=_TEXT,
            markeredgewidth=1.1,
            label="attention becomes slower" if encoder == "lstm" else None,
        )
        if encoder == "lstm":
            axes.axvline(where, color=_TEXT, linewidth=0.8, linestyle=":")
            axes.annotate(
                f"LSTM: {where:.0f} tokens",
                (where, axes.get_ylim()[1]),
                xytext=(-4, -2),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=9,
            )


def _interpolate(points: Sequence[Point], length: float) -> float:
    """µs per token of a curve at a length, straight in logarithms."""
    x, y = np.log([_length(p) for p in points]), np.log([1e6 * p.seconds / p.tokens for p in points])
    return float(np.exp(np.interp(np.log(length), x, y)))


def encoders_over_threads(claim: Claim) -> str:
    """Speed-up by all threads over the length of the passages, a panel for each batch size."""
    batches = sorted({p.batch for p in claim.points})
    most = max(p.threads for p in claim.points)
    with mpl.rc_context(_STYLE):
        figure, row = plt.subplots(
            1, len(batches), figsize=(_WIDTH, 3.0), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, batch in zip(row[0], batches, strict=True):
            for encoder in claim.layers:
                one, all_threads = claim.series(encoder, batch, 1), claim.series(encoder, batch, most)
                axes.plot(
                    [_length(p) for p in one],
                    [a.seconds / b.seconds for a, b in zip(one, all_threads, strict=True)],
                    _MARKERS[encoder] + "-",
                    color=_SERIES[encoder],
                    markersize=4,
                    linewidth=1.3,
                    label=encoder.upper() if encoder != "attention" else "self-attention",
                )
            axes.axhline(most, color=_TEXT, linewidth=0.8, linestyle=":")
            axes.axhline(1, color=_TEXT, linewidth=0.8)
            axes.set_title(f"{batch} passage{'s' if batch > 1 else ''} at once")
            axes.set_xlabel("tokens in a passage (mean)")
            axes.grid(True, linewidth=0.6)
            _length_axis(axes, [_length(p) for p in claim.points if p.batch == batch])
        row[0][0].set_ylabel(f"speed-up, {_threads(most)} against 1")
        row[0][0].set_ylim(bottom=0)
        figure.legend(*row[0][0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
        return _svg(figure)


def part_of_peak(rows: Sequence[Row], threads: int) -> str:
    """Bars of the part of the peak that each library reaches; a tick where the target lies."""
    chosen = [row for row in rows if row.threads == threads and row.case.flops]
    measured = {m.contender for row in chosen for m in (row.ours, *row.others) if m and m.minimum}
    names = [name for name in (OURS, "fastattn-blas", "torch", "onnxruntime", "openvino", "numpy") if name in measured]
    thickness = 0.84 / max(1, len(names))
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(
            figsize=(_WIDTH, 0.9 + len(chosen) * (0.16 + 0.105 * len(names))), layout="constrained"
        )
        for i, row in enumerate(chosen):
            found = {m.contender: m for m in (row.ours, *row.others) if m}
            for j, name in enumerate(names):
                y = i - 0.42 + (j + 0.5) * thickness
                part = row.part(found[name].minimum) if name in found else None
                axes.barh(
                    y, part or 0, thickness * 0.9, color=_SERIES[name], alpha=0.6 if name == "fastattn-blas" else 1
                )
                if part and name == OURS:
                    inside = part > 0.08
                    axes.annotate(
                        f"{part:.2f}",
                        (part, y),
                        xytext=(-3 if inside else 3, -0.5),
                        textcoords="offset points",
                        va="center",
                        ha="right" if inside else "left",
                        fontsize=8,
                        color=_BACK if inside else _TEXT,
                    )
            if row.case.target.peak is not None:
                axes.plot([row.case.target.peak] * 2, [i - 0.47, i + 0.47], color=_TEXT, linewidth=1.2)
        for name in names:
            axes.barh(
                0,
                0,
                color=_SERIES[name],
                label=name + (" (ours)" if name in OWN_NAMES else ""),
                alpha=0.6 if name == "fastattn-blas" else 1,
            )
        axes.plot([], [], color=_TEXT, linewidth=1.2, label="target")
        axes.set_yticks(range(len(chosen)), [row.case.name for row in chosen])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(chosen) - 0.45, -0.55)
        axes.set_xlim(0, 1.0)
        axes.grid(True, axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"part of the multiply-add peak, {_threads(threads)}")
        figure.legend(loc="outside upper left", ncols=7)
        return _svg(figure)


def lines(curves: Mapping[str, tuple[Any, Any]], x_label: str, y_label: str, log: str = "") -> str:
    """A curve for each name; `log` has the names of the logarithmic axes."""
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(_WIDTH, 3.6), layout="constrained")
        for i, (name, (x, y)) in enumerate(curves.items()):
            # Marks tell curves of few points apart where they lie on one another, dashes those of many.
            few = len(x) < 20
            style = _CURVE_MARKERS[i % len(_CURVE_MARKERS)] + "-" if few else _CURVE_DASHES[i % len(_CURVE_DASHES)]
            axes.plot(x, y, style, color=_CURVES[i % len(_CURVES)], label=name, markersize=4, linewidth=1.5)
        if "x" in log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        if "y" in log:
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True, linewidth=0.6)
        figure.legend(loc="outside right upper")
        return _svg(figure)


def heat_map(values: Array, x_label: str, y_label: str, *, symmetric: bool = False, columns: Sequence[str] = (),
             rows: Sequence[str] = (), height: float = 3.6) -> str:  # fmt: skip
    """values[row, column], the first row on top. symmetric: 0 lies in the middle of the colours."""
    most = float(np.abs(values).max(initial=0)) or 1.0
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(_WIDTH, height), layout="constrained")
        image = axes.imshow(
            values,
            aspect="auto",
            interpolation="nearest",
            cmap="RdBu" if symmetric else "Blues",
            vmin=-most if symmetric else 0,
            vmax=most,
        )
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if columns:
            axes.set_xticks(range(len(columns)), columns)
        if rows:
            axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        figure.colorbar(image, ax=axes)
        return _svg(figure)

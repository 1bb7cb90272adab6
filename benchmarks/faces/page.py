"""What was found, as one page that needs no other file, and the numbers behind it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.faces.measure import Row
from benchmarks.report.report import templates
from benchmarks.report.terminal import met_mark, time_text


def table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    found = Table(
        title="Programs with fastattn and without",
        caption="fastest call of each; ratio: plain / ours; met: the aim; difference: in parts of the largest number",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    found.add_column("program", max_width=44)
    for heading in ("thr", "plain", "ours", "ratio", "aim", "difference"):
        found.add_column(heading, justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        style = "" if row.verified else "bold red"
        found.add_row(row.name, str(row.threads), time_text(row.plain), time_text(row.ours), f"{row.ratio:.2f}",
                      f"{row.wanted:.1f} {met_mark(row.ratio >= row.wanted)}", f"{row.difference:.1e}", style=style,
                      end_section=i + 1 < len(rows) and rows[i + 1].group != row.group)  # fmt: skip
    return found


def write(folder: Path, rows: Sequence[Row], missing: Mapping[str, str], versions: Mapping[str, str],
          machine: dict[str, Any], seconds: float) -> Path:  # fmt: skip
    """Writes faces.json and faces.html; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    numbers = {
        "time": now.isoformat(timespec="seconds"),
        "machine": machine,
        "versions": dict(versions),
        "seconds": seconds,
        "missing": dict(missing),
        "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
    }
    (folder / "faces.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = folder / "faces.html"
    faster = [row for row in rows if row.ratio >= 1]
    text = templates().get_template("faces.html.j2")
    page.write_text(
        text.render(
            groups={row.group: [r for r in rows if r.group == row.group] for row in rows},
            count=len(rows), faster=len(faster), best=max(rows, key=lambda row: row.ratio, default=None),
            time_text=time_text, missing=missing, versions=versions, machine=machine,
            now=f"{now:%Y-%m-%d %H:%M} UTC", seconds=seconds,
        ),
        encoding="utf-8",
    )  # fmt: skip
    return page

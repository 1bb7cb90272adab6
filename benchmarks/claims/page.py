"""What was found, as one page that needs no other file, and the numbers behind it."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks.claims import Part
from benchmarks.report.report import templates


def write(folder: Path, parts: Mapping[str, Part], missing: Sequence[str], machine: dict[str, Any],
          seconds: float) -> Path:  # fmt: skip
    """Writes claims.json and claims.html; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    numbers = {
        "time": now.isoformat(timespec="seconds"),
        "machine": machine,
        "seconds": seconds,
        "missing": list(missing),
        "parts": {name: {"findings": part.findings, "data": part.data} for name, part in parts.items()},
    }
    (folder / "claims.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = folder / "claims.html"
    text = (
        templates()
        .get_template("claims.html.j2")
        .render(
            parts=parts, svg=Markup, missing=missing, machine=machine, now=f"{now:%Y-%m-%d %H:%M} UTC", seconds=seconds
        )
    )
    page.write_text(text, encoding="utf-8")
    return page

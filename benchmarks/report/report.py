"""Writes what was measured: <time>.json with everything, and index.html, one page that needs no other file."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.report import headline, plots, summary, terminal
from benchmarks.report.summary import Row
from benchmarks.text.claim import Claim


@dataclass(frozen=True)
class Report:
    """All results of one run."""

    description: dict[str, Any]
    peaks: dict[str, Any]
    versions: dict[str, str]
    missing: dict[str, str]
    settings: dict[str, Any]
    claim: Claim | None
    rows: list[Row]
    seconds: float

    @property
    def verified(self) -> bool:
        """Whether all of fastattn's results lie within the error rule."""
        return all(row.verified for row in self.rows) and (self.claim is None or self.claim.verified)

    def write(self, folder: Path) -> Path:
        """Writes both files; returns the page."""
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        data = folder / f"{now:%Y-%m-%dT%H%M%SZ}.json"
        data.write_text(json.dumps(self._data(now), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        page = folder / "index.html"
        page.write_text(self._page(now, data.name), encoding="utf-8")
        return page

    def _data(self, now: datetime) -> dict[str, Any]:
        claim = None
        if self.claim is not None:
            crossings = [
                {
                    "recurrent": name,
                    "batch": batch,
                    "threads": threads,
                    "tokens": self.claim.crossing(name, batch, threads),
                }
                for batch, threads in sorted({(p.batch, p.threads) for p in self.claim.points})
                for name in self.claim.layers
                if name != "attention"
            ]
            claim = asdict(self.claim) | {"crossings": crossings, "verified": self.claim.verified}
        return {
            "time": now.isoformat(timespec="seconds"),
            "machine": self.description,
            "libraries": self.versions,
            "missing": self.missing,
            "settings": self.settings,
            "peaks": self.peaks,
            "text": claim,
            "cases": [summary.as_json(row) for row in self.rows],
            "verified": self.verified,
            "seconds": self.seconds,
        }

    def _page(self, now: datetime, data: str) -> str:
        environment = templates()
        environment.globals.update(
            time_text=terminal.time_text,
            rate_text=terminal.rate_text,
            number=terminal.number,
            met_mark=terminal.met_mark,
        )
        counts = sorted({row.threads for row in self.rows})
        found = headline.jobs([summary.as_json(row) for row in self.rows], [], counts[-1]) if counts else []
        figures = {
            "headline": [Markup(plots.headline(found, headline.LABELS))] if found else [],
            "peak": [Markup(plots.part_of_peak(self.rows, n)) for n in counts if any(r.case.flops for r in self.rows)],
        }
        if self.claim is not None:
            figures["length"] = [Markup(plots.encoders_over_length(self.claim))]
            if max(p.threads for p in self.claim.points) > 1:
                figures["threads"] = [Markup(plots.encoders_over_threads(self.claim))]
        return environment.get_template("report.html.j2").render(
            report=self,
            figures=figures,
            now=f"{now:%Y-%m-%d %H:%M} UTC",
            data=data,
            score=summary.score(self.rows),
            own=summary.OWN_NAMES,
            findings=findings(self.claim) if self.claim else [],
        )


def templates() -> Environment:
    """Those of the pages, in this folder."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def findings(claim: Claim) -> list[str]:
    """What the measurements on text say, in sentences."""
    most = max(p.threads for p in claim.points)
    found = []
    for batch in sorted({p.batch for p in claim.points}):
        parts = []
        for name in claim.layers:
            if name == "attention":
                continue
            where = claim.crossing(name, batch, most)
            longest = claim.series(name, batch, most)[-1]
            if where is None:
                extent = f"up to {longest.tokens / batch:.0f} tokens, the most measured"
            else:
                extent = f"below {where:.0f} tokens" if where else "at no length"
            parts.append(f"the {name.upper()} {extent}")
        found.append(
            f"{batch} passage{'s' if batch > 1 else ''} at once, {most} thread{'s' if most > 1 else ''}: "
            f"self-attention is faster than {', '.join(parts)}."
        )
    return found

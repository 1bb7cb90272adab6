"""The claims of the source text, measured: `python -m benchmarks.claims`.

A part is a module with a function `measure(settings, tick) -> Part`; __main__.py lists them, page.py shows them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Tick = Callable[[str], None]


class LeftOut(Exception):
    """A part that cannot be measured here, and why."""


@dataclass(frozen=True)
class Settings:
    """How much to measure."""

    quick: bool = False
    seed: int = 1
    threads: int = 1  # the most


@dataclass(frozen=True)
class Part:
    """What one part found."""

    title: str
    claim: str  # what the text says
    findings: list[str]  # what was measured, in sentences
    figures: list[str] = field(default_factory=list)  # SVG
    # {"head": [...], "rows": [[...]], "text": the columns that hold words, where there are any}
    tables: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)  # the numbers behind it

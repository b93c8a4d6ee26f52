"""One line of the table that `python -m bench` makes: a goal, the plain form of other workers, and ours."""

import importlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """What was measured of both in one run.

    Attributes:
        what: that was measured, with the size of the work.
        goal: as text, with its unit.
        plain: of the plain form, as text with its unit.
        ours: of this worker, as text with its unit.
        passed: whether ours is within the goal.
        why: a goal is missed, as profiling found it; empty otherwise.
        figures: the raw numbers, units in their names.
    """

    what: str
    goal: str
    plain: str
    ours: str
    passed: bool
    why: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """In one line."""
        return f"{'PASS' if self.passed else 'FAIL'}  {self.what}: {self.ours} (goal {self.goal}; plain {self.plain})"


def rows_of(module: str) -> list[Row]:
    """What a module of this folder measures, here and now."""
    rows: list[Row] = importlib.import_module(f"bench.{module}").rows()
    return rows


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    lines = ["| measured | goal | plain form | ours | |", "|---|---|---|---|---|"]
    for row in rows:
        verdict = "PASS" if row.passed else f"FAIL: {row.why}"
        lines.append(f"| {row.what} | {row.goal} | {row.plain} | {row.ours} | {verdict} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Number, median, 99th percentile (the nearest one that was measured), least and most."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "n": len(ordered),
        "median": round(statistics.median(ordered), digits),
        "p99": round(ordered[min(last, round(0.99 * last))], digits),
        "least": round(ordered[0], digits),
        "most": round(ordered[last], digits),
    }

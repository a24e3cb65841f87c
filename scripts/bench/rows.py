"""One figure against its goal: what a row is, how it is shown, and the order statistics that rows are made of."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

COMPARE: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row is held to, and what it is measured against in the same run."""

    name: str
    unit: str
    relation: str
    """`<=` or `>=`."""
    bound: float
    against: str

    def row(self, value: float, n: int) -> Row:
        value = float(f"{value:.4g}")
        return Row(
            name=self.name,
            value=value,
            unit=self.unit,
            goal=f"{self.relation} {self.bound:g}",
            holds=COMPARE[self.relation](value, self.bound),
            against=self.against,
            n=n,
        )

    def missing(self, reason: str) -> Row:
        """The row of a figure that could not be taken: it does not hold, and says why."""
        goal = f"{self.relation} {self.bound:g}"
        return Row(self.name, None, self.unit, goal, holds=False, against=f"NOT MEASURED: {reason}", n=0)


@dataclass(frozen=True, slots=True)
class Row:
    """As in build/bench.json."""

    name: str
    value: float | None
    """None where it could not be measured."""
    unit: str
    goal: str
    holds: bool
    against: str
    n: int
    """Samples that the figure stands on."""


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def table(rows: Sequence[Row]) -> str:
    """For people: figures that fall short first, each with what it is measured against."""
    short_first = sorted(rows, key=lambda row: row.holds)
    cells = [["", "row", "value", "unit", "goal", "n", "against"]]
    for row in short_first:
        value = "-" if row.value is None else f"{row.value:g}"
        cells.append(["ok" if row.holds else "SHORT", row.name, value, row.unit, row.goal, str(row.n), row.against])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    short = sum(not row.holds for row in rows)
    return "\n".join([*lines, "", f"{len(rows) - short} of {len(rows)} rows hold their goal"])


def write(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".json.new")
    fresh.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)

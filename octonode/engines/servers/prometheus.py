"""Reads chosen values out of Prometheus' text format. Pure."""

from __future__ import annotations

from collections.abc import Collection


def read_values(text: str, names: Collection[str]) -> dict[str, float]:
    """The sum over all labels of each metric in `names` that stands there. Raises ValueError for a bad number."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        name = line.partition("{")[0].partition(" ")[0]
        if name in names:
            # labels may hold spaces; after the value there may be a timestamp
            rest = line.rpartition("}")[2] if "{" in line else line.partition(" ")[2]
            value, *_ = rest.split() or [""]
            values[name] = values.get(name, 0.0) + float(value)
    return values

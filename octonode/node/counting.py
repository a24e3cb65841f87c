"""Carries totals that parts keep for themselves into the metrics, so that no part needs to know of metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

COUNT_EVERY_SECONDS = 1.0

Total = Callable[[], Mapping[str, int]]
"""Totals by label, rising."""
Add = Callable[[str, int], None]
"""(label, how many more)."""


async def count(totals: Sequence[tuple[Total, Add]]) -> None:
    """Until cancelled."""
    before: list[dict[str, int]] = [{} for _ in totals]
    while True:
        for known, (total, add) in zip(before, totals, strict=True):
            for label, number in total().items():
                if number > known.get(label, 0):
                    add(label, number - known.get(label, 0))
                    known[label] = number
        await trio.sleep(COUNT_EVERY_SECONDS)

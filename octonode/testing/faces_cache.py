"""A stand-in for the cache of models behind the HTTP faces; `testing.faces` puts it on the stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from octonode.api.schema.cache import Collected, CollectGarbage


@dataclass
class PlayedCache:
    """Gives what it is told to give, and keeps what it was asked."""

    collected: Collected = field(default_factory=lambda: Collected((), 0))
    asked: list[CollectGarbage] = field(default_factory=list)

    async def collect(self, asked: CollectGarbage) -> Collected:
        self.asked.append(asked)
        return replace(self.collected, dry_run=asked.dry_run)

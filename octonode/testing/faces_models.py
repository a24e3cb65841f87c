"""Stand-ins for the groups of model verbs behind the HTTP faces; `testing.faces` puts them on the stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from octonode.api.schema.fetches import ChangeFetch, FetchFacts
from octonode.errors import NotFound


@dataclass
class PlayedFetches:
    """Keeps what it is given; `change` does what the real one says it does."""

    known: list[FetchFacts] = field(default_factory=list)

    async def list(self) -> Sequence[FetchFacts]:
        return self.known

    async def change(self, asked: ChangeFetch) -> FetchFacts:
        for number, each in enumerate(self.known):
            if asked.reference in (each.root, each.reference):
                changed = _changed(each, asked)
                self.known[number] = changed
                return changed
        raise NotFound(f"{asked.reference} is not being fetched here; see: octonode models fetches")


def _changed(each: FetchFacts, asked: ChangeFetch) -> FetchFacts:
    if asked.action == "pause":
        return replace(each, state="paused")
    if asked.action == "resume":
        return replace(each, state="queued")
    if asked.action == "cancel":
        return replace(each, background=False)
    return replace(each, priority=asked.priority)

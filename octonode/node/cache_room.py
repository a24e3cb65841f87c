"""The parts that keep the models on disk: built from what holds, reaches and fetches them."""

from __future__ import annotations

from dataclasses import dataclass

from octonode.config import Config
from octonode.ipfs.cid import Cid
from octonode.models.scrubbing import ScrubLog
from octonode.network.clock import wall_clock_ms
from octonode.node.cache import Cache
from octonode.node.checks import Checks
from octonode.node.events import Events
from octonode.node.evicting import Evictor
from octonode.node.fetches import Fetches
from octonode.node.rooms import Holdings
from octonode.node.scrubbing import Scrubber
from octonode.node.view import View


@dataclass(frozen=True, slots=True)
class Keeping:
    cache: Cache
    checks: Checks


def build_keeping(
    config: Config, holdings: Holdings, fetches: Fetches, evictor: Evictor, view: View, events: Events
) -> Keeping:
    notes = ScrubLog(config.home)

    async def repair(root: Cid) -> object:
        return await fetches.fetch(root, lambda progress: None)

    scrubber = Scrubber(
        settings=config.models, store=holdings.store, shelf=holdings.shelf, notes=notes,
        busy=lambda: any(each.state == "running" for each in fetches.all()), repair=repair,
        changed=holdings.source.refresh, emit=events.emit, now_ms=wall_clock_ms,
    )  # fmt: skip
    cache = Cache(
        settings=config.models, store=holdings.store, shelf=holdings.shelf, evictor=evictor, scrubber=scrubber,
        supervisor=holdings.supervisor, troubles=view.troubles, emit=events.emit,
    )  # fmt: skip
    checks = Checks(
        library=holdings.library, source=holdings.source, supervisor=holdings.supervisor, notes=notes,
        reading=scrubber.reading,
    )  # fmt: skip
    return Keeping(cache, checks)

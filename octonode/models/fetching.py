"""What a fetch is told and what it tells: limits, progress, report, and who may have the blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import trio

from octonode.errors import OctonodeError
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway_client import Timeouts
from octonode.models.sources.source import Source
from octonode.models.writing import SYNC_BYTES

log = logging.getLogger(__name__)

MIB: Final = 1024 * 1024
ASK_TIMEOUT_SECONDS: Final = 30.0
"""For one question to the network about who has a model."""


class BlockPeers(Protocol):
    """Who may have blocks of a model; the network implements it."""

    async def sources(self, root: Cid) -> Sequence[Source]:
        """Those that may have `root`, wholly or in part, near ones first. Empty when none is known."""
        ...


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What is in memory is bounded by `models.memory` over all fetches."""

    sources_max: int = 12
    """At work at the same time."""
    known_max: int = 64
    """Known of, at work or not; further ones are not taken note of."""
    window_bytes_start: int = 4 * MIB
    window_bytes_max: int = 16 * MIB
    """Outstanding at one source, over all its lanes."""
    sync_bytes: int = SYNC_BYTES
    failures_max: int = 3
    """In a row, before a source is set aside."""
    set_aside_max: int = 3
    """So often set aside without a verified byte in between: the source is not used any more in this fetch."""
    retry_seconds: float = 0.5
    look_seconds: float = 1.0
    """How often `BlockPeers` is asked for more; it knows itself how often the network may be searched."""
    set_aside_seconds: float = 10.0
    """How long a source that failed is set aside."""
    read_bitmap_seconds: float = 3.0
    """How often a holder is asked what it has by now."""
    idle_bitmap_seconds: float = 0.5
    """The same while there is nothing to ask of it: it may be fetching too."""
    settle_seconds: float = 0.5
    """At most so long, at the start, the first leaves wait until everybody known has said what he has."""
    patience_seconds: float = 5.0
    """How long leaves are left to others who fetch the same model and bring none of them."""
    give_up_seconds: float = 60.0
    """Without a new byte."""
    nobody_seconds: float = 10.0
    """While nobody at all is known to have the model, or all who have it gave wrong bytes."""
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass(frozen=True, slots=True)
class FetchProgress:
    root: Cid
    phase: Literal["nodes", "leaves", "done"]
    done_bytes: int
    total_bytes: int
    bytes_per_second: float
    seconds_left: float
    """math.inf while nothing is known."""
    by_source: dict[str, int]
    """Verified bytes from each source in this fetch."""
    speed_by_source: dict[str, float]


@dataclass(frozen=True, slots=True)
class FetchReport:
    root: Cid
    size_bytes: int
    bytes_by_source: dict[str, int]
    """New bytes that were verified and written in this fetch; what was held before is not in it."""
    banned: dict[str, str]
    """Sources that sent wrong bytes, and what they sent."""
    seconds: float


Progress = Callable[[FetchProgress], None]


async def add_peers(
    root: Cid, sources: list[Source], peers: BlockPeers | None, limits: FetchLimits, banned: dict[str, str]
) -> None:
    """Append the sources that `peers` knows and `sources` does not have yet, up to the limit."""
    if peers is None:
        return
    names = {source.name for source in sources}
    found: Sequence[Source] = ()
    with trio.move_on_after(ASK_TIMEOUT_SECONDS):
        try:
            found = await peers.sources(root)
        except OctonodeError as error:
            log.info("no peers for %s: %s", root, error.message)
    for source in found:
        if len(sources) >= limits.known_max:
            return
        if source.name not in names and source.name not in banned:
            sources.append(source)
            names.add(source.name)

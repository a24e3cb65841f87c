"""The first half of a fetch: the DAG nodes of a root, before disk is taken for its leaves."""

from __future__ import annotations

from typing import Final

import trio

from octonode.errors import NotFound, OctonodeError, RemoteProtocolError, Unreachable, VerificationFailed, one_error
from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import DagWalk, Layout
from octonode.models.fetching import BlockPeers, FetchLimits, add_peers
from octonode.models.sources.source import Source

WALKERS: Final = 4
"""Lanes of a source on one walk."""


async def fetch_nodes(
    root: Cid, sources: list[Source], peers: BlockPeers | None, limits: FetchLimits, banned: dict[str, str]
) -> Layout:
    """The layout of `root`, asking source after source for its nodes. `sources` grows by the peers that are found.

    Raises NotFound (nobody is known to have it), Unreachable, VerificationFailed (all lie, or the root is no model's).
    """
    walk = DagWalk(root)
    started = trio.current_time()
    deadline = started + limits.give_up_seconds
    last = "nobody is known to have it"
    while True:
        await add_peers(root, sources, peers, limits, banned)
        for source in sorted((s for s in sources if s.name not in banned), key=lambda each: each.rank):
            before = walk.wanted
            try:
                with one_error():
                    await _Walkers(walk, source).run()
                return await trio.to_thread.run_sync(walk.layout)  # a second and more for a million leaves
            except VerificationFailed as error:
                banned[source.name] = error.message
                last = _by(source, error)
            except OctonodeError as error:
                if isinstance(error, RemoteProtocolError) and not isinstance(error, _LaneFault):
                    raise VerificationFailed(f"{root} is not the root of a model: {error.message}") from error
                last = _by(source, error)
            if walk.wanted != before:
                deadline = trio.current_time() + limits.give_up_seconds
        if not sources and trio.current_time() > started + limits.nobody_seconds:
            raise NotFound(
                f"nobody known here has {root}: is it the right CID, and is a node that holds it online? See: "
                "octonode peers",
                code="MODEL_NOT_FOUND",
            )
        lied = bool(sources) and all(source.name in banned for source in sources)
        if lied and (peers is None or trio.current_time() > started + limits.nobody_seconds):
            raise VerificationFailed(
                f"nobody known gives true blocks of {root}: {last}. Nothing was written; run the same command again "
                "when another holder is online"
            )
        if peers is None or trio.current_time() > deadline:
            raise Unreachable(f"no source has {root}: {last}. Is a peer that holds it online? See: octonode peers")
        await trio.sleep(limits.retry_seconds)


def _by(source: Source, error: OctonodeError) -> str:
    return error.message if source.name in error.message else f"{source.name}: {error.message}"


class _LaneFault(RemoteProtocolError):
    """The source broke the protocol, as opposed to the DAG itself."""


class _Walkers:
    """Several lanes of one source on one walk: a model of 40 GiB in small leaves has a thousand nodes."""

    def __init__(self, walk: DagWalk, source: Source) -> None:
        self._walk = walk
        self._source = source
        self._asked: set[Cid] = set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Until nothing is wanted. Raises what a lane or the walk raises."""
        async with trio.open_nursery() as nursery:
            for _ in range(min(WALKERS, max(1, self._source.lanes))):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        lane = self._source.open()
        try:
            while wanted := self._walk.wanted:
                cid = next((each for each in wanted if each not in self._asked), None)
                if cid is None:
                    await self._changed.wait()
                    continue
                self._asked.add(cid)
                try:
                    block = await lane.block(cid)
                except RemoteProtocolError as error:
                    raise _LaneFault(error.message) from error
                self._walk.add(cid, block)
                self._asked.discard(cid)
                self._changed.set()
                self._changed = trio.Event()
        finally:
            lane.close()

"""One attempt to fetch a model: from whom, with room made for it, and what is told of it. `node.fetches.Act`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from octonode.config import ModelsConfig
from octonode.errors import OctonodeError
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.metrics import Metrics
from octonode.models.fetch import fetch
from octonode.models.fetching import FetchProgress, FetchReport
from octonode.models.library import Library
from octonode.models.memory import FetchMemory
from octonode.models.sources.file import FileSource
from octonode.models.sources.https import HttpsSource
from octonode.models.sources.kubo import KuboSource
from octonode.models.sources.source import Source
from octonode.models.sources.store import LABEL as THIS_STORE
from octonode.models.store import QUOTA_MISSING
from octonode.network.discovery import Discovery
from octonode.network.host import Host
from octonode.node.block_peers import BlockPeers, MakeSource
from octonode.node.events import Events
from octonode.node.evicting import Evictor
from octonode.node.fetches import FILE_HINT, Fetch


class Fetcher:
    """`changed` is awaited when we hold more of a model than before: others may ask us for it from then on."""

    def __init__(
        self,
        *,
        settings: ModelsConfig,
        library: Library,
        discovery: Discovery,
        host: Host,
        over_bitswap: MakeSource | None,
        evictor: Evictor | None,
        events: Events,
        metrics: Metrics,
        own: PeerId,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._library = library
        self._discovery = discovery
        self._host = host
        self._over_bitswap = over_bitswap
        self._evictor = evictor
        self._events = events
        self._metrics = metrics
        self._own = own
        self._changed = changed
        self._memory = FetchMemory()

    async def act(self, wanted: Fetch, progress: Callable[[FetchProgress], None]) -> FetchReport:
        """Complete and verified when this returns; what it took from whom is told as an event."""
        root = wanted.root
        files = [hint.removeprefix(FILE_HINT) for hint in wanted.hints if hint.startswith(FILE_HINT)]
        addresses = [hint for hint in wanted.hints if not hint.startswith(FILE_HINT)]
        signed = await trio.to_thread.run_sync(self._library.catalogue.of_root, root)

        async def attempt() -> FetchReport:
            return await fetch(
                root,
                self._library.store,
                sources=[*(FileSource(Path(path), root) for path in files), *self._outside()],
                peers=BlockPeers(
                    self._discovery, self._host, self._over_bitswap, (*addresses, *self._settings.ipfs_peers)
                ),
                manifest=signed.manifest if signed else None,
                progress=progress,
                memory=self._memory,
                priority=wanted.priority,
                own=self._own,
                prepared=self._changed,
            )

        try:
            report = await attempt()
        except OctonodeError as error:
            await self._changed()  # what came before it failed is held
            missing_bytes = error.detail.get(QUOTA_MISSING, 0)
            if not missing_bytes or self._evictor is None or not await self._evictor.make_room(missing_bytes):
                raise
            report = await attempt()
        await trio.to_thread.run_sync(self._library.store.touch, root)
        if signed is not None:
            await trio.to_thread.run_sync(lambda: self._library.accept(signed.encode(), expected=signed.cid))
        await self._changed()
        self._tell(root, report)
        return report

    def _outside(self) -> Sequence[Source]:
        """Those that are asked for what no peer has."""
        kubo = [KuboSource(self._settings.kubo_rpc)] if self._settings.kubo_rpc else []
        return [*kubo, *(HttpsSource(url) for url in self._settings.gateways)]

    def _tell(self, root: Cid, report: FetchReport) -> None:
        by_source = report.bytes_by_source
        self._metrics.block_bytes.labels("fetched").inc(sum(by_source.values()) - by_source.get(THIS_STORE, 0))
        self._metrics.blocks_bad.inc(len(report.banned))
        if by_source:
            self._events.emit(
                "fetched", root=root.text, bytes_by_source=by_source, banned=report.banned, seconds=report.seconds
            )

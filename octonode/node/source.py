"""Where the models of this node come from: the shelf, a file, or peers. `tasks.residency.ModelSource`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from octonode.config import ModelsConfig
from octonode.errors import NotFound, OctonodeError
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway_client import GatewayAddress
from octonode.metrics import Metrics
from octonode.models.fetch import FetchProgress, FetchReport, fetch
from octonode.models.library import FIRST_VERSION, Library
from octonode.models.manifest import SignedManifest
from octonode.models.reference import FileReference, parse
from octonode.models.sources.gateway import GatewaySource
from octonode.models.sources.https import HttpsSource
from octonode.models.sources.source import Source as BlockSource
from octonode.models.store import QUOTA_MISSING
from octonode.network.discovery import Discovery
from octonode.node.events import Events
from octonode.node.evicting import Evictor
from octonode.node.resolving import Resolver
from octonode.node.shelf import Shelf
from octonode.tasks.residency import ResolvedModel


class Source:
    """Resolves, fetches and adds."""

    def __init__(
        self,
        *,
        settings: ModelsConfig,
        library: Library,
        shelf: Shelf,
        resolver: Resolver,
        events: Events,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._library = library
        self._shelf = shelf
        self._resolver = resolver
        self._events = events
        self._metrics = metrics
        self._discovery: Discovery | None = None
        self._changed: Callable[[], None] = lambda: None
        self._evictor: Evictor | None = None

    def connect(self, discovery: Discovery, changed: Callable[[], None], evictor: Evictor | None = None) -> None:
        """`changed`: what we announce is different now. `evictor` makes room where the quota is full."""
        self._discovery = discovery
        self._changed = changed
        self._evictor = evictor

    # tasks.residency.ModelSource

    async def resolve(self, reference: str) -> ResolvedModel:
        """A model of this node's own: its publisher must be trusted."""
        parsed = parse(reference)
        if isinstance(parsed, FileReference):
            return _resolved(*await self.add(Path(parsed.path)))
        root, signed = await self._resolver.root_and_manifest(reference)
        if signed is not None:
            await self.accept(signed)
        await trio.to_thread.run_sync(self._library.store.touch, root)
        return _resolved(root, signed)

    def path(self, root: str) -> Path | None:
        held = self._shelf.get(root)
        return held.entry.path if held and held.complete else None

    async def fetch(self, root: str, progress: Callable[[int, int], None]) -> None:
        await self.fetch_model(Cid.parse(root), lambda each, _: progress(each.done_bytes, each.total_bytes))

    # What else the node does with models.

    async def add(
        self, path: Path, *, name: str = "", version: str = "", licence: str = "", public: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Cid, SignedManifest | None]:  # fmt: skip
        if not await trio.Path(path).exists():
            raise NotFound(f"{path} does not exist on this node's machine")
        entry = await trio.to_thread.run_sync(
            lambda: self._library.add(
                path, name=name, version=version or FIRST_VERSION, licence=licence, public=public, progress=progress
            )
        )
        await self.refresh()
        return entry.root, entry.manifest

    async def accept(self, signed: SignedManifest, *, trust: bool = False) -> None:
        """Take a manifest in. Raises NotTrusted, ROLLBACK."""
        await trio.to_thread.run_sync(lambda: self._library.accept(signed.encode(), trust=trust, expected=signed.cid))

    async def fetch_model(self, root: Cid, progress: Callable[[FetchProgress, dict[str, int]], None]) -> FetchReport:
        """Complete and verified when this returns; what it took from whom is told as an event."""
        assert self._discovery is not None
        signed = self._resolver.manifest_of(root) or await trio.to_thread.run_sync(
            self._library.catalogue.of_root, root
        )
        peers = _Peers(self._discovery)

        async def attempt() -> FetchReport:
            return await fetch(
                root,
                self._library.store,
                sources=[HttpsSource(url) for url in self._settings.gateways],
                peers=peers,
                manifest=signed.manifest if signed else None,
                progress=lambda each: progress(each, peers.labelled(each.by_source)),
            )

        try:
            report = await attempt()
        except OctonodeError as error:
            missing_bytes = error.detail.get(QUOTA_MISSING, 0)
            if not missing_bytes or self._evictor is None or not await self._evictor.make_room(missing_bytes):
                raise
            report = await attempt()
        await trio.to_thread.run_sync(self._library.store.touch, root)
        if signed is not None:
            await self.accept(signed)
        await self.refresh()
        by_source = peers.labelled(report.bytes_by_source)
        self._metrics.block_bytes.labels("fetched").inc(sum(by_source.values()))
        self._metrics.blocks_bad.inc(len(report.banned))
        if by_source:
            self._events.emit(
                "fetched", root=root.text, bytes_by_source=by_source, banned=report.banned, seconds=report.seconds
            )
        return report

    async def refresh(self) -> None:
        """The shelf, and what we announce of it."""
        await self._shelf.refresh()
        self._resolver.forget()
        self._changed()


class _Peers:
    """`models.fetching.BlockPeers` over discovery."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._labels: dict[str, str] = {}

    async def sources(self, root: Cid) -> Sequence[BlockSource]:
        found = [
            GatewaySource(GatewayAddress(each.host, each.port, each.peer_id))
            for each in await self._discovery.gateways(root.text)
        ]
        self._labels |= {each.name: each.label for each in found}
        return found

    def labelled(self, by_source: dict[str, int]) -> dict[str, int]:
        """By `gateway:<peer id>` for a peer; a URL stays as it is."""
        return {self._labels.get(source, source): count for source, count in by_source.items()}


def _resolved(root: Cid, signed: SignedManifest | None) -> ResolvedModel:
    if signed is None:
        return ResolvedModel(root=root.text, format="")
    manifest = signed.manifest
    return ResolvedModel(
        root=root.text,
        format=manifest.files[0].format,
        manifest=signed.cid.text,
        name=f"{manifest.publisher}/{manifest.name}",
        version=manifest.version,
        size_bytes=manifest.size_bytes,
        context_tokens=manifest.context_tokens,
    )

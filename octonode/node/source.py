"""Where the models of this node come from: the shelf, a file, or peers. `tasks.residency.ModelSource`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from octonode.api.ports import Report
from octonode.errors import NotFound
from octonode.ipfs.cid import Cid
from octonode.ipfs.unixfs import profile_named
from octonode.models.fetching import FetchProgress, FetchReport
from octonode.models.library import FIRST_VERSION, Library
from octonode.models.manifest import SignedManifest
from octonode.models.reference import FileReference, HubReference, parse
from octonode.node.fetches import Fetches
from octonode.node.hub import HubModels
from octonode.node.names import Names
from octonode.node.resolving import Resolver
from octonode.node.shelf import Shelf
from octonode.tasks.residency import ResolvedModel

LOAD_PRIORITY = 10
"""Of a model that is to be served here, before those that are only to be held."""


class Source:
    """Resolves, fetches and adds."""

    def __init__(
        self,
        *,
        library: Library,
        shelf: Shelf,
        resolver: Resolver,
        names: Names,
    ) -> None:
        self._library = library
        self._shelf = shelf
        self._resolver = resolver
        self._names = names
        self._changed: Callable[[], None] = lambda: None
        self._fetches: Fetches | None = None
        self._hub: HubModels | None = None

    def connect(self, fetches: Fetches, changed: Callable[[], None]) -> None:
        """`changed`: what we announce is different now."""
        self._fetches = fetches
        self._changed = changed

    def connect_hub(self, hub: HubModels) -> None:
        self._hub = hub

    # tasks.residency.ModelSource

    async def resolve(self, reference: str) -> ResolvedModel:
        """A model of this node's own: its publisher must be trusted."""
        parsed = parse(reference)
        if isinstance(parsed, FileReference):
            return _resolved(*await self.add(Path(parsed.path)))
        if isinstance(parsed, HubReference):
            root, signed, _ = await self.bring(parsed)
            return _resolved(root, signed)
        root, signed = await self._resolver.to_take(reference)
        if signed is not None:
            await self.accept(signed)
        await trio.to_thread.run_sync(self._library.store.touch, root)
        return _resolved(root, signed)

    def path(self, root: str) -> Path | None:
        held = self._shelf.get(root)
        return held.entry.path if held and held.complete else None

    async def fetch(self, root: str, progress: Callable[[int, int], None]) -> None:
        await self.fetch_model(
            Cid.parse(root), lambda each: progress(each.done_bytes, each.total_bytes), priority=LOAD_PRIORITY
        )

    # What else the node does with models.

    async def add(
        self, path: Path, *, name: str = "", version: str = "", licence: str = "", public: bool = True,
        profile: str = "", vouched: bool = False, root: str = "", progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Cid, SignedManifest | None]:  # fmt: skip
        """`vouched`: the user says that it is theirs, as of `Library.add`."""
        if not await trio.Path(path).exists():
            raise NotFound(f"{path} does not exist on this node's machine")
        chosen, expected = profile_named(profile), Cid.parse(root) if root else None
        entry = await trio.to_thread.run_sync(
            lambda: self._library.add(
                path, name=name, version=version or FIRST_VERSION, licence=licence, public=public, profile=chosen,
                vouched=vouched, expected_root=expected, progress=progress,
            )
        )  # fmt: skip
        await self.refresh()
        return entry.root, entry.manifest

    async def bring(
        self, reference: HubReference, report: Report = lambda _: None
    ) -> tuple[Cid, SignedManifest | None, int]:
        """A model of a hub, as `HubModels.bring`."""
        assert self._hub is not None
        return await self._hub.bring(reference, report)

    async def accept(self, signed: SignedManifest, *, trust: bool = False) -> None:
        """Take a manifest in. Raises NotTrusted, ROLLBACK."""
        await trio.to_thread.run_sync(lambda: self._library.accept(signed.encode(), trust=trust, expected=signed.cid))

    async def fetch_model(
        self, root: Cid, progress: Callable[[FetchProgress], None], *, priority: int = 0
    ) -> FetchReport:
        """Complete and verified when this returns; in the fetch that runs already, if there is one."""
        assert self._fetches is not None
        return await self._fetches.fetch(root, progress, priority=priority)

    async def refresh(self) -> None:
        """The shelf, and what we announce of it."""
        await self._shelf.refresh()
        await self._names.renew()
        self._resolver.forget()
        self._changed()


def _resolved(root: Cid, signed: SignedManifest | None) -> ResolvedModel:
    if signed is None:
        return ResolvedModel(root=root.text, format="")
    manifest = signed.manifest
    return ResolvedModel(
        root=root.text,
        format=manifest.format,
        manifest=signed.cid.text,
        name=f"{manifest.publisher}/{manifest.name}",
        version=manifest.version,
        size_bytes=manifest.size_bytes,
        context_tokens=manifest.context_tokens,
        category=manifest.category,
        architecture=manifest.architecture,
    )

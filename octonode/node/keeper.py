"""The models of this node for those who pin them: `tasks.pin_ports.Keeper`."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import trio

from octonode.errors import NotFound, OctonodeError, Refused, RemoteProtocolError
from octonode.ids import PeerId
from octonode.ipfs.cid import DAG_CBOR, Cid, CidError
from octonode.models.fetch import check_against
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest, verify
from octonode.models.placing import FREE_BYTES_MARGIN
from octonode.node.fetches import Fetches
from octonode.node.shelf import Shelf
from octonode.node.source import Source
from octonode.tasks.pin_ports import HeldFacts, Progress
from octonode.tasks.residency import Residency

PIN_PRIORITY = -10
"""What this node wants for itself is fetched before what it keeps for others."""


class NodeKeeper:
    """A manifest that comes with a pin is kept and shown with its model; nobody's publisher is trusted by it."""

    def __init__(
        self,
        *,
        own: PeerId,
        library: Library,
        shelf: Shelf,
        source: Source,
        fetches: Fetches,
        residency: Residency,
        others: Callable[[str], int],
    ) -> None:
        self._own = own
        self._library = library
        self._shelf = shelf
        self._source = source
        self._fetches = fetches
        self._residency = residency
        self._others = others

    def held(self, root: str) -> HeldFacts | None:
        held = self._shelf.get(root)
        if held is None:
            return None
        row = held.entry.row
        return HeldFacts(row.size_bytes, held.held_bytes, held.complete, row.pinned)

    def others(self, root: str) -> int:
        return self._others(root)

    async def disk_free_bytes(self) -> int:
        store = self._library.store
        place = store.directory if await trio.Path(store.directory).exists() else store.directory.parent
        free_bytes = (await trio.to_thread.run_sync(shutil.disk_usage, place)).free - FREE_BYTES_MARGIN
        if store.disk_bytes_max:
            free_bytes = min(free_bytes, store.disk_bytes_max - self._staying_bytes())
        return max(0, free_bytes)

    def _staying_bytes(self) -> int:
        """Of what is here and would not be evicted for another model."""
        return sum(
            held.entry.row.size_bytes
            for held in self._shelf.all()
            if held.entry.row.pinned or self._residency.model(held.root) is not None or not self._others(held.root)
        )

    async def check(self, root: str, manifest: bytes, asker: PeerId) -> None:
        try:
            cid = Cid.parse(root)
        except CidError as error:
            raise RemoteProtocolError(f"the model is named by the root CID of its files: {error.message}") from None
        if cid.codec == DAG_CBOR or cid.v1.text != root:
            raise RemoteProtocolError("the model is named by the root CID of its files, as a CIDv1 in base32")
        held = self._shelf.get(root)
        if held is not None and not held.public and asker != self._own:
            raise Refused("this model is kept here for others already, and not for the public", code="FORBIDDEN")
        if manifest:
            await _manifest_of(cid, manifest)

    async def fetch(self, root: str, manifest: bytes, progress: Progress) -> None:
        cid = Cid.parse(root)
        await self._fetches.fetch(cid, lambda each: progress(each.done_bytes, each.total_bytes), priority=PIN_PRIORITY)
        if manifest:
            signed = await _manifest_of(cid, manifest)
            await trio.to_thread.run_sync(self._attach, cid, signed)
        await self._source.refresh()

    def _attach(self, root: Cid, signed: SignedManifest) -> None:
        """In a thread. Raises VerificationFailed for a manifest that promises other files than there are."""
        model = self._library.store.require(root)
        if model.manifest_bytes() is None:
            check_against(model.layout(), signed.manifest)
            model.set_manifest(signed.encode(), [(signed.cid, signed.manifest_bytes)])

    async def keep(self, root: str, pinned: bool) -> None:
        try:
            await trio.to_thread.run_sync(lambda: self._library.store.set_flags(Cid.parse(root), pinned=pinned))
        except NotFound:
            return
        await self._source.refresh()

    async def remove(self, root: str) -> None:
        if self._residency.model(root) is not None:
            raise Refused("it is served here", code="FORBIDDEN")
        await trio.to_thread.run_sync(self._library.remove, f"cid:{root}")
        await self._source.refresh()


async def _manifest_of(root: Cid, data: bytes) -> SignedManifest:
    try:
        signed = await trio.to_thread.run_sync(verify, data)
    except OctonodeError as error:
        raise RemoteProtocolError(f"the manifest that came with the pin is none: {error.message}") from error
    if signed.manifest.root != root.v1:
        raise RemoteProtocolError(f"the manifest that came with the pin is of {signed.manifest.root}, not of {root}")
    return signed

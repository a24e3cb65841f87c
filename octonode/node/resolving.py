"""From what a person writes to a model: our own shelf first, then signed manifests that peers show.

A reference with the publisher's key in it proves itself: the manifest must carry that key's signature. So a question
may go to such a model without trusting its publisher; taking the model in needs trust, which `library.accept` asks for.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

import trio

from octonode.errors import NotFound, OctonodeError, VerificationFailed
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest, check_rollback, verify
from octonode.models.reference import (
    BareName,
    FileReference,
    HubReference,
    ManifestReference,
    NameReference,
    RootReference,
    choose_publisher,
    parse,
    publisher_of,
)
from octonode.models.version import VersionRange, best
from octonode.network.clock import wall_clock_ms
from octonode.network.discovery import Discovery
from octonode.network.peerbook import Peerbook
from octonode.node.shelf import Shelf

log = logging.getLogger(__name__)

REMEMBERED_MAX = 1024
REMEMBERED_SECONDS = 60.0
"""How long a name found in the network is taken to mean the same."""


class Resolver:
    """Finds what a reference means now."""

    def __init__(self, library: Library, shelf: Shelf, peerbook: Peerbook) -> None:
        self._library = library
        self._shelf = shelf
        self._peerbook = peerbook
        self._discovery: Discovery | None = None
        self._remembered: OrderedDict[str, tuple[float, SignedManifest]] = OrderedDict()

    def connect(self, discovery: Discovery) -> None:
        self._discovery = discovery

    async def root_and_manifest(self, reference: str) -> tuple[Cid, SignedManifest | None]:
        """Raises BAD_REQUEST for no reference, MODEL_NOT_FOUND, UNSUPPORTED for hf: and file:."""
        parsed = parse(reference)
        if isinstance(parsed, RootReference):
            return parsed.cid, self.manifest_of(parsed.cid)
        if isinstance(parsed, ManifestReference):
            signed = self._held_manifest(parsed.cid.text) or await self._manifest_by_cid(parsed.cid)
            return signed.manifest.root, signed
        if isinstance(parsed, (NameReference, BareName)):
            signed = await self._named(reference, parsed)
            return signed.manifest.root, signed
        if isinstance(parsed, FileReference):
            message = "a file is not served by its path; add it first: octonode models add FILE"
            raise OctonodeError(message, code="UNSUPPORTED")
        assert isinstance(parsed, HubReference)
        message = "models of a hub (hf:) come later; download the GGUF and run: octonode models add FILE"
        raise OctonodeError(message, code="UNSUPPORTED")

    def manifest_of(self, root: Cid) -> SignedManifest | None:
        held = self._shelf.get(root.text)
        return held.signed if held else None

    def _held_manifest(self, cid: str) -> SignedManifest | None:
        return next((held.signed for held in self._shelf.all() if held.signed and held.manifest == cid), None)

    async def _named(self, reference: str, parsed: NameReference | BareName) -> SignedManifest:
        remembered = self._remembered.get(reference)
        if remembered and trio.current_time() - remembered[0] < REMEMBERED_SECONDS:
            return remembered[1]
        publisher = await self._publisher(parsed)
        found = [
            held.signed
            for held in self._shelf.all()
            if held.complete and held.signed and held.name == f"{publisher}/{parsed.name}"
        ]
        chosen = _best(parsed.versions, found)
        if chosen is None:
            chosen = _best(parsed.versions, await self.ask_network(publisher, parsed.name))
            if chosen is not None:
                await self._refuse_rollback(chosen, parsed.versions)
        if chosen is None:
            raise NotFound(
                f"nobody reachable knows {reference}: is its publisher, or a node that holds it, online? "
                "See: octonode peers",
                code="MODEL_NOT_FOUND",
            )
        self._remembered[reference] = (trio.current_time(), chosen)
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return chosen

    def forget(self) -> None:
        """After a model was added, fetched or removed here: names may mean something else."""
        self._remembered.clear()

    async def _publisher(self, parsed: NameReference | BareName) -> PeerId:
        table = self._library.trust_table
        if isinstance(parsed, NameReference):
            return publisher_of(parsed, await trio.to_thread.run_sync(table.aliases))
        trusted = {peer.peer_id: peer.alias for peer in await trio.to_thread.run_sync(table.publishers)}
        named = {
            held.signed.manifest.publisher
            for held in self._shelf.all()
            if held.signed and held.signed.manifest.name == parsed.name
        }
        for announcement in self._peerbook.peers(wall_clock_ms()):
            for reference in (each.name for models in (announcement.serving, announcement.holding) for each in models):
                publisher, _, name = reference.partition("/")
                if name == parsed.name:
                    named.add(PeerId(publisher))
        return choose_publisher(parsed.name, {p: trusted.get(p, "") for p in sorted(named) if table.is_trusted(p)})

    async def ask_network(self, publisher: PeerId, name: str) -> list[SignedManifest]:
        """Verified manifests that peers show for a name. Those that do not verify are passed over.

        Raises VerificationFailed when peers show some and none of them verifies.
        """
        if self._discovery is None:
            return []
        found, bad = [], ""

        async def genuine(data: bytes) -> bool:
            signed = await _verified(data)
            return signed is not None and (signed.manifest.publisher, signed.manifest.name) == (publisher, name)

        for shown in await self._discovery.find_manifest(publisher, name, genuine):
            try:
                signed = await trio.to_thread.run_sync(verify, shown.data)
            except OctonodeError as error:
                log.warning("%s shows a bad manifest of %s: %s", shown.peer_id, name, error.message)
                bad = f"{shown.peer_id}: {error.message}"
                continue
            if signed.manifest.publisher == publisher and signed.manifest.name == name:
                found.append(signed)
        if bad and not found:
            raise VerificationFailed(
                f"peers show no true manifest of {publisher}/{name}; {bad}. Nothing was taken; ask the publisher, or "
                "try again when other holders are online"
            )
        return found

    async def _refuse_rollback(self, chosen: SignedManifest, versions: VersionRange) -> None:
        """Raises ROLLBACK where we know a newer manifest that the same reference may mean."""
        manifest = chosen.manifest
        known = await trio.to_thread.run_sync(self._library.catalogue.named, manifest.publisher, manifest.name)
        seqs = [each.manifest.seq for each in known if best(versions, [each.manifest.version])]
        check_rollback(manifest, max(seqs, default=0))

    async def _manifest_by_cid(self, cid: Cid) -> SignedManifest:
        async def genuine(data: bytes) -> bool:
            signed = await _verified(data)
            return signed is not None and signed.cid == cid.v1

        shown = await self._discovery.find_manifest_by_cid(cid.text, genuine) if self._discovery else []
        for each in shown:
            try:
                signed = await trio.to_thread.run_sync(verify, each.data)
            except OctonodeError as error:
                log.warning("%s shows a bad manifest for %s: %s", each.peer_id, cid, error.message)
                continue
            if signed.cid == cid.v1:
                return signed
        raise NotFound(
            f"nobody reachable has the manifest {cid}; is a node that holds it online?", code="MODEL_NOT_FOUND"
        )


async def _verified(data: bytes) -> SignedManifest | None:
    try:
        return await trio.to_thread.run_sync(verify, data)
    except OctonodeError:
        return None


def _best(versions: VersionRange, found: list[SignedManifest]) -> SignedManifest | None:
    """The highest version in range; of several manifests of it the one with the highest seq."""
    version = best(versions, [signed.manifest.version for signed in found])
    matching = [signed for signed in found if signed.manifest.version == version]
    return max(matching, key=lambda signed: signed.manifest.seq, default=None)

"""From what a person writes to a model: our own shelf first, then its publisher's record and the manifests of peers.

A reference with the publisher's key in it proves itself: the manifest must carry that key's signature. So a question
may go to such a model without trusting its publisher; taking the model in needs trust, which `library.accept` asks for.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import trio

from octonode.errors import NotFound, OctonodeError, VerificationFailed
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.models import naming
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
from octonode.node.names import Names
from octonode.node.shelf import Shelf
from octonode.node.vouching import Voucher
from octonode.protocol.name_record import NameRecord

log = logging.getLogger(__name__)

REMEMBERED_MAX = 1024
TRUSTED_ASKED_MAX = 16
"""Trusted publishers whose records are asked for one bare name that nobody known has announced."""
REMEMBERED_SECONDS = 60.0
"""How long a name found in the network is taken to mean the same."""


class Resolver:
    """Finds what a reference means now."""

    def __init__(
        self,
        library: Library,
        shelf: Shelf,
        peerbook: Peerbook,
        *,
        names: Names | None = None,
        allow_unsigned: bool = False,
    ) -> None:
        self._library = library
        self._shelf = shelf
        self._peerbook = peerbook
        self._voucher = Voucher(library, shelf, peerbook, allow_all=allow_unsigned)
        self._names = names
        self._discovery: Discovery | None = None
        self._passed_over: set[str] = set()
        self._remembered: OrderedDict[str, tuple[float, SignedManifest]] = OrderedDict()

    def connect(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._voucher.connect(discovery)

    async def to_take(self, reference: str, *, allow_unsigned: bool = False) -> tuple[Cid, SignedManifest | None]:
        """As `root_and_manifest`, for what is to be fetched or served here: a bare root needs a manifest, or the
        user's word that it needs none. Raises UNSIGNED as well."""
        root, signed = await self.root_and_manifest(reference)
        if signed is None:
            signed = await self._voucher.manifest_for(root, allow_unsigned=allow_unsigned)
        return root, signed

    async def root_and_manifest(self, reference: str) -> tuple[Cid, SignedManifest | None]:
        """Raises BAD_REQUEST for no reference, MODEL_NOT_FOUND (of hf: one that was not brought here),
        UNSUPPORTED for file:."""
        parsed = parse(reference)
        if isinstance(parsed, RootReference):
            return parsed.cid, self.manifest_of(parsed.cid)
        if isinstance(parsed, ManifestReference):
            signed = await self._known_manifest(parsed.cid) or await self._manifest_by_cid(parsed.cid)
            return signed.manifest.root, signed
        if isinstance(parsed, (NameReference, BareName)):
            signed = await self._named(reference, parsed)
            return signed.manifest.root, signed
        if isinstance(parsed, FileReference):
            message = "a file is not served by its path; add it first: octonode models add FILE"
            raise OctonodeError(message, code="UNSUPPORTED")
        assert isinstance(parsed, HubReference)
        resolved = await trio.to_thread.run_sync(self._library.resolve, reference)
        assert resolved.root is not None, "a model of a hub that was brought here"
        return resolved.root, resolved.manifest

    def manifest_of(self, root: Cid) -> SignedManifest | None:
        held = self._shelf.get(root.text)
        return held.signed if held else None

    async def _known_manifest(self, cid: Cid) -> SignedManifest | None:
        """One that we hold, or have accepted before."""
        held = next((held.signed for held in self._shelf.all() if held.signed and held.manifest == cid.text), None)
        return held or await trio.to_thread.run_sync(self._library.catalogue.get, cid)

    async def _named(self, reference: str, parsed: NameReference | BareName) -> SignedManifest:
        remembered = self._remembered.get(reference)
        if remembered and trio.current_time() - remembered[0] < REMEMBERED_SECONDS:
            return remembered[1]
        publisher = await self.publisher(parsed)
        chosen = await self._on_shelf(publisher, parsed)
        if chosen is None:
            chosen = await self.in_network(publisher, parsed.name, parsed.versions, reference)
        self._remembered[reference] = (trio.current_time(), chosen)
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return chosen

    def _held(self, publisher: PeerId, name: str) -> list[SignedManifest]:
        """Whole ones, but for those that are on their way to replace another."""
        held = (each for each in self._shelf.all() if each.complete and each.name == f"{publisher}/{name}")
        return [each.signed for each in held if each.signed and each.root not in self._passed_over]

    @contextmanager
    def passing_over(self, root: str) -> Iterator[None]:
        """As long as the block lasts, names mean what they meant before this root was here: it is being fetched and
        loaded to take the place of what is served."""
        self._passed_over.add(root)
        try:
            yield
        finally:
            self._passed_over.discard(root)
            self.forget()

    async def _on_shelf(self, publisher: PeerId, parsed: NameReference | BareName) -> SignedManifest | None:
        """What we hold is meant, unless the latest was asked for, or all that is held in range is to be avoided."""
        held = self._held(publisher, parsed.name)
        if not held or parsed.versions.latest:
            return None
        if not parsed.versions.exact:
            avoid = await trio.to_thread.run_sync(self._library.avoided, publisher, parsed.name)
            held = [signed for signed in held if signed.manifest.version not in avoid]
        return _best(parsed.versions, held)

    async def in_network(
        self, publisher: PeerId, name: str, versions: VersionRange, reference: str, *, forward: bool = False
    ) -> SignedManifest:
        """The manifest that a name means by the publisher's record, by the manifests that peers show and by what is
        held here, together. `forward`: versions that the user went back from count again.

        Raises MODEL_NOT_FOUND, VERIFICATION_FAILED, ROLLBACK.
        """
        shown: list[SignedManifest] = []
        trouble: list[OctonodeError] = []
        record: NameRecord | None = None

        async def ask_peers() -> None:
            try:
                shown.extend(await self.ask_network(publisher, name))
            except VerificationFailed as error:
                trouble.append(error)

        async def ask_record() -> None:
            nonlocal record
            record = await self._names.ask(publisher, name) if self._names else None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_peers)
            nursery.start_soon(ask_record)
        listed = naming.readable(record)
        found = [*shown, *self._held(publisher, name)]
        avoid = naming.avoided(record)
        if not forward:
            avoid |= await trio.to_thread.run_sync(self._library.avoided, publisher, name)
        version = best(versions, [*listed, *(signed.manifest.version for signed in found)], avoid=avoid)
        if version is None:
            raise (
                trouble[0]
                if trouble
                else NotFound(
                    f"nobody reachable knows {reference}: is its publisher, or a node that holds it, online? "
                    "See: octonode peers",
                    code="MODEL_NOT_FOUND",
                )
            )
        if version in listed:
            return await self._listed(Cid.from_bytes(listed[version].manifest), publisher, name, version, found)
        chosen = max((s for s in found if s.manifest.version == version), key=lambda signed: signed.manifest.seq)
        await self._refuse_rollback(chosen, versions, avoid)
        return chosen

    async def _listed(
        self, cid: Cid, publisher: PeerId, name: str, version: str, found: list[SignedManifest]
    ) -> SignedManifest:
        """The manifest that the publisher's record names. No older version stands in for it: that is a rollback."""
        signed = next((each for each in found if each.cid == cid), None)
        signed = signed or await trio.to_thread.run_sync(self._library.catalogue.get, cid)
        try:
            signed = signed or await self._manifest_by_cid(cid)
        except NotFound:
            raise NotFound(
                f"{publisher}/{name}@{version} is what its publisher's record names, and nobody reachable has its "
                f"manifest {cid}: try again when a holder is online (octonode peers), or name an older version: "
                f"octonode models versions {publisher}/{name}",
                code="MODEL_NOT_FOUND",
            ) from None
        manifest = signed.manifest
        if (manifest.publisher, manifest.name, manifest.version) != (publisher, name, version):
            raise VerificationFailed(f"the record of {publisher}/{name} names the manifest of {manifest.reference}")
        return signed

    def forget(self) -> None:
        """After a model was added, fetched or removed here: names may mean something else."""
        self._remembered.clear()

    async def publisher(self, parsed: NameReference | BareName) -> PeerId:
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
        found = {p: trusted.get(p, "") for p in sorted(named) if table.is_trusted(p)}
        if not found:
            found = await self._recorded(parsed.name, trusted)
        return choose_publisher(parsed.name, found)

    async def _recorded(self, name: str, trusted: Mapping[PeerId, str]) -> dict[PeerId, str]:
        """Those of the trusted publishers whose records say that they publish `name`: a stranger's never counts."""
        found: dict[PeerId, str] = {}

        async def ask(publisher: PeerId, alias: str) -> None:
            if self._names is not None and await self._names.ask(publisher, name) is not None:
                found[publisher] = alias

        async with trio.open_nursery() as nursery:
            for publisher, alias in list(trusted.items())[:TRUSTED_ASKED_MAX]:
                nursery.start_soon(ask, publisher, alias)
        return dict(sorted(found.items()))

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

    async def _refuse_rollback(self, chosen: SignedManifest, versions: VersionRange, avoid: Collection[str]) -> None:
        """Raises ROLLBACK where we know a newer manifest that the same reference may mean."""
        manifest = chosen.manifest
        known = await trio.to_thread.run_sync(self._library.catalogue.named, manifest.publisher, manifest.name)
        known = tuple(each for each in known if each.manifest.version not in avoid)
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

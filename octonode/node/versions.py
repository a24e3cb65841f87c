"""Which versions of a model there are, and moving between them: `api.ports.Versions`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import trio

from octonode.api.ports import Report
from octonode.api.schema import ModelOutcome, ModelProgress, Publisher, RollbackModel, UpdateModel
from octonode.api.schema.facts import ModelFacts
from octonode.api.schema.verbs import FetchModel
from octonode.api.schema.versions import (
    DeprecateModel,
    ImportedTrust,
    ImportTrust,
    NameFacts,
    OutdatedModel,
    VersionFacts,
)
from octonode.errors import NotFound, OctonodeError, Refused
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.models import naming
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest
from octonode.models.reference import BadReference, BareName, NameReference, parse
from octonode.models.version import ANY_VERSION, Version, VersionRange, best
from octonode.node.models import Models
from octonode.node.names import Names
from octonode.node.resolving import Resolver
from octonode.node.shelf import Held, Shelf
from octonode.node.source import Source
from octonode.node.switching import Switcher
from octonode.protocol.name_record import NamedVersion, NameRecord

NAMES_ASKED_AT_ONCE = 4


class Versions:
    """The verbs. What moves between versions does one thing at a time."""

    def __init__(
        self, *, own: PeerId, library: Library, shelf: Shelf, resolver: Resolver, names: Names, source: Source,
        models: Models, switcher: Switcher,
    ) -> None:  # fmt: skip
        self._own = own
        self._library = library
        self._shelf = shelf
        self._resolver = resolver
        self._names = names
        self._source = source
        self._models = models
        self._switcher = switcher
        self._moving = trio.Lock()

    # What there is.

    async def versions(self, reference: str) -> NameFacts:
        publisher, name, _ = await self._name(reference)
        return await self._facts(publisher, name, await self._names.ask(publisher, name))

    async def _facts(self, publisher: PeerId, name: str, record: NameRecord | None, note: str = "") -> NameFacts:
        known = {s.cid.text: s for s in await trio.to_thread.run_sync(self._library.catalogue.named, publisher, name)}
        if record is None:
            for signed in await self._resolver.ask_network(publisher, name):
                known.setdefault(signed.cid.text, signed)
        rows = {
            version: self._row(version, named.manifest, known) for version, named in naming.readable(record).items()
        }
        for signed in sorted(known.values(), key=lambda signed: signed.manifest.seq, reverse=True):
            version = signed.manifest.version
            if version not in rows:
                rows[version] = self._row(version, signed.cid.raw, known)
        if not rows:
            raise NotFound(f"nobody reachable knows {publisher}/{name}; see: octonode peers", code="MODEL_NOT_FOUND")
        listed = naming.readable(record)
        good = [version for version in rows if version not in naming.avoided(record)]
        return NameFacts(
            publisher=publisher,
            name=name,
            versions=tuple(
                _told(rows[version], listed, version) for version in sorted(rows, key=Version.parse, reverse=True)
            ),
            latest=best(VersionRange("latest"), good) or "",
            seq=record.seq if record else 0,
            issued_at_ms=record.issued_at_ms if record else 0,
            expires_at_ms=record.expires_at_ms if record else 0,
            trimmed=record.trimmed if record else False,
            note=note or ("" if record else "no record of its publisher's was found: what peers show is listed"),
        )

    def _row(self, version: str, manifest: bytes, known: dict[str, SignedManifest]) -> VersionFacts:
        cid = Cid.from_bytes(manifest).text
        signed = known.get(cid)
        root = signed.manifest.root.text if signed else ""
        held = self._shelf.get(root)
        followed = self._library.following.of(root)
        return VersionFacts(
            version=version,
            manifest=cid,
            root=root,
            held=held is not None and held.complete,
            serving=self._switcher.serves(root),
            kept_as_previous=bool(followed.previous_of),
            rolled_back=followed.rolled_back,
        )

    async def outdated(self) -> Sequence[OutdatedModel]:
        """Own models count where they are served: an older version may have been left in its place."""
        found: list[OutdatedModel] = []
        limiter = trio.CapacityLimiter(NAMES_ASKED_AT_ONCE)

        async def look(publisher: PeerId, name: str, group: list[Held]) -> None:
            async with limiter:
                found.extend(await self._behind(publisher, name, group))

        groups: dict[tuple[PeerId, str], list[Held]] = {}
        for held in self._shelf.all():
            if held.signed is not None and held.complete:
                manifest = held.signed.manifest
                groups.setdefault((manifest.publisher, manifest.name), []).append(held)
        async with trio.open_nursery() as nursery:
            for (publisher, name), group in groups.items():
                nursery.start_soon(look, publisher, name, group)
        return sorted(found, key=lambda each: (each.name, each.publisher, each.current))

    async def _behind(self, publisher: PeerId, name: str, group: list[Held]) -> list[OutdatedModel]:
        in_use = [held for held in group if self._in_use(held, group)]
        if publisher == self._own:
            in_use = [held for held in in_use if self._switcher.serves(held.root)]
        if not in_use:
            return []
        record = await self._names.ask(publisher, name)
        versions = {*naming.readable(record), *(held.version for held in group)}
        if record is None:
            versions |= {signed.manifest.version for signed in await self._shown(publisher, name)}
        avoid = naming.avoided(record)
        rows = [self._outdated(held, versions, avoid, naming.advice(record, held.version), group) for held in in_use]
        return [row for row in rows if row.wanted != row.current or row.deprecated or _newer(row.latest, row.current)]

    async def _shown(self, publisher: PeerId, name: str) -> Sequence[SignedManifest]:
        try:
            return await self._resolver.ask_network(publisher, name)
        except OctonodeError:  # forgeries alone: nothing newer is known
            return ()

    def _in_use(self, held: Held, group: list[Held]) -> bool:
        """Not a version that is kept beside the one that took its place, or beside a newer one, and not served."""
        if self._switcher.serves(held.root):
            return True
        followed = self._library.following.of(held.root)
        if followed.previous_of or followed.rolled_back:
            return False
        return all(Version.parse(each.version) <= Version.parse(held.version) for each in group)

    def _outdated(
        self, held: Held, versions: set[str], avoid: frozenset[str], advice: str, group: list[Held]
    ) -> OutdatedModel:
        assert held.signed is not None
        manifest, range_ = held.signed.manifest, self._range(held)
        wanted = best(range_, versions, avoid=avoid) or held.version
        if not _newer(wanted, held.version) and held.version not in avoid:
            wanted = held.version
        back = {each.version for each in group if self._library.following.of(each.root).rolled_back}
        return OutdatedModel(
            reference=f"{manifest.publisher}/{manifest.name}@{range_}",
            name=manifest.name,
            publisher=manifest.publisher,
            current=held.version,
            wanted=wanted,
            latest=best(VersionRange("latest"), versions, avoid=avoid) or held.version,
            root=held.root,
            serving=self._switcher.serves(held.root),
            deprecated=advice,
            rolled_back=wanted in back,
        )

    def _range(self, held: Held) -> VersionRange:
        """The range that a model was asked for by: as served, else as fetched, else any."""
        for reference in (self._switcher.served_as(held.root), self._library.following.of(held.root).reference):
            if reference:
                parsed = parse(reference)
                if isinstance(parsed, (NameReference, BareName)):
                    return parsed.versions
        return ANY_VERSION

    # Moving between them.

    async def update(self, request: UpdateModel, report: Report) -> ModelOutcome:
        began = time.monotonic()
        async with self._moving:
            publisher, name, asked = await self._name(request.reference)
            current = self._current(publisher, name, request.reference)
            range_ = asked if "@" in request.reference else self._range(current)
            report(ModelProgress("find"))
            signed = await self._resolver.in_network(publisher, name, range_, request.reference, forward=True)
            note = self._why_not(current, signed, range_)
            if note:
                return ModelOutcome(self._models.facts(current.root), seconds=time.monotonic() - began, note=note)
            wanted = f"{publisher}/{name}@{range_}"
            facts, by_source, note = await self._replace(current, signed, wanted, request.trust, report)
        return ModelOutcome(facts, by_source, time.monotonic() - began, note=note)

    def _why_not(self, current: Held, signed: SignedManifest, range_: VersionRange) -> str:
        """Why there is nothing to do; empty where there is."""
        assert current.signed is not None
        if signed.cid == current.signed.cid or signed.manifest.root == current.signed.manifest.root:
            advice = self._models.facts(current.root).deprecated
            return f"{current.version} is the newest in {range_}" + (f"; {advice}" if advice else "")
        if _newer(signed.manifest.version, current.version) or self._models.facts(current.root).deprecated:
            return ""
        return (
            f"{current.version} is newer than {signed.manifest.version}, the newest of its publisher's in {range_}; "
            f"to go back: octonode models rollback {current.name}"
        )

    async def _replace(
        self, current: Held, signed: SignedManifest, reference: str, trust: bool, report: Report
    ) -> tuple[ModelFacts, dict[str, int], str]:
        root, following = signed.manifest.root.text, self._library.following
        with self._resolver.passing_over(root):
            fetched = await self._models.fetch(FetchModel(f"cid:{signed.cid}", trust=trust), report)
            note = ""
            if self._switcher.serves(current.root):
                assert current.signed is not None
                try:
                    note = await self._switcher.switch(current.signed, signed, reference, report)
                except BaseException:
                    # What cannot be loaded must not be what the name means here from now on.
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(following.went_back, root, current.root, reference)
                    raise
            await trio.to_thread.run_sync(following.succeeded, current.root, root, reference)
            if current.entry.row.pinned:
                await trio.to_thread.run_sync(self._library.pin, f"cid:{root}")
        await self._source.refresh()
        kept = f"{current.version} is kept to go back to: octonode models rollback {signed.manifest.name}"
        return self._models.facts(root), fetched.bytes_by_source, "; ".join(filter(None, (note, kept)))

    async def roll_back(self, request: RollbackModel, report: Report) -> ModelOutcome:
        began = time.monotonic()
        async with self._moving:
            publisher, name, _ = await self._name(request.reference)
            current = self._current(publisher, name, request.reference)
            previous = self._previous(current)
            reference = f"{publisher}/{name}@{self._range(current)}"
            if self._range(current).exact:
                reference = f"{publisher}/{name}@{previous.version}"
            note = ""
            if self._switcher.serves(current.root):
                assert current.signed is not None
                assert previous.signed is not None
                note = await self._switcher.switch(current.signed, previous.signed, reference, report)
            following = self._library.following
            await trio.to_thread.run_sync(following.went_back, current.root, previous.root, reference)
            await self._source.refresh()
        forward = f"{current.version} is passed over from now on; to take it again: octonode models update {name}"
        facts = self._models.facts(previous.root)
        told = "; ".join(filter(None, (note, facts.deprecated, forward)))
        return ModelOutcome(facts, seconds=time.monotonic() - began, note=told)

    def _held(self, publisher: PeerId, name: str) -> list[Held]:
        return [held for held in self._shelf.all() if held.complete and held.name == f"{publisher}/{name}"]

    def _current(self, publisher: PeerId, name: str, reference: str) -> Held:
        """The version that the name means here: what is served, else the highest that is in use. Raises NotFound."""
        group = self._held(publisher, name)
        if not group:
            raise NotFound(
                f"no version of {reference} is held here; fetch it: octonode models fetch {reference}",
                code="MODEL_NOT_FOUND",
            )

        def rank(held: Held) -> tuple[bool, bool, Version]:
            followed = self._library.following.of(held.root)
            return self._switcher.serves(held.root), not followed.rolled_back, Version.parse(held.version)

        return max(group, key=rank)

    def _previous(self, current: Held) -> Held:
        """Raises NotFound."""
        publisher, _, name = current.name.partition("/")
        following = self._library.following
        group = [held for held in self._held(PeerId(publisher), name) if held.root != current.root]
        kept = [held for held in group if following.of(held.root).previous_of == current.root]
        older = [held for held in group if _newer(current.version, held.version)]
        if not kept and not older:
            raise NotFound(
                f"no version of {name} before {current.version} is held here; see: octonode models versions {name}, "
                f"and fetch the one that you want, as in {name}@1.0.0",
                code="MODEL_NOT_FOUND",
            )
        return max(kept or older, key=lambda held: Version.parse(held.version))

    # What we say of ours, and whom we believe.

    async def deprecate(self, asked: DeprecateModel) -> NameFacts:
        parsed = parse(asked.reference)
        if not isinstance(parsed, (NameReference, BareName)) or not parsed.versions.exact:
            raise BadReference(f"{asked.reference!r}: name one version, as in my-model@1.0.0")
        publisher = self._own if isinstance(parsed, BareName) else await self._resolver.publisher(parsed)
        if publisher != self._own:
            raise Refused(
                f"only its publisher, {publisher}, can deprecate {asked.reference}; to go back here: "
                f"octonode models rollback {parsed.name}",
                code="FORBIDDEN",
            )
        version = parsed.versions.text.removeprefix("=").strip()
        taken = await self._names.deprecate(
            parsed.name, version, reason=asked.reason, replaced_by=asked.replaced_by, undo=asked.undo
        )
        note = "" if taken else "no peer has taken the record yet; it is put again as soon as one does"
        return await self._facts(publisher, parsed.name, self._names.known(publisher, parsed.name), note)

    async def import_trust(self, asked: ImportTrust) -> ImportedTrust:
        rows = [(each.peer_id, each.alias) for each in asked.publishers]
        added, known, without = await trio.to_thread.run_sync(self._library.import_trust, rows)
        self._resolver.forget()
        publishers: Sequence[Publisher] = await self._models.publishers()
        return ImportedTrust(added, known, tuple(without), tuple(publishers))

    async def _name(self, reference: str) -> tuple[PeerId, str, VersionRange]:
        parsed = parse(reference)
        if not isinstance(parsed, (NameReference, BareName)):
            raise BadReference(
                f"{reference!r} is not a name: write publisher/name, or the name of a trusted publisher's"
            )
        return await self._resolver.publisher(parsed), parsed.name, parsed.versions


def _newer(version: str, than: str) -> bool:
    return Version.parse(version) > Version.parse(than)


def _told(row: VersionFacts, listed: dict[str, NamedVersion], version: str) -> VersionFacts:
    """A row with what the publisher's record says of it."""
    named = listed.get(version)
    if named is None:
        return row
    return replace(row, listed=True, deprecated=named.deprecated, reason=named.reason, replaced_by=named.replaced_by)

"""The models of a node for its HTTP faces: `api.ports.Models`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import trio

from octonode.api.ports import Report
from octonode.api.schema import (
    AddModel,
    FetchModel,
    ModelFacts,
    ModelOutcome,
    ModelProgress,
    Publisher,
    PublishModel,
    ServeModel,
    VerifyModel,
)
from octonode.errors import NotFound, OctonodeError
from octonode.ids import PeerId
from octonode.models.fetch import FetchProgress
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest
from octonode.models.reference import BareName, FileReference, HubReference, NameReference, Reference, parse
from octonode.network.addresses import parse_peer
from octonode.network.announcer import Announcer
from octonode.network.clock import wall_clock_ms
from octonode.network.peerbook import Peerbook
from octonode.node.checks import Checks
from octonode.node.fetches import FILE_HINT, Fetches
from octonode.node.listing import facts_of
from octonode.node.reporting import FromThread
from octonode.node.resolving import Resolver
from octonode.node.shelf import Held, Shelf
from octonode.node.source import LOAD_PRIORITY, Source
from octonode.node.wishes import Wishes
from octonode.protocol.announcement import Announcement
from octonode.tasks.residency import Residency

PUBLISH_TIMEOUT_SECONDS = 20.0
NETWORK_MODELS_MAX = 1000
"""Models of others in one list."""
NO_RECORD_YET = "no peer is there to keep its records yet; they are provided as soon as one is"


class Models:
    """Every verb of `/api/v1/models`."""

    def __init__(
        self, *, own: PeerId, library: Library, shelf: Shelf, resolver: Resolver, source: Source, residency: Residency,
        announcer: Announcer, peerbook: Peerbook, wishes: Wishes, fetches: Fetches, checks: Checks,
        runs_models: bool = True,
    ) -> None:  # fmt: skip
        self._own = own
        self._library = library
        self._shelf = shelf
        self._resolver = resolver
        self._source = source
        self._residency = residency
        self._announcer = announcer
        self._peerbook = peerbook
        self._wishes = wishes
        self._fetches = fetches
        self._checks = checks
        self._runs_models = runs_models

    async def list(self) -> Sequence[ModelFacts]:
        own = [held.root for held in self._shelf.all()]
        return [self._facts(root) for root in (*own, *most_announced(self._peerbook.peers(wall_clock_ms()), own))]

    async def resolve(self, reference: str) -> ModelFacts:
        root, signed = await self._resolver.root_and_manifest(reference)
        found = self._facts(root.text, signed)
        if not found.manifest and not found.servers and not found.holders and found.state == "network":
            raise NotFound(
                f"nobody known here serves or holds {reference}; see: octonode models ls", code="MODEL_NOT_FOUND"
            )
        return found

    def facts(self, root: str) -> ModelFacts:
        """What is known of a root now; nobody is asked."""
        return self._facts(root)

    def _facts(self, root: str, signed: SignedManifest | None = None) -> ModelFacts:
        held, now_ms = self._shelf.get(root), wall_clock_ms()
        return facts_of(
            root,
            self._own,
            held=held,
            signed=signed or (held.signed if held else None),
            serving=self._peerbook.serving(root, now_ms),
            holding=self._peerbook.holding(root, now_ms),
            status=self._residency.model(root),
            library=self._library,
            note=self._checks.note(root),
            own_skills=engine.facts.skills if (engine := self._residency.engine(root)) is not None else (),
        )

    async def add(self, request: AddModel, report: Report) -> ModelOutcome:
        began = time.monotonic()
        root, _ = await self._source.add(
            Path(request.path),
            name=request.name,
            version=request.version,
            licence=request.license,
            public=request.publish,
            profile=request.profile,
            vouched=True,
            root=request.root,
            progress=FromThread(report, "import"),
        )
        records = await self._provided(root.text) if request.publish else 0
        note = NO_RECORD_YET if request.publish and not records else ""
        return ModelOutcome(self._facts(root.text), seconds=time.monotonic() - began, records=records, note=note)

    async def publish(self, request: PublishModel, report: Report) -> ModelOutcome:
        began = time.monotonic()
        held = await self._held(request.reference)
        report(ModelProgress("publish"))
        await trio.to_thread.run_sync(self._library.publish, f"cid:{held.root}")
        await self._source.refresh()
        records = await self._provided(held.root)
        note = "" if records else NO_RECORD_YET
        return ModelOutcome(self._facts(held.root), seconds=time.monotonic() - began, records=records, note=note)

    async def _provided(self, root: str) -> int:
        """Wait until the DHT has taken the records of a model, and count them; 0 at once where nobody is there."""
        held = self._shelf.get(root)
        assert held is not None
        labels = {held.root, held.name, held.manifest} - {""}
        done = 0
        with trio.move_on_after(PUBLISH_TIMEOUT_SECONDS):
            while self._peerbook.peers(wall_clock_ms()):
                records = [each for each in self._announcer.status.records if each.label in labels]
                done = sum(each.provided_at_ms > 0 for each in records)
                if len(records) >= len(labels) and all(each.provided_at_ms or each.failures for each in records):
                    break
                await trio.sleep(0.1)
        return done

    async def fetch(self, request: FetchModel, report: Report) -> ModelOutcome:
        began = time.monotonic()
        if isinstance(parse(request.reference), FileReference):
            root, _ = await self._source.add(
                Path(request.reference.removeprefix("file:")), progress=FromThread(report, "import")
            )
            return ModelOutcome(self._facts(root.text), seconds=time.monotonic() - began)
        if isinstance(parsed := parse(request.reference), HubReference):
            return await self._bring(parsed, request, report)
        for hint in request.peers:
            parse(hint) if hint.startswith(FILE_HINT) else parse_peer(hint)
        if request.background and request.pin:
            message = "a fetch in the background does not pin; once it is here: octonode models pin"
            raise OctonodeError(message, code="BAD_REQUEST")
        report(ModelProgress("find"))
        root, signed = await self._resolver.to_take(request.reference, allow_unsigned=request.allow_unsigned)
        if signed is not None:
            await self._source.accept(signed, trust=request.trust)
            asked_as = named_as(parse(request.reference), signed)
            await trio.to_thread.run_sync(self._library.following.asked, root.text, asked_as)
        by_source: dict[str, int] = {}

        def show(each: FetchProgress) -> None:
            by_source.update(each.by_source)
            report(ModelProgress("fetch", each.done_bytes, each.total_bytes, each.by_source, each.bytes_per_second))

        if request.background:
            await self._fetches.start(root, priority=request.priority, hints=request.peers)
            return ModelOutcome(
                self._facts(root.text), note="it goes on in the background; see octonode models fetches"
            )
        await self._fetches.fetch(root, show, priority=request.priority, hints=request.peers)
        if request.pin:
            await trio.to_thread.run_sync(self._library.pin, f"cid:{root}")
            await self._source.refresh()
        facts = self._facts(root.text)
        return ModelOutcome(facts, by_source, time.monotonic() - began, note=facts.deprecated)

    async def _bring(self, reference: HubReference, request: FetchModel, report: Report) -> ModelOutcome:
        """A model of a hub; signed by us, since nobody else signed it."""
        began = time.monotonic()
        root, _, taken_bytes = await self._source.bring(reference, report)
        if request.pin:
            await trio.to_thread.run_sync(self._library.pin, f"cid:{root}")
            await self._source.refresh()
        by_source = {f"hf:{reference.repository}": taken_bytes} if taken_bytes else {}
        return ModelOutcome(self._facts(root.text), by_source, time.monotonic() - began)

    async def serve(self, request: ServeModel, report: Report) -> ModelOutcome:
        """Returns once it is served, now and after every start. One that cannot be loaded is not wished for."""
        began = time.monotonic()
        if request.stop:
            return await self._stop_serving(request.reference)
        if not self._runs_models:
            raise OctonodeError(
                "this node has the role storage: it keeps models and runs none. Keep this one with octonode models "
                "fetch --pin, or start the node with --role full",
                code="UNSUPPORTED",
            )
        wanted = FetchModel(
            request.reference, trust=request.trust, allow_unsigned=request.allow_unsigned, peers=request.peers,
            priority=LOAD_PRIORITY,
        )  # fmt: skip
        fetched = await self.fetch(wanted, report)
        root = fetched.model.root
        before = self._residency.model(root)
        reference = before.reference if before else _kept(request.reference, fetched.model)
        self._residency.add(reference)
        try:
            await self._wishes.add(reference, request.engine)
            await self.until_serving(reference, root, report)
        except OctonodeError:
            if before is None:
                self._residency.remove(reference)
                await self._wishes.remove(reference)
            raise
        facts = self._facts(root)
        return ModelOutcome(facts, fetched.bytes_by_source, time.monotonic() - began, note=facts.deprecated)

    async def _stop_serving(self, reference: str) -> ModelOutcome:
        began = time.monotonic()
        root = (await self._resolver.root_and_manifest(reference))[0].text
        if not await self._unwish(root, reference):
            raise NotFound(f"{reference} is not served here; see: octonode models ls", code="MODEL_NOT_FOUND")
        return ModelOutcome(self._facts(root), seconds=time.monotonic() - began)

    async def _unwish(self, root: str, *references: str) -> bool:
        """Serve it no more, by whatever name it was wished for. False when it was not served."""
        held = self._shelf.get(root)
        names = {f"cid:{root}", *references, *([held.name] if held else [])}
        names |= {each.reference for each in self._residency.status() if each.model and each.model.root == root}
        served = [name for name in (root, *names) if self._residency.remove(name)]
        await self._wishes.remove(*names)
        return bool(served)

    async def until_serving(self, reference: str, root: str, report: Report) -> None:
        """Raises what keeps it from being served."""
        while True:
            seen = self._residency.changes
            wished = (each for each in self._residency.status() if each.reference == reference)
            status = next(wished, None) or self._residency.model(root)
            if status is None:
                raise OctonodeError(f"{reference} was stopped meanwhile", code="CANCELED")
            if status.state == "serving":
                return
            if status.state == "failed":
                raise OctonodeError(f"{reference}: {status.reason}", code=status.code or "MODEL_UNAVAILABLE")
            stage = "load" if status.state == "loading" else status.state
            report(ModelProgress(stage, status.done_bytes, status.total_bytes))
            await self._residency.wait_changed(seen)

    async def verify(self, request: VerifyModel, report: Report) -> ModelOutcome:
        began = time.monotonic()
        held = await self._held(request.reference)
        progress = FromThread(report, "verify")
        by_source: dict[str, int] = {}

        def fetched(each: FetchProgress) -> None:
            by_source.update(each.by_source)
            report(ModelProgress("repair", each.done_bytes, each.total_bytes, each.by_source, each.bytes_per_second))

        note = await self._checks.verify(held, progress, repair=request.repair, fetched=fetched)
        return ModelOutcome(self._facts(held.root), by_source, time.monotonic() - began, note=note)

    async def remove(self, reference: str, *, force: bool) -> ModelFacts:
        held = await self._held(reference)
        before = self._facts(held.root)
        if self._residency.model(held.root) is not None and not force:
            raise OctonodeError(
                f"{reference} is being served; stop that first: octonode models serve {reference} --stop, "
                "or use --force",
                code="IN_USE",
            )
        await self._unwish(held.root, reference)
        others = len(set(before.holders) - {self._own}) if held.public and held.complete else None
        async with self._checks.let_go(held.root):
            await trio.to_thread.run_sync(
                lambda: self._library.remove(f"cid:{held.root}", force=force, other_holders=others)
            )
        await self._source.refresh()
        return before

    async def _held(self, reference: str) -> Held:
        try:
            root = (await trio.to_thread.run_sync(self._library.show, reference)).root.text
        except NotFound:  # what is kept for others has a name, though its manifest was never taken in
            named = (held for held in self._shelf.all() if reference in (held.name, f"{held.name}@{held.version}"))
            root = next((held.root for held in named), "")
            if not root:
                raise
        held = self._shelf.get(root)
        if held is None:
            await self._source.refresh()
            held = self._shelf.get(root)
        assert held is not None
        return held

    async def publishers(self) -> Sequence[Publisher]:
        found = await trio.to_thread.run_sync(self._library.publishers)
        return [Publisher(each.peer_id, each.alias, each.since_ms, each.public_key, each.fingerprint) for each in found]

    async def trust(self, publisher: str, *, trusted: bool, note: str) -> Sequence[Publisher]:
        if trusted:
            await trio.to_thread.run_sync(self._library.trust, publisher, note)
        else:
            await trio.to_thread.run_sync(self._library.distrust, publisher)
        self._resolver.forget()
        return await self.publishers()


def most_announced(announcements: Iterable[Announcement], without: Collection[str]) -> list[str]:
    """At most NETWORK_MODELS_MAX roots: what most peers name first, since strangers may name any number of any kind."""
    named: Counter[str] = Counter()
    for each in announcements:
        named.update({item.root for item in each.serving} | {item.root for item in each.holding})
    for root in without:
        named.pop(root, None)
    return [root for root, _ in named.most_common(NETWORK_MODELS_MAX)]


def named_as(reference: Reference, signed: SignedManifest) -> str:
    """How a model was asked for, with its publisher's key: the range to follow. Asked for by CID it is one version."""
    manifest = signed.manifest
    if isinstance(reference, (NameReference, BareName)):
        return f"{manifest.publisher}/{manifest.name}@{reference.versions}"
    return manifest.reference


def _kept(reference: str, model: ModelFacts) -> str:
    """How a wish is written down: with its publisher, so that it means the same whoever is trusted later."""
    parsed = parse(reference)
    if isinstance(parsed, HubReference) and parsed.revision:
        return f"{model.reference}@{model.version}"  # of that revision, whatever is brought later
    if isinstance(parsed, FileReference | HubReference):
        return model.reference
    return f"{model.publisher}/{reference}" if isinstance(parsed, BareName) else reference

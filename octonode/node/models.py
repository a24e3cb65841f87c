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
from octonode.errors import NotFound, OctonodeError, VerificationFailed
from octonode.ids import PeerId
from octonode.models.fetch import FetchProgress
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest
from octonode.models.reference import BareName, FileReference, parse
from octonode.network.announcer import Announcer
from octonode.network.clock import wall_clock_ms
from octonode.network.peerbook import Peerbook
from octonode.node.listing import facts_of
from octonode.node.resolving import Resolver
from octonode.node.shelf import Held, Shelf
from octonode.node.source import Source
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
        announcer: Announcer, peerbook: Peerbook, wishes: Wishes,
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
        )

    async def add(self, request: AddModel, report: Report) -> ModelOutcome:
        began = time.monotonic()
        root, _ = await self._source.add(
            Path(request.path),
            name=request.name,
            version=request.version,
            licence=request.license,
            public=request.publish,
            progress=_FromThread(report, "import"),
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
                Path(request.reference.removeprefix("file:")), progress=_FromThread(report, "import")
            )
            return ModelOutcome(self._facts(root.text), seconds=time.monotonic() - began)
        report(ModelProgress("find"))
        root, signed = await self._resolver.root_and_manifest(request.reference)
        if signed is not None:
            await self._source.accept(signed, trust=request.trust)
        by_source: dict[str, int] = {}

        def show(each: FetchProgress, sources: dict[str, int]) -> None:
            by_source.update(sources)
            report(ModelProgress("fetch", each.done_bytes, each.total_bytes, sources, each.bytes_per_second))

        await self._source.fetch_model(root, show)
        if request.pin:
            await trio.to_thread.run_sync(self._library.pin, f"cid:{root}")
            await self._source.refresh()
        return ModelOutcome(self._facts(root.text), by_source, time.monotonic() - began)

    async def serve(self, request: ServeModel, report: Report) -> ModelOutcome:
        """Returns once it is served, now and after every start. One that cannot be loaded is not wished for."""
        began = time.monotonic()
        if request.stop:
            return await self._stop_serving(request.reference)
        fetched = await self.fetch(FetchModel(request.reference, trust=request.trust), report)
        root = fetched.model.root
        before = self._residency.model(root)
        reference = before.reference if before else _kept(request.reference, fetched.model)
        self._residency.add(reference)
        try:
            await self._wishes.add(reference, request.engine)
            await self._until_serving(reference, root, report)
        except OctonodeError:
            if before is None:
                self._residency.remove(reference)
                await self._wishes.remove(reference)
            raise
        return ModelOutcome(self._facts(root), fetched.bytes_by_source, time.monotonic() - began)

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

    async def _until_serving(self, reference: str, root: str, report: Report) -> None:
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
        progress = _FromThread(report, "verify")
        found = await trio.to_thread.run_sync(lambda: self._library.verify(f"cid:{held.root}", progress))
        await self._source.refresh()
        if found.bad_leaves or found.bad_files:
            raise VerificationFailed(
                f"{held.name or held.root}: {len(found.bad_leaves)} blocks and {len(found.bad_files)} files are "
                f"damaged; repair it: octonode models fetch cid:{held.root}"
            )
        note = f"{found.missing_leaves} blocks are not here yet" if found.missing_leaves else ""
        return ModelOutcome(self._facts(held.root), seconds=time.monotonic() - began, note=note)

    async def remove(self, reference: str, *, force: bool) -> ModelFacts:
        held = await self._held(reference)
        before = self._facts(held.root)
        if self._residency.model(held.root) is not None and not force:
            raise OctonodeError(
                f"{reference} is being served; stop that first: octonode models serve {reference} --stop, "
                "or use --force",
                code="FORBIDDEN",
            )
        await self._unwish(held.root, reference)
        others = len(set(before.holders) - {self._own}) if held.public and held.complete else None
        await trio.to_thread.run_sync(
            lambda: self._library.remove(f"cid:{held.root}", force=force, other_holders=others)
        )
        await self._source.refresh()
        return before

    async def _held(self, reference: str) -> Held:
        entry = await trio.to_thread.run_sync(self._library.show, reference)
        held = self._shelf.get(entry.root.text)
        if held is None:
            await self._source.refresh()
            held = self._shelf.get(entry.root.text)
        assert held is not None
        return held

    async def publishers(self) -> Sequence[Publisher]:
        found = await trio.to_thread.run_sync(self._library.publishers)
        return [Publisher(each.peer_id, each.alias, each.since_ms) for each in found]

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


def _kept(reference: str, model: ModelFacts) -> str:
    """How a wish is written down: with its publisher, so that it means the same whoever is trusted later."""
    parsed = parse(reference)
    if isinstance(parsed, FileReference):
        return model.reference
    return f"{model.publisher}/{reference}" if isinstance(parsed, BareName) else reference


class _FromThread:
    """A progress callback for a worker thread: shows in the trio thread, and stops the work when that was cancelled."""

    def __init__(self, report: Report, stage: str) -> None:
        self._report = report
        self._stage = stage
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self, done: int, total: int) -> None:
        trio.from_thread.check_cancelled()
        self._token.run_sync_soon(self._report, ModelProgress(self._stage, done, total), idempotent=False)

"""A stand-in for everything behind the HTTP faces, of our own making: it plays what a test tells it to.

The faces, the server and the clients on top of it are the real ones. It keeps no model and asks no peer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import trio

from octonode.api.app import make_app
from octonode.api.connection import ConnectionLimits
from octonode.api.ports import Ports, Report
from octonode.api.schema import (
    AddModel,
    FetchModel,
    Finding,
    Joined,
    ModelFacts,
    ModelOutcome,
    ModelProgress,
    NodeFacts,
    PeerFacts,
    Publisher,
    PublishModel,
    ServeModel,
    VerifyModel,
)
from octonode.api.server import Bound, serve
from octonode.config import ApiConfig, JobsConfig
from octonode.errors import NotFound, Refused, Unreachable
from octonode.identity import NodeKey
from octonode.ids import TaskId
from octonode.protocol.work.skills import WorkResult
from octonode.tasks.asking import Answered, Ask, AskEvent, Attempt, Candidate, Made, Pieces, Progress
from octonode.tasks.receipts import StoredReceipt, TaskRecord
from octonode.testing.faces_cache import PlayedCache
from octonode.testing.faces_engines import PlayedEngines
from octonode.testing.faces_fitting import PlayedFitting
from octonode.testing.faces_jobs import played_jobs
from octonode.testing.faces_models import PlayedFetches
from octonode.testing.faces_pins import PlayedPins
from octonode.testing.faces_quantizing import PlayedQuantizing
from octonode.testing.faces_uploads import PlayedBridges, PlayedUploads
from octonode.testing.faces_versions import PlayedVersions

PROVIDER = NodeKey(sha256(b"the provider of the faces' stand-in").digest()).peer_id
ROOT = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
MODEL = f"{PROVIDER}/tiny"
TOKEN = "the-token-of-the-stand-in-0123456789"
TASK = TaskId(bytes(range(16)))

Script = Callable[[Ask], AsyncIterator[AskEvent]]


def answered(pieces: int, **changes: Any) -> Answered:
    """The last event of a plain answer."""
    plain = Answered(
        finish_reason="stop",
        tokens_in=7,
        tokens_out=pieces,
        provider=PROVIDER,
        local=False,
        verified=True,
        receipt=b"a receipt",
        request_header=b"a header",
        task=TASK,
        pieces_total=pieces,
    )
    return replace(plain, **changes)


def says(*pieces: str) -> Script:
    """A script that answers with these pieces at once."""

    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Attempt(0, PROVIDER, local=False)
        for index, piece in enumerate(pieces):
            yield Pieces((piece,), index)
        yield answered(len(pieces))

    return script


def makes(result: WorkResult, steps: int = 0) -> Script:
    """A script that answers with this result, after so many steps."""

    async def script(_: Ask) -> AsyncIterator[AskEvent]:
        yield Attempt(0, PROVIDER, local=False)
        for done in range(1, steps + 1):
            yield Progress(PROVIDER, "step", done, steps)
        yield Made(result)
        yield answered(1)

    return script


@dataclass
class PlayedAsking:
    """Plays `script` for every question."""

    script: Script = field(default_factory=lambda: says("Hello", ",", " world", "."))
    asked: list[Ask] = field(default_factory=list)
    open: int = 0
    began: trio.Event = field(default_factory=trio.Event)
    left: trio.Event = field(default_factory=trio.Event)
    """Set when a question has been left before its end, and its events are closed."""

    @asynccontextmanager
    async def ask(self, ask: Ask) -> AsyncIterator[AsyncIterator[AskEvent]]:
        self.asked.append(ask)
        self.open += 1
        self.began.set()
        events = self.script(ask)
        whole = False
        try:
            yield events
            whole = True
        finally:
            with trio.CancelScope(shield=True):
                await events.aclose()  # type: ignore[attr-defined]  # scripts are generators
            self.open -= 1
            if not whole:
                self.left.set()

    async def explain(self, ask: Ask) -> Sequence[Candidate]:
        return (
            Candidate(PROVIDER, local=False, accepted=True, reason="serves it, 80 tokens/s", tokens_per_second=80.0),
            Candidate(PROVIDER, local=True, accepted=False, reason=f"{ask.model_root[:8]} is not loaded here", rank=1),
        )


def a_model(**changes: Any) -> ModelFacts:
    plain = ModelFacts(
        reference=MODEL, root=ROOT, name="tiny", publisher=PROVIDER, size_bytes=98_000_000, servers=(PROVIDER,)
    )
    return replace(plain, **changes)


@dataclass
class PlayedModels:
    """Holds facts, no models. A long verb waits for `go`, reports halves, and may be told to fail."""

    held: list[ModelFacts] = field(default_factory=lambda: [a_model()])
    failure: Exception | None = None
    go: trio.Event | None = None
    cancelled: trio.Event = field(default_factory=trio.Event)
    trusted: list[Publisher] = field(default_factory=list)
    verbs: list[Any] = field(default_factory=list)

    async def list(self) -> Sequence[ModelFacts]:
        return self.held

    async def resolve(self, reference: str) -> ModelFacts:
        for each in self.held:
            if reference in (each.reference, each.name, each.root, f"cid:{each.root}"):
                return each
        raise NotFound(f"no model {reference!r} is known; octonode models ls lists them", code="MODEL_NOT_FOUND")

    async def _work(self, verb: Any, report: Report) -> ModelOutcome:
        self.verbs.append(verb)
        report(ModelProgress("find"))
        try:
            await trio.lowlevel.checkpoint()
            if self.go is not None:
                await self.go.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        if self.failure is not None:
            raise self.failure
        for done in range(1001):  # far more often than the face may send
            report(ModelProgress("fetch", done * 1000, 1_000_000, {"gateway": done * 1000}))
        return ModelOutcome(self.held[0], {"gateway": 1_000_000}, 0.5, records=3)

    async def add(self, request: AddModel, report: Report) -> ModelOutcome:
        return await self._work(request, report)

    async def fetch(self, request: FetchModel, report: Report) -> ModelOutcome:
        if request.reference == "unknown/model" and not request.trust:
            detail = {"publisher": PROVIDER, "name": "model"}
            raise Refused(f"publisher {PROVIDER} is not trusted yet", code="NOT_TRUSTED", detail=detail)
        return await self._work(request, report)

    async def publish(self, request: PublishModel, report: Report) -> ModelOutcome:
        return await self._work(request, report)

    async def serve(self, request: ServeModel, report: Report) -> ModelOutcome:
        return await self._work(request, report)

    async def verify(self, request: VerifyModel, report: Report) -> ModelOutcome:
        return await self._work(request, report)

    async def remove(self, reference: str, *, force: bool) -> ModelFacts:
        found = await self.resolve(reference)
        if found.pinned and not force:
            raise Refused("it is pinned; use --force")
        self.held.remove(found)
        return found

    async def publishers(self) -> Sequence[Publisher]:
        return self.trusted

    async def trust(self, publisher: str, *, trusted: bool, note: str) -> Sequence[Publisher]:
        self.trusted = [each for each in self.trusted if each.peer_id != publisher]
        if trusted:
            self.trusted.append(Publisher(publisher, note))
        return self.trusted


@dataclass
class PlayedNode:
    reasons: list[str] = field(default_factory=list)
    stopped: trio.Event = field(default_factory=trio.Event)
    played: list[Mapping[str, Any]] = field(default_factory=list)

    async def facts(self) -> NodeFacts:
        return NodeFacts(PROVIDER, "0.1.0", state="active", tier="edge", join="octonode:secret", pid=1)

    def unready(self) -> Sequence[str]:
        return self.reasons

    async def doctor(self) -> Sequence[Finding]:
        return (Finding("clock", "ok", "2 ms off"), Finding("disk", "failed", "full", "free some space"))

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Mapping[str, Any]]]:
        async def play() -> AsyncIterator[Mapping[str, Any]]:
            for each in self.played:
                yield each
            await self.stopped.wait()

        playing = play()
        try:
            yield playing
        finally:
            await playing.aclose()  # type: ignore[attr-defined]

    def stop(self) -> None:
        self.stopped.set()


@dataclass
class PlayedPeers:
    known: list[PeerFacts] = field(default_factory=lambda: [PeerFacts(PROVIDER, connected=True, tier="edge")])

    async def list(self) -> Sequence[PeerFacts]:
        return self.known

    async def join(self, address: str) -> Joined:
        if "/p2p/" not in address:
            raise Unreachable(f"nobody answers at {address}; is that node running?")
        return Joined(address.rsplit("/", 1)[1], address)


@dataclass
class PlayedRecords:
    kept: list[TaskRecord] = field(default_factory=lambda: [TaskRecord(TASK, "asker", PROVIDER, ROOT, "completed")])
    receipts: dict[TaskId, StoredReceipt] = field(default_factory=dict)

    async def tasks(self, *, limit: int = 100) -> Sequence[TaskRecord]:
        return self.kept[:limit]

    async def receipt(self, task: TaskId) -> StoredReceipt | None:
        return self.receipts.get(task)


@dataclass
class Stage:
    """The real faces on a real port, in front of the stand-ins."""

    config: ApiConfig = field(default_factory=lambda: ApiConfig(listen="127.0.0.1:0"))
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    asking: PlayedAsking = field(default_factory=PlayedAsking)
    models: PlayedModels = field(default_factory=PlayedModels)
    node: PlayedNode = field(default_factory=PlayedNode)
    peers: PlayedPeers = field(default_factory=PlayedPeers)
    records: PlayedRecords = field(default_factory=PlayedRecords)
    fetches: PlayedFetches = field(default_factory=PlayedFetches)
    cache: PlayedCache = field(default_factory=PlayedCache)
    fitting: PlayedFitting = field(default_factory=PlayedFitting)
    engines: PlayedEngines = field(default_factory=PlayedEngines)
    versions: PlayedVersions = field(default_factory=PlayedVersions)
    uploads: PlayedUploads = field(default_factory=PlayedUploads)
    bridges: PlayedBridges = field(default_factory=PlayedBridges)
    pins: PlayedPins = field(default_factory=PlayedPins)
    quantizing: PlayedQuantizing = field(default_factory=PlayedQuantizing)
    jobs_settings: JobsConfig = field(default_factory=JobsConfig)
    shutdown: trio.Event = field(default_factory=trio.Event)
    bound: Bound = field(default_factory=lambda: Bound("", 0))

    def __post_init__(self) -> None:
        self.jobs = played_jobs(self.asking.ask, self.jobs_settings)

    @property
    def url(self) -> str:
        return self.bound.url

    @property
    def ports(self) -> Ports:
        return Ports(
            asking=self.asking, models=self.models, node=self.node, peers=self.peers, records=self.records,
            fetches=self.fetches, cache=self.cache, fitting=self.fitting, engines=self.engines,
            versions=self.versions, uploads=self.uploads, bridges=self.bridges,
            pins=self.pins, quantizing=self.quantizing, jobs=self.jobs,
        )  # fmt: skip

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Stage]:
        """Serves until the block is left, then drains."""
        app = make_app(self.ports, config=self.config, token=TOKEN)
        async with trio.open_nursery() as behind:
            await behind.start(self.jobs.run)
            async with trio.open_nursery() as nursery:

                async def run_server(task_status: trio.TaskStatus[Bound]) -> None:
                    await serve(
                        app,
                        self.config.listen,
                        shutdown_event=self.shutdown,
                        limits=self.limits,
                        task_status=task_status,
                    )

                self.bound = await nursery.start(run_server)
                try:
                    yield self
                finally:
                    self.shutdown.set()
            behind.cancel_scope.cancel()


def home_of(stage: Stage, directory: Path) -> Path:
    """A home as the daemon leaves it for clients: `daemon.json` and the token file."""
    (directory / "daemon.json").write_text(f'{{"api": "{stage.url}", "pid": 1}}', encoding="utf-8")
    token = directory / "api.token"
    token.touch(mode=0o600)
    token.write_text(TOKEN, encoding="ascii")
    return directory

"""What the HTTP faces need from the rest of the node: small Protocol classes, handed in by `node.py` as one `Ports`.

Everything here may be called from the first request on, before the network or an engine is up: a part that is not
ready raises an `OctonodeError` that says so. Any `OctonodeError` becomes the HTTP status of its row in `errors.TABLE`;
any other exception is a bug and becomes a 500 that tells nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

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
    RollbackModel,
    ServeModel,
    UpdateModel,
    VerifyModel,
)
from octonode.api.schema.cache import Collected, CollectGarbage
from octonode.api.schema.engines import EngineList, LoadedModel
from octonode.api.schema.fetches import ChangeFetch, FetchFacts
from octonode.api.schema.fitting import FitMatrix, InspectionFacts
from octonode.api.schema.pins import PinList, PinModel, UnpinModel
from octonode.api.schema.quantizing import QuantizeChoices, QuantizeModel, QuantizeOutcome
from octonode.api.schema.uploads import (
    CreateUpload,
    ExportToKubo,
    FinishUpload,
    UploadFacts,
    UploadFileFacts,
)
from octonode.api.schema.versions import DeprecateModel, ImportedTrust, ImportTrust, NameFacts, OutdatedModel
from octonode.ids import TaskId
from octonode.tasks.asking import Ask, AskEvent, Candidate
from octonode.tasks.job import Job, JobRequest, JobResult
from octonode.tasks.receipts import StoredReceipt, TaskRecord

Report = Callable[[ModelProgress], None]
"""Called as often as the callee likes, from the trio thread; the face keeps the latest and paces what it sends."""


class Asking(Protocol):
    """Where questions go: `tasks.dispatcher.Dispatcher`."""

    def ask(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[AskEvent]]:
        """Events of one question; leaving the block early cancels it at the provider. Raises OctonodeError."""
        ...

    async def explain(self, ask: Ask) -> Sequence[Candidate]:
        """Everybody who might answer: the accepted ones in the order of asking, then the rejected."""
        ...


class Models(Protocol):
    """What is held here and what peers offer. Long verbs report progress and may be cancelled at any await."""

    async def list(self) -> Sequence[ModelFacts]:
        """Held here, or announced by fresh peers; one row a root."""
        ...

    async def resolve(self, reference: str) -> ModelFacts:
        """The one model that a reference means. Raises NotFound with MODEL_NOT_FOUND, BAD_REQUEST for no reference."""
        ...

    async def add(self, request: AddModel, report: Report) -> ModelOutcome: ...

    async def fetch(self, request: FetchModel, report: Report) -> ModelOutcome:
        """Raises NOT_TRUSTED with `detail` {publisher, name} when the publisher is unknown and `trust` is not set."""
        ...

    async def publish(self, request: PublishModel, report: Report) -> ModelOutcome: ...

    async def serve(self, request: ServeModel, report: Report) -> ModelOutcome: ...

    async def verify(self, request: VerifyModel, report: Report) -> ModelOutcome:
        """Hash everything held of it again. Raises VerificationFailed."""
        ...

    async def remove(self, reference: str, *, force: bool) -> ModelFacts: ...

    async def publishers(self) -> Sequence[Publisher]:
        """Those whose manifests we trust."""
        ...

    async def trust(self, publisher: str, *, trusted: bool, note: str) -> Sequence[Publisher]:
        """The list after the change."""
        ...


class Fetches(Protocol):
    """The models that are being fetched."""

    async def list(self) -> Sequence[FetchFacts]:
        """The most urgent first."""
        ...

    async def change(self, asked: ChangeFetch) -> FetchFacts:
        """As it is after the change. Raises MODEL_NOT_FOUND for what is not being fetched."""
        ...


class Cache(Protocol):
    """The models on disk, as far as they may go."""

    async def collect(self, asked: CollectGarbage) -> Collected:
        """What went, or would go, and why the rest stays."""
        ...


class Versions(Protocol):
    """Which versions of a model there are, and moving between them."""

    async def outdated(self) -> Sequence[OutdatedModel]:
        """Models here that are behind their publisher, or deprecated; asks the network, some seconds."""
        ...

    async def versions(self, reference: str) -> NameFacts:
        """Raises MODEL_NOT_FOUND where nobody knows the name."""
        ...

    async def update(self, request: UpdateModel, report: Report) -> ModelOutcome: ...

    async def roll_back(self, request: RollbackModel, report: Report) -> ModelOutcome:
        """Raises MODEL_NOT_FOUND where no previous version is held."""
        ...

    async def deprecate(self, asked: DeprecateModel) -> NameFacts:
        """Raises FORBIDDEN for another publisher's model."""
        ...

    async def import_trust(self, asked: ImportTrust) -> ImportedTrust:
        """Raises BAD_REQUEST, and nothing of the list is taken."""
        ...


class Engines(Protocol):
    """The engines of this machine, and what models do in them."""

    async def list(self) -> EngineList: ...

    async def measure(self, reference: str) -> LoadedModel:
        """Measures a loaded model anew. Raises MODEL_NOT_FOUND for one that is not loaded, OVERLOADED."""
        ...


class Fitting(Protocol):
    """What models need of a machine, and what their headers say."""

    async def fit(self, reference: str, *, context_tokens: int, streams: int) -> FitMatrix:
        """Of one model, or of all that are known here where `reference` is empty. Raises MODEL_NOT_FOUND."""
        ...

    async def inspect(self, reference: str) -> InspectionFacts:
        """Raises MODEL_NOT_FOUND for what is not wholly here, FORMAT_REFUSED for what is never loaded."""
        ...


class Pins(Protocol):
    """Models that are kept: here for others, and at other nodes for us. `on` is a peer id, empty for this node."""

    async def list(self, on: str) -> PinList:
        """Here everybody's pins, elsewhere our own. Raises FORBIDDEN where that node does not list us."""
        ...

    async def pin(self, request: PinModel, report: Report) -> PinList:
        """Returns once it is kept. Raises FORBIDDEN, DISK_FULL, TOO_LARGE, and what a fetch raises."""
        ...

    async def unpin(self, request: UnpinModel) -> PinList:
        """What still keeps it here."""
        ...


class Node(Protocol):
    """The node itself."""

    async def facts(self) -> NodeFacts:
        """With the join line; the face hides it from callers without the admin scope."""
        ...

    def unready(self) -> Sequence[str]:
        """Why the node cannot do its work yet, one line a reason; empty when ready. Must not block."""
        ...

    async def doctor(self) -> Sequence[Finding]:
        """Runs the checks, dial-back by a peer among them. Brings its own deadline, below 30 s."""
        ...

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[Mapping[str, Any]]]:
        """What happens on the node, as JSON-ready maps {"event": name, "at_ms": int, ...}; ends when the node stops.

        The channel is bounded: a reader that falls behind loses the oldest.
        """
        ...

    def stop(self) -> None:
        """Start the drain. Returns at once; idempotent."""
        ...


class Peers(Protocol):
    async def list(self) -> Sequence[PeerFacts]: ...

    async def join(self, address: str) -> Joined:
        """Dial a join line or a multiaddr and remember it. Raises Unreachable, BAD_REQUEST."""
        ...


class Records(Protocol):
    """Tasks and receipts as `state.py` keeps them."""

    async def tasks(self, *, limit: int = 100) -> Sequence[TaskRecord]:
        """The latest first, both roles."""
        ...

    async def receipt(self, task: TaskId) -> StoredReceipt | None: ...


class Uploads(Protocol):
    """Models that come over the API, resumable. Every offset told is of bytes that are on disk for good."""

    async def create(self, request: CreateUpload) -> UploadFacts:
        """Raises BAD_REQUEST for what could never be finished, DISK_FULL, OVERLOADED when too many are open."""
        ...

    async def list(self) -> Sequence[UploadFacts]: ...

    async def get(self, upload: str) -> UploadFacts:
        """Raises NOT_FOUND."""
        ...

    async def write(
        self, upload: str, path: str, pieces: AsyncGenerator[bytes, None], *, first_byte: int, total_bytes: int | None
    ) -> UploadFileFacts:
        """Takes the bytes of one file from `first_byte` on; a second writer of a file ends the first. Raises
        BAD_SEQUENCE with `detail` {offset_bytes} for another place than the end, TOO_LARGE, DISK_FULL, and what
        `pieces` raises: what came before it is kept."""
        ...

    async def finish(self, upload: str, request: FinishUpload, report: Report) -> ModelOutcome:
        """Import it as a model, as `Models.add`. Raises BAD_REQUEST while bytes are missing."""
        ...

    async def abort(self, upload: str) -> UploadFacts:
        """What is gone."""
        ...


class Jobs(Protocol):
    """Work of mode `async` that is kept here: `tasks.jobs.Jobs`. Raises NOT_RUNNING while the node starts."""

    def check_webhook(self, url: str) -> None:
        """Raises BAD_REQUEST or FORBIDDEN for what may not be posted to; nothing for the empty text."""
        ...

    async def submit(self, request: JobRequest) -> Job:
        """On disk when it returns. Raises OVERLOADED, DISK_FULL."""
        ...

    def get(self, job: str) -> Job:
        """Raises NOT_FOUND."""
        ...

    def all(self) -> Sequence[Job]:
        """The latest first."""
        ...

    def place(self, job: str) -> int:
        """In the queue, from 1; 0 for one that does not wait."""
        ...

    async def result(self, job: str) -> JobResult | None:
        """None until it is completed."""
        ...

    async def wait(self, job: str, seconds: float) -> Job:
        """As soon as it has ended, else as it is after so long. Raises NOT_FOUND."""
        ...

    async def cancel(self, job: str) -> Job:
        """Ends one that has not ended; forgets one that has. Raises NOT_FOUND."""
        ...


class Bridges(Protocol):
    """Handing models to programs beside us."""

    async def export_to_kubo(self, asked: ExportToKubo, report: Report) -> ModelOutcome: ...


class Quantizing(Protocol):
    """Making smaller models of those held here."""

    async def choices(self, reference: str) -> QuantizeChoices: ...

    async def quantize(self, asked: QuantizeModel, report: Report) -> QuantizeOutcome: ...


@dataclass(frozen=True, slots=True)
class Ports:
    asking: Asking
    models: Models
    fetches: Fetches
    cache: Cache
    fitting: Fitting
    engines: Engines
    node: Node
    peers: Peers
    records: Records
    versions: Versions
    pins: Pins
    uploads: Uploads
    bridges: Bridges
    quantizing: Quantizing
    jobs: Jobs

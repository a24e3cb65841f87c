"""What the HTTP faces need from the rest of the node: small Protocol classes, handed in by `node.py` as one `Ports`.

Everything here may be called from the first request on, before the network or an engine is up: a part that is not
ready raises an `OctonodeError` that says so. Any `OctonodeError` becomes the HTTP status of its row in `errors.TABLE`;
any other exception is a bug and becomes a 500 that tells nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
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
    ServeModel,
    VerifyModel,
)
from octonode.ids import TaskId
from octonode.tasks.asking import Ask, AskEvent, Candidate
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


@dataclass(frozen=True, slots=True)
class Ports:
    asking: Asking
    models: Models
    node: Node
    peers: Peers
    records: Records

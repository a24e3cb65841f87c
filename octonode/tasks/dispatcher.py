"""The asker's side: a question goes to the best candidate, and to the next one when that one fails in time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from octonode.config import TasksConfig
from octonode.engines.contract import Engine
from octonode.identity import Signer
from octonode.ids import PeerId
from octonode.network.host import Host
from octonode.protocol.announcement import Announcement
from octonode.tasks.asking import (
    Answered,
    Ask,
    AskEvent,
    Attempt,
    Candidate,
    Pieces,
    Progress,
    ProviderLost,
    Ranking,
)
from octonode.tasks.receipts import ReceiptStore, TaskLog
from octonode.tasks.slots import EngineSlots, new_id, wall_clock_ms

__all__ = [
    "Answered",
    "Ask",
    "AskEvent",
    "Attempt",
    "Candidate",
    "Dispatcher",
    "Pieces",
    "Progress",
    "ProviderLost",
    "Ranking",
]


class Providers(Protocol):
    """Who serves a model: `network.discovery`, over the peerbook."""

    def known(self, root: str) -> Sequence[Announcement]:
        """Fresh announcements at hand that list `root` among what they serve. Asks nobody."""
        ...

    async def find(self, root: str) -> Sequence[Announcement]:
        """Asks the network as well. Empty when nobody serves it; faults of the network are empty too."""
        ...


class LocalEngines(Protocol):
    """Our own loaded models: `tasks.residency.Residency`."""

    def engine(self, root: str) -> Engine | None: ...


TokenFor = Callable[[PeerId], str]
"""The access token that a peer's join line gave us, or the empty text."""


class Dispatcher:
    """Asks questions. Constructor without I/O; `run` must be running while questions are asked."""

    def __init__(
        self,
        *,
        host: Host,
        signer: Signer,
        settings: TasksConfig,
        providers: Providers,
        local: LocalEngines,
        slots: EngineSlots,
        receipts: ReceiptStore,
        tasks: TaskLog,
        token_for: TokenFor = lambda peer: "",
        now_ms: Callable[[], int] = wall_clock_ms,
        new_id: Callable[[], bytes] = new_id,
    ) -> None:
        raise NotImplementedError

    def ask(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[AskEvent]]:
        """Events of one question, the last one `Answered`; leaving the block early cancels it at the provider.

        Iteration raises OctonodeError: MODEL_NOT_FOUND when nobody serves the model, PRIVACY_UNAVAILABLE, the most
        telling refusal when every candidate refused, `ProviderLost` after the first token.
        """
        raise NotImplementedError

    async def explain(self, ask: Ask) -> Sequence[Candidate]:
        """Everybody who might answer, the accepted ones first and in the order of asking, then the rejected."""
        raise NotImplementedError

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Takes leave of providers that were moved on from, until cancelled."""
        raise NotImplementedError

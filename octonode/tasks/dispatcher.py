"""The asker's side: a question goes to the best candidate, and to the next one when that one fails in time."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import trio

from octonode.config import TasksConfig
from octonode.errors import OctonodeError
from octonode.identity import Signer
from octonode.ids import PeerId
from octonode.network.clock import wall_clock_ms
from octonode.network.host import Host
from octonode.protocol.announcement import Announcement
from octonode.tasks.asking import (
    Answered,
    Ask,
    AskEvent,
    Attempt,
    Candidate,
    Made,
    Pieces,
    Progress,
    ProviderLost,
    Ranking,
)
from octonode.tasks.attempt import RemoteAttempt
from octonode.tasks.inbox import Inbox
from octonode.tasks.question import Question
from octonode.tasks.receipts import ReceiptStore, TaskLog
from octonode.tasks.resident import Resident
from octonode.tasks.routing import LocalModel, choose
from octonode.tasks.slots import EngineSlots, new_id
from octonode.tasks.standings import Standings
from octonode.tasks.timers import Watch

__all__ = [
    "Answered",
    "Ask",
    "AskEvent",
    "Attempt",
    "Candidate",
    "Dispatcher",
    "Made",
    "Pieces",
    "Progress",
    "ProviderLost",
    "Providers",
    "Ranking",
    "TokenFor",
]

log = logging.getLogger(__name__)

FIND_SECONDS_MAX = 10.0
"""The network is asked for further providers for this long."""
LEAVES_MAX = 256
"""Streams from which leave is being taken; beyond it they are reset at once."""


class Providers(Protocol):
    """Who serves a model: `network.discovery`, over the peerbook."""

    def known(self, root: str) -> Sequence[Announcement]:
        """Fresh announcements at hand that list `root` among what they serve. Asks nobody."""
        ...

    async def find(self, root: str) -> Sequence[Announcement]:
        """Asks the network as well. Empty when nobody serves it; faults of the network are empty too."""
        ...


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
        resident: Resident,
        slots: EngineSlots,
        receipts: ReceiptStore,
        tasks: TaskLog,
        token_for: TokenFor = lambda peer: "",
        now_ms: Callable[[], int] = wall_clock_ms,
        new_id: Callable[[], bytes] = new_id,
    ) -> None:
        self.us = signer.peer_id
        self.host = host
        self.signer = signer
        self.settings = settings
        self.providers = providers
        self.resident = resident
        self.slots = slots
        self.receipts = receipts
        self.tasks = tasks
        self.token_for = token_for
        self.now_ms = now_ms
        self.new_id = new_id
        self.standings = Standings()
        self.moved_on = 0
        """Times the next candidate was asked."""
        self.silences = Watch(settings.silence_timeout_seconds)
        self._open = 0
        self._leaves = 0
        self._nursery: trio.Nursery | None = None

    @property
    def open(self) -> int:
        """Questions not answered yet."""
        return self._open

    def ask(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[AskEvent]]:
        """Events of one question, the last one `Answered`; leaving the block early cancels it at the provider.

        Iteration raises OctonodeError: MODEL_NOT_FOUND when nobody serves the model, PRIVACY_UNAVAILABLE, the most
        telling refusal when every candidate refused, `ProviderLost` after the first token, NOT_RUNNING.
        """
        return self._ask(ask)

    @asynccontextmanager
    async def _ask(self, ask: Ask) -> AsyncIterator[AsyncIterator[AskEvent]]:
        if self._nursery is None:
            raise OctonodeError("this node is starting or stopping; try again", code="NOT_RUNNING")
        question = Question(ask, self)
        self._open += 1
        self._nursery.start_soon(question.drive)
        try:
            yield question.inbox
        finally:
            self._open -= 1
            question.scope.cancel()
            with trio.CancelScope(shield=True):  # it ends at once: leave from a provider is taken elsewhere
                await question.ended.wait()

    async def explain(self, ask: Ask) -> Sequence[Candidate]:
        """Everybody who might answer, the accepted ones first and in the order of asking, then the rejected."""
        return self.choose(ask, await self.find(ask.model_root))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves questions until cancelled; open ones then end with LEAVING."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.silences.run)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # What questions use.

    def choose(self, ask: Ask, announcements: Sequence[Announcement]) -> tuple[Candidate, ...]:
        return choose(
            ask,
            us=self.us,
            local=self._local_model(ask.model_root),
            announcements=announcements,
            standings=self.standings.all(),
            now_ms=self.now_ms(),
        )

    async def find(self, root: str) -> Sequence[Announcement]:
        """What the network says within its time, else what is known."""
        with trio.move_on_after(FIND_SECONDS_MAX):
            try:
                return [*await self.providers.find(root), *self.providers.known(root)]
            except OctonodeError as error:
                log.info("no further providers were found: %s", error.message)
        return self.providers.known(root)

    def _local_model(self, root: str) -> LocalModel | None:
        engine, model = self.resident.engine(root), self.resident.model(root)
        if engine is not None:
            measured = self.slots.measured.of(root)
            return LocalModel(
                engine.facts.context_tokens,
                engine.facts.parallel,
                self.slots.taken(root),
                measured.tokens_per_second,
                measured.first_token_ms,
                skills=engine.facts.skills,
            )
        if model is None:
            return None
        if model.state == "failed":
            return LocalModel(failed=f"the local engine failed: {model.reason}")
        return LocalModel(waiting_for=model.state)

    def attempt(self, ask: Ask, candidate: Candidate, *, inbox: Inbox, conversation: bytes) -> RemoteAttempt:
        return RemoteAttempt(
            ask,
            candidate,
            host=self.host,
            signer=self.signer,
            settings=self.settings,
            silences=self.silences,
            token=self.token_for(candidate.peer),
            inbox=inbox,
            conversation=conversation,
            now_ms=self.now_ms,
            new_id=self.new_id,
        )

    def take_leave(self, attempt: RemoteAttempt) -> None:
        """End an attempt's stream beside whatever comes next."""
        if self._nursery is not None:
            self._nursery.start_soon(self._leave, attempt)

    async def _leave(self, attempt: RemoteAttempt) -> None:
        self._leaves += 1
        try:
            await attempt.leave(drain=self._leaves <= LEAVES_MAX)
        except Exception as error:
            log.error("leaving %s failed: %r", attempt.provider, error, exc_info=error)
        finally:
            self._leaves -= 1

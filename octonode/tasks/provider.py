"""The provider's side: streams on AGENT_PROTOCOL, each a task for one of our engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from octonode.config import TasksConfig
from octonode.engines.contract import Engine
from octonode.identity import Signer
from octonode.ids import PeerId
from octonode.network.host import Stream
from octonode.tasks.receipts import ReceiptStore, TaskLog
from octonode.tasks.residency import ModelStatus
from octonode.tasks.slots import EngineSlots, new_id, wall_clock_ms


class Access(Protocol):
    """Who may send us tasks: `network.access`."""

    def allows(self, peer_id: PeerId, token: str) -> bool: ...

    def known(self, peer_id: PeerId) -> bool:
        """Known peers have larger rates: listed, or they have shown a right token."""
        ...


class Resident(Protocol):
    """Our models: `tasks.residency.Residency`."""

    def engine(self, root: str) -> Engine | None: ...

    def model(self, root: str) -> ModelStatus | None: ...

    async def wait_changed(self, seen: int) -> int: ...

    @property
    def changes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """What our own tasks have shown of a model, for the announcement; 0 before the first task."""

    tokens_per_second: float = 0.0
    first_token_ms: float = 0.0


class Provider:
    """Serves tasks. Constructor without I/O; `run` owns the work, `handle` is the stream handler."""

    def __init__(
        self,
        *,
        signer: Signer,
        settings: TasksConfig,
        resident: Resident,
        slots: EngineSlots,
        access: Access,
        receipts: ReceiptStore,
        tasks: TaskLog,
        now_ms: Callable[[], int] = wall_clock_ms,
        new_id: Callable[[], bytes] = new_id,
    ) -> None:
        raise NotImplementedError

    @property
    def open(self) -> int:
        """Tasks not ended, queued ones among them."""
        raise NotImplementedError

    def measured(self, root: str) -> Measured:
        raise NotImplementedError

    async def handle(self, stream: Stream) -> None:
        """One task from its request to its terminal frame. Raises RemoteProtocolError and StreamReset only."""
        raise NotImplementedError

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until cancelled."""
        raise NotImplementedError

    async def drain(self, deadline_seconds: float) -> bool:
        """Refuse new tasks with LEAVING and wait for the open ones. False when the deadline cut some off."""
        raise NotImplementedError

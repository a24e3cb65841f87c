"""What remains of a task: its record and its receipt, and the ports to where they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from octonode.ids import PeerId, TaskId
from octonode.protocol.messages import TaskState


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task as asker or provider. Prompts and answers are never kept."""

    task: TaskId
    role: Literal["asker", "provider"]
    peer: PeerId
    """The other side; our own id when the local engine answered."""
    model_root: str
    state: TaskState
    code: str = ""
    """Why it failed or was rejected: a code of `errors.TABLE`."""
    started_at_ms: int = 0
    ended_at_ms: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    receipt: bool = False
    first_token_seconds: float | None = None
    """From the request to the first piece, for metrics; not kept."""


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """A receipt with what is needed to check it again."""

    task: TaskId
    role: Literal["asker", "provider"]
    provider: PeerId
    asker: PeerId
    model_root: str
    receipt: bytes
    """dag-cbor bytes as signed."""
    request_header: bytes
    """The signed header that the receipt's request hash is about."""
    verified: bool
    """What the asker found when it compared with what it had received; True at the provider, who made it."""
    ended_at_ms: int


class ReceiptStore(Protocol):
    """Where receipts are kept, at most `tasks.receipts_max`; the oldest go first."""

    def keep_receipt(self, receipt: StoredReceipt) -> None:
        """Written soon, in a group with others. Never blocks and never raises: a full disk is logged and shown."""
        ...

    async def receipt(self, task: TaskId) -> StoredReceipt | None:
        """The asker's copy where both were kept."""
        ...

    async def receipts(self, *, limit: int = 100) -> Sequence[StoredReceipt]:
        """The latest first."""
        ...


class TaskLog(Protocol):
    """Where tasks are listed from, bounded like the receipts."""

    def keep_task(self, record: TaskRecord) -> None:
        """Written soon; the same task and role again replaces it. Never blocks and never raises."""
        ...

    async def tasks(self, *, limit: int = 100) -> Sequence[TaskRecord]:
        """The latest first, both roles."""
        ...

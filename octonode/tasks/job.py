"""A job: work of mode `async` that this node keeps until it is done. Plain values, and where they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from octonode.protocol.messages import Privacy, TaskState
from octonode.tasks.task import TERMINAL

PRIORITY_MOST: Final = 9
PRIORITY_DEFAULT: Final = 5
ID_CHARACTERS: Final = 26
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

HookState = Literal["", "pending", "delivered", "failed"]
"""Empty: no webhook, or the job has not ended yet."""


def job_id(now_ms: int, chance: bytes) -> str:
    """26 letters and digits that sort by time, as https://github.com/ulid/spec; `chance` are 10 random bytes."""
    assert len(chance) == 10
    number = (now_ms & ((1 << 48) - 1)) << 80 | int.from_bytes(chance)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def is_job_id(text: str) -> bool:
    return len(text) == ID_CHARACTERS and set(text) <= set(_CROCKFORD)


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What is to be done, and what becomes of it."""

    owner: str
    """Who may see it: the name of a key, empty for callers of this machine without one."""
    model: str
    """As the caller wrote it."""
    model_root: str
    skill: str
    inputs: Mapping[str, Any]
    """As a TASK_REQUEST carries them, and so are the parameters."""
    parameters: Mapping[str, Any]
    priority: int = PRIORITY_DEFAULT
    """0 to 9, the most urgent."""
    peer: str = ""
    privacy: Privacy = "public"
    webhook: str = ""
    ttl_seconds: float = 0.0
    """How long the result is kept after the end; 0: as the settings say."""


@dataclass(frozen=True, slots=True)
class Job:
    """As it is now, without what was asked and answered. States have A2A's names."""

    id: str
    owner: str
    model: str
    model_root: str
    skill: str
    priority: int
    peer: str
    privacy: Privacy
    webhook: str
    ttl_seconds: float
    created_at_ms: int
    state: TaskState = "submitted"
    attempt: int = 0
    """Times that it was begun. What an earlier attempt still says is not heard."""
    failures: int = 0
    """Attempts that failed; those that a stop of this node cut are none."""
    started_at_ms: int = 0
    ended_at_ms: int = 0
    expires_at_ms: int = 0
    """When it is dropped; 0 until it has ended."""
    code: str = ""
    """Of `errors.TABLE`, of a job that failed, or of the last attempt."""
    message: str = ""
    hook_state: HookState = ""
    hook_tries: int = 0
    hook_at_ms: int = 0
    """When the webhook is tried next."""
    input_bytes: int = 0
    result_bytes: int = 0

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    @property
    def stored_bytes(self) -> int:
        return self.input_bytes + self.result_bytes


@dataclass(frozen=True, slots=True)
class JobWork:
    """What was asked, or what came of it, read back: maps of plain values."""

    inputs: Mapping[str, Any]
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobResult:
    """What an attempt has given."""

    result: Mapping[str, Any]
    """Of chat {text, ...}, else the fields of the skill's result, `protocol.work`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Who answered and what proves it: `inference.Outcome.facts`."""


class JobStore(Protocol):
    """On disk for good when a call returns. Raises OctonodeError (DISK_FULL)."""

    async def load(self) -> Sequence[Job]:
        """All jobs, the oldest first. Drops what an interrupted call left behind."""
        ...

    async def add(self, job: Job, work: bytes) -> None: ...

    async def save(self, job: Job, result: bytes | None = None) -> None:
        """Its state; with `result`, what came of it as well."""
        ...

    async def drop(self, *jobs: str) -> None: ...

    async def work(self, job: str) -> bytes:
        """Raises NOT_FOUND."""
        ...

    async def result(self, job: str) -> bytes | None: ...

"""The five messages peers say to each other, as frozen dataclasses. Spec: protocols/agent.md.

`Header` is common to all; `Message` is one of the bodies. Encoding and limits are `codec` and `envelope`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from octonode.ids import MessageId, PeerId, TaskId

Operation = Literal["run", "cancel"]
Privacy = Literal["private", "confidential", "shared", "public"]
Mode = Literal["", "realtime", "batch", "async"]
"""How soon: empty is at once if a slot is free, else in order of arrival."""
TaskState = Literal["submitted", "working", "input_required", "completed", "failed", "canceled", "rejected"]


@dataclass(frozen=True, slots=True)
class ArtifactChunk:
    """A part of an input or output larger than one frame; at most 256 KiB of data, in order from offset 0."""

    artifact: str
    offset_bytes: int
    data: bytes
    last: bool = False


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """Work that is asked for. `input` for skill `chat` is {"messages": [{"role", "content"}, ...]}."""

    operation: Operation = "run"
    skill: str = "chat"
    model: str = ""
    """Root CID of the model."""
    input: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    """For `chat`: max_tokens, temperature, top_p, seed, stop."""
    privacy: Privacy = "public"
    token: str = ""
    """Access token of the provider's join line, where its access is `token`."""
    input_artifact: str = ""
    """Set when `input` follows as artifact chunks: its name. The chunks hold the codec's bytes of the input map."""
    mode: Mode = ""


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """Progress. Deltas may be unsigned; a checkpoint is signed inside."""

    state: TaskState = "working"
    stage: str = ""
    """`queued`, `fetching`, `loading`, `prefill`, `decode`."""
    done: int = 0
    total: int = 0
    """Units of the stage: bytes, tokens; 0 of 0 where unknown."""
    first_piece: int = 0
    """Index of the first of `pieces` in the answer."""
    pieces: tuple[str, ...] = ()
    checkpoint: bytes = b""
    """A signed `transcript.Checkpoint`, dag-cbor, or empty."""
    artifact: ArtifactChunk | None = None


@dataclass(frozen=True, slots=True)
class TaskResponse:
    """The terminal frame of a task that ended as its asker wished: completed, or canceled after a cancel."""

    state: Literal["completed", "canceled"] = "completed"
    finish_reason: str = "stop"
    tokens_in: int = 0
    tokens_out: int = 0
    pieces_total: int = 0
    transcript: bytes = b""
    """The last link of the transcript chain, 32 bytes."""
    receipt: bytes = b""
    """A signed `receipt.Receipt`, dag-cbor bytes as signed."""
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """The terminal frame of a task that failed or was refused."""

    code: str = "INTERNAL"
    message: str = ""
    retry_after_ms: int = 0
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Negotiate:
    """A step of a negotiation. The machine comes with coordination; the message is on the wire from the start."""

    act: Literal["offer", "counter", "accept", "confirm", "reject", "cancel", "expire"] = "offer"
    terms: dict[str, Any] = field(default_factory=dict)
    valid_until_ms: int = 0
    on: bytes = b""
    """Id of the message this act answers."""


Message = TaskRequest | TaskResponse | StatusUpdate | ErrorReport | Negotiate


@dataclass(frozen=True, slots=True)
class Header:
    """What is signed. The signature covers the header bytes as sent; the header holds hash and length of the body."""

    type: str
    """TASK_REQUEST, TASK_RESPONSE, STATUS_UPDATE, ERROR or NEGOTIATE."""
    id: MessageId
    conversation: bytes
    task: TaskId
    sender: PeerId
    recipient: PeerId
    sequence: int
    """Per task and sender, from 0, +1."""
    sent_at_ms: int
    expires_at_ms: int
    body_sha256: bytes
    body_bytes: int
    correlation: bytes = b""
    root: bytes = b""
    hop: int = 0
    hop_max: int = 4
    budget_micro_octo: int = 0
    offer: bytes = b""
    critical: tuple[str, ...] = ()
    extensions: dict[str, Any] = field(default_factory=dict)

"""What one end of an agent stream knows: its state, its request, and the clocks of heartbeat, silence and drain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from octonode.errors import OctonodeError
from octonode.identity import Signer
from octonode.ids import PeerId, TaskId
from octonode.protocol.artifacts import Artifact, ArtifactJoiner
from octonode.protocol.envelope import NO_TASK, Parts
from octonode.protocol.framing import FrameDecoder
from octonode.protocol.limits import DEFAULT_LIMITS, Limits
from octonode.protocol.messages import ErrorReport, Header, Message, TaskRequest, TaskResponse
from octonode.protocol.replay import ReplayWindow
from octonode.protocol.states import OWING, Role, State


@dataclass(frozen=True, slots=True)
class Received:
    """One message that passed every check."""

    header: Header
    message: Message
    header_bytes: bytes
    signature: bytes
    """64 bytes, or none for an unsigned delta."""
    body_bytes: bytes
    payload: bytes
    """The frame as it came, without its length."""
    artifact: Artifact | None = None
    """Set when this message brought the last chunk of an artifact."""
    again: bool = False
    """A request whose same bytes came before: attach to its task instead of running it."""


class StreamEnd:
    """The base of `exchange.Exchange`: everything that is read, nothing that speaks.

    `signer` is this node, `remote` the peer the transport has authenticated, `new_id` gives 16 fresh bytes. A
    provider hands in its `replay` window; an asker has none.
    """

    def __init__(
        self,
        role: Role,
        signer: Signer,
        remote: PeerId,
        limits: Limits = DEFAULT_LIMITS,
        *,
        new_id: Callable[[], bytes],
        replay: ReplayWindow | None = None,
        known_extensions: frozenset[str] = frozenset(),
    ) -> None:
        self.role: Role = role
        self.other: Role = "provider" if role == "asker" else "asker"
        self.remote = remote
        self.limits = limits
        self.state = State.IDLE
        self.gate: Callable[[Header, Message], None] | None = None
        """A provider may set it: sees the request before its signature is checked, and raises an OctonodeError to
        refuse it cheaply (access, rate). The error is raised by `receive`, and may be told by one ErrorReport."""
        self.fault: OctonodeError | None = None
        """Set once the other side broke a rule, or the gate refused it; every later `receive` raises it."""
        self.terminal: TaskResponse | ErrorReport | None = None
        self.task: TaskId = NO_TASK
        """The task of this stream; zeros before the first message."""
        self.request: TaskRequest | None = None
        """As sent. Where its input travels as an artifact, `input` is the whole of it."""
        self.input: dict[str, Any] | None = None
        """The request's input once it is whole, inline or joined."""
        self.request_header: bytes = b""
        """Header bytes of the request as signed; their sha256 is what receipts and transcripts name."""
        self.request_payload: bytes = b""
        """The request's frame as it went over the wire, without its length."""
        self.expires_at_ms = 0
        """The deadline of the task, from the request."""
        self.pieces = 0
        """Pieces of text that went over this stream."""
        self._signer = signer
        self._us = signer.peer_id
        self._new_id = new_id
        self._replay = replay
        self._known_extensions = known_extensions
        self._frames = FrameDecoder(limits.frame_bytes_max)
        self._joiner = ArtifactJoiner(limits)
        self._conversation = b""
        self._request_id = b""
        self._sequence = {"asker": 0, "provider": 0}
        self._sent_at_ms = 0
        self._heard_at_ms = 0
        self._cancel_at_ms = 0

    # What the caller asks of the state.

    @property
    def request_sha256(self) -> bytes:
        """32 bytes: the name of this request in its receipt and its transcript."""
        return sha256(self.request_header).digest()

    @property
    def closed(self) -> bool:
        """True after the terminal frame."""
        return self.state is State.CLOSED

    def next_heartbeat_ms(self, now_ms: int) -> int | None:
        """Milliseconds until a provider owes a frame, 0 when it is due; None when nothing is owed."""
        if self.role != "provider" or self.state not in OWING:
            return None
        return max(0, self._sent_at_ms + self.limits.heartbeat_ms - now_ms)

    def silent(self, now_ms: int) -> bool:
        """True for an asker that has heard no frame for `silence_ms_max`: cancel, reset, next candidate."""
        return self.role == "asker" and self.state in OWING and self.silence_left_ms(now_ms) == 0

    def silence_left_ms(self, now_ms: int) -> int:
        """Milliseconds until this asker counts the provider as lost."""
        return max(0, self._heard_at_ms + self.limits.silence_ms_max - now_ms)

    def drain_left_ms(self, now_ms: int) -> int | None:
        """Milliseconds left for the terminal frame after a cancel, 0 when over (then reset); None without a cancel."""
        if self.state is not State.CANCELING:
            return None
        return max(0, self._cancel_at_ms + self.limits.drain_ms - now_ms)

    # What `exchange` does to it.

    def _sent(self, now_ms: int, following: State) -> None:
        self._sequence[self.role] += 1
        self._sent_at_ms = now_ms
        self._enter(following, now_ms)

    def _enter(self, following: State, now_ms: int) -> None:
        if following is State.CANCELING and self.state is not State.CANCELING:
            self._cancel_at_ms = now_ms
        self.state = following

    def _begin(self, parts: Parts, message: Message, payload: bytes) -> None:
        """Take over what the first message settles for the whole stream."""
        self.task = parts.header.task
        self._conversation = parts.header.conversation
        self._request_id = parts.header.id
        self.expires_at_ms = parts.header.expires_at_ms
        if isinstance(message, TaskRequest):
            self.request = message
            self.request_header = parts.header_bytes
            self.request_payload = payload
            if not message.input_artifact:
                self.input = message.input

"""The machine of one agent stream: what may be said when, by whom, and what came. Spec: protocols/agent.md.

Like h11 it does no I/O: `send` gives bytes to write, `receive` takes bytes that were read, time is an argument. Both
roles run the same table (`states.TABLE`). A fault of the other side is a RemoteProtocolError and final; a fault of
ours is a LocalProtocolError, raised before a byte leaves and without effect.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any, TypedDict, Unpack

from octonode.errors import LocalProtocolError, OctonodeError, RemoteProtocolError
from octonode.protocol import envelope as envelopes
from octonode.protocol import fields
from octonode.protocol.artifacts import Artifact, split
from octonode.protocol.bodies import decode_body
from octonode.protocol.codec import pack, unpack
from octonode.protocol.envelope import NO_TASK
from octonode.protocol.framing import encode_frame
from octonode.protocol.messages import (
    ArtifactChunk,
    ErrorReport,
    Header,
    Message,
    StatusUpdate,
    TaskRequest,
    TaskResponse,
)
from octonode.protocol.replay import Verdict
from octonode.protocol.states import CROSSED, TABLE, Kind, State, kind_of
from octonode.protocol.stream_end import Received, StreamEnd

__all__ = ["Exchange", "Received", "RequestOptions", "report"]


class RequestOptions(TypedDict, total=False):
    """Header fields that the first message of a stream settles; see protocols/agent.md, section "Header"."""

    task: bytes
    """16 fresh bytes where not given."""
    conversation: bytes
    """16 bytes, or empty."""
    expires_at_ms: int
    """The deadline of the task; `request_ttl_ms` from now where not given."""
    root: bytes
    hop: int
    hop_max: int
    budget_micro_octo: int
    offer: bytes
    critical: tuple[str, ...]
    extensions: dict[str, Any]


class Exchange(StreamEnd):
    """One stream, one task, one role. Not reused. Nothing to close. Constructor: `StreamEnd`."""

    # Sending.

    def send(self, message: Message, now_ms: int, **options: Unpack[RequestOptions]) -> bytes:
        """Framed bytes to write. Options are for the first message of a stream alone.

        Raises LocalProtocolError, and then nothing has changed. A request whose input is over
        `input_inline_bytes_max` is followed by it as chunks, in the same bytes.
        """
        following = self._next_state(message)
        if self.state is State.IDLE and self.role == "asker":
            return self._send_first(message, now_ms, following, options)
        if options:
            raise LocalProtocolError(f"{', '.join(options)}: settled by the first message of a stream")
        if isinstance(message, StatusUpdate):
            self._check_own_update(message)
        elif isinstance(message, TaskResponse) and message.pieces_total != self.pieces:
            raise LocalProtocolError(f"pieces_total is {message.pieces_total}, and {self.pieces} pieces were sent")
        return self._send_later(message, now_ms, following)

    def _send_first(self, message: Message, now_ms: int, following: State, options: RequestOptions) -> bytes:
        outline, chunks = self._outline(message)
        header: dict[str, Any] = {"expires_at_ms": now_ms + self.limits.request_ttl_ms, **options}
        header["task"] = options.get("task") or self._new_id()
        sealed = self._seal(outline, now_ms, **header)
        first = encode_frame(sealed.payload, self.limits.frame_bytes_max)
        self._begin(envelopes.parse_envelope(sealed.payload, self.limits), outline, sealed.payload)
        if isinstance(message, TaskRequest):
            self.input = message.input
        self._sent(now_ms, following)
        self._heard_at_ms = now_ms
        rest = [self._send_later(StatusUpdate(artifact=chunk), now_ms, following) for chunk in chunks]
        return b"".join((first, *rest)) if rest else first

    def send_again(self, payload: bytes, now_ms: int) -> bytes:
        """The frame of an earlier exchange's `request_payload`, to get its task back on this fresh stream.

        Raises LocalProtocolError when this stream is not fresh, or the payload is no request of ours with inline input.
        """
        if self.role != "asker" or self.state is not State.IDLE:
            raise LocalProtocolError("only an asker's fresh stream can send a request again")
        try:
            parts = envelopes.parse_envelope(payload, self.limits)
            message = decode_body(parts.header.type, parts.body_bytes, self.limits)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"not a request of ours: {error.message}") from None
        run = isinstance(message, TaskRequest) and message.operation == "run" and not message.input_artifact
        if not run or parts.header.sender != self._us or parts.header.recipient != self.remote:
            raise LocalProtocolError("not a request of ours to this peer with its input inline")
        frame = encode_frame(payload, self.limits.frame_bytes_max)
        self.expires_at_ms = parts.header.expires_at_ms
        self._begin(parts, message, payload)
        self._sent(now_ms, State.OPEN)
        self._heard_at_ms = now_ms
        return frame

    def _next_state(self, message: Message) -> State:
        kind = kind_of(message, self.role)
        following = TABLE.get((self.state, self.role, kind))
        if following is None:
            raise LocalProtocolError(f"{self.role} cannot send {kind} on a stream that is {self.state}")
        return following

    def _check_own_update(self, message: StatusUpdate) -> None:
        if self.role == "asker":
            if message.artifact is None or message.pieces or message.checkpoint:
                raise LocalProtocolError("an asker's STATUS_UPDATE carries a chunk of its input and nothing else")
        elif message.pieces and message.first_piece != self.pieces:
            raise LocalProtocolError(f"first_piece is {message.first_piece}, and {self.pieces} pieces were sent")

    def _outline(self, message: Message) -> tuple[Message, list[ArtifactChunk]]:
        """A request with its large input replaced by the name of an artifact, and that artifact's chunks."""
        if not isinstance(message, TaskRequest) or message.input_artifact:
            return message, []
        packed = pack(message.input)
        if len(packed) <= self.limits.input_inline_bytes_max:
            return message, []
        self._check_input(packed)
        name = sha256(packed).hexdigest()
        return replace(message, input={}, input_artifact=name), list(split(name, packed, self.limits))

    def _check_input(self, packed: bytes) -> None:
        """What we send in chunks must be a value the other side takes. Raises LocalProtocolError."""
        try:
            fields.plain_map({"input": unpack(packed, self.limits)}, "input")
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"input: {error.message}", code="BAD_REQUEST") from None

    def _send_later(self, message: Message, now_ms: int, following: State) -> bytes:
        """Any message but the first."""
        answers = b"" if isinstance(message, StatusUpdate) else self._request_id
        sealed = self._seal(
            message,
            now_ms,
            task=self.task,
            expires_at_ms=now_ms + self.limits.message_ttl_ms,
            conversation=self._conversation,
            correlation=answers,
        )
        frame = encode_frame(sealed.payload, self.limits.frame_bytes_max)
        if isinstance(message, StatusUpdate):
            self.pieces += len(message.pieces)
        elif isinstance(message, (TaskResponse, ErrorReport)):
            self.terminal = message
        self._sent(now_ms, following)
        return frame

    def _seal(self, message: Message, now_ms: int, **header: Any) -> envelopes.Sealed:
        return envelopes.seal(
            self._signer,
            message,
            id=self._new_id(),
            recipient=self.remote,
            sequence=self._sequence[self.role],
            sent_at_ms=now_ms,
            limits=self.limits,
            **header,
        )

    # Receiving.

    def receive(self, data: bytes, now_ms: int) -> list[Received]:
        """Messages completed by `data`, in order; raises RemoteProtocolError for the other side's first fault.

        Messages that stood before a fault in the same bytes are returned, and the fault is raised by the next call
        (`receive(b"", now_ms)` will do), so the way bytes were split changes nothing. After a fault a provider may
        send one ErrorReport; an asker resets the stream.
        """
        if self.fault is not None:
            raise self.fault
        events: list[Received] = []
        try:
            for payload in self._frames.feed(data):
                event = self._take(payload, now_ms)
                if event is not None:
                    events.append(event)
            if self._frames.fault is not None:
                raise self._frames.fault
        except OctonodeError as fault:
            self._break(fault)
            if not events:
                raise
        return events

    def receive_end(self, now_ms: int) -> None:
        """The other side has finished. Nothing happens after the terminal frame, or when nothing was ever asked.

        Else raises RemoteProtocolError: PROVIDER_LOST for an asker; CANCELED for a provider, whose asker is gone.
        """
        if self.state is State.CLOSED:
            return
        if self.fault is not None:
            raise self.fault
        pending = self._frames.pending_bytes
        if self.role == "provider" and self.state is State.IDLE and not pending:
            return
        where = f"in the middle of a frame, after {pending} bytes of it" if pending else "before the terminal frame"
        code = "PROVIDER_LOST" if self.role == "asker" else "CANCELED"
        fault = RemoteProtocolError(f"the {self.other} ended the stream {where}", code=code)
        self._break(fault)
        raise fault

    def _break(self, fault: OctonodeError) -> None:
        self.fault = fault
        if self.state is not State.CLOSED:
            self.state = State.BROKEN

    def _take(self, payload: bytes, now_ms: int) -> Received | None:
        """One frame through every check, the signature last. None for what crossed our terminal frame."""
        parts = envelopes.parse_envelope(payload, self.limits)
        header = parts.header
        if self.role == "provider" and self.state is State.IDLE and header.sender == self.remote:
            self._remember_for_an_answer(header)
        envelopes.check_header(
            header,
            us=self._us,
            remote=self.remote,
            now_ms=now_ms,
            limits=self.limits,
            known_extensions=self._known_extensions,
        )
        message = decode_body(header.type, parts.body_bytes, self.limits)
        kind = kind_of(message, self.other)
        self._check_task(header, kind)
        if header.sequence != self._sequence[self.other]:
            text = f"sequence {header.sequence}; {self._sequence[self.other]} is due from the {self.other}"
            raise RemoteProtocolError(text, code="BAD_SEQUENCE")
        following = self._state_after(kind)
        if self.gate is not None and self.state is State.IDLE:
            self.gate(header, message)
        envelopes.check_signature(parts, message)
        self._sequence[self.other] += 1
        self._heard_at_ms = now_ms
        if self.state is State.CLOSED:
            return None
        return self._accept(parts, message, payload, following, now_ms)

    def _remember_for_an_answer(self, header: Header) -> None:
        """So that even a request that is refused below gets an ERROR that names it."""
        self.task, self._request_id, self._conversation = header.task, header.id, header.conversation

    def _check_task(self, header: Header, kind: Kind) -> None:
        if self.state is State.IDLE and self.role == "provider":
            if header.task == NO_TASK:
                raise RemoteProtocolError("a request must name its task with 16 bytes that are not all zero")
            return
        unread = kind == "error" and header.task == NO_TASK and not header.correlation
        if unread or self.state is State.IDLE:
            return
        if header.task != self.task or header.conversation != self._conversation:
            raise RemoteProtocolError("a frame of another task or conversation", code="TASK_NOT_FOUND")
        if kind in ("completed", "canceled", "error") and header.correlation != self._request_id:
            raise RemoteProtocolError("a terminal frame that answers another request", code="TASK_NOT_FOUND")

    def _state_after(self, kind: Kind) -> State:
        if self.state is State.CLOSED and self.role == "provider" and kind in CROSSED:
            return State.CLOSED
        following = TABLE.get((self.state, self.other, kind))
        if following is None:
            raise RemoteProtocolError(f"{self.other} sent {kind} on a stream that is {self.state}", code="BAD_MESSAGE")
        return following

    def _accept(
        self, parts: envelopes.Parts, message: Message, payload: bytes, following: State, now_ms: int
    ) -> Received:
        again, artifact = False, None
        if self.state is State.IDLE:
            again = self._admit(parts, now_ms)
            self._begin(parts, message, payload)
            self._sent_at_ms = now_ms
        if isinstance(message, StatusUpdate):
            artifact = self._accept_update(message)
        elif isinstance(message, TaskResponse):
            if message.pieces_total != self.pieces:
                text = f"the answer is said to have {message.pieces_total} pieces, and {self.pieces} came"
                raise RemoteProtocolError(text, code="BAD_SEQUENCE")
            self.terminal = message
        elif isinstance(message, ErrorReport):
            self.terminal = message
        self._enter(following, now_ms)
        return Received(
            parts.header, message, parts.header_bytes, parts.signature, parts.body_bytes, payload, artifact, again
        )

    def _admit(self, parts: envelopes.Parts, now_ms: int) -> bool:
        if self._replay is None:
            return False
        return self._replay.admit(parts.header, sha256(parts.header_bytes).digest(), now_ms) is Verdict.AGAIN

    def _accept_update(self, message: StatusUpdate) -> Artifact | None:
        if self.other == "asker":
            return self._accept_input(message)
        if message.pieces:
            if message.first_piece != self.pieces:
                text = f"pieces from {message.first_piece}; {self.pieces} is due"
                raise RemoteProtocolError(text, code="BAD_SEQUENCE")
            self.pieces += len(message.pieces)
        return None if message.artifact is None else self._joiner.add(message.artifact)

    def _accept_input(self, message: StatusUpdate) -> Artifact | None:
        name = self.request.input_artifact if self.request is not None else ""
        chunk = message.artifact
        if chunk is None or not name or chunk.artifact != name or message.pieces or message.checkpoint:
            raise RemoteProtocolError("an asker's STATUS_UPDATE carries a chunk of the input that its request names")
        artifact = self._joiner.add(chunk)
        if artifact is not None:
            if sha256(artifact.data).hexdigest() != name:
                raise RemoteProtocolError("the input does not hash to the name its request gives")
            self.input = fields.plain_map({"input": unpack(artifact.data, self.limits)}, "input")
        return artifact


def report(error: OctonodeError) -> ErrorReport:
    """The terminal frame that tells a peer of `error`."""
    retry_after_ms = 0 if error.retry_after_seconds is None else max(0, int(error.retry_after_seconds * 1000))
    return ErrorReport(error.code, error.message, retry_after_ms)

"""One stream of a session: what it may still do (a table), what it holds, and its two windows. Sans-IO."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Any

from octonode.network.libp2p.muxing.frames import ACK, INITIAL_WINDOW_BYTES, SYN


class State(Enum):
    """Of one stream, seen from this end."""

    OPEN = auto()
    FINISHED = auto()
    """We have sent our FIN; reading goes on."""
    PEER_FINISHED = auto()
    """The peer has sent its FIN; writing goes on."""
    CLOSED = auto()
    """Both have. What was received can still be read."""
    RESET = auto()
    """Cut by one of the two ends; what was received is dropped."""
    LOST = auto()
    """The connection is gone. What was received before can still be read."""


class Step(Enum):
    """What moves a stream."""

    SENT_FIN = auto()
    GOT_FIN = auto()
    RST = auto()
    """Either way."""
    LOSS = auto()


_CUT = {Step.RST: State.RESET, Step.LOSS: State.LOST}
TRANSITIONS: dict[State, dict[Step, State]] = {
    State.OPEN: {Step.SENT_FIN: State.FINISHED, Step.GOT_FIN: State.PEER_FINISHED, **_CUT},
    State.FINISHED: {Step.GOT_FIN: State.CLOSED, **_CUT},
    # Who has the whole of what the peer said, its end included, is not told that it was cut.
    State.PEER_FINISHED: {Step.SENT_FIN: State.CLOSED, Step.RST: State.RESET, Step.LOSS: State.CLOSED},
    State.CLOSED: {Step.RST: State.RESET},
    State.RESET: {},
    State.LOST: {Step.RST: State.RESET},
}
"""A step that a state does not list changes nothing: a second FIN, a RST for what is over."""

RECEIVING = frozenset({State.OPEN, State.FINISHED})
"""The peer may send data."""
SENDING = frozenset({State.OPEN, State.PEER_FINISHED})
"""We may send data."""


class YamuxStream:
    """A row of the session's table. The session alone changes it; who reads it finds plain figures in bytes."""

    __slots__ = (
        "awaits_ack", "consumed", "credited_at", "finishing", "flags_due", "head", "id", "opened_at", "owner",
        "pending", "pending_bytes", "queued", "receive_window", "received", "send_window", "state", "window",
    )  # fmt: skip

    def __init__(self, stream_id: int, flags_due: int, now: float) -> None:
        self.id = stream_id
        self.state = State.OPEN
        self.flags_due = flags_due
        """SYN or ACK, until it has gone with our first frame."""
        self.awaits_ack = bool(flags_due & SYN)
        self.opened_at = now
        self.owner: Any = None
        """Who reads and writes it, to be woken; the session does not look at it."""

        self.received = bytearray()
        self.receive_window = INITIAL_WINDOW_BYTES
        """What the peer may still send."""
        self.window = INITIAL_WINDOW_BYTES
        """What the peer may have sent and our reader not yet taken; grows."""
        self.consumed = 0
        """Taken by our reader and not yet credited to the peer."""
        self.credited_at = now

        self.pending: deque[bytes] = deque()
        self.head = 0
        """Bytes of `pending[0]` that have gone."""
        self.pending_bytes = 0
        self.send_window = INITIAL_WINDOW_BYTES
        self.finishing = False
        """FIN goes when nothing is pending any more."""
        self.queued = False
        """It stands in the ring of streams that have something to send."""

    def move(self, step: Step) -> bool:
        """Whether the step changed anything."""
        target = TRANSITIONS[self.state].get(step)
        if target is None:
            return False
        self.state = target
        return True

    @property
    def is_inbound_and_silent(self) -> bool:
        """The peer opened it and waits for our ACK."""
        return bool(self.flags_due & ACK)

    @property
    def may_send(self) -> bool:
        return self.state in SENDING and not self.finishing

    @property
    def sendable(self) -> bool:
        """Something would go if it were its turn."""
        if self.pending_bytes:
            return self.send_window > 0
        return self.finishing and self.state in SENDING

    def drop_pending(self) -> None:
        self.pending.clear()
        self.pending_bytes = self.head = 0

    def take_pending(self, size_max: int, into: list[bytes | memoryview]) -> None:
        """Move exactly `size_max` pending bytes to `into`, without copying them."""
        self.pending_bytes -= size_max
        pending, head, left = self.pending, self.head, size_max
        while left:
            first = pending[0]
            size = len(first) - head
            if size <= left:
                into.append(memoryview(first)[head:] if head else first)
                pending.popleft()
                head = 0
                left -= size
            else:
                into.append(memoryview(first)[head : head + left])
                head += left
                left = 0
        self.head = head

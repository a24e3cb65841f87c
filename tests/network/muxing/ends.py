"""Two ends of a muxed connection, joined by a wire that the test holds in its hands; and frames written out."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from octonode.network.libp2p.muxing.session import Changed, Event, Opened, Session
from octonode.network.libp2p.muxing.streams import State, YamuxStream
from octonode.network.libp2p.muxing.windows import Limits

DATA, UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
INITIAL = 256 * 1024
START = 1000.0
LONG = 1000.0
"""Seconds in which no window counts as held back."""


class Frame(NamedTuple):
    """As it stands on the wire; `body` is that of DATA."""

    kind: int
    flags: int
    stream_id: int
    length: int
    body: bytes = b""

    @property
    def wire(self) -> bytes:
        return struct.pack("!BBHII", 0, self.kind, self.flags, self.stream_id, self.length) + self.body


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return Frame(DATA, flags, stream_id, len(body), body).wire


def update(stream_id: int, credit: int = 0, flags: int = 0) -> bytes:
    return Frame(UPDATE, flags, stream_id, credit).wire


def frames_of(wire: bytes) -> list[Frame]:
    """Fails for anything but whole frames."""
    frames, at = [], 0
    while at < len(wire):
        version, kind, flags, stream_id, length = struct.unpack_from("!BBHII", wire, at)
        assert version == 0
        size = length if kind == DATA else 0
        body = wire[at + 12 : at + 12 + size]
        assert len(body) == size
        frames.append(Frame(kind, flags, stream_id, length, body))
        at += 12 + size
    return frames


def drain(session: Session, size_max: int = 65_519) -> bytes:
    """All that an end has to say."""
    parts = []
    while message := session.outbox.next_message(size_max):
        assert len(message) <= size_max
        parts.append(message)
    return b"".join(parts)


def opened(events: list[Event]) -> list[YamuxStream]:
    return [event.stream for event in events if isinstance(event, Opened)]


def woken(events: list[Event], stream: YamuxStream) -> int:
    """What those who wait on a stream may go on with: READ, WRITE."""
    found = 0
    for event in events:
        if isinstance(event, Changed) and event.stream is stream:
            found |= event.what
    return found


class Ends:
    """The initiator opens odd streams, the responder even ones."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.initiator = Session(is_initiator=True, limits=self.limits)
        self.responder = Session(is_initiator=False, limits=self.limits)
        self.now = START

    def other(self, end: Session) -> Session:
        return self.responder if end is self.initiator else self.initiator

    def carry(self, sender: Session) -> list[Event]:
        """Move all that an end has to say to the other; what that one makes of it."""
        return self.other(sender).receive(drain(sender), self.now)

    def settle(self) -> list[Event]:
        """Until both have nothing more to say."""
        events: list[Event] = []
        while not (self.initiator.outbox.is_empty and self.responder.outbox.is_empty):
            events += self.carry(self.initiator)
            events += self.carry(self.responder)
        return events

    def pair(self) -> tuple[YamuxStream, YamuxStream]:
        """A stream that the initiator opened and the responder has acknowledged: the row at each end."""
        mine = self.initiator.open(self.now)
        self.initiator.outbox.announce(mine)
        (theirs,) = opened(self.carry(self.initiator))
        self.responder.outbox.credit(theirs, 0)
        self.carry(self.responder)
        assert not mine.awaits_ack
        return mine, theirs

    def in_state(self, state: State, unread: bytes = b"unread") -> tuple[YamuxStream, YamuxStream]:
        """A pair whose initiator's row is in a state, with bytes that nobody has read where the state can have any."""
        mine, theirs = self.pair()
        if state is not State.RESET:
            self.responder.send(theirs, unread)
        if state in (State.FINISHED, State.CLOSED):
            self.initiator.finish(mine)
        if state in (State.PEER_FINISHED, State.CLOSED):
            self.responder.finish(theirs)
        self.settle()
        if state is State.RESET:
            self.initiator.reset(mine)
        self.settle()
        if state is State.LOST:
            self.initiator.lose()
        assert mine.state is state
        return mine, theirs


def held(session: Session) -> int:
    """Bytes in the buffers of all streams, counted anew."""
    return sum(len(stream.received) for stream in session.streams.values())


def sizes(total: int, step: int) -> Iterator[tuple[int, int]]:
    """Slices of so many bytes."""
    for start in range(0, total, step):
        yield start, min(start + step, total)

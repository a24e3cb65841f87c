"""A Yamux session without I/O: bytes in, events out; what is to be sent waits in `outbox`.

    session = Session(is_initiator=True)
    stream = session.open(now)
    session.send(stream, b"hello")
    wire = session.outbox.next_message()        # until outbox.is_empty
    for event in session.receive(answer, now):  # raises MuxerError: the session is over
        ...
    data = session.take(stream, 65536, now)     # whoever reads gives credit by it

**What bounds memory.** Received bytes that nobody has read stay below `received_bytes_max` over all streams, whatever
windows are open: above it the stream that holds most is reset, since a reader that stopped must not stop the others.
Bytes to send are the writers' own, who wait above `pending_bytes_max` a stream.

**What is not here**: sockets, tasks, waiting, clocks. `now` is seconds of any monotonic clock.
"""

from __future__ import annotations

from typing import NamedTuple

from octonode.errors import Refused, Unreachable
from octonode.network.libp2p.muxing import frames
from octonode.network.libp2p.muxing.frames import (  # fmt: skip
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    HEADER_BYTES,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    MuxerError,
)
from octonode.network.libp2p.muxing.outbox import Outbox
from octonode.network.libp2p.muxing.streams import RECEIVING, State, Step, YamuxStream
from octonode.network.libp2p.muxing.windows import ACK_CREDIT_BYTES, Limits, WindowBudget, is_held_back

ACK_SECONDS = 1.0
"""A stream of the peer on which we have sent nothing for so long is acknowledged by itself: peers open no more than 256
streams that are not, and the first yamux (hashicorp's) ends the whole connection after 75 s."""
STREAM_ID_MAX = 2**32 - 1
READ, WRITE = 1, 2


class Opened(NamedTuple):
    """The peer opened a stream."""

    stream: YamuxStream


class Changed(NamedTuple):
    """Whoever waits on this stream may go on: to read (bytes, an end), to write (credit, an end), or both."""

    stream: YamuxStream
    what: int


class Pong(NamedTuple):
    value: int


class WentAway(NamedTuple):
    """The peer takes no new streams. Those that are open go on to their end."""

    code: int


Event = Opened | Changed | Pong | WentAway


class Session:
    """One end of a connection. `round_trip_seconds` is set from outside; 0 while unknown."""

    def __init__(self, *, is_initiator: bool, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.streams: dict[int, YamuxStream] = {}
        self.received_bytes = 0
        """Received and not yet read, of all streams."""
        self.unacknowledged = 0
        """Streams of ours that the peer has not acknowledged."""
        self.went_away: int | None = None
        self.round_trip_seconds = 0.0
        self._leaving = False
        self._lost = False
        self._next_id = 1 if is_initiator else 2
        self._peer_parity = 0 if is_initiator else 1
        self._silent: dict[int, YamuxStream] = {}
        self._budget = WindowBudget(self.limits.received_bytes_max)
        self.outbox = Outbox(
            control_bytes_max=self.limits.control_bytes_max,
            pending_bytes_max=self.limits.pending_bytes_max,
            acknowledge=self._acknowledge,
            finished=self._forget_if_over,
        )
        self._partial = b""
        """A header that is not whole yet."""
        self._body_left = 0
        self._body_flags = 0
        self._body_stream: YamuxStream | None = None
        self._news: list[Event] = []
        self._changed: dict[YamuxStream, int] = {}

    # What we do.

    @property
    def may_open(self) -> bool:
        return self.went_away is None and not self._leaving and not self._lost and self._next_id <= STREAM_ID_MAX

    def open(self, now: float) -> YamuxStream:
        """A new stream; its SYN goes with the first frame. Raises Unreachable when the session takes no more, and
        Refused (OVERLOADED) at `streams_max`.
        """
        if not self.may_open:
            raise Unreachable("this connection opens no more streams")
        if len(self.streams) >= self.limits.streams_max:
            raise Refused(f"{self.limits.streams_max} streams are open on this connection")
        stream = YamuxStream(self._next_id, SYN, now)
        self._next_id += 2
        self.streams[stream.id] = stream
        self.unacknowledged += 1
        return stream

    def send(self, stream: YamuxStream, data: bytes) -> None:
        """Queue all of `data`. The caller keeps to `pending_bytes_max`, and to `stream.may_send`."""
        assert stream.may_send
        if data:
            stream.pending.append(data)
            stream.pending_bytes += len(data)
            if stream.send_window > 0:
                self.outbox.enqueue(stream)

    def take(self, stream: YamuxStream, size_max: int, now: float) -> bytes:
        """At most so many of the bytes received, and credit for them to the peer; empty when there are none."""
        buffer = stream.received
        if len(buffer) <= size_max:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:size_max])
            del buffer[:size_max]
        self.received_bytes -= len(data)
        if stream.state in RECEIVING:
            stream.consumed += len(data)
            if 2 * stream.consumed >= stream.window:
                self._credit(stream, now)
        else:
            self._forget_if_over(stream)
        return data

    def finish(self, stream: YamuxStream) -> None:
        """FIN after all that is pending."""
        if stream.may_send:
            stream.finishing = True
            if stream.sendable:
                self.outbox.enqueue(stream)

    def reset(self, stream: YamuxStream) -> None:
        """RST at once; what was received or is pending is dropped. For a stream that is over it changes nothing."""
        peer_has_it = stream.state not in (State.CLOSED, State.LOST) and not stream.flags_due & SYN
        if stream.move(Step.RST) and peer_has_it:
            self.outbox.control(WINDOW_UPDATE, RST, stream.id, 0)
        self._drop(stream)

    def ping(self, value: int) -> None:
        self.outbox.control(PING, SYN, 0, value)

    def go_away(self, code: int) -> None:
        """Take and open no more streams. Those that are open go on."""
        if not self._leaving:
            self._leaving = True
            self.outbox.control(GO_AWAY, 0, 0, code)

    def acknowledge_silent(self, now: float) -> None:
        """Acknowledge streams of the peer that have waited for their ACK; to be called each second or so."""
        while self._silent:
            stream = next(iter(self._silent.values()))
            if now - stream.opened_at < ACK_SECONDS:
                return
            self.outbox.credit(stream, 0)

    def lose(self) -> list[Event]:
        """The connection is gone: every stream ends, and everybody is told."""
        self._lost = True
        for stream in tuple(self.streams.values()):
            stream.move(Step.LOSS)
            stream.drop_pending()
            self._changed[stream] = READ | WRITE
        self.streams.clear()
        self._silent.clear()
        self._body_stream = None
        return self._take_news()

    # What the peer says.

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take in what came from the peer. Raises MuxerError, after which the session is of no more use."""
        if self._lost:
            return []
        if self._partial:
            data, self._partial = self._partial + data, b""
        view, at, end = memoryview(data), 0, len(data)
        while at < end:
            if self._body_left:
                size = min(self._body_left, end - at)
                self._take_body(view[at : at + size])
                at += size
                continue
            if end - at < HEADER_BYTES:
                self._partial = bytes(view[at:])
                break
            version, kind, flags, stream_id, length = HEADER.unpack_from(data, at)
            at += HEADER_BYTES
            if kind == DATA and not version and stream_id:
                self._take_data_header(stream_id, flags, length, now)
            else:
                frames.check(version, kind, stream_id)
                self._take_control(kind, flags, stream_id, length, now)
        return self._take_news()

    def _take_news(self) -> list[Event]:
        news, changed = self._news, self._changed
        if changed:
            news += [Changed(stream, what) for stream, what in changed.items()]
            self._changed = {}
        self._news = []
        return news

    def _take_data_header(self, stream_id: int, flags: int, length: int, now: float) -> None:
        stream = self._stream_of(stream_id, flags, now)
        if stream is None:
            # Reset a moment ago, and the peer did not know yet: it is still bounded by the window it had.
            if length > self.limits.window_bytes_max:
                raise MuxerError(f"a yamux frame of {length} bytes for a stream that is not open")
        elif length > stream.receive_window:
            raise MuxerError(f"stream {stream_id}: {length} bytes for a window of {stream.receive_window}")
        else:
            stream.receive_window -= length
        if length:
            self._body_stream, self._body_left, self._body_flags = stream, length, flags
        elif stream is not None and flags & (FIN | RST):
            self._end(stream, flags)

    def _take_body(self, piece: memoryview) -> None:
        stream = self._body_stream
        self._body_left -= len(piece)
        if stream is not None:
            if stream.state in RECEIVING:
                stream.received += piece
                self.received_bytes += len(piece)
                self._changed[stream] = self._changed.get(stream, 0) | READ
                if self.received_bytes > self.limits.received_bytes_max:
                    self._reset_fullest()
            else:
                self._reset_and_tell(stream)  # data after its FIN
            if not self._body_left and self._body_flags & (FIN | RST):
                self._end(stream, self._body_flags)

    def _take_control(self, kind: int, flags: int, stream_id: int, value: int, now: float) -> None:
        if kind == WINDOW_UPDATE:
            stream = self._stream_of(stream_id, flags, now)
            if stream is None:
                return
            if value:
                was_shut = stream.send_window <= 0
                stream.send_window = min(stream.send_window + value, frames.WINDOW_LIMIT)
                if was_shut and stream.pending_bytes:
                    self.outbox.enqueue(stream)
            if flags & (FIN | RST):
                self._end(stream, flags)
        elif kind == PING:
            if flags & SYN:
                self.outbox.answer(PING, ACK, 0, value)
            else:
                self._news.append(Pong(value))
        elif self.went_away is None:
            self.went_away = value
            self._news.append(WentAway(value))

    def _stream_of(self, stream_id: int, flags: int, now: float) -> YamuxStream | None:
        """The stream of a frame, opened by it if it carries SYN; None for one that is over, or refused."""
        stream = self.streams.get(stream_id)
        if flags & SYN:
            if stream is not None or stream_id & 1 != self._peer_parity:
                raise MuxerError(f"stream {stream_id} is opened by the peer and is not the peer's to open")
            return self._accept(stream_id, now)
        if stream is not None and flags & ACK and stream.awaits_ack:
            stream.awaits_ack = False
            self.unacknowledged -= 1
        return stream

    def _accept(self, stream_id: int, now: float) -> YamuxStream | None:
        if self._leaving or len(self.streams) >= self.limits.streams_max:
            self.outbox.answer(WINDOW_UPDATE, RST, stream_id, 0)
            return None
        self.outbox.check_room()  # it will cost an ACK or a RST, whoever says it
        stream = YamuxStream(stream_id, ACK, now)
        self.streams[stream_id] = self._silent[stream_id] = stream
        self._news.append(Opened(stream))
        return stream

    def _acknowledge(self, stream: YamuxStream) -> int:
        """Our ACK goes now: the credit that goes with it."""
        self._silent.pop(stream.id, None)
        credit = self._budget.grow(stream, ACK_CREDIT_BYTES, self.limits.window_bytes_max)
        stream.receive_window += credit
        return credit

    def _credit(self, stream: YamuxStream, now: float) -> None:
        size, stream.consumed = stream.consumed, 0
        if is_held_back(stream, now, self.round_trip_seconds):
            size += self._budget.grow(stream, stream.window, self.limits.window_bytes_max)
        stream.credited_at = now
        stream.receive_window += size
        self.outbox.credit(stream, size)

    # How streams end.

    def _end(self, stream: YamuxStream, flags: int) -> None:
        if flags & RST:
            if stream.move(Step.RST):
                self._changed[stream] = READ | WRITE
            self._drop(stream)
        elif stream.move(Step.GOT_FIN):
            self._changed[stream] = self._changed.get(stream, 0) | READ
            self._forget_if_over(stream)

    def _reset_fullest(self) -> None:
        self._reset_and_tell(max(self.streams.values(), key=lambda each: len(each.received)))

    def _reset_and_tell(self, stream: YamuxStream) -> None:
        self.reset(stream)
        self._changed[stream] = READ | WRITE

    def _forget_if_over(self, stream: YamuxStream) -> None:
        if stream.state is State.CLOSED and not stream.received:
            self._forget(stream)

    def _drop(self, stream: YamuxStream) -> None:
        """Nothing of this stream is wanted any more."""
        if not self._lost:
            self.received_bytes -= len(stream.received)
        stream.received.clear()
        stream.drop_pending()
        stream.flags_due = 0
        self.outbox.withdraw(stream)
        self._forget(stream)

    def _forget(self, stream: YamuxStream) -> None:
        if self.streams.get(stream.id) is not stream:
            return  # done before; the peer may have opened another of the same number since
        del self.streams[stream.id]
        self._silent.pop(stream.id, None)
        self._budget.give_back(stream)
        if stream.awaits_ack:
            stream.awaits_ack = False
            self.unacknowledged -= 1

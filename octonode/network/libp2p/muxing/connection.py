"""A connection: one task that reads, one that writes, one that watches the time, round a session without I/O.

**Who writes.** Frames wait in the session's outbox. Whoever puts one there also sends it, if the writer sleeps and the
kernel takes it at once: an answer then costs no pass of the scheduler. After `SENDS_PER_PASS` of these the writer is
woken instead, so that what many tasks write in one pass leaves in one message.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.abc import IMuxedConn
from libp2p.io.exceptions import IOException
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable

from octonode.network.libp2p.containment import contained
from octonode.network.libp2p.muxing.frames import NORMAL, PROTOCOL_ERROR, MuxerError
from octonode.network.libp2p.muxing.muxed import MuxedStream
from octonode.network.libp2p.muxing.session import WRITE, Changed, Event, Opened, Pong, Session
from octonode.network.libp2p.muxing.streams import YamuxStream
from octonode.network.libp2p.muxing.windows import Limits
from octonode.network.libp2p.noise import NoiseChannel

log = logging.getLogger(__name__)

SENDS_PER_PASS = 2
BATCH_BYTES = 256 * 1024
"""What the writer hands to the kernel in one call, at most; a frame that comes meanwhile waits for no more."""
TICK_SECONDS = 1.0
WRITE_SECONDS = 20.0
"""A peer that takes no byte for so long is gone; the connection is closed."""
FLUSH_SECONDS = 1.0
"""How long a close waits for what is queued, a last frame or the GO_AWAY."""
CLOSE_SECONDS = 0.5
TELL_SECONDS = 2.0
PING_VALUES = 2**32
FIRST_PING_SECONDS = 10.0

Serve = Callable[[MuxedStream], Awaitable[None]]
"""What becomes of a stream that the peer opened. It gives the stream to `offer`, or serves it itself."""


class MuxedConnection(IMuxedConn):  # type: ignore[misc]
    """What the library asks of a muxer, over a `NoiseChannel`. `start` runs until the connection ends.

    Without `serve` every stream of the peer goes to `accept_stream`.
    """

    def __init__(
        self, channel: NoiseChannel, peer_id: Any, *, limits: Limits | None = None, serve: Serve | None = None
    ) -> None:
        self.secured_conn = channel
        self.peer_id = peer_id
        self.session = Session(is_initiator=channel.is_initiator, limits=limits)
        self.limits = self.session.limits
        self.negotiated_muxer_protocol: str | None = None
        self.proven: set[str] = set()
        """Protocols that the peer has agreed to on this connection."""
        self.on_close: Callable[[], Awaitable[None]] | None = None
        """Set by the library."""
        self.event_started, self.event_closed, self.event_shutting_down = trio.Event(), trio.Event(), trio.Event()
        self._serve = serve or self._offer_at_once
        self._unaccepted = 0
        self._offers, self._accepts = trio.open_memory_channel[MuxedStream](self.limits.unaccepted_max)
        self._news = trio.lowlevel.ParkingLot()
        self._acknowledged = trio.lowlevel.ParkingLot()
        self._flushed = trio.lowlevel.ParkingLot()
        self._writing = False
        self._sends_left = SENDS_PER_PASS
        self._pings: dict[int, tuple[float, trio.Event]] = {}
        self._ping_value = 0
        self._handlers: trio.Nursery | None = None

    # What the library asks.

    @property
    def is_initiator(self) -> bool:
        return bool(self.secured_conn.is_initiator)

    @property
    def is_closed(self) -> bool:
        return self.event_closed.is_set()

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self.event_shutting_down.is_set()

    @property
    def may_open(self) -> bool:
        return self.session.may_open and not self.event_shutting_down.is_set()

    @property
    def has_ack_backlog(self) -> bool:
        """To open a stream waits for the peer."""
        return self.session.unacknowledged >= self.limits.ack_backlog_max

    @property
    def streams_open(self) -> int:
        return len(self.session.streams)

    def get_transport_addresses(self) -> Any:
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> Any:
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> Any:
        return self.secured_conn.get_remote_address()

    async def open_stream(self) -> MuxedStream:
        """Waits while `ack_backlog_max` streams of ours are not acknowledged. Raises Unreachable or Refused."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.has_ack_backlog and self.may_open:
            await self._acknowledged.park()
        return self._added(self.session.open(trio.current_time()))

    async def accept_stream(self) -> MuxedStream:
        """The next stream that was offered. Raises MuxedConnUnavailable once the connection is over."""
        try:
            return await self._accepts.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable("the connection is closed") from None

    def offer(self, stream: MuxedStream) -> None:
        """Hand a stream of the peer to `accept_stream`; above `unaccepted_max` that wait there it is reset."""
        try:
            self._offers.send_nowait(stream)
        except (trio.WouldBlock, trio.ClosedResourceError):
            self.reset(stream.row)

    async def _offer_at_once(self, stream: MuxedStream) -> None:
        self.offer(stream)
        await trio.lowlevel.checkpoint()

    async def ping(self, timeout_seconds: float) -> bool:
        """Whether the peer answers in time. Its round trip guides how windows grow."""
        self._ping_value = value = (self._ping_value + 1) % PING_VALUES
        answered = trio.Event()
        self._pings[value] = (trio.current_time(), answered)
        try:
            self.session.ping(value)
            self._flush()
            with trio.move_on_after(timeout_seconds):
                await answered.wait()
            return answered.is_set()
        finally:
            self._pings.pop(value, None)

    async def start(self) -> None:
        """Serve the connection to its end, which no exception tells of: every stream is cut, and `on_close` called.

        Handlers of streams are not cancelled by that; they see their streams cut, and this waits for them.
        """
        if self.event_started.is_set():
            return
        async with trio.open_nursery() as handlers:
            self._handlers = handlers
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch)
                    nursery.start_soon(self.ping, FIRST_PING_SECONDS)
                    self.event_started.set()
                    await self._read()
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await self._end()

    async def close(self, code: int = NORMAL) -> None:
        """Say GO_AWAY, flush for a moment, close. Idempotent, and safe before `start`."""
        if self.event_shutting_down.is_set():
            await self.event_closed.wait()
            return
        await self._go_away(code)
        await self._end()

    async def _go_away(self, code: int) -> None:
        with trio.move_on_after(FLUSH_SECONDS):
            await self._all_sent()  # py-libp2p reads nothing after a GO_AWAY
            self.session.go_away(code)
            await self._all_sent()

    async def _all_sent(self) -> None:
        self._flush()
        while self._writing and not self.event_shutting_down.is_set():
            await self._flushed.park()

    async def _end(self) -> None:
        if self.event_shutting_down.is_set():
            return
        self.event_shutting_down.set()
        self._dispatch(self.session.lose())
        self._offers.close()
        self._acknowledged.unpark_all()
        self._flushed.unpark_all()
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await contained("closing a socket", self.secured_conn.close, level=logging.DEBUG)
        self.event_closed.set()
        if self.on_close is not None:
            # Shielded: one of our own tasks may be here, and the end of the reader cancels it.
            with trio.move_on_after(TELL_SECONDS, shield=True):
                await self.on_close()

    # What its streams ask. None of it waits.

    def take(self, row: YamuxStream, size_max: int) -> bytes:
        data = self.session.take(row, size_max, trio.current_time())
        if self.session.outbox.has_control:  # credit; what `send_soon` left waits for more
            self._flush()
        return data

    def send(self, row: YamuxStream, data: bytes) -> None:
        self.session.send(row, data)
        self._flush()

    def send_soon(self, row: YamuxStream, data: bytes) -> None:
        """The same, by the writer or with what is sent next: it wakes once the running task waits for something."""
        self.session.send(row, data)
        self._news.unpark()

    def announce(self, row: YamuxStream) -> None:
        self.session.outbox.announce(row)
        self._flush()

    def finish(self, row: YamuxStream) -> None:
        self.session.finish(row)
        self._flush()

    def reset(self, row: YamuxStream) -> None:
        self.session.reset(row)
        self._wake_openers()
        self._flush()

    def _added(self, row: YamuxStream) -> MuxedStream:
        stream = row.owner = MuxedStream(self, row)
        return stream

    # Sending.

    @property
    def _is_flushed(self) -> bool:
        return self.session.outbox.is_empty and not self.secured_conn.has_tail

    def _flush(self) -> None:
        """Send what waits: at once where that is cheap, else by the writer."""
        if self._writing or self.session.outbox.is_empty:
            return
        if self._sends_left > 0:
            self._sends_left -= 1
            try:
                self.secured_conn.send_now(self._next_message())
                if self._is_flushed:
                    return
            except (OSError, IOException) as error:
                log.debug("a send failed: %r", error)  # the reader sees it as well, and ends the connection
                return
        self._writing = True
        self._news.unpark()

    def _next_message(self) -> bytes:
        outbox = self.session.outbox
        message = outbox.next_message()
        if outbox.relieved:
            for row in outbox.relieved:
                row.owner.wake(WRITE)
            outbox.relieved = []
        return message

    async def _write(self) -> None:
        try:
            while True:
                if self._is_flushed:
                    self._writing = False
                    self._sends_left = SENDS_PER_PASS
                    self._flushed.unpark_all()
                    await self._news.park()
                    continue
                self._writing = True
                batch, size = [], 0
                while size < BATCH_BYTES and (message := self._next_message()):
                    batch.append(message)
                    size += len(message)
                await self.secured_conn.flush(*batch)
        except (OSError, IOException, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("the writer of a connection ended: %r", error)
            await self._end()

    async def _watch(self) -> None:
        """Acknowledge streams whose handlers are silent; close a connection whose peer takes nothing, or has said
        GO_AWAY and needs it no more."""
        taken_bytes, since = -1, 0.0
        while True:
            await trio.sleep(TICK_SECONDS)
            now = trio.current_time()
            self.session.acknowledge_silent(now)
            self._flush()
            if not self._writing or self.secured_conn.sent_bytes != taken_bytes:
                taken_bytes, since = self.secured_conn.sent_bytes, now
            elif now - since > WRITE_SECONDS:
                log.info("a peer takes nothing; its connection is closed")
                await self._end()
            if self.session.went_away is not None and not (self.session.streams or self._writing):
                await self.close()

    # Receiving.

    async def _read(self) -> None:
        session, channel = self.session, self.secured_conn
        try:
            while True:
                messages = await channel.receive()
                if not messages:
                    return
                now = trio.current_time()
                self._sends_left = SENDS_PER_PASS
                for message in messages:
                    self._dispatch(session.receive(message, now))
                if session.went_away:
                    raise MuxerError(f"it goes away for an error, of number {session.went_away}")
                self._wake_openers()
                self._flush()
        except MuxerError as fault:
            log.info("the connection to a peer is closed: %s", fault.message)
            await self._go_away(PROTOCOL_ERROR)
        except (OSError, IOException, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("a connection was lost: %r", error)

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Changed):
                if event.stream.owner is not None:
                    event.stream.owner.wake(event.what)
            elif isinstance(event, Opened):
                self._welcome(event.stream)
            elif isinstance(event, Pong):
                sent_at, answered = self._pings.get(event.value, (0.0, None))
                if answered is not None:
                    self.session.round_trip_seconds = trio.current_time() - sent_at
                    answered.set()

    def _welcome(self, row: YamuxStream) -> None:
        if self._unaccepted >= self.limits.unaccepted_max or self._handlers is None:
            self.session.reset(row)
            return
        self._unaccepted += 1
        self._handlers.start_soon(self._serve_one, self._added(row))

    async def _serve_one(self, stream: MuxedStream) -> None:
        try:
            if not await contained("an inbound stream", self._serve, stream, level=logging.DEBUG):
                self.reset(stream.row)
        finally:
            self.accepted(stream)

    def accepted(self, stream: MuxedStream) -> None:
        """A stream of the peer has chosen its protocol, or is over. Once more changes nothing."""
        if not stream.is_accepted:
            stream.is_accepted = True
            self._unaccepted -= 1

    def _wake_openers(self) -> None:
        if self._acknowledged and not (self.has_ack_backlog and self.may_open):
            self._acknowledged.unpark_all()

"""What a node says to all its peers, over one standing stream each, on /cipherocto/fanout/1.0.0. Nobody answers.

A stream stands from the first thing to say until its connection ends: a message then costs one frame, where a hello
costs a stream and an answer. What must be answered goes by hello. Spec: protocols/fanout.md.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import trio

from octonode.config import NetworkConfig
from octonode.errors import OctonodeError, RemoteProtocolError, Unreachable
from octonode.ids import FANOUT_PROTOCOL, PeerId
from octonode.network.clock import NowMs
from octonode.network.fanout_messages import FanoutLimits, Said, decode_said, encode_said
from octonode.network.host import Host, ProtocolNotSupported, Stream, StreamReset
from octonode.network.rates import Rates
from octonode.protocol.framing import FrameDecoder, encode_frame

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 1.0
"""How soon it is seen that a peer has gone, or that there are too many for standing streams."""
RESET_SECONDS = 2.0

Take = Callable[[bytes, PeerId], object]
"""(data, who said it): takes a message of a topic, quickly; raises RemoteProtocolError for one that is a fault."""


@dataclass(slots=True)
class _Message:
    frame: bytes
    last: bool
    done: trio.Event = field(default_factory=trio.Event)
    fault: OctonodeError | None = None

    def end(self, fault: OctonodeError | None = None) -> None:
        self.fault = fault
        self.done.set()


@dataclass(slots=True)
class _Line:
    """What there is to say to one peer, and the stream that it goes over."""

    peer_id: PeerId
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    waiting: dict[str, _Message] = field(default_factory=dict)
    """By topic: of each the latest alone."""
    written: list[_Message] = field(default_factory=list)
    """On its way, or written and to be known as read."""
    more: trio.Event = field(default_factory=trio.Event)
    stands: bool = False
    closing: bool = False
    """No more goes over this stream."""
    heard_end: trio.Event = field(default_factory=trio.Event)
    """The peer has ended its side."""
    broken: bool = False
    """The peer reset the stream, or answered."""

    def say(self, topic: str, message: _Message) -> None:
        if (older := self.waiting.pop(topic, None)) is not None:
            older.end()
        self.waiting[topic] = message
        self.more.set()

    def close(self) -> None:
        """Once what waits is said."""
        self.closing = True
        self.more.set()

    def fail(self, fault: OctonodeError) -> None:
        for message in (*self.written, *self.waiting.values()):
            message.end(fault)
        self.written.clear()
        self.waiting.clear()


class Fanout:
    """A service: constructor without I/O, then `run`. Listens from its construction on, and speaks while it runs."""

    def __init__(
        self, *, host: Host, settings: NetworkConfig, now_ms: NowMs, limits: FanoutLimits | None = None
    ) -> None:
        self._host = host
        self._now_ms = now_ms
        self.limits = limits or FanoutLimits()
        self._crowd = settings.connections_max * self.limits.crowded_share
        self._takes: dict[str, Take] = {}
        self._rates = Rates(self.limits.frames_per_second, self.limits.frames_burst)
        self._inbound: dict[PeerId, Stream] = {}
        self._lines: dict[PeerId, _Line] = {}
        self._without: set[PeerId] = set()
        """Connected peers that do not speak this."""
        self._broken: set[PeerId] = set()
        """Connected peers that broke our stream off, and have not been told anything since."""
        self._nursery: trio.Nursery | None = None
        self.counts: Counter[str] = Counter()
        """Streams that we reset, by the code of the fault; faults of what was said are counted where it is taken."""
        host.handle(FANOUT_PROTOCOL, self.handle)

    def hear(self, topic: str, take: Take) -> None:
        """What is said on `topic` goes to `take`. A topic that nobody hears is skipped."""
        self._takes[topic] = take

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Speak until cancelled; `started` at once."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await self._look()
                    await trio.sleep(LOOK_EVERY_SECONDS)
            finally:
                self._nursery = None

    async def _look(self) -> None:
        """Forget peers that are gone, and let no stream stand where connections are scarce. Streams end with theirs."""
        connected = self._host.connected
        self._without &= connected
        self._broken &= connected
        if len(connected) > self._crowd:
            for line in self._lines.values():
                line.close()
            for stream in tuple(self._inbound.values()):
                await stream.finish()

    # Speaking.

    def stands(self, peer_id: PeerId) -> bool:
        """A stream to this peer is open: to say something costs a frame."""
        line = self._lines.get(peer_id)
        return line is not None and line.stands and not line.closing

    async def tell(self, peer_id: PeerId, topic: str, data: bytes, *, last: bool = False) -> None:
        """Say it to a connected peer. Returns when the stream has taken it, or a newer message of the topic its place.

        `last`: the stream is ended behind it, and we return when the peer has read it all. Cancelled, it is said
        nevertheless. Raises LocalProtocolError (TOO_LARGE), Unreachable (also DEADLINE), ProtocolNotSupported, and
        StreamReset when the peer broke our stream off, be it now or since the last message: nobody knows what it has
        taken, so say it by hello; the next message opens a stream again.
        """
        message = _Message(encode_frame(encode_said(Said(topic, data)), self.limits.frame_bytes_max), last)
        self._line_to(peer_id).say(topic, message)
        await message.done.wait()
        if message.fault is not None:
            raise message.fault

    def _line_to(self, peer_id: PeerId) -> _Line:
        if peer_id in self._without:
            raise ProtocolNotSupported(f"{peer_id} does not speak {FANOUT_PROTOCOL}")
        if peer_id in self._broken:
            self._broken.discard(peer_id)
            raise StreamReset(f"{peer_id} broke the fan-out stream off")
        line = self._lines.get(peer_id)
        if line is not None:
            assert len(line.waiting) <= self.limits.topics_waiting_max, "topics are few, and our own"
            return line
        if self._nursery is None or peer_id not in self._host.connected:
            raise Unreachable(f"there is no connection to {peer_id}")
        line = self._lines[peer_id] = _Line(peer_id)
        self._nursery.start_soon(self._speak, line)
        return line

    async def _speak(self, line: _Line) -> None:
        """Over one stream after the other while there is something to say. What was not said fails."""
        fault: OctonodeError = Unreachable(f"the connection to {line.peer_id} is gone")
        try:
            with line.scope:
                while line.waiting:
                    await self._speak_over_one(line)
        except ProtocolNotSupported as error:
            self._without.add(line.peer_id)
            fault = error
        except OctonodeError as error:
            log.debug("fan-out to %s: %s: %s", line.peer_id, error.code, error.message)
            fault = error
        finally:
            del self._lines[line.peer_id]
            if line.broken:
                self._broken.add(line.peer_id)
                fault = StreamReset(f"{line.peer_id} broke the fan-out stream off")
            line.fail(fault)

    async def _speak_over_one(self, line: _Line) -> None:
        assert self._nursery is not None
        line.closing, line.heard_end = False, trio.Event()
        stream = await self._open(line.peer_id)
        try:
            # The first words go with the proposal of the protocol: nothing is read before.
            await self._write(line, stream)
            self._nursery.start_soon(self._watch, line, stream)
            line.stands = True
            while not line.closing:
                line.more = trio.Event()
                await line.more.wait()
                await self._write(line, stream)
            await self._end(line, stream)
        except StreamReset:
            line.broken = True
            raise
        finally:
            line.stands = False
            with trio.move_on_after(RESET_SECONDS, shield=True):
                await stream.reset()

    async def _open(self, peer_id: PeerId) -> Stream:
        with trio.move_on_after(self.limits.send_timeout_seconds):
            return await self._host.open(peer_id, FANOUT_PROTOCOL)
        message = f"{peer_id} opened no stream within {self.limits.send_timeout_seconds:g} s"
        raise Unreachable(message, code="DEADLINE")

    async def _write(self, line: _Line, stream: Stream) -> None:
        while line.waiting:
            message = line.waiting.pop(next(iter(line.waiting)))
            line.written.append(message)
            with trio.move_on_after(self.limits.send_timeout_seconds) as deadline:
                await stream.send(message.frame)
            if deadline.cancelled_caught:
                self._too_slow(line.peer_id, "did not read")
            if message.last:
                line.closing = True
                return
            line.written.pop()
            message.end()

    async def _end(self, line: _Line, stream: Stream) -> None:
        """Finish, and wait for the peer to finish: then it has read all we said."""
        await stream.finish()
        with trio.move_on_after(self.limits.send_timeout_seconds) as deadline:
            await line.heard_end.wait()
        if deadline.cancelled_caught:
            self._too_slow(line.peer_id, "did not end the stream")
        for message in line.written:
            message.end()
        line.written.clear()

    def _too_slow(self, peer_id: PeerId, what: str) -> NoReturn:
        raise Unreachable(f"{peer_id} {what} within {self.limits.send_timeout_seconds:g} s", code="DEADLINE")

    async def _watch(self, line: _Line, stream: Stream) -> None:
        """The peer says nothing on our stream; it ends its side, or breaks off."""
        try:
            if not await stream.receive():
                line.heard_end.set()
                line.close()
                return
            log.debug("%s answers on a fan-out stream", line.peer_id)
        except StreamReset:
            pass
        if not line.stands:
            return  # it is we who have let go
        line.broken = True
        line.scope.cancel()

    # Listening.

    async def handle(self, stream: Stream) -> None:
        """One stream of a peer, to its end. A fault costs this stream, and nothing else."""
        try:
            await self._listen_in_place(stream)
        except OctonodeError as fault:
            if not isinstance(fault, StreamReset):
                log.debug("the fan-out stream of %s is reset: %s: %s", stream.peer_id, fault.code, fault.message)
            await stream.reset()

    async def _listen_in_place(self, stream: Stream) -> None:
        """In the place of an earlier stream of the peer, which is reset."""
        peer_id = stream.peer_id
        self._admit(peer_id)
        older, self._inbound[peer_id] = self._inbound.get(peer_id), stream
        try:
            if older is not None:
                await older.reset()
            await self._listen(stream)
        finally:
            if self._inbound.get(peer_id) is stream:
                del self._inbound[peer_id]

    def _admit(self, peer_id: PeerId) -> None:
        """A frame, or a new stream. Raises RemoteProtocolError (RATE_LIMITED)."""
        if self._rates.take(peer_id, self._now_ms()):
            self.counts["RATE_LIMITED"] += 1
            raise RemoteProtocolError("too much is said over fan-out", code="RATE_LIMITED")

    async def _listen(self, stream: Stream) -> None:
        """Until the peer ends its side; then ours is ended too, for that says that all was read."""
        decoder = FrameDecoder(self.limits.frame_bytes_max)
        while data := await stream.receive():
            for payload in self._decoded(decoder, data):
                self._admit(stream.peer_id)
                self._take(payload, stream.peer_id)
        if decoder.fault is not None:
            raise decoder.fault
        if decoder.pending_bytes:
            raise StreamReset("the stream ended in the middle of a frame")

    def _decoded(self, decoder: FrameDecoder, data: bytes) -> list[bytes]:
        try:
            return decoder.feed(data)
        except RemoteProtocolError as fault:
            self.counts[fault.code] += 1
            raise

    def _take(self, payload: bytes, peer_id: PeerId) -> None:
        try:
            said = decode_said(payload)
        except RemoteProtocolError as fault:
            self.counts[fault.code] += 1
            raise
        take = self._takes.get(said.topic)
        if take is not None:
            take(said.data, peer_id)

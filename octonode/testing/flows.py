"""Byte streams of the in-memory network: bounded, with back-pressure, half close, reset, and silence.

What one end sees of the other passes through `Link.flowing`: while a link is silent nothing arrives, no byte, no end
and no reset, exactly as when a cable is pulled. What was sent waits, up to the window, and arrives when it heals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from octonode.ids import PeerId
from octonode.network.host import StreamReset


class Link(Protocol):
    """What a stream must know of the connection it runs on."""

    @property
    def flowing(self) -> bool: ...

    @property
    def latency_seconds(self) -> float: ...


class Flow:
    """One direction of a stream: at most `window_bytes` on the way, then the writer waits."""

    def __init__(self, link: Link, window_bytes: int) -> None:
        self._link = link
        self._window_bytes = window_bytes
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._on_the_way_bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()
        self.ended = False
        self.cut = False

    def wake(self) -> None:
        self._waiting.unpark_all()

    def end(self) -> None:
        self.ended = True
        self.wake()

    def break_off(self) -> None:
        self.cut = True
        self._chunks.clear()
        self.wake()

    async def put(self, data: bytes, stopped: Callable[[], bool]) -> None:
        """Hand `data` over, waiting for room. Raises StreamReset."""
        rest = memoryview(data)
        await trio.lowlevel.checkpoint()
        while True:
            if stopped() or (self.cut and self._link.flowing):
                raise StreamReset("the stream was reset while it was written to")
            room = self._window_bytes - self._on_the_way_bytes
            if rest and room > 0:
                piece = bytes(rest[:room])
                rest = rest[len(piece) :]
                self._on_the_way_bytes += len(piece)
                self._chunks.append((trio.current_time() + self._link.latency_seconds, piece))
                self.wake()
            if not rest:
                return
            await self._waiting.park()

    async def take(self, max_bytes: int, stopped: Callable[[], bool]) -> bytes:
        """At least one byte, or b"" at the end. Raises StreamReset."""
        await trio.lowlevel.checkpoint()
        while True:
            if stopped():
                raise StreamReset("the stream was reset by us")
            if self._link.flowing:
                if self.cut:
                    raise StreamReset("the stream was reset by the peer")
                if self._chunks:
                    wait_seconds = self._chunks[0][0] - trio.current_time()
                    if wait_seconds <= 0:
                        return self._pop(max_bytes)
                    await trio.sleep(wait_seconds)
                    continue
                if self.ended:
                    return b""
            await self._waiting.park()

    def _pop(self, max_bytes: int) -> bytes:
        ready_at, chunk = self._chunks.popleft()
        taken = chunk[:max_bytes]
        if len(chunk) > max_bytes:
            self._chunks.appendleft((ready_at, chunk[max_bytes:]))
        self._on_the_way_bytes -= len(taken)
        self.wake()
        return taken


class MemoryStream:
    """One end of a stream; see `octonode.network.host.Stream`."""

    def __init__(
        self, peer_id: PeerId, protocol: str, *, outgoing: Flow, incoming: Flow, on_done: Callable[[], None]
    ) -> None:
        self._peer_id = peer_id
        self._protocol = protocol
        self._outgoing = outgoing
        self._incoming = incoming
        self._on_done = on_done
        self._done = False
        self._reset_by_us = False
        self._read_to_end = False

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    async def send(self, data: bytes) -> None:
        assert not self._outgoing.ended or self._reset_by_us, "send after finish"
        try:
            await self._outgoing.put(data, self._stopped)
        except StreamReset:
            self._close()
            raise

    async def receive(self, max_bytes: int = 65536) -> bytes:
        assert max_bytes > 0
        try:
            data = await self._incoming.take(max_bytes, self._stopped)
        except StreamReset:
            self._close()
            raise
        if not data:
            self._read_to_end = True
            self._close_when_both_ended()
        return data

    async def finish(self) -> None:
        self._outgoing.end()
        self._close_when_both_ended()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self.cut()
        await trio.lowlevel.checkpoint()

    def cut(self) -> None:
        """Reset without a checkpoint."""
        if self._done:
            return
        self._reset_by_us = True
        self._outgoing.break_off()
        self._incoming.break_off()
        self._close()

    def _stopped(self) -> bool:
        return self._reset_by_us

    def _close_when_both_ended(self) -> None:
        if self._read_to_end and self._outgoing.ended:
            self._close()

    def _close(self) -> None:
        if not self._done:
            self._done = True
            self._on_done()

"""A `Stream` on a stream of the library.

Four things are hidden here. The library raises `StreamEOF` at the end, and raises the same for a stream that the
peer reset or whose connection was lost: the muxer's own flags tell them apart. A write that meets a closed window
for five seconds fails and leaves the peer in the dark: we reset. A read that is cancelled loses
what it had taken: ours waits first and then takes, shielded. And a stream whose both directions have ended stays
in the connection's books until it is taken out.

**Always drain.** A peer that writes to us is cut off by its own library after five seconds in which we read nothing.
Whoever holds a stream reads it to its end, into a queue of his own, or resets it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from libp2p.network.stream.exceptions import StreamEOF

from octonode.ids import PeerId
from octonode.network.host import StreamReset

RESET_SECONDS = 2.0
SLICE_BYTES = 256 * 1024


class Libp2pStream:
    """See `octonode.network.host.Stream`. `on_done` is called once, when both directions have ended."""

    def __init__(self, net_stream: Any, peer_id: PeerId, protocol: str, on_done: Callable[[], None]) -> None:
        self._net = net_stream
        self._muxed = net_stream.muxed_stream
        self._peer_id = peer_id
        self._protocol = protocol
        self._on_done = on_done
        self._done = False
        self._finished = False
        self._read_to_end = False

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    async def send(self, data: bytes) -> None:
        """A send that is cancelled leaves the stream in the middle of `data`: reset it."""
        assert not self._finished or self._done, "send after finish"
        if self._done:
            await trio.lowlevel.checkpoint()
            raise StreamReset("the stream was reset")
        if not data:
            await trio.lowlevel.checkpoint()
        try:
            for start in range(0, len(data), SLICE_BYTES):
                await self._net.write(data[start : start + SLICE_BYTES])
        except Exception as error:
            await self.reset()
            raise StreamReset("the stream was cut while it was written to") from error

    async def receive(self, max_bytes: int = 65536) -> bytes:
        assert max_bytes > 0
        if self._read_to_end or self._done:
            await trio.lowlevel.checkpoint()
            return self._at_end()
        await self._readable()
        if self._done:
            raise StreamReset("the stream was reset by us")
        try:
            # The library takes bytes out of its buffer and then awaits: cancelled there, they would be lost.
            with trio.CancelScope(shield=True):
                data = await self._net.read(max_bytes)
        except StreamEOF:
            return await self._after_eof()
        except Exception as error:
            await self.reset()
            raise StreamReset("the stream was cut while it was read") from error
        return bytes(data) if data else await self._after_eof()

    async def finish(self) -> None:
        if self._finished or self._done:
            await trio.lowlevel.checkpoint()
            return
        self._finished = True
        try:
            with trio.CancelScope(shield=True):  # a FIN is queued, never waited for
                await self._net.close_write()
        except Exception:
            await self.reset()
            return
        if self._read_to_end:
            await self._close()

    async def reset(self) -> None:
        if self._done:
            await trio.lowlevel.checkpoint()
            return
        self._mark_done()
        waiting = self._muxed.conn.stream_events.get(self._muxed.stream_id)
        if waiting is not None:
            waiting.set()  # the library forgets a reader who waits for a stream that we reset
        with trio.move_on_after(RESET_SECONDS, shield=True):
            try:
                await self._net.reset()
            except Exception:
                return  # the connection is gone, and the stream with it

    async def _readable(self) -> None:
        """Until a read would not wait: bytes, an end, a reset (ours too), or no connection. May be cancelled."""
        muxed, conn, stream_id = self._muxed, self._muxed.conn, self._muxed.stream_id
        while not (self._done or muxed.recv_closed or muxed.closed or muxed.reset_received):
            event = conn.stream_events.get(stream_id)
            if event is None or conn.stream_buffers.get(stream_id) or conn.event_shutting_down.is_set():
                return
            await event.wait()
            if conn.stream_events.get(stream_id) is event and not conn.stream_buffers.get(stream_id):
                conn.stream_events[stream_id] = trio.Event()

    async def _after_eof(self) -> bytes:
        if self._muxed.reset_received or self._muxed.conn.event_shutting_down.is_set():
            await self.reset()
            raise StreamReset("the stream was reset by the peer, or its connection was lost")
        self._read_to_end = True
        if self._finished:
            await self._close()
        return b""

    def _at_end(self) -> bytes:
        if self._read_to_end:
            return b""
        raise StreamReset("the stream was reset")

    async def _close(self) -> None:
        self._mark_done()
        with trio.move_on_after(RESET_SECONDS, shield=True):
            try:
                await self._net.remove()
            except Exception:
                return

    def _mark_done(self) -> None:
        if not self._done:
            self._done = True
            self._on_done()

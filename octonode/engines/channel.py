"""Frames over one end of a socketpair, on trio. The same class serves the daemon and the worker."""

from __future__ import annotations

import socket

import trio

from octonode.engines.frame_codec import FrameDecoder, encode
from octonode.engines.frames import Frame, PiecesFrame

RECEIVE_BYTES = 256 * 1024


class FrameChannel:
    """Sends without waiting, receives whole reads at once.

    What is sent between two turns of the loop leaves in one write, pieces of one request in one frame: so a token costs
    no task and rarely a system call of its own. A producer without an end of its own awaits `room` between batches,
    which bounds what is held here. The owner runs `run_writer` beside, and closes the channel.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._decoder = FrameDecoder()
        self._outgoing: list[bytes | PiecesFrame] = []
        self._wake = trio.lowlevel.ParkingLot()
        self._idle = trio.lowlevel.ParkingLot()
        self._unsent_bytes = 0
        self._closed = False

    def send(self, frame: Frame) -> None:
        """Queues a frame. Raises FrameError when it cannot be written. After `close` it is dropped."""
        if self._closed:
            return
        self._outgoing.append(encode(frame))
        self._wake.unpark()

    def send_pieces(self, request_id: int, pieces: tuple[str, ...]) -> None:
        """Queues pieces, joined with those of the same request that have not left yet."""
        last = self._outgoing[-1] if self._outgoing else None
        if isinstance(last, PiecesFrame) and last.id == request_id:
            self._outgoing[-1] = PiecesFrame(request_id, last.pieces + pieces)
            return
        self._outgoing.append(PiecesFrame(request_id, pieces))
        self._wake.unpark()

    async def room(self) -> None:
        """Lets the loop turn, and waits while the other end does not read."""
        await trio.lowlevel.checkpoint()
        while self._unsent_bytes:
            await self._idle.park()

    async def flush(self) -> None:
        """Returns when everything queued has left this process."""
        while self._unsent_bytes or self._outgoing:
            await self._idle.park()

    async def run_writer(self) -> None:
        """Writes what is queued until cancelled. Raises OSError when the other end is gone."""
        while True:
            while not self._outgoing:
                self._idle.unpark_all()
                await self._wake.park()
            parts = self._outgoing
            self._outgoing = []
            data = b"".join(part if isinstance(part, bytes) else encode(part) for part in parts)
            await self._write(memoryview(data))

    async def _write(self, data: memoryview) -> None:
        self._unsent_bytes = len(data)
        while data:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
                continue
            data = data[sent:]
            self._unsent_bytes = len(data)

    async def receive(self) -> list[Frame] | None:
        """The frames of one read, perhaps none; None at the end of the stream. Raises FrameError."""
        if self._closed:
            return None
        await trio.lowlevel.wait_readable(self._socket)
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError:  # reset: the other end died with bytes of ours unread
            return None
        return self._decoder.feed(data) if data else None

    def close(self) -> None:
        """Ends the line for both ends. Tasks that wait on it get trio.ClosedResourceError."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

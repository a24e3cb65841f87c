"""Whole writes: what goes to a connection goes whole, or the connection ends.

The library writes a Noise message from the task that wrote to a stream. When a deadline of that task fires between
encrypting and sending, the message is lost or cut, the nonces part ways, and every stream of the connection dies.
Here frames are handed to one task a connection, which alone writes and is never cancelled in the middle. Frames that
wait together leave in one Noise message.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

WAITING_BYTES_MAX = 256 * 1024
"""Per connection; a writer beyond it waits, which is the back-pressure of the TCP connection."""
CONTROL_FRAME_BYTES = 12
"""Window updates, pings, resets: they may go up to twice that bound."""
BATCH_BYTES_MAX = 60 * 1024
"""Fits one Noise message of 65,519 bytes; a single larger frame is cut by the library."""
WRITE_SECONDS = 20.0
"""A peer that takes no byte for so long is gone; the connection is closed."""
FLUSH_SECONDS = 1.0
"""How long a close waits for what is queued, a last frame or a GO_AWAY."""


class WholeWrites:
    """Replaces `write` and `close` of one secured connection."""

    def __init__(self, secured: Any, spawn: Callable[[Callable[[], Any]], None]) -> None:
        self._write = secured.write
        self._close = secured.close
        self._spawn = spawn
        self._frames: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._broken: Exception | None = None
        self._closing = False
        self._running = False
        self._news = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        secured.write = self.write
        secured.close = self.close

    async def write(self, data: bytes) -> None:
        """Hand over a frame. May be cancelled: the frame is then either not taken at all, or will go whole."""
        # The task that reads the connection writes control frames; waiting with it would stop both ends for good.
        bound = WAITING_BYTES_MAX if len(data) > CONTROL_FRAME_BYTES else 2 * WAITING_BYTES_MAX
        while self._waiting_bytes >= bound and self._broken is None and not self._closing:
            await self._room.park()
        if self._broken is not None or self._closing:
            await trio.lowlevel.checkpoint()
            raise _closed(self._broken)
        self._frames.append(bytes(data))
        self._waiting_bytes += len(data)
        if not self._running:
            self._running = True
            self._spawn(self._run)
        self._news.unpark()

    async def close(self) -> None:
        """Flush for a moment, then close the socket. Idempotent."""
        with trio.move_on_after(FLUSH_SECONDS):
            while self._frames and self._broken is None and not self._closing:
                await self._room.park()
        self._closing = True
        self._wake()
        await self._close()

    async def _run(self) -> None:
        try:
            while not self._closing:
                if not self._frames:
                    await self._news.park()
                    continue
                batch, count = self._batch()
                with trio.fail_after(WRITE_SECONDS):
                    await self._write(batch)
                for _ in range(count):
                    self._waiting_bytes -= len(self._frames.popleft())
                self._room.unpark_all()
        except Exception as error:
            self._broken = error
        finally:
            self._closing = True
            self._wake()
            with trio.move_on_after(FLUSH_SECONDS, shield=True):
                await self._close()

    def _batch(self) -> tuple[bytes, int]:
        """As many frames from the front as fit one message, at least one."""
        size = count = 0
        for frame in self._frames:
            if count and size + len(frame) > BATCH_BYTES_MAX:
                break
            size += len(frame)
            count += 1
        if count == 1:
            return self._frames[0], 1
        return b"".join(itertools.islice(self._frames, count)), count

    def _wake(self) -> None:
        self._news.unpark_all()
        self._room.unpark_all()


def _closed(cause: Exception | None) -> Exception:
    from libp2p.io.exceptions import ConnectionClosedError

    error = ConnectionClosedError("the connection is closed", transport="tcp")
    error.__cause__ = cause
    return error  # type: ignore[no-any-return]

"""Frames over a Stream, each with a deadline: what every small request and answer between peers runs on."""

from __future__ import annotations

from collections import deque

import trio

from octonode.errors import Unreachable
from octonode.ids import PeerId
from octonode.network.host import Stream, StreamReset
from octonode.protocol.framing import FrameDecoder, encode_frame


class FrameStream:
    """A stream that carries frames of at most `max_frame_bytes`. The caller ends it: `finish`, `reset` on a fault."""

    def __init__(self, stream: Stream, max_frame_bytes: int) -> None:
        self.stream = stream
        self._max = max_frame_bytes
        self._decoder = FrameDecoder(max_frame_bytes)
        self._frames: deque[bytes] = deque()

    @property
    def peer_id(self) -> PeerId:
        return self.stream.peer_id

    async def send_frame(self, payload: bytes, timeout_seconds: float) -> None:
        """Raises StreamReset, LocalProtocolError (TOO_LARGE), Unreachable (DEADLINE) when the peer does not read."""
        frame = encode_frame(payload, self._max)
        with trio.move_on_after(timeout_seconds) as scope:
            await self.stream.send(frame)
        if scope.cancelled_caught:
            raise Unreachable(f"{self.peer_id} did not read within {timeout_seconds:g} s", code="DEADLINE")

    async def receive_frame(self, timeout_seconds: float) -> bytes:
        """The next payload. Raises RemoteProtocolError, StreamReset (an end before a whole frame is one, too),
        Unreachable (DEADLINE) when no whole frame came in time, however many bytes of it did.
        """
        with trio.move_on_after(timeout_seconds) as scope:
            while not self._frames:
                data = await self.stream.receive()
                if not data:
                    raise StreamReset(f"{self.peer_id} ended the stream before its answer was whole")
                self._frames.extend(self._decoder.feed(data))
        if scope.cancelled_caught:
            raise Unreachable(f"{self.peer_id} was silent for {timeout_seconds:g} s", code="DEADLINE")
        return self._frames.popleft()

    async def end(self, timeout_seconds: float = 1.0) -> None:
        """We have all we wanted: finish, and read to the peer's end, for only then the stream gives its slot back.

        A peer that does not end within the time, or goes on sending, has the stream reset. Raises nothing.
        """
        with trio.move_on_after(timeout_seconds):
            try:
                await self.stream.finish()
                if not self._frames and not self._decoder.pending_bytes and not await self.stream.receive():
                    return
            except Unreachable:  # a reset by the peer is an end too
                return
        await self.stream.reset()

    async def finish(self) -> None:
        await self.stream.finish()

    async def reset(self) -> None:
        await self.stream.reset()

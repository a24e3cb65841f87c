"""Messages over one stream: read to its end whatever comes, written with a deadline."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from octonode.errors import RemoteProtocolError, Unreachable
from octonode.ipfs.bitswap_limits import BitswapLimits
from octonode.ipfs.bitswap_messages import Message, MessageReader, decode, frame
from octonode.network.host import Stream, StreamReset

READ_BYTES: Final = 1024 * 1024
SLICE_BYTES: Final = 128 * 1024
"""Handed to a stream in one go, without a copy: what the peer takes shows in steps of this size."""
END_SECONDS: Final = 1.0


class Paced(Protocol):
    """A limit of bytes per second, which others may share."""

    async def take(self, size_bytes: int) -> None: ...


async def read_messages(
    stream: Stream,
    reader: MessageReader,
    limits: BitswapLimits,
    take: Callable[[Message], Awaitable[None]],
    moved: Callable[[int], None],
) -> None:
    """Hand every message to `take`, and the count of all bytes to `moved`, until the peer finishes.

    Raises StreamReset (also for an end in the middle of a message), RemoteProtocolError; DEADLINE for a message that
    is not whole in time. Between two messages the peer may be silent for as long as it likes.
    """
    deadline = math.inf
    while True:
        if reader.in_message:
            with trio.move_on_at(deadline) as scope:
                data = await stream.receive(READ_BYTES)
            if scope.cancelled_caught:
                raise RemoteProtocolError(f"a message of {stream.peer_id} did not become whole", code="DEADLINE")
        else:
            data = await stream.receive(READ_BYTES)
        if not data:
            if reader.in_message:
                raise StreamReset(f"{stream.peer_id} ended the stream in the middle of a message")
            return
        moved(len(data))
        was_in = reader.pending_bytes
        bodies = reader.feed(data)
        for body in bodies:
            await take(decode(body))
        if reader.in_message and (bodies or not was_in):
            allowed = limits.message_seconds + reader.pending_bytes / limits.bytes_per_second_min
            deadline = trio.current_time() + allowed


async def send_message(
    stream: Stream,
    message: Message,
    limits: BitswapLimits,
    *,
    pace: Paced | None = None,
    moved: Callable[[], None] = lambda: None,
) -> None:
    """`moved` is called as the peer takes more of it; what `pace` takes is not held against the peer.

    Raises StreamReset; Unreachable (DEADLINE) when the peer does not take it in time. Reset the stream then.
    """
    pieces = frame(message)
    seconds = limits.send_timeout_seconds + sum(map(len, pieces)) / limits.bytes_per_second_min
    deadline = trio.current_time() + seconds
    with trio.move_on_at(deadline) as scope:
        for piece in pieces:
            for start in range(0, len(piece), SLICE_BYTES):
                part = memoryview(piece)[start : start + SLICE_BYTES]
                if pace is not None:
                    begun = trio.current_time()
                    scope.deadline = math.inf
                    await pace.take(len(part))
                    scope.deadline = deadline = deadline + trio.current_time() - begun
                    moved()
                await stream.send(part)  # type: ignore[arg-type]  # any buffer will do, and none is copied
                moved()
    if scope.cancelled_caught:
        raise Unreachable(f"{stream.peer_id} does not read what it asked for", code="DEADLINE")


async def end(stream: Stream, was_read: trio.Event) -> None:
    """We have no more to say: finish, and wait a moment for the peer to do the same, which frees the stream's slot.

    `was_read` is set by whoever reads the stream, at its end.
    """
    await stream.finish()
    with trio.move_on_after(END_SECONDS):
        await was_read.wait()
        return
    await stream.reset()

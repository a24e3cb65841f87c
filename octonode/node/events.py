"""What happens on this node, for `octonode start --json`, the API and a person who watches: a bounded broadcast.

No part of the node listens here to decide anything: it is a view, never a bus.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

SUBSCRIBERS_MAX = 64
BUFFER_EVENTS_MAX = 256
"""A reader that falls this far behind loses the oldest events."""

Emit = Callable[..., None]


class Events:
    """`emit` never blocks and never fails."""

    def __init__(self) -> None:
        self._subscribers: set[
            tuple[trio.MemorySendChannel[Mapping[str, Any]], trio.MemoryReceiveChannel[Mapping[str, Any]]]
        ] = set()

    def emit(self, event: str, **fields: Any) -> None:
        line = {"event": event, "at_ms": int(time.time() * 1000), **fields}
        for send, receive in self._subscribers:
            try:
                send.send_nowait(line)
            except trio.WouldBlock:
                receive.receive_nowait()
                send.send_nowait(line)
            except trio.BrokenResourceError:
                continue  # its reader is leaving

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Mapping[str, Any]]]:
        """Events from now on, until the block is left."""
        pair = trio.open_memory_channel[Mapping[str, Any]](BUFFER_EVENTS_MAX)
        if len(self._subscribers) >= SUBSCRIBERS_MAX:
            from octonode.errors import Refused

            raise Refused(f"{SUBSCRIBERS_MAX} readers watch this node's events already")
        # the second receiver stays ours: it makes room when the reader lags
        mine = (pair[0], pair[1].clone())
        self._subscribers.add(mine)
        try:
            async with pair[1] as reader:
                yield reader
        finally:
            self._subscribers.discard(mine)
            mine[0].close()
            mine[1].close()

    def close(self) -> None:
        """End every reader's iteration."""
        for send, _ in self._subscribers:
            send.close()

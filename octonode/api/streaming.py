"""Answers that take their time: a body in pieces, kept alive through silence, cancelled with its client."""

from __future__ import annotations

import trio
from starlette.types import Receive, Send

SSE = b"text/event-stream; charset=utf-8"
NDJSON = b"application/x-ndjson"

PING_SECONDS = 15.0
"""A stream that says nothing for so long sends its ping, so that proxies and clients see it live."""


class EventStream:
    """A streamed answer. Its head goes out with the first write: until then it may still become an error status."""

    def __init__(self, send: Send, media_type: bytes, ping: bytes) -> None:
        self._send = send
        self._media_type = media_type
        self._ping = ping
        self._writing = False
        self._ending = False
        self._written_at = trio.current_time()
        self._head_sent = trio.Event()
        self.started = False

    async def write(self, data: bytes) -> None:
        """One write to the socket. Once `end` has been called nothing more is said."""
        if self._ending:
            return
        await self._write(data, more=True)

    async def end(self, data: bytes = b"") -> None:
        """The last words. Writes that had begun are out before them; the connection keeps the order."""
        self._ending = True
        await self._write(data, more=False)

    def be_silent(self) -> None:
        """Nothing more is said here: what failed before the first write is answered with a status of its own."""
        self._ending = True

    async def keep_alive(self) -> None:
        """Ping after each silence of PING_SECONDS, until cancelled."""
        while True:
            await trio.sleep_until(self._written_at + PING_SECONDS)
            if self._writing:  # a reader that is slow needs no more to read
                self._written_at = trio.current_time()
            elif trio.current_time() >= self._written_at + PING_SECONDS:
                await self.write(self._ping)

    async def _write(self, data: bytes, *, more: bool) -> None:
        self._writing = True
        if not self.started:
            self.started = True
            headers = [(b"content-type", self._media_type), *_HEADERS]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            self._head_sent.set()
        elif not self._head_sent.is_set():  # another writer is still at it
            await self._head_sent.wait()
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._written_at = trio.current_time()
        self._writing = False


_HEADERS = ((b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))


async def cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    """Cancel `scope` when the client leaves. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()

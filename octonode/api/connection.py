"""One HTTP connection: anycorn speaks HTTP/1.1 and WebSocket, the socket and its deadlines are ours.

Why not anycorn's own TCP server: it shields each write from cancellation without a deadline, so one client that stops
reading holds the whole shutdown for ever, and it bounds neither connections nor HTTP/2 (decision 0007).
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from typing import Any

import trio
from anycorn.config import Config as AnycornConfig
from anycorn.events import Closed, Event, RawData, Updated
from anycorn.protocol.h11 import H11Protocol
from anycorn.task_group import TaskGroup
from anycorn.worker_context import WorkerContext

log = logging.getLogger(__name__)

READ_BYTES_MAX = 65536
WRITES_PER_PASS = 16
"""An answer whose reader takes everything at once lets the others run after so many writes."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of the HTTP server. protocols/http.md has the same table."""

    connections_max: int = 1024
    """At the bound a new connection is answered 503 and closed."""
    header_bytes_max: int = 16 * 1024
    """Request line and headers; more is 431."""
    idle_timeout_seconds: float = 15.0
    """From accept, or from the end of an answer, to the last byte of the next request's headers."""
    write_stall_timeout_seconds: float = 30.0
    """A client whose window stays closed for so long is cut; its task is cancelled."""
    linger_timeout_seconds: float = 2.0
    """How long we read and drop what a client still sends after our FIN, so that a reset does not eat our answer."""
    linger_bytes_max: int = 16 * 1024 * 1024
    drain_timeout_seconds: float = 5.0
    """From the shutdown event to the cut of what still runs."""


class _Http1(H11Protocol):  # type: ignore[misc]  # anycorn's types are not read
    """HTTP/1.1 and WebSocket alone: an offer of HTTP/2 is ignored, as RFC 9110 section 7.8 allows."""

    async def _check_protocol(self, event: Any) -> None:
        return


class Connection:
    """Serves one accepted socket until either side closes it. `run` owns the socket and never raises but Cancelled."""

    def __init__(
        self,
        socket: trio.socket.SocketType,
        app: Any,
        config: AnycornConfig,
        context: WorkerContext,
        limits: ConnectionLimits,
    ) -> None:
        self._socket = socket
        self._app = app
        self._config = config
        self._context = context
        self._limits = limits
        self._write_lock = trio.Lock()
        self._writes = 0
        self._reading = trio.CancelScope()
        self._idle = True
        self._finished = False  # our FIN is out
        self._cut = False

    async def run(self) -> None:
        try:
            await self._run()
        except* OSError:
            log.debug("an HTTP connection broke", exc_info=True)
        except* Exception:
            log.exception("an HTTP connection failed; it alone is closed")
        finally:
            self._socket.close()

    async def _run(self) -> None:
        self._socket.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        client, server = _endpoint(self._socket.getpeername()), _endpoint(self._socket.getsockname())
        tasks = TaskGroup()
        self._protocol = _Http1(self._app, self._config, self._context, tasks, {}, client, server, self._on_event, None)
        try:
            async with tasks:
                self._reading.deadline = trio.current_time() + self._limits.idle_timeout_seconds
                await self._read()
                await self._protocol.handle(Closed())
        finally:
            del self._protocol  # it holds us as well: a circle of forty objects would wait for the collector

    def drain(self) -> None:
        """Close now if no request is running; else anycorn closes after the answer, since the context is terminated."""
        if self._idle:
            self._reading.cancel()

    async def _read(self) -> None:
        dropped_bytes = 0
        with self._reading:
            while not self._cut:
                try:
                    data = await self._socket.recv(READ_BYTES_MAX)
                except (OSError, trio.ClosedResourceError):
                    return
                if not data:
                    return
                if not self._finished:
                    await self._protocol.handle(RawData(data))
                    continue
                dropped_bytes += len(data)
                if dropped_bytes > self._limits.linger_bytes_max:
                    return

    async def _on_event(self, event: Event) -> None:
        """What the protocol wants of the socket."""
        if isinstance(event, RawData):
            if not await self._write(event.data):
                await self._protocol.handle(Closed())
        elif isinstance(event, Updated):
            self._idle = event.idle
            self._reading.deadline = trio.current_time() + self._limits.idle_timeout_seconds if event.idle else math.inf
            if event.idle and self._context.terminated.is_set():
                self._reading.cancel()
        elif isinstance(event, Closed):
            self._finish()
            await self._protocol.handle(Closed())

    async def _write(self, data: bytes) -> bool:
        """False when the client is gone or does not read. A write that is cancelled half-way cuts the connection."""
        if self._write_lock.locked():
            await self._write_lock.acquire()
        else:
            self._write_lock.acquire_nowait()
        try:
            sent = self._send_now(data)
            if sent == len(data):
                await self._after_write()
                return True
            return sent >= 0 and await self._send_rest(memoryview(data)[sent:])
        finally:
            self._write_lock.release()

    def _send_now(self, data: bytes) -> int:
        """How many bytes the kernel took at once; -1 when the client is gone."""
        if self._cut or self._finished:
            return -1
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError:
            self._cut_off()
            return -1

    async def _after_write(self) -> None:
        self._writes += 1
        if self._writes >= WRITES_PER_PASS:
            self._writes = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _send_rest(self, rest: memoryview) -> bool:
        whole = False
        try:
            while rest:
                with trio.fail_after(self._limits.write_stall_timeout_seconds):
                    rest = rest[await self._socket.send(rest) :]
            whole = True
        except trio.TooSlowError:
            log.info("an HTTP client stopped reading for %g s: cut", self._limits.write_stall_timeout_seconds)
        except (OSError, trio.ClosedResourceError):
            pass
        finally:
            if not whole:
                self._cut_off()
        return whole

    def _cut_off(self) -> None:
        self._cut = True
        self._socket.close()

    def _finish(self) -> None:
        """Send FIN and give the reader a moment to drop what is still on its way; `run` closes the socket."""
        if self._finished or self._cut:
            return
        self._finished = True
        draining = self._context.terminated.is_set()
        self._reading.deadline = trio.current_time() + (0 if draining else self._limits.linger_timeout_seconds)
        try:
            self._socket.shutdown(trio.socket.SHUT_WR)
        except OSError:
            self._reading.cancel()


def _endpoint(name: Any) -> tuple[str, int]:
    return (name[0], name[1])

"""`serve`: an ASGI application over HTTP/1.1 on trio, in the caller's nursery.

anycorn does the protocol, a connection at a time (`connection.py`); accepting, bounds, drain and supervision are here.
No bug of a request, a connection or the server itself leaves `serve`.
"""

from __future__ import annotations

import errno
import logging
import socket as sockets
from typing import Any, NamedTuple

import trio
from anycorn.app_wrappers import ASGIWrapper
from anycorn.config import Config as AnycornConfig
from anycorn.worker_context import WorkerContext

from octonode.api.connection import Connection, ConnectionLimits
from octonode.config import split_host_port
from octonode.errors import ConfigError

log = logging.getLogger(__name__)

RESTART_PAUSE_SECONDS = 1.0
ACCEPT_PAUSE_SECONDS = 0.1
BACKLOG = 1024
ACCEPTS_PER_PASS = 64
"""Clients taken in between two turns of the loop: a loaded one turns seldom, and the line before us is short."""
REFUSING_MAX = 64
"""Clients being told at the same time that we are full; more are closed without a word."""
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_CLIENT_LEFT = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR, errno.ENETDOWN})

_BODY_FULL = (
    b'{"error":{"message":"this node has no free HTTP connection; try again in a second",'
    b'"type":"rate_limit_error","param":null,"code":"OVERLOADED"}}'
)
_ANSWER_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_BODY_FULL), _BODY_FULL)
)


class Bound(NamedTuple):
    """Where the server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


async def serve(
    app: Any,
    listen: str,
    *,
    shutdown_event: trio.Event,
    limits: ConnectionLimits | None = None,
    flag: str = "--api",
    task_status: trio.TaskStatus[Bound] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `listen` (HOST:PORT; port 0: the kernel chooses) until `shutdown_event`, then drain and return.

    Started with the bound address, which stays the same if the server has to restart. Draining: nothing new is
    accepted, idle connections close, running requests have `limits.drain_timeout_seconds`, the rest is cut.
    Raises ConfigError when the address cannot be bound; nothing else.
    """
    limits = limits or ConnectionLimits()
    host, port = split_host_port(listen, flag)
    socket = await _bind(host, port, flag)
    try:
        name = socket.getsockname()
        task_status.started(Bound(name[0], name[1]))
        server = _Server(app, limits)
        while not shutdown_event.is_set():
            try:
                await server.run(socket, shutdown_event)
            except* Exception:
                log.exception("the HTTP server failed; it starts again in %g s", RESTART_PAUSE_SECONDS)
                with trio.move_on_after(RESTART_PAUSE_SECONDS):
                    await shutdown_event.wait()
    finally:
        socket.close()


async def _bind(host: str, port: int, flag: str) -> sockets.socket:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        family, kind, protocol, _, address = min(found, key=lambda row: row[0] != trio.socket.AF_INET)
        socket = sockets.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{flag} {host}:{port}: {host} is not an address of this machine ({error})") from None
    try:
        socket.setblocking(False)
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        socket.bind(address)
        socket.listen(BACKLOG)
    except OSError as error:
        socket.close()
        raise ConfigError(_bind_trouble(error, host, port, flag)) from None
    return socket


def _bind_trouble(error: OSError, host: str, port: int, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken; stop the program that holds it, or choose another: {flag} {host}:0"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs rights this user lacks; choose one above 1023: {flag} {host}:8808"
    return f"{flag} {host}:{port} cannot be bound: {error.strerror}; is {host} an address of this machine?"


class _Server:
    """The accept loop and the set of open connections."""

    def __init__(self, app: Any, limits: ConnectionLimits) -> None:
        self._app = ASGIWrapper(app)
        self._limits = limits
        self._open: set[Connection] = set()
        self._refusing = 0
        self._config = AnycornConfig()
        self._config.errorlog = log
        self._config.include_server_header = False
        self._config.h11_max_incomplete_size = limits.header_bytes_max
        self._config.keep_alive_max_requests = 1_000_000

    async def run(self, socket: sockets.socket, shutdown_event: trio.Event) -> None:
        context = WorkerContext(None)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, socket, context, connections)
                await shutdown_event.wait()
                accepting.cancel_scope.cancel()
            socket.close()
            await context.terminated.set()
            for connection in list(self._open):
                connection.drain()
            connections.cancel_scope.deadline = trio.current_time() + self._limits.drain_timeout_seconds

    async def _accept(self, socket: sockets.socket, context: Any, connections: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(socket)
            for _ in range(ACCEPTS_PER_PASS):
                try:
                    accepted, _address = socket.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _OUT_OF_RESOURCES:
                        log.warning("cannot accept an HTTP connection: %s", error.strerror)
                        await trio.sleep(ACCEPT_PAUSE_SECONDS)
                    elif error.errno not in _CLIENT_LEFT:
                        raise
                    continue
                self._take_in(trio.socket.from_stdlib_socket(accepted), context, connections)

    def _take_in(self, accepted: trio.socket.SocketType, context: Any, connections: trio.Nursery) -> None:
        if len(self._open) < self._limits.connections_max:
            connection = Connection(accepted, self._app, self._config, context, self._limits)
            self._open.add(connection)
            connections.start_soon(self._serve_one, connection)
        elif self._refusing < REFUSING_MAX:
            self._refusing += 1
            connections.start_soon(self._refuse, accepted)
        else:
            accepted.close()

    async def _serve_one(self, connection: Connection) -> None:
        try:
            await connection.run()
        finally:
            self._open.discard(connection)

    async def _refuse(self, accepted: trio.socket.SocketType) -> None:
        """Tell one client that we are full. A fresh socket takes these few bytes at once, so nothing waits here."""
        try:
            with accepted, trio.move_on_after(1):
                await accepted.send(_ANSWER_FULL)
                accepted.shutdown(trio.socket.SHUT_WR)
                while await accepted.recv(1024):
                    pass
        except OSError:
            log.debug("a refused HTTP client left at once")
        finally:
            self._refusing -= 1

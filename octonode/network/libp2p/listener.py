"""Our own listening socket: bound alone, with a bound on connections that have not finished their handshake.

The library's listener shares its port (SO_REUSEPORT), so that a second daemon would silently take half of the
connections; it swallows a bind that fails; and it counts an accepted connection against its limit for ever.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import trio

from octonode.config import split_host_port
from octonode.errors import ConfigError

log = logging.getLogger(__name__)

HALF_OPEN_MAX = 256
"""Connections in their handshake; the oldest is closed to let a new one in."""
BACKLOG = 256


async def bind(listen: str) -> trio.SocketListener:
    """The listening socket for `network.listen`. Raises ConfigError that says which port, and what to do."""
    host, port = split_host_port(listen, "network.listen")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} at {host} is taken by another program; stop it, or choose another port with "
                f"--p2p {host}:PORT (0: any free one)"
            ) from None
        raise ConfigError(
            f"cannot listen at {listen}: {error.strerror or error}; choose another --p2p HOST:PORT"
        ) from None
    return trio.SocketListener(sock)


def listening_places(listener: trio.SocketListener) -> tuple[str, ...]:
    """`/ip4/IP/tcp/PORT` for each address that we can be reached at; 0.0.0.0 and :: become those of the interfaces."""
    ip, port = listener.socket.getsockname()[:2]
    if ip == "0.0.0.0":
        return tuple(f"/ip4/{each}/tcp/{port}" for each in _interface_ips(socket.AF_INET))
    if ip == "::":
        return tuple(f"/ip6/{each}/tcp/{port}" for each in _interface_ips(socket.AF_INET6))
    return (f"/ip6/{ip}/tcp/{port}" if ":" in ip else f"/ip4/{ip}/tcp/{port}",)


def _interface_ips(family: int) -> list[str]:
    """Loopback last: it is of use to peers on this machine only. Link-local IPv6 needs a scope, so it is left out."""
    ips = [each.address for addresses in psutil.net_if_addrs().values() for each in addresses if each.family == family]
    plain = [ip for ip in dict.fromkeys(ips) if "%" not in ip and not ip.startswith("fe80:")]
    return sorted(plain, key=lambda ip: ip.startswith("127.") or ip == "::1")


class Doorkeeper:
    """Accepts connections and runs `upgrade` on each; what fails there costs that connection alone."""

    def __init__(self, upgrade: Callable[[Any], Awaitable[None]]) -> None:
        self._upgrade = upgrade
        self._half_open: OrderedDict[int, trio.CancelScope] = OrderedDict()
        self._serial = 0

    @property
    def half_open(self) -> int:
        return len(self._half_open)

    async def serve(self, listener: trio.SocketListener, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    # Out of file descriptors, most likely. The kernel keeps the backlog for us meanwhile.
                    log.warning("cannot accept a connection: %s", error)
                    await trio.sleep(0.1)
                    continue
                nursery.start_soon(self._admit, stream)

    async def _admit(self, stream: trio.SocketStream) -> None:
        self._serial += 1
        serial = self._serial
        done = False
        with trio.CancelScope() as scope:
            self._half_open[serial] = scope
            if len(self._half_open) > HALF_OPEN_MAX:
                self._half_open.popitem(last=False)[1].cancel()
            try:
                await self._upgrade(stream)
                done = True
            except Exception as error:
                log.debug("a connection ended in its handshake: %r", error)
            finally:
                self._half_open.pop(serial, None)
                if not done:
                    await trio.aclose_forcefully(stream)

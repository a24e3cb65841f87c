"""The block gateway: a small HTTP/1.1 server that hands on verified blocks and files. Page: protocols/gateway.md.

h11 reads and checks each request head; bodies go from the page cache to the socket by sendfile. Nothing is fetched on
behalf of an asker, nothing private is told apart from what is missing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from octonode.config import split_host_port
from octonode.errors import ConfigError
from octonode.ipfs.blocks import BlockSource, Body, FileRange, RangeNotHeld
from octonode.ipfs.gateway_answers import error
from octonode.ipfs.gateway_connection import Close, Connection

__all__ = ["BlockSource", "Body", "FileRange", "Gateway", "GatewayLimits", "Pace", "RangeNotHeld"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Named in protocols/gateway.md. At a bound the asker gets 503, or the connection is cut."""

    connections_max: int = 128
    connections_per_address_max: int = 64
    head_bytes_max: int = 16 * 1024
    head_timeout_seconds: float = 10.0
    """From the first byte of a request to the end of its head."""
    idle_timeout_seconds: float = 60.0
    """Between two requests."""
    send_timeout_seconds: float = 30.0
    """Without a byte taken by the asker."""
    bytes_per_second_min: int = 16 * 1024
    """A reader that is slower than this over a whole response is cut."""
    upload_bytes_per_second_max: int = 0
    """All responses together; 0: no limit."""
    requests_per_connection_max: int = 100_000
    look_ups_max: int = 8
    """In the index and on disk at the same time, in threads of their own; the next ones wait their turn."""


STEP_BYTES_MAX: Final = 1024 * 1024
"""Of sendfile; between two steps other connections get their turn."""
STEP_BYTES_MIN: Final = 16 * 1024


class Pace:
    """A token bucket over all connections; refills by the clock, holds at most a second's worth."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._next = 0.0
        wanted = bytes_per_second // 4 or STEP_BYTES_MAX
        self.step_bytes = min(STEP_BYTES_MAX, max(STEP_BYTES_MIN, wanted))
        """What is sent before the clock is looked at again: little on a thin line, so that no asker thinks it dead."""

    async def take(self, size_bytes: int) -> None:
        if not self._rate:
            return
        now = trio.current_time()
        self._next = max(self._next, now - 1.0) + size_bytes / self._rate
        if self._next > now:
            await trio.sleep(self._next - now)


class Gateway:
    """Serves `blocks` on `listen` (HOST:PORT, port 0: the kernel chooses) while `run` runs."""

    def __init__(
        self,
        listen: str,
        blocks: BlockSource,
        limits: GatewayLimits | None = None,
        *,
        on_sent: Callable[[str, int], None] | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`pace` is a limit shared with others; without it the gateway has its own, of `limits`."""
        self._host, self._port = split_host_port(listen, "gateway.listen")
        self.blocks = blocks
        self.limits = limits or GatewayLimits()
        self._on_sent = on_sent
        self.pace = pace or Pace(self.limits.upload_bytes_per_second_max)
        self._by_address: Counter[str] = Counter()
        self.look_ups = trio.CapacityLimiter(self.limits.look_ups_max)
        self.sent_bytes = 0
        self.port = 0
        """The port that is bound; 0 before `run` has started."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises ConfigError when the port is taken."""
        try:
            listeners = await trio.open_tcp_listeners(self._port, host=self._host)
        except OSError as fault:
            raise ConfigError(
                f"the block gateway cannot listen on {self._host}:{self._port} ({fault.strerror}); "
                f"set gateway.listen or --gateway HOST:PORT to a free port"
            ) from fault
        self.port = listeners[0].socket.getsockname()[1]
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)
        finally:
            self.port = 0

    @property
    def connections(self) -> int:
        return sum(self._by_address.values())

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One connection. Never raises: a peer's fault, or ours, ends this connection alone."""
        sock = stream.socket
        address = "?"
        try:
            address = str(sock.getpeername()[0])
            self._by_address[address] += 1
            full = self.connections > self.limits.connections_max
            if full or self._by_address[address] > self.limits.connections_per_address_max:
                with trio.move_on_after(1):
                    await sock.send(error(503, "the gateway is full; try again in a second", close=True))
                return
            await Connection(self, sock, address).run()
        except (Close, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception:
            log.exception("a gateway connection from %s failed", address)
        finally:
            self._by_address[address] -= 1
            if self._by_address[address] <= 0:
                del self._by_address[address]
            sock.close()

    def sent(self, address: str, size_bytes: int) -> None:
        self.sent_bytes += size_bytes
        if self._on_sent is not None:
            self._on_sent(address, size_bytes)

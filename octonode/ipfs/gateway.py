"""The block gateway: a small HTTP/1.1 server that hands on verified blocks. Page: protocols/gateway.md.

h11 reads and checks each request head; bodies go from the page cache to the socket by sendfile. Nothing is fetched on
behalf of an asker, nothing private is told apart from what is missing.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import h11
import trio

from octonode.config import split_host_port
from octonode.errors import ConfigError
from octonode.ipfs import car
from octonode.ipfs.blocks import BlockSource, Body, FileRange, RangeNotHeld
from octonode.ipfs.gateway_query import CAR_TYPE, RAW_TYPE, BadQuery, GatewayQuery, parse_target

__all__ = ["BlockSource", "Body", "FileRange", "Gateway", "GatewayLimits", "Pace", "RangeNotHeld"]

log = logging.getLogger(__name__)

_MORE: Final = getattr(socket, "MSG_MORE", 0)
_SENDFILE_BYTES: Final = 1024 * 1024
"""One step of sendfile; between two steps other connections get their turn."""


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


class _Close(Exception):
    """This connection ends here."""


class Pace:
    """A token bucket over all connections; refills by the clock, holds at most a second's worth."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._next = 0.0

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
    ) -> None:
        self._host, self._port = split_host_port(listen, "gateway.listen")
        self._blocks = blocks
        self.limits = limits or GatewayLimits()
        self._on_sent = on_sent
        self._pace = Pace(self.limits.upload_bytes_per_second_max)
        self._by_address: Counter[str] = Counter()
        self.look_ups = trio.CapacityLimiter(self.limits.look_ups_max)
        self.sent_bytes = 0
        self.port = 0
        """The port that is bound; 0 before `run` has started."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises ConfigError when the port is taken."""
        try:
            listeners = await trio.open_tcp_listeners(self._port, host=self._host)
        except OSError as error:
            raise ConfigError(
                f"the block gateway cannot listen on {self._host}:{self._port} ({error.strerror}); "
                f"set gateway.listen or --gateway HOST:PORT to a free port"
            ) from error
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
                    await sock.send(
                        _error_response(503, "OVERLOADED", "the gateway is full; try again in a second", close=True)
                    )
                return
            await _Connection(self, sock, address).run()
        except (_Close, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
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


def _error_body(code: str, message: str) -> bytes:
    return json.dumps({"error": {"code": code, "message": message}}).encode() + b"\n"


def _head(status: int, headers: list[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}", "Server: octonode"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _error_response(status: int, code: str, message: str, *, close: bool = False, head_only: bool = False) -> bytes:
    body = _error_body(code, message)
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    if status == 503:
        headers.append(("Retry-After", "1"))
    if close:
        headers.append(("Connection", "close"))
    return _head(status, headers) + (b"" if head_only else body)


_REASONS: Final = {
    200: "OK",
    304: "Not Modified",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    416: "Range Not Satisfiable",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_CODES: Final = {404: "NOT_FOUND", 431: "TOO_LARGE", 408: "DEADLINE", 500: "INTERNAL", 503: "OVERLOADED"}


class _Connection:
    def __init__(self, gateway: Gateway, sock: trio.socket.SocketType, address: str) -> None:
        self._gateway = gateway
        self._limits = gateway.limits
        self._sock = sock
        self._address = address
        self._buffer = b""

    async def run(self) -> None:
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(self._limits.requests_per_connection_max):
            head = await self._read_head()
            if head is None or not await self._answer(head):
                return

    async def _read_head(self) -> bytes | None:
        """The bytes of one request head, or None when the asker is done. Raises _Close after answering a bad one."""
        if not self._buffer:
            with trio.move_on_after(self._limits.idle_timeout_seconds):
                self._buffer = await self._sock.recv(4096)
            if not self._buffer:
                return None
        head = None
        with trio.move_on_after(self._limits.head_timeout_seconds):
            head = await self._rest_of_head()
        if head is None:
            await self._refuse(408, "the request head took too long or was cut short")
        return head

    async def _rest_of_head(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > self._limits.head_bytes_max:
                await self._refuse(431, "the request head is too large")
            more = await self._sock.recv(4096)
            if not more:
                return None
            self._buffer += more
        head, self._buffer = self._buffer[: end + 4], self._buffer[end + 4 :]
        return head

    async def _refuse(self, status: int, message: str) -> None:
        with trio.move_on_after(1):
            await self._send(_error_response(status, _CODES.get(status, "BAD_REQUEST"), message, close=True))
        raise _Close

    async def _answer(self, head: bytes) -> bool:
        """Answer one request; False when the connection is to be closed."""
        machine = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes_max)
        try:
            machine.receive_data(head)
            request = machine.next_event()
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint, "the request is not HTTP/1.1")
            return False
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            await self._refuse(400, "requests to this gateway have no body")
        keep = machine.their_state is not h11.MUST_CLOSE and "close" not in headers.get("connection", "").lower()
        keep = keep and request.http_version == b"1.1"
        method = request.method.decode("ascii")
        try:
            if method not in ("GET", "HEAD"):
                raise BadQuery(405, "only GET and HEAD are answered")
            query = parse_target(request.target.decode("ascii"), headers.get("accept", ""))
            await self._answer_query(query, method == "HEAD", headers.get("if-none-match", ""), keep)
        except BadQuery as bad:
            code = _CODES.get(bad.status, "BAD_REQUEST")
            await self._send(_error_response(bad.status, code, bad.message, close=not keep, head_only=method == "HEAD"))
        return keep

    async def _answer_query(self, query: GatewayQuery, head_only: bool, if_none_match: str, keep: bool) -> None:
        headers = _headers(query)
        etag = next((value for name, value in headers if name == "ETag"), None)
        if etag is not None and etag in if_none_match:
            await self._send(_head(304, headers + ([] if keep else [("Connection", "close")])))
            return
        body = await trio.to_thread.run_sync(self._find, query, limiter=self._gateway.look_ups)
        if body is None:
            raise BadQuery(404, f"{query.cid} is not held here, or not wholly")
        try:
            headers += [("Content-Length", str(body.size_bytes))] + ([] if keep else [("Connection", "close")])
            seconds = self._limits.send_timeout_seconds + body.size_bytes / self._limits.bytes_per_second_min
            with trio.move_on_after(seconds) as scope:
                await self._send(_head(200, headers), more=not head_only and body.size_bytes > 0)
                if not head_only:
                    await self._send_body(body)
            if scope.cancelled_caught:
                raise _Close
        finally:
            body.close()

    def _find(self, query: GatewayQuery) -> Body | None:
        """In a thread: the body, or None when we do not have it. Raises BadQuery."""
        source = self._gateway._blocks
        if query.kind == "have":
            bits = source.have(query.cid)
            return None if bits is None else Body([bits])
        if query.kind == "raw":
            return source.block(query.cid)
        if query.whole_block:
            return _car_of_block(source, query)
        try:
            body = source.run(query.cid, query.first_byte, query.last_byte, nodes=query.nodes)
        except RangeNotHeld:
            raise BadQuery(416, "entity-bytes begins behind the end of the file") from None
        if body is not None and body.parts and isinstance(body.parts[-1], FileRange):
            last = body.parts[-1]
            first = next(part for part in body.parts if isinstance(part, FileRange))
            if hasattr(os, "posix_fadvise"):  # read ahead now, so that sendfile does not wait for the disk in the loop
                length = last.offset_bytes + last.size_bytes - first.offset_bytes
                os.posix_fadvise(last.fd, first.offset_bytes, length, os.POSIX_FADV_WILLNEED)
        return body

    async def _send(self, data: bytes, *, more: bool = False) -> None:
        """Send all of `data`. Raises _Close when the asker takes nothing for too long, OSError when it is gone."""
        view = memoryview(data)
        while view:
            with trio.move_on_after(self._limits.send_timeout_seconds) as scope:
                view = view[await self._sock.send(view, _MORE if more else 0) :]
            if scope.cancelled_caught:
                raise _Close

    async def _send_body(self, body: Body) -> None:
        for part in body.parts:
            if isinstance(part, bytes):
                await self._gateway._pace.take(len(part))
                await self._send(part, more=part is not body.parts[-1])
                self._gateway.sent(self._address, len(part))
            else:
                await self._send_range(part)

    async def _send_range(self, part: FileRange) -> None:
        offset, end = part.offset_bytes, part.offset_bytes + part.size_bytes
        fd = self._sock.fileno()
        while offset < end:
            step = min(end - offset, _SENDFILE_BYTES)
            try:
                count = os.sendfile(fd, part.fd, offset, step)
            except BlockingIOError:
                with trio.move_on_after(self._limits.send_timeout_seconds) as scope:
                    await trio.lowlevel.wait_writable(fd)
                if scope.cancelled_caught:
                    raise _Close from None
                continue
            if count == 0:  # the file became shorter under us: what we promised cannot be sent
                raise _Close
            offset += count
            self._gateway.sent(self._address, count)
            await self._gateway._pace.take(count)
            await trio.lowlevel.checkpoint()


def _headers(query: GatewayQuery) -> list[tuple[str, str]]:
    if query.kind == "have":
        return [("Content-Type", "application/octet-stream"), ("Cache-Control", "no-store")]
    content_type = RAW_TYPE if query.kind == "raw" else f"{CAR_TYPE}; version=1; order=dfs; dups=y"
    headers = [
        ("Content-Type", content_type),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "public, max-age=29030400, immutable"),
    ]
    if query.kind == "raw":
        headers.append(("ETag", f'"{query.cid}.raw"'))
    elif query.whole_block:
        headers.append(("ETag", f'"{query.cid}.block.car"'))
    else:
        last = "*" if query.last_byte is None else query.last_byte
        headers.append(("ETag", f'"{query.cid}.{query.first_byte}-{last}{"" if query.nodes else ".n"}.car"'))
    return headers


def _car_of_block(source: BlockSource, query: GatewayQuery) -> Body | None:
    body = source.block(query.cid)
    if body is not None:
        body.parts[:0] = [car.header([query.cid]), car.section_prefix(query.cid, body.size_bytes)]
        body.size_bytes += sum(len(part) for part in body.parts[:2] if isinstance(part, bytes))
    return body

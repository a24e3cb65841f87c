"""One connection of the block gateway: request heads in, answers out, until either side has enough."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import h11
import trio

from octonode.ipfs import car
from octonode.ipfs.blocks import BlockSource, Body, FileRange, IsDirectory, RangeNotHeld
from octonode.ipfs.gateway_answers import Asked, Headers, content_headers, error, etag_of, head, named_by_cid
from octonode.ipfs.gateway_query import BadQuery, GatewayQuery, parse_target

if TYPE_CHECKING:
    from octonode.ipfs.gateway import Gateway

_MORE: Final = getattr(socket, "MSG_MORE", 0)
_LAST_BYTES: Final = 64 * 1024
"""Of a file that is answered with as it is, the end that goes only once the file has been looked at again."""


class Close(Exception):
    """This connection ends here."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Headers
    body: Body | None = None
    """None: 304."""


class Connection:
    """`run` serves it until it is done, and raises Close or OSError. The caller closes the socket."""

    def __init__(self, gateway: Gateway, sock: trio.socket.SocketType, address: str) -> None:
        self._gateway = gateway
        self._limits = gateway.limits
        self._sock = sock
        self._address = address
        self._buffer = b""

    async def run(self) -> None:
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(self._limits.requests_per_connection_max):
            request = await self._read_head()
            if request is None or not await self._answer(request):
                return

    # -- the request --------------------------------------------------------------------------------------------

    async def _read_head(self) -> bytes | None:
        """The bytes of one request head, or None when the asker is done. Raises Close after answering a bad one."""
        if not self._buffer:
            with trio.move_on_after(self._limits.idle_timeout_seconds):
                self._buffer = await self._sock.recv(4096)
            if not self._buffer:
                return None
        request = None
        with trio.move_on_after(self._limits.head_timeout_seconds):
            request = await self._rest_of_head()
        if request is None:
            await self._refuse(408, "the request head took too long or was cut short")
        return request

    async def _rest_of_head(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > self._limits.head_bytes_max:
                await self._refuse(431, "the request head is too large")
            more = await self._sock.recv(4096)
            if not more:
                return None
            self._buffer += more
        request, self._buffer = self._buffer[: end + 4], self._buffer[end + 4 :]
        return request

    async def _refuse(self, status: int, message: str) -> None:
        with trio.move_on_after(1):
            await self._send(error(status, message, close=True))
        raise Close

    async def _answer(self, request_head: bytes) -> bool:
        """Answer one request; False when the connection is to be closed."""
        machine = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes_max)
        try:
            machine.receive_data(request_head)
            request = machine.next_event()
        except h11.RemoteProtocolError as fault:
            await self._refuse(fault.error_status_hint, "the request is not HTTP/1.1")
            return False
        headers = _joined(request)
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            await self._refuse(400, "requests to this gateway have no body")
        keep = machine.their_state is not h11.MUST_CLOSE and "close" not in headers.get("connection", "").lower()
        keep = keep and request.http_version == b"1.1"
        method = request.method.decode("ascii")
        try:
            if method not in ("GET", "HEAD"):
                raise BadQuery(405, "only GET and HEAD are answered", (("Allow", "GET, HEAD"),))
            asked = Asked(
                method == "HEAD",
                headers.get("if-none-match", ""),
                headers.get("if-range", ""),
                headers.get("range", ""),
            )
            query = parse_target(request.target.decode("ascii"), headers.get("accept", ""))
            await self._answer_query(query, asked, keep)
        except BadQuery as bad:
            await self._send(
                error(bad.status, bad.message, close=not keep, head_only=method == "HEAD", more=bad.headers)
            )
        return keep

    # -- the answer ---------------------------------------------------------------------------------------------

    async def _answer_query(self, query: GatewayQuery, asked: Asked, keep: bool) -> None:
        if named_by_cid(query) and asked.names(etag := etag_of(query)):
            answer = _Answer(304, content_headers(query, etag))  # the bytes of a CID never change
        else:
            look_ups = self._gateway.look_ups
            answer = await trio.to_thread.run_sync(_find, self._gateway.blocks, query, asked, limiter=look_ups)
        headers = [*answer.headers, ("Date", _date(int(time.time())))] + ([] if keep else [("Connection", "close")])
        if answer.body is None:
            await self._send(head(304, headers))
            return
        with_body = not asked.head_only and answer.body.size_bytes > 0
        try:
            headers.append(("Content-Length", str(answer.body.size_bytes)))
            seconds = self._limits.send_timeout_seconds + answer.body.size_bytes / self._limits.bytes_per_second_min
            with trio.move_on_after(seconds) as scope:
                await self._send(head(answer.status, headers), more=with_body)
                if with_body:
                    await self._send_body(answer.body)
            if scope.cancelled_caught:
                raise Close
        finally:
            answer.body.close()

    async def _send(self, data: bytes, *, more: bool = False) -> None:
        """Send all of `data`. Raises Close when the asker takes nothing for too long, OSError when it is gone."""
        view = memoryview(data)
        while view:
            with trio.move_on_after(self._limits.send_timeout_seconds) as scope:
                view = view[await self._sock.send(view, _MORE if more else 0) :]
            if scope.cancelled_caught:
                raise Close

    async def _send_body(self, body: Body) -> None:
        for part in body.parts:
            last = part is body.parts[-1]
            if isinstance(part, bytes):
                await self._gateway.pace.take(len(part))
                await self._send(part, more=not last)
                self._gateway.sent(self._address, len(part))
            elif not last:
                await self._send_range(part)
            else:
                first, rest = _without_end(part)
                await self._send_range(first)
                if not body.unchanged():  # what is cut off no cache keeps
                    raise Close
                await self._send_range(rest)

    async def _send_range(self, part: FileRange) -> None:
        offset, end = part.offset_bytes, part.offset_bytes + part.size_bytes
        fd = self._sock.fileno()
        while offset < end:
            step = min(end - offset, self._gateway.pace.step_bytes)
            try:
                count = os.sendfile(fd, part.fd, offset, step)
            except BlockingIOError:
                with trio.move_on_after(self._limits.send_timeout_seconds) as scope:
                    await trio.lowlevel.wait_writable(fd)
                if scope.cancelled_caught:
                    raise Close from None
                continue
            if count == 0:  # the file became shorter under us: what we promised cannot be sent
                raise Close
            offset += count
            self._gateway.sent(self._address, count)
            await self._gateway.pace.take(count)
            await trio.lowlevel.checkpoint()


def _joined(request: h11.Event) -> dict[str, str]:
    """Headers by lower-case name; those that come twice are one list."""
    assert isinstance(request, h11.Request)
    headers: dict[str, str] = {}
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _without_end(part: FileRange) -> tuple[FileRange, FileRange]:
    first_bytes = max(0, part.size_bytes - _LAST_BYTES)
    return (
        FileRange(part.fd, part.offset_bytes, first_bytes),
        FileRange(part.fd, part.offset_bytes + first_bytes, part.size_bytes - first_bytes),
    )


@lru_cache(maxsize=4)
def _date(now_seconds: int) -> str:
    return formatdate(now_seconds, usegmt=True)


# In a thread: what there is to answer with. All of these raise BadQuery.


def _find(source: BlockSource, query: GatewayQuery, asked: Asked) -> _Answer:
    if query.kind == "have":
        bits = source.have(query.cid)
        if bits is None:
            raise _not_held(query)
        return _Answer(200, content_headers(query, ""), Body([bits]))
    if query.kind == "file":
        return _find_file(source, query, asked)
    etag = etag_of(query)
    headers = content_headers(query, etag)
    body = _find_blocks(source, query)
    if body is None:
        raise _not_held(query)
    try:
        if asked.has(etag):
            body.close()
            return _Answer(304, headers)
        part = asked.part(etag, body.size_bytes)
    except BadQuery:
        body.close()
        raise
    if part is None:
        return _Answer(200, headers, body)
    headers.append(_content_range(part, body.size_bytes))
    body.narrow(*part)
    return _Answer(206, headers, body)


def _find_blocks(source: BlockSource, query: GatewayQuery) -> Body | None:
    if query.kind == "raw":
        return source.block(query.cid)
    if query.whole_block:
        return _car_of_block(source, query)
    try:
        body = source.run(query.cid, query.first_byte, query.last_byte, nodes=query.nodes)
    except RangeNotHeld:
        raise BadQuery(416, "entity-bytes begins behind the end of the file") from None
    if body is not None:
        _read_ahead(body)
    return body


def _find_file(source: BlockSource, query: GatewayQuery, asked: Asked) -> _Answer:
    try:
        found = source.file(query.cid, query.path)
    except IsDirectory:
        raise BadQuery(
            501, "directories are not listed here: ask for a file below it by its path, or for ?format=car"
        ) from None
    if found is None:
        raise _not_held(query)
    etag = etag_of(query, found.cid)
    headers = content_headers(query, etag, found.roots)
    if asked.has(etag):
        return _Answer(304, headers)
    part = asked.part(etag, found.size_bytes)
    body = found.read(*(part or (0, found.size_bytes)))
    if body is None:
        raise _not_held(query)
    _read_ahead(body)
    if part is None:
        return _Answer(200, headers, body)
    return _Answer(206, [*headers, _content_range(part, found.size_bytes)], body)


def _not_held(query: GatewayQuery) -> BadQuery:
    if query.kind == "file":
        what = "/".join((str(query.cid), *query.path))
        return BadQuery(404, f"{what} is no file that is held here wholly; a block is asked for by ?format=raw")
    return BadQuery(404, f"{query.cid} is not held here, or not wholly")


def _content_range(part: tuple[int, int], size_bytes: int) -> tuple[str, str]:
    first, count = part
    return "Content-Range", f"bytes {first}-{first + count - 1}/{size_bytes}"


def _read_ahead(body: Body) -> None:
    """Now, so that sendfile does not wait for the disk in the loop."""
    ranges = [part for part in body.parts if isinstance(part, FileRange)]
    if ranges and hasattr(os, "posix_fadvise"):
        first, last = ranges[0], ranges[-1]
        length = last.offset_bytes + last.size_bytes - first.offset_bytes
        os.posix_fadvise(last.fd, first.offset_bytes, length, os.POSIX_FADV_WILLNEED)


def _car_of_block(source: BlockSource, query: GatewayQuery) -> Body | None:
    body = source.block(query.cid)
    if body is not None:
        body.parts[:0] = [car.header([query.cid]), car.section_prefix(query.cid, body.size_bytes)]
        body.size_bytes += sum(len(part) for part in body.parts[:2] if isinstance(part, bytes))
    return body

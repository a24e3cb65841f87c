"""A lean HTTP/1.1 client of one octonode gateway on trio: h11 for heads, bodies received into the caller's buffers.

One connection, one request at a time. No redirects are followed, every answer has a bound in bytes and in time, and
the host is the one the caller names: the address of a peer that proved who it is.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import h11
import trio

from octonode.errors import NotFound, OctonodeError, RemoteProtocolError, Unreachable
from octonode.ids import PeerId
from octonode.ipfs.car import CarCursor, Section
from octonode.ipfs.cid import Cid
from octonode.ipfs.dagpb import BLOCK_BYTES_MAX
from octonode.ipfs.gateway_query import block_target, have_target, run_target

HEAD_BYTES_MAX: Final = 16 * 1024
HAVE_BYTES_MAX: Final = 256 * 1024
CAR_OVERHEAD_BYTES: Final = 128
"""Room for the header of a CAR; each section takes at most 64 bytes beside its block."""
SECTION_OVERHEAD_BYTES: Final = 64
_STATUS_OK: Final = 200


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """A gateway of a peer: the host is where its authenticated connection comes from, only the port is announced."""

    host: str
    port: int
    peer_id: PeerId | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Timeouts:
    connect_seconds: float = 5.0
    head_seconds: float = 15.0
    """From the request to the end of the response head."""
    stall_seconds: float = 5.0
    """Without a single byte while a body is due."""
    bytes_per_second_min: int = 16 * 1024
    """Below this over a response so far it counts as stalled."""


class Stalled(Unreachable):
    """The gateway sends nothing, or too slowly."""

    code = "DEADLINE"


class GatewayClient:
    """A connection to one gateway, opened at the first request and kept alive. Close it in the end.

    Raises Unreachable (connection refused or lost, EOF in a body), Stalled, NotFound (404), an OctonodeError
    with the gateway's words, RemoteProtocolError (not an octonode gateway's answer: a redirect, no length, too long).
    After any of them but NotFound the connection is closed, and the next request opens a new one.
    """

    def __init__(self, address: GatewayAddress, timeouts: Timeouts | None = None) -> None:
        self.address = address
        self._timeouts = timeouts or Timeouts()
        self._sock: trio.socket.SocketType | None = None
        self._early = b""

    def close(self) -> None:
        sock, self._sock, self._early = self._sock, None, b""
        if sock is not None:
            sock.close()

    async def block(self, cid: Cid, size_max: int = BLOCK_BYTES_MAX) -> bytes:
        """One block, not verified yet."""
        return await self._get(block_target(cid), size_max)

    async def have(self, root: Cid) -> bytes:
        """The bitmap of a model root; see octonode.ipfs.blocks."""
        return await self._get(have_target(root), HAVE_BYTES_MAX)

    async def run(
        self,
        root: Cid,
        first_byte: int,
        last_byte: int,
        buffer: bytearray,
        on_sections: Callable[[list[Section]], None],
    ) -> int:
        """The leaves of the file `root` that hold the bytes, received into `buffer`; the bytes that came.

        `on_sections` gets the sections as they become whole; what it raises ends the run. Sections are not verified.
        """
        try:
            length = await self._request(run_target(root, first_byte, last_byte), len(buffer))
            cursor = CarCursor(buffer)
            view, filled = memoryview(buffer), 0
            started = trio.current_time()
            while filled < length:
                filled += await self._receive_into(view[filled:length], self._due(started, filled))
                sections = cursor.advance(filled)
                if sections:
                    on_sections(sections)
            cursor.finish(filled)
            return length
        except BaseException:
            self.close()
            raise

    async def _get(self, target: str, size_max: int) -> bytes:
        try:
            length = await self._request(target, size_max)
            buffer = bytearray(length)
            await self._fill(buffer)
            return bytes(buffer)
        except NotFound:
            raise
        except BaseException:
            self.close()
            raise

    async def _fill(self, buffer: bytearray) -> None:
        view, filled = memoryview(buffer), 0
        started = trio.current_time()
        while filled < len(view):
            filled += await self._receive_into(view[filled:], self._due(started, filled))

    def _due(self, started: float, filled: int) -> float:
        """When the next bytes must be here: a slow drip never gets more time than what it brought is worth."""
        return started + self._timeouts.stall_seconds + filled / self._timeouts.bytes_per_second_min

    async def _receive_into(self, view: memoryview, deadline: float) -> int:
        if self._early:
            count = min(len(view), len(self._early))
            view[:count], self._early = self._early[:count], self._early[count:]
            return count
        assert self._sock is not None
        stall = min(deadline, trio.current_time() + self._timeouts.stall_seconds)
        with trio.move_on_at(stall) as scope:
            try:
                count = await self._sock.recv_into(view)
            except OSError as error:
                raise Unreachable(f"the connection to {self.address} broke: {error.strerror}") from error
        if scope.cancelled_caught:
            raise Stalled(f"{self.address} stopped sending")
        if count == 0:
            raise Unreachable(f"{self.address} closed the connection in the middle of a block")
        return count

    async def _request(self, target: str, size_max: int) -> int:
        """Send a GET; the length of the body that follows. A kept connection that was closed meanwhile is reopened."""
        fresh = self._sock is None
        try:
            return await self._request_once(target, size_max)
        except Unreachable as error:
            if fresh or isinstance(error, Stalled):
                raise
            self.close()
            return await self._request_once(target, size_max)

    async def _request_once(self, target: str, size_max: int) -> int:
        if self._sock is None:
            await self._connect()
        assert self._sock is not None
        machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        headers = [("Host", str(self.address)), ("User-Agent", "octonode"), ("Accept-Encoding", "identity")]
        out = machine.send(h11.Request(method="GET", target=target, headers=headers)) or b""
        with trio.move_on_after(self._timeouts.head_seconds) as scope:
            try:
                await self._send_all(out)
                response = await self._read_head(machine)
            except OSError as error:
                raise Unreachable(f"the connection to {self.address} broke: {error.strerror}") from error
        if scope.cancelled_caught:
            raise Stalled(f"{self.address} does not answer")
        return await self._check(response, size_max)

    async def _send_all(self, data: bytes) -> None:
        assert self._sock is not None
        view = memoryview(data)
        while view:
            view = view[await self._sock.send(view) :]

    async def _read_head(self, machine: h11.Connection) -> h11.Response:
        assert self._sock is not None
        while True:
            end = self._early.find(b"\r\n\r\n")
            if end >= 0:
                break
            if len(self._early) > HEAD_BYTES_MAX:
                raise RemoteProtocolError(
                    f"the answer of {self.address} has a head over {HEAD_BYTES_MAX} bytes", code="TOO_LARGE"
                )
            data = await self._sock.recv(4096)
            if not data:
                raise Unreachable(f"{self.address} closed the connection")
            self._early += data
        head, self._early = self._early[: end + 4], self._early[end + 4 :]
        try:
            machine.receive_data(head)
            event = machine.next_event()
        except h11.RemoteProtocolError as error:
            raise RemoteProtocolError(f"{self.address} does not speak HTTP/1.1: {error}") from None
        if not isinstance(event, h11.Response):
            raise RemoteProtocolError(f"{self.address} sent an interim response")
        return event

    async def _check(self, response: h11.Response, size_max: int) -> int:
        """The length of the body. Raises what the status says."""
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in response.headers}
        text = headers.get("content-length", "")
        if "transfer-encoding" in headers or not (text.isascii() and text.isdigit() and len(text) < 16):
            raise RemoteProtocolError(f"{self.address} answered {response.status_code} without a length")
        length = int(text)
        if response.status_code != _STATUS_OK:
            await self._raise_status(response.status_code, length)
        if length > size_max:
            raise RemoteProtocolError(
                f"{self.address} offers {length} bytes where at most {size_max} are due", code="TOO_LARGE"
            )
        return length

    async def _raise_status(self, status: int, length: int) -> None:
        if 300 <= status < 400:
            raise RemoteProtocolError(f"{self.address} redirects; redirects of gateways are not followed")
        message = ""
        if length <= HEAD_BYTES_MAX:
            body = bytearray(length)
            await self._fill(body)
            message = _message(bytes(body))
        else:
            self.close()
        if status == 404:
            raise NotFound(f"{self.address}: {message or 'not held there'}")
        code = "OVERLOADED" if status in (429, 503) else "BAD_MESSAGE"
        raise OctonodeError(f"{self.address} answered {status}: {message}", code=code)

    async def _connect(self) -> None:
        """Raises Unreachable."""
        self._early = b""
        with trio.move_on_after(self._timeouts.connect_seconds) as scope:
            try:
                stream = await trio.open_tcp_stream(self.address.host, self.address.port)
            except OSError as error:
                raise Unreachable(f"no gateway answers at {self.address} ({error})") from error
            self._sock = stream.socket
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if scope.cancelled_caught:
            raise Unreachable(f"no gateway answers at {self.address} within {self._timeouts.connect_seconds} s")


def _message(body: bytes) -> str:
    """The gateway's own words, bounded and printable."""
    try:
        text = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return "".join(c for c in text[:200] if c.isprintable())

"""go-libp2p as a peer: its daemon `p2pd`, told what to do in the few messages of its control protocol used here.

Each message is protobuf behind its length: {1: type, and the number of that request: its details}; an answer begins
with {1: 0} for done or {1: 1, 2: {1: why not}}. A stream that was asked for then goes on in the same connection. One
that came in is a connection to us, which begins with a message about it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import base58
import trio
from multiaddr import Multiaddr

from tests.interop.processes import END_SECONDS, PeerProcess

FOLDER = Path(__file__).resolve().parents[2] / "build" / "go"
P2PD = FOLDER / "p2pd"
CONNECT, STREAM_OPEN, STREAM_HANDLER, DISCONNECT, REMOVE_STREAM_HANDLER = (1, 2), (2, 3), (3, 4), (7, 7), (10, 9)
"""(the type of a request, the number of the field with its details)"""

Value = int | bytes
Handler = Callable[[trio.SocketStream], Awaitable[None]]


class Failed(Exception):
    """What go said of a request that went wrong."""


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def message(*fields: tuple[int, Value]) -> bytes:
    """Protobuf of numbers and byte strings, by field number."""
    encoded = b""
    for number, value in fields:
        if isinstance(value, int):
            encoded += varint(number << 3) + varint(value)
        else:
            encoded += varint(number << 3 | 2) + varint(len(value)) + value
    return encoded


def parse(data: bytes) -> dict[int, Value]:
    """The last value of each field."""
    fields: dict[int, Value] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag, value = number(), number()
        if tag & 7 == 0:
            fields[tag >> 3] = value
        else:
            fields[tag >> 3] = data[at : at + value]
            at += value
    return fields


async def read_message(stream: trio.SocketStream) -> dict[int, Value]:
    """Byte by byte up to its length: what follows it is the stream's."""
    size = shift = 0
    while True:
        (byte,) = await _exactly(stream, 1)
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return parse(await _exactly(stream, size))


async def _exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        if not piece:
            raise Failed("go closed the connection in the middle of a message")
        data += piece
    return data


class GoPeer:
    """A running p2pd without DHT, relay or bootstrap, listening on loopback."""

    def __init__(self, log: Path, socket: Path) -> None:
        options = {"hostAddrs": "/ip4/127.0.0.1/tcp/0", "bootstrapPeers": "", "listen": f"/unix{socket}", "relay": "0"}
        command = [P2PD, *(f"-{name}={value}" for name, value in options.items())]
        self.process = PeerProcess("go-libp2p", command, log=log, folder=FOLDER)
        self._socket = socket
        self.peer_id = place = ""
        while not (self.peer_id and place):
            line = self.process.read_line()
            self.peer_id = line.removeprefix("Peer ID: ") if line.startswith("Peer ID: ") else self.peer_id
            place = line if line.startswith("/ip4/127.0.0.1/tcp/") else place
        self._address = f"{place.partition('/p2p/')[0]}/p2p/{self.peer_id}"

    def address(self, transport: str) -> str:
        assert transport == "tcp"
        return self._address

    async def dial(self, address: str) -> None:
        place, _, peer_id = address.rpartition("/p2p/")
        await self._tell(CONNECT, (1, base58.b58decode(peer_id)), (2, Multiaddr(place).to_bytes()))

    async def hang_up(self, peer_id: str) -> None:
        await self._tell(DISCONNECT, (1, base58.b58decode(peer_id)))

    async def open(self, peer_id: str, protocol: str) -> trio.SocketStream:
        """A stream of go to a peer, as a socket. Closing its write end closes go's stream in both directions."""
        return await self._ask(STREAM_OPEN, (1, base58.b58decode(peer_id)), (2, protocol.encode()))

    @asynccontextmanager
    async def serving(self, protocol: str, handler: Handler) -> AsyncIterator[None]:
        """Have go serve `protocol` by `handler`, which gets each stream as a socket; it is closed when that returns.

        When the other side finishes, go closes the socket in both directions, and may reset the stream for that.
        """

        async def serve(stream: trio.SocketStream) -> None:
            await read_message(stream)
            await handler(stream)

        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            place = Multiaddr(f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}").to_bytes()
            await self._tell(STREAM_HANDLER, (1, place), (2, protocol.encode()), (3, 0))
            try:
                yield
            finally:
                with trio.move_on_after(END_SECONDS, shield=True):
                    await self._tell(REMOVE_STREAM_HANDLER, (1, place), (2, protocol.encode()))
                nursery.cancel_scope.cancel()

    async def _tell(self, request: tuple[int, int], *details: tuple[int, Value]) -> None:
        await (await self._ask(request, *details)).aclose()

    async def _ask(self, request: tuple[int, int], *details: tuple[int, Value]) -> trio.SocketStream:
        """The connection, behind an answer that says it was done. Raises Failed."""
        number, field = request
        encoded = message((1, number), (field, message(*details)))
        stream = await trio.open_unix_socket(self._socket)
        try:
            await stream.send_all(varint(len(encoded)) + encoded)
            answer = await read_message(stream)
            if answer[1] != 0:
                raise Failed(str(answer))
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

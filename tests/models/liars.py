"""Gateways that lie. Each speaks just enough HTTP to be asked for blocks, and tells one kind of untruth."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from octonode.ipfs import car
from octonode.ipfs.blocks import Body
from octonode.ipfs.gateway_query import CAR_TYPE, RAW_TYPE, BadQuery, GatewayQuery, parse_target
from octonode.models.store import ModelStore

Answer = Callable[["Liar", trio.SocketStream, GatewayQuery, bytes], Awaitable[None]]
"""Sends an answer for a query whose true body is the last argument; raises nothing but what the stream raises."""


@dataclass
class Liar:
    """What it was asked, and where it sends askers that it redirects."""

    store: ModelStore
    lie: Answer
    elsewhere: int = 0
    asked: int = 0
    bitmap: Callable[[bytes], bytes] = field(default=lambda bits: bits)

    async def serve(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                buffer = b""
                while True:
                    while b"\r\n\r\n" not in buffer:
                        more = await stream.receive_some()
                        if not more:
                            return
                        buffer += more
                    head, _, buffer = buffer.partition(b"\r\n\r\n")
                    await self._answer(stream, head.decode("ascii"))

    async def _answer(self, stream: trio.SocketStream, head: str) -> None:
        target = head.split(" ")[1]
        accept = next((line.split(":")[1] for line in head.splitlines() if line.lower().startswith("accept:")), "")
        try:
            query = parse_target(target, accept.strip())
        except BadQuery:
            await send(stream, b"", status="400 Bad Request")
            return
        if query.kind == "have":
            await send(stream, self.bitmap(self.store.have(query.cid) or b""))
            return
        body = await trio.to_thread.run_sync(self._true_body, query)
        if body is None:
            await send(stream, b"", status="404 Not Found")
        elif query.kind == "raw" and query.cid.codec != 0x55:
            await send(stream, body, kind=RAW_TYPE)  # nodes are true: the lie is in the leaves
        else:
            self.asked += 1
            await self.lie(self, stream, query, body)

    def _true_body(self, query: GatewayQuery) -> bytes | None:
        body: Body | None
        if query.kind == "raw":
            body = self.store.block(query.cid)
        else:
            body = self.store.run(query.cid, query.first_byte, query.last_byte, nodes=query.nodes)
        if body is None:
            return None
        try:
            return body.read()
        finally:
            body.close()


async def send(
    stream: trio.SocketStream, body: bytes, *, kind: str = "", status: str = "200 OK", length: int = -1
) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind or 'application/octet-stream'}\r\n"
    head += f"Content-Length: {len(body) if length < 0 else length}\r\n\r\n"
    await stream.send_all(head.encode() + body)


def _kind(query: GatewayQuery) -> str:
    return RAW_TYPE if query.kind == "raw" else CAR_TYPE


async def wrong_bytes(_: Liar, stream: trio.SocketStream, query: GatewayQuery, body: bytes) -> None:
    """The right size; the last byte is another one."""
    await send(stream, body[:-1] + bytes([body[-1] ^ 1]), kind=_kind(query))


async def too_short(_: Liar, stream: trio.SocketStream, query: GatewayQuery, body: bytes) -> None:
    """Whole as HTTP, half as a block."""
    await send(stream, body[: len(body) // 2], kind=_kind(query))


async def breaks_off(_: Liar, stream: trio.SocketStream, query: GatewayQuery, body: bytes) -> None:
    """The right length in the head, half of it sent."""
    await send(stream, body[: len(body) // 2], kind=_kind(query), length=len(body))
    await stream.aclose()


async def too_long(_: Liar, stream: trio.SocketStream, query: GatewayQuery, body: bytes) -> None:
    """A thousand times what is due, by its own word."""
    await send(stream, body, kind=_kind(query), length=1000 * len(body))


async def endless(_: Liar, stream: trio.SocketStream, query: GatewayQuery, body: bytes) -> None:
    """Chunk after chunk without an end."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {_kind(query)}\r\nTransfer-Encoding: chunked\r\n\r\n"
    await stream.send_all(head.encode())
    for _number in itertools.count():
        await stream.send_all(b"10000\r\n" + bytes(0x10000) + b"\r\n")


async def slow_drip(_: Liar, stream: trio.SocketStream, query: GatewayQuery, body: bytes) -> None:
    """True bytes, one at a time."""
    await send(stream, b"", kind=_kind(query), length=len(body))
    for number in range(len(body)):
        await stream.send_all(body[number : number + 1])
        await trio.sleep(0.1)


async def silent(_: Liar, stream: trio.SocketStream, query: GatewayQuery, body: bytes) -> None:
    """Takes the question and says nothing."""
    await trio.sleep_forever()


async def redirects(liar: Liar, stream: trio.SocketStream, query: GatewayQuery, body: bytes) -> None:
    """To a machine that the asker alone may be able to reach."""
    head = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{liar.elsewhere}/secret\r\nContent-Length: 0\r\n\r\n"
    await stream.send_all(head.encode())


async def other_blocks(_: Liar, stream: trio.SocketStream, query: GatewayQuery, body: bytes) -> None:
    """True blocks that nobody asked for."""
    from octonode.ipfs.cid import raw_cid

    other = bytes(1024)
    if query.kind == "raw":
        await send(stream, other, kind=RAW_TYPE)
    else:
        await send(stream, b"".join(car.encode([query.cid], [(raw_cid(other), other)])), kind=CAR_TYPE)


async def denies(_: Liar, stream: trio.SocketStream, query: GatewayQuery, body: bytes) -> None:
    """Its bitmap says that it has everything, and then it has nothing."""
    await send(stream, b"", status="404 Not Found")


async def no_http(_: Liar, stream: trio.SocketStream, query: GatewayQuery, body: bytes) -> None:
    await stream.send_all(b"\x00\xff" * 600 + b"\r\n\r\n")
    await stream.aclose()


LIES: tuple[Answer, ...] = (
    wrong_bytes, too_short, breaks_off, too_long, endless, slow_drip, silent, redirects, other_blocks, denies, no_http,
)  # fmt: skip


@contextlib.asynccontextmanager
async def lying(store: ModelStore, lie: Answer) -> AsyncIterator[tuple[Liar, int]]:
    """The liar and its port."""
    liar = Liar(store, lie)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, liar.serve, 0, host="127.0.0.1"))
        yield liar, listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def bystander() -> AsyncIterator[tuple[list[bytes], int]]:
    """A machine that nobody should be sent to: what it was sent, and its port."""
    heard: list[bytes] = []

    async def hear(stream: trio.SocketStream) -> None:
        heard.append(await stream.receive_some() or b"connected")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, hear, 0, host="127.0.0.1"))
        yield heard, listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()

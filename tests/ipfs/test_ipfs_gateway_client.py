"""The gateway client against a real gateway, and against servers that lie, stall, redirect and talk too much."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from octonode.errors import NotFound, OctonodeError, RemoteProtocolError, Unreachable
from octonode.ipfs import car
from octonode.ipfs.car import Section
from octonode.ipfs.cid import raw_cid
from octonode.ipfs.gateway_client import GatewayAddress, GatewayClient, Stalled, Timeouts
from octonode.ipfs.unixfs import LEAF_BYTES

QUICK = Timeouts(connect_seconds=5.0, head_seconds=0.5, stall_seconds=0.5, bytes_per_second_min=1)
LEAF = raw_cid(b"leaf")


@contextlib.asynccontextmanager
async def _server(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[GatewayAddress]:
    """A server of one's own making; each connection runs `handler` once the request head is there."""

    async def handle(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = await stream.receive_some()
                    if not piece:
                        return
                    head += piece
                await handler(stream)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, handle, 0)
            yield GatewayAddress("127.0.0.1", listeners[0].socket.getsockname()[1])
            nursery.cancel_scope.cancel()


def _says(data: bytes, *, then_wait: bool = False) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        if then_wait:
            await trio.sleep_forever()

    return handler


async def test_blocks_runs_and_the_bitmap_over_one_connection(one_file: Any, serve: Any) -> None:
    data, root = one_file.path.read_bytes(), one_file.dag.root
    async with serve(one_file) as gateway:
        client = GatewayClient(GatewayAddress("127.0.0.1", gateway.port))
        try:
            assert root.matches(await client.block(root))
            assert await client.have(root) == b"\xff"
            with pytest.raises(NotFound):
                await client.block(LEAF)
            buffer = bytearray(3 * LEAF_BYTES)
            found: list[Section] = []
            await client.run(root, LEAF_BYTES, 3 * LEAF_BYTES - 1, buffer, found.extend)
            assert b"".join(buffer[s.start : s.end] for s in found) == data[LEAF_BYTES : 3 * LEAF_BYTES]
            assert gateway.connections == 1
        finally:
            client.close()


async def test_a_kept_connection_that_was_closed_is_opened_again(one_file: Any, serve: Any) -> None:
    client = None
    for _ in range(2):
        async with serve(one_file) as gateway:
            client = client or GatewayClient(GatewayAddress("127.0.0.1", gateway.port))
            client.address = GatewayAddress("127.0.0.1", gateway.port)
            assert one_file.dag.root.matches(await client.block(one_file.dag.root))
    assert client is not None
    client.close()


REPLIES: list[tuple[str, bytes, type[OctonodeError]]] = [
    (
        "redirect",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        RemoteProtocolError,
    ),
    ("oversized", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nxxxx", RemoteProtocolError),
    ("no length", b"HTTP/1.1 200 OK\r\n\r\nleaf", RemoteProtocolError),
    ("chunked", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nleaf\r\n0\r\n\r\n", RemoteProtocolError),
    ("negative", b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nleaf", RemoteProtocolError),
    ("not http", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", RemoteProtocolError),
    ("long head", b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000, RemoteProtocolError),
    ("interim", b"HTTP/1.1 100 Continue\r\n\r\n", RemoteProtocolError),
    ("cut head", b"HTTP/1.1 200 O", Unreachable),
    ("cut body", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", Unreachable),
    ("nothing", b"", Unreachable),
    ("404", b'HTTP/1.1 404 Not Found\r\nContent-Length: 28\r\n\r\n{"error":{"message":"gone"}}', NotFound),
    ("503", b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nfull", OctonodeError),
]


@pytest.mark.parametrize(("reply", "error"), [row[1:] for row in REPLIES], ids=[row[0] for row in REPLIES])
async def test_every_bad_answer_is_a_typed_error(reply: bytes, error: type[OctonodeError]) -> None:
    async with _server(_says(reply)) as address:
        client = GatewayClient(address)
        with pytest.raises(error) as caught:
            await client.block(LEAF)
        client.close()
        assert type(caught.value) in (error, Stalled)


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"]
)
async def test_silence_is_a_stall(sent: bytes) -> None:
    async with _server(_says(sent, then_wait=True)) as address:
        client = GatewayClient(address, QUICK)
        with pytest.raises(Stalled):
            await client.block(LEAF)
        client.close()


async def test_a_trickle_is_a_stall() -> None:
    async def trickle(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.05)

    async with _server(trickle) as address:
        client = GatewayClient(address, Timeouts(stall_seconds=0.3, bytes_per_second_min=1_000_000))
        with pytest.raises(Stalled):
            await client.block(LEAF)
        client.close()


async def test_nobody_there() -> None:
    async with _server(_says(b"")) as address:
        pass
    client = GatewayClient(address, QUICK)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1"):
        await client.block(LEAF)


def _ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    "body",
    [
        b"not a car at all, but some text",
        car.header([LEAF])[:-3],
        car.header([LEAF]) + car.section_prefix(LEAF, 4) + b"le",
        car.header([LEAF]) + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"",
    ],
)
async def test_runs_that_are_no_car_are_remote_errors(body: bytes) -> None:
    async with _server(_says(_ok(body))) as address:
        client = GatewayClient(address, QUICK)
        with pytest.raises(RemoteProtocolError):
            await client.run(LEAF, 0, 3, bytearray(1000), lambda sections: None)
        client.close()


async def test_a_run_longer_than_its_buffer_is_refused_before_it_is_received() -> None:
    async with _server(_says(_ok(bytes(1001)))) as address:
        client = GatewayClient(address, QUICK)
        with pytest.raises(RemoteProtocolError) as caught:
            await client.run(LEAF, 0, 3, bytearray(1000), lambda sections: None)
        client.close()
        assert caught.value.code == "TOO_LARGE"

"""Real connections for a test: the library's Noise handshake over loopback TCP or trio's memory, and muxers on top."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.stream_muxer.yamux.yamux import Yamux

from octonode.network.libp2p.muxing.connection import MuxedConnection, Serve
from octonode.network.libp2p.muxing.muxed import MuxedStream
from octonode.network.libp2p.muxing.windows import Limits
from octonode.network.libp2p.noise import NoiseChannel

_SERIAL = itertools.count()
Secured = Any
"""The library's `SecureSession`, or our `NoiseChannel`."""


class MemoryStream(ReadWriteCloser):  # type: ignore[misc]
    """What a websocket or a relay is to us: a stream that is no socket of trio's."""

    def __init__(self, stream: trio.StapledStream[Any, Any]) -> None:
        self.stream_of_memory = stream
        self.seconds_per_write = 0.0
        """How long the peer takes for what we send in one piece."""

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.stream_of_memory.receive_some(n))

    async def write(self, data: bytes) -> None:
        if self.seconds_per_write:
            await trio.sleep(self.seconds_per_write)
        await self.stream_of_memory.send_all(data)

    async def close(self) -> None:
        await self.stream_of_memory.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        one = await trio.open_tcp_stream(*listener.socket.getsockname())
        return one, await listener.accept()


async def handshake(one: ReadWriteCloser, two: ReadWriteCloser) -> tuple[Secured, Secured]:
    """The library's sessions at both ends, fresh from its handshake; the first is the initiator."""
    keys = [create_new_key_pair(hashlib.sha256(b"link %d" % next(_SERIAL)).digest()) for _ in range(2)]
    first, second = (NoiseTransport(key, noise_privkey=create_noise_key_pair().private_key) for key in keys)
    sessions: dict[int, Any] = {}

    async def inbound() -> None:
        sessions[1] = await second.secure_inbound(RawConnection(two, False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbound)
        sessions[0] = await first.secure_outbound(RawConnection(one, True), ID.from_pubkey(keys[1].public_key))
    return sessions[0], sessions[1]


async def secured_over_tcp() -> tuple[Secured, Secured]:
    one, two = await tcp_pair()
    return await handshake(TrioTCPStream(one), TrioTCPStream(two))


async def secured_over_memory() -> tuple[Secured, Secured]:
    """Under a virtual clock: no kernel takes part."""
    one, two = trio.testing.memory_stream_pair()
    return await handshake(MemoryStream(one), MemoryStream(two))


def raw_of(secured: Secured) -> Any:
    """The `MemoryStream` or `TrioTCPStream` at the bottom."""
    return secured.conn.read_writer.read_write_closer.stream


def socket_of(secured: Secured) -> Any:
    return raw_of(secured).stream.socket


async def echo(stream: MuxedStream) -> None:
    """Until the peer's end, which is answered by ours."""
    with contextlib.suppress(MuxedStreamEOF):
        while True:
            await stream.write(await stream.read(65_536))
    await stream.close()


async def read_on(stream: Any, into: bytearray | None = None) -> None:
    """Read until the stream says why there is no more, which is raised."""
    while True:
        data = await stream.read(65_536)
        if into is not None:
            into += data


async def silent(stream: MuxedStream) -> None:
    await trio.sleep_forever()


class Muxers:
    """Two `MuxedConnection`s that run, the initiator first."""

    def __init__(self, one: MuxedConnection, two: MuxedConnection) -> None:
        self.one, self.two = one, two
        self.ended: dict[MuxedConnection, trio.Event] = {one: trio.Event(), two: trio.Event()}

    async def run(self, connection: MuxedConnection) -> None:
        await connection.start()
        self.ended[connection].set()

    def inject(self, wire: bytes) -> None:
        """Frames from the first end that its session knows nothing of."""
        self.one.session.outbox._control += wire
        self.one._flush()


@asynccontextmanager
async def muxers(
    *,
    over: Callable[[], Awaitable[tuple[Secured, Secured]]] = secured_over_tcp,
    limits: Limits | None = None,
    serve: Serve | None = echo,
) -> AsyncIterator[Muxers]:
    """`serve` is what the second end does with streams; None: they wait for `accept_stream`."""
    first, second = await over()
    one = MuxedConnection(NoiseChannel(first), first.remote_peer, limits=limits)
    two = MuxedConnection(NoiseChannel(second), second.remote_peer, limits=limits, serve=serve)
    both = Muxers(one, two)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(both.run, one)
        nursery.start_soon(both.run, two)
        await one.event_started.wait()
        await two.event_started.wait()
        yield both
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def against_the_library(
    *, we_dial: bool, limits: Limits | None = None, serve: Serve | None = None
) -> AsyncIterator[tuple[MuxedConnection, Any]]:
    """Ours, and the library's `Yamux` at the other end."""
    first, second = await secured_over_tcp()
    ours, theirs = (first, second) if we_dial else (second, first)
    one = MuxedConnection(NoiseChannel(ours), ours.remote_peer, limits=limits, serve=serve)
    two = Yamux(theirs, theirs.remote_peer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.start)
        nursery.start_soon(two.start)
        await one.event_started.wait()
        await two.event_started.wait()
        yield one, two
        nursery.cancel_scope.cancel()

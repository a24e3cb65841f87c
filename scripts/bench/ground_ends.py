"""The two ends of `ground.py`, each a process: what one muxer does with the other.

    python -m scripts.bench.ground_ends serve KIND             prints its address and waits
    python -m scripts.bench.ground_ends measure KIND ADDRESS PID   one round against it; prints figures as JSON

KIND is `own` or `stock` for a host of ours on that muxer, or `library` for py-libp2p alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

import psutil
import trio

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.network.host import Stream
from scripts.bench.rows import median

ECHO, TOKENS, BULK = "/bench/echo/1", "/bench/tokens/1", "/bench/bulk/1"
MESSAGE_BYTES = 100
ECHOES = 1_000
OPENS = 300
MANY_STREAMS, MANY_ECHOES = 200, 25
TOKEN_STREAMS = 32
TOKEN_BYTES = {"own": 12_000_000, "stock": 800_000, "library": 800_000}
BULK_BYTES = {"own": 512_000_000, "stock": 128_000_000, "library": 128_000_000}
"""So that each takes about a second."""
PIECE_BYTES = 65_536

Open = Callable[[str], Awaitable[Any]]


class Plain:
    """A stream of the library under the three verbs that the measurements use."""

    def __init__(self, net_stream: Any) -> None:
        self._net = net_stream

    async def send(self, data: bytes) -> None:
        await self._net.write(data)

    async def receive(self, max_bytes: int = PIECE_BYTES) -> bytes:
        from libp2p.network.stream.exceptions import StreamEOF

        try:
            return bytes(await self._net.read(max_bytes))
        except StreamEOF:
            return b""

    async def finish(self) -> None:
        await self._net.close_write()

    async def end(self) -> None:
        """As a question ends that was answered: both ends finish."""
        await self.finish()
        while await self.receive():
            pass


class Ours(Plain):
    """The same for a `Stream`."""

    def __init__(self, stream: Stream) -> None:
        self.send, self.receive, self.finish = stream.send, stream.receive, stream.finish  # type: ignore[method-assign]


async def echo(stream: Plain) -> None:
    while data := await stream.receive():
        await stream.send(data)


async def pour(stream: Plain, piece: bytes) -> None:
    size = int.from_bytes(await stream.receive(8), "big")
    for _ in range(0, size, len(piece)):
        await stream.send(piece)
    await stream.finish()


async def pour_tokens(stream: Plain) -> None:
    await pour(stream, bytes(MESSAGE_BYTES))


async def pour_bulk(stream: Plain) -> None:
    await pour(stream, bytes(PIECE_BYTES))


HANDLERS = {ECHO: echo, TOKENS: pour_tokens, BULK: pour_bulk}


def key(role: str) -> NodeKey:
    return NodeKey(hashlib.sha256(f"bench {role} {os.getpid()}".encode()).digest())


@asynccontextmanager
async def our_host(kind: Literal["own", "stock"], address: str) -> AsyncIterator[tuple[str, Open, Callable[[], None]]]:
    """(its address, how to open a stream at `address`, how to make the next opening ask first)."""
    from octonode.network.libp2p.host import Libp2pHost

    host = Libp2pHost(key(kind), NetworkConfig(listen="127.0.0.1:0", muxer=kind))
    for protocol, handler in HANDLERS.items():

        async def serve(stream: Stream, handler: Callable[[Plain], Awaitable[None]] = handler) -> None:
            await handler(Ours(stream))

        host.handle(protocol, serve)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        peer = await host.connect(address) if address else None

        async def open_stream(protocol: str) -> Ours:
            assert peer is not None
            return Ours(await host.open(peer, protocol))

        def forget() -> None:
            for connection in host.library.get_network().get_connections():
                getattr(connection.muxed_conn, "proven", set()).clear()

        yield host.addresses[0], open_stream, forget
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def library_host(address: str) -> AsyncIterator[tuple[str, Open, Callable[[], None]]]:
    from libp2p import NOISE_PROTOCOL_ID, NoiseTransport, new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
    from libp2p.custom_types import TProtocol
    from libp2p.network import swarm
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    swarm._HAPPY_EYEBALLS_DELAY = 0.001
    pair = create_new_key_pair(key("library").transport_seed())
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    noise = NoiseTransport(pair, noise_privkey=create_noise_key_pair().private_key)
    host = new_host(key_pair=pair, listen_addrs=listen, sec_opt={TProtocol(NOISE_PROTOCOL_ID): noise})
    for protocol, handler in HANDLERS.items():

        async def serve(net_stream: Any, handler: Callable[[Plain], Awaitable[None]] = handler) -> None:
            try:
                await handler(Plain(net_stream))
                await net_stream.close()
            except Exception:
                await net_stream.reset()

        host.set_stream_handler(TProtocol(protocol), serve)
    async with host.run(listen_addrs=listen):
        info = info_from_p2p_addr(Multiaddr(address)) if address else None
        if info is not None:
            await host.connect(info)

        async def open_stream(protocol: str) -> Plain:
            assert info is not None
            return Plain(await host.new_stream(info.peer_id, [TProtocol(protocol)]))

        yield str(host.get_addrs()[0]), open_stream, lambda: None


def running(kind: str, address: str = "") -> Any:
    return library_host(address) if kind == "library" else our_host(cast(Literal["own", "stock"], kind), address)


async def serve(kind: str) -> None:
    async with running(kind) as (address, _, _):
        print(address, flush=True)
        await trio.sleep_forever()


# The measuring end.


async def ask(stream: Plain) -> None:
    await stream.send(bytes(MESSAGE_BYTES))
    left = MESSAGE_BYTES
    while left:
        left -= len(await stream.receive(left))


async def echo_ms(open_stream: Open) -> float:
    stream, taken = await open_stream(ECHO), []
    for _ in range(ECHOES):
        begun = time.perf_counter()
        await ask(stream)
        taken.append(time.perf_counter() - begun)
    await stream.end()
    return 1000 * median(taken)


async def open_ms(open_stream: Open, before: Callable[[], None]) -> float:
    taken = []
    for _ in range(OPENS):
        before()
        begun = time.perf_counter()
        stream = await open_stream(ECHO)
        await ask(stream)
        taken.append(time.perf_counter() - begun)
        await stream.end()
    return 1000 * median(taken)


async def many_cpu_us(open_stream: Open, pid: int) -> float:
    """CPU microseconds an echo, of both processes."""
    streams = [await open_stream(ECHO) for _ in range(MANY_STREAMS)]

    async def echoes(stream: Plain) -> None:
        for _ in range(MANY_ECHOES):
            await ask(stream)

    processes = psutil.Process(pid), psutil.Process()
    before = sum(sum(each.cpu_times()[:2]) for each in processes)
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(echoes, stream)
    used = sum(sum(each.cpu_times()[:2]) for each in processes) - before
    for stream in streams:
        await stream.end()
    return float(1e6 * used / (MANY_STREAMS * MANY_ECHOES))


async def pour_seconds(open_stream: Open, protocol: str, streams: int, size: int) -> float:
    async def drink() -> None:
        stream = await open_stream(protocol)
        await stream.send((size // streams).to_bytes(8, "big"))
        while await stream.receive(PIECE_BYTES):
            pass
        await stream.end()

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(streams):
            nursery.start_soon(drink)
    return time.perf_counter() - begun


async def measure(kind: str, address: str, pid: int) -> None:
    figures: dict[str, float] = {}
    async with running(kind, address) as (_, open_stream, forget):
        await trio.sleep(0.5)
        figures["echo_ms"] = await echo_ms(open_stream)
        figures["open_ms"] = await open_ms(open_stream, forget)
        figures["open_fast_ms"] = await open_ms(open_stream, lambda: None)
        figures["many_cpu_us"] = await many_cpu_us(open_stream, pid)
        size = TOKEN_BYTES[kind]
        seconds = await pour_seconds(open_stream, TOKENS, TOKEN_STREAMS, size)
        figures["token_frames_per_second"] = size / MESSAGE_BYTES / seconds
        size = BULK_BYTES[kind]
        await pour_seconds(open_stream, BULK, 1, size // 4)  # for windows to grow
        figures["bulk_mb_per_second"] = size / 1e6 / await pour_seconds(open_stream, BULK, 1, size)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        trio.run(serve, sys.argv[2])
    else:
        trio.run(measure, sys.argv[2], sys.argv[3], int(sys.argv[4]))

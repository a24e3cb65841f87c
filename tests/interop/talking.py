"""What our side serves, and how it talks: the same handlers and exchanges with every peer."""

from __future__ import annotations

import hashlib
import os

import trio

from octonode.ids import PeerId
from octonode.network.host import Stream, StreamReset
from tests.interop.hosts import OurHost

ECHO, DIGEST, PAUSE, RESET, WATCH = (f"/test/{name}/1" for name in ("echo", "digest", "pause", "reset", "watch"))
PING = "/ipfs/ping/1.0.0"
IDENTIFY = "/ipfs/id/1.0.0"
FEW = b"a few bytes"
PIECE_BYTES = 64 * 1024
PAUSE_SECONDS = 1.0
GENEROUS_SECONDS = 60


async def receive_all(stream: Stream) -> bytes:
    pieces = []
    while piece := await stream.receive():
        pieces.append(piece)
    return b"".join(pieces)


async def receive_exactly(stream: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive(count - len(data))
        assert piece, f"the end after {len(data)} of {count} bytes"
        data += piece
    return data


async def send_all(stream: Stream, data: bytes) -> None:
    for start in range(0, len(data), PIECE_BYTES):
        await stream.send(data[start : start + PIECE_BYTES])


def serve_all(host: OurHost) -> list[str]:
    """Have `host` serve each protocol. The list tells how peers ended their streams of WATCH: "end" or "reset"."""
    endings: list[str] = []

    async def echo(stream: Stream) -> None:
        while piece := await stream.receive():
            await stream.send(piece)

    async def digest(stream: Stream) -> None:
        await stream.send(hashlib.sha256(await receive_all(stream)).hexdigest().encode())

    async def pause(stream: Stream) -> None:
        await trio.sleep(PAUSE_SECONDS)
        await digest(stream)

    async def reset(stream: Stream) -> None:
        await stream.receive()
        await stream.reset()

    async def watch(stream: Stream) -> None:
        await stream.send(FEW)
        try:
            await receive_all(stream)
            endings.append("end")
        except StreamReset:
            endings.append("reset")

    for protocol, handler in ((ECHO, echo), (DIGEST, digest), (PAUSE, pause), (RESET, reset), (WATCH, watch)):
        host.handle(protocol, handler)
    return endings


async def ask(host: OurHost, peer_id: str, protocol: str, question: bytes) -> bytes:
    """Send `question` while reading, finish, and read the answer to its end."""
    stream = await host.open(PeerId(peer_id), protocol)

    async def send() -> None:
        await send_all(stream, question)
        await stream.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        return await receive_all(stream)


async def echoes(host: OurHost, peer_id: str, size: int, protocol: str = ECHO) -> bool:
    question = os.urandom(size)
    return await ask(host, peer_id, protocol, question) == question


async def ping(host: OurHost, peer_id: str, count: int = 1) -> None:
    """By hand: 32 bytes there and back, `count` times on one stream; then both ends finish."""
    stream = await host.open(PeerId(peer_id), PING)
    for _ in range(count):
        question = os.urandom(32)
        await stream.send(question)
        assert await receive_exactly(stream, 32) == question
    await stream.finish()
    assert await receive_all(stream) == b""


async def crowd(host: OurHost, peer_id: str, protocol: str, count: int) -> None:
    """Open all streams before the first is used, and end none before the last was."""
    streams: list[Stream] = []

    async def open_one() -> None:
        streams.append(await host.open(PeerId(peer_id), protocol))

    async def use(stream: Stream) -> None:
        question = os.urandom(32)
        await stream.send(question)
        assert await receive_exactly(stream, 32) == question

    async def end(stream: Stream) -> None:
        await stream.finish()
        assert await receive_all(stream) == b""

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(open_one)
    for step in (use, end):
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(step, stream)
    assert len(streams) == count

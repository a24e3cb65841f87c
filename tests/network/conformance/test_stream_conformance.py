"""What any stream does, in memory and over libp2p."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from octonode.network.host import Stream, StreamReset

ECHO = "/test/echo/1"
OTHER = "/test/other/1"
Handler = Callable[[Stream], Awaitable[None]]
Ask = Callable[[Stream, bytes], Awaitable[bytes]]
GENEROUS_SECONDS = 60


def noise(size: int) -> bytes:
    return (hashlib.sha256(str(size).encode()).digest() * (size // 32 + 1))[:size]


@pytest.mark.parametrize("size", [0, 1, 1_000, 70_000, 5_000_000])
async def test_an_echo_comes_back_whole(world: Any, echo: Handler, ask: Ask, size: int) -> None:
    a, b = await world.pair()
    b.handle(ECHO, echo)
    with trio.fail_after(GENEROUS_SECONDS):
        stream = await a.open(b.peer_id, ECHO)
        assert (stream.peer_id, stream.protocol) == (b.peer_id, ECHO)
        assert await ask(stream, noise(size)) == noise(size)


async def test_who_was_dialled_opens_streams_too(world: Any, echo: Handler, ask: Ask) -> None:
    a, b = await world.pair()
    a.handle(ECHO, echo)
    with trio.fail_after(GENEROUS_SECONDS):
        assert await ask(await b.open(a.peer_id, ECHO), b"hello") == b"hello"


async def test_half_close_lets_the_answer_follow_the_whole_question(
    world: Any, ask: Ask, read_all: Callable[[Stream], Awaitable[bytes]]
) -> None:
    a, b = await world.pair()

    async def digest(stream: Stream) -> None:
        await stream.send(hashlib.sha256(await read_all(stream)).digest())
        await stream.finish()

    b.handle(OTHER, digest)
    with trio.fail_after(GENEROUS_SECONDS):
        question = noise(300_000)
        assert await ask(await a.open(b.peer_id, OTHER), question) == hashlib.sha256(question).digest()


async def test_the_handler_may_speak_first(world: Any) -> None:
    a, b = await world.pair()

    async def greet(stream: Stream) -> None:
        await stream.send(b"welcome")
        assert await stream.receive() == b"thanks"

    b.handle(OTHER, greet)
    with trio.fail_after(GENEROUS_SECONDS):
        stream = await a.open(b.peer_id, OTHER)
        assert await stream.receive() == b"welcome"
        await stream.send(b"thanks")
        await stream.finish()
        assert await stream.receive() == b""
        assert await stream.receive() == b""


async def test_a_reset_by_the_opener_reaches_the_handler(world: Any) -> None:
    a, b = await world.pair()
    seen: list[BaseException] = []
    done = trio.Event()

    async def handler(stream: Stream) -> None:
        try:
            await stream.send(b"ready")
            await stream.receive()
        except StreamReset as error:
            seen.append(error)
        finally:
            done.set()

    b.handle(OTHER, handler)
    with trio.fail_after(GENEROUS_SECONDS):
        stream = await a.open(b.peer_id, OTHER)
        assert await stream.receive() == b"ready"
        await stream.reset()
        await stream.reset()
        await done.wait()
    assert len(seen) == 1
    with pytest.raises(StreamReset):
        await stream.receive()
    with pytest.raises(StreamReset):
        await stream.send(b"more")


async def test_a_reset_by_the_handler_reaches_the_opener(world: Any) -> None:
    a, b = await world.pair()

    async def handler(stream: Stream) -> None:
        await stream.receive()
        await stream.reset()

    b.handle(OTHER, handler)
    with trio.fail_after(GENEROUS_SECONDS):
        stream = await a.open(b.peer_id, OTHER)
        await stream.send(b"go")
        with pytest.raises(StreamReset):
            await stream.receive()
        with pytest.raises(StreamReset):
            await stream.send(b"more")


async def test_a_reset_by_another_task_wakes_a_waiting_reader(world: Any, echo: Handler) -> None:
    a, b = await world.pair()
    b.handle(ECHO, echo)
    with trio.fail_after(GENEROUS_SECONDS):
        stream = await a.open(b.peer_id, ECHO)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(StreamReset):
                    await stream.receive()

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await stream.reset()


async def test_a_receive_that_is_cancelled_loses_nothing(world: Any) -> None:
    a, b = await world.pair()
    pieces = [noise(5_000 + index) for index in range(40)]

    async def pour(stream: Stream) -> None:
        for piece in pieces:
            await stream.send(piece)
            await trio.sleep(0.001)
        await stream.finish()

    b.handle(OTHER, pour)
    got = bytearray()
    with trio.fail_after(GENEROUS_SECONDS):
        stream = await a.open(b.peer_id, OTHER)
        while True:
            with trio.move_on_after(0.0005) as impatience:
                data = await stream.receive(1_000)
            if impatience.cancelled_caught:
                continue
            if not data:
                break
            got += data
    assert bytes(got) == b"".join(pieces)


async def test_a_handler_that_returns_at_once_ends_the_stream_for_the_opener(world: Any) -> None:
    a, b = await world.pair()

    async def answer(stream: Stream) -> None:
        await stream.send(b"no")

    b.handle(OTHER, answer)
    with trio.fail_after(GENEROUS_SECONDS):
        stream = await a.open(b.peer_id, OTHER)
        assert await stream.receive() == b"no"
        assert await stream.receive() == b""
        await stream.finish()


async def test_a_stalled_reader_blocks_nobody_else(world: Any, echo: Handler, ask: Ask) -> None:
    a, b = await world.pair()
    release = trio.Event()

    async def stall(stream: Stream) -> None:
        await release.wait()

    b.handle(OTHER, stall)
    b.handle(ECHO, echo)
    with trio.fail_after(GENEROUS_SECONDS):
        stalled = await a.open(b.peer_id, OTHER)
        async with trio.open_nursery() as nursery:

            async def fill() -> None:
                # Over libp2p the stock muxer gives up after five seconds; either way we are only held up ourselves.
                with pytest.raises(StreamReset):
                    await stalled.send(bytes(32 * 1024 * 1024))

            nursery.start_soon(fill)
            await trio.sleep(0.2)
            for _ in range(5):
                assert await ask(await a.open(b.peer_id, ECHO), noise(100_000)) == noise(100_000)
            release.set()
            await stalled.reset()


async def test_many_streams_at_once(world: Any, echo: Handler, ask: Ask) -> None:
    a, b = await world.pair()
    b.handle(ECHO, echo)
    everybody_is_in = trio.Event()
    streams: list[Stream] = []

    async def one(index: int) -> None:
        stream = await a.open(b.peer_id, ECHO)
        streams.append(stream)
        if len(streams) == 199:
            everybody_is_in.set()
        await everybody_is_in.wait()
        data = noise(index + 1)
        assert await ask(stream, data) == data

    with trio.fail_after(GENEROUS_SECONDS):
        async with trio.open_nursery() as nursery:
            for index in range(199):
                nursery.start_soon(one, index)


@pytest.mark.slow
async def test_a_thousand_streams_in_a_row(world: Any, echo: Handler, ask: Ask) -> None:
    """None of the bounds counts what is over: 255 streams a connection and 200 a peer are far behind us here."""
    a, b = await world.pair()
    b.handle(ECHO, echo)
    with trio.fail_after(2 * GENEROUS_SECONDS):
        for index in range(1_000):
            assert await ask(await a.open(b.peer_id, ECHO), b"%d" % index) == b"%d" % index

"""go-libp2p and us, by the daemon `p2pd`: pings, echoes, crowds of streams, ends and resets, whoever dialled."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import pytest
import trio

from octonode.network.host import StreamReset
from tests.interop import talking
from tests.interop.conftest import DIRECTIONS
from tests.interop.hosts import SIDES, TELLS_RESETS, only, protocols_of
from tests.interop.talking import ECHO, FEW, IDENTIFY, PING, RESET, WATCH

SIZES = [1, 100, 1_000_000, 20_000_000]
GO_ECHO = "/test/go-echo/1"
GO_RESET = "/test/go-reset/1"
each_side = pytest.mark.parametrize("side", only(SIDES, "tcp"), ids=str)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_size = pytest.mark.parametrize("size", SIZES)
where_resets_are_told = pytest.mark.parametrize("side", only(TELLS_RESETS, "tcp"), ids=str)


async def echo(socket: trio.SocketStream) -> None:
    """What go serves: `p2pd` hands each stream to this as a socket."""
    async for data in socket:
        await socket.send_all(data)


async def unread(socket: trio.SocketStream) -> None:
    """go resets a stream whose socket is closed while bytes in it were not read."""
    await trio.lowlevel.wait_readable(socket.socket)


@each_side
@each_direction
async def test_we_know_each_other(host: Any, go: Any, link: Any, until: Any, direction: str) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(go, direction)
        await until(lambda: {PING, IDENTIFY} <= protocols_of(host, peer_id))


@each_side
@each_direction
async def test_pings_on_many_streams_and_on_one(host: Any, go: Any, link: Any, direction: str) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(go, direction)
        for _ in range(100):
            await talking.ping(host, peer_id)
        await talking.ping(host, peer_id, count=500)


@each_side
async def test_an_answer_after_we_have_finished(host: Any, go: Any, link: Any) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(go)
        question = os.urandom(32 * 1000)
        assert await talking.ask(host, peer_id, PING, question) == question
        assert PING.encode() in await talking.ask(host, peer_id, IDENTIFY, b"")


@each_side
@each_direction
async def test_many_streams_at_once(host: Any, go: Any, link: Any, direction: str) -> None:
    async def use(released: trio.Event, opened: trio.Semaphore) -> None:
        async with await go.open(host.peer_id, ECHO) as socket:
            opened.release()
            await released.wait()
            await socket.send_all(FEW)
            assert await socket.receive_some() == FEW

    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(go, direction)
        await talking.crowd(host, peer_id, PING, 200)
        released, opened = trio.Event(), trio.Semaphore(0)
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(use, released, opened)
            for _ in range(200):
                await opened.acquire()
            released.set()


@each_side
@each_direction
@each_size
async def test_go_echoes(host: Any, go: Any, link: Any, direction: str, size: int) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(go, direction)
        question = os.urandom(size)
        async with go.serving(GO_ECHO, echo):
            stream = await host.open(peer_id, GO_ECHO)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talking.send_all, stream, question)
                answer = await talking.receive_exactly(stream, size)
            assert answer == question
            await stream.finish()
            with suppress(StreamReset):
                assert await talking.receive_all(stream) == b""


@each_side
@each_direction
@each_size
async def test_we_echo(host: Any, go: Any, link: Any, direction: str, size: int) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        await link(go, direction)
        question = os.urandom(size)
        async with await go.open(host.peer_id, ECHO) as socket, trio.open_nursery() as nursery:
            nursery.start_soon(socket.send_all, question)
            answer = bytearray()
            while len(answer) < size:
                answer += await socket.receive_some()
        assert answer == question


@where_resets_are_told
async def test_a_reset_by_go_is_no_end(host: Any, go: Any, link: Any, endings: list[str], until: Any) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(go)
        async with go.serving(GO_RESET, unread):
            stream = await host.open(peer_id, GO_RESET)
            await stream.send(FEW)
            with pytest.raises(StreamReset):
                await talking.receive_all(stream)
        socket = await go.open(host.peer_id, WATCH)
        await unread(socket)
        await socket.aclose()
        await until(lambda: endings)
        assert endings == ["reset"]
        await talking.ping(host, peer_id)


@each_side
async def test_an_end_by_go_is_no_reset(host: Any, go: Any, link: Any, endings: list[str], until: Any) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        await link(go)
        async with await go.open(host.peer_id, WATCH) as socket:
            assert await socket.receive_some() == FEW
        await until(lambda: endings)
        assert endings == ["end"]


@each_side
async def test_a_reset_by_us_ends_one_stream(host: Any, go: Any, link: Any) -> None:
    ended = trio.Event()

    async def watch(socket: trio.SocketStream) -> None:
        await echo(socket)
        ended.set()

    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(go)
        async with go.serving(GO_ECHO, watch):
            stream = await host.open(peer_id, GO_ECHO)
            await stream.send(FEW)
            assert await talking.receive_exactly(stream, len(FEW)) == FEW
            await stream.reset()
            await ended.wait()
        async with await go.open(host.peer_id, RESET) as socket:
            await socket.send_all(FEW)
            with suppress(trio.BrokenResourceError):
                assert await socket.receive_some() == b""
        await talking.ping(host, peer_id)


@each_side
@each_direction
async def test_a_connection_that_go_ends(host: Any, go: Any, link: Any, until: Any, direction: str) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        stream = await host.open(await link(go, direction, identified=True), PING)
        await go.hang_up(host.peer_id)
        with suppress(StreamReset):
            assert await talking.receive_all(stream) == b""
        await until(lambda: not host.connected)
        await talking.ping(host, await link(go))


@each_side
@each_direction
async def test_a_connection_that_we_end(host: Any, go: Any, link: Any, until: Any, direction: str) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(go, direction, identified=True)
        async with await go.open(host.peer_id, WATCH) as socket:
            assert await socket.receive_some() == FEW
            await host.disconnect(peer_id)
            assert await socket.receive_some() == b""
        await until(lambda: not host.connected)
        await talking.ping(host, await link(go))

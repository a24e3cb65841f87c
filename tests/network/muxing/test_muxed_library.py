"""Ours against the library's own Yamux, whoever dialled and whoever opened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

from octonode.network.libp2p.muxing.connection import MuxedConnection
from octonode.network.libp2p.muxing.windows import Limits
from tests.network.muxing.ends import INITIAL, RST, update
from tests.network.muxing.links import against_the_library, read_on

MIB = 1024 * 1024
TEXT = bytes(range(251)) * 20_000
Pair = tuple[MuxedConnection, Any]


@pytest.fixture(params=["we dial", "the library dials"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    with trio.fail_after(60):
        async with against_the_library(we_dial=request.param == "we dial") as ends:
            yield ends


async def opened(pair: Pair, opener: str) -> tuple[Any, Any]:
    """(our stream, the library's), with one byte read by who did not open it."""
    ours, library = pair
    if opener == "we open":
        mine = await ours.open_stream()
        await mine.write(b"!")
        theirs = await library.accept_stream()
        assert await theirs.read(1) == b"!"
    else:
        theirs = await library.open_stream()
        await theirs.write(b"!")
        mine = await ours.accept_stream()
        assert await mine.read(1) == b"!"
    return mine, theirs


async def read_exactly(stream: Any, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        got += await stream.read(65_536)
    return bytes(got)


both_openers = pytest.mark.parametrize("opener", ["we open", "the library opens"])


@both_openers
@pytest.mark.parametrize("size", [1, 1000, 70_000, 3 * MIB])
async def test_bytes_go_both_ways(pair: Pair, opener: str, size: int) -> None:
    for source, target in (streams := await opened(pair, opener), streams[::-1]):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.write, TEXT[:size])
            assert await read_exactly(target, size) == TEXT[:size]


@both_openers
async def test_half_close_both_ways(pair: Pair, opener: str) -> None:
    mine, theirs = await opened(pair, opener)
    await theirs.close()
    with pytest.raises(MuxedStreamEOF):
        await mine.read(1)
    await mine.write(b"an answer")
    await mine.close()
    assert await theirs.read(100) == b"an answer"
    with pytest.raises(MuxedStreamEOF):
        await theirs.read(1)
    assert pair[0].session.streams == {}


@pytest.mark.parametrize("window_bytes_max", [INITIAL, 4 * MIB])
async def test_an_answer_and_its_end_in_one_go(window_bytes_max: int) -> None:
    """The first that we say on a stream carries its ACK, beside which the library reads no FIN."""
    limits = Limits(window_bytes_max=window_bytes_max)
    with trio.fail_after(120):
        async with against_the_library(we_dial=False, limits=limits) as (ours, library):
            for answer in (b"yes", b""):
                theirs = await library.open_stream()
                await theirs.write(b"?")
                mine = await ours.accept_stream()
                ours.session.send(mine.row, answer)
                await mine.close()
                if answer:
                    assert await theirs.read(10) == answer
                with pytest.raises(MuxedStreamEOF):
                    await theirs.read(10)


@both_openers
async def test_resets(pair: Pair, opener: str) -> None:
    mine, theirs = await opened(pair, opener)
    await mine.reset()
    # The library forgets the stream, and then calls it an end; with our flag it can be told apart.
    with pytest.raises((MuxedStreamReset, MuxedStreamEOF)):
        await theirs.read(1)
    assert theirs.reset_received
    mine, theirs = await opened(pair, opener)
    await theirs.reset()
    with pytest.raises(MuxedStreamReset):
        await mine.read(1)
    with pytest.raises(MuxedStreamReset):
        await mine.write(b"!")


async def test_a_reader_that_gives_up_half_way_does_not_cost_the_connection(pair: Pair) -> None:
    """Its credit and its reset come at once, and nothing is left to say on the stream: we must not say just that."""
    mine, _ = await opened(pair, "we open")
    other, their_other = await opened(pair, "we open")

    async def write() -> None:
        with pytest.raises(MuxedStreamReset):
            await mine.write(bytes(2 * MIB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        while mine.row.send_window:
            await trio.sleep(0.005)
        await pair[1]._write_frame(update(mine.row.id, 50_000) + update(mine.row.id, flags=RST))
    await other.write(b"still here")
    assert await their_other.read(100) == b"still here"
    await their_other.write(b"and here")
    assert await other.read(100) == b"and here"


async def test_two_hundred_streams_at_once(pair: Pair) -> None:
    ours, library = pair

    async def serve() -> None:
        while True:
            nursery.start_soon(answer, await library.accept_stream())

    async def answer(theirs: Any) -> None:
        await theirs.write(await read_exactly(theirs, 1000))
        await theirs.close()

    async def ask(number: int) -> None:
        mine = await ours.open_stream()
        text = (b"%d " % number * 1000)[:1000]
        await mine.write(text)
        await mine.close()
        assert await read_exactly(mine, 1000) == text
        with pytest.raises(MuxedStreamEOF):
            await mine.read(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with trio.open_nursery() as asking:
            for number in range(200):
                asking.start_soon(ask, number)
        nursery.cancel_scope.cancel()
    assert ours.session.streams == {}
    assert ours.session.unacknowledged == 0


async def test_pings(pair: Pair) -> None:
    assert await pair[0].ping(10)


async def test_the_library_closes(pair: Pair) -> None:
    mine, _ = await opened(pair, "we open")
    await pair[1].close()
    with pytest.raises(MuxedStreamReset):
        await mine.read(1)
    await pair[0].event_closed.wait()


async def test_we_close(pair: Pair) -> None:
    _, theirs = await opened(pair, "the library opens")
    await pair[0].close()
    with pytest.raises(MuxedStreamError):
        await read_on(theirs)
    await pair[1].event_closed.wait()

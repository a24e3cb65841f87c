"""Two of our connections over loopback TCP: what their streams' readers and writers see."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from octonode.errors import Unreachable
from octonode.network.libp2p.muxing.connection import MuxedConnection
from octonode.network.libp2p.muxing.muxed import MuxedStream
from octonode.network.libp2p.muxing.windows import Limits
from octonode.network.libp2p.noise import NoiseChannel
from tests.network.muxing.ends import INITIAL, SYN, data, update
from tests.network.muxing.links import Muxers, echo, muxers, raw_of, read_on, secured_over_tcp, silent

MIB = 1024 * 1024
TEXT = bytes(range(251)) * 84_000


@pytest.fixture
async def both() -> AsyncIterator[Muxers]:
    """The second end echoes."""
    with trio.fail_after(120):
        async with muxers() as pair:
            yield pair


@pytest.fixture
async def accepting() -> AsyncIterator[Muxers]:
    """Streams at the second end wait for `accept_stream`."""
    with trio.fail_after(120):
        async with muxers(serve=None) as pair:
            yield pair


async def to_the_end(stream: MuxedStream) -> bytes:
    got = bytearray()
    with contextlib.suppress(MuxedStreamEOF):
        await read_on(stream, got)
    return bytes(got)


async def until(condition: object) -> None:
    while not condition():  # type: ignore[operator]
        await trio.sleep(0.005)


async def connected(pair: Muxers, first: bytes = b"!") -> tuple[MuxedStream, MuxedStream]:
    """A stream as both ends see it."""
    mine = await pair.one.open_stream()
    await mine.write(first)
    theirs = await pair.two.accept_stream()
    assert await theirs.read(len(first)) == first
    return mine, theirs


@pytest.mark.parametrize("size", [0, 1, 1000, 65_519, INITIAL, INITIAL + 1, MIB, 20 * MIB])
async def test_echo_of_any_size(both: Muxers, size: int) -> None:
    stream = await both.one.open_stream()

    async def write() -> None:
        for at in range(0, size, 300_001):
            await stream.write(TEXT[at : min(at + 300_001, size)])
        await stream.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        assert await to_the_end(stream) == TEXT[:size]
    await until(lambda: not (both.one.session.streams or both.two.session.streams))
    assert both.one.streams_open == both.two.streams_open == 0


async def test_one_write_of_everything(both: Muxers) -> None:
    stream = await both.one.open_stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, TEXT[: 5 * MIB])
        got = b""
        while len(got) < 5 * MIB:
            got += await stream.read()
    assert got == TEXT[: 5 * MIB]


async def test_half_close_both_ways(accepting: Muxers) -> None:
    mine, theirs = await connected(accepting)
    await mine.close()
    await mine.close()
    with pytest.raises(MuxedStreamEOF):
        await theirs.read(1)
    with pytest.raises(MuxedStreamClosed):
        await mine.write(b"too late")
    await theirs.write(b"an answer")
    await theirs.close_write()
    assert await to_the_end(mine) == b"an answer"
    with pytest.raises(MuxedStreamEOF):
        await mine.read(1)
    await until(lambda: not (accepting.one.session.streams or accepting.two.session.streams))
    assert accepting.one.streams_open == accepting.two.streams_open == 0


@pytest.mark.parametrize("resetter", ["this end", "the peer"])
async def test_a_reset_wakes_the_reader_and_the_writer_that_wait(accepting: Muxers, resetter: str) -> None:
    mine, theirs = await connected(accepting)
    woken: list[str] = []

    async def waits(what: str) -> None:
        with pytest.raises(MuxedStreamReset):
            await (mine.read(1) if what == "reader" else mine.write(bytes(8 * MIB)))
        woken.append(what)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits, "reader")
        nursery.start_soon(waits, "writer")
        await trio.sleep(0.05)
        assert woken == []
        await (mine if resetter == "this end" else theirs).reset()
    assert sorted(woken) == ["reader", "writer"]
    for stream in (mine, theirs):
        with pytest.raises(MuxedStreamReset):
            await stream.read(1)
        with pytest.raises(MuxedStreamReset):
            await stream.write(b"!")
    assert accepting.one.streams_open == accepting.two.streams_open == 0


async def test_reads_that_are_cancelled_lose_nothing(both: Muxers) -> None:
    stream = await both.one.open_stream()

    async def write() -> None:
        for at in range(0, 200_000, 997):
            await stream.write(TEXT[at : min(at + 997, 200_000)])
            await trio.lowlevel.checkpoint()
        await stream.close()

    got, cancelled = bytearray(), 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        while len(got) < 200_000:
            with trio.CancelScope() as scope:
                if len(got) % 3:
                    scope.cancel()
                nursery.start_soon(trio.lowlevel.checkpoint)
                with trio.move_on_after(0.0001):
                    got += await stream.read(500)
                    continue
                cancelled += 1
            if scope.cancelled_caught:
                cancelled += 1
                got += await stream.read(1)
    assert bytes(got) == TEXT[:200_000]
    assert cancelled > 10


async def test_writes_that_are_cancelled_are_whole_or_nothing() -> None:
    limits = Limits(pending_bytes_max=20_000, window_bytes_max=INITIAL)
    chunk = 50_000
    with trio.fail_after(120):
        async with muxers(limits=limits, serve=None) as pair:
            mine, theirs = await connected(pair)
            cancelled = 0
            for number in range(40):
                with trio.move_on_after(0.002) as scope:
                    await mine.write(bytes([number]) * chunk)
                cancelled += scope.cancelled_caught
            assert cancelled > 10
            await mine.close()
            got = await to_the_end(theirs)
    assert len(got) % chunk == 0
    numbers = [got[at] for at in range(0, len(got), chunk)]
    assert all(got[at : at + chunk] == bytes([got[at]]) * chunk for at in range(0, len(got), chunk))
    assert numbers == sorted(set(numbers))


async def test_after_go_away_live_streams_finish_and_new_ones_are_refused(accepting: Muxers) -> None:
    mine, theirs = await connected(accepting)
    accepting.two.session.go_away(0)
    await theirs.write(b"the last")
    assert await mine.read(100) == b"the last"
    assert not accepting.one.may_open
    with pytest.raises(Unreachable):
        await accepting.one.open_stream()
    with pytest.raises(Unreachable):
        await accepting.two.open_stream()
    await mine.write(b"and an answer")
    await mine.close()
    await theirs.close()
    assert await to_the_end(theirs) == b"and an answer"


async def test_a_stream_that_crosses_the_go_away_is_reset(accepting: Muxers) -> None:
    accepting.two.session.go_away(0)
    stream = await accepting.one.open_stream()
    await stream.write(b"hello?")
    with pytest.raises(MuxedStreamReset):
        await stream.read(1)


@pytest.mark.parametrize("who", ["one", "two"])
async def test_a_lost_connection_never_reads_as_an_end(accepting: Muxers, who: str) -> None:
    mine, theirs = await connected(accepting)
    await mine.write(b"before the loss")
    await theirs.write(b"before the loss")
    await until(lambda: mine.row.received and theirs.row.received)

    async def waits(stream: MuxedStream) -> None:
        with pytest.raises(MuxedStreamReset):
            await stream.write(bytes(32 * MIB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits, mine)
        nursery.start_soon(waits, theirs)
        await trio.sleep(0.02)
        await raw_of(getattr(accepting, who).secured_conn).stream.aclose()
    for stream in (mine, theirs):
        assert await stream.read(15) == b"before the loss"
        with pytest.raises(MuxedStreamReset):
            await read_on(stream)
    for end in (accepting.one, accepting.two):
        await accepting.ended[end].wait()
        assert end.is_closed
        assert not end.may_open
        with pytest.raises(Unreachable):
            await end.open_stream()
        with pytest.raises(MuxedConnUnavailable):
            await end.accept_stream()


async def test_a_handler_that_raises_resets_its_stream_only() -> None:
    async def serve(stream: MuxedStream) -> None:
        if await stream.read(1) == b"x":
            raise ValueError("a fault of the handler")
        await stream.write(b"fine")
        await echo(stream)

    with trio.fail_after(120):
        async with muxers(serve=serve) as pair:
            good, bad = await pair.one.open_stream(), await pair.one.open_stream()
            await good.write(b"o")
            assert await good.read(4) == b"fine"
            await bad.write(b"x")
            with pytest.raises(MuxedStreamReset):
                await bad.read(1)
            await good.write(b"and on")
            assert await good.read(100) == b"and on"
            assert pair.two.streams_open == 1


async def test_fifteen_hundred_streams_at_once() -> None:
    async def serve(stream: MuxedStream) -> None:
        stream.conn.accepted(stream)
        await echo(stream)

    async def ask(connection: MuxedConnection, number: int) -> None:
        stream = await connection.open_stream()
        text = b"%d " % number * 100
        await stream.write(text)
        got = b""
        while len(got) < len(text):
            got += await stream.read(1000)
        assert got == text
        answered.add(number)
        if len(answered) == 1500:
            everybody.set()
        await everybody.wait()
        await stream.close()
        assert await to_the_end(stream) == b""

    answered: set[int] = set()
    everybody = trio.Event()
    with trio.fail_after(120):
        async with muxers(serve=serve) as pair:
            async with trio.open_nursery() as nursery:
                for number in range(1500):
                    nursery.start_soon(ask, pair.one, number)
                await everybody.wait()
                assert pair.one.streams_open == 1500
            await until(lambda: not (pair.one.session.streams or pair.two.session.streams))
            assert pair.one.session.unacknowledged == pair.two.session.received_bytes == 0
            assert pair.one.streams_open == pair.two.streams_open == 0


async def test_a_stream_beside_bulk_is_not_held_up(accepting: Muxers) -> None:
    """The reader of the bulk has stopped, its writer is full; others go on as if it were not there."""
    bulk, _ = await connected(accepting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bulk.write, bytes(30 * MIB))
        for number in range(20):
            mine, theirs = await connected(accepting, b"%d" % number)
            await theirs.write(b"yes")
            assert await mine.read(3) == b"yes"
        nursery.cancel_scope.cancel()


async def test_pings(both: Muxers) -> None:
    assert await both.one.ping(10)
    assert await both.two.ping(10)
    assert both.one.session.round_trip_seconds > 0


async def test_a_close_sends_what_waits(accepting: Muxers) -> None:
    mine, theirs = await connected(accepting)
    await mine.write(TEXT[:200_000])
    await mine.close()
    await accepting.one.close()
    await accepting.one.close()
    got = bytearray()
    with pytest.raises((MuxedStreamReset, MuxedStreamEOF)):
        await read_on(theirs, got)
    assert got == TEXT[:200_000]
    await accepting.ended[accepting.two].wait()


async def test_streams_that_nobody_accepts_are_reset_above_the_backlog() -> None:
    with trio.fail_after(120):
        async with muxers(serve=None, limits=Limits(unaccepted_max=3)) as pair:
            streams = [await pair.one.open_stream() for _ in range(5)]
            for number, stream in enumerate(streams):
                await stream.write(b"%d" % number)
            await until(lambda: sum(stream.was_cut for stream in streams) == 2)
            accepted = {await (await pair.two.accept_stream()).read(10) for _ in range(3)}
            assert accepted == {b"%d" % number for number, stream in enumerate(streams) if not stream.was_cut}


async def test_handlers_that_wait_are_bounded() -> None:
    with trio.fail_after(120):
        async with muxers(serve=silent, limits=Limits(unaccepted_max=3)) as pair:
            streams = [await pair.one.open_stream() for _ in range(5)]
            for stream in streams:
                await stream.write(b"!")
            for stream in streams[3:]:
                with pytest.raises(MuxedStreamReset):
                    await stream.read(1)
            assert pair.two.streams_open == 3


async def test_a_close_before_the_start_and_again() -> None:
    first, second = await secured_over_tcp()
    one = MuxedConnection(NoiseChannel(first), first.remote_peer)
    closes = 0

    async def on_close() -> None:
        nonlocal closes
        closes += 1

    one.on_close = on_close
    assert not one.is_established
    await one.close()
    await one.close()
    assert one.is_closed
    assert closes == 1
    with trio.fail_after(60):
        await one.start()
    assert closes == 1
    await second.close()


async def test_the_end_of_the_peer_ends_us(accepting: Muxers) -> None:
    calls: list[str] = []

    async def on_close() -> None:
        calls.append("closed")

    accepting.two.on_close = on_close
    assert accepting.two.is_established
    await accepting.one.close()
    await accepting.ended[accepting.two].wait()
    assert calls == ["closed"]
    assert accepting.two.is_closed
    assert not accepting.two.is_established


@pytest.mark.parametrize(
    "wire",
    [b"\x01" + bytes(11), update(2, flags=SYN), data(1, bytes(INITIAL + 1), SYN)[:5000], update(1, flags=SYN) * 2],
)
async def test_what_no_honest_peer_says_ends_the_connection(accepting: Muxers, wire: bytes) -> None:
    mine, theirs = await connected(accepting)
    accepting.inject(wire)
    for stream in (theirs, mine):
        with pytest.raises(MuxedStreamReset):
            await stream.read(1)
    for end in (accepting.two, accepting.one):
        await accepting.ended[end].wait()
    assert accepting.one.session.went_away in (None, 1)

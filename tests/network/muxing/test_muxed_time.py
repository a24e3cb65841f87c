"""What a connection does by the clock, over trio's memory and under its virtual clock."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from octonode.errors import Unreachable
from octonode.network.libp2p.muxing.connection import FLUSH_SECONDS, WRITE_SECONDS
from octonode.network.libp2p.muxing.muxed import MuxedStream
from octonode.network.libp2p.muxing.windows import Limits
from tests.network.muxing.ends import DATA, FIN, GO_AWAY, PING, RST, SYN, UPDATE, Frame, data, update
from tests.network.muxing.links import echo, muxers, raw_of, read_on, secured_over_memory, silent

Clock = trio.testing.MockClock


async def test_a_silent_stream_is_acknowledged_within_two_seconds(autojump_clock: Clock) -> None:
    async with muxers(over=secured_over_memory, serve=silent) as pair:
        stream = await pair.one.open_stream()
        await stream.write(b"are you there?")
        await trio.sleep(0.5)
        assert pair.one.session.unacknowledged == 1
        await trio.sleep(1.6)
        assert pair.one.session.unacknowledged == 0


async def test_a_stream_that_is_only_read_is_announced(autojump_clock: Clock) -> None:
    async def greet(stream: MuxedStream) -> None:
        await stream.write(b"welcome")

    async with muxers(over=secured_over_memory, serve=greet) as pair:
        stream = await pair.one.open_stream()
        with trio.fail_after(1):
            assert await stream.read(100) == b"welcome"


async def test_to_open_waits_for_the_backlog_and_goes_on(autojump_clock: Clock) -> None:
    async with muxers(over=secured_over_memory, serve=silent, limits=Limits(ack_backlog_max=4)) as pair:
        for _ in range(4):
            await (await pair.one.open_stream()).write(b"!")
        with trio.move_on_after(0.5) as scope:
            await pair.one.open_stream()
        assert scope.cancelled_caught
        with trio.fail_after(2):
            fifth = await pair.one.open_stream()
        assert fifth.row.id == 9
        assert pair.one.session.unacknowledged == 1


async def test_a_reset_makes_room_in_the_backlog(autojump_clock: Clock) -> None:
    async with muxers(over=secured_over_memory, serve=silent, limits=Limits(ack_backlog_max=1)) as pair:
        first = await pair.one.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.one.open_stream)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(0.5):
                await first.reset()
                while pair.one.streams_open != 1:
                    await trio.sleep(0.01)


@pytest.mark.parametrize("end", ["go away", "loss"])
async def test_who_waits_for_the_backlog_hears_that_it_is_over(autojump_clock: Clock, end: str) -> None:
    async with muxers(over=secured_over_memory, serve=silent, limits=Limits(ack_backlog_max=1)) as pair:
        await (await pair.one.open_stream()).write(b"!")

        async def waits() -> None:
            with trio.fail_after(0.5), pytest.raises(Unreachable):
                await pair.one.open_stream()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            if end == "go away":
                pair.two.session.go_away(0)
                pair.two._flush()
            else:
                await pair.two.close()


async def test_a_ping_that_is_not_answered_in_time(autojump_clock: Clock) -> None:
    async with muxers(over=secured_over_memory) as pair:
        assert await pair.one.ping(1)
        raw_of(pair.two.secured_conn).seconds_per_write = 5
        assert not await pair.one.ping(1)
        await trio.sleep(10)
        raw_of(pair.two.secured_conn).seconds_per_write = 0
        assert await pair.one.ping(1)


async def test_a_peer_that_takes_nothing_is_left(autojump_clock: Clock) -> None:
    async with muxers(over=secured_over_memory) as pair:
        stream = await pair.one.open_stream()
        raw_of(pair.one.secured_conn).seconds_per_write = 10_000
        with trio.fail_after(WRITE_SECONDS + 5), pytest.raises(MuxedStreamReset):
            await stream.write(bytes(1 << 20))
        with trio.fail_after(1):
            await pair.ended[pair.one].wait()
        with pytest.raises(MuxedStreamReset):
            await stream.read(1)


@pytest.mark.parametrize("idle_seconds", [1, 60])
async def test_a_slow_peer_is_not_left_however_long_nobody_spoke(autojump_clock: Clock, idle_seconds: float) -> None:
    """The silence before a write is no silence of the peer."""
    async with muxers(over=secured_over_memory) as pair:
        stream = await pair.one.open_stream()
        await trio.sleep(idle_seconds)
        raw_of(pair.one.secured_conn).seconds_per_write = 3
        await stream.write(bytes(700_000))
        got = 0
        while got < 700_000:
            got += len(await stream.read(65_536))
        assert not pair.one.is_closed


async def test_a_close_does_not_wait_for_a_peer_that_takes_nothing(autojump_clock: Clock) -> None:
    async with muxers(over=secured_over_memory) as pair:
        stream = await pair.one.open_stream()
        raw_of(pair.one.secured_conn).seconds_per_write = 10_000
        await stream.write(b"never taken")
        with trio.fail_after(FLUSH_SECONDS + 1):
            await pair.one.close()
        with trio.fail_after(1):
            await pair.ended[pair.one].wait()


async def test_what_is_sent_as_the_peer_goes_away_arrives(autojump_clock: Clock) -> None:
    """It has said GO_AWAY and waits for our answer, which is still on its way when the last stream is over."""

    async def answer(stream: MuxedStream) -> None:
        with pytest.raises(MuxedStreamEOF):
            await read_on(stream)
        raw_of(stream.conn.secured_conn).seconds_per_write = 3
        await stream.write(bytes(100_000))
        await stream.close()

    async with muxers(over=secured_over_memory, serve=answer) as pair:
        stream = await pair.one.open_stream()
        await stream.write(b"the last question")
        await stream.close()
        pair.one.session.go_away(0)
        pair.one._flush()
        got = bytearray()
        with pytest.raises(MuxedStreamEOF):
            await read_on(stream, got)
        assert len(got) == 100_000


async def test_a_reader_at_the_end_of_a_lost_connection_reads_all(autojump_clock: Clock) -> None:
    async with muxers(over=secured_over_memory, serve=None) as pair:
        stream = await pair.one.open_stream()
        await stream.write(bytes(50_000))
        theirs = await pair.two.accept_stream()
        await trio.testing.wait_all_tasks_blocked()
        await pair.one.close()
        await pair.ended[pair.two].wait()
        assert len(await theirs.read()) == 50_000
        with pytest.raises(MuxedStreamReset):
            await theirs.read()


async def test_an_answer_that_came_whole_stays_whole_when_the_connection_is_lost(autojump_clock: Clock) -> None:
    async with muxers(over=secured_over_memory, serve=None) as pair:
        stream = await pair.one.open_stream()
        await stream.write(b"all of it")
        await stream.close()
        theirs = await pair.two.accept_stream()
        await trio.testing.wait_all_tasks_blocked()
        await pair.one.close()
        await pair.ended[pair.two].wait()
        assert await theirs.read() == b"all of it"
        with pytest.raises(MuxedStreamEOF):
            await theirs.read()
        with pytest.raises(MuxedStreamClosed):
            await theirs.write(b"too late")


@pytest.mark.parametrize("code", [0, 1, 2, 77])
async def test_a_farewell_before_a_fault_ends_in_order(autojump_clock: Clock, code: int) -> None:
    """Both in one message: the connection is closed, its end is told of, and nothing is raised."""
    async with muxers(over=secured_over_memory, serve=silent) as pair:
        await (await pair.one.open_stream()).write(b"!")
        pair.inject(Frame(GO_AWAY, 0, 0, code).wire + b"\x07" + bytes(11))
        await trio.sleep(5)
        assert pair.two.is_closed
        with trio.fail_after(1):
            await pair.two.close()


async def test_streams_that_come_and_go_in_one_message_leave_nothing(autojump_clock: Clock) -> None:
    async with muxers(over=secured_over_memory, serve=echo) as pair:
        wire = b"".join(data(1, b"%d" % number, SYN) + update(1, flags=RST) for number in range(50))
        pair.inject(wire + data(1, b"stays", SYN))
        await trio.sleep(5)
        assert len(pair.two.session.streams) == pair.two.streams_open == 1
        pair.inject(update(1, flags=FIN))
        await trio.sleep(5)
        assert pair.two.session.streams == {}
        assert pair.two.streams_open == pair.two.session.received_bytes == 0
        assert pair.two._unaccepted == 0


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_a_peer_sends_the_connection_lives_or_ends_and_raises_nothing(
    autojump_clock: Clock, seed: int
) -> None:
    chance, opened = random.Random(seed), 1
    async with muxers(over=secured_over_memory, serve=echo, limits=Limits(streams_max=3, unaccepted_max=2)) as pair:
        mine = await pair.two.open_stream()
        await mine.write(b"from the second end")
        for _ in range(60):
            kind, flags = (
                chance.choice([DATA, DATA, DATA, UPDATE, UPDATE, PING]),
                chance.choice([0, 0, 1, 1, 2, 4, 8, 12]),
            )
            opened += 2 * (kind < PING and flags == SYN)
            stream_id = opened if flags == SYN else chance.choice([1, 2, 3, 5, 7, opened])
            body = bytes(chance.choice([0, 1, 1000, 30_000])) if kind == DATA else b""
            value = len(body) if kind == DATA else chance.choice([0, 1, 2**18, 2**32 - 1])
            pair.inject(Frame(kind, flags, 0 if kind == PING else stream_id, value, body).wire)
            if chance.random() < 0.02:
                pair.inject(chance.choice([Frame(GO_AWAY, 0, 0, 1).wire, update(1, flags=SYN), bytes([1] * 12)]))
            if chance.random() < 0.3:
                await trio.sleep(chance.choice([0, 0.1, 1.5]))
        await trio.sleep(30)
        assert pair.two.is_closed == pair.ended[pair.two].is_set()
        with trio.fail_after(5):
            await pair.two.close()
            await pair.ended[pair.two].wait()
        assert pair.two.session.streams == {}
        assert pair.two._unaccepted == 0

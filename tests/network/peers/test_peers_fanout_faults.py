"""What bad listeners and bad speakers cost over fan-out: their own stream."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from octonode.errors import LocalProtocolError, Unreachable
from octonode.ids import ANNOUNCE_TOPIC, FANOUT_PROTOCOL, PeerId
from octonode.network.fanout_messages import FRAME_BYTES_MAX, decode_said
from octonode.network.host import Stream, StreamReset
from octonode.network.own_announcement import NodeFacts
from octonode.network.streams import FrameStream
from octonode.protocol import codec
from octonode.protocol.framing import encode_frame
from octonode.testing.network import MemoryNetwork
from tests.network.peers.saying import (
    LIMITS,
    TOPIC,
    counting,
    frame_of,
    is_reset,
    opening,
    region,
    speaker,
    speaking,
)
from tests.network.peers.world import START_MS, World, announced, key_of, now_ms, until

# What a bad listener costs.


async def test_a_slow_reader_costs_itself_alone_and_gets_the_latest(world: World, autojump_clock: MockClock) -> None:
    world.memory = MemoryNetwork(window_bytes=100)
    a, b, heard = await speaker(world)
    slow, got = world.memory.node(key_of("slow").peer_id), []

    async def read_late(stream: Stream) -> None:
        await trio.sleep(6)
        frames = FrameStream(stream, FRAME_BYTES_MAX)
        for _ in range(2):
            got.append(decode_said(await frames.receive_frame(10)).data)

    slow.host.handle(FANOUT_PROTOCOL, read_late)
    await world.nursery.start(slow.run)
    await a.network.host.connect(slow.host.addresses[0])
    messages = [bytes([number]) * 500 for number in range(5)]
    async with trio.open_nursery() as nursery:
        for message in messages:
            nursery.start_soon(a.peers.fanout.tell, slow.host.peer_id, TOPIC, message)
            await a.peers.fanout.tell(b.id, TOPIC, message)
            await trio.sleep(1)
    await until(lambda: len(got) == 2, 20)
    assert heard == messages
    assert got == [messages[0], messages[-1]]


async def test_a_peer_that_reads_nothing_is_let_go_after_its_time(world: World, autojump_clock: MockClock) -> None:
    world.memory = MemoryNetwork(window_bytes=100)
    a = await speaking(world, "a")
    mute = world.memory.node(key_of("mute").peer_id)

    async def sleep(stream: Stream) -> None:
        await trio.sleep_forever()

    mute.host.handle(FANOUT_PROTOCOL, sleep)
    await world.nursery.start(mute.run)
    await a.network.host.connect(mute.host.addresses[0])
    for _ in range(2):
        began = trio.current_time()
        with pytest.raises(Unreachable) as caught:
            await a.peers.fanout.tell(mute.host.peer_id, TOPIC, bytes(500))
        assert caught.value.code == "DEADLINE"
        assert trio.current_time() - began == pytest.approx(LIMITS.send_timeout_seconds, abs=0.1)
        assert not a.peers.fanout._lines


async def test_last_words_are_known_to_be_read_or_fail(world: World, autojump_clock: MockClock) -> None:
    a, b, heard = await speaker(world)
    world.memory.latency_seconds = 0.5
    await a.peers.fanout.tell(b.id, TOPIC, b"first")
    await a.peers.fanout.tell(b.id, TOPIC, b"last", last=True)
    assert heard == [b"first", b"last"]
    assert not a.peers.fanout.stands(b.id)
    await a.peers.fanout.tell(b.id, TOPIC, b"first again")
    world.memory.silence(b.id)
    with pytest.raises(Unreachable) as caught:
        await a.peers.fanout.tell(b.id, TOPIC, b"last", last=True)
    assert caught.value.code == "DEADLINE"


async def test_what_is_said_behind_last_words_goes_over_a_new_stream(world: World, autojump_clock: MockClock) -> None:
    a, b, heard = await speaker(world)
    await a.peers.fanout.tell(b.id, TOPIC, b"first")
    world.memory.latency_seconds = 0.5
    opened = opening(a)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(a.peers.fanout.tell, b.id, TOPIC, b"last", last=True))
        await trio.sleep(0.2)
        await a.peers.fanout.tell(b.id, TOPIC, b"one more")
    await until(lambda: heard == [b"first", b"last", b"one more"], 5)
    assert opened == [b.id]


async def test_a_peer_that_answers_is_broken_with_and_told_by_hello(world: World, autojump_clock: MockClock) -> None:
    a = await speaking(world, "a")
    chatty = world.memory.node(key_of("chatty").peer_id)

    async def answer(stream: Stream) -> None:
        while await stream.receive():
            await stream.send(b"thank you")

    chatty.host.handle(FANOUT_PROTOCOL, answer)
    await world.nursery.start(chatty.run)
    await a.network.host.connect(chatty.host.addresses[0])
    await a.peers.fanout.tell(chatty.host.peer_id, TOPIC, b"x")
    await trio.sleep(0.1)
    with pytest.raises(StreamReset):
        await a.peers.fanout.tell(chatty.host.peer_id, TOPIC, b"y")
    await a.peers.fanout.tell(chatty.host.peer_id, TOPIC, b"z")


async def test_who_waits_no_more_cuts_no_message(world: World, autojump_clock: MockClock) -> None:
    world.memory = MemoryNetwork(window_bytes=100)
    a, b, heard = await speaker(world)
    messages = [bytes([number]) * 500 for number in range(3)]
    await a.peers.fanout.tell(b.id, TOPIC, messages[0])
    world.memory.silence(b.id)
    with trio.move_on_after(1):
        await a.peers.fanout.tell(b.id, TOPIC, messages[1])
    world.memory.heal()
    await a.peers.fanout.tell(b.id, TOPIC, messages[2])
    await until(lambda: len(heard) == 3, 5)
    assert heard == messages


async def test_what_cannot_be_said_is_refused_here(world: World, autojump_clock: MockClock) -> None:
    a, b, _ = await speaker(world)
    with pytest.raises(LocalProtocolError):
        await a.peers.fanout.tell(b.id, TOPIC, bytes(5000))
    stranger = key_of("stranger").peer_id
    with pytest.raises(Unreachable):
        await a.peers.fanout.tell(stranger, TOPIC, b"x")
    with pytest.raises(Unreachable):
        await b.peers.fanout.tell(a.id, TOPIC, b"b does not run")


# What a bad speaker costs.

_, FOREIGN = announced("c")
_, EXPIRED = announced("b", at_ms=START_MS - 600_000)
_, FORGED = announced("b", tier="consumer")


@pytest.mark.parametrize(
    ("data", "where", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" * 400, "fanout", "BAD_MESSAGE"),
        (encode_frame(b"junk"), "fanout", "BAD_MESSAGE"),
        (encode_frame(codec.pack({"topic": ANNOUNCE_TOPIC})), "fanout", "BAD_MESSAGE"),
        (b"\xff\xff\xff\x7f", "fanout", "TOO_LARGE"),
        (encode_frame(codec.pack([ANNOUNCE_TOPIC, bytes(4097)])), "fanout", "TOO_LARGE"),
        (frame_of(b"no announcement"), "intake", "BAD_MESSAGE"),
        (frame_of(FOREIGN), "intake", "MISADDRESSED"),
        (frame_of(EXPIRED), "intake", "EXPIRED"),
        (frame_of(FORGED.replace(b"consumer", b"prosumer")), "intake", "BAD_SIGNATURE"),
    ],
)
async def test_a_fault_costs_the_stream_and_nothing_else(
    world: World, autojump_clock: MockClock, data: bytes, where: str, code: str
) -> None:
    a, b = await world.listen_only("a"), await world.listen_only("b")
    await b.network.host.connect(a.address)
    stream = await b.network.host.open(a.id, FANOUT_PROTOCOL)
    assert await is_reset(stream, data)
    counts: dict[str, int] = {"fanout": a.peers.fanout.counts, "intake": a.peers.intake.counts}[where]
    assert counts == {code: 1}
    assert len(a.peers.book) == 0
    assert not a.peers.fanout._inbound
    assert await b.peers.hello.ping(a.id) >= 0
    _, good = announced("b", at_ms=now_ms())
    again = await b.network.host.open(a.id, FANOUT_PROTOCOL)
    await again.send(frame_of(good))
    await until(lambda: a.knows(b), 2)


async def test_topics_that_nobody_hears_are_skipped(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.listen_only("a"), await world.listen_only("b")
    await b.network.host.connect(a.address)
    stream = await b.network.host.open(a.id, FANOUT_PROTOCOL)
    _, good = announced("b")
    await stream.send(frame_of(b"what it may be", "/from/the/future/1") + frame_of(good))
    await until(lambda: a.knows(b), 2)


async def test_a_flood_is_cut_and_the_next_stream_counts_on(world: World, autojump_clock: MockClock) -> None:
    a, b, c = [await world.listen_only(name) for name in "abc"]
    for other in (b, c):
        await other.network.host.connect(a.address)
    heard: list[PeerId] = []
    a.peers.fanout.hear(TOPIC, lambda _, peer: heard.append(peer))
    for _ in range(20):
        stream = await b.network.host.open(a.id, FANOUT_PROTOCOL)
        assert await is_reset(stream, frame_of(b"flood", TOPIC) * 50)
    assert len(heard) == LIMITS.frames_burst - 1, "to open a stream counts as a frame"
    other = await c.network.host.open(a.id, FANOUT_PROTOCOL)
    await other.send(frame_of(b"calm", TOPIC))
    await until(lambda: heard[-1] == c.id, 2)
    assert await b.peers.hello.ping(a.id) >= 0
    await trio.sleep(1)
    stream = await b.network.host.open(a.id, FANOUT_PROTOCOL)
    await stream.send(frame_of(b"calm now", TOPIC))
    await until(lambda: heard[-1] == b.id, 2)


async def test_streams_by_the_hundred_do_not_replace_the_one_that_stands(
    world: World, autojump_clock: MockClock
) -> None:
    a, b = await world.listen_only("a"), await world.listen_only("b")
    await b.network.host.connect(a.address)
    streams = [await b.network.host.open(a.id, FANOUT_PROTOCOL) for _ in range(100)]
    await trio.sleep(1)
    assert a.peers.fanout._inbound.keys() == {b.id}
    standing = streams.pop(LIMITS.frames_burst - 1)
    assert all([await is_reset(stream) for stream in streams])
    _, good = announced("b")
    await standing.send(frame_of(good))
    await until(lambda: a.knows(b), 2)


async def test_a_second_stream_takes_the_place_of_the_first(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.listen_only("a"), await world.listen_only("b")
    await b.network.host.connect(a.address)
    first = await b.network.host.open(a.id, FANOUT_PROTOCOL)
    await first.send(frame_of(announced("b", sequence=1)[1]))
    await trio.sleep(300)
    second = await b.network.host.open(a.id, FANOUT_PROTOCOL)
    assert await is_reset(first)
    _, newer = announced("b", at_ms=now_ms(), sequence=2)
    await second.send(frame_of(newer))
    await until(lambda: a.knows(b), 2)


async def test_half_a_frame_may_wait_and_is_never_taken(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.listen_only("a"), await world.listen_only("b")
    await b.network.host.connect(a.address)
    stream = await b.network.host.open(a.id, FANOUT_PROTOCOL)
    await stream.send(frame_of(announced("b")[1])[:-1])
    await trio.sleep(60)
    assert a.peers.fanout._inbound.keys() == {b.id}
    await stream.finish()
    with pytest.raises(StreamReset):
        await stream.receive()
    assert len(a.peers.book) == 0


async def test_twenty_nodes_that_all_change_at_once(world: World, autojump_clock: MockClock) -> None:
    nodes = [await world.start(f"n{index}", facts=NodeFacts(region="old")) for index in range(20)]
    for index, node in enumerate(nodes):
        for other in nodes[:index]:
            await node.network.host.connect(other.address)
    await trio.sleep(130)
    greeted = [counting(node) for node in nodes]

    def all_know(text: str) -> Callable[[], bool]:
        return lambda: all(region(n, o) == text for n in nodes for o in nodes if n is not o)

    for text in ("eu", "us"):
        for node in nodes:
            node.now(region=text)
        await until(all_know(text), 5)
    assert not any(greeted)

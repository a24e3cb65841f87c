"""Askers and senders that are hostile or broken, and what they cost: their own streams, bounded memory, nobody else."""

from __future__ import annotations

import tracemalloc

import pytest
import trio
from trio.testing import MockClock

from octonode.ipfs.bitswap import BitswapLimits
from octonode.ipfs.bitswap_messages import (
    MESSAGE_BYTES_MAX,
    PARTS_MAX,
    Message,
    Presence,
    WantEntry,
    frame,
)
from octonode.ipfs.cid import raw_cid
from octonode.ipfs.dagpb import varint
from octonode.network.host import StreamReset
from tests.ipfs.bitswap_peers import RawPeer, World, made, node_and_raw, say, wanting

MIB = 1024 * 1024


@pytest.fixture
def world(nursery: trio.Nursery) -> World:
    return World("memory", nursery)


@pytest.mark.parametrize(
    "data",
    [
        varint(MESSAGE_BYTES_MAX + 1),
        b"\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x02\x0b\x00",
        b"\x03\x0a\x7f\x00",
        varint(2 * PARTS_MAX + 2) + b"\x28\x00" * (PARTS_MAX + 1),
    ],
    ids=["longer than any", "a length without end", "a group", "cut short", "parts without end"],
)
async def test_what_is_no_message_costs_its_stream(world: World, autojump_clock: MockClock, data: bytes) -> None:
    node, raw = await node_and_raw(world)
    stream = await raw.open(node.id)
    await stream.send(data)
    with pytest.raises(StreamReset):
        await stream.receive()
    assert sum(node.bitswap.counts.values()) == 1
    await say(await raw.open(node.id), wanting(b"?"))
    assert (await raw.heard.receive()).presences


async def test_a_message_that_does_not_become_whole_costs_its_stream(world: World, autojump_clock: MockClock) -> None:
    node, raw = await node_and_raw(world)
    stream = await raw.open(node.id)
    await stream.send(varint(100) + b"\x28")
    with pytest.raises(StreamReset), trio.fail_after(120):
        await stream.receive()
    assert node.bitswap.counts == {"DEADLINE": 1}


async def test_streams_without_end_are_reset_beyond_the_bound(world: World, autojump_clock: MockClock) -> None:
    node, raw = await node_and_raw(world, streams_per_peer_max=4)
    kept = [await raw.open(node.id) for _ in range(4)]
    await trio.sleep(0.1)
    beyond = await raw.open(node.id)
    with pytest.raises(StreamReset):
        await beyond.receive()
    await say(kept[0], wanting(b"?"))
    assert (await raw.heard.receive()).presences


async def test_an_inbound_stream_may_be_silent_for_as_long_as_it_likes(world: World, autojump_clock: MockClock) -> None:
    node, raw = await node_and_raw(world)
    stream = await raw.open(node.id)
    for _ in range(3):
        await trio.sleep(3600)
        await say(stream, wanting(b"?"))
        assert (await raw.heard.receive()).presences


def entries(count: int, **how: bool) -> tuple[WantEntry, ...]:
    return tuple(WantEntry(raw_cid(number.to_bytes(4, "big")).raw, **how) for number in range(count))


async def test_a_hundred_thousand_entries_in_a_message(world: World) -> None:
    """Read as far as ENTRIES_MAX, the rest is as if it had not been sent. Another peer is served meanwhile."""
    block = made(1, 2000)[0]
    node, raw = await node_and_raw(world, [block], unasked_bytes_max=8 * MIB, parts_per_second_max=1_000_000)
    other = await world.node()
    await other.host.connect(node.host.addresses[0])
    huge = Message(tuple(WantEntry(b"\x01\x55" + number.to_bytes(4, "big")) for number in range(100_000)))
    with trio.fail_after(60):
        await say(await raw.open(node.id), huge)
        assert await other.get(node.id, [block]) == [block]
        while node.bitswap.wants_waiting:
            await trio.sleep(0.01)
    assert node.bitswap.counts == {"passed over": 1}


async def test_wants_beyond_the_ledger_are_answered_dont_have(world: World) -> None:
    node, raw = await node_and_raw(world, wants_per_peer_max=100, parts_per_second_max=1_000_000)
    with trio.fail_after(60):
        await say(await raw.open(node.id), Message(entries(180, send_dont_have=True)))
        answered: list[Presence] = []
        while len(answered) < 180:
            answered += (await raw.heard.receive()).presences
    assert node.blocks.looked_up == 100, "those beyond the bound are not even looked for"
    assert node.bitswap.counts == {"wants refused": 80}


async def test_a_flood_of_wants_is_read_at_a_pace_and_kept_within_bounds(world: World) -> None:
    """Message after message of wants that are never cancelled: memory is bounded, and another peer is served."""
    block = made(1, 2000)[0]
    node, raw = await node_and_raw(world, [block], wants_per_peer_max=1000, parts_per_second_max=2000)
    other = await world.node()
    await other.host.connect(node.host.addresses[0])
    message = b"".join(frame(Message(entries(2000))))

    async def flood() -> None:
        stream = await raw.open(node.id)
        while True:
            await stream.send(message)

    begun = trio.current_time()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            for _ in range(20):
                assert await other.get(node.id, [block]) == [block]
                assert node.bitswap.wants_waiting <= 1000
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    paced = 2000 * (trio.current_time() - begun + 8)  # however long that took
    assert node.blocks.looked_up < paced


class Deaf(RawPeer):
    """Asks for blocks and never reads what comes."""

    async def _handle(self, stream: object) -> None:
        await trio.sleep_forever()


async def test_peers_that_never_read_hold_little_and_nobody_back(world: World) -> None:
    """Six deaf peers want 64 MiB each of a node that has memory for four messages: the seventh gets its blocks."""
    blocks = made(64, MIB)
    limits = BitswapLimits(batches_max=4, pressure_seconds=0.2, send_timeout_seconds=60)
    node = await world.node(blocks, limits)
    cids = [raw_cid(block).raw for block in blocks]
    tracemalloc.start()
    try:
        with trio.fail_after(120):
            for _ in range(6):
                deaf = Deaf(await world.host())
                await deaf.host.connect(node.host.addresses[0])
                await say(await deaf.open(node.id), wanting(*cids))
            await trio.sleep(0.5)
            other = await world.node()
            await other.host.connect(node.host.addresses[0])
            assert await other.get(node.id, blocks[:8]) == blocks[:8]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2 * MIB + 8 * 2 * MIB + 8 * MIB, "messages, what the seventh got, and all the rest"
    assert node.bitswap.counts["slow readers cut"] > 0


async def test_who_asks_and_leaves_is_forgotten(world: World) -> None:
    blocks = made(32, MIB)
    node, _ = await node_and_raw(world, blocks)
    deaf = Deaf(await world.host())
    await deaf.host.connect(node.host.addresses[0])
    with trio.fail_after(60):
        await say(await deaf.open(node.id), wanting(*(raw_cid(block).raw for block in blocks)))
        while node.bitswap.wants_waiting < 32:
            await trio.sleep(0.01)
        node.host.learn(deaf.id, deaf.host.addresses)
        await deaf.host.disconnect(node.id)
        while node.bitswap.wants_waiting:
            await trio.sleep(0.01)
    assert deaf.id not in node.host.connected, "nobody is dialled to be given blocks"


@pytest.mark.parametrize("kind", ["own", "stock"])
async def test_a_peer_that_never_reads_does_not_hold_back_others_on_real_hosts(
    nursery: trio.Nursery, kind: str
) -> None:
    world, blocks = World(kind, nursery), made(24, MIB)
    with trio.fail_after(60):
        node, other = await world.node(blocks, BitswapLimits(batches_max=2, pressure_seconds=0.5)), await world.node()
        deaf = Deaf(await world.host())
        for each in (deaf, other):
            await each.host.connect(node.host.addresses[0])
        await say(await deaf.open(node.id), wanting(*(raw_cid(block).raw for block in blocks)))
        await trio.sleep(0.5)
        assert await other.get(node.id, blocks[:4]) == blocks[:4]

"""Peers that lie, stall or break off when they are asked for blocks: a named fault, and nothing false is taken."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from octonode.errors import Unreachable, VerificationFailed
from octonode.ipfs.bitswap_messages import (
    Block,
    Message,
    Presence,
    frame,
    prefix_of,
)
from octonode.ipfs.cid import Cid, raw_cid
from octonode.ipfs.gateway_client import Stalled
from octonode.network.host import StreamReset
from tests.ipfs.bitswap_peers import Node, RawPeer, World, carrying, made, node_and_raw, say, wanted

MIB = 1024 * 1024


@pytest.fixture
def world(nursery: trio.Nursery) -> World:
    return World("memory", nursery)


async def asking(
    nursery: trio.Nursery, node: Node, raw: RawPeer, blocks: list[bytes], came: list[bytes]
) -> Callable[[], Awaitable[None]]:
    """Have `node` ask `raw` for blocks beside the test; what is returned waits for the end of it."""
    done = trio.Event()

    async def get() -> None:
        await node.bitswap.fetch(raw.id, wanted(blocks), lambda _, block: came.append(bytes(block)))
        done.set()

    nursery.start_soon(get)
    return done.wait


async def test_unsolicited_blocks_are_dropped_unhashed_and_counted(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, raw = await node_and_raw(world)
    monkeypatch.setattr("octonode.ipfs.bitswap_client.hashlib", None)
    tracemalloc.start()
    try:
        stream = await raw.open(node.id)
        for block in made(20, 200_000):
            await say(stream, carrying(block))
        for block in made(4, MIB):
            await say(stream, carrying(block))  # longer than anything that is read of one who was not asked
        await trio.sleep(1)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 4 * MIB
    finally:
        tracemalloc.stop()
    assert node.bitswap.counts == {"unsolicited": 20}
    await stream.finish()
    await trio.sleep(1)
    assert node.bitswap.counts == {"unsolicited": 20, "passed over": 4}


async def test_a_block_with_wrong_bytes_names_the_peer(world: World, autojump_clock: MockClock) -> None:
    node, raw = await node_and_raw(world)
    blocks = made(3, 2000)

    async def lie(message: Message) -> None:
        if message.entries:
            stream = await raw.open(node.id)
            await say(stream, Message(blocks=(Block(prefix_of(raw_cid(blocks[0])), b"\0" * 2000),)))

    raw.on_message = lie
    with pytest.raises(VerificationFailed, match=raw.id):
        await node.get(raw.id, blocks)
    assert node.bitswap.counts["VERIFICATION_FAILED"] == 1


async def test_blocks_beside_those_asked_for_are_not_taken(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Of another codec, so no lie about what was asked for: dropped, counted, and the rest goes on."""
    node, raw = await node_and_raw(world)
    blocks, came = made(2, 2000), list[bytes]()
    done = await asking(nursery, node, raw, blocks, came)
    await raw.next_wants()
    stream = await raw.open(node.id)
    await say(stream, Message(blocks=(Block(bytes((1, 0x71, 0x12, 0x20)), b"\xa0"),)))
    await say(stream, carrying(*blocks))
    await done()
    assert came == blocks
    assert node.bitswap.counts == {"unsolicited": 1}


async def test_a_block_comes_twice_and_after_its_cancel(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    node, raw = await node_and_raw(world)
    blocks, came = made(3, 2000), list[bytes]()
    with trio.move_on_after(0.5):
        await node.get(raw.id, blocks[2:])
    done = await asking(nursery, node, raw, blocks[:2], came)
    stream = await raw.open(node.id)
    await trio.sleep(0.5)
    for order in ([0], [0], [2], [1]):
        await say(stream, carrying(*(blocks[number] for number in order)))
    await done()
    assert came == blocks[:2]
    assert node.bitswap.counts == {"late": 2}


async def test_blocks_are_taken_of_whom_they_were_asked_alone(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    node, raw = await node_and_raw(world)
    other = await world.raw()
    await other.host.connect(node.host.addresses[0])
    blocks, came = made(1, 2000), list[bytes]()
    done = await asking(nursery, node, raw, blocks, came)
    await raw.next_wants()
    await say(await other.open(node.id), carrying(*blocks))
    await trio.sleep(1)
    assert came == []
    assert node.bitswap.counts == {"unsolicited": 1}
    await say(await raw.open(node.id), carrying(*blocks))
    await done()
    assert came == blocks


async def test_an_answer_on_the_askers_own_stream_is_taken(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """As py-libp2p answers."""
    node, raw = await node_and_raw(world)
    blocks, came = made(2, 2000), list[bytes]()
    done = await asking(nursery, node, raw, blocks, came)
    await raw.next_wants()
    await say(raw.streams[-1], carrying(*blocks))
    await done()
    assert came == blocks


async def test_a_silent_peer_is_stalled(world: World, autojump_clock: MockClock) -> None:
    node, raw = await node_and_raw(world)
    begun = trio.current_time()
    with pytest.raises(Stalled, match=raw.id):
        await node.get(raw.id, made(3, 2000))
    assert trio.current_time() - begun == pytest.approx(node.bitswap.limits.stall_seconds)


@pytest.mark.parametrize("bytes_per_second", [100, 20_000])
async def test_a_slow_drip_is_stalled(world: World, autojump_clock: MockClock, bytes_per_second: int) -> None:
    """Below the least pace at once; above it, once a block should have come long ago."""
    node, raw = await node_and_raw(world)
    junk = b"".join(frame(Message(presences=(Presence(b"\x01\x55\x12\x20" + bytes(32), False),) * 100)))

    async def drip() -> None:
        stream = await raw.open(node.id)
        with contextlib.suppress(StreamReset):
            while True:
                for start in range(0, len(junk), 1000):
                    await stream.send(junk[start : start + 1000])
                    await trio.sleep(len(junk[start : start + 1000]) / bytes_per_second)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        with pytest.raises(Stalled), trio.fail_after(600):
            await node.get(raw.id, made(3, 2000))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["finish", "reset"])
async def test_wants_under_way_are_asked_again_after_an_end_in_a_message(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock, how: str
) -> None:
    node, raw = await node_and_raw(world)
    blocks, came = made(4, 100_000), list[bytes]()
    done = await asking(nursery, node, raw, blocks, came)
    assert len(await raw.next_wants()) == 4
    cut = await raw.open(node.id)
    whole, half = b"".join(frame(carrying(blocks[0]))), b"".join(frame(carrying(*blocks[1:])))
    await cut.send(whole + half[: len(half) // 2])
    await trio.sleep(0.1)
    await getattr(cut, how)()
    again = await raw.next_wants()
    assert {entry.cid for entry in again} == {raw_cid(block).raw for block in blocks[1:]}
    assert len(raw.streams) == 2, "on a new stream"
    await say(await raw.open(node.id), carrying(*blocks[1:]))
    await done()
    assert came == blocks


async def test_a_peer_that_cuts_every_stream_is_given_up(world: World, autojump_clock: MockClock) -> None:
    node, raw = await node_and_raw(world)

    async def cut(message: Message) -> None:
        stream = await raw.open(node.id)
        await stream.send(b"\xff\xff\x03only the beginning")
        await stream.reset()

    raw.on_message = cut
    with pytest.raises(Unreachable, match="in a row"), trio.fail_after(60):
        await node.get(raw.id, made(2, 2000))
    assert len(raw.streams) == node.bitswap.limits.tries_max


async def test_a_peer_that_dies_is_unreachable(world: World, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    node, raw = await node_and_raw(world)

    async def die() -> None:
        await raw.next_wants()
        world.memory.kill(raw.id)

    nursery.start_soon(die)
    with pytest.raises(Unreachable), trio.fail_after(60):
        await node.get(raw.id, made(2, 2000))


async def test_the_codec_is_that_of_the_cid_and_never_of_the_content(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Bytes that look like a UnixFS file, asked for as raw: they come as they are."""
    node, raw = await node_and_raw(world)
    sly = bytes.fromhex("0a0708021201781801")
    came: list[tuple[Cid, bytes]] = []

    async def answer(message: Message) -> None:
        if message.entries:
            await say(await raw.open(node.id), Message(blocks=(Block(bytes((1, 0x70, 0x12, 0x20)), sly),)))

    raw.on_message = answer
    await node.bitswap.fetch(raw.id, wanted([sly]), lambda cid, block: came.append((cid, bytes(block))))
    assert came == [(raw_cid(sly), sly)]


async def test_a_stream_of_ours_that_is_reset_between_messages_takes_nothing_back(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Helia ends one on which nothing came for ten seconds, and goes on answering."""
    node, raw = await node_and_raw(world)
    blocks, came = made(3, 2000), list[bytes]()
    done = await asking(nursery, node, raw, blocks[:2], came)
    await raw.next_wants()
    await raw.streams[0].reset()
    await trio.sleep(1)
    await say(await raw.open(node.id), carrying(blocks[0]))
    more = await asking(nursery, node, raw, blocks[2:], came)
    assert [entry.cid for entry in await raw.next_wants()] == [raw_cid(blocks[2]).raw], (
        "on a new stream, and that alone"
    )
    await say(await raw.open(node.id), carrying(*blocks[1:]))
    await done()
    await more()
    assert came == blocks


async def test_wants_that_were_reset_before_they_were_read_are_asked_again(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    node, raw = await node_and_raw(world)
    blocks, came = made(2, 2000), list[bytes]()
    done = await asking(nursery, node, raw, blocks, came)
    await raw.next_wants()
    await raw.streams[0].reset()
    assert len(await raw.next_wants(cancels=True)) == 2
    assert len(await raw.next_wants()) == 2
    assert len(raw.streams) == 2
    await say(await raw.open(node.id), carrying(*blocks))
    await done()
    assert came == blocks


async def test_what_was_asked_before_is_cancelled_first(world: World, autojump_clock: MockClock) -> None:
    """In a message of its own: peers pass over a want of what they have just sent, or told that they do not have."""
    node, raw = await node_and_raw(world)
    block = made(1, 2000)[0]

    async def answer(message: Message) -> None:
        if any(not entry.cancel for entry in message.entries):
            await say(await raw.open(node.id), carrying(block))

    raw.on_message = answer
    for _ in range(2):
        assert await node.get(raw.id, [block]) == [block]
    said = [(await raw.heard.receive()).entries for _ in range(3)]
    assert [[entry.cancel for entry in entries] for entries in said] == [[False], [True], [False]]

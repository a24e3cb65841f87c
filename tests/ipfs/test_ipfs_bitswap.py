"""Two nodes over bitswap: in memory, and real hosts on loopback on our muxer and the library's."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import trio

from octonode.errors import NotFound, Unreachable, VerificationFailed
from octonode.ipfs.bitswap import BitswapLimits
from octonode.ipfs.bitswap_messages import Message, WantEntry
from octonode.ipfs.blocks import Body
from octonode.ipfs.cid import DAG_PB, Cid, raw_cid
from octonode.ipfs.gateway import Pace
from octonode.network.host import ProtocolNotSupported
from tests.ipfs.bitswap_peers import Blocks, World, made, say, wanted, wanting

KIB = 1024


@pytest.fixture(params=["memory", "own", "stock"])
def world(request: pytest.FixtureRequest, nursery: trio.Nursery) -> World:
    return World(request.param, nursery)


@pytest.fixture
def memory(nursery: trio.Nursery) -> World:
    return World("memory", nursery)


@pytest.mark.parametrize(("count", "size"), [(80, 256 * KIB), (20, 1024 * KIB), (500, 100)])
async def test_blocks_come_whole_and_verified(world: World, count: int, size: int) -> None:
    blocks = made(count, size)
    with trio.fail_after(60):
        asker, holder = await world.pair(blocks)
        assert await asker.get(holder.id, blocks) == blocks
        assert holder.bitswap.sent_bytes == count * size
        assert holder.bitswap.wants_waiting == 0
        assert not asker.bitswap.counts
        assert not holder.bitswap.counts


async def test_both_ways_at_once_and_many_callers(world: World) -> None:
    left, right = made(20, 256 * KIB, seed=1), made(20, 256 * KIB, seed=2)
    came: dict[str, list[bytes]] = {}
    with trio.fail_after(60):
        a, b = await world.node(left), await world.node(right)
        await a.host.connect(b.host.addresses[0])

        async def get(name: str, node: Any, peer: Any, blocks: list[bytes]) -> None:
            came[name] = await node.get(peer.id, blocks)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(get, f"a{number}", a, b, right)
                nursery.start_soon(get, f"b{number}", b, a, left)
        assert all(sorted(came[f"a{n}"]) == sorted(right) and sorted(came[f"b{n}"]) == sorted(left) for n in range(3))
        assert b.bitswap.sent_bytes == sum(map(len, right)), "what three want is asked for once"


async def test_what_is_not_there_is_said_and_what_is_there_comes(world: World) -> None:
    held, missing = made(3, 5000), made(1, 5000, seed=9)
    came: list[Cid] = []
    with trio.fail_after(30):
        asker, holder = await world.pair(held)
        with pytest.raises(NotFound, match=raw_cid(missing[0]).text):
            await asker.bitswap.fetch(holder.id, wanted([*missing, *held]), lambda cid, _: came.append(cid))
        assert came == [raw_cid(block) for block in held]
        assert await asker.bitswap.block(holder.id, raw_cid(held[0])) == held[0]
        assert await asker.bitswap.have(holder.id, map(raw_cid, [*missing, *held])) == frozenset(map(raw_cid, held))
        assert await asker.bitswap.have(holder.id, []) == frozenset()


async def test_presence_is_answered_without_the_block_unless_it_is_small(memory: World) -> None:
    small, large = made(1, 1024)[0], made(1, 1025)[0]
    with trio.fail_after(30):
        node, raw = await memory.node([small, large]), await memory.raw()
        await raw.host.connect(node.host.addresses[0])
        stream = await raw.open(node.id)
        await say(stream, wanting(raw_cid(small).raw, raw_cid(large).raw, wants_have=True))
        answer = await raw.heard.receive()
        assert [bytes(block.data) for block in answer.blocks] == [small]
        assert [(each.cid, each.have) for each in answer.presences] == [(raw_cid(large).raw, True)]


async def test_strange_cids_are_answered_and_do_not_break_the_message(memory: World) -> None:
    """An identity CID, a blake3 one, a truncated one, and a codec that is not read."""
    block = made(1, 2000)[0]
    strange = [
        b"\x01\x55\x00\x05hello",
        b"\x01\x55\x1e\x20" + bytes(32),
        b"\x01\x55\x12\x14" + bytes(20),
        b"\x01\xb0\x12\x20" + bytes(32),
        b"?",
    ]
    with trio.fail_after(30):
        node, raw = await memory.node([block]), await memory.raw()
        await raw.host.connect(node.host.addresses[0])
        await say(await raw.open(node.id), wanting(*strange, raw_cid(block).raw))
        answer = await raw.heard.receive()
        assert [bytes(each.data) for each in answer.blocks] == [block]
        assert [(each.cid, each.have) for each in answer.presences] == [(cid, False) for cid in strange]
        assert node.bitswap.counts == {}


async def test_a_version_0_cid_is_answered_in_its_own_form(memory: World) -> None:
    block = made(1, 2000)[0]
    old = Cid(DAG_PB, hashlib.sha256(block).digest(), version=0)
    with trio.fail_after(30):
        node, raw = await memory.node([block]), await memory.raw()
        await raw.host.connect(node.host.addresses[0])
        await say(await raw.open(node.id), wanting(old.raw))
        assert (await raw.heard.receive()).blocks[0].prefix == bytes((0, 0x70, 0x12, 0x20))
        asker = await memory.node()
        await asker.host.connect(node.host.addresses[0])
        assert await asker.bitswap.block(node.id, old) == block


async def test_a_want_without_dont_have_is_not_answered(memory: World) -> None:
    block = made(1, 2000)[0]
    with trio.fail_after(30):
        node, raw = await memory.node([block]), await memory.raw()
        await raw.host.connect(node.host.addresses[0])
        stream = await raw.open(node.id)
        await say(stream, Message((WantEntry(raw_cid(b"elsewhere").raw), WantEntry(raw_cid(block).raw))))
        answer = await raw.heard.receive()
        assert not answer.presences
        assert len(answer.blocks) == 1


class Slow(Blocks):
    """Reads wait until the test lets them go on."""

    def __init__(self, blocks: list[bytes]) -> None:
        super().__init__(blocks)
        self.gate = trio.Event()
        self.asked = trio.Event()

    def block(self, cid: Cid) -> Body | None:
        trio.from_thread.run_sync(self.asked.set)
        trio.from_thread.run(self.gate.wait)
        return super().block(cid)


async def test_cancels_and_full_lists_take_wants_back(memory: World) -> None:
    blocks = made(6, 2000)
    cids = [raw_cid(block).raw for block in blocks]
    slow = Slow(blocks)
    with trio.fail_after(30):
        node, raw = await memory.node(source=slow), await memory.raw()
        await raw.host.connect(node.host.addresses[0])
        stream = await raw.open(node.id)
        await say(stream, wanting(*cids))
        await slow.asked.wait()
        await say(stream, Message((WantEntry(cids[1], cancel=True),)))
        await say(stream, Message((WantEntry(cids[2]), WantEntry(cids[4])), full=True))
        while node.bitswap.wants_waiting != 2:
            await trio.sleep(0.01)
        slow.gate.set()
        answer = await raw.heard.receive()
        assert [bytes(each.data) for each in answer.blocks] == [blocks[2], blocks[4]]
        assert not answer.presences


async def test_a_want_of_presence_becomes_one_of_the_block(memory: World) -> None:
    """While its presence is looked up, and while that answer is on its way."""
    block = made(1, 2000)[0]
    cid = raw_cid(block).raw
    slow = Slow([block])
    with trio.fail_after(30):
        node, raw = await memory.node(source=slow), await memory.raw()
        await raw.host.connect(node.host.addresses[0])
        stream = await raw.open(node.id)
        await say(stream, wanting(cid, wants_have=True))
        await slow.asked.wait()
        await say(stream, wanting(cid))
        await say(stream, wanting(cid, wants_have=True))
        await trio.sleep(0.1)
        slow.gate.set()
        while not (answer := await raw.heard.receive()).blocks:
            pass
        assert bytes(answer.blocks[0].data) == block
        for wants_have in (True, False):
            await say(stream, wanting(cid, wants_have=wants_have))
        while not (answer := await raw.heard.receive()).blocks:
            pass
        while node.bitswap.wants_waiting:
            await trio.sleep(0.01)


async def test_wants_of_a_caller_that_leaves_are_cancelled(memory: World) -> None:
    blocks = made(3, 2000)
    with trio.fail_after(30):
        node, raw = await memory.node(), await memory.raw()
        await raw.host.connect(node.host.addresses[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.get, raw.id, blocks)
            assert len(await raw.next_wants()) == 3
            nursery.cancel_scope.cancel()
        cancels = await raw.next_wants(cancels=True)
        assert {entry.cid for entry in cancels} == {raw_cid(block).raw for block in blocks}


async def test_private_models_are_not_told_apart_from_missing_ones(memory: World) -> None:
    """The source gives public blocks alone: what it does not give is answered like what nobody has."""
    with trio.fail_after(30):
        asker, holder = await memory.pair()
        with pytest.raises(NotFound):
            await asker.bitswap.block(holder.id, raw_cid(b"a private block"))
        assert holder.blocks.looked_up == 1


async def test_a_block_that_is_not_what_its_name_says_is_never_sent(memory: World) -> None:
    block = made(1, 2000)[0]
    with trio.fail_after(30):
        asker, holder = await memory.pair([block])
        holder.blocks.by_digest[raw_cid(block).digest] = b"changed on disk"
        with pytest.raises(NotFound):
            await asker.bitswap.block(holder.id, raw_cid(block))


async def test_a_window_in_bytes_is_kept(memory: World) -> None:
    blocks = made(40, 1000)
    limits = BitswapLimits(window_bytes_max=10_000)
    with trio.fail_after(30):
        node, raw = await memory.node((), limits), await memory.raw()
        await raw.host.connect(node.host.addresses[0])
        by_cid = {raw_cid(block).raw: block for block in blocks}
        answers = await raw_answers(raw, node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.get, raw.id, blocks)
            asked = set()
            while len(asked) < len(blocks):
                entries = await raw.next_wants()
                assert len(entries) <= 10
                asked |= {entry.cid for entry in entries}
                await answers([by_cid[entry.cid] for entry in entries])


async def raw_answers(raw: Any, node: Any) -> Any:
    from tests.ipfs.bitswap_peers import carrying

    stream = await raw.open(node.id)

    async def answer(blocks: list[bytes]) -> None:
        await say(stream, carrying(*blocks))

    return answer


async def test_streams_are_finished_when_nothing_was_wanted_for_a_while(world: World) -> None:
    blocks = made(2, 2000)
    limits = BitswapLimits(idle_seconds=0.2)
    with trio.fail_after(30):
        asker, holder = await world.pair(blocks, limits)
        for _ in range(3):
            assert await asker.get(holder.id, blocks) == blocks
            await trio.sleep(0.6)
            while world.kind == "memory" and asker.host.streams_open:  # type: ignore[attr-defined]
                await trio.sleep(0.01)


async def test_uploads_keep_to_the_pace_that_they_share(memory: World) -> None:
    blocks = made(4, 100_000)
    taken: list[int] = []

    class Counted(Pace):
        async def take(self, size_bytes: int) -> None:
            taken.append(size_bytes)
            await super().take(size_bytes)

    with trio.fail_after(30):
        holder, asker = await memory.node(blocks, pace=Counted(0)), await memory.node()
        await asker.host.connect(holder.host.addresses[0])
        await asker.get(holder.id, blocks)
        assert 400_000 <= sum(taken) < 401_000
        assert max(taken) <= 128 * KIB, "in steps: a peer at a slow pace must not look silent"


async def test_a_peer_without_bitswap_or_out_of_reach(memory: World) -> None:
    with trio.fail_after(30):
        node, other = await memory.node(), await memory.host()
        with pytest.raises(Unreachable):
            await node.bitswap.block(other.peer_id, raw_cid(b"x"))
        await node.host.connect(other.addresses[0])
        with pytest.raises(ProtocolNotSupported):
            await node.bitswap.block(other.peer_id, raw_cid(b"x"))


async def test_what_the_receiver_raises_ends_the_call_alone(memory: World) -> None:
    blocks = made(3, 2000)

    def refuse(cid: Cid, block: memoryview) -> None:
        raise VerificationFailed("not as long as it should be")

    with trio.fail_after(30):
        asker, holder = await memory.pair(blocks)
        with pytest.raises(VerificationFailed, match="not as long"):
            await asker.bitswap.fetch(holder.id, wanted(blocks), refuse)
        assert sorted(await asker.get(holder.id, blocks)) == sorted(blocks), "some may still come of the first call"


async def test_a_node_that_does_not_run_bitswap_says_so(memory: World) -> None:
    from octonode.ipfs.bitswap import Bitswap

    with trio.fail_after(30):
        host = await memory.host()
        bitswap = Bitswap(host, Blocks())
        with pytest.raises(Unreachable, match="does not run"):
            await bitswap.block(host.peer_id, raw_cid(b"x"))

"""Name records kept alive: put at once, again, for whoever comes later, and heard of when there is a newer one."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio

from octonode.network.name_keeping import RECORDS_MAX, REPEAT_SECONDS, NameKeeper
from octonode.testing.network import MemoryNetwork, MemoryNode
from tests.network.peers.world import key_of, until

KEY = "/octo-model/somebody/words"


def accept(key: str, value: bytes) -> None:
    if not value.startswith(b"good"):
        raise ValueError("bad")


def last_in_order(key: str, values: list[bytes]) -> int:
    return max(range(len(values)), key=lambda index: (values[index], index))


@dataclass
class Node:
    network: MemoryNode
    records: dict[str, bytes] = field(default_factory=dict)
    renewed: int = 0
    keeper: NameKeeper = field(init=False)

    def __post_init__(self) -> None:
        self.keeper = NameKeeper(
            host=self.network.host, values=self.network.values, records=lambda: self.records, heard=self._heard,
            renew=self._renew, random=random.Random(0),
        )  # fmt: skip

    async def _heard(self, key: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.records[key] = max(self.records[key], data)

    async def _renew(self) -> None:
        await trio.lowlevel.checkpoint()
        self.renewed += 1

    def kept(self, key: str = KEY) -> bytes | None:
        return self.network.values._kept.get(key)


Make = Callable[..., Awaitable[Node]]


@pytest.fixture
def memory() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
def make(memory: MemoryNetwork, nursery: trio.Nursery) -> Make:
    async def make(name: str, *known: Node, **records: bytes) -> Node:
        network = memory.node(key_of(name).peer_id, validator=accept, select=last_in_order)
        node = Node(network, {f"/octo-model/somebody/{each}": data for each, data in records.items()})
        await nursery.start(network.run)
        await nursery.start(node.keeper.run)
        for other in known:
            await network.host.connect(other.network.host.addresses[0])
        return node

    return make


async def test_a_new_record_is_put_as_soon_as_somebody_is_there(autojump_clock: object, make: Make) -> None:
    a = await make("a", words=b"good 1")
    await trio.sleep(30)
    assert a.keeper.standing(KEY) is not None
    b = await make("b", a)
    await until(lambda: b.kept() == b"good 1", 5)
    a.records[KEY] = b"good 2"
    a.keeper.changed()
    await until(lambda: b.kept() == b"good 2", 5)
    standing = a.keeper.standing(KEY)
    assert standing is not None
    assert standing.failures == 0


async def test_who_comes_later_gets_it_and_who_forgot_gets_it_again(autojump_clock: object, make: Make) -> None:
    a = await make("a", words=b"good 1")
    b = await make("b", a)
    await until(lambda: b.kept() is not None, 5)
    c = await make("c", a)
    await until(lambda: c.kept() is not None, 12)
    del b.network.values._kept[KEY]
    await trio.sleep(REPEAT_SECONDS * 1.2)
    assert b.kept() == b"good 1"


async def test_a_holder_keeps_it_alive_and_hears_of_a_newer_one(
    autojump_clock: object, make: Make, memory: MemoryNetwork
) -> None:
    publisher = await make("p", words=b"good 1")
    holder = await make("h", publisher, words=b"good 1")
    await until(lambda: holder.kept() is not None, 5)
    publisher.records[KEY] = b"good 2 deprecated"
    publisher.keeper.changed()
    await trio.sleep(REPEAT_SECONDS * 1.2)
    assert holder.records[KEY] == b"good 2 deprecated"
    memory.kill(publisher.network.host.peer_id)
    late = await make("l", holder)
    await until(lambda: late.kept() == b"good 2 deprecated", 5)


async def test_a_holder_that_knows_no_record_yet_asks_for_one(autojump_clock: object, make: Make) -> None:
    publisher = await make("p")
    holder = await make("h", publisher, words=b"")
    await trio.sleep(30)
    standing = holder.keeper.standing(KEY)
    assert standing is not None
    assert standing.reason == "nobody has it"
    publisher.records[KEY] = b"good 1"
    publisher.keeper.changed()
    await trio.sleep(REPEAT_SECONDS * 1.2)
    assert holder.records[KEY] == b"good 1"
    late = await make("l", holder)
    await until(lambda: late.kept() == b"good 1", 12)


async def test_what_is_no_longer_wanted_is_let_go_and_too_many_are_left_to_others(
    autojump_clock: object, make: Make
) -> None:
    many = {f"m{number}": b"good" for number in range(RECORDS_MAX + 5)}
    a = await make("a", **many)
    b = await make("b", a)
    await until(lambda: len(b.network.values._kept) == RECORDS_MAX, 1000)
    await trio.sleep(60)
    assert len(b.network.values._kept) == RECORDS_MAX
    a.records.clear()
    a.keeper.changed()
    await trio.sleep(2)
    assert a.keeper.standing("/octo-model/somebody/m0") is None


async def test_a_refused_record_is_tried_again_and_says_so(autojump_clock: object, make: Make) -> None:
    a = await make("a", words=b"good 1")
    b = await make("b", a)
    await until(lambda: b.kept() is not None, 5)
    b.network.values._kept[KEY] = a.network.values._kept[KEY] = b"good 9"  # a better one that nobody tells us of

    async def deaf(key: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    a.keeper._heard = deaf
    a.records[KEY] = b"good 2"
    a.keeper.changed()

    def failures() -> int:
        standing = a.keeper.standing(KEY)
        return standing.failures if standing else 0

    await until(lambda: failures() >= 3, 60)
    standing = a.keeper.standing(KEY)
    assert standing is not None
    assert standing.reason == "no peer took it"
    assert b.kept() == b"good 9"


async def test_ours_are_looked_at_every_hour(autojump_clock: object, make: Make) -> None:
    a = await make("a")
    await trio.sleep(3 * 3600 + 60)
    assert a.renewed in (2, 3)

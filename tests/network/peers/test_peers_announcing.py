"""The announcer, its sequence, its records in the DHT, and the rules of the value store."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from octonode.errors import OctonodeError, RemoteProtocolError
from octonode.network import keys
from octonode.network.own_announcement import NodeFacts
from octonode.network.providing import RECORDS_MAX, ProvidingTable, failing, wanted
from octonode.network.records import RecordRules
from octonode.network.roots import root_digest
from octonode.network.sequence import RESERVE, SequenceFile
from octonode.protocol.announcement import Holding, Serving
from tests.network.peers.world import OTHER_ROOT, ROOT, START_MS, World, announced, key_of, now_ms, until

A = key_of("a").peer_id


async def test_the_sequence_rises_over_restarts(home: Path) -> None:
    numbers = SequenceFile(home)
    given = [await numbers.next(START_MS) for _ in range(3)]
    assert given == [START_MS, START_MS + 1, START_MS + 2]
    again = await SequenceFile(home).next(START_MS - 10_000_000)
    assert again > given[-1], "even with the clock set back"
    later = await SequenceFile(home).next(START_MS + 10_000_000)
    assert later == START_MS + 10_000_000


async def test_a_crash_between_two_announcements_repeats_nothing(home: Path) -> None:
    last = 0
    for _ in range(50):  # each a process that dies without closing anything
        number = await SequenceFile(home).next(START_MS)
        assert number > last
        last = number
    assert last <= START_MS + 51 * (RESERVE + 1)


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff\xfe", b"-1"])
async def test_a_damaged_sequence_file_goes_on_from_the_clock(home: Path, content: bytes) -> None:
    (home / "announcement_sequence").write_bytes(content)
    assert await SequenceFile(home).next(START_MS) == START_MS
    assert int((home / "announcement_sequence").read_text()) > START_MS


async def test_a_home_that_cannot_be_written_silences_nobody(tmp_path: Path) -> None:
    numbers = SequenceFile(tmp_path / "missing")
    assert await numbers.next(START_MS) < await numbers.next(START_MS)


def test_what_is_provided() -> None:
    publisher = key_of("p").peer_id
    facts = NodeFacts(
        tier="prosumer",
        serving=(Serving(ROOT, name=f"{publisher}/smol", manifest=OTHER_ROOT),),
        holding=(Holding(ROOT), Holding("not a cid")),
        names=(f"{publisher}/other", "no-publisher", "junk/name"),
    )
    found = wanted(facts, A)
    root = root_digest(ROOT)
    assert found == {
        keys.serve_key(root): ("serve", ROOT),
        keys.blocks_key(root): ("blocks", ROOT),
        keys.name_key(publisher, "smol"): ("name", f"{publisher}/smol"),
        keys.name_key(publisher, "other"): ("name", f"{publisher}/other"),
        keys.blocks_key(root_digest(OTHER_ROOT)): ("manifest", OTHER_ROOT),
        keys.tier_key("prosumer", keys.tier_bucket(A)): ("tier", "prosumer"),
    }
    many = NodeFacts(names=tuple(f"{publisher}/n{index}" for index in range(3000)))
    assert len(wanted(many, A)) == RECORDS_MAX


def test_new_records_go_first_and_failed_ones_come_back() -> None:
    table = ProvidingTable(60_000, random.Random(1))
    table.want({b"1": ("tier", "edge")}, 0)
    first = table.next_due(0)
    assert first is not None
    table.done(first, 0)
    assert table.next_due(0) is None
    assert 54_000 <= table.wait_ms(0) <= 66_000
    table.want({b"1": ("tier", "edge"), b"2": ("blocks", "x"), b"3": ("serve", "x")}, 70_000)
    order = []
    while (record := table.next_due(70_000)) is not None:
        order.append(record.kind)
        table.done(record, 70_000)
    assert order == ["serve", "blocks", "tier"]
    table.want({b"3": ("serve", "x"), b"4": ("tier", "edge")}, 200_000)
    assert [record.kind for record in (table.next_due(200_000),) if record] == ["tier"], "a new one goes first"
    table.want({b"1": ("tier", "edge"), b"3": ("serve", "x")}, 200_000)
    [again] = [record for record in table.records if record.kind == "serve"]
    waits = []
    for _ in range(10):
        table.failed(again, "no peer took it", 0)
        waits.append(again.due_ms)
    assert waits[0] <= 1250
    assert 22_500 <= waits[-1] <= 37_500
    assert failing(table.records) == (again,)
    table.want({}, 0)
    assert table.records == ()


def test_growth_brings_records_forward_that_may_stand_at_one_node_alone() -> None:
    table = ProvidingTable(60_000, random.Random(1))
    table.want({b"1": ("serve", "x"), b"2": ("blocks", "x")}, 0)
    for record in table.records:
        table.done(record, 0)
    table.hurry(5_000, older_than_ms=10_000)
    assert table.next_due(5_000) is None
    table.hurry(10_000, older_than_ms=10_000)
    assert table.next_due(10_000) is not None


async def test_records_are_paced_and_all_are_provided(world: World, autojump_clock: MockClock) -> None:
    facts = NodeFacts(names=tuple(f"{A}/n{index}" for index in range(20)))
    a, b = await world.start("a", facts=facts), await world.start("b")
    times: list[float] = []
    provide = a.network.routing.provide

    async def watched(key: bytes) -> bool:
        times.append(trio.current_time())
        return await provide(key)

    a.network.routing.provide = watched  # type: ignore[method-assign]
    await a.peers.membership.join(b.address)
    await until(lambda: all(record.provided_at_ms for record in a.peers.announcer.status.records), 30)
    assert len(a.peers.announcer.status.records) == 21
    for index in range(len(times) - 10):
        assert times[index + 10] - times[index] >= 5.9, "never more than the burst and one a second"
    await trio.sleep(600)
    assert all(now_ms() - record.provided_at_ms <= 120_000 for record in a.peers.announcer.status.records)


async def test_alone_nothing_is_provided_and_doctor_is_told(world: World, autojump_clock: MockClock) -> None:
    a = await world.start("a")
    await trio.sleep(30)
    status = a.peers.announcer.status
    assert status.state == "active"
    assert status.record_failure == "no peer took it"
    assert [record.provided_at_ms for record in status.records] == [0]
    b = await world.start("b", bootstrap=(a.address,))
    await until(lambda: a.peers.announcer.status.record_failure == "", 5)
    await until(lambda: all(record.provided_at_ms for record in a.peers.announcer.status.records), 5)
    assert await b.network.values.get(keys.record_key(a.id)) is not None


async def test_faults_of_one_way_do_not_stop_the_others(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.start("a"), await world.start("b")

    async def fail(*_: object) -> bool:
        raise OctonodeError("the table is on fire")

    async def hang(*_: object) -> bool:
        await trio.sleep_forever()
        return True

    a.network.routing.provide = fail  # type: ignore[method-assign]
    a.network.values.put = hang  # type: ignore[method-assign]
    a.network.pubsub.publish = fail  # type: ignore[method-assign, assignment]
    await b.network.host.connect(a.address)
    a.now(serving=(Serving(ROOT),))
    await until(lambda: bool(b.peers.discovery.known(ROOT)), 60)
    await trio.sleep(60)
    status = a.peers.announcer.status
    assert all("on fire" in record.reason for record in status.records)
    assert "no answer within" in status.record_failure
    assert "on fire" in status.gossip_failure
    assert status.pushed == 1


async def test_a_peer_that_does_not_take_it_is_named(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.start("a"), await world.start("b")
    await a.peers.membership.join(b.address)
    world.memory.silence(b.id)
    a.now(region="eu")
    await trio.sleep(20)
    [(peer, reason)] = a.peers.announcer.status.push_failures
    assert peer == b.id
    assert "DEADLINE" in reason


async def test_a_change_while_the_announcement_is_signed_is_not_lost(world: World, autojump_clock: MockClock) -> None:
    a = await world.start("a")
    b = await world.start("b", bootstrap=(a.address,))
    await until(lambda: b.knows(a))
    await trio.sleep(5)
    quick = world.numbers["a"].next

    async def next_number(at_ms: int) -> int:
        await trio.sleep(1.0)
        return await quick(at_ms)

    world.numbers["a"].next = next_number  # type: ignore[method-assign]
    a.now(region="eu")
    await trio.sleep(0.6)  # the first change is being signed now
    a.now(serving=(Serving(ROOT),))
    await until(lambda: bool(b.peers.discovery.known(ROOT)), 5)


async def test_a_newcomer_gets_the_records_that_stood_at_one_node_alone(
    world: World, autojump_clock: MockClock
) -> None:
    a, b = await world.start("a", facts=NodeFacts(serving=(Serving(ROOT),))), await world.start("b")
    await a.peers.membership.join(b.address)
    await trio.sleep(20)
    c = await world.start("c", bootstrap=(a.address,))
    await trio.sleep(5)
    assert a.id in c.network.routing.kept(keys.serve_key(root_digest(ROOT)))


async def test_a_change_does_not_wait_for_the_slow_to_hear_of_the_last(world: World, autojump_clock: MockClock) -> None:
    a, b, mute = [await world.start(name) for name in ("a", "b", "mute")]
    await a.peers.membership.join(b.address)
    await a.peers.membership.join(mute.address)
    await trio.sleep(5)
    world.memory.silence(mute.id)
    a.now(region="eu")
    await trio.sleep(1.5)
    a.now(serving=(Serving(ROOT),))
    await until(lambda: bool(b.peers.discovery.known(ROOT)), 2)


async def test_announcements_do_not_run_out(world: World, autojump_clock: MockClock) -> None:
    a = await world.start("a")
    b = await world.start("b", bootstrap=(a.address,))
    await until(lambda: b.knows(a))
    for _ in range(200):
        await trio.sleep(3.0)
        assert b.knows(a)


def test_only_a_peer_itself_can_write_its_record() -> None:
    rules = RecordRules(lambda: START_MS)
    (_, older), (_, newer) = announced("a", sequence=1), announced("a", sequence=2)
    rules.validate(keys.record_key(A), newer)
    for key, value in (
        (keys.record_key(key_of("b").peer_id), newer),
        (f"/octo/{A}/x", newer),
        (keys.record_key(A), b"junk"),
        (keys.record_key(A), newer[:-1]),
        (keys.record_key(A), announced("a", at_ms=START_MS - 600_000)[1]),
    ):
        with pytest.raises(RemoteProtocolError):
            rules.validate(key, value)
    assert rules.select(keys.record_key(A), [older, newer]) == 1
    assert rules.select(keys.record_key(A), [newer, older]) == 0
    assert rules.select(keys.record_key(A), [b"junk", older]) == 1

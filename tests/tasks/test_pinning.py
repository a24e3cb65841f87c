"""Both ends of skill `octonode/pin` over the in-memory network: real provider, real asker, models of a twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock as Clock

from octonode.errors import OctonodeError
from octonode.protocol.messages import ErrorReport, StatusUpdate, TaskRequest
from octonode.protocol.pins import PinRequest, encode_request
from octonode.protocol.receipt import verify_receipt
from octonode.tasks.keeping import LOOK_SECONDS
from octonode.tasks.pin_ports import HeldFacts
from octonode.tasks.pinning import SKILL
from octonode.tasks.pins import DAY_MS
from tests.tasks.nodes import now_ms
from tests.tasks.pin_nodes import ROOTS, SIZE, by_hand, only, three


async def test_pin_list_and_unpin(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path, days_max=30) as (anna, bert, keeper, _):
        keeper.disk.fetch_seconds = 5.0
        answer = await anna("pin", ROOTS[0], until_ms=now_ms() + DAY_MS, size_bytes=SIZE)
        pin = only(answer)
        assert (pin.root, pin.asker, pin.state, pin.have_bytes) == (ROOTS[0], anna.node.peer, "kept", SIZE)
        assert pin.until_ms == keeper.rows.pins[ROOTS[0], anna.node.peer].until_ms
        assert anna.progress
        assert [done for done, _ in anna.progress] == sorted(done for done, _ in anna.progress)
        assert keeper.disk.models[ROOTS[0]].pinned
        receipt = verify_receipt(answer.receipt)
        assert (receipt.provider, receipt.asker) == (keeper.node.peer, anna.node.peer)
        assert receipt.parameters == {"verb": "pin", "until_ms": pin.until_ms, "size_bytes": SIZE}
        stored = await anna.node.state.receipt(answer.task)  # type: ignore[arg-type]
        assert stored is not None
        assert stored.receipt == answer.receipt
        assert only(await anna("list")) == pin
        assert (await bert("list")).result.pins == ()
        assert (await anna("list")).result.room.used_bytes == SIZE
        gone = await anna("unpin", ROOTS[0])
        assert verify_receipt(gone.receipt).parameters == {"verb": "unpin", "until_ms": 0, "size_bytes": 0}
        assert (await anna("list")).result.pins == ()
        assert not keeper.disk.models[ROOTS[0]].pinned
        await anna("unpin", ROOTS[0])  # again: nothing to do


async def test_the_same_pin_again_fetches_nothing_and_moves_the_end(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path, days_max=30) as (anna, bert, keeper, _):
        first = only(await anna("pin", ROOTS[0], until_ms=now_ms() + DAY_MS))
        again = only(await anna("pin", ROOTS[0], until_ms=now_ms() + 2 * DAY_MS))
        assert again.until_ms > first.until_ms
        assert again.since_ms == first.since_ms
        assert only(await bert("pin", ROOTS[0])).state == "kept"
        assert keeper.disk.fetched == [ROOTS[0]]
        await anna("unpin", ROOTS[0])
        assert keeper.disk.models[ROOTS[0]].pinned  # bert's stands
        await bert("unpin", ROOTS[0])
        assert not keeper.disk.models[ROOTS[0]].pinned


async def test_a_stranger_is_refused_before_its_signature_is_looked_at(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        keeper.allowed = ()
        keeper.pinning._allowed = frozenset()
        for verb, root in (("pin", ROOTS[0]), ("unpin", ROOTS[0]), ("list", "")):
            assert await anna.refused(verb, root) == "FORBIDDEN"
        assert keeper.rows.pins == {}
        assert keeper.disk.fetched == []


async def test_somebody_elses_signature_is_refused(tmp_path: Path, autojump_clock: Clock) -> None:
    """A listed peer cannot hand on what another listed peer has signed: the envelope names both ends."""
    async with three(tmp_path) as (anna, bert, keeper, _):
        caller = await by_hand(anna, key=bert.node.key)
        await caller.send(encode_request(PinRequest("pin", ROOTS[0])))
        with pytest.raises(OctonodeError) as caught:  # the ERROR goes to who brought it
            await caller.error()
        assert caught.value.code == "MISADDRESSED"
        assert keeper.rows.pins == {}


async def test_other_skills_keep_their_own_rules(tmp_path: Path, autojump_clock: Clock) -> None:
    """Being listed for pins opens nothing else."""
    async with three(tmp_path) as (anna, _, _keeper, _nursery):
        for skill, code in (("chat", "UNAUTHORIZED"), ("octonode/other", "UNAUTHORIZED")):
            caller = await by_hand(anna)
            await caller.send(TaskRequest(skill=skill, model=ROOTS[0]))
            assert (await caller.error()).code == code


@pytest.mark.parametrize(
    ("parameters", "body", "code"),
    [
        ({}, {}, "BAD_MESSAGE"),
        ({"verb": "burn"}, {}, "BAD_MESSAGE"),
        ({"verb": "list"}, {}, "BAD_MESSAGE"),
        ({"verb": "pin", "until_ms": -1}, {}, "BAD_MESSAGE"),
        ({"verb": "pin", "until_ms": 1}, {}, "EXPIRED"),
        ({"verb": "pin"}, {"manifest": b"manifest of something else"}, "BAD_MESSAGE"),
        ({"verb": "pin"}, {"manifest": b"x" * 300_000}, "TOO_LARGE"),
    ],
)
async def test_requests_that_are_none(
    tmp_path: Path, autojump_clock: Clock, parameters: dict[str, Any], body: dict[str, Any], code: str
) -> None:
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        caller = await by_hand(anna)
        await caller.send(TaskRequest(skill=SKILL, model=ROOTS[0], parameters=parameters, input=body))
        assert (await caller.error()).code == code
        assert keeper.rows.pins == {}


async def test_shares(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path, bytes_max=2500, bytes_per_peer_max=2000) as (anna, bert, keeper, _):
        await anna("pin", ROOTS[0], size_bytes=SIZE)
        await anna("pin", ROOTS[1], size_bytes=SIZE)
        assert await anna.refused("pin", ROOTS[2], size_bytes=SIZE) == "DISK_FULL"
        assert await anna.refused("pin", ROOTS[2], size_bytes=5000) == "TOO_LARGE"
        assert await bert.refused("pin", ROOTS[2], size_bytes=SIZE) == "DISK_FULL"  # of all
        assert only(await bert("pin", ROOTS[0])).size_bytes == SIZE  # here already
        await anna("unpin", ROOTS[1])
        await bert("pin", ROOTS[2], size_bytes=SIZE)
        assert len(keeper.rows.pins) == 3


async def test_a_model_larger_than_was_said_is_found_out(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path, bytes_per_peer_max=2000) as (anna, _, keeper, _nursery):
        keeper.disk.sizes[ROOTS[0]], keeper.disk.fetch_seconds = 5000, 10.0
        assert await anna.refused("pin", ROOTS[0], size_bytes=5) == "TOO_LARGE"
        await trio.sleep(1)
        assert keeper.rows.pins == {}
        assert keeper.disk.models.get(ROOTS[0]) is None  # what came of it is gone
        keeper.disk.sizes[ROOTS[1]] = 1500
        await anna("pin", ROOTS[1], size_bytes=5)
        assert keeper.rows.pins[ROOTS[1], anna.node.peer].size_bytes == 1500
        assert await anna.refused("pin", ROOTS[2], size_bytes=501) == "DISK_FULL"


async def test_a_full_disk(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        keeper.disk.free_bytes = 900
        assert await anna.refused("pin", ROOTS[0], size_bytes=SIZE) == "DISK_FULL"
        keeper.disk.faults = [OctonodeError("no space left", code="DISK_FULL")]
        assert await anna.refused("pin", ROOTS[0]) == "DISK_FULL"  # said nothing of its size
        await trio.sleep(1)
        assert keeper.rows.pins == {}


async def test_a_fetch_that_fails_is_told_and_tried_again(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        keeper.disk.faults = [
            OctonodeError("nobody has it", code="UNREACHABLE"),
            OctonodeError("x", code="UNREACHABLE"),
        ]
        assert await anna.refused("pin", ROOTS[0]) == "UNREACHABLE"
        pin = only(await anna("list"))
        assert (pin.state, pin.reason) == ("failed", "nobody has it")
        await trio.sleep(30)
        assert only(await anna("list")).state == "kept"
        assert keeper.disk.fetched == [ROOTS[0]] * 3


async def test_a_lost_stream_does_not_undo_the_pin(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        keeper.disk.fetch_seconds = 60.0
        with trio.move_on_after(20):
            await anna("pin", ROOTS[0])
        assert keeper.disk.models[ROOTS[0]].complete is False
        assert only(await anna("pin", ROOTS[0])).state == "kept"
        assert keeper.disk.fetched == [ROOTS[0]]


async def test_pins_live_on_after_a_restart(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, bert, keeper, nursery):
        keeper.disk.fetch_seconds = 60.0
        await anna("pin", ROOTS[0])
        with trio.move_on_after(10):
            await bert("pin", ROOTS[1], manifest=b"manifest of " + ROOTS[1].encode())
        keeper.scope.cancel()
        await trio.sleep(1)
        await nursery.start(keeper.run)
        assert only(await anna("list")).state == "kept"
        assert only(await bert("list")).state == "fetching"
        await trio.sleep(70)
        assert only(await bert("list")).state == "kept"
        assert keeper.disk.manifests[ROOTS[1]] == b"manifest of " + ROOTS[1].encode()
        assert keeper.disk.fetched == [ROOTS[0], ROOTS[1], ROOTS[1]]


async def test_a_pin_ends_and_its_model_goes_once_others_have_it(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, bert, keeper, _):
        await anna("pin", ROOTS[0], until_ms=now_ms() + 60_000)
        await bert("pin", ROOTS[1], until_ms=now_ms() + 60_000)
        keeper.disk.holders[ROOTS[1]] = 1
        await trio.sleep(59)
        assert len(keeper.rows.pins) == 2
        await trio.sleep(1.1)
        assert keeper.rows.pins == {}
        assert keeper.disk.removed == [ROOTS[1]]
        assert keeper.disk.models[ROOTS[0]].pinned is False  # the last copy known stays
        keeper.disk.holders[ROOTS[0]] = 1
        await trio.sleep(LOOK_SECONDS + 1)
        assert keeper.disk.removed == [ROOTS[1], ROOTS[0]]
        assert keeper.rows.released == {}


async def test_what_was_here_before_stays_and_stays_pinned(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        keeper.disk.models = {
            ROOTS[0]: HeldFacts(SIZE, SIZE, True, True),
            ROOTS[1]: HeldFacts(SIZE, SIZE, True, False),
        }
        keeper.disk.holders = dict.fromkeys(ROOTS, 5)
        for root in ROOTS[:2]:
            assert only(await anna("pin", root)).state == "kept"
            assert keeper.disk.models[root].pinned
            await anna("unpin", root)
        await trio.sleep(LOOK_SECONDS + 1)
        assert keeper.disk.removed == []
        assert (keeper.disk.models[ROOTS[0]].pinned, keeper.disk.models[ROOTS[1]].pinned) == (True, False)
        assert [pin.asker for pin in keeper.rows.pins.values()] == [keeper.node.peer]  # the owner's own
        await keeper.ask("unpin", ROOTS[0])
        assert keeper.disk.models[ROOTS[0]].pinned is False


async def test_room_is_made_of_what_nobody_pins_any_more(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, bert, keeper, _):
        for root in ROOTS[:2]:
            await anna("pin", root)
            await anna("unpin", root)
            await trio.sleep(1)
        assert keeper.disk.removed == []
        keeper.disk.free_bytes = 0
        keeper.disk.faults = [OctonodeError("no space left", code="DISK_FULL")]
        assert only(await bert("pin", ROOTS[2], size_bytes=2 * SIZE)).state == "kept"
        assert keeper.disk.removed == [ROOTS[0]]  # the one released longest ago
        keeper.disk.in_use.add(ROOTS[1])
        keeper.disk.faults = [OctonodeError("no space left", code="DISK_FULL")]
        assert await bert.refused("pin", ROOTS[3], size_bytes=SIZE) == "DISK_FULL"


async def test_what_the_owner_removed_by_force_is_not_fetched_again(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        await anna("pin", ROOTS[0])
        del keeper.disk.models[ROOTS[0]]
        await trio.sleep(LOOK_SECONDS + 1)
        assert keeper.rows.pins == {}
        assert keeper.disk.fetched == [ROOTS[0]]
        assert only(await anna("pin", ROOTS[0])).state == "kept"  # asked for again it is fetched again


async def test_damage_is_repaired_while_it_is_pinned(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        await anna("pin", ROOTS[0])
        keeper.disk.models[ROOTS[0]] = HeldFacts(SIZE, SIZE - 1, False, True)
        await trio.sleep(LOOK_SECONDS + 1)
        assert keeper.disk.fetched == [ROOTS[0]] * 2
        assert only(await anna("list")).state == "kept"


async def test_unpinning_ends_the_fetch(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, _, keeper, nursery):
        keeper.disk.fetch_seconds = 60.0
        codes: list[str] = []

        async def pin() -> None:
            codes.append(await anna.refused("pin", ROOTS[0]))

        nursery.start_soon(pin)
        await trio.sleep(20)
        await anna("unpin", ROOTS[0])
        await trio.sleep(1)
        assert codes == ["CANCELED"]
        assert keeper.disk.removed == [ROOTS[0]]  # a part of a model that nobody wants


async def test_two_askers_of_one_model_share_its_fetch(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, bert, keeper, _):
        keeper.disk.fetch_seconds = 10.0
        async with trio.open_nursery() as both:
            both.start_soon(anna, "pin", ROOTS[0])
            both.start_soon(bert, "pin", ROOTS[0])
        assert keeper.disk.fetched == [ROOTS[0]]
        assert {asker for _, asker in keeper.rows.pins} == {anna.node.peer, bert.node.peer}


async def test_a_fetch_longer_than_a_task_may_last_is_waited_for(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        keeper.disk.fetch_seconds = 3 * 3600.0
        assert only(await anna("pin", ROOTS[0])).state == "kept"
        assert keeper.disk.fetched == [ROOTS[0]]
        records = await anna.node.state.tasks()
        assert {each.code for each in records} == {"DEADLINE", ""}


async def test_progress_comes_as_status_updates_with_heartbeats(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        keeper.disk.fetch_seconds = 30.0
        caller = await by_hand(anna)
        await caller.send(encode_request(PinRequest("pin", ROOTS[0])))
        last = await caller.until()
        assert not isinstance(last, ErrorReport)
        updates = [each for each in caller.messages if isinstance(each, StatusUpdate)]
        assert len(updates) >= 29
        assert {each.stage for each in updates if each.total} == {"fetching"}
        assert max(each.done for each in updates) > 0


async def test_a_bug_of_the_keeper_is_told_as_one(tmp_path: Path, autojump_clock: Clock) -> None:
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        keeper.disk.faults = [ZeroDivisionError()]  # type: ignore[list-item]
        assert await anna.refused("pin", ROOTS[0]) == "INTERNAL"
        await trio.sleep(10)
        assert only(await anna("list")).state == "kept"


async def test_a_state_that_takes_no_rows_stops_nobody(tmp_path: Path, autojump_clock: Clock) -> None:
    """The rows lie on a disk that is full for a while: pins are refused meanwhile, and let go when it is not."""
    async with three(tmp_path) as (anna, _, keeper, _nursery):
        await anna("pin", ROOTS[0], until_ms=now_ms() + 60_000)
        keeper.rows.full = True
        assert await anna.refused("pin", ROOTS[1]) == "DISK_FULL"
        assert await anna.refused("unpin", ROOTS[0]) == "DISK_FULL"
        await trio.sleep(120)
        assert len((await anna("list")).result.pins) == 1  # it has ended, and stands while it cannot be let go
        keeper.rows.full = False
        await trio.sleep(LOOK_SECONDS + 1)
        assert (await anna("list")).result.pins == ()

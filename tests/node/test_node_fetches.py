"""The fetches of a node: one a model, the most urgent first, paused and resumed, over restarts. Attempts are played."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from octonode.errors import NotFound, OctonodeError, Unreachable
from octonode.ipfs.cid import Cid, raw_cid
from octonode.models.fetching import FetchProgress, FetchReport
from octonode.node.fetches import FETCHES_MAX, Fetch, Fetches, OnProgress

A, B, C, D = (raw_cid(name.encode()) for name in "abcd")


class Attempts:
    """Attempts that end when the test says so."""

    def __init__(self) -> None:
        self.running: dict[Cid, trio.MemorySendChannel[OctonodeError | None]] = {}
        self.started: list[Cid] = []
        self.broken_off: list[Cid] = []
        self.hints: tuple[str, ...] = ()

    async def act(self, wanted: Fetch, progress: OnProgress) -> FetchReport:
        assert wanted.root not in self.running, "two attempts would write the same model"
        send, receive = trio.open_memory_channel[OctonodeError | None](1)
        self.running[wanted.root], self.hints = send, wanted.hints
        self.started.append(wanted.root)
        progress(_progress(wanted.root, 5))
        try:
            fault = await receive.receive()
        except trio.Cancelled:
            self.broken_off.append(wanted.root)
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)  # closing takes a moment
            raise
        finally:
            del self.running[wanted.root]
        if fault is not None:
            raise fault
        return FetchReport(wanted.root, 10, {"gateway:x": 10}, {}, 1.0)

    def end(self, root: Cid, fault: OctonodeError | None = None) -> None:
        self.running[root].send_nowait(fault)


def _progress(root: Cid, done: int) -> FetchProgress:
    return FetchProgress(root, "leaves", done, 10, 1.0, 5.0, {}, {})


class World:
    def __init__(self, home: Path, at_once_max: int) -> None:
        self.attempts = Attempts()
        self.told: list[dict[str, Any]] = []
        self.fetches = Fetches(
            self.attempts.act, home=home, at_once_max=at_once_max, emit=self._emit, retry_seconds=(0.3, 60.0)
        )
        self.seen: list[FetchProgress] = []

    def _emit(self, event: str, **fields: Any) -> None:
        self.told.append({"event": event, **fields})

    async def want(self, root: Cid, priority: int = 0, task_status: Any = trio.TASK_STATUS_IGNORED) -> FetchReport:
        return await self.fetches.fetch(root, self.seen.append, priority=priority)

    def states(self) -> dict[Cid, str]:
        return {each.root: each.state for each in self.fetches.all()}


@asynccontextmanager
async def running(home: Path, at_once_max: int = 1) -> AsyncIterator[tuple[World, trio.Nursery]]:
    world = World(home, at_once_max)
    with trio.fail_after(60):  # some of the tests sync hundreds of files to the disk
        async with trio.open_nursery() as nursery:
            await nursery.start(world.fetches.run)
            yield world, nursery
            nursery.cancel_scope.cancel()


async def test_two_who_want_the_same_model_share_one_fetch(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, nursery):
        reports: list[FetchReport] = []

        async def want() -> None:
            reports.append(await world.want(A))

        nursery.start_soon(want)
        nursery.start_soon(want)
        await trio.testing.wait_all_tasks_blocked()
        assert world.attempts.started == [A]
        assert len(world.seen) == 2, "both see how far it is"
        world.attempts.end(A)
        await trio.testing.wait_all_tasks_blocked()
        assert [report.bytes_by_source for report in reports] == [{"gateway:x": 10}] * 2
        assert world.states() == {}


async def test_the_last_who_leaves_ends_it_and_those_in_the_background_go_on(tmp_path: Path) -> None:
    async with running(tmp_path, at_once_max=2) as (world, nursery):
        scopes = [trio.CancelScope(), trio.CancelScope()]

        async def want(scope: trio.CancelScope) -> None:
            with scope:
                await world.want(A)

        for scope in scopes:
            nursery.start_soon(want, scope)
        await trio.testing.wait_all_tasks_blocked()
        await world.fetches.start(B, hints=("/ip4/127.0.0.1/tcp/1/p2p/x",))
        await trio.testing.wait_all_tasks_blocked()
        assert world.attempts.hints == ("/ip4/127.0.0.1/tcp/1/p2p/x",)
        scopes[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert A in world.attempts.running
        scopes[1].cancel()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert world.attempts.broken_off == [A]
        assert world.states() == {B: "running"}


async def test_a_more_urgent_one_takes_the_place_of_a_less_urgent_one(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, nursery):
        nursery.start_soon(world.want, A)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(world.want, B)
        nursery.start_soon(world.want, C, 5)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert [each.root for each in world.fetches.all()] == [C, A, B]
        assert world.states() == {C: "running", A: "queued", B: "queued"}
        await world.fetches.prioritize(B, 50)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert world.states() == {B: "running", C: "queued", A: "queued"}
        for root in (B, C, A):
            world.attempts.end(root)
            await trio.testing.wait_all_tasks_blocked(0.02)
        assert world.states() == {}
        assert world.attempts.started == [A, C, B, C, A]


async def test_pause_and_resume(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, nursery):
        nursery.start_soon(world.want, A)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(world.want, B)
        await trio.testing.wait_all_tasks_blocked()
        await world.fetches.pause(A)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert world.states() == {A: "paused", B: "running"}
        await world.fetches.resume(A)
        await world.fetches.pause(A)
        await world.fetches.resume(A)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert world.states() == {A: "running", B: "queued"}, "the older of equals"
        world.attempts.end(A)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert world.states() == {B: "running"}
        assert [t["state"] for t in world.told if t["root"] == A.text][-1] == "done"


async def test_a_cancelled_fetch_can_be_wanted_again_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, nursery):
        faults: list[OctonodeError] = []

        async def want() -> None:
            with pytest.raises(OctonodeError) as caught:
                await world.want(A)
            faults.append(caught.value)

        nursery.start_soon(want)
        await trio.testing.wait_all_tasks_blocked()
        await world.fetches.cancel(A)
        nursery.start_soon(world.want, A)
        await trio.testing.wait_all_tasks_blocked(0.03)
        assert [fault.code for fault in faults] == ["CANCELED"]
        assert world.attempts.started == [A, A]
        assert world.states() == {A: "running"}


async def test_who_waits_hears_the_fault_and_the_background_tries_again(tmp_path: Path) -> None:
    async with running(tmp_path, at_once_max=2) as (world, nursery):

        async def want() -> None:
            with pytest.raises(Unreachable):
                await world.want(A)

        nursery.start_soon(want)
        await world.fetches.start(B)
        await trio.testing.wait_all_tasks_blocked()
        world.attempts.end(A, Unreachable("nobody"))
        world.attempts.end(B, Unreachable("nobody has it"))
        await trio.testing.wait_all_tasks_blocked()
        failed = [each["root"] for each in world.told if each["state"] == "failed"]  # it may be tried again by now
        assert failed == [B.text]
        assert set(world.states()) == {B}
        assert world.fetches.all()[0].reason == "nobody has it"
        while B not in world.attempts.running:  # later than its state, which says so before the task has its turn
            await trio.sleep(0.01)
        world.attempts.end(B, Unreachable("nobody has it"))
        await trio.testing.wait_all_tasks_blocked()
        await world.fetches.resume(B)
        await trio.testing.wait_all_tasks_blocked()
        assert world.states() == {B: "running"}, "a person who resumes it need not wait"


async def test_a_bug_in_an_attempt_stops_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, at_once_max=2) as (world, nursery):
        nursery.start_soon(world.want, B)

        async def want() -> None:
            with pytest.raises(OctonodeError) as caught:
                await world.want(A)
            assert caught.value.code == "INTERNAL"

        nursery.start_soon(want)
        await trio.testing.wait_all_tasks_blocked()
        world.attempts.end(A, ZeroDivisionError("a bug"))  # type: ignore[arg-type]
        await trio.testing.wait_all_tasks_blocked()
        assert world.states() == {B: "running"}
    assert "a bug" in caplog.text


async def test_those_in_the_background_go_on_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, nursery):
        nursery.start_soon(world.want, C)
        await world.fetches.start(A, priority=3, hints=("/ip4/127.0.0.1/tcp/1/p2p/x",))
        await world.fetches.start(B)
        await world.fetches.pause(B)
    async with running(tmp_path) as (world, _):
        await trio.testing.wait_all_tasks_blocked()
        assert world.states() == {A: "running", B: "paused"}
        assert world.attempts.hints == ("/ip4/127.0.0.1/tcp/1/p2p/x",)
        assert [each.priority for each in world.fetches.all()] == [3, 0]
        world.attempts.end(A)
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.05)  # the file is written in a thread
    assert [row["root"] for row in json.loads((tmp_path / "fetches.json").read_text())] == [B.text]


@pytest.mark.parametrize("damage", ["", "{", "[1]", '[{"root": "x", "priority": 0, "paused": false, "hints": []}]'])
async def test_a_damaged_list_is_told_of_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    (tmp_path / "fetches.json").write_text(damage)
    async with running(tmp_path) as (world, nursery):
        nursery.start_soon(world.want, A)
        await trio.testing.wait_all_tasks_blocked()
        assert world.states() == {A: "running"}
    assert "fetches.json cannot be read" in caplog.text


async def test_bounds_and_what_is_not_there(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, _):
        for act in (world.fetches.pause, world.fetches.resume, world.fetches.cancel):
            with pytest.raises(NotFound):
                await act(A)
        with pytest.raises(OctonodeError) as caught:
            await world.fetches.start(A, priority=101)
        assert caught.value.code == "BAD_REQUEST"
        for number in range(FETCHES_MAX):
            await world.fetches.start(raw_cid(number.to_bytes(2, "big")))
        with pytest.raises(OctonodeError) as caught:
            await world.fetches.start(D)
        assert caught.value.code == "OVERLOADED"
        await world.fetches.start(raw_cid(b"\0\0"), priority=1)  # one that is there already

"""Jobs: kept before they are told of, done once at a time, bounded, forgotten in time.

Against the real table where the disk matters, on real time: a clock that jumps does not wait for its threads.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock as Clock
from trio.testing import wait_all_tasks_blocked

from octonode.config import JobsConfig
from octonode.errors import OctonodeError
from octonode.node.job_table import INLINE_BYTES_MAX, JobTable
from octonode.state import State
from octonode.tasks.job import Job, JobRequest, JobResult, JobStore, JobWork, is_job_id, job_id
from octonode.tasks.jobs import FAILURES_MAX, Jobs
from octonode.tasks.webhook_rule import WebhookRule
from octonode.testing.faces_jobs import MemoryJobStore
from tests.tasks.nodes import ROOT, now_ms

REQUEST = JobRequest("", "tiny", ROOT, "chat", {"messages": [{"role": "user", "content": "hello"}]}, {"seed": 1})
Perform = Callable[[Job, JobWork], Awaitable[JobResult]]


class Worker:
    """Plays the network: what it is told to, and remembers what was asked of it."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.begun: list[str] = []
        self.running: set[str] = set()
        self.together = 0
        self.seconds = seconds
        self.errors: list[OctonodeError] = []
        self.size = 10
        self.hold: trio.Event | None = None

    async def __call__(self, job: Job, work: JobWork) -> JobResult:
        assert job.id not in self.running, "a job runs once at a time"
        self.begun.append(job.id)
        self.running.add(job.id)
        self.together = max(self.together, len(self.running))
        try:
            await trio.sleep(self.seconds)
            if self.hold is not None:
                await self.hold.wait()
            if self.errors:
                raise self.errors.pop(0)
            return JobResult({"text": "x" * self.size, "asked": work.parameters}, {"attempt": job.attempt})
        finally:
            self.running.discard(job.id)


@asynccontextmanager
async def running(
    perform: Perform, store: JobStore | None = None, settings: JobsConfig | None = None
) -> AsyncIterator[Jobs]:
    jobs = Jobs(
        store=store or MemoryJobStore(), perform=perform, settings=settings or JobsConfig(), rule=WebhookRule(),
        now_ms=now_ms, chance=os.urandom,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        await nursery.start(jobs.run)
        yield jobs
        nursery.cancel_scope.cancel()


async def submit_together(jobs: Jobs, count: int) -> list[str]:
    """The codes of those that were refused."""
    refused = []

    async def submit() -> None:
        try:
            await jobs.submit(REQUEST)
        except OctonodeError as error:
            refused.append(error.code)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(submit)
    return refused


@asynccontextmanager
async def table(home: Path) -> AsyncIterator[JobTable]:
    state = State(home / "state.sqlite", receipts_max=10)
    async with trio.open_nursery() as nursery:
        await nursery.start(state.run)
        yield JobTable(state, home / "jobs")
        nursery.cancel_scope.cancel()


async def test_a_job_is_kept_done_and_its_result_read_back(tmp_path: Path) -> None:
    worker = Worker(0.01)
    async with table(tmp_path) as store, running(worker, store) as jobs:
        job = await jobs.submit(REQUEST)
        assert (await store.load())[0].id == job.id
        assert await jobs.result(job.id) is None
        done = await jobs.wait(job.id, 100)
        assert (done.state, done.attempt, done.expires_at_ms - done.ended_at_ms) == ("completed", 1, 86_400_000)
        result = await jobs.result(job.id)
        assert result == JobResult({"text": "x" * 10, "asked": REQUEST.parameters}, {"attempt": 1})
        assert (await jobs.work(job.id)).parameters == {"seed": 1}
        assert (await store.load())[0] == done


@pytest.mark.parametrize("size", [INLINE_BYTES_MAX - 100, INLINE_BYTES_MAX + 1])
async def test_large_inputs_and_results_are_files_and_go_with_their_job(tmp_path: Path, size: int) -> None:
    worker = Worker(0.01)
    worker.size = size
    large = replace(REQUEST, inputs={"image": b"\x00" * size})
    async with table(tmp_path) as store:
        async with running(worker, store) as jobs:
            job = await jobs.submit(large)
            await jobs.wait(job.id, 100)
            result = await jobs.result(job.id)
            assert result is not None
            assert len(result.result["text"]) == size
            names = sorted(each.name for each in (tmp_path / "jobs").glob("*")) if size > INLINE_BYTES_MAX else []
            assert names == ([f"{job.id}.input", f"{job.id}.result"] if size > INLINE_BYTES_MAX else [])
        (tmp_path / "jobs").mkdir(exist_ok=True)
        (tmp_path / "jobs" / f"{job.id}.result.part").write_bytes(b"half")
        (tmp_path / "jobs" / f"{job_id(1, bytes(10))}.input").write_bytes(b"of nobody")
        async with running(worker, store) as jobs:
            left = sorted(each.name for each in (tmp_path / "jobs").iterdir())
            assert left == ([f"{job.id}.input", f"{job.id}.result"] if size > INLINE_BYTES_MAX else [])
            assert await jobs.result(job.id) == result
            await jobs.cancel(job.id)  # forgotten: it has ended
            assert list((tmp_path / "jobs").iterdir()) == []
            assert await store.load() == []


async def test_what_ran_at_a_stop_runs_again_once_and_what_had_ended_does_not(tmp_path: Path) -> None:
    worker = Worker(0.01)
    settings = JobsConfig(parallel=2)
    async with table(tmp_path) as store:
        async with running(worker, store, settings) as jobs:
            first = [await jobs.submit(REQUEST) for _ in range(2)]
            for job in first:
                await jobs.wait(job.id, 100)
            worker.hold = trio.Event()
            later = [await jobs.submit(REQUEST) for _ in range(3)]
            while len(worker.running) < 2:
                await trio.sleep(0.01)
        assert [each.state for each in await store.load()] == ["completed"] * 2 + ["working"] * 2 + ["submitted"]
        worker.hold = None
        async with running(worker, store, settings) as jobs:
            ended = [await jobs.wait(job.id, 100) for job in later]
            assert [each.state for each in ended] == ["completed"] * 3
            assert [each.attempt for each in ended] == [2, 2, 1]
            assert [each.failures for each in ended] == [0, 0, 0]
            assert all(jobs.get(job.id).attempt == 1 for job in first)
    assert len(worker.begun) == 2 + 2 + 3
    assert worker.together == 2


async def test_the_most_urgent_goes_first_and_order_is_kept_within_a_priority(autojump_clock: Clock) -> None:
    worker = Worker()
    async with running(worker, settings=JobsConfig(parallel=1)) as jobs:
        holds = await jobs.submit(REQUEST)
        await wait_all_tasks_blocked()
        wanted = {}
        for priority in (1, 9, 5, 9, 1):
            job = await jobs.submit(replace(REQUEST, priority=priority))
            wanted.setdefault(priority, []).append(job.id)
        assert [jobs.place(job) for job in wanted[9]] == [1, 2]
        assert jobs.place(holds.id) == 0
        await jobs.wait(wanted[1][1], 100)
    assert worker.begun == [holds.id, *wanted[9], *wanted[5], *wanted[1]]


async def test_bounds_refuse_with_a_way_out(autojump_clock: Clock) -> None:
    worker = Worker()
    worker.hold = trio.Event()
    async with running(worker, settings=JobsConfig(queued_max=2, parallel=1)) as jobs:
        kept = [await jobs.submit(REQUEST) for _ in range(2)]
        with pytest.raises(OctonodeError, match=r"jobs\.queued_max") as caught:
            await jobs.submit(REQUEST)
        assert caught.value.code == "OVERLOADED"
        await jobs.cancel(kept[1].id)
        await jobs.submit(REQUEST)
    async with running(worker, settings=JobsConfig(stored_bytes_max=100)) as jobs:
        with pytest.raises(OctonodeError, match=r"jobs\.stored_bytes_max"):
            await jobs.submit(replace(REQUEST, inputs={"image": bytes(200)}))
        assert jobs.all() == ()


async def test_many_at_once_keep_to_the_bounds_together(tmp_path: Path) -> None:
    async with table(tmp_path) as store, running(Worker(), store, JobsConfig(queued_max=3)) as jobs:
        refused = await submit_together(jobs, 10)
        assert len(jobs.all()) == 3
    assert refused == ["OVERLOADED"] * 7


async def test_results_are_forgotten_in_time_and_the_oldest_before_it_where_there_are_too_many(
    autojump_clock: Clock,
) -> None:
    store = MemoryJobStore()
    async with running(Worker(), store, JobsConfig(kept_max=3, ttl_seconds=1000)) as jobs:
        made = []
        for ttl_seconds in (50.0, 0.0, 10**6, 200.0):
            job = await jobs.submit(replace(REQUEST, ttl_seconds=ttl_seconds))
            made.append((await jobs.wait(job.id, 100)).id)
        assert [job.id for job in jobs.all()] == [made[3], made[2], made[1]]  # made[0] gave its place
        await trio.sleep(210)
        assert [job.id for job in jobs.all()] == [made[2], made[1]]
        await trio.sleep(800)
        assert jobs.all() == ()
        assert (store.jobs, store.works, store.results) == ({}, {}, {})
        with pytest.raises(OctonodeError) as caught:
            jobs.get(made[0])
        assert caught.value.code == "NOT_FOUND"


async def test_cancel_in_every_state(autojump_clock: Clock) -> None:
    worker = Worker()
    store = MemoryJobStore()
    async with running(worker, store, JobsConfig(parallel=1)) as jobs:
        runs, waits = [await jobs.submit(REQUEST) for _ in range(2)]
        await trio.sleep(0.5)
        for job in (runs, waits):
            ended = await jobs.cancel(job.id)
            assert (ended.state, ended.code) == ("canceled", "CANCELED")
            assert store.jobs[job.id].state == "canceled"
        await wait_all_tasks_blocked()
        assert worker.running == set()
        await trio.sleep(10)
        assert worker.begun == [runs.id]
        worker.errors = [OctonodeError("nobody", code="MODEL_NOT_FOUND")]
        pauses = await jobs.submit(REQUEST)
        await trio.sleep(1.5)
        assert jobs.get(pauses.id).code == "MODEL_NOT_FOUND"
        assert (await jobs.cancel(pauses.id)).state == "canceled"
        await trio.sleep(100)
        assert worker.begun == [runs.id, pauses.id]
        for job in (runs, waits, pauses):
            await jobs.cancel(job.id)
        assert jobs.all() == ()


async def test_an_end_that_is_being_written_stands_before_a_cancel_that_comes_then(autojump_clock: Clock) -> None:
    """And a cancel at the very moment of the end leaves one end on disk, and the one that is told."""

    class SlowStore(MemoryJobStore):
        async def save(self, job: Job, result: bytes | None = None) -> None:
            await trio.sleep(1)
            await super().save(job, result)

    store = SlowStore()
    async with running(Worker(2), store) as jobs:
        for cancel_after in (2.9, 3.0, 3.1, 3.9, 4.0, 4.1):  # begun at 1, performed at 3, written at 4
            job = await jobs.submit(REQUEST)
            await trio.sleep(cancel_after)
            told = await jobs.cancel(job.id)
            await trio.sleep(10)
            kept = store.jobs.get(job.id)
            if cancel_after > 4 and kept is None:
                assert told.state == "completed"  # it had ended: it was forgotten
                continue
            assert kept is not None
            assert kept.state == told.state == jobs.get(job.id).state
            assert (kept.state == "completed") == (job.id in store.results)
            assert await jobs.result(job.id) is not None or kept.state == "canceled"


async def test_nobody_there_is_waited_for_and_a_fault_is_tried_again_a_few_times(autojump_clock: Clock) -> None:
    worker = Worker()
    async with running(worker, settings=JobsConfig(ttl_seconds=3000)) as jobs:
        worker.errors = [OctonodeError("no room", code="OVERLOADED", retry_after_seconds=7)] * 12
        job = await jobs.submit(REQUEST)
        await trio.sleep(3)
        seen = jobs.get(job.id)
        assert (seen.state, seen.code, seen.failures) == ("working", "OVERLOADED", 0)
        done = await jobs.wait(job.id, 2000)
        assert (done.state, done.code, done.attempt) == ("completed", "", 13)
        worker.errors = [OctonodeError("it died", code="ENGINE_CRASHED")] * FAILURES_MAX
        failed = await jobs.wait((await jobs.submit(REQUEST)).id, 2000)
        assert (failed.state, failed.code, failed.attempt) == ("failed", "ENGINE_CRASHED", FAILURES_MAX)
        worker.errors = [OctonodeError("no such field", code="BAD_REQUEST")]
        refused = await jobs.wait((await jobs.submit(REQUEST)).id, 2000)
        assert (refused.state, refused.code, refused.attempt) == ("failed", "BAD_REQUEST", 1)
        worker.errors = [OctonodeError("nobody", code="UNREACHABLE")] * 1000
        late = await jobs.wait((await jobs.submit(REQUEST)).id, 4000)
        assert (late.state, late.code) == ("failed", "UNREACHABLE")


async def test_a_pause_holds_no_place(autojump_clock: Clock) -> None:
    worker = Worker()
    async with running(worker, settings=JobsConfig(parallel=1)) as jobs:
        worker.errors = [OctonodeError("nobody", code="MODEL_NOT_FOUND")]
        unlucky = await jobs.submit(REQUEST)
        other = await jobs.submit(REQUEST)
        await jobs.wait(other.id, 100)
        assert (await jobs.wait(unlucky.id, 100)).state == "completed"
    assert worker.begun == [unlucky.id, other.id, unlucky.id]


async def test_a_node_that_leaves_lets_jobs_end_and_begins_none(autojump_clock: Clock) -> None:
    worker, store = Worker(), MemoryJobStore()
    async with running(worker, store, JobsConfig(parallel=1)) as jobs:
        runs, waits = [await jobs.submit(REQUEST) for _ in range(2)]
        await trio.sleep(0.5)
        jobs.leaving = True
        assert (await jobs.wait(runs.id, 100)).state == "completed"
        await trio.sleep(10)
        assert jobs.get(waits.id).state == "submitted"
    async with running(worker, store) as jobs:
        assert (await jobs.wait(waits.id, 100)).attempt == 1


async def test_a_bug_is_a_failed_job_and_not_a_dead_queue(autojump_clock: Clock) -> None:
    async def broken(job: Job, work: JobWork) -> JobResult:
        raise ZeroDivisionError

    async with running(broken) as jobs:
        failed = await jobs.wait((await jobs.submit(REQUEST)).id, 100)
        assert (failed.state, failed.code) == ("failed", "INTERNAL")


async def test_a_full_disk_refuses_a_job_and_fails_a_result_that_does_not_fit(autojump_clock: Clock) -> None:
    store, full = MemoryJobStore(), OctonodeError("no space", code="DISK_FULL")
    async with running(Worker(), store) as jobs:
        store.failures = [full]
        with pytest.raises(OctonodeError, match="no space"):
            await jobs.submit(REQUEST)
        assert jobs.all() == ()
        job = await jobs.submit(REQUEST)
        await trio.sleep(0.5)
        store.failures = [full]
        ended = await jobs.wait(job.id, 100)
        assert (ended.state, ended.code) == ("failed", "DISK_FULL")
        assert await jobs.result(job.id) is None


async def test_before_and_after_it_runs_the_verbs_say_so(autojump_clock: Clock) -> None:
    async with running(Worker()) as jobs:
        pass
    for verb in (lambda: jobs.get("x"), jobs.all):
        with pytest.raises(OctonodeError) as caught:
            verb()
        assert caught.value.code == "NOT_RUNNING"
    with pytest.raises(OctonodeError) as caught:
        await jobs.submit(REQUEST)
    assert caught.value.code == "NOT_RUNNING"


async def test_a_commit_of_a_job_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 202 outlives a power cut: SQLite syncs its log at this commit, not later."""
    seen: list[str] = []
    connect = sqlite3.connect

    class Watched(sqlite3.Connection):
        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            seen.append(statement)
            return super().execute(statement, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Watched, **k))
    async with table(tmp_path) as store, running(Worker(), store) as jobs:
        await jobs.submit(REQUEST)
        at = next(place for place, each in enumerate(seen) if each.startswith("INSERT INTO jobs"))
        assert seen[at - 1] == "PRAGMA synchronous = FULL"


@given(st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 48) - 1), st.binary(min_size=10, max_size=10))
def test_ids_are_names_that_sort_by_time(one_ms: int, other_ms: int, chance: bytes) -> None:
    one, other = job_id(one_ms, chance), job_id(other_ms, chance)
    assert is_job_id(one)
    assert (one < other) == (one_ms < other_ms)
    assert not is_job_id(f"{one}x")
    assert not is_job_id(f"../{one[3:]}")

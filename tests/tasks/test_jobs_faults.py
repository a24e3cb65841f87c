"""Jobs at the wrong moment: a full disk, many at once at a bound, a cancel between two steps, a stop of the node."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from octonode.config import JobsConfig
from octonode.errors import OctonodeError
from octonode.node.job_table import INLINE_BYTES_MAX
from octonode.state import State
from octonode.tasks.job import Job, JobResult, JobWork
from octonode.testing.faces_jobs import MemoryJobStore
from tests.tasks.test_jobs import REQUEST, Worker, running, submit_together, table


async def test_an_end_that_the_disk_has_no_room_for_is_kept_as_the_failure_that_was_told(autojump_clock: Clock) -> None:
    """Else the job would run again after the next start, though its owner was told that it failed."""
    store, worker = MemoryJobStore(), Worker()
    async with running(worker, store) as jobs:
        job = await jobs.submit(REQUEST)
        await trio.sleep(0.5)
        store.failures = [OctonodeError("no space", code="DISK_FULL")]  # for the result; a state is small
        ended = await jobs.wait(job.id, 100)
        assert store.jobs[job.id] == ended
    async with running(worker, store) as jobs:
        await trio.sleep(10)
        assert (jobs.get(job.id).state, worker.begun) == ("failed", [job.id])


async def test_many_at_once_keep_to_the_bounds_where_old_ones_have_to_go_first(autojump_clock: Clock) -> None:
    class SlowStore(MemoryJobStore):
        async def drop(self, *jobs: str) -> None:
            await trio.sleep(0.1)
            await super().drop(*jobs)

    store = SlowStore()
    worker = Worker()
    async with running(worker, store, JobsConfig(queued_max=2, kept_max=3, parallel=1)) as jobs:
        for _ in range(3):
            await jobs.wait((await jobs.submit(REQUEST)).id, 100)
        worker.hold = trio.Event()
        assert await submit_together(jobs, 3) == ["OVERLOADED"]
        assert (jobs.open, len(jobs.all()), len(store.jobs)) == (2, 3, 3)


async def test_a_cancel_at_the_moment_in_which_it_is_taken_stands(autojump_clock: Clock) -> None:
    """Whatever the order in which the tasks of one turn of the loop run: hence many times."""
    worker, store = Worker(), MemoryJobStore()
    async with running(worker, store, JobsConfig(parallel=1)) as jobs:
        for turns in [0, 1, 2, 3, 4] * 8:
            job = await jobs.submit(REQUEST)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            told = await jobs.cancel(job.id)
            await trio.sleep(10)
            assert (told.state, jobs.get(job.id).state, store.jobs[job.id].state) == ("canceled",) * 3
            assert (jobs.active, job.id in store.results) == (0, False)


async def test_a_cancel_of_one_that_is_being_written_waits_for_it(autojump_clock: Clock) -> None:
    class SlowStore(MemoryJobStore):
        async def add(self, job: Job, work: bytes) -> None:
            await trio.sleep(1)
            await super().add(job, work)

    store, worker, full = SlowStore(), Worker(), OctonodeError("no space", code="DISK_FULL")
    async with running(worker, store) as jobs:
        for failures in ([], [full]):
            seen: list[str] = []

            async def cancel(seen: list[str] = seen) -> None:
                await trio.sleep(0.5)
                (job,) = [each for each in jobs.all() if not each.ended]
                try:
                    seen.append((await jobs.cancel(job.id)).state)
                except OctonodeError as error:
                    seen.append(error.code)

            store.failures = list(failures)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel)
                if failures:
                    with pytest.raises(OctonodeError, match="no space"):
                        await jobs.submit(REQUEST)
                else:
                    job = await jobs.submit(REQUEST)
            assert seen == (["NOT_FOUND"] if failures else ["canceled"])
        await trio.sleep(10)
        assert [each.state for each in store.jobs.values()] == [jobs.get(job.id).state] == ["canceled"]


async def test_a_result_that_cannot_be_written_down_fails_its_job_alone(autojump_clock: Clock) -> None:
    async def half(job: Job, work: JobWork) -> JobResult:
        return JobResult({"text": "\ud800", "number": 1 << 70})

    async with running(half) as jobs:
        failed = await jobs.wait((await jobs.submit(REQUEST)).id, 100)
        assert (failed.state, failed.code) == ("failed", "BAD_REQUEST")


async def test_jobs_of_one_millisecond_keep_their_order_over_a_restart(autojump_clock: Clock) -> None:
    worker, store, settings = Worker(), MemoryJobStore(), JobsConfig(parallel=1)
    async with running(worker, store, settings) as jobs:
        made = [(await jobs.submit(REQUEST)).id for _ in range(8)]
        jobs.leaving = True
    assert [job.id for job in await store.load()] == made
    async with running(worker, store, settings) as jobs:
        await jobs.wait(made[-1], 100)
    assert list(dict.fromkeys(worker.begun)) == made


async def test_a_job_the_disk_refuses_leaves_nothing_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = replace(REQUEST, inputs={"image": bytes(INLINE_BYTES_MAX + 1)})

    async def full(*statements: object, durable: bool = False) -> None:
        raise OctonodeError("no space", code="DISK_FULL")

    async with table(tmp_path) as store, running(Worker(), store) as jobs:
        with monkeypatch.context() as patch:
            patch.setattr(State, "_write_now", full)
            with pytest.raises(OctonodeError, match="no space"):
                await jobs.submit(large)
        assert jobs.all() == ()
        assert list((tmp_path / "jobs").iterdir()) == []


async def test_half_a_file_of_a_full_disk_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    large = replace(REQUEST, inputs={"image": bytes(INLINE_BYTES_MAX + 1)})
    async with table(tmp_path) as store, running(Worker(), store) as jobs:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OctonodeError, match="No space"):
                await jobs.submit(large)
        assert list((tmp_path / "jobs").iterdir()) == []

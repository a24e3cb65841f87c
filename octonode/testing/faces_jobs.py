"""Jobs behind the faces' stand-in: the real `tasks.jobs.Jobs`, over a store in memory, doing what `asking` plays."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import trio

from octonode.config import JobsConfig
from octonode.errors import NotFound
from octonode.tasks.asking import Ask, AskEvent
from octonode.tasks.inference import Performer
from octonode.tasks.job import Job, JobStore
from octonode.tasks.jobs import Jobs
from octonode.tasks.webhook_rule import WebhookRule


class MemoryJobStore:
    """`tasks.job.JobStore` without a disk. `failures` are raised one after the other by the next writes."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.works: dict[str, bytes] = {}
        self.results: dict[str, bytes] = {}
        self.failures: list[Exception] = []

    async def _write(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.failures:
            raise self.failures.pop(0)

    async def load(self) -> Sequence[Job]:
        return [self.jobs[job] for job in sorted(self.jobs)]

    async def add(self, job: Job, work: bytes) -> None:
        await self._write()
        self.jobs[job.id], self.works[job.id] = replace(job), work

    async def save(self, job: Job, result: bytes | None = None) -> None:
        await self._write()
        if job.id not in self.jobs:
            return
        self.jobs[job.id] = replace(job)
        if result is not None:
            self.results[job.id] = result

    async def drop(self, *jobs: str) -> None:
        for job in jobs:
            self.jobs.pop(job, None)
            self.works.pop(job, None)
            self.results.pop(job, None)

    async def work(self, job: str) -> bytes:
        if job not in self.works:
            raise NotFound(f"what job {job} asks for is not here any more")
        return self.works[job]

    async def result(self, job: str) -> bytes | None:
        return self.results.get(job)


def played_jobs(
    ask: Callable[[Ask], AbstractAsyncContextManager[AsyncIterator[AskEvent]]],
    settings: JobsConfig | None = None,
    store: JobStore | None = None,
) -> Jobs:
    """The real jobs, done by `ask`."""
    settings = settings or JobsConfig()
    return Jobs(
        store=store or MemoryJobStore(), perform=Performer(ask), settings=settings,
        rule=WebhookRule(settings.webhook_hosts_allowed), now_ms=lambda: time.time_ns() // 1_000_000, chance=os.urandom,
    )  # fmt: skip

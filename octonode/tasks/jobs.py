"""Work of mode `async` at the node that asks: kept on disk, asked for in its turn, its result kept for a while.

A job is on disk before its submitter hears of it, and its end is on disk before anybody is told. So after a kill the
jobs that had not ended are run again, each from its start and each once: an attempt is written down before it begins.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import trio

from octonode.config import JobsConfig
from octonode.errors import NotFound, OctonodeError, Refused
from octonode.protocol.codec import pack, unpack
from octonode.protocol.limits import DEFAULT_LIMITS
from octonode.protocol.messages import TaskState
from octonode.tasks.faults import told
from octonode.tasks.job import PRIORITY_MOST, Job, JobRequest, JobResult, JobStore, JobWork, job_id
from octonode.tasks.queue import Queue
from octonode.tasks.webhook_rule import WebhookRule

log = logging.getLogger(__name__)

AGEING_MS: Final = 60_000
"""A job that has waited so long counts as one priority more urgent."""
FAILURES_MAX: Final = 5
"""Attempts that may fail by a fault of a provider; then the job has failed."""
PAUSE_SECONDS_MOST: Final = 60.0
"""Between two attempts; the first pause is two seconds, and it doubles."""
SWEEP_SECONDS: Final = 60.0
"""Between two looks for results whose time is over; a nearer end is waited for."""
MESSAGE_CHARACTERS_MAX: Final = 1000

COME_BACK: Final = frozenset(
    {"OVERLOADED", "RATE_LIMITED", "MODEL_LOADING", "MODEL_UNAVAILABLE", "MODEL_NOT_FOUND", "UNREACHABLE", "LEAVING"}
    | {"NOT_RUNNING"}
)
"""Nobody could take it now: it waits for better times, until it is as old as its result would be kept."""

STORED_LIMITS: Final = replace(DEFAULT_LIMITS, values_max=1 << 22, map_keys_max=1 << 16)
"""Of what we have written ourselves."""

Perform = Callable[[Job, JobWork], Awaitable[JobResult]]
"""Has the work done: `inference.Performer`. Raises OctonodeError."""


class Jobs:
    """Constructor without I/O; `run` loads the jobs and does them. All verbs need it running: NOT_RUNNING before."""

    def __init__(
        self,
        *,
        store: JobStore,
        perform: Perform,
        settings: JobsConfig,
        rule: WebhookRule,
        now_ms: Callable[[], int],
        chance: Callable[[int], bytes],
        emit: Callable[..., None] = lambda event, **facts: None,
    ) -> None:
        """`chance` gives so many random bytes; `emit` tells the node's events."""
        self._store = store
        self._perform = perform
        self._settings = settings
        self._rule = rule
        self._now_ms = now_ms
        self._chance = chance
        self._emit = emit
        self._jobs: dict[str, Job] = {}
        """All of them, the oldest first; `kept_max` of them at most."""
        self._queue: Queue[str] = Queue(waiting_max=settings.queued_max, ageing_ms=AGEING_MS)
        self._scopes: dict[str, trio.CancelScope] = {}
        self._writing: set[str] = set()
        """Whose beginning or end is being written."""
        self._latest_id_ms = 0
        self._active = 0
        self._wanted = trio.Event()
        self._news = trio.lowlevel.ParkingLot()
        self._running = False
        self.leaving = False
        """Set it when the node drains: what runs may end, and nothing more is begun until the next start."""

    @property
    def open(self) -> int:
        """Jobs that have not ended."""
        return sum(not job.ended for job in self._jobs.values())

    @property
    def active(self) -> int:
        """Jobs that are being asked for now."""
        return self._active

    @property
    def stored_bytes(self) -> int:
        return sum(job.stored_bytes for job in self._jobs.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; what runs then is run again after the next start. Raises what loading raises."""
        loaded = await self._store.load()
        self._queue.waiting_max = max(self._settings.queued_max, len(loaded))
        for job in loaded:
            self._jobs[job.id] = job
            if not job.ended:
                self._queue.put(job.id, PRIORITY_MOST - job.priority, job.created_at_ms)
        async with trio.open_nursery() as nursery:
            self._running = True
            try:
                nursery.start_soon(self._sweep)
                task_status.started()
                await self._start_what_may(nursery)
            finally:
                self._running = False

    async def _start_what_may(self, nursery: trio.Nursery) -> None:
        while True:
            parallel = 0 if self.leaving else max(1, self._settings.parallel)
            while self._active < parallel and (job := self._queue.take()) is not None:
                self._active += 1
                nursery.start_soon(self._work, job)
            await self._wanted.wait()
            self._wanted = trio.Event()

    # What callers ask for.

    def check_webhook(self, url: str) -> None:
        """Raises BAD_REQUEST or FORBIDDEN for what may not be posted to; nothing for the empty text."""
        if url:
            self._rule.target(url)

    async def submit(self, request: JobRequest) -> Job:
        """The job, on disk for good. Raises Refused (OVERLOADED) at a bound, DISK_FULL."""
        work = pack({"input": dict(request.inputs), "parameters": dict(request.parameters)})
        await self._make_room(len(work))
        now_ms = self._now_ms()
        self._latest_id_ms = max(now_ms, self._latest_id_ms + 1)  # so that those of one millisecond keep their order
        job = Job(
            id=job_id(self._latest_id_ms, self._chance(10)),
            owner=request.owner,
            model=request.model,
            model_root=request.model_root,
            skill=request.skill,
            priority=request.priority,
            peer=request.peer,
            privacy=request.privacy,
            webhook=request.webhook,
            ttl_seconds=min(request.ttl_seconds or self._settings.ttl_seconds, self._settings.ttl_seconds),
            created_at_ms=now_ms,
            input_bytes=len(work),
        )
        self._jobs[job.id] = job  # counted from now on, so that many at once keep to the bounds together
        await self._add(job, work)
        queued = self._queue.put(job.id, PRIORITY_MOST - job.priority, now_ms)
        assert queued, "_make_room counts all that are open"
        self._wanted.set()
        self._tell(job)
        return job

    async def _add(self, job: Job, work: bytes) -> None:
        """Nobody cancels it meanwhile: what is written second must not come to the disk first."""
        self._writing.add(job.id)
        with trio.CancelScope(shield=True):
            try:
                await self._store.add(job, work)
            except OctonodeError:
                del self._jobs[job.id]
                raise
            finally:
                self._writing.discard(job.id)
                self._news.unpark_all()

    def get(self, job: str) -> Job:
        """Raises NOT_FOUND, also for one that was forgotten or whose time is over."""
        self._check_running()
        found = self._jobs.get(job)
        if found is None:
            raise NotFound(f"there is no job {job[:64]!r} here: it may be over its time; octonode task list shows all")
        return found

    def all(self) -> Sequence[Job]:
        """The latest first."""
        self._check_running()
        return tuple(reversed(self._jobs.values()))

    def place(self, job: str) -> int:
        """In the queue, from 1; 0 for one that does not wait."""
        return self._queue.place(job) if self._queue.where(job) == "waiting" else 0

    async def work(self, job: str) -> JobWork:
        return _work(await self._store.work(self.get(job).id))

    async def result(self, job: str) -> JobResult | None:
        """None until it is completed."""
        if self.get(job).state != "completed":
            return None
        stored = await self._store.result(job)
        if stored is None:
            raise OctonodeError(f"the result of job {job} is not on disk any more; submit it again", code="DISK_FAILED")
        value = unpack(stored, STORED_LIMITS)
        return JobResult(value["result"], value["facts"])

    async def wait(self, job: str, seconds: float) -> Job:
        """As soon as it has ended, else as it is after so long. Raises NOT_FOUND."""
        found = self.get(job)
        with trio.move_on_after(seconds):
            while not found.ended:
                await self._news.park()
                found = self.get(job)
        return self.get(job)

    async def wait_changed(self) -> None:
        """Until any job is another than it was."""
        await self._news.park()

    async def cancel(self, job: str) -> Job:
        """Ends one that has not ended; forgets one that has. As it is then, or was. Raises NOT_FOUND."""
        found = self.get(job)
        if found.ended:
            await self._forget([found])
            return found
        while job in self._writing:
            await self._news.park()
        found = self.get(job)
        if found.ended:
            return found
        self._queue.cancel(job)
        scope = self._scopes.get(job)
        if scope is not None:
            scope.cancel()
        return await self._end(found, "canceled")

    async def change(self, job: Job) -> None:
        """Keeps another state of it, such as that of its webhook."""
        if job.id in self._jobs:
            self._jobs[job.id] = job
            await self._store.save(job)
            self._news.unpark_all()

    # Doing the work.

    async def _work(self, job: str) -> None:
        try:
            pause_seconds = await self._attempt(job)
        finally:
            self._active -= 1
            self._wanted.set()
        if pause_seconds is None:
            return
        await trio.sleep(pause_seconds)
        if self._queue.where(job) == "running":
            self._queue.requeue(job)
            self._wanted.set()

    async def _attempt(self, job: str) -> float | None:
        """One try. None when the job has ended, else how long to wait before the next one."""
        if self._queue.where(job) != "running":
            return None  # canceled since it was taken
        before = self._jobs[job]
        begun = replace(
            before, state="working", attempt=before.attempt + 1, started_at_ms=before.started_at_ms or self._now_ms()
        )
        scope = self._scopes[job] = trio.CancelScope()
        outcome: bytes | OctonodeError | None = None
        try:
            with scope:
                self._jobs[job] = begun
                await self._store.save(begun)
                self._tell(begun)
                made = await self._perform(begun, _work(await self._store.work(job)))
                outcome = pack({"result": dict(made.result), "facts": dict(made.facts)})
        except Exception as fault:
            outcome = _named(fault)
        finally:
            del self._scopes[job]
        if outcome is None or scope.cancel_called:  # it was canceled, be it a moment before its end
            return None
        if isinstance(outcome, bytes):
            await self._end(begun, "completed", result=outcome)
            return None
        return await self._failed(begun, outcome)

    async def _failed(self, job: Job, error: OctonodeError) -> float | None:
        comes_back = error.code in COME_BACK
        failures = job.failures + (not comes_back)
        told_us = {"code": error.code, "message": error.message[:MESSAGE_CHARACTERS_MAX], "failures": failures}
        late = self._now_ms() - job.created_at_ms >= job.ttl_seconds * 1000
        if late or failures >= FAILURES_MAX or not (comes_back or error.row.retryable):
            await self._end(replace(job, **told_us), "failed")  # type: ignore[arg-type]
            return None
        try:
            await self.change(replace(job, **told_us))  # type: ignore[arg-type]
        except OctonodeError as fault:
            log.error("job %s cannot be written: %s", job.id, fault.message)
        pause_seconds = min(PAUSE_SECONDS_MOST, 2.0 ** min(job.attempt, 10))
        return min(PAUSE_SECONDS_MOST, max(pause_seconds, error.retry_after_seconds or 0.0))

    async def _end(self, job: Job, state: TaskState, *, result: bytes | None = None) -> Job:
        """On disk first, then told. Where the disk takes no result the job has failed by that."""
        now_ms = self._now_ms()
        ended = replace(
            job,
            state=state,
            ended_at_ms=now_ms,
            expires_at_ms=now_ms + int(job.ttl_seconds * 1000),
            code="" if state == "completed" else job.code or ("CANCELED" if state == "canceled" else ""),
            message="" if state == "completed" else job.message,
            hook_state="pending" if job.webhook else "",
            hook_at_ms=now_ms if job.webhook else 0,
            result_bytes=len(result or b""),
        )
        self._writing.add(job.id)
        with trio.CancelScope(shield=True):
            try:
                ended = await self._save_end(ended, result)
            finally:
                self._writing.discard(job.id)
        self._jobs[job.id] = ended
        if self._queue.where(job.id) == "running":
            self._queue.finish(job.id)
        self._wanted.set()
        self._tell(ended)
        return ended

    async def _save_end(self, ended: Job, result: bytes | None) -> Job:
        """What it ended as: a full disk may still have room for a state."""
        try:
            await self._store.save(ended, result)
        except OctonodeError as error:
            log.error("the end of job %s cannot be written: %s", ended.id, error.message)
            if result is not None:
                message = error.message[:MESSAGE_CHARACTERS_MAX]
                failed = replace(ended, state="failed", code=error.code, message=message, result_bytes=0)
                return await self._save_end(failed, None)
        return ended

    # Bounds.

    async def _make_room(self, work_bytes: int) -> None:
        """Nothing is awaited between the last look and the return."""
        self._check_room(work_bytes)
        kept_max = self._settings.kept_max
        while len(self._jobs) >= kept_max and any(job.ended for job in self._jobs.values()):
            ended = sorted((job for job in self._jobs.values() if job.ended), key=lambda job: job.ended_at_ms)
            await self._forget(ended[: len(self._jobs) - kept_max + 1])
            self._check_room(work_bytes)

    def _check_room(self, work_bytes: int) -> None:
        self._check_running()
        settings = self._settings
        if self.open >= settings.queued_max:
            message = f"{self.open} jobs wait or run here (jobs.queued_max); wait until some have ended, or cancel some"
            raise Refused(message, retry_after_seconds=5.0)
        if self.stored_bytes + work_bytes > settings.stored_bytes_max:
            message = f"jobs hold {self.stored_bytes} bytes here (jobs.stored_bytes_max); forget some that have ended"
            raise Refused(message, retry_after_seconds=60.0)

    async def _sweep(self) -> None:
        while True:
            now_ms = self._now_ms()
            await self._forget([job for job in self._jobs.values() if job.ended and job.expires_at_ms <= now_ms])
            ends_ms = min((job.expires_at_ms for job in self._jobs.values() if job.ended), default=now_ms + 10**9)
            await trio.sleep(min(SWEEP_SECONDS, max(0.05, (ends_ms - now_ms) / 1000)))

    async def _forget(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._jobs.pop(job.id, None)
        if jobs:
            try:
                await self._store.drop(*(job.id for job in jobs))
            except OctonodeError as error:  # they are found again at the next start, and their time is over then
                log.error("%d jobs cannot be dropped: %s", len(jobs), error.message)
            self._news.unpark_all()

    def _check_running(self) -> None:
        if not self._running:
            raise OctonodeError("this node is starting or stopping; try again", code="NOT_RUNNING")

    def _tell(self, job: Job) -> None:
        self._news.unpark_all()
        self._emit("job", job=job.id, state=job.state, attempt=job.attempt)


def _work(stored: bytes) -> JobWork:
    value = unpack(stored, STORED_LIMITS)
    return JobWork(value["input"], value["parameters"])


def _named(fault: Exception) -> OctonodeError:
    known = told(fault)
    if known is None:
        log.error("a job failed by a bug: %r", fault, exc_info=fault)
        return OctonodeError("this node met a bug in itself; see its log", code="INTERNAL")
    return known

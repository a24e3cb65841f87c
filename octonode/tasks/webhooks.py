"""Posting the end of a job to the URL that was named for it: signed, to a public address, a few times, never for long.

Beside the queue and with few places for each host: who does not answer delays no job, and no other host. How a
receiver checks a post: protocols/http.md, section "Webhooks".
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from typing import Final, Protocol
from urllib.parse import urlsplit

import trio

from octonode.errors import OctonodeError
from octonode.identity import Signer
from octonode.ids import WEBHOOK_DOMAIN
from octonode.tasks.job import Job, JobResult
from octonode.tasks.jobs import Jobs
from octonode.tasks.webhook_rule import Target, WebhookRule

log = logging.getLogger(__name__)

PAUSES_SECONDS: Final = (5, 30, 120, 600)
"""Between the tries: there are five."""
DELIVERIES_MAX: Final = 8
"""At the same time; others wait."""
HOST_DELIVERIES_MAX: Final = 2
"""Of them to one host: one that does not answer leaves places to others."""
LOOK_SECONDS: Final = 60.0
"""Between two looks for what is due; a nearer time is waited for."""
LINE_SECONDS: Final = 5.0
"""The same while something due has no place."""
DELIVERY_SECONDS_MAX: Final = 15.0
"""One try, from the look-up of the name to the status."""
BODY_BYTES_MAX: Final = 1024 * 1024
"""A result that makes a body larger is left out of it; it can be asked for."""

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Addresses of a name. Raises OSError."""
Render = Callable[[Job, JobResult | None, int], bytes]
"""The body for a job, of so many bytes at most."""


class Post(Protocol):
    async def __call__(self, target: Target, address: str, headers: dict[str, str], body: bytes) -> int:
        """The status of the answer; connects to `address` and to nothing else. Raises OctonodeError, OSError."""
        ...


def signed_headers(signer: Signer, job: Job, body: bytes, now_ms: int) -> dict[str, str]:
    """What tells a receiver who posts, when, and that nothing was changed."""
    timestamp = str(now_ms)
    digest = sha256(timestamp.encode() + b"." + body).digest()
    return {
        "content-type": "application/json",
        "user-agent": "octonode",
        "x-octonode-peer": signer.peer_id,
        "x-octonode-job": job.id,
        "x-octonode-try": str(job.hook_tries + 1),
        "x-octonode-timestamp": timestamp,
        "x-octonode-signature": base64.b64encode(signer.sign(WEBHOOK_DOMAIN + digest)).decode("ascii"),
    }


class Webhooks:
    """Constructor without I/O; `run` delivers what is due, also what an earlier run of the node has left."""

    def __init__(
        self,
        jobs: Jobs,
        *,
        signer: Signer,
        rule: WebhookRule,
        resolve: Resolve,
        post: Post,
        render: Render,
        now_ms: Callable[[], int],
    ) -> None:
        self._jobs = jobs
        self._signer = signer
        self._rule = rule
        self._resolve = resolve
        self._post = post
        self._render = render
        self._now_ms = now_ms
        self._under_way: dict[str, str] = {}
        """Host of each job whose end is being posted; `DELIVERIES_MAX` at most."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. `Jobs.run` must be running."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                wait_seconds = self._begin_what_is_due(nursery)
                with trio.move_on_after(wait_seconds):
                    await self._jobs.wait_changed()

    def _begin_what_is_due(self, nursery: trio.Nursery) -> float:
        """The longest due first; the seconds until the next look."""
        now_ms, wait_seconds = self._now_ms(), LOOK_SECONDS
        pending = [job for job in self._jobs.all() if job.hook_state == "pending" and job.id not in self._under_way]
        for job in sorted(pending, key=lambda job: job.hook_at_ms):
            ahead_ms = job.hook_at_ms - now_ms
            if 0 < ahead_ms <= PAUSES_SECONDS[-1] * 1000:  # what is further ahead was set before the clock stepped back
                wait_seconds = min(wait_seconds, max(0.05, ahead_ms / 1000))
            elif self._has_place(host := urlsplit(job.webhook).netloc):
                self._under_way[job.id] = host
                nursery.start_soon(self._deliver, job)
            else:
                wait_seconds = min(wait_seconds, LINE_SECONDS)
        return wait_seconds

    def _has_place(self, host: str) -> bool:
        hosts = list(self._under_way.values())
        return len(hosts) < DELIVERIES_MAX and hosts.count(host) < HOST_DELIVERIES_MAX

    async def _deliver(self, job: Job) -> None:
        try:
            why = await self._try(job)
            await self._tried(job, why)
        except OctonodeError as error:  # of the store: the try is made again when its time comes
            log.error("the webhook of job %s: %s", job.id, error.message)
            await trio.sleep(PAUSES_SECONDS[0])
        finally:
            del self._under_way[job.id]

    async def _try(self, job: Job) -> str:
        """Empty when it was taken, else why not."""
        try:
            result = await self._jobs.result(job.id)
        except OctonodeError:
            result = None  # the state is told all the same
        body = await trio.to_thread.run_sync(self._render, job, result, BODY_BYTES_MAX)
        with trio.move_on_after(DELIVERY_SECONDS_MAX):
            try:
                target = self._rule.target(job.webhook)
                address = self._rule.choose(target, await self._resolve(target.host, target.port))
                headers = signed_headers(self._signer, job, body, self._now_ms())
                status = await self._post(target, address, headers, body)
            except OctonodeError as error:
                return error.message
            except OSError as error:
                return f"{error}"
            return "" if 200 <= status < 300 else f"status {status}"
        return f"no answer within {DELIVERY_SECONDS_MAX:g} s"

    async def _tried(self, job: Job, why: str) -> None:
        tries = job.hook_tries + 1
        if not why:
            after = replace(job, hook_state="delivered", hook_tries=tries)
        elif tries > len(PAUSES_SECONDS):
            after = replace(job, hook_state="failed", hook_tries=tries)
        else:
            at_ms = self._now_ms() + PAUSES_SECONDS[tries - 1] * 1000
            after = replace(job, hook_tries=tries, hook_at_ms=at_ms)
        if why:
            log.warning("the webhook of job %s was not taken (try %d): %s", job.id, tries, why)
        await self._jobs.change(after)

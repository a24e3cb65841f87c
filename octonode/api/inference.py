"""`/api/v1/inference`: work of any skill, answered now, or kept as a job for later. Spec: protocols/http.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, cast

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from octonode.api.answering import Answering, OnProgress, check_skill, peer_of
from octonode.api.auth import Access
from octonode.api.body import BodyLimits, privacy_header, read_json
from octonode.api.jobs import Job as Progressing
from octonode.api.ports import Jobs, Ports, Report
from octonode.api.query import whole_number
from octonode.api.schema import AnswerFacts, ModelFacts, ModelProgress, bad_request, parse, privacy_level, to_json
from octonode.api.schema.fields import Terms
from octonode.api.schema.inference import Failure, Infer, InferenceFacts, decoded
from octonode.api.streaming import cancel_when_gone
from octonode.errors import NotFound, VerificationFailed
from octonode.protocol.messages import Privacy
from octonode.protocol.receipt import verify_receipt
from octonode.protocol.work.skills import CHAT, read_result
from octonode.tasks.asking import Ask
from octonode.tasks.inference import ask_of, chat_result
from octonode.tasks.job import PRIORITY_MOST, Job, JobRequest, JobResult

BODY_BYTES_MAX = 22 * 1024 * 1024
"""A sound of 15 MiB in base64; `api.request_bytes_max` may allow more."""
BODY_SECONDS_MAX = 120.0
WAIT_SECONDS_MAX = 55.0
"""Of one look at a job that waits for its end: below the patience of clients and proxies."""
LIST_DEFAULT, LIST_MAX = 100, 1000
JOB_FIELDS = ("priority", "webhook", "ttl_seconds")


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    looking = _Looking(ports.jobs)
    large = replace(limits, bytes_max=max(limits.bytes_max, BODY_BYTES_MAX), timeout_seconds=BODY_SECONDS_MAX)
    return [
        Route("/api/v1/inference", looking.list, methods=["GET"]),
        Route("/api/v1/inference", _Inference(ports, large), methods=["POST"]),
        Route("/api/v1/inference/{job}", looking.get, methods=["GET"]),
        Route("/api/v1/inference/{job}", looking.cancel, methods=["DELETE"]),
    ]


class _Inference:
    """`POST /api/v1/inference` as an ASGI application."""

    def __init__(self, ports: Ports, limits: BodyLimits) -> None:
        self._ports = ports
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if b"application/x-ndjson" in dict(scope["headers"]).get(b"accept", b""):
            await Progressing(Infer, partial(self._answer_in_steps, scope), self._limits)(scope, receive, send)
            return
        asked: Infer = parse(Infer, await read_json(scope, receive, self._limits))
        privacy = privacy_level(asked.privacy_level, privacy_header(scope))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            model = await self._ports.models.resolve(asked.model)
            ask = await trio.to_thread.run_sync(as_ask, asked, model, privacy)
            if asked.mode == "async":
                facts = await self._submit(asked, ask, model, scope["octonode.access"])
                status, headers = 202, {"location": f"/api/v1/inference/{facts.id}"}
            else:
                facts = await self._answer(asked, ask, model)
                status, headers = 200, {}
            response = await trio.to_thread.run_sync(_told, facts, status, headers)
            await response(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _submit(self, asked: Infer, ask: Ask, model: ModelFacts, access: Access) -> InferenceFacts:
        self._ports.jobs.check_webhook(asked.webhook)
        job = await self._ports.jobs.submit(
            JobRequest(
                owner=access.key,
                model=asked.model,
                model_root=model.root,
                skill=asked.skill,
                inputs=decoded(asked.skill, asked.input),
                parameters=asked.parameters,
                priority=asked.priority,
                peer=asked.peer,
                privacy=ask.privacy,
                webhook=asked.webhook,
                ttl_seconds=asked.ttl_seconds,
            )
        )
        return job_facts(job, place=self._ports.jobs.place(job.id))

    async def _answer_in_steps(self, scope: Scope, asked: Infer, report: Report) -> InferenceFacts:
        """As `_answer`, with its progress told before it: a picture takes minutes."""
        if asked.mode == "async":
            raise bad_request("progress is told of what is answered at once; look at a job with GET", "mode")
        model = await self._ports.models.resolve(asked.model)
        privacy = privacy_level(asked.privacy_level, privacy_header(scope))
        ask = await trio.to_thread.run_sync(as_ask, asked, model, privacy)
        return await self._answer(
            asked, ask, model, lambda event: report(ModelProgress(event.stage, event.done, event.total))
        )

    async def _answer(
        self, asked: Infer, ask: Ask, model: ModelFacts, on_progress: OnProgress | None = None
    ) -> InferenceFacts:
        answering = Answering(model, Terms(asked.model))
        texts: list[str] = []

        async def take(text: str) -> None:
            texts.append(text)

        async with self._ports.asking.ask(ask) as events:
            await answering.follow(events, take, on_progress)
        facts = answering.facts()
        result = chat_result("".join(texts), answering.end) if ask.work is None else answering.made
        return InferenceFacts(
            id=facts.task, state="completed", model=asked.model, model_root=model.root, skill=asked.skill,
            mode=asked.mode, attempt=facts.attempts, result=result, octonode=facts,
        )  # fmt: skip


class _Looking:
    """What becomes of jobs. A job is seen by the key that made it, and by admins."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def list(self, request: Request) -> Response:
        access: Access = request.scope["octonode.access"]
        limit = whole_number(request.query_params.get("limit", str(LIST_DEFAULT)), "limit", LIST_MAX)
        mine = islice((job for job in self._jobs.all() if may_see(access, job)), limit)
        seen = [job_facts(job, place=self._jobs.place(job.id)) for job in mine]
        return JSONResponse({"jobs": to_json(seen)})

    async def get(self, request: Request) -> Response:
        job = self._find(request)
        wait_seconds = _wait_seconds(request.query_params.get("wait", "0"))
        if wait_seconds and not job.ended:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_gone, request.receive, nursery.cancel_scope)
                job = await self._jobs.wait(job.id, wait_seconds)
                nursery.cancel_scope.cancel()
        result = await self._jobs.result(job.id)
        facts = job_facts(job, result, place=self._jobs.place(job.id))
        return await trio.to_thread.run_sync(_told, facts)

    async def cancel(self, request: Request) -> Response:
        job = await self._jobs.cancel(self._find(request).id)
        return JSONResponse(to_json(job_facts(job)))

    def _find(self, request: Request) -> Job:
        asked: str = request.path_params["job"]
        job = self._jobs.get(asked)
        if not may_see(request.scope["octonode.access"], job):  # as if there were none: ids tell nothing
            raise NotFound(
                f"there is no job {asked[:64]!r} here: it may be over its time; octonode task list shows all"
            )
        return job


def _told(facts: InferenceFacts, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """For a thread: a result may have megabytes."""
    return JSONResponse(to_json(facts), status, headers)


def may_see(access: Access, job: Job) -> bool:
    return access.admin or access.key == job.owner


def as_ask(asked: Infer, model: ModelFacts, privacy: str) -> Ask:
    """Raises OctonodeError that names the field at fault."""
    check_skill(model, asked.skill)
    if asked.mode != "async":
        for name in JOB_FIELDS:
            if getattr(asked, name) != Infer.__dataclass_fields__[name].default:
                raise bad_request(f"{name} is of jobs alone; ask with mode async", name)
    if not 0 <= asked.priority <= PRIORITY_MOST:
        raise bad_request(f"priority is from 0 to {PRIORITY_MOST}, the most urgent", "priority")
    if not 0 <= asked.ttl_seconds < 1e9:
        raise bad_request("ttl_seconds is a number of seconds, 0 or more", "ttl_seconds")
    return ask_of(
        asked.skill,
        model.root,
        decoded(asked.skill, asked.input),
        asked.parameters,
        mode=asked.mode,
        privacy=cast(Privacy, privacy),
        peer=peer_of(asked.peer, "peer"),
    )


def job_facts(job: Job, result: JobResult | None = None, *, place: int = 0) -> InferenceFacts:
    """A job as it is shown. `result` where it is completed."""
    return InferenceFacts(
        id=job.id,
        state=job.state,
        model=job.model,
        model_root=job.model_root,
        skill=job.skill,
        mode="async",
        priority=job.priority,
        place=place,
        attempt=job.attempt,
        created_at_ms=job.created_at_ms,
        started_at_ms=job.started_at_ms,
        ended_at_ms=job.ended_at_ms,
        expires_at_ms=job.expires_at_ms,
        webhook=job.webhook,
        webhook_state=job.hook_state,
        webhook_tries=job.hook_tries,
        error=Failure(job.code, job.message) if job.code else None,
        result=_result(job.skill, result.result) if result is not None else None,
        octonode=_answer_facts(job, result.facts) if result is not None else None,
    )


def _result(skill: str, result: Mapping[str, Any]) -> Any:
    """With the fields that were left out at their default."""
    return result if skill == CHAT else read_result(skill, result)


def _answer_facts(job: Job, facts: Mapping[str, Any]) -> AnswerFacts:
    manifest = ""
    if facts["receipt"]:
        try:
            manifest = verify_receipt(facts["receipt"]).manifest
        except VerificationFailed:
            manifest = ""  # `verified` is false then, and `reason` says why
    given = {**facts, "task": facts["task"].hex()}
    return AnswerFacts(model_root=job.model_root, manifest=manifest, **given)


def _wait_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= WAIT_SECONDS_MAX:
        raise bad_request(f"wait is a number of seconds from 0 to {WAIT_SECONDS_MAX:g}", "wait")
    return seconds


def webhook_body(job: Job, result: JobResult | None, bytes_max: int) -> bytes:
    """What is posted of a job that has ended: as `GET` shows it, without its result where that is too large."""
    whole = json.dumps(to_json(job_facts(job, result))).encode()
    if len(whole) <= bytes_max:
        return whole
    return json.dumps({**to_json(job_facts(job)), "result_left_out": True}).encode()

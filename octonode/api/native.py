"""The native API, `/api/v1/*`: the node, its peers, models, tasks and receipts. Spec: protocols/http.md.

Verbs that take long answer NDJSON: {"type": "progress" | "result" | "error" | "ping", ...} a line, the last one a
result or an error. What fails before its first progress has a plain HTTP status. Leaving cancels.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from hashlib import sha256
from typing import Any, cast

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from octonode.api.answering import ask_on
from octonode.api.body import BodyLimits, read_json
from octonode.api.jobs import PING_LINE, Job
from octonode.api.ports import Ports
from octonode.api.query import whole_number
from octonode.api.schema import (
    PING,
    AddModel,
    Explain,
    FetchModel,
    Join,
    PublishModel,
    ReceiptFacts,
    ServeModel,
    TaskFacts,
    TrustPublisher,
    VerifyModel,
    bad_request,
    line,
    parse,
    privacy_level,
    sse_event,
    to_json,
)
from octonode.api.schema.fields import Terms
from octonode.api.streaming import NDJSON, SSE, EventStream, cancel_when_gone
from octonode.errors import NotFound, OctonodeError
from octonode.ids import TaskId
from octonode.protocol.receipt import verify_receipt
from octonode.protocol.work.skills import CHAT, SKILLS, WorkRequest
from octonode.tasks.receipts import StoredReceipt, TaskRecord

TASKS_MAX = 1000


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    verbs = _Verbs(ports, limits)
    return [
        Route("/api/v1/node", verbs.node, methods=["GET"]),
        Route("/api/v1/peers", verbs.peers, methods=["GET"]),
        Route("/api/v1/peers", verbs.join, methods=["POST"]),
        Route("/api/v1/models", verbs.models, methods=["GET"]),
        Route("/api/v1/models/add", Job(AddModel, ports.models.add, limits), methods=["POST"]),
        Route("/api/v1/models/fetch", Job(FetchModel, ports.models.fetch, limits), methods=["POST"]),
        Route("/api/v1/models/publish", Job(PublishModel, ports.models.publish, limits), methods=["POST"]),
        Route("/api/v1/models/serve", Job(ServeModel, ports.models.serve, limits), methods=["POST"]),
        Route("/api/v1/models/verify", Job(VerifyModel, ports.models.verify, limits), methods=["POST"]),
        Route("/api/v1/models/trust", verbs.publishers, methods=["GET"]),
        Route("/api/v1/models/trust", verbs.trust, methods=["POST"]),
        Route("/api/v1/models/{reference:path}", verbs.model, methods=["GET"]),
        Route("/api/v1/models/{reference:path}", verbs.remove, methods=["DELETE"]),
        Route("/api/v1/tasks", verbs.tasks, methods=["GET"]),
        Route("/api/v1/receipts/{task}", verbs.receipt, methods=["GET"]),
        Route("/api/v1/explain", verbs.explain, methods=["POST"]),
        Route("/api/v1/doctor", verbs.doctor, methods=["GET"]),
        Route("/api/v1/stop", verbs.stop, methods=["POST"]),
        Route("/api/v1/events", _Events(ports), methods=["GET"]),
    ]


class _Verbs:
    """The verbs that answer at once, one JSON value each."""

    def __init__(self, ports: Ports, limits: BodyLimits) -> None:
        self._ports = ports
        self._limits = limits

    async def _parse(self, kind: type[Any], request: Request) -> Any:
        return parse(kind, await read_json(request.scope, request.receive, self._limits))

    async def node(self, request: Request) -> Response:
        facts = await self._ports.node.facts()
        if not request.scope["octonode.access"].admin:
            facts = replace(facts, join="")
        return JSONResponse(to_json(facts))

    async def peers(self, _: Request) -> Response:
        return JSONResponse({"peers": to_json(await self._ports.peers.list())})

    async def join(self, request: Request) -> Response:
        asked: Join = await self._parse(Join, request)
        return JSONResponse(to_json(await self._ports.peers.join(asked.address.strip())))

    async def models(self, _: Request) -> Response:
        return JSONResponse({"models": to_json(await self._ports.models.list())})

    async def model(self, request: Request) -> Response:
        return JSONResponse(to_json(await self._ports.models.resolve(request.path_params["reference"])))

    async def remove(self, request: Request) -> Response:
        force = request.query_params.get("force", "") in ("1", "true")
        removed = await self._ports.models.remove(request.path_params["reference"], force=force)
        return JSONResponse(to_json(removed))

    async def publishers(self, _: Request) -> Response:
        return JSONResponse({"publishers": to_json(await self._ports.models.publishers())})

    async def trust(self, request: Request) -> Response:
        asked: TrustPublisher = await self._parse(TrustPublisher, request)
        found = await self._ports.models.trust(asked.publisher, trusted=asked.trusted, note=asked.note)
        return JSONResponse({"publishers": to_json(found)})

    async def tasks(self, request: Request) -> Response:
        limit = whole_number(request.query_params.get("limit", "100"), "limit", TASKS_MAX)
        records = await self._ports.records.tasks(limit=limit)
        return JSONResponse({"tasks": [to_json(task_facts(each)) for each in records]})

    async def receipt(self, request: Request) -> Response:
        text = request.path_params["task"]
        try:
            task = TaskId(bytes.fromhex(text))
        except ValueError:
            raise bad_request("a task id has 32 hex digits", "task") from None
        stored = await self._ports.records.receipt(task)
        if stored is None:
            raise NotFound(f"no receipt of task {text[:32]} is kept here", code="TASK_NOT_FOUND")
        return JSONResponse(to_json(receipt_facts(stored)))

    async def explain(self, request: Request) -> Response:
        asked: Explain = await self._parse(Explain, request)
        model = await self._ports.models.resolve(asked.model)
        terms = Terms(asked.model, privacy_level(asked.privacy_level), asked.peer)
        skill = asked.skill or (model.skills[0] if model.skills else CHAT)
        candidates = await self._ports.asking.explain(ask_on(terms, model, work=_nothing_of(skill)))
        return JSONResponse({"model": to_json(model), "candidates": to_json(candidates)})

    async def doctor(self, _: Request) -> Response:
        return JSONResponse({"findings": to_json(await self._ports.node.doctor())})

    async def stop(self, _: Request) -> Response:
        self._ports.node.stop()
        return JSONResponse({"state": "leaving"}, 202)


def _nothing_of(skill: str) -> WorkRequest | None:
    """An empty request of a skill: who would do it does not depend on what there is to do. Raises UNSUPPORTED."""
    if skill == CHAT:
        return None
    known = SKILLS.get(skill)
    if known is None:
        raise bad_request(f"there is no skill {skill[:32]!r}; known are chat, {', '.join(SKILLS)}", "skill")
    empty: WorkRequest = cast(Any, known.request)(b"")  # each begins with its one field that must be given
    return empty


class _Events:
    """`GET /api/v1/events`: NDJSON, or server-sent events for who accepts them; until the client or the node leaves."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        as_sse = b"text/event-stream" in dict(scope["headers"]).get(b"accept", b"")
        render, ping = (sse_event, PING) if as_sse else (line, PING_LINE)
        stream = EventStream(send, SSE if as_sse else NDJSON, ping)
        if scope["method"] == "HEAD":  # an answer without a body is over at once
            await stream.end()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            async with self._ports.node.events() as events:
                await stream.write(ping)  # from here on nothing is missed, and the reader knows it
                nursery.start_soon(stream.keep_alive)
                async for each in events:
                    await stream.write(render(to_json(each)))
            await stream.end()
            nursery.cancel_scope.cancel()


def task_facts(record: TaskRecord) -> TaskFacts:
    shown = {each.name: getattr(record, each.name) for each in fields(TaskFacts)}
    return TaskFacts(**{**shown, "task": record.task.hex()})


def receipt_facts(stored: StoredReceipt) -> ReceiptFacts:
    """What a stored receipt says, checked again from its bytes. A receipt that does not verify is shown, not hidden."""
    facts: dict[str, Any] = {}
    verified = False
    try:
        receipt = verify_receipt(stored.receipt)
        facts = _hex(asdict(receipt))
        verified = stored.verified and receipt.request == sha256(stored.request_header).digest()
    except OctonodeError as error:
        facts = {"trouble": error.message}
    return ReceiptFacts(
        task=stored.task.hex(),
        receipt=stored.receipt,
        request_header=stored.request_header,
        verified=verified,
        provider=stored.provider,
        asker=stored.asker,
        model_root=stored.model_root,
        facts=facts,
    )


def _hex(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hex(each) for name, each in value.items()}
    return value.hex() if isinstance(value, bytes) else value

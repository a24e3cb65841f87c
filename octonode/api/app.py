"""Assembles the faces: routes, behind the access rules, behind one place that names every error. Pure ASGI."""

from __future__ import annotations

import json
import secrets
from typing import Any

import trio
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octonode.api import (
    cache,
    engines,
    fetches,
    fitting,
    health,
    inference,
    native,
    openai,
    pins,
    quantizing,
    uploads,
    versions,
)
from octonode.api.auth import Rules
from octonode.api.body import BodyLimits, ClientGone
from octonode.api.faults import name_fault
from octonode.api.ports import Ports
from octonode.api.schema import error_body, error_headers
from octonode.config import ApiConfig


def make_app(ports: Ports, *, config: ApiConfig, token: str, metrics: CollectorRegistry | None = None) -> ASGIApp:
    """The ASGI application of a node, for `server.serve`. `token` is the one in `OCTONODE_HOME/api.token`.

    Raises ConfigError for keys that are too short.
    """
    limits = BodyLimits(bytes_max=config.request_bytes_max)
    routes = [
        *health.routes(ports.node, metrics or CollectorRegistry()),
        *openai.routes(ports, limits),
        *fetches.routes(ports, limits),
        *cache.routes(ports, limits),
        *versions.routes(ports, limits),
        *fitting.routes(ports, limits),
        *engines.routes(ports),
        *uploads.routes(ports, limits),
        *pins.routes(ports, limits),
        *quantizing.routes(ports, limits),
        *inference.routes(ports, limits),
        *native.routes(ports, limits),
    ]
    return Faces(Router(routes, redirect_slashes=False), Rules(config, token))


class Faces:
    """The outermost layer: a request id, the access rules, and every error as the one error body."""

    def __init__(self, router: Router, rules: Rules) -> None:
        self._router = router
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        assert scope["type"] == "http", "the server speaks HTTP and WebSocket"
        answer, request = _Answer(send), _Request(scope, receive)
        try:
            await self._handle(scope, request.receive, answer)
        except ClientGone:
            return
        except Exception as fault:
            error, headers = name_fault(fault)
            if answer.started:
                raise  # the server cuts the connection: an answer that breaks off must not look whole
            status = fault.status_code if isinstance(fault, HTTPException) else error.row.http_status
            if request.unread:
                headers = {**headers, "connection": "close"}  # else the next request would meet the end of this one
            async with trio.open_nursery() as nursery:
                nursery.start_soon(request.drop)
                await answer.json(status, error_body(error), {**error_headers(error), **headers})
                nursery.cancel_scope.cancel()

    async def _handle(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] == "OPTIONS":
            preflight = self._rules.preflight(headers)
            if preflight is not None:
                answer.headers += preflight
                await answer.send({"type": "http.response.start", "status": 204, "headers": []})
                await answer.send({"type": "http.response.body"})
                return
        client = scope["client"][0] if scope["client"] else ""
        answer.headers += self._rules.cors(scope["method"], headers)
        access = self._rules.decide(scope["method"], scope["path"], headers, client)
        scope["octonode.access"] = access
        scope["octonode.request_id"] = answer.request_id
        scope["app"] = self  # makes Starlette's router raise HTTPException for 404 and 405
        await self._router(scope, receive, answer.send)


class _Request:
    """A request on its way in: knows whether something of its body was not read."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        names = {name for name, value in scope["headers"] if value != b"0"}
        self.unread = bool(names & {b"content-length", b"transfer-encoding"})

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.unread = False
        return message

    async def drop(self) -> None:
        """Read what is left of one that was refused: the server waits for us while its queue of body pieces is full,
        and would never come to send the answer."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _Answer:
    """One answer on its way out: adds the headers that every answer has, and remembers that it has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.request_id = f"req_{secrets.token_hex(12)}"
        self.headers: tuple[tuple[bytes, bytes], ...] = (
            (b"x-request-id", self.request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
        )

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
        await self._send(message)

    async def json(self, status: int, body: Any, headers: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        given = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        lengths = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": [*lengths, *given]})
        await self.send({"type": "http.response.body", "body": data})

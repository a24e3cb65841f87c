"""OpenAI's face: `/v1/models` and `/v1/chat/completions`, streamed and whole. Spec: protocols/http.md.

An answer's status is decided late: nothing is sent before the first text, so that what fails until then has a real HTTP
status and a client's own retry works. A client that goes away cancels its question, in both modes.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from octonode.api.body import BodyLimits, read_json
from octonode.api.faults import name_fault
from octonode.api.ports import Ports
from octonode.api.schema import (
    DONE,
    PING,
    AnswerFacts,
    CandidateFacts,
    ChatRequest,
    Chunks,
    ModelFacts,
    completion,
    error_event,
    model_list,
    model_object,
    parse_chat,
    read,
    to_json,
)
from octonode.api.streaming import SSE, EventStream, cancel_when_gone
from octonode.errors import OctonodeError
from octonode.ids import PeerId, public_key_from_peer_id
from octonode.tasks.asking import Answered, Ask, AskEvent, Attempt, Pieces, Progress

COLD_WAIT_SECONDS = 10.0
"""How long a question waits for a model that is being fetched or loaded, before it is told to come back."""
COLD_STAGES = frozenset({"fetching", "loading"})
COLD_RETRY_SECONDS_MAX = 60.0


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    async def models(_: Request) -> Response:
        return JSONResponse(model_list(await ports.models.list()))

    async def model(request: Request) -> Response:
        return JSONResponse(model_object(await ports.models.resolve(request.path_params["reference"])))

    return [
        Route("/v1/models", models),
        Route("/v1/models/{reference:path}", model),
        Route("/v1/chat/completions", ChatCompletions(ports, limits), methods=["POST"]),
    ]


class ChatCompletions:
    """`POST /v1/chat/completions` as an ASGI application."""

    def __init__(self, ports: Ports, limits: BodyLimits) -> None:
        self._ports = ports
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(scope, receive, self._limits)
        privacy = dict(scope["headers"]).get(b"x-octonode-privacy")
        request = parse_chat(body, privacy.decode("latin-1") if privacy is not None else None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            model = await self._ports.models.resolve(request.model)
            ask = as_ask(request, model)
            answering = _Answering(request, model, await self._candidates(request, ask))
            if request.stream:
                stream = EventStream(send, SSE, PING)
                nursery.start_soon(stream.keep_alive)
                await self._stream(ask, answering, stream)
            else:
                await JSONResponse(await self._whole(ask, answering))(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _candidates(self, request: ChatRequest, ask: Ask) -> tuple[CandidateFacts, ...]:
        found = await self._ports.asking.explain(ask) if request.explain else ()
        return tuple(read(CandidateFacts, to_json(each)) for each in found)

    async def _whole(self, ask: Ask, answering: _Answering) -> dict[str, Any]:
        texts: list[str] = []

        async def take(text: str) -> None:
            texts.append(text)

        async with self._ports.asking.ask(ask) as events:
            await answering.follow(events, take)
        return answering.completion("".join(texts))

    async def _stream(self, ask: Ask, answering: _Answering, stream: EventStream) -> None:
        chunks = answering.chunks()
        first = chunks.role()  # goes out with the first text, in one write

        async def take(text: str) -> None:
            nonlocal first
            data, first = first + chunks.text(text), b""
            await stream.write(data)

        try:
            async with self._ports.asking.ask(ask) as events:
                await answering.follow(events, take)
        except Exception as fault:
            if not stream.started:
                raise
            await stream.end(error_event(name_fault(fault)[0]))
        else:
            await stream.end(first + answering.last_chunks(chunks))


class _Answering:
    """One answer while it is being given: follows the events of its question and renders what is said at the end."""

    def __init__(self, request: ChatRequest, model: ModelFacts, candidates: tuple[CandidateFacts, ...]) -> None:
        self._request = request
        self._model = model
        self._candidates = candidates
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._attempts = 0
        self._answered: Answered | None = None
        self._cold: tuple[float, Progress] | None = None  # when the model was first seen cold, and how far it was

    async def follow(self, events: AsyncIterator[AskEvent], take: Callable[[str], Awaitable[None]]) -> None:
        """Hands each text to `take`. Raises what `events` does, and MODEL_LOADING when a cold model stays cold."""
        progress: Progress | None = None
        with trio.CancelScope() as patience:
            async for event in events:
                if isinstance(event, Pieces):
                    patience.deadline = math.inf
                    await take(event.text)
                elif isinstance(event, Progress):
                    progress = event
                    patience.deadline = self._cold_deadline(event)
                elif isinstance(event, Attempt):
                    self._attempts += 1
                elif isinstance(event, Answered):
                    self._answered = event
        if patience.cancelled_caught and progress is not None:
            raise self._still_cold(progress)
        if self._answered is None:
            raise OctonodeError("the answer ended without a word of its end; ask again", code="PROVIDER_LOST")

    def _cold_deadline(self, progress: Progress) -> float:
        if progress.stage not in COLD_STAGES:
            return math.inf
        if self._cold is None:
            self._cold = (trio.current_time(), progress)
        return self._cold[0] + COLD_WAIT_SECONDS

    def _still_cold(self, progress: Progress) -> OctonodeError:
        assert self._cold is not None
        since, first = self._cold
        done = progress.done - first.done if progress.stage == first.stage else 0
        pace = done / max(trio.current_time() - since, 1e-3)
        left_seconds = (progress.total - progress.done) / pace if pace > 0 else COLD_WAIT_SECONDS
        return OctonodeError(
            f"{self._model.reference} is {progress.stage} at {progress.provider}; ask again in a while",
            code="MODEL_LOADING",
            retry_after_seconds=max(1.0, min(COLD_RETRY_SECONDS_MAX, left_seconds)),
            detail={"progress": to_json(progress)},
        )

    def chunks(self) -> Chunks:
        return Chunks(self._id, self._request.model, self._created, include_usage=self._request.include_usage)

    def last_chunks(self, chunks: Chunks) -> bytes:
        """From the chunk with the finish reason to the end mark."""
        assert self._answered is not None
        end = self._answered
        usage = chunks.usage(end.tokens_in, end.tokens_out) if self._request.include_usage else b""
        return chunks.finish(end.finish_reason, self._facts(end)) + usage + DONE

    def completion(self, text: str) -> dict[str, Any]:
        end = self._answered
        assert end is not None
        return completion(
            answer_id=self._id,
            model=self._request.model,
            created=self._created,
            text=text,
            reason=end.finish_reason,
            tokens=(end.tokens_in, end.tokens_out),
            facts=self._facts(end),
        )

    def _facts(self, end: Answered) -> AnswerFacts:
        return AnswerFacts(
            provider=end.provider,
            local=end.local,
            model_root=self._model.root,
            task=end.task.hex(),
            verified=end.verified,
            reason=end.reason,
            receipt=end.receipt or b"",
            request=end.request if self._request.request else b"",
            request_header=end.request_header,
            attempts=max(1, self._attempts),
            first_token_ms=round(end.first_token_seconds * 1000, 3),
            seconds=round(end.seconds, 6),
            candidates=self._candidates,
            manifest=self._model.manifest,
        )


def as_ask(request: ChatRequest, model: ModelFacts) -> Ask:
    """Raises BAD_REQUEST for a peer to ask that is no peer id."""
    if request.peer:
        try:
            public_key_from_peer_id(request.peer)
        except ValueError:
            message = f"{request.peer[:64]!r} is no peer id (12D3KooW...); see: octonode peers"
            raise OctonodeError(message, code="BAD_REQUEST", detail={"param": "octonode.peer"}) from None
    ask = Ask(
        model_root=model.root,
        messages=request.messages,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
        privacy=request.privacy,
        peer=PeerId(request.peer) if request.peer else None,
    )
    return ask if request.max_tokens is None else replace(ask, max_tokens=request.max_tokens)

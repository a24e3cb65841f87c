"""OpenAI's face: all of `/v1/*`, and here `/v1/models` and `/v1/chat/completions`, streamed and whole.

Spec: protocols/http.md. The other groups stand in `openai_*`, a file each.

An answer's status is decided late: nothing is sent before the first text, so that what fails until then has a real HTTP
status and a client's own retry works. A client that goes away cancels its question, in both modes.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from octonode.api import openai_audio, openai_completions, openai_embeddings, openai_images
from octonode.api.answering import Answering, ask_on, begin
from octonode.api.body import BodyLimits, privacy_header, read_json
from octonode.api.faults import name_fault
from octonode.api.giving import Giving, Outcome
from octonode.api.multipart import FormRoom
from octonode.api.ports import Ports
from octonode.api.schema import (
    DONE,
    PING,
    ChatRequest,
    Chunks,
    ModelFacts,
    completion,
    error_event,
    model_list,
    model_object,
    parse_chat,
)
from octonode.api.schema.answers import message_of
from octonode.api.schema.chat import has_schema
from octonode.api.streaming import SSE, EventStream, cancel_when_gone
from octonode.tasks.asking import Ask

UPLOAD_BYTES_MAX = 16 * 1024 * 1024
"""Of a form with a sound or a picture; `api.request_bytes_max` may allow more."""
UPLOAD_TIMEOUT_SECONDS = 120.0


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    async def models(_: Request) -> Response:
        return JSONResponse(model_list(await ports.models.list()))

    async def model(request: Request) -> Response:
        return JSONResponse(model_object(await ports.models.resolve(request.path_params["reference"])))

    uploads = replace(limits, bytes_max=max(limits.bytes_max, UPLOAD_BYTES_MAX), timeout_seconds=UPLOAD_TIMEOUT_SECONDS)
    room = FormRoom()
    return [
        Route("/v1/models", models),
        Route("/v1/models/{reference:path}", model),
        Route("/v1/chat/completions", ChatCompletions(ports, limits), methods=["POST"]),
        *openai_completions.routes(ports, limits),
        *openai_embeddings.routes(ports, limits),
        *openai_images.routes(ports, limits, uploads, room),
        *openai_audio.routes(ports, limits, uploads, room),
    ]


class ChatCompletions:
    """`POST /v1/chat/completions` as an ASGI application."""

    def __init__(self, ports: Ports, limits: BodyLimits) -> None:
        self._ports = ports
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(scope, receive, self._limits)
        privacy = privacy_header(scope)
        if has_schema(body):  # in a thread: one of many parts takes a while to be checked
            request = await trio.to_thread.run_sync(parse_chat, body, privacy)
        else:
            request = parse_chat(body, privacy)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            model = await self._ports.models.resolve(request.model)
            ask = as_ask(request, model)
            answer = _Answer(request, await begin(self._ports, ask, model, request.terms))
            if request.stream:
                stream = EventStream(send, SSE, PING)
                nursery.start_soon(stream.keep_alive)
                await self._stream(ask, answer, stream)
            else:
                await JSONResponse(await self._whole(ask, answer))(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _whole(self, ask: Ask, answer: _Answer) -> dict[str, Any]:
        texts: list[str] = []

        async def take(text: str) -> None:
            texts.append(answer.giving.take(text))

        async with self._ports.asking.ask(ask) as events:
            await answer.answering.follow(events, take)
        outcome = await answer.outcome()
        return answer.completion("".join(texts) + outcome.text, outcome)

    async def _stream(self, ask: Ask, answer: _Answer, stream: EventStream) -> None:
        chunks = answer.chunks()
        first = chunks.role()  # goes out with the first text, in one write

        async def take(text: str) -> None:
            nonlocal first
            now = answer.giving.take(text)
            if now:
                data, first = first + chunks.text(now), b""
                await stream.write(data)

        try:
            async with self._ports.asking.ask(ask) as events:
                await answer.answering.follow(events, take)
            outcome = await answer.outcome()
        except Exception as fault:
            if not stream.started:
                raise
            await stream.end(error_event(name_fault(fault)[0]))
        else:
            begun = b"" if outcome.call is not None else first
            await stream.end(begun + answer.last_chunks(chunks, outcome))


class _Answer:
    """One answer in OpenAI's shapes."""

    def __init__(self, request: ChatRequest, answering: Answering) -> None:
        self.answering = answering
        self.giving = Giving(request.wanted)
        self._request = request
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._call_id = f"call_{secrets.token_hex(12)}"
        self._created = int(time.time())

    async def outcome(self) -> Outcome:
        return await self.giving.end(self.answering.end.finish_reason)

    def chunks(self) -> Chunks:
        return Chunks(self._id, self._request.model, self._created, include_usage=self._request.include_usage)

    def last_chunks(self, chunks: Chunks, outcome: Outcome) -> bytes:
        """From what had been held, if anything, to the end mark."""
        end = self.answering.end
        said = chunks.text(outcome.text) if outcome.text else b""
        if outcome.call is not None:
            said = chunks.call(self._call_id, outcome.call)
        usage = chunks.usage(end.tokens_in, end.tokens_out) if self._request.include_usage else b""
        return said + chunks.finish(outcome.reason, self.answering.facts(), end.logprobs) + usage + DONE

    def completion(self, text: str, outcome: Outcome) -> dict[str, Any]:
        end = self.answering.end
        call = None if outcome.call is None else (self._call_id, outcome.call)
        return completion(
            answer_id=self._id,
            model=self._request.model,
            created=self._created,
            message=message_of(text, call),
            reason=outcome.reason,
            tokens=(end.tokens_in, end.tokens_out),
            facts=self.answering.facts(),
            logprobs=end.logprobs,
        )


def as_ask(request: ChatRequest, model: ModelFacts) -> Ask:
    """Raises BAD_REQUEST for a peer to ask that is no peer id."""
    limit: dict[str, Any] = {} if request.max_tokens is None else {"max_tokens": request.max_tokens}
    return ask_on(
        request.terms,
        model,
        messages=request.messages,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
        schema=request.schema,
        logprobs=request.logprobs,
        **limit,
    )

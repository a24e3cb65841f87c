"""OpenAI's face: `/v1/completions`, streamed and whole. Spec: protocols/http.md."""

from __future__ import annotations

import secrets
import time

import trio
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from octonode.api.answering import Answering, ask_on, begin
from octonode.api.body import BodyLimits, privacy_header, read_json
from octonode.api.faults import name_fault
from octonode.api.ports import Ports
from octonode.api.schema import DONE, PING, ModelFacts, error_event
from octonode.api.schema.completions import CompletionChunks, CompletionRequest, parse_completion
from octonode.api.streaming import SSE, EventStream, cancel_when_gone
from octonode.tasks.asking import Ask


def routes(ports: Ports, limits: BodyLimits) -> list[BaseRoute]:
    return [Route("/v1/completions", _Completions(ports, limits), methods=["POST"])]


class _Completions:
    def __init__(self, ports: Ports, limits: BodyLimits) -> None:
        self._ports = ports
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = parse_completion(await read_json(scope, receive, self._limits), privacy_header(scope))
        chunks = CompletionChunks(f"cmpl-{secrets.token_hex(12)}", request, int(time.time()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            model = await self._ports.models.resolve(request.terms.model)
            ask = _ask(request, model)
            answering = await begin(self._ports, ask, model, request.terms)
            if request.stream:
                stream = EventStream(send, SSE, PING)
                nursery.start_soon(stream.keep_alive)
                await self._stream(ask, answering, chunks, stream, include_usage=request.include_usage)
            else:
                await (await self._whole(ask, answering, chunks))(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _whole(self, ask: Ask, answering: Answering, chunks: CompletionChunks) -> JSONResponse:
        texts: list[str] = []

        async def take(said: str) -> None:
            texts.append(said)

        async with self._ports.asking.ask(ask) as events:
            await answering.follow(events, take)
        end = answering.end
        counts = (end.tokens_in, end.tokens_out)
        return JSONResponse(chunks.whole("".join(texts), end.finish_reason, end.logprobs, counts, answering.facts()))

    async def _stream(
        self, ask: Ask, answering: Answering, chunks: CompletionChunks, stream: EventStream, *, include_usage: bool
    ) -> None:
        async def take(said: str) -> None:
            await stream.write(chunks.text(said))

        try:
            async with self._ports.asking.ask(ask) as events:
                await answering.follow(events, take)
        except Exception as fault:
            if not stream.started:
                raise
            await stream.end(error_event(name_fault(fault)[0]))
        else:
            end = answering.end
            usage = chunks.usage(end.tokens_in, end.tokens_out) if include_usage else b""
            await stream.end(chunks.finish(end.finish_reason, answering.facts(), end.logprobs) + usage + DONE)


def _ask(request: CompletionRequest, model: ModelFacts) -> Ask:
    return ask_on(
        request.terms,
        model,
        prompt=request.prompt,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
        logprobs=request.logprobs,
    )

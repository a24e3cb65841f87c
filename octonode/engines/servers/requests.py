"""One text of a server, from our request to our events."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from octonode.engines.calls import Call
from octonode.engines.contract import EngineFacts, Finished, FinishReason, GenerateRequest, Prefill
from octonode.engines.servers.dialects import FINISH, body_of, logprobs_of, path_of, text_of
from octonode.engines.servers.facts import Seen
from octonode.engines.servers.openai_http import OpenAiServer, ServerLost
from octonode.errors import OctonodeError

_ODD = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What reading an event of another shape raises."""
_ABORTED = ("abort", "error")
"""Finish reasons of vLLM when it is the engine that ends a request."""


@dataclass
class Answer:
    """What was seen of one answer so far."""

    events: int = 0
    tokens_told: bool = False
    """The prompt's length was."""
    reason: str = ""
    usage: dict[str, Any] | None = None


async def run(
    call: Call, request: GenerateRequest, server: OpenAiServer, seen: Seen, on_news: Callable[[], None]
) -> Finished:
    """Runs a request to its end; its events go to `call` and `on_news` is called for each read.

    Raises what `OpenAiServer.stream` raises. Being cancelled closes the connection, which cancels it there.
    """
    written = partial(body_of, request, seen.model, seen.facts.context_tokens, seen.dialect)
    body = await trio.to_thread.run_sync(written) if request.schema else written()  # a grammar may take a second
    try:
        return await _run_once(call, request, server, path_of(request), body, on_news)
    except OctonodeError as error:
        if error.code != "CONTEXT_EXCEEDED":
            raise
    # some refuse a prompt whose answer might not fit; without a length they answer as long as it fits
    if body.pop("max_tokens", None) is not None:
        try:
            return await _run_once(call, request, server, path_of(request), body, on_news)
        except OctonodeError as error:
            if error.code != "CONTEXT_EXCEEDED":
                raise
    raise _too_long(seen.facts)


def _too_long(facts: EngineFacts) -> OctonodeError:
    text = f"the prompt is longer than the context of {facts.context_tokens} tokens; shorten it"
    return OctonodeError(text, code="CONTEXT_EXCEEDED")


async def _run_once(
    call: Call,
    request: GenerateRequest,
    server: OpenAiServer,
    path: str,
    body: dict[str, Any],
    on_news: Callable[[], None],
) -> Finished:
    answer = Answer()
    async with aclosing(server.stream(path, body)) as reads:
        async for events in reads:
            on_news()
            try:
                _take(events, answer, call, request)
            except _ODD:
                raise ServerLost("the server sent an event of another shape") from None
    if not answer.reason or answer.reason in _ABORTED:
        raise ServerLost("the engine ended its answer without saying why")
    # a reason that we do not know (content_filter, tool_calls) is an end by the engine's own will
    reason: FinishReason = FINISH.get(answer.reason, "stop")
    try:
        return _finished(reason, answer)
    except _ODD:
        raise ServerLost("the server counted its tokens in another shape") from None


def _finished(reason: FinishReason, answer: Answer) -> Finished:
    usage = answer.usage or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    tokens_out = usage.get("completion_tokens", answer.events)
    return Finished(reason, int(usage.get("prompt_tokens", 0)), int(tokens_out), int(cached))


def _take(events: list[dict[str, Any]], answer: Answer, call: Call, request: GenerateRequest) -> None:
    pieces: list[str] = []
    for event in events:
        progress, usage = event.get("prompt_progress"), event.get("usage")
        if progress is not None:
            call.put_progress(Prefill(int(progress["processed"]), int(progress["total"])))
        if usage is not None:
            answer.usage = usage
            if not answer.tokens_told and not answer.events:
                answer.tokens_told = True
                tokens = int(usage["prompt_tokens"])
                call.put_progress(Prefill(tokens, tokens))
        for choice in (event.get("choices") or ())[:1]:
            text = text_of(choice)
            if text:
                pieces.append(text)
                answer.events += 1
            if request.logprobs and not call.put_logprobs(logprobs_of(choice, max(0, request.logprobs))):
                raise ServerLost("the server told more tokens than were asked for")
            answer.reason = choice.get("finish_reason") or answer.reason
    if pieces and not call.put_pieces(tuple(pieces)):
        raise ServerLost("the server wrote more than was asked for")

"""One request on the daemon's side of the process line: its events wait here until they are read."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

import trio

from octonode.engines.contract import (
    EngineEvent,
    EngineFacts,
    EngineRequest,
    Finished,
    GenerateRequest,
    Logprobs,
    Made,
    Pieces,
    Prefill,
    Step,
    TokenLogprob,
)
from octonode.errors import OctonodeError
from octonode.protocol.work.skills import CHAT, WorkRequest, WorkResult, skill_of

STOPS_MAX = 16
STOP_CHARACTERS_MAX = 256
PIECE_CHARACTERS_MAX = 1024
"""Mean length of the pieces of one answer; the longest tokens of common vocabularies have 128 characters."""
PIECES_SLACK = 16
LOGPROBS_MAX = 20
"""Alternatives that may be asked for of each token."""
SCHEMA_CHARACTERS_MAX = 64 * 1024


def check_request(request: GenerateRequest) -> None:
    """Raises OctonodeError BAD_REQUEST for what no engine can run, before it reaches one."""
    if bool(request.messages) == bool(request.prompt):
        raise _bad("messages is empty" if not request.messages else "a request has messages or a prompt, not both")
    for message in request.messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise _bad("each message needs role and content as texts")
    if request.max_tokens < 1:
        raise _bad("max_tokens must be at least 1")
    if not (math.isfinite(request.temperature) and 0 <= request.temperature <= 10):
        raise _bad("temperature must be from 0 to 10")
    if not 0 < request.top_p <= 1:
        raise _bad("top_p must be above 0 and at most 1")
    if request.seed is not None and not -(2**63) <= request.seed < 2**63:
        raise _bad("seed must fit in 64 bits")
    if len(request.stop) > STOPS_MAX or not all(0 < len(stop) <= STOP_CHARACTERS_MAX for stop in request.stop):
        raise _bad(f"stop takes at most {STOPS_MAX} texts of 1 to {STOP_CHARACTERS_MAX} characters")
    if not -1 <= request.logprobs <= LOGPROBS_MAX:
        raise _bad(f"logprobs must be from 0 to {LOGPROBS_MAX}")
    if len(request.schema) > SCHEMA_CHARACTERS_MAX:
        raise _bad(f"the schema has {len(request.schema)} characters; at most {SCHEMA_CHARACTERS_MAX} are taken")


def _bad(what: str) -> OctonodeError:
    return OctonodeError(what, code="BAD_REQUEST")


def again(error: OctonodeError) -> OctonodeError:
    """The same error as a fresh object: one that many raise would gather all their tracebacks."""
    return type(error)(
        error.message, code=error.code, retry_after_seconds=error.retry_after_seconds, detail=dict(error.detail)
    )


class Line(Protocol):
    """The worker as a call sees it."""

    def open_call(self, call: Call) -> None:
        """Sends the request. Raises OctonodeError when the worker is gone, full or leaving."""
        ...

    def close_call(self, call: Call) -> None:
        """The consumer left; cancels in the engine what has not ended."""
        ...


class Call(AbstractAsyncContextManager[AsyncIterator[EngineEvent]], AsyncIterator[EngineEvent]):
    """See `contract.Engine`. Everything unread is joined: one `Prefill` or `Step`, one `Pieces`, `Logprobs`, the end.

    What waits here is bounded by the request itself: never more pieces than `max_tokens` nor than the context holds,
    and one result.
    So a consumer that stops reading delays nobody, and its request ends in the engine as it would have.
    """

    def __init__(self, line: Line, request: EngineRequest, facts: EngineFacts) -> None:
        self.id = 0
        """Set by the line."""
        self.request = request
        self._line = line
        self._facts = facts
        self._pieces_left = self._logprobs_left = 0
        if isinstance(request, GenerateRequest):
            self._pieces_left = min(request.max_tokens, facts.context_tokens) + PIECES_SLACK
            self._logprobs_left = self._pieces_left if request.logprobs else 0
        self._characters_left = self._pieces_left * PIECE_CHARACTERS_MAX
        self._progress: Prefill | Step | None = None
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._made: WorkResult | None = None
        self._given_made = False
        self._end: Finished | OctonodeError | None = None
        self._given_end = False
        self._reader = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> AsyncIterator[EngineEvent]:
        if isinstance(self.request, GenerateRequest):
            check_request(self.request)
        check_skill(self.request, self._facts)
        self._line.open_call(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close_call(self)

    async def __anext__(self) -> EngineEvent:
        if self._pieces or self._progress is not None or self._end is not None:
            await trio.lowlevel.checkpoint()
        while True:
            if self._progress is not None:
                progress, self._progress = self._progress, None
                return progress
            if self._pieces:
                pieces, self._pieces = tuple(self._pieces), []
                return Pieces(pieces)
            if self._logprobs:
                tokens, self._logprobs = tuple(self._logprobs), []
                return Logprobs(tokens)
            if self._made is not None and not self._given_made:
                self._given_made = True
                return Made(self._made)
            if isinstance(self._end, OctonodeError):
                raise again(self._end)
            if self._end is not None:
                if self._given_end:
                    raise StopAsyncIteration
                self._given_end = True
                return self._end
            await self._reader.park()

    @property
    def ended(self) -> bool:
        return self._end is not None

    def put_progress(self, progress: Prefill | Step) -> None:
        if not self._pieces:
            self._progress = progress
            self._reader.unpark()

    def put_logprobs(self, tokens: tuple[TokenLogprob, ...]) -> bool:
        """False as for `put_pieces`."""
        self._logprobs_left -= len(tokens)
        self._logprobs.extend(tokens)
        self._reader.unpark()
        return self._logprobs_left >= 0

    def put_result(self, result: WorkResult) -> bool:
        """False when it is not what was asked for, or the second one."""
        request = self.request
        if isinstance(request, GenerateRequest) or self._made is not None:
            return False
        self._made = result
        self._reader.unpark()
        return type(result) is skill_of(request).result

    def put_pieces(self, pieces: tuple[str, ...]) -> bool:
        """False when the worker sends more than the request allows, which no sound worker does."""
        self._pieces_left -= len(pieces)
        self._characters_left -= sum(map(len, pieces))
        if self._pieces_left < 0 or self._characters_left < 0:
            return False
        self._pieces.extend(pieces)
        self._reader.unpark()
        return True

    def put_end(self, end: Finished | OctonodeError) -> None:
        wants_result = not isinstance(self.request, GenerateRequest)
        if isinstance(end, Finished) and wants_result and self._made is None and end.reason != "cancel":
            end = OctonodeError("the engine ended without a result; try again", code="ENGINE_FAILED")
        if self._end is None:
            self._end = end
            self._reader.unpark()


class EngineSource(Line, Protocol):
    @property
    def facts(self) -> EngineFacts | None: ...

    @property
    def running(self) -> int: ...


class LoadedEngine:
    """`contract.Engine` over one worker process. After that process ended, every call says so."""

    def __init__(self, source: EngineSource, facts: EngineFacts) -> None:
        self._source = source
        self._facts = facts

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def running(self) -> int:
        return self._source.running

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        return Call(self._source, request, self._facts)

    def make(self, request: WorkRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        return Call(self._source, request, self._facts)


def check_skill(request: EngineRequest, facts: EngineFacts) -> None:
    """Raises UNSUPPORTED for what this model cannot do at all."""
    skill = CHAT if isinstance(request, GenerateRequest) else skill_of(request).name
    if skill not in facts.skills:
        text = f"this model has no skill {skill}; it has {', '.join(facts.skills)}"
        raise OctonodeError(text, code="UNSUPPORTED")

"""One request on the daemon's side of the process line: its events wait here until they are read."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

import trio

from octonode.engines.contract import EngineEvent, EngineFacts, Finished, GenerateRequest, Pieces, Prefill
from octonode.errors import OctonodeError

STOPS_MAX = 16
STOP_CHARACTERS_MAX = 256
PIECE_CHARACTERS_MAX = 1024
"""Mean length of the pieces of one answer; the longest tokens of common vocabularies have 128 characters."""
PIECES_SLACK = 16


def check_request(request: GenerateRequest) -> None:
    """Raises OctonodeError BAD_REQUEST for what no engine can run, before it reaches one."""
    if not request.messages:
        raise _bad("messages is empty")
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
    """See `contract.Engine.generate`. Everything unread is joined: one `Prefill`, then one `Pieces`, then the end.

    What waits here is bounded by the request itself: never more pieces than `max_tokens` nor than the context holds.
    So a consumer that stops reading delays nobody, and its request ends in the engine as it would have.
    """

    def __init__(self, line: Line, request: GenerateRequest, context_tokens: int) -> None:
        self.id = 0
        """Set by the line."""
        self.request = request
        self._line = line
        self._pieces_left = min(request.max_tokens, context_tokens) + PIECES_SLACK
        self._characters_left = self._pieces_left * PIECE_CHARACTERS_MAX
        self._prefill: Prefill | None = None
        self._pieces: list[str] = []
        self._end: Finished | OctonodeError | None = None
        self._given_end = False
        self._reader = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> AsyncIterator[EngineEvent]:
        check_request(self.request)
        self._line.open_call(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close_call(self)

    async def __anext__(self) -> EngineEvent:
        if self._pieces or self._prefill is not None or self._end is not None:
            await trio.lowlevel.checkpoint()
        while True:
            if self._prefill is not None:
                prefill, self._prefill = self._prefill, None
                return prefill
            if self._pieces:
                pieces, self._pieces = tuple(self._pieces), []
                return Pieces(pieces)
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

    def put_prefill(self, prefill: Prefill) -> None:
        if not self._pieces:
            self._prefill = prefill
            self._reader.unpark()

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
        return Call(self._source, request, self._facts.context_tokens)

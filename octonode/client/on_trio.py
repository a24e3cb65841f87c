"""The client for trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import httpx

from octonode.api.schema import (
    Answer,
    Call,
    Calls,
    CandidateFacts,
    EventLog,
    Finding,
    Job,
    Joined,
    ModelFacts,
    ModelOutcome,
    ModelProgress,
    ModelVerb,
    NodeFacts,
    PeerFacts,
    Publisher,
    Reading,
    ReceiptFacts,
    TaskFacts,
)
from octonode.api.schema.work import Made, Making
from octonode.client.home import find_daemon
from octonode.client.wire import OnProgress, decode, named_faults, refusal, sent, settings
from octonode.client.works import AsyncWorks

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result", bound=Reading[Any])


class AsyncStream(Generic[Item, Result]):
    """As `Stream`, for trio."""

    def __init__(self, http: httpx.AsyncClient, call: Call[Result]) -> None:
        self._http = http
        self._call = call
        self.result = call.decode(None)

    async def __aenter__(self) -> Self:
        with named_faults():
            request = self._http.build_request(self._call.method, self._call.path, **sent(self._call))
            self._response = await self._http.send(request, stream=True)
            if self._response.is_error:
                await self._response.aread()
                await self._response.aclose()
                raise refusal(self._response)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._response.aclose()

    async def __aiter__(self) -> AsyncIterator[Item]:
        with named_faults():
            async for line in self._response.aiter_lines():
                item = self.result.take(line)
                if item is not None:
                    yield item
        self.result.end()


class AsyncClient(AsyncWorks):
    """As `Client`, for trio."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        self._http = httpx.AsyncClient(**settings(url, token))

    @classmethod
    def from_home(cls, home: Path | None = None) -> Self:
        return cls(*find_daemon(home))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def do(self, call: Call[T]) -> T:
        """Any verb that answers at once, see `api.schema.Calls`."""
        with named_faults():
            return decode(call, await self._http.request(call.method, call.path, **sent(call)))

    async def node(self) -> NodeFacts:
        return await self.do(Calls.node)

    async def peers(self) -> tuple[PeerFacts, ...]:
        return await self.do(Calls.peers)

    async def join(self, address: str) -> Joined:
        return await self.do(Calls.join(address))

    async def models(self) -> tuple[ModelFacts, ...]:
        return await self.do(Calls.models)

    async def model(self, reference: str) -> ModelFacts:
        return await self.do(Calls.model(reference))

    async def remove_model(self, reference: str, *, force: bool = False) -> ModelFacts:
        return await self.do(Calls.remove(reference, force))

    async def publishers(self) -> tuple[Publisher, ...]:
        return await self.do(Calls.publishers)

    async def trust(self, publisher: str, *, trusted: bool = True, note: str = "") -> tuple[Publisher, ...]:
        return await self.do(Calls.trust(publisher, trusted, note))

    async def tasks(self, *, limit: int = 100) -> tuple[TaskFacts, ...]:
        return await self.do(Calls.tasks(limit))

    async def receipt(self, task: str) -> ReceiptFacts:
        return await self.do(Calls.receipt(task))

    async def explain(self, model: str, *, peer: str = "", skill: str = "") -> tuple[CandidateFacts, ...]:
        return await self.do(Calls.explain(model, peer, skill))

    async def doctor(self) -> tuple[Finding, ...]:
        return await self.do(Calls.doctor)

    async def stop(self) -> None:
        await self.do(Calls.stop)

    def chat(self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> AsyncStream[str, Answer]:
        return AsyncStream(self._http, Calls.chat(model, messages, options))

    def stream(self, call: Call[Result]) -> AsyncStream[Any, Result]:
        """Any verb whose answer is streamed."""
        return AsyncStream(self._http, call)

    def job(self, verb: ModelVerb) -> AsyncStream[ModelProgress, Job]:
        return AsyncStream(self._http, Calls.job(verb))

    async def work(self, verb: ModelVerb, on_progress: OnProgress | None = None) -> ModelOutcome:
        """Do `verb` to its end."""
        async with self.job(verb) as stream:
            async for progress in stream:
                if on_progress is not None:
                    on_progress(progress)
        return stream.result.done()

    async def make(self, call: Call[Making[T]], on_progress: OnProgress | None = None) -> Made[T]:
        """Work of any skill, to its end; see `works` for a verb a skill."""
        async with self.stream(call) as stream:
            async for progress in stream:
                if on_progress is not None:
                    on_progress(progress)
        return stream.result.made()

    def events(self) -> AsyncStream[Mapping[str, Any], EventLog]:
        return AsyncStream(self._http, Calls.events)

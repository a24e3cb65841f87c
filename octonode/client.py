"""A typed client of a node's HTTP API: for the command line, for tests, and as a library.

    with Client.from_home() as client:
        with client.chat("publisher/name", [{"role": "user", "content": "Hello"}]) as stream:
            for text in stream:
                print(text, end="", flush=True)
        print(stream.result.facts)

`AsyncClient` has the same verbs for trio. Every error of the daemon is raised here as the `OctonodeError` that was
raised there, so `error.code` and `error.row.exit_code` hold. The API itself: protocols/http.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import httpx

from octonode.api.schema import (
    AddModel,
    Answer,
    Call,
    Calls,
    CandidateFacts,
    EventLog,
    FetchModel,
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
    PublishModel,
    Reading,
    ReceiptFacts,
    ServeModel,
    TaskFacts,
    VerifyModel,
    error_from_body,
)
from octonode.errors import ConfigError, OctonodeError, Unreachable

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result", bound=Reading[Any])

CONNECT_TIMEOUT_SECONDS = 5.0
SILENCE_TIMEOUT_SECONDS = 60.0
"""The daemon says something at least every 15 s while it streams."""

OnProgress = Callable[[ModelProgress], None]


def daemon_running(home: Path | None = None) -> bool:
    """True when the node of this home answers."""
    try:
        url, token = find_daemon(home)
        with Client(url, token) as client:
            client.node()
    except OctonodeError:
        return False
    return True


def find_daemon(home: Path | None = None) -> tuple[str, str]:
    """(base URL, token) of the node whose state is in `home` (default: OCTONODE_HOME). Raises NOT_RUNNING, CONFIG."""
    home = home or Path(os.environ.get("OCTONODE_HOME") or Path.home() / ".octonode").expanduser()
    try:
        url = str(json.loads((home / "daemon.json").read_text(encoding="utf-8"))["api"])
    except FileNotFoundError:
        raise OctonodeError(f"no node runs in {home}; start one: octonode start", code="NOT_RUNNING") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{home / 'daemon.json'} cannot be read ({error}); start the node again") from None
    try:
        token = (home / "api.token").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        token = ""  # reads and questions work without; the daemon says what else needs it
    return url, token


# --- Blocking -------------------------------------------------------------------------------------------------------


class Stream(Generic[Item, Result]):
    """A streamed answer: enter it, iterate over it, then look at `result`. Leaving early cancels at the daemon."""

    def __init__(self, http: httpx.Client, call: Call[Result]) -> None:
        self._http = http
        self._call = call
        self.result = call.decode(None)

    def __enter__(self) -> Self:
        with _named_faults():
            request = self._http.build_request(self._call.method, self._call.path, **_sent(self._call))
            self._response = self._http.send(request, stream=True)
            if self._response.is_error:
                self._response.read()
                self._response.close()
                raise _refusal(self._response)
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def __iter__(self) -> Iterator[Item]:
        with _named_faults():
            for line in self._response.iter_lines():
                item = self.result.take(line)
                if item is not None:
                    yield item
        self.result.end()


class Client:
    """Blocking; one connection pool, so close it or use it as a context. Not for several threads at once."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        self._http = httpx.Client(**_settings(url, token))

    @classmethod
    def from_home(cls, home: Path | None = None) -> Self:
        """The node of this machine. Raises NOT_RUNNING."""
        return cls(*find_daemon(home))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def do(self, call: Call[T]) -> T:
        """Any verb that answers at once, see `api.schema.Calls`."""
        with _named_faults():
            return _decode(call, self._http.request(call.method, call.path, **_sent(call)))

    def node(self) -> NodeFacts:
        return self.do(Calls.node)

    def peers(self) -> tuple[PeerFacts, ...]:
        return self.do(Calls.peers)

    def join(self, address: str) -> Joined:
        """Join by a join line or a multiaddr."""
        return self.do(Calls.join(address))

    def models(self) -> tuple[ModelFacts, ...]:
        return self.do(Calls.models)

    def model(self, reference: str) -> ModelFacts:
        return self.do(Calls.model(reference))

    def remove_model(self, reference: str, *, force: bool = False) -> ModelFacts:
        return self.do(Calls.remove(reference, force))

    def publishers(self) -> tuple[Publisher, ...]:
        return self.do(Calls.publishers)

    def trust(self, publisher: str, *, trusted: bool = True, note: str = "") -> tuple[Publisher, ...]:
        return self.do(Calls.trust(publisher, trusted, note))

    def tasks(self, *, limit: int = 100) -> tuple[TaskFacts, ...]:
        return self.do(Calls.tasks(limit))

    def receipt(self, task: str) -> ReceiptFacts:
        return self.do(Calls.receipt(task))

    def explain(self, model: str, *, peer: str = "") -> tuple[CandidateFacts, ...]:
        return self.do(Calls.explain(model, peer))

    def doctor(self) -> tuple[Finding, ...]:
        return self.do(Calls.doctor)

    def stop(self) -> None:
        """Start the node's drain; returns at once."""
        self.do(Calls.stop)

    def chat(self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> Stream[str, Answer]:
        """A stream of texts; its `result` is an `Answer`.

        `options`: max_tokens, temperature, top_p, seed, stop, privacy_level, peer (ask this one alone), explain.
        """
        return Stream(self._http, Calls.chat(model, messages, options))

    def job(self, verb: ModelVerb) -> Stream[ModelProgress, Job]:
        """Add, fetch, publish, serve or verify a model: a stream of progress; its `result` is a `Job`."""
        return self.stream(Calls.job(verb))

    def stream(self, call: Call[Result]) -> Stream[Any, Result]:
        """Any verb that streams its answer."""
        return Stream(self._http, call)

    def _work(self, verb: ModelVerb, on_progress: OnProgress | None) -> ModelOutcome:
        with self.job(verb) as stream:
            for progress in stream:
                if on_progress is not None:
                    on_progress(progress)
        return stream.result.done()

    def add_model(self, verb: AddModel, on_progress: OnProgress | None = None) -> ModelOutcome:
        return self._work(verb, on_progress)

    def fetch_model(self, verb: FetchModel, on_progress: OnProgress | None = None) -> ModelOutcome:
        """Raises NOT_TRUSTED for an unknown publisher, who is named in `detail`, unless `verb.trust`."""
        return self._work(verb, on_progress)

    def publish_model(self, verb: PublishModel, on_progress: OnProgress | None = None) -> ModelOutcome:
        return self._work(verb, on_progress)

    def serve_model(self, verb: ServeModel, on_progress: OnProgress | None = None) -> ModelOutcome:
        return self._work(verb, on_progress)

    def verify_model(self, verb: VerifyModel, on_progress: OnProgress | None = None) -> ModelOutcome:
        return self._work(verb, on_progress)

    def events(self) -> Stream[Mapping[str, Any], EventLog]:
        return Stream(self._http, Calls.events)


# --- trio -----------------------------------------------------------------------------------------------------------


class AsyncStream(Generic[Item, Result]):
    """As `Stream`, for trio."""

    def __init__(self, http: httpx.AsyncClient, call: Call[Result]) -> None:
        self._http = http
        self._call = call
        self.result = call.decode(None)

    async def __aenter__(self) -> Self:
        with _named_faults():
            request = self._http.build_request(self._call.method, self._call.path, **_sent(self._call))
            self._response = await self._http.send(request, stream=True)
            if self._response.is_error:
                await self._response.aread()
                await self._response.aclose()
                raise _refusal(self._response)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._response.aclose()

    async def __aiter__(self) -> AsyncIterator[Item]:
        with _named_faults():
            async for line in self._response.aiter_lines():
                item = self.result.take(line)
                if item is not None:
                    yield item
        self.result.end()


class AsyncClient:
    """As `Client`, for trio."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        self._http = httpx.AsyncClient(**_settings(url, token))

    @classmethod
    def from_home(cls, home: Path | None = None) -> Self:
        return cls(*find_daemon(home))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def do(self, call: Call[T]) -> T:
        """Any verb that answers at once, see `api.schema.Calls`."""
        with _named_faults():
            return _decode(call, await self._http.request(call.method, call.path, **_sent(call)))

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

    async def explain(self, model: str, *, peer: str = "") -> tuple[CandidateFacts, ...]:
        return await self.do(Calls.explain(model, peer))

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

    def events(self) -> AsyncStream[Mapping[str, Any], EventLog]:
        return AsyncStream(self._http, Calls.events)


# --- Both -----------------------------------------------------------------------------------------------------------


def _settings(url: str, token: str) -> dict[str, Any]:
    return {
        "base_url": url,
        "headers": {"authorization": f"Bearer {token}"} if token else {},
        "timeout": httpx.Timeout(SILENCE_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
        "trust_env": False,  # a proxy from the environment has no business between us and our own node
    }


def _sent(call: Call[Any]) -> dict[str, Any]:
    return {"json": call.body, "content": call.content, "headers": call.headers or None}


def _decode(call: Call[T], response: httpx.Response) -> T:
    if response.is_error:
        raise _refusal(response)
    return call.decode(response.json())


def _refusal(response: httpx.Response) -> OctonodeError:
    try:
        body = response.json()
    except ValueError:
        body = None
    return error_from_body(body, response.status_code)


@contextmanager
def _named_faults() -> Iterator[None]:
    """Faults of the wire as errors that say what to do."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout):
        message = "the node does not answer; see octonode logs, or start it again: octonode start"
        raise OctonodeError(message, code="NOT_RUNNING") from None
    except httpx.TimeoutException:
        raise Unreachable(f"the node said nothing for {SILENCE_TIMEOUT_SECONDS:.0f} s; see octonode logs") from None
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unreachable(f"the connection to the node broke ({type(error).__name__}); is it still running?") from None

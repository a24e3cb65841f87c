"""The client that blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
)
from octonode.api.schema.work import Made, Making
from octonode.client.home import find_daemon
from octonode.client.wire import OnProgress, decode, named_faults, refusal, sent, settings
from octonode.client.works import Works

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result", bound=Reading[Any])


class Stream(Generic[Item, Result]):
    """A streamed answer: enter it, iterate over it, then look at `result`. Leaving early cancels at the daemon."""

    def __init__(self, http: httpx.Client, call: Call[Result]) -> None:
        self._http = http
        self._call = call
        self.result = call.decode(None)

    def __enter__(self) -> Self:
        with named_faults():
            request = self._http.build_request(self._call.method, self._call.path, **sent(self._call))
            self._response = self._http.send(request, stream=True)
            if self._response.is_error:
                self._response.read()
                self._response.close()
                raise refusal(self._response)
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def __iter__(self) -> Iterator[Item]:
        with named_faults():
            for line in self._response.iter_lines():
                item = self.result.take(line)
                if item is not None:
                    yield item
        self.result.end()


class Client(Works):
    """Blocking; one connection pool, so close it or use it as a context. Not for several threads at once."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        self._http = httpx.Client(**settings(url, token))

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
        with named_faults():
            return decode(call, self._http.request(call.method, call.path, **sent(call)))

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

    def explain(self, model: str, *, peer: str = "", skill: str = "") -> tuple[CandidateFacts, ...]:
        return self.do(Calls.explain(model, peer, skill))

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

    def make(self, call: Call[Making[T]], on_progress: OnProgress | None = None) -> Made[T]:
        """Work of any skill, to its end; see `works` for a verb a skill."""
        with self.stream(call) as stream:
            for progress in stream:
                if on_progress is not None:
                    on_progress(progress)
        return stream.result.made()

    def events(self) -> Stream[Mapping[str, Any], EventLog]:
        return Stream(self._http, Calls.events)

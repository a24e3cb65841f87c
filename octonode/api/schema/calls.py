"""The API from the caller's side: what each verb sends and how its answer is read. Pure; `client.py` does the I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from octonode.api.schema.answers import AnswerFacts
from octonode.api.schema.chat import OURS
from octonode.api.schema.facts import (
    CandidateFacts,
    Finding,
    Joined,
    ModelFacts,
    ModelOutcome,
    ModelProgress,
    NodeFacts,
    PeerFacts,
    Publisher,
    ReceiptFacts,
    TaskFacts,
)
from octonode.api.schema.failures import error_from_body
from octonode.api.schema.plain import quoted, to_json
from octonode.api.schema.shape import read
from octonode.api.schema.verbs import (
    AddModel,
    FetchModel,
    PublishModel,
    RollbackModel,
    ServeModel,
    UpdateModel,
    VerifyModel,
)
from octonode.errors import OctonodeError, Unreachable

T = TypeVar("T")
Item_co = TypeVar("Item_co", covariant=True)

ModelVerb = AddModel | FetchModel | PublishModel | ServeModel | VerifyModel | UpdateModel | RollbackModel
_PATHS: dict[type, str] = {
    AddModel: "add",
    FetchModel: "fetch",
    PublishModel: "publish",
    ServeModel: "serve",
    VerifyModel: "verify",
    UpdateModel: "update",
    RollbackModel: "rollback",
}


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and what its answer means."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    decode: Callable[[Any], T]
    body: Any = None
    content: Any = None
    """In place of a body in JSON: bytes as they are, as an iterable, or an asynchronous one for trio."""
    headers: Mapping[str, str] = field(default_factory=dict)
    silence_seconds: float = 0.0
    """How long the node may work on it without a word; 0: as on every other."""


class Reading(Protocol[Item_co]):
    """Makes items of the lines of a streamed answer and keeps what they amount to."""

    def take(self, line: str) -> Item_co | None: ...

    def end(self) -> None:
        """Raises Unreachable when the answer broke off."""
        ...


class Answer:
    """A chat completion, whole once its stream has been read."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason = ""
        self.tokens_in = 0
        self.tokens_out = 0
        self.calls: list[tuple[str, str]] = []
        """Functions that the model calls, with the JSON text of their arguments."""
        self.facts: AnswerFacts | None = None
        """Who answered, the receipt and whether it was verified."""
        self._done = False

    def take(self, line: str) -> str | None:
        if not line.startswith("data: "):
            return None
        if line == "data: [DONE]":
            self._done = True
            return None
        chunk = json.loads(line[len("data: ") :])
        if "error" in chunk:
            raise error_from_body(chunk, 200)
        if chunk.get("usage"):
            self.tokens_in, self.tokens_out = chunk["usage"]["prompt_tokens"], chunk["usage"]["completion_tokens"]
        if "octonode" in chunk:
            self.facts = read(AnswerFacts, chunk["octonode"])
        for choice in chunk["choices"]:
            self.finish_reason = choice["finish_reason"] or self.finish_reason
            for call in choice["delta"].get("tool_calls") or ():
                self.calls.append((call["function"]["name"], call["function"]["arguments"]))
            text: str = choice["delta"].get("content") or ""
            self.text += text
            return text or None
        return None

    def end(self) -> None:
        if not self._done:
            raise Unreachable("the answer broke off: the node was lost while it answered; ask again")


class Progressing(Generic[T]):
    """A long verb: progress, and then its outcome of `kind`, which is there once its stream has been read."""

    kind: type[T]
    lost = "the node was lost while it worked; once it runs again, ask again: it resumes"

    def __init__(self) -> None:
        self.outcome: T | None = None

    def take(self, line: str) -> ModelProgress | None:
        said = json.loads(line) if line else {}
        if said.get("type") == "progress":
            return read(ModelProgress, said["progress"])
        if said.get("type") == "error":
            raise error_from_body(said, 200)
        if said.get("type") == "result":
            self.outcome = read(self.kind, said["result"])
        return None

    def end(self) -> None:
        self.done()

    def done(self) -> T:
        """Raises Unreachable when the node was lost before the end."""
        if self.outcome is None:
            raise Unreachable(self.lost)
        return self.outcome


class Job(Progressing[ModelOutcome]):
    """A long verb on a model."""

    kind = ModelOutcome


class EventLog:
    """What happens on the node; ends when the node stops."""

    def take(self, line: str) -> Mapping[str, Any] | None:
        said: dict[str, Any] = json.loads(line) if line else {}
        return said if "event" in said else None

    def end(self) -> None:
        return


def many(kind: type[T], name: str) -> Callable[[Any], tuple[T, ...]]:
    return lambda body: tuple(read(kind, each) for each in _listed(body, name))


def _listed(body: Any, name: str) -> Sequence[Any]:
    found = body.get(name) if isinstance(body, Mapping) else None
    if not isinstance(found, list):
        raise OctonodeError(f"the daemon's answer has no list of {name}; are versions mixed?")
    return found


def one(kind: type[T]) -> Callable[[Any], T]:
    return lambda body: read(kind, body)


class Calls:
    """Every verb that answers at once."""

    node = Call("GET", "/api/v1/node", one(NodeFacts))
    peers = Call("GET", "/api/v1/peers", many(PeerFacts, "peers"))
    models = Call("GET", "/api/v1/models", many(ModelFacts, "models"))
    publishers = Call("GET", "/api/v1/models/trust", many(Publisher, "publishers"))
    doctor = Call("GET", "/api/v1/doctor", many(Finding, "findings"))
    stop = Call("POST", "/api/v1/stop", lambda _: None)

    @staticmethod
    def join(address: str) -> Call[Joined]:
        return Call("POST", "/api/v1/peers", one(Joined), {"address": address})

    @staticmethod
    def model(reference: str) -> Call[ModelFacts]:
        return Call("GET", f"/api/v1/models/{quoted(reference)}", one(ModelFacts))

    @staticmethod
    def remove(reference: str, force: bool) -> Call[ModelFacts]:
        return Call("DELETE", f"/api/v1/models/{quoted(reference)}{'?force=1' if force else ''}", one(ModelFacts))

    @staticmethod
    def trust(publisher: str, trusted: bool, note: str) -> Call[tuple[Publisher, ...]]:
        body = {"publisher": publisher, "trusted": trusted, "note": note}
        return Call("POST", "/api/v1/models/trust", many(Publisher, "publishers"), body)

    @staticmethod
    def tasks(limit: int) -> Call[tuple[TaskFacts, ...]]:
        return Call("GET", f"/api/v1/tasks?limit={limit}", many(TaskFacts, "tasks"))

    @staticmethod
    def receipt(task: str) -> Call[ReceiptFacts]:
        return Call("GET", f"/api/v1/receipts/{quoted(task)}", one(ReceiptFacts))

    @staticmethod
    def explain(model: str, peer: str, skill: str = "") -> Call[tuple[CandidateFacts, ...]]:
        body = {"model": model, "peer": peer, "skill": skill}
        return Call("POST", "/api/v1/explain", many(CandidateFacts, "candidates"), body)

    @staticmethod
    def chat(model: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Call[Answer]:
        """`options` are fields of the request body; those of `chat.OURS` go into its `octonode` object."""
        ours = {name: options[name] for name in OURS if options.get(name)}
        rest = {name: value for name, value in options.items() if name not in OURS and value is not None}
        body = {"model": model, "messages": list(messages), **rest, **({"octonode": ours} if ours else {})}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return Call("POST", "/v1/chat/completions", lambda _: Answer(), body)

    @staticmethod
    def job(verb: ModelVerb) -> Call[Job]:
        return Call("POST", f"/api/v1/models/{_PATHS[type(verb)]}", lambda _: Job(), to_json(verb))

    events: Call[EventLog] = Call("GET", "/api/v1/events", lambda _: EventLog())

"""An engine in this process, for tests of what stands above engines: an in-process twin, labelled as such.

It implements `engines.contract.Engine` for real, with slots of its own, cancellation and a bounded buffer, and has no
model: each word of its answer is a function of the model root, the messages, the seed and the place. The engine of a
real process is the `scripted` adapter behind `engines.supervisor`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256

import trio

from octonode.engines.contract import (
    EngineEvent,
    EngineFacts,
    Finished,
    GenerateRequest,
    LoadRequest,
    Logprobs,
    Made,
    Pieces,
    Prefill,
    Step,
    TokenLogprob,
)
from octonode.errors import EngineCrashed, OctonodeError
from octonode.protocol.work.image import ImageRequest, Images
from octonode.protocol.work.skills import WorkRequest
from octonode.protocol.work.text import Embeddings, EmbedRequest

WORDS = ("river", "stone", "lantern", "wide", "copper", "evening", "salt", "bridge", "naïve", "世界", "🦉", "home")


@dataclass
class Script:
    """How the next requests go. Change it between requests."""

    answer_tokens: int = 8
    seconds_per_token: float = 0.0
    prefill_seconds: float = 0.0
    """In ten steps."""
    crash_at: int | None = None
    """The worker dies before this piece."""
    hang_at: int | None = None
    batch: int = 1
    """Pieces an event."""
    steps: int = 4
    """Of a request that is no text; each takes `seconds_per_token`."""
    result_bytes: int = 1000
    """Of each picture."""


class TwinEngine:
    """See the module."""

    def __init__(
        self,
        model_root: str,
        *,
        context_tokens: int = 2048,
        parallel: int = 4,
        skills: tuple[str, ...] = ("chat", "embed", "image"),
    ) -> None:
        self.script = Script()
        self.requests: list[GenerateRequest | WorkRequest] = []
        self.canceled = 0
        """Requests that were left before they had finished."""
        self.most_running = 0
        self.changed = trio.lowlevel.ParkingLot()
        """Unparked when a request begins, is left, or has given a piece."""
        self.emitted = 0
        self._root = model_root
        self._running = 0
        self._facts = EngineFacts(
            engine="twin",
            build="in-process twin",
            backend="cpu",
            instruction_set="none",
            context_tokens=context_tokens,
            parallel=parallel,
            quantization="none",
            skills=skills,
        )

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def running(self) -> int:
        return self._running

    def answer(self, request: GenerateRequest) -> list[str]:
        """The pieces it gives for `request` when nothing goes wrong."""
        seed = "" if request.temperature == 0 else str(request.seed)
        ground = sha256(repr((self._root, request.messages, seed)).encode()).digest()
        count = min(self.script.answer_tokens, request.max_tokens)
        return [WORDS[sha256(ground + place.to_bytes(4)).digest()[0] % len(WORDS)] + " " for place in range(count)]

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        tokens_in = sum(len(message["content"].split()) for message in request.messages)
        if tokens_in >= self._facts.context_tokens:
            limit = self._facts.context_tokens
            raise OctonodeError(f"the prompt has {tokens_in} tokens and the context {limit}", code="CONTEXT_EXCEEDED")
        done: list[bool] = []
        async with self._run(request, self._events(request, tokens_in, done), done) as events:
            yield events

    @asynccontextmanager
    async def make(self, request: WorkRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """Vectors of two numbers for texts, pictures of `script.result_bytes` for prompts; no other skill."""
        done: list[bool] = []
        async with self._run(request, self._steps(request, done), done) as events:
            yield events

    @asynccontextmanager
    async def _run(
        self, request: GenerateRequest | WorkRequest, events: AsyncIterator[EngineEvent], done: list[bool]
    ) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        if self._running >= self._facts.parallel:
            raise OctonodeError(f"{self._running} requests run already", code="OVERLOADED")
        self.requests.append(request)
        self._running += 1
        self.most_running = max(self.most_running, self._running)
        self.changed.unpark_all()
        try:
            yield events
        finally:
            self._running -= 1
            self.canceled += not done
            self.changed.unpark_all()
            await events.aclose()  # type: ignore[attr-defined]

    async def _events(self, request: GenerateRequest, tokens_in: int, done: list[bool]) -> AsyncIterator[EngineEvent]:
        script = self.script
        for step in range(10 if script.prefill_seconds else 0):
            yield Prefill(tokens_in * step // 10, tokens_in)
            await trio.sleep(script.prefill_seconds / 10)
        yield Prefill(tokens_in, tokens_in)
        pieces = self.answer(request)
        for place in range(0, len(pieces), script.batch):
            await trio.sleep(script.seconds_per_token)
            if script.crash_at is not None and place >= script.crash_at:
                done.append(True)
                raise EngineCrashed("the worker died of signal 9; it is started again", detail={"signal": 9})
            if script.hang_at is not None and place >= script.hang_at:
                await trio.sleep_forever()
            part = tuple(pieces[place : place + script.batch])
            self.emitted += len(part)
            self.changed.unpark_all()
            yield Pieces(part)
            if request.logprobs:
                yield Logprobs(tuple(TokenLogprob(piece, -0.5, ((piece, -0.5),)) for piece in part))
        done.append(True)
        reason = "length" if len(pieces) == request.max_tokens else "stop"
        yield Finished("length" if reason == "length" else "stop", tokens_in, len(pieces))

    async def _steps(self, request: WorkRequest, done: list[bool]) -> AsyncIterator[EngineEvent]:
        script = self.script
        for step in range(script.steps):
            await trio.sleep(script.seconds_per_token)
            if script.crash_at is not None and step >= script.crash_at:
                done.append(True)
                raise EngineCrashed("the worker died of signal 9; it is started again", detail={"signal": 9})
            yield Step(step + 1, script.steps)
        if isinstance(request, EmbedRequest):
            vectors = b"".join(sha256(text.encode()).digest()[:2] * 4 for text in request.texts)
            yield Made(Embeddings(vectors, 2, tokens_in=len(request.texts)))
        elif isinstance(request, ImageRequest):
            seed = sha256(f"{self._root} {request.prompt} {request.seed}".encode()).digest()
            picture = (seed * (script.result_bytes // 32 + 1))[: script.result_bytes]
            yield Made(Images((picture,) * request.count, 64, 64, script.steps, request.seed or 0))
        else:
            raise OctonodeError("the twin has no such skill", code="UNSUPPORTED")
        done.append(True)
        yield Finished("stop", 0, 0)


class TwinEngines:
    """Loads `TwinEngine`s in this process; the same face as `engines.supervisor.Supervisor`, without `run`."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        """Roots in the order of loading."""
        self.failures: list[OctonodeError] = []
        """Raised one after the other by the next loads."""
        self.load_seconds = 0.0
        self.parallel = 4
        self.context_tokens = 2048
        self.twins: dict[str, TwinEngine] = {}
        self._desired: dict[str, LoadRequest] = {}
        self._changes = 0
        self._news = trio.lowlevel.ParkingLot()

    def set_desired(self, desired: Mapping[str, LoadRequest]) -> None:
        self._desired = dict(desired)
        for root in tuple(self.twins):
            if root not in desired:
                del self.twins[root]
        self._changed()

    def engine(self, model_root: str) -> TwinEngine | None:
        return self.twins.get(model_root)

    async def wait_ready(self, model_root: str) -> TwinEngine:
        if model_root not in self._desired:
            raise OctonodeError("nobody wants it", code="MODEL_NOT_FOUND")
        twin = self.twins.get(model_root)
        if twin is None:
            self.loads.append(model_root)
            await trio.sleep(self.load_seconds)
            if self.failures:
                raise self.failures.pop(0)
            twin = self.twins[model_root] = TwinEngine(
                model_root, parallel=self.parallel, context_tokens=self.context_tokens
            )
            self._changed()
        return twin

    async def wait_gone(self, model_root: str) -> None:
        await trio.lowlevel.checkpoint()

    def release(self, model_root: str) -> None:
        self._changed()

    def lose(self, model_root: str) -> None:
        """As when a worker dies: the engine is gone until it is loaded again."""
        del self.twins[model_root]
        self._changed()

    @property
    def changes(self) -> int:
        return self._changes

    async def wait_changed(self, seen: int) -> int:
        while self._changes == seen:
            await self._news.park()
        return self._changes

    def _changed(self) -> None:
        self._changes += 1
        self._news.unpark_all()

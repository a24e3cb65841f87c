"""What an engine is to the rest of the house: requests in, events out, one contract for every adapter.

The daemon holds an `Engine` per loaded model; behind it is a worker process (`supervisor`) or a server driver.
Every adapter and the scripted one pass the same conformance suite.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

from octonode.protocol.work.skills import CHAT, WorkRequest, WorkResult

FinishReason = Literal["stop", "length", "cancel"]


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What a worker needs to load one model. Paths are read-only to it."""

    engine: str
    """Name of a row of `select.ENGINES`."""
    model_path: Path | None
    """The model's file, or its folder where it has several; None for the scripted engine, which has none."""
    model_root: str
    """Root CID of the model; the scripted engine uses it as its seed."""
    context_tokens: int = 2048
    parallel: int = 4
    """Requests decoded at the same time."""
    threads: int = 1
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    """Engine-specific settings from the config, for example the scripted engine's `tokens_per_second`."""
    category: str = "llm"
    """Of the model, one of `models.manifest.CATEGORIES`."""
    devices: tuple[str, ...] = ()
    """GPUs that the process may see, by index or UUID; empty: all there are, or none."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself once a model is loaded: measured, not wished."""

    engine: str
    build: str
    """Version of the binding and of the code under it."""
    backend: str
    """`cpu`, `cuda`, ..."""
    instruction_set: str
    context_tokens: int
    """Tokens one request may use, prompt and answer together."""
    parallel: int
    quantization: str
    flags: dict[str, str | int | float | bool] = field(default_factory=dict)
    category: str = "llm"
    """One of `models.manifest.CATEGORIES`."""
    skills: tuple[str, ...] = (CHAT,)
    """What it can be asked for: `chat`, or names of `protocol.work.skills.SKILLS`."""
    batch_size: int = 1
    """Requests that it runs together at best, as measured at load; 1 where an engine batches by itself."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One chat completion. `messages` is OpenAI's list of {role, content}; the engine applies the chat template."""

    messages: tuple[dict[str, str], ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    cache_scope: str = ""
    """Prompt caches are reused only within one scope (asker and conversation); empty: never reused."""
    prompt: str = ""
    """In place of messages: a text to go on from, to which no chat template is applied."""
    schema: str = ""
    """JSON Schema, as JSON text, that the answer must satisfy; the engine constrains decoding by it, or refuses with
    UNSUPPORTED. Empty: any text. `{}` asks for any JSON object."""
    logprobs: int = 0
    """Alternatives to tell of each token, at most 20; 0: none, -1: the chosen token alone."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompt tokens processed so far."""

    done_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """Text emitted since the last event, one piece a token where the engine shows tokens."""

    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """Steps of a request that is no text: denoising steps, seconds of sound, ..."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of the answer with its probability, and the likeliest ones in its place."""

    text: str
    logprob: float
    """Natural logarithm."""
    top: tuple[tuple[str, float], ...] = ()


LOGPROB_LEAST: Final = -9999.0


def told_logprob(logprob: float) -> float:
    """As OpenAI tells it: that of a token that cannot be is minus infinity, which no JSON holds."""
    return max(LOGPROB_LEAST, logprob)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of tokens whose text went out before, in order."""

    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """The result of a request that is no text, just before its end."""

    result: WorkResult


@dataclass(frozen=True, slots=True)
class Finished:
    """The terminal event of a request, exactly one."""

    reason: FinishReason
    tokens_in: int
    tokens_out: int
    tokens_cached: int = 0
    """Prompt tokens that were not computed again, since the same scope's last prompt began alike."""


EngineEvent = Prefill | Pieces | Logprobs | Step | Made | Finished
EngineRequest = GenerateRequest | WorkRequest


class Engine(Protocol):
    """A loaded model that takes requests."""

    @property
    def facts(self) -> EngineFacts: ...

    @property
    def running(self) -> int:
        """Requests in the engine now."""
        ...

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Events of one request; leaving the block early cancels it in the engine.

        Raises EngineCrashed when the worker dies, OctonodeError with CONTEXT_EXCEEDED, BAD_REQUEST, OVERLOADED or
        ENGINE_FAILED for what the engine refuses. The event buffer is bounded: a consumer that stops reading stalls
        only its own request.
        """
        ...

    def make(self, request: WorkRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """The same for every skill but chat: any number of `Step`, one `Made`, `Finished`. Raises as `generate`."""
        ...

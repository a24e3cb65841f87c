"""What a loaded model does on this machine, found by asking it for a few seconds: figures to announce and to route by.

Of a model that chats: the first token at two lengths of prompt, and the speed of decoding at one stream and at as many
as it takes. Of others: results a second, one after the other and together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from octonode.engines import samples
from octonode.engines.contract import Engine, EngineEvent, Finished, GenerateRequest, Made, Pieces
from octonode.errors import OctonodeError
from octonode.protocol.work.skills import CHAT, WorkRequest

SHORT_WORDS: Final = 12
LONG_WORDS_MAX: Final = 400
LONG_PART_OF_CONTEXT: Final = 0.25
"""Words of the long prompt for each token of the context: they may have several tokens each."""
DECODE_TOKENS: Final = 24
STREAMS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class SkillFigures:
    """Results a second, of one small request after the other and of as many at once as the engine takes."""

    per_second_alone: float = 0.0
    per_second_together: float = 0.0
    together: int = 1


@dataclass(frozen=True, slots=True)
class Figures:
    """0 is: not measured."""

    fingerprint: str
    """Engine, build, backend and flags they hold for."""
    measured_at_ms: int = 0
    seconds: float = 0.0
    """That the measuring took."""
    first_token_ms: float = 0.0
    """Of a prompt of `short_tokens` that no cache has seen."""
    short_tokens: int = 0
    first_token_long_ms: float = 0.0
    long_tokens: int = 0
    tokens_per_second: float = 0.0
    """Decoding of one stream."""
    tokens_per_second_together: float = 0.0
    """Of `streams` streams in all."""
    streams: int = 0
    skills: dict[str, SkillFigures] = field(default_factory=dict)
    complete: bool = True
    """False where the time ended before the last figure."""


def fingerprint_of(engine: Engine) -> str:
    facts = engine.facts
    flags = " ".join(f"{name}={value}" for name, value in sorted(facts.flags.items()))
    return f"{facts.engine} {facts.build} {facts.backend} {facts.parallel} {flags}"[:1024]


async def measure(engine: Engine, *, seconds_max: float, now_ms: int) -> Figures:
    """The figures that could be had in the time; what runs beside makes them worse. Raises OctonodeError where the
    engine fails, and leaves nothing running when cancelled."""
    began = trio.current_time()
    figures = Figures(fingerprint_of(engine), measured_at_ms=now_ms)
    steps = _Chat(engine).steps if CHAT in engine.facts.skills else _Makes(engine).steps
    with trio.move_on_after(seconds_max) as patience:
        async for figures_now in steps(figures):
            figures = figures_now
    return replace(figures, seconds=trio.current_time() - began, complete=not patience.cancelled_caught)


class _Chat:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def steps(self, figures: Figures) -> AsyncIterator[Figures]:
        """The figures so far, after each step that found one."""
        await self._ask(samples.prompt(SHORT_WORDS, 1))  # the first one warms up, and is not counted
        first = await self._ask(samples.prompt(SHORT_WORDS, 2))
        figures = replace(figures, first_token_ms=first.first_seconds * 1000, short_tokens=first.tokens_in)
        yield figures
        alone = await self._ask(replace(samples.prompt(SHORT_WORDS, 3), max_tokens=DECODE_TOKENS))
        figures = replace(figures, tokens_per_second=alone.tokens_per_second)
        yield figures
        words = min(LONG_WORDS_MAX, int(self._engine.facts.context_tokens * LONG_PART_OF_CONTEXT))
        long = await self._ask(samples.prompt(words, 4))
        figures = replace(figures, first_token_long_ms=long.first_seconds * 1000, long_tokens=long.tokens_in)
        yield figures
        streams = min(STREAMS_MAX, self._engine.facts.parallel)
        speed = alone.tokens_per_second if streams == 1 else await self._together(streams)
        yield replace(figures, tokens_per_second_together=speed, streams=streams)

    async def _together(self, streams: int) -> float:
        answers: list[_Answer] = []

        async def one(number: int) -> None:
            answers.append(await self._ask(replace(samples.prompt(SHORT_WORDS, 10 + number), max_tokens=DECODE_TOKENS)))

        async with trio.open_nursery() as nursery:
            for number in range(streams):
                nursery.start_soon(one, number)
        last_began = max(answer.first_at for answer in answers)
        first_ended = min(answer.ended_at for answer in answers)
        if first_ended <= last_began:  # they did not decode together at all: over the whole time then
            spent = max(answer.ended_at for answer in answers) - min(answer.first_at for answer in answers)
            return sum(answer.tokens for answer in answers) / max(spent, 1e-6)
        return sum(answer.tokens_per_second for answer in answers)

    async def _ask(self, request: GenerateRequest) -> _Answer:
        answer = _Answer(trio.current_time())
        async with self._engine.generate(request) as events:
            async for event in events:
                answer.take(event)
        return answer


class _Answer:
    """Times of one answer on the loop's clock."""

    def __init__(self, began_at: float) -> None:
        self.began_at = self.first_at = self.ended_at = began_at
        self.tokens = 0
        self.tokens_in = 0

    def take(self, event: EngineEvent) -> None:
        now = trio.current_time()
        if isinstance(event, Pieces):
            if not self.tokens:
                self.first_at = now
            self.tokens += len(event.pieces)
            self.ended_at = now
        elif isinstance(event, Finished):
            self.tokens_in = event.tokens_in

    @property
    def first_seconds(self) -> float:
        return self.first_at - self.began_at

    @property
    def tokens_per_second(self) -> float:
        spent = self.ended_at - self.first_at
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else 0.0


class _Makes:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def steps(self, figures: Figures) -> AsyncIterator[Figures]:
        for skill in self._engine.facts.skills:
            request = samples.request_for(skill)
            if request is None:
                continue
            together = max(1, self._engine.facts.batch_size)
            await self._make(request)
            alone = 1 / max(await self._make(request), 1e-6)
            both = alone if together == 1 else together / max(await self._together(request, together), 1e-6)
            figures = replace(figures, skills={**figures.skills, skill: SkillFigures(alone, both, together)})
            yield figures

    async def _together(self, request: WorkRequest, count: int) -> float:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(self._make, request)
        return trio.current_time() - began

    async def _make(self, request: WorkRequest) -> float:
        began = trio.current_time()
        made = False
        call: AbstractAsyncContextManager[AsyncIterator[EngineEvent]] = self._engine.make(request)
        async with call as events:
            async for event in events:
                made = made or isinstance(event, Made)
        if not made:
            raise OctonodeError("the engine gave no result for the sample", code="ENGINE_FAILED")
        return trio.current_time() - began

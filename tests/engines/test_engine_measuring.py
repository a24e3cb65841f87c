"""Self-measurement on a virtual clock: the figures are what the engine does, and others go first."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import trio
from trio.testing import MockClock

from octonode.engines.measuring import Figures, fingerprint_of, measure
from octonode.errors import EngineCrashed, OctonodeError
from octonode.node.measuring import Measurer, figures_from
from octonode.protocol.announcement import Serving
from octonode.protocol.work.text import EmbedRequest
from octonode.tasks.asking import Ask
from octonode.tasks.residency import ModelStatus, ResolvedModel
from octonode.tasks.routing import expected
from octonode.tasks.slots import EngineSlots
from octonode.testing.engine import TwinEngine

ROOT = "bafy-measured"


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


def twin(**script: object) -> TwinEngine:
    engine = TwinEngine(ROOT, parallel=4, skills=("chat",))
    engine.script = replace(engine.script, answer_tokens=64, seconds_per_token=0.1, prefill_seconds=0.5, **script)
    return engine


async def test_the_figures_are_those_of_the_engine(autojump_clock: MockClock) -> None:
    figures = await measure(twin(), seconds_max=60.0, now_ms=5)
    assert figures.complete
    assert figures.first_token_ms == pytest.approx(600)
    assert figures.tokens_per_second == pytest.approx(10)
    assert (figures.streams, figures.tokens_per_second_together) == (4, pytest.approx(40))
    assert figures.long_tokens > 10 * figures.short_tokens > 0
    assert figures.measured_at_ms == 5
    assert figures_from(json.loads(json.dumps(asdict(figures)))) == figures


async def test_time_that_runs_out_leaves_what_was_found(autojump_clock: MockClock) -> None:
    engine = twin()
    figures = await measure(engine, seconds_max=2.0, now_ms=5)
    assert not figures.complete
    assert figures.first_token_ms == pytest.approx(600)
    assert figures.long_tokens == 0
    assert figures.seconds == pytest.approx(2.0)
    assert engine.running == 0, "nothing is left running"


async def test_other_skills_are_measured_by_results(autojump_clock: MockClock) -> None:
    engine = TwinEngine(ROOT, skills=("embed", "image", "a skill of next year"))
    engine.script = replace(engine.script, steps=4, seconds_per_token=0.05)
    figures = await measure(engine, seconds_max=60.0, now_ms=5)
    assert {name: each.per_second_alone for name, each in figures.skills.items()} == {
        "embed": pytest.approx(5), "image": pytest.approx(5),
    }  # fmt: skip
    assert figures.tokens_per_second == 0


async def test_an_engine_that_dies_is_an_error(autojump_clock: MockClock) -> None:
    with pytest.raises(EngineCrashed):
        await measure(twin(crash_at=0), seconds_max=60.0, now_ms=5)


class Kept:
    """The residency and the state as the measurer sees them: one model, and a dictionary."""

    def __init__(self, engine: TwinEngine) -> None:
        self.twin: TwinEngine | None = engine
        self.values: dict[str, bytes] = {}
        self.changes = 0
        self._news = trio.lowlevel.ParkingLot()

    def engine(self, root: str) -> TwinEngine | None:
        return self.twin if root == ROOT else None

    def model(self, root: str) -> ModelStatus | None:
        return ModelStatus("m", "serving", ResolvedModel(ROOT, "scripted")) if root == ROOT else None

    def status(self) -> list[ModelStatus]:
        return [ModelStatus("m", "serving", ResolvedModel(ROOT, "scripted"))]

    async def wait_changed(self, seen: int) -> int:
        while self.changes == seen:
            await self._news.park()
        return self.changes

    async def value(self, key: str) -> bytes | None:
        return self.values.get(key)

    async def set_value(self, key: str, value: bytes) -> None:
        self.values[key] = value


def measurer(kept: Kept, slots: EngineSlots, changed: Callable[[], None] = lambda: None) -> Measurer:
    return Measurer(residency=kept, slots=slots, values=kept, seconds_max=60.0, changed=changed)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(120):
        while not condition():
            await trio.sleep(0.5)


async def test_a_model_is_measured_once_kept_and_not_again_after_a_restart(autojump_clock: MockClock) -> None:
    engine = twin()
    kept, slots, told = Kept(engine), EngineSlots(8), []
    async with trio.open_nursery() as nursery:
        first = measurer(kept, slots, lambda: told.append(1))
        nursery.start_soon(first.run)
        await until(lambda: first.of(ROOT) is not None)
        assert told
        assert slots.measured.of(ROOT).tokens_per_second == pytest.approx(10), "known before the first task"
        nursery.cancel_scope.cancel()
    requests = len(engine.requests)
    async with trio.open_nursery() as nursery:
        second = measurer(kept, EngineSlots(8))
        nursery.start_soon(second.run)
        await until(lambda: second.of(ROOT) is not None)
        assert second.of(ROOT) == first.of(ROOT)
        assert len(engine.requests) == requests
        nursery.cancel_scope.cancel()
    kept.values = {key: value.replace(b"twin", b"other") for key, value in kept.values.items()}
    async with trio.open_nursery() as nursery:
        third = measurer(kept, EngineSlots(8))
        nursery.start_soon(third.run)
        await until(lambda: third.of(ROOT) is not None)
        assert len(engine.requests) > requests, "figures of another engine do not count"
        nursery.cancel_scope.cancel()


async def test_a_task_that_comes_meanwhile_goes_first(autojump_clock: MockClock) -> None:
    engine = twin()
    kept, slots = Kept(engine), EngineSlots(8)
    async with trio.open_nursery() as nursery:
        measuring = measurer(kept, slots)
        nursery.start_soon(measuring.run)
        await until(lambda: engine.running == 1)
        async with slots.slot(ROOT, 4):
            await trio.sleep(0.1)
            assert engine.running == 0, "the measuring gave way"
            assert measuring.of(ROOT) is None
        await until(lambda: measuring.of(ROOT) is not None)
        figures = measuring.of(ROOT)
        assert figures is not None
        assert figures.complete
        nursery.cancel_scope.cancel()


async def test_a_model_that_fails_its_measuring_is_served_all_the_same(autojump_clock: MockClock) -> None:
    kept = Kept(twin(crash_at=0))
    async with trio.open_nursery() as nursery:
        measuring = measurer(kept, EngineSlots(8))
        nursery.start_soon(measuring.run)
        await until(lambda: measuring.of(ROOT) is not None)
        assert measuring.of(ROOT) == Figures(fingerprint_of(kept.twin), complete=False)  # type: ignore[arg-type]
        kept.twin = None
        with pytest.raises(OctonodeError, match="not loaded"):
            await measuring.measure(ROOT)
        nursery.cancel_scope.cancel()


def test_routing_expects_the_first_token_of_a_long_prompt_later() -> None:
    serving = Serving(ROOT, first_token_ms=100, first_token_long_ms=1100, long_tokens=400, results_per_second=8.0)
    short = Ask(ROOT, ({"role": "user", "content": "hi"},))
    long = Ask(ROOT, ({"role": "user", "content": "word " * 640},))
    assert expected(serving, short).first_token_ms <= 110
    assert expected(serving, long).first_token_ms == pytest.approx(2100, rel=0.01)
    assert expected(serving, Ask(ROOT, work=EmbedRequest(("a",)))).first_token_ms == 125
    assert expected(Serving(ROOT, first_token_ms=100), long).first_token_ms == 100

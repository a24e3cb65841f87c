"""Desired models come up, whatever stands in their way, and stay up."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from octonode.engines.contract import LoadRequest
from octonode.errors import OctonodeError
from octonode.tasks.residency import MODELS_MAX, Residency, ResolvedModel
from octonode.testing.engine import TwinEngines
from tests.tasks.nodes import Source


@asynccontextmanager
async def resident(home: Path) -> AsyncIterator[tuple[Residency, Source, TwinEngines]]:
    source, engines = Source(home), TwinEngines()
    residency = Residency(
        source=source,
        engines=engines,
        load_request=lambda model, path, folder: LoadRequest("scripted", path, model.root),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(residency.run)
        yield residency, source, engines
        nursery.cancel_scope.cancel()


async def until_serving(residency: Residency, root: str, within_seconds: float = 3600) -> list[str]:
    """The states seen on the way, each once in a row; a state that lasts for no time may be missed."""
    states: list[str] = []
    with trio.fail_after(within_seconds):
        while True:
            seen = residency.changes
            model = residency.model(root) or next((m for m in residency.status() if m.reference == root), None)
            assert model is not None
            if not states or states[-1] != model.state:
                states.append(model.state)
            if model.state == "serving":
                return states
            await residency.wait_changed(seen)


async def test_a_model_is_resolved_fetched_loaded_and_served(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path) as (residency, source, engines):
        source.fetch_seconds, engines.load_seconds = 10.0, 5.0
        residency.add("m")
        assert (await until_serving(residency, "m"))[-3:] == ["fetching", "loading", "serving"]
        assert residency.engine("m") is engines.twins["m"]
        model = residency.model("m")
        assert model is not None
        assert model.model is not None
        assert model.model.manifest == "bafymanifest"


async def test_progress_of_a_fetch_is_in_bytes(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path) as (residency, source, _):
        source.fetch_seconds = 10.0
        residency.add("m")
        await trio.sleep(5.5)
        model = residency.model("m")
        assert model is not None
        assert (model.state, model.done_bytes, model.total_bytes) == ("fetching", 500, 1000)


async def test_a_flaky_source_is_tried_again_for_ever_with_growing_pauses(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with resident(tmp_path) as (residency, source, _):
        source.failures = [OctonodeError("nobody has it", code="UNREACHABLE") for _ in range(12)]
        residency.add("m")
        await until_serving(residency, "m", within_seconds=10_000)
        pauses = [round(after - before) for before, after in itertools.pairwise(source.times)]
        assert pauses[:4] == [2, 4, 8, 16]
        assert pauses[-4:] == [300, 300, 300, 300]
        assert len(pauses) == 12
        assert residency.status()[0].failures == 0


async def test_a_failure_shows_its_reason_and_the_time_to_the_next_try(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path) as (residency, source, _):
        source.failures = [OctonodeError("publisher unknown; trust it", code="NOT_TRUSTED") for _ in range(3)]
        residency.add("m")
        await trio.sleep(3)  # the second try has failed too; the third comes after four seconds
        status = residency.status()[0]
        assert (status.state, status.code, status.failures) == ("failed", "NOT_TRUSTED", 2)
        assert status.reason == "publisher unknown; trust it"
        assert status.retry_in_seconds == pytest.approx(3.0, abs=0.01)


async def test_a_model_that_is_renamed_is_served_on(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path) as (residency, _, _):
        residency.add("m")
        await until_serving(residency, "m", within_seconds=100)
        seen = residency.changes
        residency.rename("m", "m@^1")
        assert residency.changes > seen
        assert [(each.reference, each.state) for each in residency.status()] == [("m@^1", "serving")]
        await trio.sleep(10)
        assert residency.status()[0].state == "serving"
        assert residency.remove("m@^1")
        assert residency.status() == []


async def test_adding_it_again_does_not_wait_for_the_pause(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path) as (residency, source, _):
        source.failures = [OctonodeError("x", code="UNREACHABLE") for _ in range(8)]
        residency.add("m")
        await trio.sleep(260)
        assert residency.status()[0].state == "failed"
        source.failures = []
        before = trio.current_time()
        residency.add("m")
        await until_serving(residency, "m")
        assert trio.current_time() - before < 1
        assert len(residency.status()) == 1


async def test_a_load_that_fails_is_tried_again(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path) as (residency, _, engines):
        engines.failures = [OctonodeError("no memory", code="ENGINE_FAILED")] * 2
        residency.add("m")
        assert "failed" in await until_serving(residency, "m")
        assert engines.loads == ["m", "m", "m"]


async def test_an_engine_that_dies_is_loaded_again(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path) as (residency, source, engines):
        residency.add("m")
        await until_serving(residency, "m")
        engines.load_seconds = 5.0
        engines.lose("m")
        await trio.sleep(0.1)
        model = residency.model("m")
        assert model is not None
        assert model.state == "loading"
        assert residency.engine("m") is None
        assert model.before is not None, "what it can do and how long it takes to come back is known"
        assert (model.before.facts.engine, model.before.seconds) == ("twin", 0.0)
        await until_serving(residency, "m")
        again = residency.model("m")
        assert again is not None
        assert again.before is not None
        assert again.before.seconds == pytest.approx(5.0)
        assert source.resolved == ["m"]
        assert engines.loads == ["m", "m"]


async def test_a_removed_model_is_unloaded_whatever_it_is_doing(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path) as (residency, source, engines):
        residency.add("served")
        await until_serving(residency, "served")
        source.fetch_seconds = 1000.0
        residency.add("fetching")
        await trio.sleep(1)
        assert residency.remove("fetching")
        assert residency.remove("served")
        assert not residency.remove("served")
        await trio.sleep(5000)
        assert residency.status() == []
        assert residency.model("served") is None
        assert not engines.twins
        assert "fetching" not in source.here


async def test_two_names_of_one_model_are_one_model(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path) as (residency, source, engines):
        resolve = source.resolve

        async def both(reference: str) -> ResolvedModel:
            return await resolve("root")

        source.resolve = both  # type: ignore[method-assign]
        residency.add("first")
        await until_serving(residency, "first")
        residency.add("second")
        await trio.sleep(1000)
        assert [(each.reference, each.state) for each in residency.status()] == [("first", "serving")]
        assert residency.engine("root") is engines.twins["root"]


async def test_a_bug_in_the_source_fails_that_model_alone(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path) as (residency, source, _):

        def broken(root: str) -> Path | None:
            if root == "bad":
                raise RuntimeError("oops")
            return tmp_path / root

        source.path = broken  # type: ignore[method-assign]
        residency.add("bad")
        residency.add("good")
        await until_serving(residency, "good")
        status = next(m for m in residency.status() if m.reference == "bad")
        assert (status.state, status.code) == ("failed", "INTERNAL")


async def test_models_may_be_added_before_it_runs_and_are_bounded(tmp_path: Path) -> None:
    residency = Residency(
        source=Source(tmp_path),
        engines=TwinEngines(),
        load_request=lambda model, path, folder: LoadRequest("s", path, "m"),
    )
    for number in range(MODELS_MAX):
        residency.add(f"m{number}")
    with pytest.raises(OctonodeError) as caught:
        residency.add("one more")
    assert caught.value.code == "OVERLOADED"
    with trio.move_on_after(10) as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(residency.run)
            await until_serving(residency, "m0")
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught

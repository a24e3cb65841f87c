"""What every maker owes the house, with real workers: the same tests run over each of them, the scripted one too."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from octonode.engines.contract import Finished, Made, Step
from octonode.errors import OctonodeError
from octonode.protocol.work.records import write
from octonode.protocol.work.skills import SKILLS, WorkRequest, read_result, skill_of
from octonode.protocol.work.text import EmbedRequest
from octonode.protocol.work.vision import ClassifyRequest
from tests.engines.makers import NOTHING, ROOT, MakerCase, Work, made

pytestmark = pytest.mark.process


async def test_results_are_whole_repeat_and_do_not_depend_on_who_else_asks(
    any_maker: MakerCase, model_folder, supervise
):
    async with supervise(any_maker.load(model_folder)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        facts = engine.facts
        assert facts.engine
        assert facts.build
        assert facts.backend
        assert facts.batch_size >= 1
        assert facts.skills
        assert {SKILLS[name].category for name in facts.skills} == {facts.category}
        requests = any_maker.requests(model_folder)
        alone = [await made(engine, request) for request in requests]
        for request, work in zip(requests, alone, strict=True):
            check_events(request, work)
        again = await made(engine, requests[0])
        assert any_maker.alike(alone[0].result, again.result)
        together: dict[int, Work] = {}

        async def ask(number: int) -> None:
            together[number] = await made(engine, requests[number % len(requests)])

        async with trio.open_nursery() as nursery:
            for number in range(3 * len(requests)):  # more than any batch takes, and than there are slots
                nursery.start_soon(ask, number)
        for number, work in together.items():
            assert any_maker.alone_alike(alone[number % len(requests)].result, work.result)
        assert engine.running == 0


def check_events(request: WorkRequest, work: Work) -> None:
    """Steps that rise to their total, one result of the right kind within its bounds, and the end."""
    *steps, result, end = work.events
    assert all(isinstance(event, Step) for event in steps)
    assert isinstance(result, Made)
    assert isinstance(end, Finished)
    assert end.reason == "stop"
    assert [step.done for step in work.steps] == sorted(step.done for step in work.steps)
    assert all(0 <= step.done <= step.total for step in work.steps)
    skill = skill_of(request)
    assert type(work.result) is skill.result
    assert read_result(skill.name, write(work.result)) == work.result, "it keeps the bounds of its record"


async def test_a_bad_request_costs_only_itself(any_maker: MakerCase, model_folder, supervise):
    async with supervise(any_maker.load(model_folder)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        good = any_maker.requests(model_folder)[0]
        foreign: WorkRequest = EmbedRequest(("hi",))
        if "embed" in engine.facts.skills:
            foreign = ClassifyRequest(NOTHING)
        first = await made(engine, good)
        codes: list[str] = []
        results: list[Any] = []

        async def refused(request: WorkRequest) -> None:
            with pytest.raises(OctonodeError) as caught:
                await made(engine, request)
            codes.append(caught.value.code)
            assert caught.value.message

        async def served() -> None:
            results.append((await made(engine, good)).result)

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(served)
                nursery.start_soon(refused, any_maker.bad or foreign)
                nursery.start_soon(served)
        assert codes == [any_maker.code if any_maker.bad else "UNSUPPORTED"] * 2
        assert len(results) == 4
        assert all(any_maker.alone_alike(first.result, result) for result in results)
        with pytest.raises(OctonodeError) as caught:
            await made(engine, foreign)
        assert caught.value.code == "UNSUPPORTED"
        assert any(skill in caught.value.message for skill in engine.facts.skills), "it says what it can"
        assert engine.running == 0


async def test_leaving_early_frees_the_worker(any_maker: MakerCase, model_folder, supervise, settle):
    """Left at the first sign of progress, or before there is any; what waited behind it is served."""
    async with supervise(any_maker.load(model_folder)) as supervisor:
        engine = await supervisor.wait_ready(ROOT)
        good = any_maker.requests(model_folder)[0]
        pid = supervisor.status()[0].pid
        long = any_maker.long(model_folder)
        waited: list[Work] = []

        async def behind() -> None:
            waited.append(await made(engine, good))

        async with trio.open_nursery() as nursery, engine.make(long) as events:
            nursery.start_soon(behind)
            with trio.move_on_after(0.3):
                async for event in events:
                    assert isinstance(event, Step), "progress comes before the result"
                    break
        assert waited[0].result is not None
        await settle(lambda: engine.running == 0)
        assert (await made(engine, good)).result is not None
        assert supervisor.status()[0].pid == pid, "cancelling costs no worker"

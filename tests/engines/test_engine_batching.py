"""The batcher on a virtual clock: nobody waits for company, everybody who comes meanwhile goes together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from octonode.engines.batching import DynamicBatcher, measured_size
from octonode.errors import OctonodeError

SECONDS = 1.0


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


class Work:
    """A batch takes a second, however large; a request that begins with `bad` fails alone."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.canceled = 0
        self.fault: Exception | None = None

    async def run(self, requests: Sequence[str], progress) -> list[str | OctonodeError]:
        self.batches.append(list(requests))
        try:
            for step in range(4):
                await trio.sleep(SECONDS / 4)
                progress(step + 1, 4)
        except trio.Cancelled:
            self.canceled += 1
            raise
        if self.fault is not None:
            raise self.fault
        return [OctonodeError("bad") if each.startswith("bad") else each.upper() for each in requests]


def unheard(done: int, total: int) -> None:
    pass


async def started(nursery: trio.Nursery, work: Work, **options) -> DynamicBatcher[str, str]:
    batcher = DynamicBatcher[str, str](work.run, lambda text: text[-1:].isdigit(), **options)
    nursery.start_soon(batcher.run)
    await wait_all_tasks_blocked()
    return batcher


async def test_a_lone_request_waits_for_nobody(autojump_clock):
    work = Work()
    async with trio.open_nursery() as nursery:
        batcher = await started(nursery, work, batch_size_max=16)
        began = trio.current_time()
        assert await batcher.submit("a", unheard) == "A"
        assert trio.current_time() - began == SECONDS
        nursery.cancel_scope.cancel()


async def test_those_who_come_meanwhile_go_together_up_to_the_size(autojump_clock):
    work, answers = Work(), {}
    async with trio.open_nursery() as nursery:
        batcher = await started(nursery, work, batch_size_max=3)

        async def one(text: str) -> None:
            answers[text] = await batcher.submit(text, unheard)

        async with trio.open_nursery() as callers:
            for text in "abcdef":
                callers.start_soon(one, text)
                await wait_all_tasks_blocked(0.01)
        assert answers == {text: text.upper() for text in "abcdef"}
        assert [len(batch) for batch in work.batches] == [1, 3, 2]
        assert work.batches[1] == ["b", "c", "d"], "in order of arrival"
        assert batcher.sizes == [1, 3, 2]
        nursery.cancel_scope.cancel()


async def test_only_equal_keys_go_together_and_none_starves(autojump_clock):
    work = Work()
    async with trio.open_nursery() as nursery:
        batcher = await started(nursery, work, batch_size_max=2)
        async with trio.open_nursery() as callers:
            for text in ("x", "a", "b", "c", "d", "e", "1"):
                callers.start_soon(batcher.submit, text, unheard)
                await wait_all_tasks_blocked(0.01)
        assert work.batches[2] == ["1"], "the other key had its turn before the rest of the first"
        assert sorted(text for batch in work.batches for text in batch) == ["1", "a", "b", "c", "d", "e", "x"]
        nursery.cancel_scope.cancel()


async def test_who_left_while_waiting_is_not_run_and_a_batch_that_nobody_wants_is_cancelled(autojump_clock):
    work = Work()
    async with trio.open_nursery() as nursery:
        batcher = await started(nursery, work, batch_size_max=4)
        async with trio.open_nursery() as callers:
            callers.start_soon(batcher.submit, "first", unheard)
            await wait_all_tasks_blocked()
            with trio.move_on_after(SECONDS / 2):
                await batcher.submit("leaves", unheard)
            callers.start_soon(batcher.submit, "stays", unheard)
        assert work.batches == [["first"], ["stays"]]
        with trio.move_on_after(SECONDS / 2):
            await batcher.submit("alone", unheard)
        assert await batcher.submit("next", unheard) == "NEXT"
        assert work.canceled == 1
        nursery.cancel_scope.cancel()


async def test_a_fault_of_one_is_its_own_and_a_fault_of_all_is_everybodys(autojump_clock):
    work = Work()
    async with trio.open_nursery() as nursery:
        batcher = await started(nursery, work, batch_size_max=4)
        outcomes: list[object] = []

        async def one(text: str) -> None:
            try:
                outcomes.append(await batcher.submit(text, unheard))
            except OctonodeError as error:
                outcomes.append(error.message)

        async def several() -> None:
            async with trio.open_nursery() as callers:
                for text in ("first", "good", "bad"):
                    callers.start_soon(one, text)
                    await wait_all_tasks_blocked(0.01)

        await several()
        assert sorted(map(str, outcomes)) == ["FIRST", "GOOD", "bad"]
        outcomes.clear()
        work.fault = OctonodeError("the engine fell over", code="ENGINE_FAILED")
        await several()
        assert outcomes == ["the engine fell over"] * 3
        work.fault = None
        assert await batcher.submit("again", unheard) == "AGAIN"
        nursery.cancel_scope.cancel()


async def test_a_fault_that_one_brings_into_a_batch_is_not_the_others(autojump_clock):
    """As a picture at which a library falls over in a way of its own."""

    class Falls(Work):
        async def run(self, requests: Sequence[str], progress) -> list[str | OctonodeError]:
            made = await super().run(requests, progress)
            if "poison" in requests:
                raise ZeroDivisionError
            return made

    work, outcomes = Falls(), {}
    async with trio.open_nursery() as nursery:
        batcher = await started(nursery, work, batch_size_max=4)

        async def one(text: str) -> None:
            try:
                with trio.move_on_after(2.5 * SECONDS if text == "leaves" else 100):
                    outcomes[text] = await batcher.submit(text, unheard)
            except ZeroDivisionError as error:
                outcomes[text] = type(error)

        async with trio.open_nursery() as callers:
            for text in ("first", "good", "poison", "leaves", "fine"):
                callers.start_soon(one, text)
                await wait_all_tasks_blocked()
        assert outcomes == {"first": "FIRST", "good": "GOOD", "poison": ZeroDivisionError, "fine": "FINE"}
        assert work.batches == [["first"], ["good", "poison", "leaves", "fine"], ["good"], ["poison"], ["fine"]]
        nursery.cancel_scope.cancel()


async def test_progress_reaches_all_of_a_batch(autojump_clock):
    work, seen = Work(), []
    async with trio.open_nursery() as nursery:
        batcher = await started(nursery, work, batch_size_max=4)
        await batcher.submit("a", lambda done, total: seen.append((done, total)))
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
        nursery.cancel_scope.cancel()


async def test_a_full_queue_refuses_and_says_when_to_come_back(autojump_clock):
    work = Work()
    async with trio.open_nursery() as nursery:
        batcher = await started(nursery, work, batch_size_max=1, queue_max=2)
        async with trio.open_nursery() as callers:
            for text in "abc":
                callers.start_soon(batcher.submit, text, unheard)
                await wait_all_tasks_blocked(0.01)
            with pytest.raises(OctonodeError) as caught:
                await batcher.submit("d", unheard)
            assert (caught.value.code, caught.value.retry_after_seconds) == ("OVERLOADED", 1.0)
        nursery.cancel_scope.cancel()


async def test_who_left_while_waiting_holds_no_place_and_no_memory(autojump_clock):
    work = Work()
    async with trio.open_nursery() as nursery:
        batcher = await started(nursery, work, batch_size_max=1, queue_max=2)
        async with trio.open_nursery() as callers:
            callers.start_soon(batcher.submit, "first", unheard)
            await wait_all_tasks_blocked()
            for _ in range(3):
                with trio.move_on_after(SECONDS / 8):
                    await batcher.submit("leaves", unheard)
                assert not batcher._lines
            for text in ("second", "third"):
                callers.start_soon(batcher.submit, text, unheard)
                await wait_all_tasks_blocked()
            with pytest.raises(OctonodeError, match="2 requests wait"):
                await batcher.submit("fourth", unheard)
        assert work.batches == [["first"], ["second"], ["third"]]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("seconds_of", "size"),
    [
        (lambda size: 0.010, 16),  # a batch costs what one costs
        (lambda size: 0.010 * size, 1),  # nothing is won
        (lambda size: 0.010 * (1 if size <= 4 else size), 4),
        (lambda size: 1.0 + 0.1 * size, 2),  # more would take longer than there is time
    ],
)
async def test_the_size_that_pays_is_found(seconds_of, size):
    async def run_once(count: int) -> float:
        return seconds_of(count)

    assert await measured_size(run_once, seconds_max=5.0) == size

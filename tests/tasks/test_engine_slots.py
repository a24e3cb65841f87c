"""The queue before an engine, and what its tasks have measured."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import Refused
from octonode.tasks.slots import EngineSlots, Measured, Measurements


async def test_as_many_run_as_fit_and_the_rest_go_in_order_of_arrival() -> None:
    slots = EngineSlots(queue_max=10)
    order: list[int] = []
    places: dict[int, list[int]] = {number: [] for number in range(6)}
    release = [trio.Event() for _ in range(6)]

    async def work(number: int) -> None:
        async with slots.slot("m", 2, places[number].append):
            order.append(number)
            await release[number].wait()

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(work, number)
            await trio.testing.wait_all_tasks_blocked()
        assert order == [0, 1]
        assert (slots.taken("m"), slots.waiting, slots.running) == (2, 4, 2)
        assert places[5] == [4]
        for number in range(6):
            release[number].set()
            await trio.testing.wait_all_tasks_blocked()
    assert order == [0, 1, 2, 3, 4, 5]
    assert places[5] == [4, 3, 2, 1]
    assert (slots.taken("m"), slots.waiting, slots.running) == (0, 0, 0)


async def test_a_full_line_refuses_at_once_and_lines_share_one_bound() -> None:
    slots = EngineSlots(queue_max=1)
    async with trio.open_nursery() as nursery:

        async def hold(root: str) -> None:
            async with slots.slot(root, 1):
                await trio.sleep_forever()

        for root in ("a", "b", "a"):
            nursery.start_soon(hold, root)
            await trio.testing.wait_all_tasks_blocked()
        assert slots.full("b", 1)
        with pytest.raises(Refused) as caught:
            async with slots.slot("b", 1):
                pass
        assert caught.value.code == "OVERLOADED"
        assert caught.value.retry_after_seconds
        nursery.cancel_scope.cancel()
    assert (slots.waiting, slots.running) == (0, 0)


async def test_who_is_cancelled_in_the_line_leaves_it_and_loses_no_slot() -> None:
    slots = EngineSlots(queue_max=10)
    entered: list[str] = []

    async def work(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with slots.slot("m", 1):
                entered.append(name)
                await trio.sleep_forever()

    scopes = {name: trio.CancelScope() for name in "abcd"}
    async with trio.open_nursery() as nursery:
        for name, scope in scopes.items():
            nursery.start_soon(work, name, scope)
            await trio.testing.wait_all_tasks_blocked()
        scopes["b"].cancel()
        scopes["a"].cancel()
        scopes["c"].cancel()  # its turn may have come in the same pass
        await trio.testing.wait_all_tasks_blocked()
        assert entered in (["a", "d"], ["a", "c", "d"])
        nursery.cancel_scope.cancel()
    assert (slots.waiting, slots.running) == (0, 0)


@settings(deadline=None, max_examples=30)
@given(
    steps=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["enter", "leave", "cancel"])), max_size=60),
    parallel=st.integers(1, 3),
)
def test_never_more_than_fit_and_nothing_is_lost(steps: list[tuple[str, str]], parallel: int) -> None:
    async def main() -> None:
        slots = EngineSlots(queue_max=100)
        running: dict[str, int] = {"a": 0, "b": 0}
        scopes: dict[str, list[trio.CancelScope]] = {"a": [], "b": []}

        async def work(root: str, scope: trio.CancelScope) -> None:
            with scope:
                async with slots.slot(root, parallel):
                    running[root] += 1
                    assert running[root] <= parallel
                    try:
                        await trio.sleep_forever()
                    finally:
                        running[root] -= 1

        async with trio.open_nursery() as nursery:
            for root, step in steps:
                if step == "enter":
                    scopes[root].append(trio.CancelScope())
                    nursery.start_soon(work, root, scopes[root][-1])
                elif scopes[root]:
                    scopes[root].pop(0 if step == "leave" else -1).cancel()
                await trio.testing.wait_all_tasks_blocked()
                for name in "ab":
                    assert running[name] == min(parallel, len(scopes[name])) == slots.taken(name)
            nursery.cancel_scope.cancel()
        assert (slots.running, slots.waiting) == (0, 0)

    trio.run(main)


def test_figures_follow_the_tasks_and_are_bounded() -> None:
    measured = Measurements()
    assert measured.of("m").tokens_per_second == 0
    measured.note("m", first_token_ms=100, tokens=50, seconds=1.0)
    assert measured.of("m").tokens_per_second == 50
    for _ in range(60):
        measured.note("m", first_token_ms=20, tokens=200, seconds=1.0)
    assert measured.of("m").tokens_per_second == pytest.approx(200, rel=0.01)
    assert measured.of("m").first_token_ms == pytest.approx(20, rel=0.01)
    measured.note("m", first_token_ms=20, tokens=0, seconds=0.0)  # one token: no speed can be told
    assert measured.of("m").tokens_per_second == pytest.approx(200, rel=0.01)
    for number in range(Measurements.MODELS_MAX + 5):
        measured.note(f"m{number}", first_token_ms=1, tokens=1, seconds=1)
    assert measured.of("m").tokens_per_second == 0


def test_what_the_node_measures_is_a_beginning_and_counts_again_where_it_was_asked_for() -> None:
    measured = Measurements()
    measured.begin("m", Measured(40.0, 90.0))
    measured.note("m", first_token_ms=90, tokens=50, seconds=1.0)
    before = measured.of("m")
    measured.begin("m", Measured(9.0, 9.0))
    assert measured.of("m") == before, "tasks have shown more"
    measured.begin("m", Measured(9.0, 9.0), anew=True)
    assert measured.of("m") == Measured(9.0, 9.0)
    for number in range(Measurements.MODELS_MAX + 5):
        measured.begin(f"m{number}", Measured(1.0, 1.0))
    assert measured.of("m") == Measured(), "bounded too"

"""Modes between nodes: realtime at once or not at all, batch collected, async last; each at its own price."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock as Clock
from trio.testing import wait_all_tasks_blocked

from octonode.config import PricingConfig, TasksConfig
from octonode.errors import OctonodeError, Refused
from octonode.protocol.receipt import Price, sign_receipt, verify_receipt
from octonode.tasks.asking import AskEvent, Progress
from octonode.tasks.pricing import price_list
from octonode.tasks.slots import AGEING_MS, EngineSlots
from octonode.testing.engine import TwinEngines
from tests.tasks.nodes import Node, answer_of, ask, events_of, nodes, providers_of

PRICES = price_list(PricingConfig(in_micro_octo=1_000_000, out_micro_octo=2_000_000))


def engines(parallel: int) -> TwinEngines:
    made = TwinEngines()
    made.parallel = parallel
    return made


async def ask_in(node: Node, mode: str, order: list[str], name: str = "") -> list[AskEvent]:
    events = await events_of(node, ask(mode=mode))
    order.append(name or mode)
    return events


# In the line of one engine.


async def test_the_line_goes_by_mode_and_within_one_by_arrival() -> None:
    slots = EngineSlots(queue_max=10)
    order: list[str] = []
    leave = trio.Event()

    async def work(name: str, mode: Any) -> None:
        async with slots.slot("m", 1, mode=mode):
            order.append(name)
            await leave.wait()

    async with trio.open_nursery() as nursery:
        for name, mode in (("first", ""), ("a1", "async"), ("b1", "batch"), ("p1", ""), ("a2", "async"), ("p2", "")):
            nursery.start_soon(work, name, mode)
            await wait_all_tasks_blocked()
        leave.set()
    assert order == ["first", "p1", "p2", "b1", "a1", "a2"]


async def test_the_least_urgent_is_passed_by_nobody_who_comes_late(autojump_clock: Clock) -> None:
    slots = EngineSlots(queue_max=100)
    done: list[str] = []

    async def work(name: str, mode: Any) -> None:
        async with slots.slot("m", 1, mode=mode):
            await trio.sleep(1)
            done.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, "holds", "")
        await wait_all_tasks_blocked()
        nursery.start_soon(work, "old", "async")
        while "old" not in done:  # one urgent task a second: the slot is never free for anybody else
            nursery.start_soon(work, "new", "")
            await trio.sleep(0.99)
            assert len(done) < 2 * AGEING_MS // 1000 + 10
        nursery.cancel_scope.cancel()
    assert len(done) >= AGEING_MS // 1000  # and it did wait


async def test_a_batch_is_let_in_by_its_size_or_by_its_time_and_all_at_once(autojump_clock: Clock) -> None:
    slots = EngineSlots(queue_max=10, batch_seconds=2)
    began: list[tuple[str, float]] = []
    collected: list[tuple[int, int]] = []

    async def work(name: str) -> None:
        async with slots.slot("m", 4, mode="batch", batch_size=3, on_collect=lambda *counts: collected.append(counts)):
            began.append((name, trio.current_time() - start))
            await trio.sleep(100)

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(work, name)
            await trio.sleep(0.5)
        assert began == []
        assert (slots.waiting, slots.running) == (2, 0)
        nursery.start_soon(work, "c")
        await wait_all_tasks_blocked()
        assert sorted(name for name, _ in began) == ["a", "b", "c"]
        assert collected == [(1, 3), (2, 3), (2, 3)]
        nursery.start_soon(work, "d")
        await trio.sleep(1.9)
        assert len(began) == 3
        await trio.sleep(0.2)
        assert began[-1] == ("d", pytest.approx(3.0))
        nursery.cancel_scope.cancel()
    assert (slots.waiting, slots.running) == (0, 0)


async def test_who_leaves_a_batch_is_not_counted_and_the_rest_keep_its_time(autojump_clock: Clock) -> None:
    slots = EngineSlots(queue_max=10, batch_seconds=2)
    scope = trio.CancelScope()
    began: list[float] = []

    async def first() -> None:
        with scope:
            async with slots.slot("m", 4, mode="batch", batch_size=2):
                raise AssertionError("it left")

    async def second() -> None:
        async with slots.slot("m", 4, mode="batch", batch_size=3):
            began.append(trio.current_time() - start)

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.sleep(0.5)
        nursery.start_soon(second)
        await trio.sleep(0.5)
        scope.cancel()
    assert began == [pytest.approx(2.0)]
    assert (slots.waiting, slots.running) == (0, 0)


async def test_realtime_takes_a_free_slot_or_is_refused_and_a_full_line_refuses_batches() -> None:
    slots = EngineSlots(queue_max=1)
    async with slots.slot("m", 2, mode="realtime"), slots.slot("m", 2, mode="realtime"):
        assert slots.full("m", 2, "realtime")
        with pytest.raises(Refused, match="never waits") as caught:
            async with slots.slot("m", 2, mode="realtime"):
                pass
        assert (caught.value.code, caught.value.retry_after_seconds) == ("OVERLOADED", 1.0)
    async with trio.open_nursery() as nursery:

        async def collect() -> None:
            async with slots.slot("m", 2, mode="batch", batch_size=2):
                pass

        nursery.start_soon(collect)
        await wait_all_tasks_blocked()
        assert slots.full("m", 2, "batch")
        assert not slots.full("m", 2)
        with pytest.raises(Refused, match="wait here already"):
            async with slots.slot("m", 2, mode="batch", batch_size=3):
                pass
        async with slots.slot("m", 2, mode="realtime"):  # who is collected holds no slot
            assert slots.taken("m") == 1
        nursery.cancel_scope.cancel()


async def test_without_a_queue_free_slots_are_given_and_nobody_waits() -> None:
    slots = EngineSlots(queue_max=0)
    async with slots.slot("m", 2), slots.slot("m", 2, mode="async"):
        for mode in ("", "realtime", "batch", "async"):
            with pytest.raises(Refused):
                async with slots.slot("m", 2, mode=mode):  # type: ignore[arg-type]
                    pass
    assert (slots.waiting, slots.running) == (0, 0)


# Between nodes.


async def test_realtime_moves_on_from_a_node_whose_slots_are_taken(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 3, engines=[None, engines(1), engines(1)]) as (asker, busy, free):
        (await busy.serve()).script.seconds_per_token = 100
        await free.serve()
        asker.book.at_hand = [busy.announcement(tokens_per_second=900), free.announcement()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(events_of, asker, ask(peer=busy.peer))
            while busy.slots.running == 0:
                await trio.sleep(0.01)
            events = await events_of(asker, ask(mode="realtime"))
            assert providers_of(events) == [busy.peer, free.peer]
            with pytest.raises(OctonodeError) as caught:
                await events_of(asker, ask(mode="realtime", peer=busy.peer))
            assert (caught.value.code, caught.value.retry_after_seconds) == ("OVERLOADED", 1.0)
            nursery.cancel_scope.cancel()


async def test_realtime_is_refused_where_the_model_is_still_loading(tmp_path: Path, autojump_clock: Clock) -> None:
    cold = engines(1)
    cold.load_seconds = 50
    async with nodes(tmp_path, 2, engines=[None, cold]) as (asker, provider):
        provider.source.here.add("x")
        provider.residency.add(ask().model_root)
        await trio.sleep(1)
        asker.book.at_hand = [provider.announcement()]
        with pytest.raises(OctonodeError) as caught:
            await events_of(asker, ask(mode="realtime"))
        assert caught.value.code == "MODEL_LOADING"
        (local,) = await provider.dispatcher.explain(ask(mode="realtime"))
        assert not local.accepted
        assert "never waits" in local.reason


async def test_a_batch_is_collected_at_the_provider_and_tells_so(tmp_path: Path, autojump_clock: Clock) -> None:
    settings = TasksConfig(batch_seconds=4)
    async with nodes(tmp_path, 2, settings, engines=[None, engines(4)]) as (asker, provider):
        engine = await provider.serve()
        engine.script.seconds_per_token = 0.5
        asker.book.at_hand = [provider.announcement()]
        seen: list[AskEvent] = []
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(lambda: events_of(asker, ask(mode="batch"), seen.append))
            await trio.sleep(3.5)
            assert engine.running == 0
            await trio.sleep(1)
            assert engine.running == 3  # its time has come, and all of it goes at once
        stages = [event for event in seen if isinstance(event, Progress) and event.stage == "collecting"]
        assert {event.total for event in stages} == {4}
        assert max(event.done for event in stages) == 3


async def test_waiting_in_mode_async_is_no_reason_to_leave_a_provider(tmp_path: Path, autojump_clock: Clock) -> None:
    settings = TasksConfig(first_token_timeout_seconds=5)
    async with nodes(tmp_path, 2, settings, engines=[None, engines(1)]) as (asker, provider):
        (await provider.serve()).script.seconds_per_token = 5
        asker.book.at_hand = [provider.announcement()]
        order: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_in, asker, "async", order, "a1")
            await trio.sleep(1)
            nursery.start_soon(ask_in, asker, "async", order, "a2")
        assert order == ["a1", "a2"]


async def test_a_mode_that_a_node_does_not_offer_is_not_asked_of_it(tmp_path: Path, autojump_clock: Clock) -> None:
    some = price_list(PricingConfig(modes=("async",)))
    async with nodes(tmp_path, 2, prices=some) as (asker, provider):
        await provider.serve()
        asker.book.at_hand = [provider.announcement()]
        (candidate,) = await asker.dispatcher.explain(ask(mode="batch"))
        assert candidate.reason == "it does not offer mode batch"
        asker.book.at_hand = [provider.announcement(modes={"batch": (0, 0)})]  # it has changed its mind
        with pytest.raises(OctonodeError, match="not offered here") as caught:
            await events_of(asker, ask(mode="batch"))
        assert caught.value.code == "UNSUPPORTED"
        asker.book.at_hand = [provider.announcement()]
        assert answer_of(await events_of(asker, ask(mode="async"))).verified
        assert answer_of(await events_of(asker, ask())).verified


@pytest.mark.parametrize(
    ("mode", "rates"),
    [
        ("", (1_000_000, 2_000_000)),
        ("batch", (1_000_000, 2_000_000)),
        ("realtime", (1_500_000, 3_000_000)),
        ("async", (500_000, 1_000_000)),
    ],
)
async def test_the_receipt_has_the_price_of_the_mode(
    tmp_path: Path, autojump_clock: Clock, mode: str, rates: tuple[int, int]
) -> None:
    async with nodes(tmp_path, 2, prices=PRICES) as (asker, provider):
        await provider.serve()
        asker.book.at_hand = [provider.announcement()]
        (candidate,) = await asker.dispatcher.explain(ask(mode=mode))
        assert (candidate.price_in_micro_octo, candidate.price_out_micro_octo) == rates
        answered = answer_of(await events_of(asker, ask(mode=mode)))
        assert answered.verified, answered.reason
        price = verify_receipt(answered.receipt or b"").price
        total = -(-(answered.tokens_in * rates[0] + answered.tokens_out * rates[1]) // 1_000_000)
        assert price == Price("tokens", *rates, total)
        assert total > 0


async def test_routing_by_cost_goes_by_the_price_of_the_mode(tmp_path: Path, autojump_clock: Clock) -> None:
    async with nodes(tmp_path, 3) as (asker, one, two):
        asker.book.at_hand = [
            one.announcement(price_out_micro_octo=1, modes={"async": (0, 90)}),
            two.announcement(price_out_micro_octo=50, modes={"async": (0, 5)}),
        ]
        plain = await asker.dispatcher.explain(ask(rank="cost"))
        late = await asker.dispatcher.explain(ask(rank="cost", mode="async"))
    assert [each.peer for each in plain] == [one.peer, two.peer]
    assert [each.peer for each in late] == [two.peer, one.peer]
    assert [each.price_out_micro_octo for each in late] == [5, 90]


@pytest.mark.parametrize("lie", ["above what was announced", "a total that its rates do not make"])
async def test_a_dearer_receipt_than_announced_is_not_verified(
    tmp_path: Path, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    async with nodes(tmp_path, 2, prices=PRICES) as (asker, provider):
        await provider.serve()
        asker.book.at_hand = [provider.announcement()]
        if lie.startswith("above"):
            asker.book.at_hand = [provider.announcement(modes={"async": (1, 1)})]
        else:
            monkeypatch.setattr(
                "octonode.tasks.generation.sign_receipt",
                lambda signer, made: sign_receipt(
                    signer, replace(made, price=replace(made.price, total_micro_octo=10**9))
                ),
            )
        answered = answer_of(await events_of(asker, ask(mode="async")))
        assert not answered.verified
        assert answered.reason.startswith("price:")


# Whatever happens.

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["realtime", "", "batch", "async"]),
        st.floats(0, 3),  # before it comes
        st.floats(0.1, 4),  # how long it holds its slot
        st.none() | st.floats(0, 6),  # when it is cancelled
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, parallel=st.integers(1, 3), batch_size=st.integers(1, 4))
def test_no_slot_is_lost_or_given_twice_and_who_is_not_cancelled_has_its_turn(
    steps: list[tuple[Any, float, float, float | None]], parallel: int, batch_size: int
) -> None:
    async def main() -> None:
        slots = EngineSlots(queue_max=100)
        outcomes: list[str] = []
        running = 0

        async def work(mode: Any, holds: float, patience: float | None) -> None:
            nonlocal running
            with trio.move_on_after(math.inf if patience is None else patience) as scope:
                try:
                    async with slots.slot("m", parallel, mode=mode, batch_size=batch_size):
                        running += 1
                        assert running <= parallel
                        assert slots.taken("m") >= running
                        try:
                            await trio.sleep(holds)
                        finally:
                            running -= 1
                    outcomes.append("done")
                except Refused:
                    assert mode == "realtime"
                    outcomes.append("refused")
            if scope.cancelled_caught:
                outcomes.append("canceled")

        async with trio.open_nursery() as nursery:
            for mode, before, holds, patience in steps:
                await trio.sleep(before)
                nursery.start_soon(work, mode, holds, patience)
        assert len(outcomes) == len(steps)
        assert (slots.running, slots.waiting, slots.taken("m")) == (0, 0, 0)

    trio.run(main, clock=Clock(autojump_threshold=0))

"""Who is asked for which leaves: every leaf once, rarest first, given back when a source fails, twice at the end."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from octonode.ipfs.cid import raw_cid
from octonode.ipfs.layout import FileLayout, Layout, Leaf
from octonode.models import bitmap
from octonode.models.plan import ENDGAME_LEAVES, FetchPlan


def _layout(*sizes: int) -> Layout:
    leaves: list[Leaf] = []
    files = []
    for number, count in enumerate(sizes):
        first = len(leaves)
        leaves += [Leaf(first + n, number, n * 10, 10, bytes(32)) for n in range(count)]
        files.append(FileLayout(str(number), raw_cid(b""), count * 10, first, count))
    return Layout(raw_cid(b""), tuple(files), tuple(leaves), {})


def _plan(layout: Layout, have: int = 0, seed: int = 0) -> FetchPlan:
    return FetchPlan(layout, have, random.Random(seed))


def _numbers(run: tuple[Leaf, ...]) -> list[int]:
    return [leaf.number for leaf in run]


def test_runs_are_consecutive_in_one_file_and_within_the_window() -> None:
    plan = _plan(_layout(30, 30))
    plan.set_source("a", None)
    seen: list[int] = []
    while run := plan.next_run("a", 70):
        numbers = _numbers(run)
        assert numbers == list(range(numbers[0], numbers[0] + len(run)))
        assert len({leaf.file for leaf in run}) == 1
        assert 1 <= len(run) <= 7
        seen += numbers
    assert sorted(seen) == list(range(60))
    plan.verified(_layout(30, 30).leaves)
    assert plan.complete
    assert plan.done_bytes == 600


def test_a_leaf_larger_than_the_window_is_asked_alone() -> None:
    plan = _plan(_layout(3))
    plan.set_source("a", None)
    assert len(plan.next_run("a", 1)) == 1


def test_what_is_held_is_not_asked_for() -> None:
    plan = _plan(_layout(8), have=0b0101_1111)
    plan.set_source("a", None)
    asked = _numbers(plan.next_run("a", 1000)) + _numbers(plan.next_run("a", 1000))
    assert sorted(asked) == [5, 7]
    assert plan.done_bytes == 60


def test_the_rarest_leaves_come_first() -> None:
    plan = _plan(_layout(100))
    plan.set_source("everything", None)
    plan.set_source("much", bitmap.full(100) & ~(0b111 << 40))
    plan.set_source("little", 0b11)
    assert _numbers(plan.next_run("everything", 1000))[:3] == [40, 41, 42]
    assert plan.next_run("little", 1000) != ()
    plan.set_source("more", 0b111 << 40 | 0b11)  # a bitmap that grew
    assert plan.can_help("more")


def test_what_a_source_does_not_bring_is_free_for_others() -> None:
    plan = _plan(_layout(4))
    plan.set_source("a", None)
    plan.set_source("b", None)
    taken: list[int] = []
    while len(taken) < 4:
        taken += _numbers(plan.next_run("a", 1000))
    plan.give_back("a", [1])
    assert _numbers(plan.next_run("b", 1000)) == [1]
    plan.drop_source("a")
    rest: list[int] = []
    while run := plan.next_run("b", 1000):
        rest += _numbers(run)
    assert sorted(rest) == [0, 2, 3]


def test_the_endgame_asks_a_second_source_once() -> None:
    plan = _plan(_layout(3))
    for key in "abc":
        plan.set_source(key, None)
    taken: list[int] = []
    while len(taken) < 3:
        taken += _numbers(plan.next_run("a", 1000))
    assert plan.next_run("a", 1000) == ()
    again = [_numbers(plan.next_run("b", 1000)) for _ in range(3)]
    assert sorted(again) == [[0], [1], [2]]
    assert plan.next_run("b", 1000) == plan.next_run("c", 1000) == ()
    plan.drop_source("a")
    assert plan.next_run("c", 1000) != ()


def test_no_endgame_while_much_is_under_way() -> None:
    plan = _plan(_layout(ENDGAME_LEAVES * 8 + 1))
    plan.set_source("a", None)
    plan.set_source("b", None)
    while plan.next_run("a", 10_000):
        pass
    assert plan.next_run("b", 10) == ()


@given(st.data())
def test_any_order_of_events_fetches_everything(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60))
    layout = _layout(count)
    plan = _plan(layout, have=data.draw(st.integers(0, bitmap.full(count))), seed=data.draw(st.integers(0, 9)))
    under_way: list[tuple[str, tuple[Leaf, ...]]] = []
    plan.set_source("whole", None)
    learnt: set[str] = set()
    for _ in range(data.draw(st.integers(0, 40))):
        action = data.draw(st.sampled_from(["ask", "bring", "fail", "drop", "learn"]))
        key = data.draw(st.sampled_from(["whole", "part"]))
        if action == "learn":
            learnt.add("part")
            plan.set_source("part", data.draw(st.integers(0, bitmap.full(count))))
        elif action == "drop":
            plan.drop_source("part")
            learnt.clear()
            under_way = [(k, run) for k, run in under_way if k != "part"]
        elif action == "ask" and (key == "whole" or "part" in learnt):
            run = plan.next_run(key, data.draw(st.integers(1, 100)))
            under_way += [(key, run)] if run else []
        elif under_way and action in ("bring", "fail"):
            key, run = under_way.pop()
            plan.verified(run) if action == "bring" else plan.give_back(key, _numbers(run))
    for key, run in under_way:
        plan.give_back(key, _numbers(run))
    for _ in range(count + 1):
        plan.verified(plan.next_run("whole", 50))
    assert plan.complete
    assert plan.done_bytes == layout.size_bytes

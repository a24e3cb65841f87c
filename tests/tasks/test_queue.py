"""The queue core: nothing lost, nothing run twice, nobody starves, order within a level."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octonode.tasks.queue import Queue

AGEING_MS = 100
LEVELS = 4
WAITING_MAX = 12


class QueueMachine(RuleBasedStateMachine):
    """Against a model that is a plain list: who is best by (arrival + level * ageing, number) is next."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: Queue[int] = Queue(waiting_max=WAITING_MAX, ageing_ms=AGEING_MS)
        self.now_ms = 0
        self.latest_ms = 0
        self.numbers = 0
        self.waiting: dict[int, tuple[int, int]] = {}
        """Key -> (rank, number)."""
        self.running: dict[int, tuple[int, int]] = {}
        self.level: dict[int, int] = {}
        self.arrived_ms: dict[int, int] = {}
        self.starts: dict[int, int] = {}
        self.requeues: dict[int, int] = {}
        self.ended: set[int] = set()
        self.passed_when_old: dict[int, int] = {}
        """Picks that went past an item after it had aged to level 0."""

    @rule(level=st.integers(0, LEVELS - 1))
    def put(self, level: int) -> None:
        key = self.numbers
        self.numbers += 1
        taken = self.queue.put(key, level, self.now_ms)
        assert taken == (len(self.waiting) < WAITING_MAX)
        if taken:
            self.latest_ms = max(self.latest_ms, self.now_ms)
            self.waiting[key] = (self.latest_ms + level * AGEING_MS, key)
            self.level[key], self.arrived_ms[key] = level, self.latest_ms
            self.starts[key] = self.requeues[key] = self.passed_when_old[key] = 0

    @rule(step_ms=st.integers(-50, 300))
    def time_goes_on_or_steps_back(self, step_ms: int) -> None:
        self.now_ms = max(0, self.now_ms + step_ms)

    @rule()
    def take(self) -> None:
        taken = self.queue.take()
        if not self.waiting:
            assert taken is None
            return
        best = min(self.waiting, key=lambda key: self.waiting[key])
        assert taken == best
        for key in self.waiting:
            aged = self.now_ms >= self.arrived_ms[key] + self.level[key] * AGEING_MS
            if key != best and aged:
                self.passed_when_old[key] += 1
        self.running[best] = self.waiting.pop(best)
        self.starts[best] += 1

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.queue.finish(key)
        del self.running[key]
        self.ended.add(key)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.queue.requeue(key)
        self.waiting[key] = self.running.pop(key)
        self.requeues[key] += 1

    @precondition(lambda self: self.numbers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, self.numbers - 1))
        expected = "waiting" if key in self.waiting else "running" if key in self.running else None
        assert self.queue.cancel(key) == expected
        self.waiting.pop(key, None)
        self.running.pop(key, None)

    @invariant()
    def nothing_is_lost_and_nothing_is_there_twice(self) -> None:
        assert list(self.queue) == sorted(self.waiting, key=lambda key: self.waiting[key])
        assert (self.queue.waiting, self.queue.running) == (len(self.waiting), len(self.running))
        for place, key in enumerate(self.queue, start=1):
            assert self.queue.place(key) == place
            assert self.queue.where(key) == "waiting"
        for key in self.running:
            assert self.queue.where(key) == "running"
        assert not any(key in self.queue for key in self.ended)

    @invariant()
    def nothing_runs_twice_unless_it_was_given_back(self) -> None:
        for key, starts in self.starts.items():
            assert starts <= self.requeues[key] + 1

    @invariant()
    def who_has_aged_is_passed_by_those_before_it_alone(self) -> None:
        """A bounded wait in picks: those who come later never pass, so at most the line and what ran comes first.

        Who was given back counts again, each time.
        """
        again = sum(self.requeues.values())
        most_before = WAITING_MAX + again
        assert all(passed <= most_before for passed in self.passed_when_old.values())


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestQueueMachine = QueueMachine.TestCase


@given(levels=st.lists(st.integers(0, LEVELS - 1), min_size=1, max_size=WAITING_MAX))
def test_order_of_arrival_within_a_level_and_the_most_urgent_first(levels: list[int]) -> None:
    queue: Queue[int] = Queue(waiting_max=WAITING_MAX, ageing_ms=AGEING_MS)
    for key, level in enumerate(levels):
        assert queue.put(key, level, 0)
    taken = [queue.take() for _ in levels]
    assert taken == sorted(range(len(levels)), key=lambda key: (levels[key], key))
    assert queue.take() is None


@given(flood=st.integers(1, 40), gap_ms=st.integers(1, 40))
def test_a_flood_of_urgent_ones_does_not_starve_the_least_urgent(flood: int, gap_ms: int) -> None:
    """Two urgent ones arrive for each pick, for ever: the old one goes within its ageing and the line before it."""
    queue: Queue[str] = Queue(waiting_max=WAITING_MAX, ageing_ms=AGEING_MS)
    queue.put("old", LEVELS - 1, 0)
    picks_after_ageing = 0
    for step in range(flood + (LEVELS - 1) * AGEING_MS // gap_ms + 2 * WAITING_MAX):
        now_ms = step * gap_ms
        for number in range(2):
            queue.put(f"{step}.{number}", 0, now_ms)
        taken = queue.take()
        assert taken is not None
        if taken == "old":
            return
        queue.finish(taken)
        picks_after_ageing += now_ms >= (LEVELS - 1) * AGEING_MS
        assert picks_after_ageing <= WAITING_MAX
    raise AssertionError("the old one was never taken")


def test_an_item_that_comes_back_has_its_old_place_even_where_the_line_is_full() -> None:
    queue: Queue[str] = Queue(waiting_max=2, ageing_ms=AGEING_MS)
    assert queue.put("a", 0, 0)
    assert queue.take() == "a"
    assert queue.put("b", 0, 1)
    assert queue.put("c", 0, 2)
    assert not queue.put("d", 0, 3)
    queue.requeue("a")
    assert list(queue) == ["a", "b", "c"]
    assert queue.full

"""The table of task states."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.protocol.messages import TaskState
from octonode.tasks.task import INITIAL, TERMINAL, TRANSITIONS, Task, TaskEvent, follow

EVENTS: tuple[TaskEvent, ...] = get_args(TaskEvent)
STATES: tuple[TaskState, ...] = get_args(TaskState)


def test_the_table_is_exactly_this() -> None:
    edges = {(state, event, after) for state, row in TRANSITIONS.items() for event, after in row.items()}
    assert edges == {
        ("submitted", "start", "working"),
        ("submitted", "fail", "failed"),
        ("submitted", "cancel", "canceled"),
        ("submitted", "reject", "rejected"),
        ("working", "need_input", "input_required"),
        ("working", "complete", "completed"),
        ("working", "fail", "failed"),
        ("working", "cancel", "canceled"),
        ("input_required", "give_input", "working"),
        ("input_required", "fail", "failed"),
        ("input_required", "cancel", "canceled"),
    }
    assert set(TRANSITIONS) == set(STATES)


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_terminal_states_absorb_every_event(events: list[TaskEvent]) -> None:
    task = Task()
    assert task.state == INITIAL
    for event in events:
        before = task.state
        after = follow(before, event)
        if before in TERMINAL:
            assert task.ended
            assert after is None
        if after is None:
            with pytest.raises(AssertionError):
                task.on(event)
            assert task.state == before
        else:
            assert task.on(event) == after == task.state


def test_every_state_can_be_reached() -> None:
    reached, new = {INITIAL}, {INITIAL}
    while new:
        new = {after for state in new for after in TRANSITIONS[state].values()} - reached
        reached |= new
    assert reached == set(STATES)

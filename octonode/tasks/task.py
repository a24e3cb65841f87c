"""The life of a task as a table; the states have A2A's names. Every record and every diagram reads it from here."""

from __future__ import annotations

from typing import Literal

from octonode.protocol.messages import TaskState

TaskEvent = Literal["start", "need_input", "give_input", "complete", "fail", "cancel", "reject"]

INITIAL: TaskState = "submitted"

TERMINAL: frozenset[TaskState] = frozenset({"completed", "failed", "canceled", "rejected"})
"""Absorbing: no event leads out of these."""

TRANSITIONS: dict[TaskState, dict[TaskEvent, TaskState]] = {
    "submitted": {"start": "working", "fail": "failed", "cancel": "canceled", "reject": "rejected"},
    "working": {"need_input": "input_required", "complete": "completed", "fail": "failed", "cancel": "canceled"},
    "input_required": {"give_input": "working", "fail": "failed", "cancel": "canceled"},
    "completed": {},
    "failed": {},
    "canceled": {},
    "rejected": {},
}


def follow(state: TaskState, event: TaskEvent) -> TaskState | None:
    """The state after `event`; None where the table has no such edge."""
    return TRANSITIONS[state].get(event)


class Task:
    """One task's state. An event without an edge is a bug of the caller: AssertionError."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: TaskState = INITIAL

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    def on(self, event: TaskEvent) -> TaskState:
        after = follow(self.state, event)
        assert after is not None, f"a task that is {self.state} cannot {event}"
        self.state = after
        return after

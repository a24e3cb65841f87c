"""The life of one agent stream, as data. The exchange, the page protocols/agent.md and the tests read this table.

Both ends keep the same state: what one sends is an event for it, and the same event for the other on arrival.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from octonode.protocol.messages import ErrorReport, Message, Negotiate, StatusUpdate, TaskRequest

Role = Literal["asker", "provider"]
Kind = Literal["run", "cancel", "chunk", "update", "completed", "canceled", "error", "negotiate"]
"""What a message is to the stream: `chunk` is an asker's STATUS_UPDATE, `completed` and `canceled` a TASK_RESPONSE."""


class State(StrEnum):
    IDLE = "idle"
    """No message yet."""
    OPEN = "open"
    """The request was sent; the provider owes a frame every second and one terminal frame."""
    CANCELING = "canceling"
    """The asker gave up; the provider owes the terminal frame within the drain time."""
    NEGOTIATING = "negotiating"
    CLOSED = "closed"
    """The terminal frame was sent; nothing comes from the provider any more."""
    BROKEN = "broken"
    """The other side broke a rule. A provider may still say why, in one ERROR."""


TABLE: dict[tuple[State, Role, Kind], State] = {
    (State.IDLE, "asker", "run"): State.OPEN,
    (State.IDLE, "asker", "negotiate"): State.NEGOTIATING,
    (State.OPEN, "asker", "chunk"): State.OPEN,
    (State.OPEN, "asker", "cancel"): State.CANCELING,
    (State.OPEN, "provider", "update"): State.OPEN,
    (State.OPEN, "provider", "completed"): State.CLOSED,
    (State.OPEN, "provider", "error"): State.CLOSED,
    (State.CANCELING, "asker", "cancel"): State.CANCELING,
    (State.CANCELING, "provider", "update"): State.CANCELING,
    (State.CANCELING, "provider", "completed"): State.CLOSED,
    (State.CANCELING, "provider", "canceled"): State.CLOSED,
    (State.CANCELING, "provider", "error"): State.CLOSED,
    (State.NEGOTIATING, "asker", "negotiate"): State.NEGOTIATING,
    (State.NEGOTIATING, "provider", "negotiate"): State.NEGOTIATING,
    (State.NEGOTIATING, "provider", "error"): State.CLOSED,
    (State.BROKEN, "provider", "error"): State.CLOSED,
}
"""(state, who sends, what) -> next state. What is not here is a fault of its sender."""

CROSSED: frozenset[Kind] = frozenset({"cancel", "chunk"})
"""From an asker that had not seen the terminal frame yet: a provider in `closed` drops these without an event."""

OWING = frozenset({State.OPEN, State.CANCELING})
"""States in which the provider owes a terminal frame, and heartbeats until then."""


def kind_of(message: Message, sender: Role) -> Kind:
    """The event that `message` is when `sender` sends it."""
    if isinstance(message, StatusUpdate):
        return "chunk" if sender == "asker" else "update"
    if isinstance(message, TaskRequest):
        return message.operation
    if isinstance(message, ErrorReport):
        return "error"
    if isinstance(message, Negotiate):
        return "negotiate"
    return message.state

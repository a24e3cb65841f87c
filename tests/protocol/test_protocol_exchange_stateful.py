"""Both ends of a stream under any order of honest moves and any delay of the bytes between them.

Whatever happens: no end sees a fault, pieces arrive in order and once, there is one terminal frame, and once every byte
is delivered both ends agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octonode.identity import NodeKey
from octonode.protocol.exchange import Exchange
from octonode.protocol.limits import Limits
from octonode.protocol.messages import ErrorReport, Message, StatusUpdate, TaskRequest, TaskResponse
from octonode.protocol.replay import ReplayWindow
from octonode.protocol.states import OWING, State

ASKER, PROVIDER = NodeKey(b"a" * 32), NodeKey(b"p" * 32)
LIMITS = Limits(input_inline_bytes_max=50, artifact_chunk_bytes_max=40)


def ids() -> Callable[[], bytes]:
    numbers = itertools.count(1)
    return lambda: next(numbers).to_bytes(16, "big")


class HonestEnds(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1_800_000_000_000
        self.asker = Exchange("asker", ASKER, PROVIDER.peer_id, LIMITS, new_id=ids())
        self.provider = Exchange("provider", PROVIDER, ASKER.peer_id, LIMITS, new_id=ids(), replay=ReplayWindow())
        self.to_provider, self.to_asker = bytearray(), bytearray()
        self.sent: list[str] = []
        self.came: list[str] = []
        self.terminals: list[Message] = []

    @rule(ms=st.integers(0, 900))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms if not self.to_asker and not self.to_provider else 0

    @precondition(lambda self: self.asker.state is State.IDLE)
    @rule(size=st.sampled_from([0, 10, 300]))
    def ask(self, size: int) -> None:
        self.to_provider += self.asker.send(TaskRequest(input={"x": "y" * size}), self.now_ms)

    @precondition(lambda self: self.asker.state in OWING)
    @rule()
    def cancel(self) -> None:
        self.to_provider += self.asker.send(TaskRequest(operation="cancel"), self.now_ms)

    @precondition(lambda self: self.provider.state in OWING)
    @rule(pieces=st.lists(st.text(max_size=3), max_size=3))
    def answer(self, pieces: list[str]) -> None:
        update = StatusUpdate(first_piece=len(self.sent), pieces=tuple(pieces))
        self.to_asker += self.provider.send(update, self.now_ms)
        self.sent += pieces

    @precondition(lambda self: self.provider.state in OWING)
    @rule()
    def complete(self) -> None:
        self.to_asker += self.provider.send(TaskResponse(pieces_total=len(self.sent)), self.now_ms)

    @precondition(lambda self: self.provider.state is State.CANCELING)
    @rule()
    def end_canceled(self) -> None:
        self.to_asker += self.provider.send(TaskResponse("canceled", pieces_total=len(self.sent)), self.now_ms)

    @precondition(lambda self: self.provider.state in OWING)
    @rule()
    def fail(self) -> None:
        self.to_asker += self.provider.send(ErrorReport("ENGINE_CRASHED", "it died"), self.now_ms)

    @precondition(lambda self: self.to_provider)
    @rule(size=st.integers(1, 2000))
    def deliver_to_provider(self, size: int) -> None:
        self.provider.receive(bytes(self.to_provider[:size]), self.now_ms)
        del self.to_provider[:size]

    @precondition(lambda self: self.to_asker)
    @rule(size=st.integers(1, 2000))
    def deliver_to_asker(self, size: int) -> None:
        for event in self.asker.receive(bytes(self.to_asker[:size]), self.now_ms):
            if isinstance(event.message, StatusUpdate):
                self.came += event.message.pieces
            else:
                self.terminals.append(event.message)
        del self.to_asker[:size]

    @invariant()
    def nobody_sees_a_fault(self) -> None:
        assert self.asker.fault is None
        assert self.provider.fault is None

    @invariant()
    def pieces_come_in_order_and_once(self) -> None:
        assert self.came == self.sent[: len(self.came)]

    @invariant()
    def there_is_one_terminal_frame(self) -> None:
        assert len(self.terminals) <= 1
        assert self.asker.closed == bool(self.terminals)

    @invariant()
    def the_ends_agree_once_all_is_delivered(self) -> None:
        if not self.to_asker and not self.to_provider:
            assert self.asker.state == self.provider.state
            assert self.asker.terminal == self.provider.terminal
            assert self.came == self.sent
            # A provider that ended the task early drops what was still coming of the input.
            assert self.provider.input == self.asker.input or (self.provider.closed and self.provider.input is None)

    @invariant()
    def the_clocks_belong_to_open_tasks(self) -> None:
        owing = self.provider.state in OWING
        assert (self.provider.next_heartbeat_ms(self.now_ms) is not None) == owing
        assert (self.provider.drain_left_ms(self.now_ms) is not None) == (self.provider.state is State.CANCELING)


HonestEnds.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestHonestEnds = HonestEnds.TestCase

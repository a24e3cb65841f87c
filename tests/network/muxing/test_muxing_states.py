"""The table of states: every pair of state and step, and what each state still lets happen."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from octonode.network.libp2p.muxing.session import READ, WRITE
from octonode.network.libp2p.muxing.streams import RECEIVING, SENDING, TRANSITIONS, State, Step, YamuxStream
from octonode.network.libp2p.muxing.windows import Limits
from tests.network.muxing.ends import (
    ACK,
    DATA,
    FIN,
    INITIAL,
    RST,
    START,
    SYN,
    UPDATE,
    Ends,
    Frame,
    data,
    drain,
    frames_of,
    opened,
    update,
    woken,
)

O, F, P, C, R, L = (State.OPEN, State.FINISHED, State.PEER_FINISHED, State.CLOSED, State.RESET, State.LOST)  # noqa: E741
EXPECTED = {
    #   SENT_FIN, GOT_FIN, RST, LOSS; the state itself: nothing changes
    O: (F, P, R, L),
    F: (F, C, R, L),
    P: (C, P, R, C),
    C: (C, C, R, C),
    R: (R, R, R, R),
    L: (L, L, R, L),
}
PAIRS = [(state, step, target) for state, row in EXPECTED.items() for step, target in zip(Step, row, strict=True)]


@pytest.mark.parametrize(("state", "step", "target"), PAIRS, ids=lambda each: each.name)
def test_every_state_and_step(state: State, step: Step, target: State) -> None:
    stream = YamuxStream(1, 0, START)
    stream.state = state
    assert stream.move(step) is (target is not state)
    assert stream.state is target


def test_the_table_names_every_state_and_nothing_else() -> None:
    assert set(TRANSITIONS) == set(State) == set(EXPECTED)
    assert {F, C}.isdisjoint(SENDING)
    assert {P, C, R, L}.isdisjoint(RECEIVING)


class Row(NamedTuple):
    """What a state lets happen."""

    state: State
    may_send: bool
    """We may write."""
    takes_data: bool
    """Data that the peer sends is kept, and credited."""
    keeps_unread: bool
    """What came before and was not read can still be read."""
    reset_is_said: bool
    """Our reset puts a RST on the wire."""


ROWS = [
    Row(O, True, True, True, True),
    Row(F, False, True, True, True),
    Row(P, True, False, True, True),
    Row(C, False, False, True, False),
    Row(R, False, False, False, False),
    Row(L, False, False, True, False),
]


@pytest.fixture(params=ROWS, ids=lambda row: row.state.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


def test_what_may_be_sent(ends: Ends, row: Row) -> None:
    mine, _ = ends.in_state(row.state)
    assert mine.may_send is row.may_send
    ends.initiator.finish(mine)
    said = frames_of(drain(ends.initiator))
    assert said == ([Frame(UPDATE, FIN, 1, 0)] if row.may_send else [])
    assert not mine.may_send


def test_what_may_be_received(ends: Ends, row: Row) -> None:
    mine, _ = ends.in_state(row.state)
    ends.initiator.receive(data(1, b" more"), ends.now)
    expected = b"unread more" if row.takes_data else b"unread" if row.state is L else b""
    assert bytes(mine.received) == expected


def test_what_can_still_be_read(ends: Ends, row: Row) -> None:
    mine, _ = ends.in_state(row.state)
    assert ends.initiator.take(mine, 3, ends.now) == (b"unr" if row.keeps_unread else b"")
    assert ends.initiator.take(mine, 99, ends.now) == (b"ead" if row.keeps_unread else b"")
    assert ends.initiator.streams.get(1) is (None if row.state in (C, R, L) else mine)
    assert row.state is L or ends.initiator.received_bytes == 0


def test_our_reset_in_every_state(ends: Ends, row: Row) -> None:
    mine, theirs = ends.in_state(row.state)
    ends.initiator.reset(mine)
    said = drain(ends.initiator)
    assert frames_of(said) == ([Frame(UPDATE, RST, 1, 0)] if row.reset_is_said else [])
    assert (mine.state, bytes(mine.received), mine.pending_bytes) == (R, b"", 0)
    assert ends.initiator.streams == {}
    if row.reset_is_said:
        assert woken(ends.responder.receive(said, ends.now), theirs) == READ | WRITE
        assert theirs.state is R


@pytest.mark.parametrize("wire", [update(1, flags=RST), data(1, b"", RST), data(1, b"last", RST | FIN)])
def test_the_peers_reset_in_every_state(ends: Ends, row: Row, wire: bytes) -> None:
    mine, _ = ends.in_state(row.state)
    events = ends.initiator.receive(wire, ends.now)
    assert mine.state is (L if row.state is L else R)
    assert woken(events, mine) == (0 if row.state in (R, L) else READ | WRITE)
    assert bytes(mine.received) == (b"unread" if row.state is L else b"")
    assert ends.initiator.streams == {}
    data_after_fin = row.state in (P, C) and b"last" in wire
    assert data_after_fin or drain(ends.initiator) == b""


def test_fin_both_ways_ends_a_stream_at_both_ends(ends: Ends) -> None:
    mine, theirs = ends.pair()
    ends.initiator.finish(mine)
    ends.carry(ends.initiator)
    assert (mine.state, theirs.state) == (F, P)
    ends.responder.send(theirs, b"the answer")
    ends.responder.finish(theirs)
    ends.carry(ends.responder)
    assert (mine.state, theirs.state) == (C, C)
    assert ends.responder.streams == {}
    assert ends.initiator.streams == {1: mine}, "its bytes are not read yet"
    assert ends.initiator.take(mine, 100, ends.now) == b"the answer"
    assert ends.initiator.streams == {}


def test_fins_that_cross(ends: Ends) -> None:
    mine, theirs = ends.pair()
    ends.initiator.finish(mine)
    ends.responder.finish(theirs)
    ends.settle()
    assert (mine.state, theirs.state) == (C, C)
    assert ends.initiator.streams == ends.responder.streams == {}


def test_a_second_fin_changes_nothing(ends: Ends) -> None:
    mine, _ = ends.in_state(P)
    assert woken(ends.initiator.receive(update(1, flags=FIN) + data(1, b"", FIN), ends.now), mine) == 0
    assert mine.state is P
    assert ends.initiator.take(mine, 99, ends.now) == b"unread"


def test_data_after_its_fin_resets_that_stream_only(ends: Ends) -> None:
    mine, theirs = ends.in_state(P)
    other, their_other = ends.pair()
    ends.responder.send(their_other, b"goes on")
    events = ends.initiator.receive(data(1, b"!") + drain(ends.responder), ends.now)
    assert woken(events, mine) == READ | WRITE
    assert mine.state is R
    assert ends.initiator.take(other, 99, ends.now) == b"goes on"
    assert frames_of(drain(ends.initiator)) == [Frame(UPDATE, RST, 1, 0)]
    assert theirs.state is F


def test_window_updates_after_fin_are_taken(ends: Ends) -> None:
    """The peer has finished, and reads on."""
    mine, theirs = ends.in_state(P)
    ends.initiator.send(mine, bytes(mine.send_window + 10))
    ends.responder.receive(drain(ends.initiator), ends.now)
    assert (mine.send_window, mine.pending_bytes) == (0, 10)
    ends.responder.take(theirs, INITIAL * 4, ends.now)
    ends.settle()
    assert mine.pending_bytes == 0
    assert len(theirs.received) == 10


def test_credit_for_what_is_over_is_skipped(ends: Ends, row: Row) -> None:
    mine, _ = ends.in_state(row.state)
    assert woken(ends.initiator.receive(update(1, 4096), ends.now), mine) == 0
    assert mine.state is row.state


@pytest.mark.parametrize("flags", [0, ACK, FIN, RST, ACK | FIN])
def test_frames_for_streams_that_are_over_are_skipped(ends: Ends, flags: int) -> None:
    """The peer did not know yet: its bytes are read over, and what follows is understood."""
    mine, _ = ends.in_state(R)
    other, _ = ends.pair()
    wire = data(1, b"too late", flags) + update(1, 77, flags) + data(1, b"", flags) + data(other.id, b"in time")
    events = ends.initiator.receive(wire, ends.now)
    assert (woken(events, mine), woken(events, other)) == (0, READ)
    assert bytes(other.received) == b"in time"
    assert ends.initiator.received_bytes == len(b"in time")
    assert drain(ends.initiator) == b""


def test_syn_with_fin_or_rst(ends: Ends) -> None:
    events = ends.responder.receive(update(1, flags=SYN | FIN) + data(3, b"", SYN | RST), ends.now)
    first, second = opened(events)
    assert (first.state, second.state) == (P, R)
    assert ends.responder.streams == {1: first}
    assert woken(events, second) == READ | WRITE
    ends.responder.send(first, b"fine")
    ends.responder.finish(first)
    said = frames_of(drain(ends.responder))
    assert [frame.flags & (ACK | FIN) for frame in said if frame.stream_id == 1 and frame.flags] == [ACK, FIN]
    assert ends.responder.streams == {}


def test_a_reset_in_the_middle_of_a_frame_skips_its_rest(ends: Ends) -> None:
    mine, _ = ends.pair()
    wire = data(1, b"first half, second half", FIN)
    ends.initiator.receive(wire[:20], ends.now)
    ends.initiator.reset(mine)
    ends.initiator.receive(wire[20:] + update(1, 5), ends.now)
    assert (mine.state, bytes(mine.received), ends.initiator.received_bytes) == (R, b"", 0)
    assert frames_of(drain(ends.initiator)) == [Frame(UPDATE, RST, 1, 0)]


def test_a_late_reset_of_a_stream_that_is_over_leaves_its_successor_alone(ends: Ends) -> None:
    """A peer may use the number of a stream again that it reset; our handler of the first comes to its end later."""
    (first,) = opened(ends.responder.receive(data(1, b"one", SYN) + update(1, flags=RST), ends.now))
    (second,) = opened(ends.responder.receive(data(1, b"two", SYN), ends.now))
    ends.responder.reset(first)
    assert ends.responder.streams == {1: second}
    assert ends.responder.received_bytes == 3
    ends.responder.acknowledge_silent(ends.now + 5)
    ends.responder.receive(data(1, b"+"), ends.now)
    assert ends.responder.take(second, 99, ends.now) == b"two+"


def test_what_comes_after_the_loss_opens_nothing(ends: Ends) -> None:
    """The reader of the socket may have had it in hand as the writer found the connection gone."""
    ends.responder.lose()
    assert ends.responder.receive(data(1, b"hello?", SYN), ends.now) == []
    assert ends.responder.streams == {}


def test_the_loss_ends_every_stream_and_tells_everybody(ends: Ends) -> None:
    (mine, _), (closed, their_closed) = ends.pair(), ends.pair()
    ends.responder.send(their_closed, b"whole")
    ends.responder.finish(their_closed)
    ends.initiator.finish(closed)
    ends.settle()
    ends.initiator.send(mine, bytes(100))
    events = ends.initiator.lose()
    assert woken(events, mine) == woken(events, closed) == READ | WRITE
    assert (mine.state, mine.pending_bytes) == (L, 0)
    assert closed.state is C, "both ends had finished: it reads to its end"
    assert ends.initiator.take(closed, 99, ends.now) == b"whole"
    assert not ends.initiator.may_open


@pytest.mark.parametrize("window_bytes_max", [INITIAL, 4 * INITIAL])
def test_an_end_is_said_in_a_frame_of_its_own(window_bytes_max: int) -> None:
    """py-libp2p 0.8.1 reads no other flag beside ACK, and its reader would wait for the FIN for ever."""
    ends = Ends(Limits(window_bytes_max=window_bytes_max))
    wire = data(1, b"?", SYN) + update(3, flags=SYN)
    answered, unanswered = opened(ends.responder.receive(wire, ends.now))
    ends.responder.send(answered, b"!")
    ends.responder.finish(answered)
    ends.responder.finish(unanswered)
    said = frames_of(drain(ends.responder))
    assert all(frame.flags in (0, ACK, FIN) for frame in said)
    assert [frame.flags for frame in said if frame.stream_id == 3] == [ACK, FIN]
    assert [frame.body for frame in said if frame.kind == DATA] == [b"!"]
    assert Frame(UPDATE, FIN, 1, 0) in said

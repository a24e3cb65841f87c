"""What a peer can make us hold and say, and what it cannot."""

from __future__ import annotations

import pytest

from octonode.network.libp2p.muxing.frames import MuxerError
from octonode.network.libp2p.muxing.session import READ, WRITE, Session
from octonode.network.libp2p.muxing.streams import State
from octonode.network.libp2p.muxing.windows import ACK_CREDIT_BYTES, Limits
from scripts.fuzz_targets import check
from tests.network.muxing.ends import (
    ACK,
    DATA,
    FIN,
    INITIAL,
    LONG,
    PING,
    RST,
    START,
    SYN,
    UPDATE,
    Ends,
    Frame,
    data,
    drain,
    frames_of,
    held,
    opened,
    update,
    woken,
)

KIB = 1024


def responder(**limits: int) -> Session:
    return Session(is_initiator=False, limits=Limits(**limits))


# What waits to be read.


def test_the_fullest_is_reset_and_the_others_go_on() -> None:
    session = responder(received_bytes_max=INITIAL)
    slow, fullest, quick = opened(
        session.receive(update(1, flags=SYN) + update(3, flags=SYN) + update(5, flags=SYN), 0)
    )
    session.receive(data(1, bytes(100 * KIB)) + data(3, bytes(150 * KIB)), 0)
    events = session.receive(data(5, bytes(10 * KIB)), 0)
    assert woken(events, fullest) == READ | WRITE
    assert (fullest.state, bytes(fullest.received)) == (State.RESET, b"")
    assert (len(slow.received), len(quick.received)) == (100 * KIB, 10 * KIB)
    assert frames_of(drain(session)) == [Frame(UPDATE, RST, 3, 0)]
    session.receive(data(3, bytes(5 * KIB)) + data(1, b"goes on"), 0)
    assert session.take(slow, INITIAL, 0).endswith(b"goes on")
    assert held(session) == session.received_bytes == 10 * KIB


def test_a_stream_may_be_reset_by_its_own_data() -> None:
    session = responder(received_bytes_max=INITIAL)
    one, other = opened(session.receive(update(1, flags=SYN) + update(3, flags=SYN), 0))
    session.receive(data(3, bytes(100 * KIB)), 0)
    session.receive(data(1, bytes(200 * KIB), FIN), 0)
    assert (one.state, other.state) == (State.RESET, State.OPEN)
    assert held(session) == session.received_bytes == 100 * KIB


def test_many_readers_that_stop_hold_no_more_than_the_bound() -> None:
    session = responder(received_bytes_max=2 * INITIAL)
    for number in range(200):
        stream_id = 2 * number + 1
        session.receive(update(stream_id, flags=SYN), 0)
        for _ in range(4):
            session.receive(data(stream_id, bytes(20 * KIB)), 0)
            check(session)
    assert held(session) == session.received_bytes <= 2 * INITIAL
    alive = [row for row in session.streams.values() if row.received]
    assert len(alive) >= 5
    for row in alive:
        session.take(row, INITIAL, 0)
    assert session.received_bytes == 0


def test_what_both_have_finished_and_nobody_read_counts_too() -> None:
    session = responder(received_bytes_max=INITIAL)
    for stream_id in (1, 3):
        (row,) = opened(session.receive(data(stream_id, bytes(120 * KIB), SYN | FIN), 0))
        session.finish(row)
        drain(session)
        assert row.state is State.CLOSED
    session.receive(data(5, bytes(50 * KIB), SYN), 0)
    check(session)
    assert len(session.streams) == 2
    assert drain(session) == b"", "its peer has forgotten the stream that was cut"


# Windows.


def test_windows_grow_within_one_budget() -> None:
    ends = Ends(Limits(received_bytes_max=2 * INITIAL, window_bytes_max=16 * INITIAL))
    rows = [ends.pair() for _ in range(6)]
    for turn in range(40):
        for mine, theirs in rows:
            ends.responder.send(theirs, bytes(theirs.send_window))
            ends.carry(ends.responder)
            ends.initiator.take(mine, 100 * INITIAL, ends.now + turn / 1000)
            ends.carry(ends.initiator)
            check(ends.initiator)
            check(ends.responder)
    grown = sum(mine.window - INITIAL for mine, _ in rows)
    assert grown == 2 * INITIAL, "all of the budget is used, and no more"
    for mine, _ in rows:
        ends.initiator.reset(mine)
    ends.settle()
    for end in (ends.initiator, ends.responder):
        assert end._budget.left_bytes == 2 * INITIAL
        assert end.streams == {}


def test_the_credit_of_acks_is_within_the_budget_and_comes_back() -> None:
    session = responder(received_bytes_max=4 * INITIAL)
    rows = opened(session.receive(b"".join(update(2 * number + 1, flags=SYN) for number in range(5)), 0))
    for row in rows:
        session.outbox.credit(row, 0)
    granted = [frame.length for frame in frames_of(drain(session))]
    assert granted == [ACK_CREDIT_BYTES, 4 * INITIAL - ACK_CREDIT_BYTES, 0, 0, 0]
    assert [row.receive_window - INITIAL for row in rows] == granted
    session.reset(rows[0])
    (late,) = opened(session.receive(update(99, flags=SYN), 0))
    session.outbox.credit(late, 0)
    assert late.window == INITIAL + ACK_CREDIT_BYTES
    check(session)


def test_a_window_is_kept_to_the_byte() -> None:
    session = responder()
    (row,) = opened(session.receive(data(1, bytes(INITIAL - 1), SYN) + data(1, b"!"), 0))
    assert row.receive_window == 0
    session.receive(data(1, b"") + update(1, flags=FIN), 0)
    (late,) = opened(session.receive(update(3, flags=SYN), 0))
    with pytest.raises(MuxerError):
        session.receive(Frame(DATA, 0, 3, INITIAL + 1).wire, 0)
    assert late.received == b""


def test_a_reader_that_trickles_is_credited_by_halves() -> None:
    """No frame a byte: 24 updates for three megabytes taken 1,000 bytes at a time."""
    ends = Ends()
    mine, theirs = ends.pair()
    updates = 0
    ends.now += LONG
    for _ in range(24):
        ends.responder.send(theirs, bytes(128 * KIB))
        ends.carry(ends.responder)
        while ends.initiator.take(mine, 1000, ends.now):
            pass
        ends.now += LONG
        said = drain(ends.initiator)
        updates += len(frames_of(said))
        ends.responder.receive(said, ends.now)
    assert updates == 24
    assert mine.window == INITIAL


# What we are made to say.


def test_pings_while_nothing_is_sent_end_the_session() -> None:
    session = responder(control_bytes_max=1200)
    ping = Frame(PING, SYN, 0, 7).wire
    session.receive(100 * ping, 0)
    with pytest.raises(MuxerError):
        session.receive(ping, 0)
    assert len(session.outbox._control) == 1200


def test_pings_that_are_answered_may_go_on() -> None:
    session = responder(control_bytes_max=1200)
    for _ in range(50):
        session.receive(90 * Frame(PING, SYN, 0, 7).wire, 0)
        assert len(frames_of(drain(session))) == 90


@pytest.mark.parametrize("size", [0, 1])
def test_streams_above_the_maximum_are_refused_with_rst(size: int) -> None:
    session = responder(streams_max=10)
    wire = b"".join(data(2 * number + 1, bytes(size), SYN) for number in range(25))
    assert len(opened(session.receive(wire, 0))) == 10
    said = frames_of(drain(session))
    assert said == [Frame(UPDATE, RST, 2 * number + 1, 0) for number in range(10, 25)]
    assert session.received_bytes == 10 * size


def test_refusals_that_nobody_reads_end_the_session() -> None:
    session = responder(streams_max=1, control_bytes_max=1200)
    session.receive(update(1, flags=SYN), 0)
    with pytest.raises(MuxerError):
        session.receive(b"".join(update(2 * number + 3, flags=SYN) for number in range(101)), 0)
    assert len(session.outbox._control) == 1200


def test_refusals_by_our_own_side_that_nobody_reads_end_the_session() -> None:
    """The shell above resets what it takes no more (`unaccepted_max`): that must not fill memory either."""
    session = responder(control_bytes_max=1200)
    number = 0
    with pytest.raises(MuxerError):  # noqa: PT012
        while number < 1000:
            number += 1
            for row in opened(session.receive(update(2 * number + 1, flags=SYN), 0)):
                session.reset(row)
    assert number == 101


def test_resets_for_data_after_fin_that_nobody_reads_end_the_session() -> None:
    session = responder(control_bytes_max=1200)
    fault = update(1, flags=SYN | FIN) + data(1, b"!")
    with pytest.raises(MuxerError):
        session.receive(1000 * fault, 0)
    assert len(session.outbox._control) <= 1212


def test_acks_that_nobody_reads_end_the_session() -> None:
    """Open, wait for the ACK, cut, again: twelve bytes of ours for each turn."""
    session = responder(control_bytes_max=1200)
    turns = 0
    with pytest.raises(MuxerError):  # noqa: PT012
        while turns < 1000:
            session.receive(update(1, flags=SYN), turns)
            session.acknowledge_silent(turns + 1)
            session.receive(update(1, flags=RST), turns + 1)
            turns += 1
    assert turns == 100


# Streams that nobody has.


def test_data_for_streams_that_are_not_open_is_skipped_within_the_largest_window() -> None:
    session = responder(window_bytes_max=INITIAL)
    session.receive(data(7, bytes(INITIAL)) * 3 + data(8, bytes(INITIAL)), 0)
    assert (session.received_bytes, session.streams, drain(session)) == (0, {}, b"")
    with pytest.raises(MuxerError):
        session.receive(Frame(DATA, 0, 7, INITIAL + 1).wire, 0)


def test_a_silent_stream_that_ends_needs_no_ack() -> None:
    session = responder()
    session.receive(update(1, flags=SYN) + update(1, flags=RST), START)
    session.acknowledge_silent(START + 100)
    assert drain(session) == b""
    assert session._silent == {}


def test_our_streams_that_were_never_acknowledged_are_counted_down_as_they_end() -> None:
    ends = Ends()
    rows = [ends.initiator.open(START) for _ in range(5)]
    for row in rows[:3]:
        ends.initiator.outbox.announce(row)
    theirs = opened(ends.carry(ends.initiator))
    assert ends.initiator.unacknowledged == 5
    ends.initiator.reset(rows[0])
    ends.initiator.reset(rows[4])
    ends.responder.reset(theirs[1])
    ends.carry(ends.responder)
    assert ends.initiator.unacknowledged == 2
    ends.initiator.receive(update(rows[2].id, flags=ACK) * 2, START)
    assert ends.initiator.unacknowledged == 1
    check(ends.initiator)

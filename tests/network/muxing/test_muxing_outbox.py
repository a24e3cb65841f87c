"""Who goes first: control frames, then streams in equal turns; and who is told that there is room again."""

from __future__ import annotations

from collections import Counter

import pytest

from octonode.network.libp2p.muxing.outbox import MESSAGE_BYTES_MAX, SHARE_BYTES
from octonode.network.libp2p.muxing.session import Session
from octonode.network.libp2p.muxing.streams import YamuxStream
from octonode.network.libp2p.muxing.windows import Limits
from tests.network.muxing.ends import ACK, DATA, INITIAL, PING, START, SYN, UPDATE, data, drain, frames_of, opened

MIB = 1024 * 1024


@pytest.fixture
def session() -> Session:
    return Session(is_initiator=True)


def streams(session: Session, count: int, each_bytes: int = 0) -> list[YamuxStream]:
    rows = [session.open(START) for _ in range(count)]
    for row in rows:
        row.send_window = 64 * MIB
        session.send(row, bytes(each_bytes))
    return rows


def shares(message: bytes) -> Counter[int]:
    """Bytes of data for each stream."""
    counted: Counter[int] = Counter()
    for frame in frames_of(message):
        if frame.kind == DATA:
            counted[frame.stream_id] += frame.length
    return counted


def test_one_stream_alone_fills_the_message(session: Session) -> None:
    streams(session, 1, 4 * MIB)
    message = session.outbox.next_message()
    assert MESSAGE_BYTES_MAX - 24 <= len(message) <= MESSAGE_BYTES_MAX
    assert len(frames_of(message)) == 1


def test_a_small_stream_is_in_the_next_message_beside_megabytes(session: Session) -> None:
    bulk, small = streams(session, 2)
    session.send(bulk, bytes(8 * MIB))
    session.outbox.next_message()
    session.send(small, bytes(100))
    message = session.outbox.next_message()
    assert shares(message)[small.id] == 100
    assert shares(message)[bulk.id] > MESSAGE_BYTES_MAX - 1000, "and the rest of the message is not wasted"


def test_a_small_stream_waits_for_one_share_of_each_other(session: Session) -> None:
    """With nine bulk streams ahead of it, it comes after at most nine shares."""
    streams(session, 9, 4 * MIB)
    session.outbox.next_message()
    (small,) = streams(session, 1, 100)
    ahead = 0
    while small.id not in (got := shares(session.outbox.next_message())):
        ahead += sum(got.values())
    assert ahead <= 9 * SHARE_BYTES


@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_shares_are_equal_over_many_streams(session: Session, count: int) -> None:
    streams(session, count, 4 * MIB)
    total: Counter[int] = Counter()
    for _ in range(10 * count):
        total += shares(session.outbox.next_message())
    assert len(total) == count
    assert max(total.values()) - min(total.values()) <= 2 * SHARE_BYTES


def test_every_stream_ends_whatever_the_sizes(session: Session) -> None:
    sizes = {row.id: 1000 * at * at for at, row in enumerate(streams(session, 30))}
    for row_id, size in sizes.items():
        session.send(session.streams[row_id], bytes(size))
        session.finish(session.streams[row_id])
    total: Counter[int] = Counter()
    while message := session.outbox.next_message():
        total += shares(message)
    assert total == Counter(sizes) - Counter()
    assert session.outbox.is_empty


def test_control_goes_before_all_data(session: Session) -> None:
    streams(session, 3, MIB)
    session.ping(1)
    session.ping(2)
    frames = frames_of(session.outbox.next_message())
    assert [(frame.kind, frame.length) for frame in frames[:2]] == [(PING, 1), (PING, 2)]
    assert all(frame.kind == DATA for frame in frames[2:])
    assert len(frames) > 3, "and data fills the rest"


@pytest.mark.parametrize("size_max", [37, 38, 49, 100, 1000, MESSAGE_BYTES_MAX])
def test_messages_hold_whole_frames_within_any_size(session: Session, size_max: int) -> None:
    rows = streams(session, 3, 1500)
    for row in rows:
        session.finish(row)
    for value in range(20):
        session.ping(value)
    parts = []
    while message := session.outbox.next_message(size_max):
        assert len(message) <= size_max
        frames_of(message)
        parts.append(message)
    assert shares(b"".join(parts)) == {row.id: 1500 for row in rows}
    assert session.outbox.is_empty


def test_a_stream_without_window_holds_nobody_up(session: Session) -> None:
    shut, other = streams(session, 2)
    shut.send_window = 10
    session.send(shut, bytes(100))
    session.send(other, bytes(100))
    assert shares(drain(session)) == {shut.id: 10, other.id: 100}
    assert session.outbox.is_empty, "nothing can go"


def test_what_a_message_takes_from_a_stream_is_in_order_over_all_pieces(session: Session) -> None:
    row, _ = streams(session, 2, 1)
    drain(session)
    text = bytes(range(256)) * 300
    for at in range(0, len(text), 777):
        session.send(row, text[at : at + 777])
    wire = b"".join(iter(lambda: session.outbox.next_message(1000), b""))
    assert b"".join(frame.body for frame in frames_of(wire)) == text


def test_writers_are_told_once_there_is_room_again() -> None:
    session = Session(is_initiator=True, limits=Limits(pending_bytes_max=100_000))
    row, small = streams(session, 2)
    session.send(small, b"never had to wait")
    session.send(row, bytes(150_000))
    told = []
    while session.outbox.next_message(20_000):
        told.append((row.pending_bytes, [each.id for each in session.outbox.relieved]))
        session.outbox.relieved = []
    crossed = [pending for pending, rows in told if rows]
    assert [rows for _, rows in told if rows] == [[row.id]], "once, and the other never"
    assert 80_000 < crossed[0] < 100_000, "as soon as it crosses the bound"


def test_a_stream_that_is_cut_leaves_no_trace_in_the_outbox(session: Session) -> None:
    """What says that it holds something must give it: an empty message would end a connection of py-libp2p."""
    row = streams(session, 1, 100)[0]
    session.reset(row)
    assert session.outbox.is_empty
    assert session.outbox.next_message() == b""


def test_credit_and_a_cut_in_one_message_leave_nothing_to_say(session: Session) -> None:
    """A peer that reads for a while and then gives up: our writer was waiting for its window."""
    (row,) = streams(session, 1)
    row.send_window = INITIAL
    session.send(row, bytes(INITIAL + 1000))
    drain(session)
    assert row.pending_bytes == 1000
    session.receive(bytes.fromhex("00 01 0000 00000001 00020000 00 01 0008 00000001 00000000"), START)
    assert session.outbox.is_empty


def test_the_peer_cannot_fill_the_ring_with_streams_that_are_over() -> None:
    session = Session(is_initiator=False)
    for number in range(2000):
        (row,) = opened(session.receive(data(2 * number + 1, b"?", SYN), START))
        session.send(row, b"an answer that nobody reads")
        session.receive(bytes.fromhex(f"00 01 0008 {row.id:08x} 00000000"), START)
    assert session.outbox.is_empty


def test_credit_goes_with_the_ack_in_one_frame() -> None:
    """A reader that takes much before anything is said: the window update is the ACK as well."""
    session = Session(is_initiator=False)
    (row,) = opened(session.receive(data(1, bytes(INITIAL), SYN), START))
    session.take(row, INITIAL, START + 1000)
    (frame,) = frames_of(drain(session))
    assert (frame.kind, frame.flags, frame.stream_id) == (UPDATE, ACK, 1)
    assert frame.length == row.receive_window == row.window == INITIAL + 768 * 1024

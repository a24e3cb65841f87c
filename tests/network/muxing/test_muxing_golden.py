"""The bytes of the wire, written down by hand from https://github.com/libp2p/specs/blob/master/yamux/README.md."""

from __future__ import annotations

import pytest

from octonode.errors import Refused, Unreachable
from octonode.network.libp2p.muxing import frames
from octonode.network.libp2p.muxing.frames import MuxerError
from octonode.network.libp2p.muxing.session import READ, WRITE, Changed, Opened, Pong, Session, WentAway
from octonode.network.libp2p.muxing.streams import State
from octonode.network.libp2p.muxing.windows import Limits
from tests.network.muxing.ends import INITIAL, LONG, START, Ends, drain, opened

SYN_HELLO = bytes.fromhex("00 00 0001 00000001 00000005") + b"hello"
SYN_ALONE = bytes.fromhex("00 01 0001 00000001 00000000")
ACK_CREDIT = bytes.fromhex("00 01 0002 00000001 000c0000")  # 768 KiB
FIN_ALONE = bytes.fromhex("00 01 0004 00000001 00000000")
RST_ALONE = bytes.fromhex("00 01 0008 00000001 00000000")
HALF_WINDOW = bytes.fromhex("00 01 0000 00000001 00020000")  # 128 KiB


@pytest.fixture
def initiator() -> Session:
    return Session(is_initiator=True)


@pytest.fixture
def responder() -> Session:
    return Session(is_initiator=False)


# What we say.


def test_the_first_data_of_a_stream_opens_it(initiator: Session) -> None:
    stream = initiator.open(START)
    assert drain(initiator) == b""
    initiator.send(stream, b"hello")
    initiator.send(stream, b"again")
    assert drain(initiator) == bytes.fromhex("00 00 0001 00000001 0000000a") + b"helloagain"
    initiator.send(stream, b"!")
    assert drain(initiator) == bytes.fromhex("00 00 0000 00000001 00000001") + b"!"


def test_the_second_stream_of_the_initiator_is_3_and_the_first_of_the_responder_2(
    initiator: Session, responder: Session
) -> None:
    assert [initiator.open(START).id, initiator.open(START).id] == [1, 3]
    assert [responder.open(START).id, responder.open(START).id] == [2, 4]


def test_a_stream_may_be_announced_before_anything_is_sent(initiator: Session) -> None:
    stream = initiator.open(START)
    initiator.outbox.announce(stream)
    initiator.outbox.announce(stream)
    assert drain(initiator) == SYN_ALONE
    initiator.outbox.announce(stream)
    assert drain(initiator) == b""


def test_fin_comes_after_the_last_data_in_a_frame_of_its_own(initiator: Session) -> None:
    stream = initiator.open(START)
    initiator.send(stream, b"hello")
    initiator.finish(stream)
    assert drain(initiator) == SYN_HELLO + FIN_ALONE
    initiator.finish(stream)
    assert drain(initiator) == b""


def test_fin_waits_for_what_the_window_holds_back(initiator: Session) -> None:
    stream = initiator.open(START)
    initiator.send(stream, bytes(INITIAL + 1))
    initiator.finish(stream)
    assert not drain(initiator).endswith(FIN_ALONE)
    initiator.receive(bytes.fromhex("00 01 0000 00000001 00000001"), START)
    assert drain(initiator) == bytes.fromhex("00 00 0000 00000001 00000001") + b"\0" + FIN_ALONE


def test_a_stream_that_is_finished_unused_is_opened_and_ended(initiator: Session) -> None:
    initiator.finish(initiator.open(START))
    assert drain(initiator) == SYN_ALONE + FIN_ALONE


def test_rst(initiator: Session) -> None:
    stream = initiator.open(START)
    initiator.send(stream, b"hello")
    drain(initiator)
    initiator.send(stream, b"never sent")
    initiator.reset(stream)
    initiator.reset(stream)
    assert drain(initiator) == RST_ALONE


def test_a_stream_that_the_peer_never_heard_of_is_reset_without_a_word(initiator: Session) -> None:
    stream = initiator.open(START)
    initiator.send(stream, b"never sent")
    initiator.reset(stream)
    assert drain(initiator) == b""
    assert initiator.outbox.is_empty


def test_ping_and_its_answer(initiator: Session, responder: Session) -> None:
    initiator.ping(0xA1B2C3D4)
    ping = drain(initiator)
    assert ping == bytes.fromhex("00 02 0001 00000000 a1b2c3d4")
    assert responder.receive(ping, START) == []
    pong = drain(responder)
    assert pong == bytes.fromhex("00 02 0002 00000000 a1b2c3d4")
    assert initiator.receive(pong, START) == [Pong(0xA1B2C3D4)]
    assert drain(initiator) == b""


@pytest.mark.parametrize("code", [frames.NORMAL, frames.PROTOCOL_ERROR, frames.INTERNAL_ERROR])
def test_go_away(initiator: Session, responder: Session, code: int) -> None:
    initiator.go_away(code)
    initiator.go_away(code)
    words = drain(initiator)
    assert words == bytes.fromhex(f"00 03 0000 00000000 0000000{code}")
    assert responder.receive(words + words, START) == [WentAway(code)]
    assert responder.went_away == code
    for end in (initiator, responder):
        with pytest.raises(Unreachable):
            end.open(START)


def test_the_ack_brings_credit_and_comes_before_the_first_answer(responder: Session) -> None:
    (stream,) = opened(responder.receive(SYN_HELLO, START))
    responder.send(stream, b"hi")
    assert drain(responder) == ACK_CREDIT + bytes.fromhex("00 00 0000 00000001 00000002") + b"hi"


def test_the_ack_of_a_silent_stream_comes_by_itself_after_a_second(responder: Session) -> None:
    responder.receive(SYN_ALONE, START)
    responder.acknowledge_silent(START + 0.99)
    assert drain(responder) == b""
    responder.acknowledge_silent(START + 1)
    assert drain(responder) == ACK_CREDIT
    responder.acknowledge_silent(START + 9)
    assert drain(responder) == b""


def test_without_credit_to_give_the_ack_goes_with_the_data() -> None:
    responder = Session(is_initiator=False, limits=Limits(window_bytes_max=INITIAL))
    (stream,) = opened(responder.receive(SYN_ALONE, START))
    responder.send(stream, b"hi")
    assert drain(responder) == bytes.fromhex("00 00 0002 00000001 00000002") + b"hi"


def test_half_a_window_read_is_credited(initiator: Session) -> None:
    stream = initiator.open(START)
    initiator.outbox.announce(stream)
    drain(initiator)
    initiator.receive(bytes.fromhex("00 00 0002 00000001 00040000") + bytes(INITIAL), START)
    assert stream.receive_window == 0
    assert len(initiator.take(stream, INITIAL // 2 - 1, START + LONG)) == INITIAL // 2 - 1
    assert drain(initiator) == b""
    assert initiator.take(stream, 1, START + LONG) == b"\0"
    assert drain(initiator) == HALF_WINDOW
    assert stream.receive_window == INITIAL // 2


def test_a_window_that_empties_within_four_round_trips_doubles(initiator: Session) -> None:
    stream = initiator.open(START)
    initiator.outbox.announce(stream)
    drain(initiator)
    initiator.receive(bytes.fromhex("00 00 0002 00000001 00040000") + bytes(INITIAL), START)
    initiator.take(stream, INITIAL // 2, START + 0.039)
    assert drain(initiator) == bytes.fromhex("00 01 0000 00000001 00060000")  # 128 KiB read, and 256 KiB more
    assert stream.window == 2 * INITIAL


# What we make of it.


def test_syn_with_data(responder: Session) -> None:
    events = responder.receive(SYN_HELLO, START)
    (stream,) = opened(events)
    assert events == [Opened(stream), Changed(stream, READ)]
    assert (stream.id, stream.received, stream.state) == (1, b"hello", State.OPEN)
    assert responder.take(stream, 3, START) == b"hel"
    assert responder.take(stream, 100, START) == b"lo"
    assert responder.take(stream, 100, START) == b""


def test_syn_by_a_window_update_may_widen_the_window(responder: Session) -> None:
    (stream,) = opened(responder.receive(bytes.fromhex("00 01 0001 00000001 00000100"), START))
    assert stream.send_window == INITIAL + 256


def test_ack_with_credit(initiator: Session) -> None:
    stream = initiator.open(START)
    initiator.outbox.announce(stream)
    drain(initiator)
    assert initiator.unacknowledged == 1
    assert initiator.receive(ACK_CREDIT, START) == []
    assert initiator.unacknowledged == 0
    assert stream.send_window == INITIAL + 0xC0000


def test_a_window_update_lets_the_rest_go(initiator: Session) -> None:
    stream = initiator.open(START)
    initiator.send(stream, bytes(INITIAL + 7))
    drain(initiator)
    assert (stream.pending_bytes, initiator.outbox.is_empty) == (7, True)
    initiator.receive(bytes.fromhex("00 01 0000 00000001 00000005"), START)
    assert drain(initiator) == bytes.fromhex("00 00 0000 00000001 00000005") + bytes(5)
    initiator.receive(HALF_WINDOW, START)
    assert drain(initiator) == bytes.fromhex("00 00 0000 00000001 00000002") + bytes(2)


def test_credit_beyond_32_bits_stops_there(initiator: Session) -> None:
    stream = initiator.open(START)
    initiator.receive(bytes.fromhex("00 01 0002 00000001 ffffffff") * 3, START)
    assert stream.send_window == 0xFFFFFFFF


def test_fin_with_data_and_alone(responder: Session) -> None:
    (stream,) = opened(responder.receive(bytes.fromhex("00 00 0005 00000001 00000003") + b"end", START))
    assert (stream.state, stream.received) == (State.PEER_FINISHED, b"end")
    (other,) = opened(responder.receive(bytes.fromhex("00 01 0001 00000003 00000000"), START))
    assert responder.receive(bytes.fromhex("00 01 0004 00000003 00000000"), START) == [Changed(other, READ)]
    assert other.state is State.PEER_FINISHED


def test_rst_wakes_both_sides(responder: Session) -> None:
    (stream,) = opened(responder.receive(SYN_HELLO, START))
    responder.send(stream, b"never sent")
    assert responder.receive(RST_ALONE, START) == [Changed(stream, READ | WRITE)]
    assert (stream.state, bytes(stream.received), stream.pending_bytes) == (State.RESET, b"", 0)
    assert (responder.received_bytes, responder.streams) == (0, {})
    assert drain(responder) == b""


@pytest.mark.parametrize(
    ("why", "wire"),
    [
        ("a version that nobody knows", "01 00 0001 00000001 00000000"),
        ("a type that nobody knows", "00 04 0000 00000001 00000000"),
        ("data for the session", "00 00 0000 00000000 00000000"),
        ("a window of the session", "00 01 0000 00000000 00000001"),
        ("a ping on a stream", "00 02 0001 00000001 00000001"),
        ("a farewell on a stream", "00 03 0000 00000001 00000000"),
        ("a stream of our own parity", "00 01 0001 00000002 00000000"),
        ("a stream that is open already", "00 01 0001 00000001 00000000 00 00 0001 00000001 00000000"),
        ("a frame above the window", "00 00 0001 00000001 00040001"),
        ("a large frame for no stream", "00 00 0000 00000007 00400001"),
    ],
)
def test_what_no_honest_peer_says_ends_the_session(responder: Session, why: str, wire: str) -> None:
    with pytest.raises(MuxerError):
        responder.receive(bytes.fromhex(wire), START)


def test_a_stream_of_the_initiators_parity_is_refused_by_the_initiator(initiator: Session) -> None:
    with pytest.raises(MuxerError):
        initiator.receive(SYN_ALONE, START)


def test_streams_above_the_maximum_are_refused_at_both_ends() -> None:
    ends = Ends(Limits(streams_max=2))
    ends.pair()
    ends.pair()
    with pytest.raises(Refused):
        ends.initiator.open(START)
    ends.responder.receive(bytes.fromhex("00 00 0001 00000007 00000002") + b"hi", START)
    assert drain(ends.responder) == bytes.fromhex("00 01 0008 00000007 00000000")
    assert len(ends.responder.streams) == 2

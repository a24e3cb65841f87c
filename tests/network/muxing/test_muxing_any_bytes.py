"""Bytes of a peer in any pieces, and any bytes at all: events or MuxerError, and bounded memory."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.network.libp2p.muxing.frames import MuxerError
from octonode.network.libp2p.muxing.session import Changed, Event, Opened, Session
from octonode.network.libp2p.muxing.windows import Limits
from scripts.fuzz_targets import check
from tests.network.muxing.ends import ACK, FIN, GO_AWAY, INITIAL, PING, RST, START, SYN, Frame, data, drain, update

SMALL = Limits(streams_max=4, received_bytes_max=INITIAL, window_bytes_max=INITIAL, control_bytes_max=240)
RECORDED = b"".join(
    [
        data(1, b"a request", SYN),
        update(3, 100, SYN),
        update(2, 768 * 1024, ACK),
        data(2, b"an answer"),
        Frame(PING, SYN, 0, 0xBEEF).wire,
        Frame(PING, ACK, 0, 7).wire,
        data(1, b", and its end", FIN),
        update(4, 5, ACK | RST),
        data(5, b"", SYN | FIN),
        update(2, flags=FIN),
        data(7, b"all at once", SYN | FIN),
        data(3, b"cut here", RST),
        data(99, b"for nobody"),
        update(99, 1000, RST),
        data(2, b""),
        Frame(GO_AWAY, 0, 0, 0).wire,
        data(9, b"after the farewell", SYN),
    ]
)
"""Every kind of frame, with every flag, to a responder that has opened streams 2 and 4."""


class Listener:
    """A responder, and all that can be seen of what it made of its input."""

    def __init__(self) -> None:
        self.session = Session(is_initiator=False)
        self.rows = [self.session.open(START), self.session.open(START)]
        for row in self.rows:
            self.session.send(row, b"hello")
        self.said = drain(self.session)
        self.others: list[Event] = []
        self.woken: dict[int, int] = {}

    def hear(self, piece: bytes) -> None:
        for event in self.session.receive(piece, START):
            if isinstance(event, Opened):
                self.rows.append(event.stream)
            elif isinstance(event, Changed):
                self.woken[event.stream.id] = self.woken.get(event.stream.id, 0) | event.what
            else:
                self.others.append(event)

    @property
    def outcome(self) -> tuple[object, ...]:
        check(self.session)
        rows = [(row.id, row.state, bytes(row.received), row.send_window, row.receive_window) for row in self.rows]
        return (
            rows,
            self.woken,
            self.others,
            self.session.received_bytes,
            drain(self.session),
            set(self.session.streams),
        )


def outcome(pieces: list[bytes]) -> tuple[object, ...]:
    listener = Listener()
    for piece in pieces:
        listener.hear(piece)
    return listener.outcome


WHOLE = outcome([RECORDED])


def test_the_recorded_exchange_says_what_it_should() -> None:
    rows, woken, others, received_bytes, said, streams = WHOLE
    assert isinstance(rows, list)
    states = {stream_id: (state.name, received) for stream_id, state, received, *_ in rows}
    assert states == {
        2: ("PEER_FINISHED", b"an answer"),
        4: ("RESET", b""),
        1: ("PEER_FINISHED", b"a request, and its end"),
        3: ("RESET", b""),
        5: ("PEER_FINISHED", b""),
        7: ("PEER_FINISHED", b"all at once"),
        9: ("OPEN", b"after the farewell"),
    }
    assert streams == {1, 2, 5, 7, 9}
    assert woken == {1: 1, 2: 1, 3: 3, 4: 3, 5: 1, 7: 1, 9: 1}
    assert len(others) == 2  # type: ignore[arg-type]
    assert said == Frame(PING, ACK, 0, 0xBEEF).wire
    assert received_bytes == len("an answera request, and its endall at onceafter the farewell")


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 11, 12, 13, 17])
def test_pieces_of_one_size(step: int) -> None:
    assert outcome([RECORDED[at : at + step] for at in range(0, len(RECORDED), step)]) == WHOLE


def test_two_pieces_cut_at_every_byte() -> None:
    for cut in range(len(RECORDED) + 1):
        assert outcome([RECORDED[:cut], RECORDED[cut:]]) == WHOLE, f"cut at {cut}"


@given(st.lists(st.integers(0, len(RECORDED)), max_size=12))
@settings(max_examples=150, deadline=None)
def test_any_pieces(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(RECORDED)]
    assert outcome([RECORDED[start:end] for start, end in itertools.pairwise(edges)]) == WHOLE


lengths = st.sampled_from([0, 1, 11, 12, 16_384, INITIAL - 1, INITIAL, INITIAL + 1, 2**31, 2**32 - 1])
ids = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2**32 - 1])


@st.composite
def written_frames(draw: st.DrawFn) -> bytes:
    """A header whose fields are all possible, and a body of the length it names where that is not large."""
    kind = draw(st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4, 255]))
    length = draw(st.one_of(st.integers(0, 200), lengths))
    flags = draw(st.one_of(st.integers(0, 15), st.integers(0, 2**16 - 1)))
    head = Frame(kind, flags, draw(ids), length).wire
    return head + (bytes(length) if kind == 0 and length <= INITIAL + 1 else b"")


@st.composite
def altered_exchanges(draw: st.DrawFn) -> bytes:
    wire = bytearray(RECORDED)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(wire) - 1))
        how = draw(st.integers(0, 3))
        if how == 0:
            wire[at] ^= 1 << draw(st.integers(0, 7))
        elif how == 1:
            wire[at] = draw(st.sampled_from([0, 1, 127, 128, 255]))
        elif how == 2:
            del wire[at : at + draw(st.integers(1, 24))]
        else:
            wire[at:at] = wire[at : at + draw(st.integers(1, 48))]
        if not wire:
            return b""
    return bytes(wire)


wires = st.one_of(
    st.binary(max_size=200),
    st.lists(written_frames(), max_size=25).map(b"".join),
    altered_exchanges(),
)


@given(wires, st.booleans(), st.integers(1, 3000), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_events_or_the_fault_of_the_peer(
    wire: bytes, is_initiator: bool, step: int, readers_read: bool
) -> None:
    session = Session(is_initiator=is_initiator, limits=SMALL)
    for _ in range(2):
        session.send(session.open(START), b"hello")
    drain(session)
    rows = list(session.streams.values())
    own_frames = 0
    try:
        for at in range(0, len(wire), step):
            for event in session.receive(wire[at : at + step], START):
                if isinstance(event, Opened):
                    rows.append(event.stream)
            check(session, own_frames)
            for row in rows if readers_read else ():
                session.take(row, 50_000, START)
                own_frames += 1
            check(session, own_frames)
    except MuxerError:
        pass
    assert session.received_bytes <= SMALL.received_bytes_max + step
    assert len(session.streams) <= SMALL.streams_max
    session.lose()
    assert session.receive(wire, START) == []
    for row in rows:
        session.take(row, 1 << 20, START)
        session.reset(row)
    assert session.streams == {}


@given(wires, st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_the_same_bytes_in_other_pieces_give_the_same_fault(wire: bytes, step: int) -> None:
    def fault(pieces: list[bytes]) -> str:
        listener = Listener()
        try:
            for piece in pieces:
                listener.hear(piece)
        except MuxerError as error:
            return error.message
        return str(listener.outcome)

    small = wire[:2000]
    assert fault([small[at : at + step] for at in range(0, len(small), step)]) == fault([small])

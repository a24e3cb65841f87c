"""What the fuzzer runs: a session and the two machines of negotiation, under inputs that are small programs.

The first byte of an input names the target and its settings. For a session the rest is a list of steps, of the peer
and of our own side in turn (`STEPS`), so that bytes of a peer meet a session in any state; for a negotiation it is what
the peer sends. After every step `check` asserts what must hold whatever a peer does. An input is accepted or refused
(`MuxerError`, `NegotiationError`); anything else that is raised is a finding.

    features = run(data)      # what of the program was reached, for the fuzzer to tell inputs apart
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from octonode.errors import Refused, Unreachable
from octonode.network.libp2p.muxing.frames import INITIAL_WINDOW_BYTES, WINDOW_LIMIT, MuxerError, header
from octonode.network.libp2p.muxing.session import Changed, Event, Opened, Session
from octonode.network.libp2p.muxing.streams import RECEIVING, SENDING, State, YamuxStream
from octonode.network.libp2p.muxing.windows import Limits
from octonode.network.libp2p.negotiation import NegotiationError, Proposal, Selection

INITIATOR, SMALL, TWIN, NEGOTIATION = 1, 2, 4, 8
"""Bits of the first byte."""
SMALL_LIMITS = Limits(
    streams_max=6,
    received_bytes_max=INITIAL_WINDOW_BYTES,
    window_bytes_max=INITIAL_WINDOW_BYTES + 40_000,
    pending_bytes_max=4096,
    control_bytes_max=240,
)
STEPS = {
    "P": "H",  # the peer: so many bytes of the input as they are
    "D": "BBH",  # the peer: DATA of (stream, flags, size / 16), a body of zeros
    "U": "BBI",  # the peer: WINDOW_UPDATE of (stream, flags, credit)
    "C": "BBI",  # the peer: a frame of (type, flags, value) for the session
    "O": "",  # we open a stream
    "A": "B",  # we announce it; here and below a stream is a place in the list of all there were
    "S": "BH",  # we send (stream, size / 16)
    "T": "BH",  # our reader takes (stream, size / 16)
    "F": "B",  # we finish
    "R": "B",  # we reset
    "W": "B",  # tenths of seconds pass, and silent streams are acknowledged
    "M": "H",  # a message of so many bytes leaves
    "G": "",  # we go away
    "I": "",  # we ping
    "L": "",  # the connection is lost
}
STEPS_MAX = 200
SHAPES = {ord(letter): struct.Struct("!" + shape) for letter, shape in STEPS.items()}
ODD_PIECES = (1, 11, 12, 13, 700, 5, 20_011)
SHAPE = "shape"
"""The first word of features that lead the fuzzer on and are too many for a corpus to have them all."""
COMPARED_BYTES_MAX = 16 * 1024 * 1024
SPOKEN = ("/test/echo", "/test/other")

Feature = tuple[object, ...]
Step = tuple[str, tuple[int, ...], bytes]


def steps_of(program: bytes) -> Iterator[Step]:
    """(letter, numbers, raw bytes) of each step; bytes that are no step are passed over."""
    at = count = 0
    while at < len(program) and count < STEPS_MAX:
        letter, shape = program[at], SHAPES.get(program[at])
        at += 1
        if shape is None or len(program) - at < shape.size:
            continue
        numbers = shape.unpack_from(program, at)
        at += shape.size
        size = numbers[0] if letter == ord("P") else 0
        count += 1
        yield chr(letter), numbers, program[at : at + size]
        at += size


def run(data: bytes) -> set[Feature]:
    """Run one input. Raises AssertionError, or whatever else a finding raises."""
    if not data:
        return set()
    if data[0] & NEGOTIATION:
        return run_negotiation(data[0], data[1:])
    whole = SessionRun(data[0])
    whole.run(data[1:])
    if data[0] & TWIN and not data[0] & SMALL and whole.peak_bytes < COMPARED_BYTES_MAX:
        split = SessionRun(data[0], in_pieces=True)
        split.run(data[1:])
        assert split.digest() == whole.digest(), "split input gave another outcome"
    return whole.features


class SessionRun:
    """One session under one program."""

    def __init__(self, settings: int, *, in_pieces: bool = False) -> None:
        limits = SMALL_LIMITS if settings & SMALL else Limits()
        self.session = Session(is_initiator=bool(settings & INITIATOR), limits=limits)
        self.in_pieces = in_pieces
        self.now = 0.0
        self.rows: list[YamuxStream] = []
        self.features: set[Feature] = set()
        self.fault = ""
        self.peak_bytes = self.own_frames = 0
        self.said = bytearray()
        self.woken: dict[int, int] = {}
        self.others: list[str] = []

    def run(self, program: bytes) -> None:
        for letter, numbers, raw in steps_of(program):
            before = [(row.state, row.finishing) for row in self.rows]
            try:
                self.step(letter, numbers, raw)
            except MuxerError as fault:
                self.fault = fault.message.translate({ord(digit): None for digit in "0123456789"})
                self.features.add(("fault", self.fault))
                self.note(self.session.lose())
                return
            except (Refused, Unreachable) as refusal:
                self.features.add(("refused", refusal.code))
            check(self.session, self.own_frames)
            self.features.add((SHAPE, *shape_of(self.session)))
            self.peak_bytes = max(self.peak_bytes, self.session.received_bytes)
            for row, old in zip(self.rows, before, strict=False):
                if (row.state, row.finishing) != old:
                    self.features.add((letter, old, row.state, row.finishing, row.id & 1, bool(row.received)))
                    self.features.add((letter, row.state, row.flags_due, row.send_window > 0, row.pending_bytes > 0))

    def step(self, letter: str, numbers: tuple[int, ...], raw: bytes) -> None:
        if letter in "PDUC":
            self.hear(letter, numbers, raw)
        elif letter in "ASTFR":
            if self.rows:
                self.on_stream(letter, self.rows[numbers[0] % len(self.rows)], 16 * numbers[-1])
        elif letter == "O":
            self.rows.append(self.session.open(self.now))
        elif letter == "W":
            self.now += numbers[0] / 10
            self.own_frames += len(self.session.streams)
            self.session.acknowledge_silent(self.now)
        elif letter == "M":
            self.say(self.session.outbox.next_message(numbers[0]), numbers[0])
        elif letter == "L":
            self.note(self.session.lose())
        else:
            self.own_frames += 1
            self.session.ping(7) if letter == "I" else self.session.go_away(0)

    def hear(self, letter: str, numbers: tuple[int, ...], raw: bytes) -> None:
        wire = raw
        if letter == "D":
            wire = header(0, numbers[1], numbers[0], 16 * numbers[2]) + bytes(16 * numbers[2])
        elif letter != "P":
            kind, stream_id = (1, numbers[0]) if letter == "U" else (2 + numbers[0] % 2, 0)
            wire = header(kind, numbers[1], stream_id, numbers[2])
        known = len(self.rows)
        for piece in pieces_of(wire) if self.in_pieces else [wire]:
            self.note(self.session.receive(piece, self.now))
        self.features.add((letter, len(self.rows) - known, self.session.outbox.is_empty))

    def on_stream(self, letter: str, row: YamuxStream, size: int) -> None:
        session = self.session
        if letter == "A":
            session.outbox.announce(row)
        elif letter == "S":
            if row.may_send and row.pending_bytes < session.limits.pending_bytes_max:
                session.send(row, bytes(size))
        elif letter == "T":
            before = len(row.received)
            assert len(session.take(row, size, self.now)) == min(size, before)
            self.own_frames += 1
        else:
            self.own_frames += 1
            session.finish(row) if letter == "F" else session.reset(row)

    def note(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Opened):
                self.rows.append(event.stream)
            elif isinstance(event, Changed):
                place = next(at for at, row in enumerate(self.rows) if row is event.stream)
                self.woken[place] = self.woken.get(place, 0) | event.what
                self.features.add(("changed", event.what, event.stream.state, bool(event.stream.received)))
            else:
                self.others.append(repr(event))
                self.features.add((type(event).__name__,))

    def say(self, message: bytes, size_max: int) -> None:
        assert len(message) <= size_max
        kinds, at = [], 0
        while at < len(message):
            version, kind, flags, stream_id, length = struct.unpack_from("!BBHII", message, at)
            assert (version, kind < 4, flags < 16, stream_id == 0) == (0, True, True, kind > 1)
            kinds.append((kind, flags))
            at += 12 + (length if kind == 0 else 0)
        assert at == len(message), "a message ends within a frame"
        self.features.update(("said", *each) for each in kinds)
        self.said += message

    def digest(self) -> tuple[object, ...]:
        """What a peer and our own side can see of the outcome."""
        rows = [(row.id, row.state, bytes(row.received), row.send_window, row.pending_bytes) for row in self.rows]
        return rows, self.fault, self.woken, self.others, bytes(self.said), self.session.received_bytes


def shape_of(session: Session) -> tuple[object, ...]:
    """A session in few words, so that inputs which lead to another one are told apart."""
    rows = session.streams.values()
    return (
        min(len(rows), 4),
        len({row.state for row in rows}),
        session.received_bytes.bit_length() // 9,
        session._budget.left_bytes == 0,
        min(len(session.outbox._ring), 2),
        len(session.outbox._control) > 100,
        session._body_left > 0,
        session._leaving or session.went_away is not None,
    )


def pieces_of(wire: bytes) -> Iterator[bytes]:
    at = turn = 0
    while at < len(wire):
        size = ODD_PIECES[turn % len(ODD_PIECES)]
        yield wire[at : at + size]
        at += size
        turn += 1


def check(session: Session, own_frames: int = 0) -> None:
    """What holds between two calls, whatever the peer has sent. `own_frames` is how many we added of our own accord."""
    limits, outbox = session.limits, session.outbox
    assert len(session._partial) < 12
    assert len(outbox._control) <= limits.control_bytes_max + 12 * (1 + limits.streams_max + own_frames)
    assert len(session.streams) <= limits.streams_max
    if session._lost:
        assert not session.streams
        return
    held = grown = waiting = 0
    for stream_id, stream in session.streams.items():
        check_stream(session, stream)
        assert stream.id == stream_id
        held += len(stream.received)
        grown += stream.window - INITIAL_WINDOW_BYTES
        waiting += stream.awaits_ack
    assert held == session.received_bytes <= limits.received_bytes_max
    assert session._budget.left_bytes == session._budget.total_bytes - grown >= 0
    assert session.unacknowledged == waiting
    assert session._silent == {key: each for key, each in session.streams.items() if each.is_inbound_and_silent}
    for stream in outbox._ring:
        assert stream.queued
        assert session.streams.get(stream.id) is stream


def check_stream(session: Session, stream: YamuxStream) -> None:
    assert stream.state not in (State.RESET, State.LOST)
    assert stream.state is not State.CLOSED or stream.received, "it is over and not forgotten"
    assert 0 <= stream.send_window <= WINDOW_LIMIT
    assert stream.receive_window >= 0
    assert INITIAL_WINDOW_BYTES <= stream.window <= session.limits.window_bytes_max
    if stream.state in RECEIVING:
        coming = session._body_left if session._body_stream is stream else 0
        assert stream.receive_window + coming + len(stream.received) + stream.consumed == stream.window
    pending = sum(map(len, stream.pending)) - stream.head
    assert pending == stream.pending_bytes >= 0
    assert not pending or stream.state in SENDING
    assert stream.queued or not stream.sendable, "it has something to send and waits for no turn"


def run_negotiation(settings: int, wire: bytes) -> set[Feature]:
    """The same bytes whole and one by one, to whom `settings` says."""
    outcomes = [_negotiated(settings & 1, wire, step) for step in (1, 7, 1 << 20)]
    assert outcomes[0] == outcomes[1] == outcomes[2], "split input gave another outcome"
    chosen, fault, answer_bytes = outcomes[0]
    return {("negotiation", settings & 1, chosen, fault, answer_bytes.bit_length())}


def _negotiated(proposes: int, wire: bytes, step: int) -> tuple[str, str, int]:
    machine: Proposal | Selection
    machine = Proposal(("/nobody", *SPOKEN)) if proposes else Selection(SPOKEN.__contains__, lambda: SPOKEN)
    at = answers = 0
    try:
        while machine.chosen is None and at < len(wire):
            wanted = machine.wanted_bytes
            assert 1 <= wanted <= 1026
            answer = machine.receive(wire[at : at + min(wanted, step)])
            at += min(wanted, step, len(wire) - at)
            if isinstance(machine, Selection):
                answer += machine.greeting()
            answers += len(answer)
    except NegotiationError as fault:
        return "", type(fault).__name__, 0
    assert machine.chosen in (None, "/nobody" if proposes else None, *SPOKEN)
    assert answers <= 20 + 70 * 1026
    return machine.chosen or "", "", answers

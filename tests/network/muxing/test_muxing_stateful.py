"""Two sessions under any order of honest moves, any delay of the bytes between them, and limits that are hit.

Whatever happens: no byte is lost, doubled or reordered; an end is seen where one was said after all its bytes, and a
cut never passes for one; nobody is credited what the other does not have; and when all is over, nothing is left.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from octonode.errors import Refused
from octonode.network.libp2p.muxing.session import Opened, Session
from octonode.network.libp2p.muxing.streams import RECEIVING, State, YamuxStream
from octonode.network.libp2p.muxing.windows import Limits
from scripts.fuzz_targets import check
from tests.network.muxing.ends import DATA, INITIAL, RST, START, SYN, UPDATE, Frame, frames_of

LIMITS = Limits(
    streams_max=40,
    received_bytes_max=INITIAL + 100_000,
    window_bytes_max=2 * INITIAL,
    pending_bytes_max=40_000,
    control_bytes_max=4096,
)
STREAMS_MAX = 64
"""Opened by both together, more than either may have."""
TEXT = random.Random(0).randbytes(65_521) * 9
SENDS = (1, 100, 5000, 40_000, 200_000)
Key = tuple[int, int]
"""(end, stream id)"""


def text(sender: int, stream_id: int, start: int, size: int) -> bytes:
    """What this end sends on this stream from its byte `start` on."""
    at = (start + 9973 * stream_id + 577 * sender) % 65_521
    assert at + size <= len(TEXT)
    return TEXT[at : at + size]


class Wire:
    """Bytes on their way in one direction, and what of windows is on its way with them."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.frames: list[tuple[int, Frame]] = []
        """(where its header ends, the frame), of what has not arrived with its header."""
        self.pushed = self.pulled = 0

    def push(self, message: bytes) -> None:
        at = self.pushed
        for frame in frames_of(message):
            self.frames.append((at + 12, frame))
            at += len(frame.wire)
        self.bytes += message
        self.pushed = at

    def pull(self, size: int) -> tuple[bytes, list[Frame]]:
        """The next bytes, and the frames whose headers arrive with them."""
        piece = bytes(self.bytes[:size])
        del self.bytes[:size]
        self.pulled += len(piece)
        arrived = [frame for end, frame in self.frames if end <= self.pulled]
        del self.frames[: len(arrived)]
        return piece, arrived

    def coming(self, kind: int, stream_id: int) -> int:
        return sum(frame.length for _, frame in self.frames if (frame.kind, frame.stream_id) == (kind, stream_id))


class TwoEnds(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ends = [Session(is_initiator=is_initiator, limits=LIMITS) for is_initiator in (True, False)]
        self.wires = [Wire(), Wire()]
        self.now = START
        self.rows: dict[Key, YamuxStream] = {}
        self.sent: Counter[Key] = Counter()
        self.taken: Counter[Key] = Counter()
        self.finished: set[Key] = set()
        self.cut: set[int] = set()
        """Streams that an end reset, that a limit cut, or that were refused."""
        self.refused: set[int] = set()
        self.idle_readers: set[Key] = set()

    def pick(self, end: int, place: int) -> Key | None:
        """A stream of an end that it knows and that is not over."""
        keys = [key for key, row in self.rows.items() if key[0] == end and self.ends[end].streams.get(key[1]) is row]
        return keys[place % len(keys)] if keys else None

    @rule(end=st.integers(0, 1), count=st.integers(1, 14))
    def open(self, end: int, count: int) -> None:
        session = self.ends[end]
        for _ in range(min(count, STREAMS_MAX - len({key[1] for key in self.rows}))):
            try:
                row = session.open(self.now)
            except Refused:
                assert len(session.streams) == LIMITS.streams_max
                return
            self.rows[end, row.id] = row
            session.outbox.announce(row)

    @rule(end=st.integers(0, 1), place=st.integers(0, 999), size=st.sampled_from(SENDS))
    def send(self, end: int, place: int, size: int) -> None:
        key = self.pick(end, place)
        if key and self.rows[key].may_send and self.rows[key].pending_bytes < LIMITS.pending_bytes_max:
            self.ends[end].send(self.rows[key], text(*key, self.sent[key], size))
            self.sent[key] += size

    @rule(end=st.integers(0, 1), place=st.integers(0, 999), size=st.integers(1, 300_000))
    def take(self, end: int, place: int, size: int) -> None:
        if (key := self.pick(end, place)) and key not in self.idle_readers:
            self.take_from(key, size)

    @rule(end=st.integers(0, 1))
    def take_all(self, end: int) -> None:
        for key in [key for key in self.rows if key[0] == end and key not in self.idle_readers]:
            self.take_from(key, 1 << 20)

    @rule(end=st.integers(0, 1), place=st.integers(0, 999))
    def stop_reading(self, end: int, place: int) -> None:
        if key := self.pick(end, place):
            self.idle_readers.add(key)

    @rule(end=st.integers(0, 1), place=st.integers(0, 999))
    def finish(self, end: int, place: int) -> None:
        if key := self.pick(end, place):
            self.ends[end].finish(self.rows[key])
            self.finished.add(key)

    @rule(end=st.integers(0, 1), place=st.integers(0, 999))
    def reset(self, end: int, place: int) -> None:
        if key := self.pick(end, place):
            self.ends[end].reset(self.rows[key])
            self.cut.add(key[1])

    @rule(milliseconds=st.sampled_from([1, 30, 300, 1100]))
    def time_passes(self, milliseconds: int) -> None:
        self.now += milliseconds / 1000
        for session in self.ends:
            session.acknowledge_silent(self.now)

    @rule(end=st.integers(0, 1))
    def ping(self, end: int) -> None:
        if len(self.ends[1 - end].outbox._control) < 1000:
            self.ends[end].ping(7)

    @rule(end=st.integers(0, 1), size_max=st.sampled_from([40, 1000, 20_000, 65_519]), count=st.integers(1, 9))
    def emit(self, end: int, size_max: int, count: int) -> None:
        for _ in range(count):
            self.wires[end].push(self.ends[end].outbox.next_message(size_max))

    @rule(end=st.integers(0, 1), sizes=st.lists(st.sampled_from([1, 5, 12, 700, 30_000, 400_000]), max_size=6))
    def deliver(self, end: int, sizes: list[int]) -> None:
        for size in sizes:
            self.carry(end, size)

    @rule()
    def exchange(self) -> None:
        for end in (0, 1):
            while message := self.ends[end].outbox.next_message():
                self.wires[end].push(message)
            self.carry(end, 1 << 30)

    def carry(self, sender: int, size: int) -> None:
        receiver = 1 - sender
        session = self.ends[receiver]
        piece, arrived = self.wires[sender].pull(size)
        streams_before, bytes_before = len(session.streams), session.received_bytes
        opened = 0
        for event in session.receive(piece, self.now):
            if isinstance(event, Opened):
                opened += 1
                self.rows[receiver, event.stream.id] = event.stream
                assert event.stream.id not in self.refused
        for frame in arrived:
            if frame.stream_id and frame.flags & SYN and (receiver, frame.stream_id) not in self.rows:
                assert streams_before + opened >= LIMITS.streams_max, "it was refused while there was room"
                self.cut.add(frame.stream_id)
                self.refused.add(frame.stream_id)
            if frame.flags & RST:
                assert frame.stream_id in self.cut, "a reset that nobody asked for"
        for (end, stream_id), row in self.rows.items():
            if end == receiver and row.state is State.RESET and stream_id not in self.cut:
                assert bytes_before + len(piece) > LIMITS.received_bytes_max, "it was cut while there was room"
                self.cut.add(stream_id)

    def take_from(self, key: Key, size: int) -> None:
        end, stream_id = key
        sender = (1 - end, stream_id)
        got = self.ends[end].take(self.rows[key], size, self.now)
        assert got == text(*sender, self.taken[sender], len(got))
        self.taken[sender] += len(got)
        assert self.taken[sender] <= self.sent[sender]

    @invariant()
    def each_end_keeps_its_books(self) -> None:
        for session in self.ends:
            check(session, own_frames=STREAMS_MAX)

    @invariant()
    def an_end_is_seen_where_it_was_said_after_all_bytes(self) -> None:
        for (end, stream_id), row in self.rows.items():
            sender = (1 - end, stream_id)
            if row.state in (State.PEER_FINISHED, State.CLOSED):
                assert sender in self.finished
                assert self.taken[sender] + len(row.received) == self.sent[sender]
            elif row.state is State.RESET:
                assert stream_id in self.cut

    @invariant()
    def nobody_is_credited_what_the_other_does_not_have(self) -> None:
        """What a sender may send, what it has sent and what it will be credited is the window of its receiver."""
        for (end, stream_id), row in self.rows.items():
            peer = self.rows.get((1 - end, stream_id))
            if stream_id in self.cut or stream_id not in self.ends[end].streams:
                continue
            if peer is not None and peer.state not in RECEIVING:
                continue
            credits = self.wires[1 - end].coming(UPDATE, stream_id)
            for frame in frames_of(bytes(self.ends[1 - end].outbox._control)):
                credits += frame.length if (frame.kind, frame.stream_id) == (UPDATE, stream_id) else 0
            coming = self.wires[end].coming(DATA, stream_id)
            assert row.send_window + coming + credits == (peer.receive_window if peer else INITIAL)

    def any_move(self, chance: random.Random) -> None:
        """One of the above by chance alone, in proportions that fill windows and limits."""
        end, place = chance.randrange(2), chance.randrange(999)
        moves = {
            "open": (2, lambda: self.open(end=end, count=chance.randint(1, 14))),
            "send": (40, lambda: self.send(end=end, place=place, size=chance.choice(SENDS))),
            "take": (12, lambda: self.take(end=end, place=place, size=chance.randint(1, 300_000))),
            "take_all": (2, lambda: self.take_all(end=end)),
            "stop_reading": (1, lambda: self.stop_reading(end=end, place=place)),
            "finish": (3, lambda: self.finish(end=end, place=place)),
            "reset": (1, lambda: self.reset(end=end, place=place)),
            "time_passes": (2, lambda: self.time_passes(milliseconds=chance.choice([1, 30, 300, 1100]))),
            "ping": (2, lambda: self.ping(end=end)),
            "emit": (15, lambda: self.emit(end=end, size_max=chance.choice([40, 1000, 65_519]), count=4)),
            "deliver": (25, lambda: self.deliver(end=end, sizes=[chance.choice([1, 12, 700, 30_000, 400_000])])),
            "exchange": (1, self.exchange),
        }
        weights = [weight for weight, _ in moves.values()]
        _, move = chance.choices(list(moves.values()), weights)[0]
        move()

    def check_all(self) -> None:
        self.each_end_keeps_its_books()
        self.an_end_is_seen_where_it_was_said_after_all_bytes()
        self.nobody_is_credited_what_the_other_does_not_have()

    def teardown(self) -> None:
        self.idle_readers.clear()
        for _ in range(400):
            for end in (0, 1):
                self.take_all(end)
                for key in [key for key, row in self.rows.items() if key[0] == end and row.may_send]:
                    self.finish(end, [each for each in self.rows if self.pick_is(each, end)].index(key))
            self.exchange()
            if not (self.ends[0].streams or self.ends[1].streams):
                break
        self.exchange()
        for end, session in enumerate(self.ends):
            check(session)
            assert session.streams == {}
            assert session._silent == {}
            assert (session.unacknowledged, session.received_bytes) == (0, 0)
            assert session._budget.left_bytes == session._budget.total_bytes
            assert session.outbox.is_empty
            assert not self.wires[end].bytes
        for key, row in self.rows.items():
            assert row.state is (State.RESET if key[1] in self.cut else State.CLOSED) or key[1] in self.cut
            assert key[1] in self.cut or self.taken[key] == self.sent[key]

    def pick_is(self, key: Key, end: int) -> bool:
        return key[0] == end and self.ends[end].streams.get(key[1]) is self.rows[key]


TwoEnds.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestTwoEnds = TwoEnds.TestCase


@pytest.mark.parametrize("seed", range(40))
def test_long_runs_by_chance(seed: int) -> None:
    """Hypothesis makes short stories and finds the shortest that fails; here are long ones, in which limits are hit."""
    chance, ends = random.Random(seed), TwoEnds()
    for step in range(600):
        ends.any_move(chance)
        if step % 5 == 0:
            ends.check_all()
    ends.teardown()

"""The peerbook: newest wins, bounds hold, whoever leaves stays gone."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from octonode.network.peerbook import Peerbook, Verdict
from octonode.network.rates import Rates
from octonode.protocol.announcement import Announcement, Holding, Serving
from tests.network.peers.world import OTHER_ROOT, ROOT, START_MS, announced, key_of

OWN = key_of("own").peer_id


def add(
    book: Peerbook, name: str, at_ms: int = START_MS, connected: frozenset[str] = frozenset(), **fields: Any
) -> Verdict:
    announcement, data = announced(name, at_ms=at_ms, **fields)
    return book.add(announcement, data, at_ms, {key_of(each).peer_id for each in connected})


def test_the_newest_sequence_stands() -> None:
    book = Peerbook(OWN)
    assert add(book, "a", sequence=5, tier="edge") is Verdict.NEW
    assert add(book, "a", sequence=4, tier="consumer") is Verdict.OLDER
    assert add(book, "a", sequence=5, tier="consumer") is Verdict.OLDER, "the same number for other words is a lie"
    assert add(book, "a", sequence=5, tier="edge") is Verdict.SAME
    assert add(book, "a", sequence=6, tier="prosumer") is Verdict.NEWER
    [a] = book.peers(START_MS)
    assert (a.sequence, a.tier) == (6, "prosumer")


def test_our_own_and_expired_ones_are_not_taken() -> None:
    book = Peerbook(OWN)
    assert add(book, "own") is Verdict.OURS
    announcement, data = announced("a", expires_at_ms=START_MS + 1000)
    assert book.add(announcement, data, START_MS + 1000) is Verdict.EXPIRED
    assert len(book) == 0


def test_what_expires_is_gone_without_being_swept() -> None:
    book = Peerbook(OWN)
    add(book, "a", serving=(Serving(ROOT),), holding=(Holding(ROOT),), expires_at_ms=START_MS + 1000)
    last = START_MS + 999
    assert book.serving(ROOT, last)
    assert book.holding(ROOT, last)
    gone = START_MS + 1000
    assert not book.serving(ROOT, gone)
    assert not book.peers(gone)
    assert book.get(key_of("a").peer_id, gone) is None
    assert book.sample(16, random.Random(1), gone) == []
    assert book.expire(gone) == [key_of("a").peer_id]
    assert len(book) == 0


def test_who_leaves_is_not_brought_back_by_what_still_travels() -> None:
    book = Peerbook(OWN)
    before = announced("a", sequence=7, serving=(Serving(ROOT),))
    book.add(*before, START_MS)
    assert add(book, "a", sequence=8, state="leaving", expires_at_ms=START_MS + 240_000) is Verdict.LEFT
    assert not book.peers(START_MS)
    assert book.add(*before, START_MS) is Verdict.OLDER
    assert not book.serving(ROOT, START_MS)
    assert add(book, "a", sequence=9) is Verdict.NEW


def test_questions() -> None:
    book, publisher = Peerbook(OWN), key_of("p").peer_id
    add(book, "a", serving=(Serving(ROOT, name=f"{publisher}/smol", manifest="bafyman"),))
    add(book, "b", holding=(Holding(ROOT, name=f"{publisher}/smol"), Holding(OTHER_ROOT)))
    a, b = key_of("a").peer_id, key_of("b").peer_id
    assert [x.peer_id for x in book.serving(ROOT, START_MS)] == [a]
    assert [x.peer_id for x in book.holding(ROOT, START_MS)] == [b]
    assert {x.peer_id for x in book.named(publisher, "smol", START_MS)} == {a, b}
    assert [x.peer_id for x in book.manifest("bafyman", START_MS)] == [a]
    assert not book.named(publisher, "other", START_MS)
    assert len(book.sample(16, random.Random(1), START_MS, root=ROOT)) == 2
    assert len(book.sample(16, random.Random(1), START_MS, root=ROOT, without={a})) == 1
    add(book, "a", sequence=2)
    assert not book.serving(ROOT, START_MS), "the index follows"


def test_at_the_bound_the_expired_go_first_then_the_oldest_unconnected() -> None:
    book = Peerbook(OWN, peers_max=3)
    add(book, "old")
    add(book, "short", at_ms=START_MS + 1, expires_at_ms=START_MS + 10)
    add(book, "new", at_ms=START_MS + 2)
    assert add(book, "x", at_ms=START_MS + 20) is Verdict.NEW
    names = lambda: {n for n in ("old", "short", "new", "x", "y", "z") if book.signed(key_of(n).peer_id, START_MS + 20)}  # noqa: E731
    assert names() == {"old", "new", "x"}
    add(book, "y", at_ms=START_MS + 20, connected=frozenset({"old"}))
    assert names() == {"old", "x", "y"}
    assert add(book, "z", at_ms=START_MS + 20, connected=frozenset({"old", "x", "y"})) is Verdict.FULL
    assert names() == {"old", "x", "y"}
    assert book.evicted == 1


def test_a_refreshed_peer_is_not_the_oldest() -> None:
    book = Peerbook(OWN, peers_max=2)
    add(book, "a")
    add(book, "b")
    add(book, "a", sequence=2)
    add(book, "c")
    assert book.signed(key_of("b").peer_id, START_MS) is None
    assert book.signed(key_of("a").peer_id, START_MS) is not None


def test_two_hundred_strangers_are_bounded() -> None:
    book = Peerbook(OWN, peers_max=50)
    for index in range(200):
        add(book, f"stranger {index}", serving=(Serving(ROOT),))
    assert len(book) == 50
    assert len(book.serving(ROOT, START_MS)) == 50
    assert len(book.sample(100, random.Random(1), START_MS)) == 16


def test_known_bytes_are_recognised_and_replaced_ones_are_not() -> None:
    book = Peerbook(OWN)
    first, second = announced("a", sequence=1), announced("a", sequence=2)
    assert book.recognise(first[1]) is None
    book.add(*first, START_MS)
    assert book.recognise(first[1]) == first[0]
    book.add(*second, START_MS)
    assert book.recognise(first[1]) is None


class Machine(RuleBasedStateMachine):
    """Against the plainest model: per peer, the highest sequence seen since it was last dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Peerbook(OWN, peers_max=4)
        self.now_ms = START_MS
        self.model: dict[str, Announcement] = {}

    @rule(name=st.sampled_from("abcdef"), sequence=st.integers(1, 6), leaving=st.booleans(), life=st.integers(1, 50))
    def hear(self, name: str, sequence: int, leaving: bool, life: int) -> None:
        announcement, data = announced(
            name, at_ms=self.now_ms, sequence=sequence, state="leaving" if leaving else "active",
            expires_at_ms=self.now_ms + life, serving=(Serving(ROOT),),
        )  # fmt: skip
        if self.book.add(announcement, data, self.now_ms).taken:
            known = self.model.get(name)
            still = known is not None and self.book.evicted == 0 and known.expires_at_ms > self.now_ms
            assert not (still and known is not None and known.sequence >= sequence)
            self.model[name] = announcement

    @rule(step=st.integers(0, 30))
    def wait(self, step: int) -> None:
        self.now_ms += step

    @rule()
    def sweep(self) -> None:
        self.book.expire(self.now_ms)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert len(self.book) <= 4
        for announcement in self.book.peers(self.now_ms):
            [name] = [n for n in "abcdef" if key_of(n).peer_id == announcement.peer_id]
            assert announcement == self.model[name]
            assert announcement.state == "active"
            assert announcement.expires_at_ms > self.now_ms
        assert self.book.serving(ROOT, self.now_ms) is not None
        listed = {a.peer_id for a in self.book.serving(ROOT, self.now_ms)}
        assert listed == {a.peer_id for a in self.book.peers(self.now_ms)}


TestPeerbookMachine = Machine.TestCase


@given(st.lists(st.tuples(st.integers(-2000, 5000), st.sampled_from("ab")), max_size=200))
def test_nobody_gets_more_than_his_rate(steps: list[tuple[int, str]]) -> None:
    rates, now_ms, first_ms, latest_ms = Rates(10, 5), START_MS, START_MS, START_MS
    taken = {"a": 0, "b": 0}
    for step_ms, name in steps:
        now_ms += step_ms  # backwards too: a clock may be set back
        wait_ms = rates.take(name, now_ms)
        taken[name] += wait_ms == 0
        latest_ms = max(latest_ms, now_ms)
        first_ms = min(first_ms, now_ms)
        assert wait_ms <= 101
    forward_ms = sum(max(step, 0) for step, _ in steps)
    assert all(count <= 5 + forward_ms / 100 + 1 for count in taken.values())


def test_who_waits_as_told_is_let_in_and_the_table_is_bounded() -> None:
    rates = Rates(1, 1, peers_max=8)
    assert rates.take("a", 0) == 0
    wait_ms = rates.take("a", 0)
    assert wait_ms > 0
    assert rates.take("a", wait_ms) == 0
    for index in range(100):
        rates.take(index, 0)
    assert len(rates) == 8

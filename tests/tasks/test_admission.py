"""Whether a stranger's task is taken: rates that are never exceeded, bounds, and the order of refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.config import TasksConfig
from octonode.ids import PeerId
from octonode.tasks import admission
from octonode.tasks.admission import Admission, Arrival, TokenBucket

ALICE, BOB = PeerId("alice"), PeerId("bob")
NOW = 1_800_000_000_000


def arrival(
    peer: PeerId = ALICE, *, known: bool = True, allowed: bool = True, access: str = "token", left_ms: int = 60_000
) -> Arrival:
    return Arrival(peer, known, allowed, access, NOW + left_ms)


@given(
    rate=st.floats(0.5, 500),
    burst=st.integers(1, 300),
    gaps=st.lists(st.integers(0, 3000), min_size=1, max_size=200),
)
def test_a_bucket_never_gives_more_than_its_burst_and_its_rate(rate: float, burst: int, gaps: list[int]) -> None:
    bucket = TokenBucket(rate, burst, NOW)
    now_ms, taken = NOW, []
    for gap in gaps:
        now_ms += gap
        if bucket.take(now_ms) == 0:
            taken.append(now_ms)
    for start in range(0, len(taken), 7):
        for end in range(start, len(taken), 5):
            seconds = (taken[end] - taken[start]) / 1000
            assert end - start + 1 <= burst + rate * seconds + 1e-6


@given(rate=st.floats(0.5, 500), burst=st.integers(1, 50), waits=st.integers(1, 40))
def test_who_comes_back_when_told_is_served(rate: float, burst: int, waits: int) -> None:
    bucket = TokenBucket(rate, burst, NOW)
    now_ms = NOW
    for _ in range(burst):
        assert bucket.take(now_ms) == 0
    for _ in range(waits):
        wait_ms = bucket.take(now_ms)
        assert wait_ms > 0
        now_ms += wait_ms
        assert bucket.take(now_ms) == 0


@given(steps=st.lists(st.integers(-5000, 5000), max_size=100))
def test_a_clock_that_steps_back_gives_nothing(steps: list[int]) -> None:
    bucket = TokenBucket(10, 20, NOW)
    now_ms, latest, given_out = NOW, NOW, 0
    for step in steps:
        now_ms += step
        latest = max(latest, now_ms)
        given_out += bucket.take(now_ms) == 0
    assert given_out <= 20 + 10 * (latest - NOW) / 1000 + 1e-6


def test_known_peers_have_the_larger_rate() -> None:
    for known, burst, rate in ((True, 200, 100), (False, 20, 10)):
        rules = Admission(TasksConfig())
        looks = [rules.first_look(arrival(known=known), NOW) for _ in range(burst + 1)]
        assert looks[:burst] == [None] * burst
        refusal = looks[burst]
        assert refusal is not None
        assert refusal.code == "RATE_LIMITED"
        assert 0 < refusal.retry_after_ms <= 1000 / rate + 1
        # A second later a second's worth is there again.
        again = [rules.first_look(arrival(known=known, left_ms=90_000), NOW + 1000) for _ in range(rate + 1)]
        assert again.count(None) == rate


def test_one_peers_requests_do_not_slow_another() -> None:
    rules = Admission(TasksConfig())
    while rules.first_look(arrival(ALICE), NOW) is None:
        pass
    assert rules.first_look(arrival(BOB), NOW) is None


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ({"leaving", "expired", "access", "rate"}, "LEAVING"),
        ({"expired", "access", "rate"}, "EXPIRED"),
        ({"access", "rate"}, "UNAUTHORIZED"),
        ({"rate"}, "RATE_LIMITED"),
        (set(), None),
    ],
)
def test_refusals_come_in_their_order(faults: set[str], code: str | None) -> None:
    rules = Admission(TasksConfig(requests_burst_known=1))
    if "rate" in faults:
        assert rules.first_look(arrival(), NOW) is None
    rules.leaving = "leaving" in faults
    refusal = rules.first_look(
        arrival(allowed="access" not in faults, left_ms=0 if "expired" in faults else 60_000), NOW
    )
    assert (refusal.code if refusal else None) == code


def test_a_refused_stranger_takes_no_tokens_from_the_bucket() -> None:
    rules = Admission(TasksConfig(requests_burst_known=1))
    for _ in range(5):
        refusal = rules.first_look(arrival(allowed=False, access="peers"), NOW)
        assert refusal is not None
        assert refusal.code == "FORBIDDEN"
    assert rules.first_look(arrival(), NOW) is None


def test_open_tasks_are_bounded_per_peer_and_in_all() -> None:
    rules = Admission(TasksConfig(open_max=3, open_per_peer_max=2))
    assert rules.begin(ALICE, queue_full=False) is None
    assert rules.begin(ALICE, queue_full=False) is None
    refusal = rules.begin(ALICE, queue_full=False)
    assert refusal is not None
    assert refusal.code == "OVERLOADED"
    assert refusal.retry_after_ms > 0
    assert rules.begin(BOB, queue_full=False) is None
    assert rules.begin(BOB, queue_full=False) is not None
    rules.end(ALICE)
    assert rules.open_tasks == 2
    assert rules.begin(BOB, queue_full=False) is None
    full = rules.begin(PeerId("carol"), queue_full=False)
    assert full is not None


def test_strangers_share_one_bound_however_many_they_say_they_are() -> None:
    rules = Admission(TasksConfig(open_unknown_max=3))
    strangers = [PeerId(f"stranger{number}") for number in range(5)]
    verdicts = [rules.begin(peer, queue_full=False, known=False) for peer in strangers]
    assert [verdict is None for verdict in verdicts] == [True, True, True, False, False]
    assert verdicts[3] is not None
    assert verdicts[3].code == "OVERLOADED"
    assert rules.begin(ALICE, queue_full=False) is None
    rules.end(strangers[0], known=False)
    assert rules.begin(strangers[4], queue_full=False, known=False) is None
    rules.end(ALICE)
    assert rules.begin(strangers[3], queue_full=False, known=False) is not None


def test_a_full_queue_refuses_and_counts_nothing() -> None:
    rules = Admission(TasksConfig())
    refusal = rules.begin(ALICE, queue_full=True)
    assert refusal is not None
    assert refusal.code == "OVERLOADED"
    assert rules.open_tasks == 0


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=200))
def test_counts_never_pass_the_bounds_and_return_to_zero(steps: list[tuple[str, bool]]) -> None:
    rules = Admission(TasksConfig(open_max=5, open_per_peer_max=3))
    open_by: dict[PeerId, int] = {}
    for name, begins in steps:
        peer = PeerId(name)
        if begins and rules.begin(peer, queue_full=False) is None:
            open_by[peer] = open_by.get(peer, 0) + 1
        elif not begins and open_by.get(peer):
            rules.end(peer)
            open_by[peer] -= 1
        assert rules.open_tasks == sum(open_by.values()) <= 5
        assert all(rules.open_of(p) == count <= 3 for p, count in open_by.items())
    for peer, count in open_by.items():
        for _ in range(count):
            rules.end(peer)
    assert rules.open_tasks == 0


def test_the_table_of_peers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "PEERS_MAX", 50)
    rules = Admission(TasksConfig())
    for number in range(500):
        rules.first_look(arrival(PeerId(f"peer{number}")), NOW)
    assert rules.peers == 50

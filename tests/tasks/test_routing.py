"""Who is asked, in which order, and why not the others."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.ids import PeerId
from octonode.protocol.announcement import Announcement, Serving
from octonode.tasks.asking import Ask, Candidate, Ranking
from octonode.tasks.routing import LocalModel, Standing, choose

NOW = 1_800_000_000_000
US = PeerId("us")
ROOT = "bafyroot"
ASK = Ask(ROOT, ({"role": "user", "content": "hello"},))


def announcement(name: str, served: Serving | None = None, **changes: object) -> Announcement:
    served = served or Serving(ROOT, context_tokens=2048, parallel=4, tokens_per_second=50, first_token_ms=100)
    base = Announcement(PeerId(name), 1, NOW, NOW + 60_000, serving=(served,))
    return replace(base, **changes)  # type: ignore[arg-type]


def pick(*announcements: Announcement, ask: Ask = ASK, **rest: object) -> tuple[Candidate, ...]:
    options: dict[str, object] = {"us": US, "local": None, "standings": {}, "now_ms": NOW, **rest}
    return choose(ask, announcements=announcements, **options)  # type: ignore[arg-type]


def accepted(candidates: tuple[Candidate, ...]) -> list[str]:
    return [candidate.peer for candidate in candidates if candidate.accepted]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"state": "leaving"}, "leaving the network"),
        ({"expires_at_ms": NOW}, "has expired"),
        ({"serving": ()}, "does not serve this model"),
        ({"serving": (Serving("bafyother"),)}, "does not serve this model"),
    ],
)
def test_an_announcement_that_does_not_do_is_rejected_with_its_reason(changed: dict[str, object], reason: str) -> None:
    found = pick(announcement("a", **changed), announcement("b"))
    assert accepted(found) == ["b"]
    assert found[-1].peer == "a"
    assert reason in found[-1].reason


def test_a_prompt_that_cannot_fit_is_rejected_before_it_is_sent() -> None:
    ask = replace(ASK, messages=({"role": "user", "content": "word " * 20_000},))
    small, large = Serving(ROOT, context_tokens=2048), Serving(ROOT, context_tokens=131_072)
    found = pick(announcement("small", small), announcement("large", large), ask=ask)
    assert accepted(found) == ["large"]
    assert "context of 2048 tokens" in found[-1].reason


def test_privacy_levels_that_are_not_built_are_refused_by_everybody() -> None:
    found = pick(announcement("a"), ask=replace(ASK, privacy="private"), local=LocalModel(2048, 4, 0))
    assert accepted(found) == []
    assert all("private" in candidate.reason for candidate in found)


def test_the_local_engine_is_candidate_zero_however_good_the_others_are() -> None:
    fast = Serving(ROOT, tokens_per_second=9999, parallel=64)
    for rank in get_args(Ranking):
        found = pick(announcement("a", fast), ask=replace(ASK, rank=rank), local=LocalModel(2048, 1, 1))
        assert accepted(found) == [US, "a"]
        assert found[0].local


def test_a_local_model_that_still_loads_comes_last_and_one_that_failed_not_at_all() -> None:
    assert accepted(pick(announcement("a"), local=LocalModel(waiting_for="loading"))) == ["a", US]
    found = pick(announcement("a"), local=LocalModel(failed="the local engine failed: no memory"))
    assert accepted(found) == ["a"]
    assert found[-1].reason == "the local engine failed: no memory"


def test_a_forced_peer_excludes_the_others_and_ourselves() -> None:
    found = pick(announcement("a"), announcement("b"), ask=replace(ASK, peer=PeerId("b")), local=LocalModel(2048, 4, 0))
    assert accepted(found) == ["b"]
    assert {c.reason for c in found if not c.accepted} == {"the question is for b alone"}
    assert accepted(pick(announcement("a"), ask=replace(ASK, peer=US), local=LocalModel(2048, 4, 0))) == [US]


def test_a_forced_peer_is_asked_even_when_it_has_announced_nothing() -> None:
    assert accepted(pick(ask=replace(ASK, peer=PeerId("x")))) == ["x"]


@pytest.mark.parametrize(
    ("rank", "order"),
    [
        ("speed", ["fast", "near", "cheap"]),
        ("first_token", ["near", "cheap", "fast"]),
        ("cost", ["cheap", "near", "fast"]),
        ("balanced", ["fast", "near", "cheap"]),
    ],
)
def test_each_ranking_has_its_order(rank: Ranking, order: list[str]) -> None:
    fast = Serving(ROOT, parallel=4, tokens_per_second=200, first_token_ms=900, price_out_micro_octo=90)
    near = Serving(ROOT, parallel=4, tokens_per_second=100, first_token_ms=20, price_out_micro_octo=50)
    cheap = Serving(ROOT, parallel=4, tokens_per_second=10, first_token_ms=300, price_out_micro_octo=1)
    found = pick(
        announcement("cheap", cheap),
        announcement("near", near),
        announcement("fast", fast),
        ask=replace(ASK, rank=rank),
    )
    assert accepted(found) == order
    assert [c.rank for c in found] == [0, 1, 2]


def test_a_busy_node_comes_behind_a_free_one() -> None:
    busy = Serving(ROOT, parallel=2, running=2, tokens_per_second=200)
    free = Serving(ROOT, parallel=2, running=0, tokens_per_second=20)
    for rank in ("balanced", "speed", "first_token"):
        found = pick(announcement("busy", busy), announcement("free", free), ask=replace(ASK, rank=rank))
        assert accepted(found) == ["free", "busy"]


def test_a_node_that_would_have_to_load_the_model_comes_behind_all_that_have_it() -> None:
    cold = Serving(ROOT, tokens_per_second=9999, loads_in_ms=12_300)
    full = Serving(ROOT, parallel=1, running=9, tokens_per_second=1)
    for rank in get_args(Ranking):
        ask = replace(ASK, rank=rank)
        found = pick(announcement("cold", cold), announcement("full", full), ask=ask)
        assert accepted(found) == ["full", "cold"]
        assert "not loaded there now, which took 12.3 s last time" in found[1].reason
        loading = pick(announcement("cold", cold), local=LocalModel(waiting_for="loading"), ask=ask)
        assert accepted(loading) == [US, "cold"]
    modes = {"realtime": (0, 0)}
    ask = replace(ASK, mode="realtime")
    assert accepted(pick(announcement("cold", replace(cold, modes=modes)), ask=ask)) == []
    assert accepted(pick(announcement("full", replace(full, modes=modes)), ask=ask)) == ["full"]


def test_who_failed_lately_comes_last_and_is_still_asked() -> None:
    standings = {PeerId("a"): Standing(2, NOW + 5000), PeerId("b"): Standing(1, NOW - 1)}
    found = pick(announcement("a"), announcement("b"), announcement("c"), standings=standings)
    assert accepted(found) == ["c", "b", "a"]


def test_the_newest_announcement_of_a_peer_counts() -> None:
    old, new = announcement("a", sequence=4), announcement("a", sequence=5, state="leaving")
    for pair in ((old, new), (new, old)):
        assert accepted(pick(*pair)) == []


servings = st.builds(
    Serving,
    root=st.sampled_from([ROOT, "bafyother"]),
    context_tokens=st.integers(0, 4096),
    parallel=st.integers(0, 8),
    running=st.integers(0, 8),
    tokens_per_second=st.floats(0, 500),
    first_token_ms=st.integers(0, 3000),
    price_in_micro_octo=st.integers(0, 100),
    price_out_micro_octo=st.integers(0, 100),
    loads_in_ms=st.sampled_from([0, 0, 5000]),
)
announcements = st.builds(
    lambda name, serving, state, sequence: announcement(name, serving, state=state, sequence=sequence),
    st.sampled_from("abcdefgh"),
    servings,
    st.sampled_from(["active", "leaving"]),
    st.integers(1, 100),
)
unique = st.lists(announcements, max_size=8, unique_by=lambda a: a.peer_id)


@given(unique, st.randoms(use_true_random=False), st.sampled_from(get_args(Ranking)))
def test_the_order_is_total_and_does_not_depend_on_the_order_of_arrival(
    items: list[Announcement], random: object, rank: Ranking
) -> None:
    ask = replace(ASK, rank=rank)
    first = pick(*items, ask=ask, local=LocalModel(2048, 4, 0))
    random.shuffle(items)  # type: ignore[attr-defined]
    assert pick(*items, ask=ask, local=LocalModel(2048, 4, 0)) == first
    assert sorted(c.peer for c in first) == sorted([*(a.peer_id for a in items), US])
    assert all(c.reason for c in first)
    ranks = [c.rank for c in first if c.accepted]
    assert ranks == list(range(len(ranks)))
    assert [c.accepted for c in first] == sorted((c.accepted for c in first), reverse=True)

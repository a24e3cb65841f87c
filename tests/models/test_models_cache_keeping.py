"""Who goes and who stays: the rules of `models gc` and of the quota, as a pure function."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.models.keeping import DAY_MS, Candidate, bytes_of, choose

NOW = 100 * DAY_MS
MODEL = Candidate("a", "us/a", 100, last_used_ms=1, complete=True, others=2)


def reasons(*models: Candidate, free: int = 10**9, days: float = 7.0, force: bool = False) -> dict[str, str]:
    """What stays, and why."""
    found = choose(models, free_bytes=free, now_ms=NOW, partial_days=days, force=force)
    assert {each.model for each in found} == set(models)
    return {each.model.root: each.reason for each in found if not each.goes}


def gone(*models: Candidate, free: int = 10**9, days: float = 7.0, force: bool = False) -> list[str]:
    found = choose(models, free_bytes=free, now_ms=NOW, partial_days=days, force=force)
    return [each.model.root for each in found if each.goes]


def test_those_unused_for_longest_go_until_there_is_room() -> None:
    models = [replace(MODEL, root=name, last_used_ms=used) for name, used in (("x", 3), ("y", 1), ("z", 2))]
    assert gone(*models, free=0) == []
    assert gone(*models, free=1) == ["y"]
    assert gone(*models, free=100) == ["y"]
    assert gone(*models, free=101) == ["y", "z"]
    assert reasons(*models, free=101) == {"x": "used more lately"}
    assert set(reasons(*models, free=0).values()) == {"there is room for it"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pinned": True}, "pinned"),
        ({"previous": True}, "kept as a previous version"),
        ({"users": ("engine llama (process 7) runs it",)}, "in use: engine llama (process 7) runs it"),
        ({"wanted": True}, "served here"),
        ({"written": True}, "being fetched"),
        ({"others": 0}, "the last known copy: it goes with --force alone"),
    ],
)
def test_what_must_stay_stays_and_says_why(change: dict[str, object], reason: str) -> None:
    model = replace(MODEL, **change)  # type: ignore[arg-type]
    assert reasons(model) == {"a": reason}
    assert gone(model, force=True) == (["a"] if "others" in change else []), "force is for the last copy alone"


def test_unfinished_fetches_go_with_time_and_room_is_not_made_of_them() -> None:
    young = Candidate("young", "young", 50, 1, complete=False, written_at_ms=NOW - 6 * DAY_MS)
    old = replace(young, root="old", written_at_ms=NOW - 8 * DAY_MS)
    assert gone(young, old, free=0) == ["old"]
    assert gone(young, old, free=0, days=0.0) == []
    assert "kept for 7 days" in reasons(young)["young"]
    assert gone(replace(old, pinned=True)) == []
    assert gone(replace(old, users=("a fetch (process 7) writes it",))) == []


candidates = st.builds(
    Candidate,
    root=st.uuids().map(str),
    name=st.just("n"),
    size_bytes=st.integers(0, 1000),
    last_used_ms=st.integers(0, 1000),
    complete=st.booleans(),
    pinned=st.booleans(),
    previous=st.booleans(),
    users=st.sampled_from([(), ("x",)]),
    wanted=st.booleans(),
    written=st.booleans(),
    others=st.integers(0, 2),
    written_at_ms=st.integers(0, NOW),
)


@given(st.lists(candidates, max_size=12), st.integers(0, 3000), st.booleans())
def test_no_more_goes_than_is_needed_and_nothing_that_must_stay(
    models: list[Candidate], free: int, force: bool
) -> None:
    found = choose(models, free_bytes=free, now_ms=NOW, partial_days=7.0, force=force)
    assert len(found) == len(models)
    for each in found:
        assert each.reason
        if each.goes:
            model = each.model
            assert not any((model.pinned, model.previous, model.users, model.wanted, model.written))
            assert force or model.others or not model.complete
    whole = [each for each in found if each.goes and each.model.complete]
    if whole:
        assert bytes_of([each for each in found if each.goes and each is not whole[-1]]) < free
        stayed = [each.model for each in found if not each.goes and each.reason == "used more lately"]
        assert all(each.last_used_ms >= whole[-1].model.last_used_ms for each in stayed)

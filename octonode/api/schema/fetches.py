"""The fetches of a node: what runs, waits and is paused. Pure; protocols/http.md is the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from octonode.api.schema.calls import Call, many, one
from octonode.api.schema.plain import to_json


@dataclass(frozen=True, slots=True)
class FetchFacts:
    """One model that is being fetched, or waits for it."""

    root: str
    reference: str
    """`publisher/name@version` where a manifest is known, else `cid:<root>`."""
    state: Literal["queued", "running", "paused", "failed"]
    priority: int
    background: bool
    """True: it goes on whether anybody waits for it or not, over restarts too."""
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    bytes_by_source: dict[str, int] = field(default_factory=dict)
    speed_by_source: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    """Why the last attempt failed."""


@dataclass(frozen=True, slots=True)
class ChangeFetch:
    """`POST /api/v1/fetches`: what to do with the fetch of a model."""

    reference: str
    """Its root, `cid:...`, or the reference it was asked for by."""
    action: Literal["pause", "resume", "cancel", "prioritize"]
    priority: int = 0


fetches: Call[tuple[FetchFacts, ...]] = Call("GET", "/api/v1/fetches", many(FetchFacts, "fetches"))


def change_fetch(change: ChangeFetch) -> Call[FetchFacts]:
    return Call("POST", "/api/v1/fetches", one(FetchFacts), to_json(change))

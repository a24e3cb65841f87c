"""The models on disk as a cache: what goes to make room, what stays and why. Pure; protocols/http.md is the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octonode.api.schema.calls import Call, one
from octonode.api.schema.plain import to_json


@dataclass(frozen=True, slots=True)
class CollectGarbage:
    """`POST /api/v1/models/gc`: clear away what dead processes left and old unfinished fetches, and make room."""

    dry_run: bool = False
    """Remove nothing, tell what would go."""
    free_bytes: int = 0
    """Remove models, those unused for longest first, until so much is freed. 0: what `models.disk_bytes_max` asks."""
    force: bool = False
    """Last known copies too."""


@dataclass(frozen=True, slots=True)
class GarbageFacts:
    """One thing on disk, and whether it goes."""

    kind: Literal["model", "partial", "leftover", "upload"]
    """A model, an unfinished fetch, what a dead process left, an upload that nobody went on with."""
    name: str
    """Its reference, or its path."""
    size_bytes: int
    """What removing it frees: files that have another name elsewhere count nothing."""
    goes: bool
    reason: str
    root: str = ""
    last_used_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Collected:
    """What `gc` did, or would do."""

    items: tuple[GarbageFacts, ...]
    freed_bytes: int
    dry_run: bool = False
    short_bytes: int = 0
    """Asked for and not to be had: what is left may not go."""


def collect_garbage(asked: CollectGarbage) -> Call[Collected]:
    return Call("POST", "/api/v1/models/gc", one(Collected), to_json(asked))

"""What goes to make room and what stays, and why: pure, so that `gc --dry-run` and the real thing agree.

What goes first was not used for longest. A use is an engine's, or a verb of the owner's (add, fetch, serve); to hand
blocks on to peers is none, or whoever asks for blocks would decide what stays here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DAY_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model on disk, as far as its staying depends on it."""

    root: str
    name: str
    size_bytes: int
    """What removing it frees."""
    last_used_ms: int
    complete: bool
    """Or was so once: what is damaged is no unfinished fetch."""
    pinned: bool = False
    previous: bool = False
    """An older version that is kept beside the newest one."""
    users: tuple[str, ...] = ()
    """Who has it open, in words."""
    wanted: bool = False
    """Served here, or to be served as soon as it can be."""
    written: bool = False
    """A fetch or a repair is at work on it, or waits for its turn."""
    others: int = 0
    """Other nodes that are known to hold it whole."""
    written_at_ms: int = 0
    """When its last block came."""


@dataclass(frozen=True, slots=True)
class Verdict:
    model: Candidate
    goes: bool
    reason: str


def choose(
    models: Sequence[Candidate],
    *,
    free_bytes: int,
    now_ms: int,
    partial_days: float = 0.0,
    force: bool = False,
) -> list[Verdict]:
    """A verdict on each model, those unused for longest first. Unfinished fetches of `partial_days` ago go in any case
    (0: never by themselves), complete models until `free_bytes` are free, the last known copies with `force` alone."""
    found, freed = [], 0
    for model in sorted(models, key=lambda each: (each.complete, each.last_used_ms, each.root)):
        reason = _must_stay(model, force)
        goes = False
        if reason:
            pass
        elif not model.complete:
            days = (now_ms - model.written_at_ms) / DAY_MS
            goes = bool(partial_days) and days >= partial_days
            reason = f"an unfinished fetch, {days:.0f} days old" if goes else _unfinished(partial_days)
        elif freed < free_bytes:
            goes, reason = True, "unused for longest"
        else:
            reason = "used more lately" if free_bytes else "there is room for it"
        freed += model.size_bytes if goes else 0
        found.append(Verdict(model, goes, reason))
    return found


def _must_stay(model: Candidate, force: bool) -> str:
    if model.users:
        return f"in use: {'; '.join(model.users)}"
    if model.written:
        return "being fetched"
    if model.wanted:
        return "served here"
    if model.pinned:
        return "pinned"
    if model.previous:
        return "kept as a previous version"
    if model.complete and not model.others and not force:
        return "the last known copy: it goes with --force alone"
    return ""


def _unfinished(partial_days: float) -> str:
    until = f" for {partial_days:g} days (models.partial_days)" if partial_days else ""
    return f"an unfinished fetch, kept{until}: octonode models fetch goes on with it"


def bytes_of(verdicts: Sequence[Verdict]) -> int:
    """What those that go free."""
    return sum(verdict.model.size_bytes for verdict in verdicts if verdict.goes)

"""Protocol ids and what a version promises.

An id is `/cipherocto/<name>/<major>.<minor>.<patch>`. The major number is the language: ends that share it understand
each other, whatever the rest says. A minor version adds optional keys and codes, which older ends ignore; what must
not be ignored is named in `crit`. A breaking change is a new id, and both may be served at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from octonode.ids import AGENT_PROTOCOL, HELLO_PROTOCOL, KAD_PROTOCOL

SUPPORTED: tuple[str, ...] = (AGENT_PROTOCOL, HELLO_PROTOCOL, KAD_PROTOCOL)
"""Newest first within a name."""

_ID = re.compile(r"/cipherocto/([a-z][a-z0-9-]{0,31})/(0|[1-9]\d{0,4})\.(0|[1-9]\d{0,4})\.(0|[1-9]\d{0,4})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class ProtocolId:
    name: str
    major: int
    minor: int
    patch: int

    @property
    def text(self) -> str:
        return f"/cipherocto/{self.name}/{self.major}.{self.minor}.{self.patch}"

    def understands(self, other: ProtocolId) -> bool:
        """True when ends of these two versions may talk: same name, same major number."""
        return (self.name, self.major) == (other.name, other.major)


def parse_protocol_id(text: str) -> ProtocolId | None:
    """The parts of a protocol id of ours; None for anything else."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    name, *numbers = match.groups()
    return ProtocolId(name, *map(int, numbers))


def choose(ours: Iterable[str], theirs: Iterable[str]) -> str | None:
    """The first of `ours` that the other side understands, or None: then tell which majors each side speaks."""
    offered = [parsed for text in theirs if (parsed := parse_protocol_id(text)) is not None]
    for text in ours:
        parsed = parse_protocol_id(text)
        if parsed is not None and any(parsed.understands(other) for other in offered):
            return text
    return None

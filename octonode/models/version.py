"""Semantic versions and the small ranges of references: exact, ^, ~, >=, *. Source: https://semver.org. Sans-IO."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Final

_VERSION: Final = re.compile(
    r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})"
    r"(?:-([0-9A-Za-z-]{1,32}(?:\.[0-9A-Za-z-]{1,32}){0,7}))?(?:\+[0-9A-Za-z.-]{1,32})?\Z",
    re.ASCII,
)


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """Compares as semver says: a pre-release stands before its release; build metadata is dropped from the order."""

    major: int
    minor: int
    patch: int
    pre: tuple[str, ...] = ()
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> Version:
        """Raises ValueError."""
        match = _VERSION.match(text)
        if match is None:
            raise ValueError(f"{text[:64]!r} is not a semantic version such as 1.0.0")
        pre = tuple(match[4].split(".")) if match[4] else ()
        if any(part.isdigit() and part != "0" and part.startswith("0") for part in pre):
            raise ValueError(f"{text[:64]!r} has a number with a leading zero")
        return cls(int(match[1]), int(match[2]), int(match[3]), pre, text)

    def _order(self) -> tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]:
        parts = tuple((not p.isdigit(), int(p) if p.isdigit() else 0, "" if p.isdigit() else p) for p in self.pre)
        return self.major, self.minor, self.patch, not self.pre, parts

    def __lt__(self, other: Version) -> bool:
        return self._order() < other._order()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._order() == other._order()

    def __hash__(self) -> int:
        return hash(self._order())

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class VersionRange:
    """`1.2.3` exactly, `^1.2.3` below 2.0.0, `~1.2.3` below 1.3.0, `>=1.2.3`, `*` or nothing for any."""

    text: str

    @classmethod
    def parse(cls, text: str) -> VersionRange:
        """Raises ValueError."""
        range_ = cls(text or "*")
        if range_.text != "*":
            Version.parse(range_._base())
        return range_

    def _base(self) -> str:
        return self.text.removeprefix("^").removeprefix("~") if self.text[0] in "^~" else self.text.removeprefix(">=")

    @property
    def exact(self) -> bool:
        return self.text[0].isdigit()

    def allows(self, version: Version) -> bool:
        """Pre-releases are allowed only where the range itself names one of the same release."""
        if self.text == "*":
            return not version.pre
        base = Version.parse(self._base())
        if self.exact:
            return version == base
        same_release = (version.major, version.minor, version.patch) == (base.major, base.minor, base.patch)
        if version < base or (version.pre and not (base.pre and same_release)):
            return False
        if self.text.startswith(">="):
            return True
        if self.text.startswith("~"):
            return (version.major, version.minor) == (base.major, base.minor)
        if base.major:
            return version.major == base.major
        if base.minor:
            return (version.major, version.minor) == (0, base.minor)
        return same_release


ANY_VERSION: Final = VersionRange("*")


def best(range_: VersionRange, versions: list[str]) -> str | None:
    """The highest of `versions` that the range allows; any pre-release if `*` finds nothing else."""
    parsed = sorted(Version.parse(text) for text in versions)
    allowed = [version for version in parsed if range_.allows(version)]
    if not allowed and range_.text == "*":
        allowed = parsed
    return str(allowed[-1]) if allowed else None

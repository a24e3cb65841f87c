"""Semantic versions, and the ranges of them in references. Sans-IO.

Sources: https://semver.org, and for ranges with partial versions https://github.com/npm/node-semver#ranges;
alternatives (`||`) and hyphen ranges are left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache, total_ordering
from typing import Final

_VERSION: Final = re.compile(
    r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})"
    r"(?:-([0-9A-Za-z-]{1,32}(?:\.[0-9A-Za-z-]{1,32}){0,7}))?(?:\+[0-9A-Za-z.-]{1,32})?\Z",
    re.ASCII,
)
RANGE_CHARACTERS_MAX: Final = 128
COMPARATORS_MAX: Final = 8
LATEST: Final = "latest"
_COMPARATOR: Final = re.compile(
    r"(>=|<=|>|<|=|\^|~)?[ ]*"
    r"(\*|[xX]|0|[1-9]\d{0,8})(?:\.(\*|[xX]|0|[1-9]\d{0,8})(?:\.(\*|[xX]|0|[1-9]\d{0,8})(?:-([0-9A-Za-z.-]{1,64}))?)?)?",
    re.ASCII,
)
_SEPARATOR: Final = re.compile(r" *, *| +")


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
    """`1.2.3` alone; `^1.2`, `~1.2`, `1.x`, `1.2`; `>=1.2 <2` (all must hold); `*` or nothing for any; `latest`.

    `latest` allows what `*` does: whoever resolves it asks the publisher's record first, not the shelf.
    """

    text: str

    @classmethod
    def parse(cls, text: str) -> VersionRange:
        """Raises ValueError."""
        range_ = cls(text.strip() or "*")
        _comparators(range_.text)
        return range_

    @property
    def exact(self) -> bool:
        """True when it names one version."""
        comparators = _comparators(self.text)
        return len(comparators) == 1 and comparators[0].exact

    @property
    def latest(self) -> bool:
        return self.text == LATEST

    def allows(self, version: Version) -> bool:
        """Pre-releases are allowed only where the range itself names one of the same release."""
        comparators = _comparators(self.text)
        if version.pre and not any(each.names_pre_of(version) for each in comparators):
            return False
        return all(each.holds(version) for each in comparators)

    def __str__(self) -> str:
        return self.text


ANY_VERSION: Final = VersionRange("*")


@dataclass(frozen=True, slots=True)
class _Comparator:
    """From `least`, itself allowed unless `above`, to below `below`; up to and with `most`."""

    least: Version | None = None
    above: bool = False
    below: Version | None = None
    most: Version | None = None
    named: Version | None = None
    """The whole version that was written."""

    @property
    def exact(self) -> bool:
        return self.least is not None and self.least == self.most

    def names_pre_of(self, version: Version) -> bool:
        return self.named is not None and bool(self.named.pre) and _release(self.named) == _release(version)

    def holds(self, version: Version) -> bool:
        if self.least is not None and (version < self.least or (self.above and version == self.least)):
            return False
        if self.below is not None and version >= self.below:
            return False
        return self.most is None or version <= self.most


def _release(version: Version) -> tuple[int, int, int]:
    return version.major, version.minor, version.patch


@lru_cache(maxsize=1024)
def _comparators(text: str) -> tuple[_Comparator, ...]:
    """What a range asks of a version. Raises ValueError."""
    if len(text) > RANGE_CHARACTERS_MAX:
        raise ValueError(f"a range has at most {RANGE_CHARACTERS_MAX} characters")
    if text == LATEST:
        return ()
    found: list[_Comparator] = []
    place = 0
    while place < len(text):
        match = _COMPARATOR.match(text, place)
        if match is None or len(found) == COMPARATORS_MAX:
            raise ValueError(f"{text[:64]!r} is not a range of versions such as ^1.2")
        found.append(_comparator(match[1] or "", [match[2], match[3], match[4]], match[5] or ""))
        place = match.end()
        separator = _SEPARATOR.match(text, place)
        if place < len(text) and (separator is None or separator.end() == len(text)):
            raise ValueError(f"{text[:64]!r} is not a range of versions such as ^1.2")
        place = separator.end() if separator else place
    return tuple(found)


def _comparator(operator: str, parts: list[str | None], pre: str) -> _Comparator:
    """One comparator; `parts` are numbers, wildcards, or None where they were left out."""
    numbers: list[int] = []
    for part in parts:
        if part is None or part in "*xX":
            break
        numbers.append(int(part))
    if any(part is not None and part not in "*xX" for part in parts[len(numbers) :]):
        raise ValueError("a number after a wildcard")
    if pre and len(numbers) < 3:
        raise ValueError("a pre-release of a version that is not written out")
    if not numbers:
        if operator in ("<", ">"):
            raise ValueError(f"no version is {operator} any")
        return _Comparator()
    base = Version.parse(".".join(str(number) for number in (*numbers, 0, 0)[:3]) + (f"-{pre}" if pre else ""))
    named = base if len(numbers) == 3 else None
    return _bounds(operator, base, named, _next(numbers))


def _bounds(operator: str, base: Version, named: Version | None, after: Version) -> _Comparator:
    """`after`: the first version behind all that a partial one stands for."""
    if operator == "^":
        return _Comparator(least=base, below=_caret(base, after, named), named=named)
    if operator == "~":
        return _Comparator(least=base, below=Version(base.major, base.minor + 1, 0) if named else after, named=named)
    if operator == ">=":
        return _Comparator(least=base, named=named)
    if operator == ">":
        return _Comparator(least=base, above=True, named=named) if named else _Comparator(least=after)
    if operator == "<":
        return _Comparator(below=base, named=named)
    if operator == "<=":
        return _Comparator(most=base, named=named) if named else _Comparator(below=after)
    return _Comparator(least=base, most=base, named=named) if named else _Comparator(least=base, below=after)


def _next(numbers: list[int]) -> Version:
    last = [*numbers[:-1], numbers[-1] + 1]
    major, minor, patch = (*last, 0, 0)[:3]
    return Version(major, minor, patch)


def _caret(base: Version, after: Version, named: Version | None) -> Version:
    """Below the next version that may break: the leftmost number that is not 0 stays."""
    if base.major:
        return Version(base.major + 1, 0, 0)
    if base.minor:
        return Version(0, base.minor + 1, 0)
    return Version(0, 0, base.patch + 1) if named else after


def is_version(text: str) -> bool:
    try:
        Version.parse(text)
    except ValueError:
        return False
    return True


def best(range_: VersionRange, versions: Iterable[str], *, avoid: Collection[str] = ()) -> str | None:
    """The highest of `versions` that the range allows; any pre-release if `*` or `latest` finds nothing else.

    Those to `avoid`, deprecated ones say, are taken only where they are all there is.
    """
    parsed = sorted(Version.parse(text) for text in versions)
    for found in ([version for version in parsed if str(version) not in avoid], parsed):
        allowed = [version for version in found if range_.allows(version)]
        if not allowed and range_.text in ("*", LATEST):
            allowed = found
        if allowed:
            return str(allowed[-1])
    return None

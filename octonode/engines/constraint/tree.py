"""What a JSON Schema allows, as a tree that grammars and sample values are made of. Pure data.

The tree may allow less than the schema does (no members beyond the declared ones, one order of members), never more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NUMBER_DIGITS_MAX = 15
"""Digits of a whole number, so that it is exact in every reader of JSON."""
REPEATS_MAX = 1000
"""Items of an array, or characters of a text, that a schema may count; grammars grow with them."""


@dataclass(frozen=True, slots=True)
class Anything:
    """Any JSON value, or any JSON object."""

    object_only: bool = False


@dataclass(frozen=True, slots=True)
class Literal:
    """One value, as JSON text."""

    json: str


@dataclass(frozen=True, slots=True)
class Characters:
    """One character of a set: `ranges` of code points, both ends included."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Pattern
    least: int
    most: int | None
    """None: without end."""


Pattern = Characters | Sequence | Choice | Repeat
"""A regular expression over the characters of a text."""


@dataclass(frozen=True, slots=True)
class Text:
    least: int = 0
    most: int | None = None
    pattern: Pattern | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """From `low` to `high`, both included; None: no bound."""

    whole: bool
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Items:
    """An array: first the values of `prefix`, then of `item`, `least` to `most` in all."""

    prefix: tuple[Node, ...]
    item: Node | None
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    value: Node
    required: bool


@dataclass(frozen=True, slots=True)
class Members:
    """An object with these members in this order, those not required left out at will."""

    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """An object with any names."""

    value: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Either:
    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """A definition of the schema, which may hold itself."""

    name: str


Node = Anything | Literal | Text | Number | Items | Members | Mapping | Either | Named


@dataclass(frozen=True, slots=True)
class Tree:
    root: Node
    definitions: dict[str, Node] = field(default_factory=dict)

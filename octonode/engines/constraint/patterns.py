"""Regular expressions of JSON Schema (ECMA 262) as trees: those parts of them that a grammar can enforce. Pure.

A text that matches as a whole also matches somewhere inside, so anchors at the ends are taken and otherwise do nothing.
"""

from __future__ import annotations

from octonode.engines.constraint.tree import REPEATS_MAX, Characters, Choice, Pattern, Repeat, Sequence
from octonode.errors import OctonodeError

PATTERN_CHARACTERS_MAX = 512
PATTERN_DEPTH_MAX = 32
STATES_MAX = 500
"""Places in it, those in a counted repetition as often as it counts. All of them may be meant at once at a character,
and an engine tries each of them for each token of its vocabulary."""

_LAST = 0x10FFFF
_DIGITS = ((0x30, 0x39),)
_WORD = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE = ((0x20, 0x20),)
_SETS = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "b": 8}
_PRINTABLE = ((0x20, 0x7E), (0xA0, 0xD7FF), (0xE000, _LAST))
"""What stands for `.` and for complements: all but controls and halves of pairs."""


def read_pattern(text: str) -> Pattern:
    """The tree of a regular expression. Raises OctonodeError: BAD_REQUEST for what is none, UNSUPPORTED for
    look-around, references back, word borders, and repetitions that mean too much at once."""
    if len(text) > PATTERN_CHARACTERS_MAX:
        raise _unsupported(f"it has more than {PATTERN_CHARACTERS_MAX} characters")
    reader = _Reader(text)
    tree = reader.choice(0)
    if reader.position < len(text):
        raise _bad(f"there is a ) too many at {reader.position}")
    if _states(tree) > STATES_MAX:
        raise _unsupported(f"its repetitions come to more than {STATES_MAX} places")
    return tree


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self.position = 0

    def choice(self, depth: int) -> Pattern:
        if depth > PATTERN_DEPTH_MAX:
            raise _unsupported("it is nested too deeply")
        options = [self._sequence(depth)]
        while self._take("|"):
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self, depth: int) -> Pattern:
        parts: list[Pattern] = []
        while self.position < len(self._text) and self._text[self.position] not in "|)":
            if self._take("^"):
                if parts or depth > 1:
                    raise _unsupported("^ stands within it")
            elif self._take("$"):
                if self.position < len(self._text) and self._text[self.position] not in "|)":
                    raise _unsupported("$ stands within it")
            else:
                parts.append(self._repeated(self._atom(depth)))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _atom(self, depth: int) -> Pattern:
        sign = self._next()
        if sign == "(":
            if self._take("?") and not self._take(":"):
                raise _unsupported("it looks ahead or behind, or names a group")
            inner = self.choice(depth + 1)
            if not self._take(")"):
                raise _bad("a ) is missing")
            return inner
        if sign == "[":
            return Characters(self._class())
        if sign == ".":
            return Characters(_PRINTABLE)
        if sign == "\\":
            return Characters(self._escape())
        if sign in "*+?{":
            raise _bad(f"{sign} repeats nothing at {self.position - 1}")
        return Characters(((ord(sign), ord(sign)),))

    def _repeated(self, part: Pattern) -> Pattern:
        least, most = self._counts()
        if (least, most) == (1, 1):
            return part
        self._take("?")  # lazy or greedy: the same texts
        if self.position < len(self._text) and self._text[self.position] in "*+?{":
            raise _bad("it repeats a repetition")
        if most is None and _may_be_empty(part):
            raise _unsupported("it repeats without end what may be empty")
        return Repeat(part, least, most)

    def _counts(self) -> tuple[int, int | None]:
        for sign, counts in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return counts
        if not self._take("{"):
            return 1, 1
        end = self._text.find("}", self.position)
        low, comma, high = self._text[self.position : max(end, 0)].partition(",")
        if end < 0 or not low.isdecimal() or not (high.isdecimal() or not high):
            raise _bad("a { counts nothing")
        self.position = end + 1
        least = int(low) if len(low) < 8 else REPEATS_MAX + 1
        most = (int(high) if len(high) < 8 else REPEATS_MAX + 1) if high else (None if comma else least)
        if max(least, most or 0) > REPEATS_MAX:
            raise _unsupported(f"it counts beyond {REPEATS_MAX}")
        if most is not None and most < least:
            raise _bad("a { counts downwards")
        return least, most

    def _class(self) -> tuple[tuple[int, int], ...]:
        complement = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            start = self._class_part()
            dash = self._text[self.position : self.position + 1] == "-"
            if len(start) == 1 and dash and self._text[self.position + 1 : self.position + 2] not in ("]", ""):
                self.position += 1
                end = self._class_part()
                if len(end) != 1 or end[0][1] < start[0][0]:
                    raise _bad("a range of characters runs backwards")
                start = ((start[0][0], end[0][1]),)
            ranges += start
        if complement:
            ranges = _complement(ranges)
        if not ranges:
            raise _bad("a class of characters is empty")
        return tuple(ranges)

    def _class_part(self) -> tuple[tuple[int, int], ...]:
        sign = self._next()
        return self._escape() if sign == "\\" else ((ord(sign), ord(sign)),)

    def _escape(self) -> tuple[tuple[int, int], ...]:
        sign = self._next()
        if sign in _SETS:
            return _SETS[sign]
        if sign.lower() in _SETS:
            return tuple(_complement(list(_SETS[sign.lower()])))
        if sign in "nrtf":
            return ((_CONTROLS[sign], _CONTROLS[sign]),)
        if sign in "xu":
            digits = self._text[self.position : self.position + (2 if sign == "x" else 4)]
            try:
                code = int(digits, 16)
            except ValueError:
                raise _bad("an escape is no number") from None
            self.position += len(digits)
            return ((code, code),)
        if sign.isalnum():
            raise _unsupported(f"it has the escape \\{sign}")
        return ((ord(sign), ord(sign)),)

    def _next(self) -> str:
        if self.position >= len(self._text):
            raise _bad("it ends too soon")
        self.position += 1
        return self._text[self.position - 1]

    def _take(self, sign: str) -> bool:
        found = self._text.startswith(sign, self.position)
        self.position += len(sign) if found else 0
        return found


def _complement(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for low, high in _PRINTABLE:
        start = low
        for left, right in sorted(ranges):
            if right < start or left > high:
                continue
            if left > start:
                out.append((start, left - 1))
            start = max(start, right + 1)
        if start <= high:
            out.append((start, high))
    return out


def _may_be_empty(part: Pattern) -> bool:
    if isinstance(part, Characters):
        return False
    if isinstance(part, Sequence):
        return all(map(_may_be_empty, part.parts))
    if isinstance(part, Choice):
        return any(map(_may_be_empty, part.options))
    return part.least == 0 or _may_be_empty(part.part)


def _states(part: Pattern) -> int:
    if isinstance(part, Characters):
        return 1
    if isinstance(part, Sequence):
        return sum(map(_states, part.parts))
    if isinstance(part, Choice):
        return sum(map(_states, part.options))
    return _states(part.part) * max(1, part.least if part.most is None else part.most)


def _bad(why: str) -> OctonodeError:
    return OctonodeError(f"the schema has a pattern that is no regular expression: {why}", code="BAD_REQUEST")


def _unsupported(why: str) -> OctonodeError:
    return OctonodeError(f"the schema has a pattern that cannot be enforced: {why}; simplify it", code="UNSUPPORTED")

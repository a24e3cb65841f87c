"""Between frozen dataclasses and plain maps, strictly: one reader for all that is defined in this package.

Bounds stand beside the fields, as `Annotated[str, Bound(1, 4096)]`: of a number its value, of everything else its
length. A value outside them, of another type, or a field that nobody knows is a `RecordError` that names the field.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

from octonode.errors import OctonodeError

T = TypeVar("T")
ITEMS_MAX = 65_536
"""Of a list without a bound of its own."""
TEXT_CHARACTERS_MAX = 1024
"""Of a text without a bound of its own."""


class RecordError(OctonodeError):
    """A map is not the record it should be."""

    code = "BAD_REQUEST"


@dataclass(frozen=True, slots=True)
class Bound:
    """The least and the most a field may be: a number's value, else a length in characters, bytes or items."""

    least: float = 0
    most: float = math.inf
    each: float = math.inf
    """Of a tuple of texts: the length of each of them."""


def read(kind: type[T], value: Any, what: str = "") -> T:
    """The record in a map. Raises RecordError; a field with a default may be absent."""
    what = what or kind.__name__
    if not isinstance(value, Mapping):
        raise RecordError(f"{what} must be a map of fields")
    readers = _readers(typing.cast(Hashable, kind))
    for name in value:
        if name not in readers:
            raise RecordError(f"{what} has no field {str(name)[:64]!r}; known are {', '.join(readers)}")
    given: dict[str, Any] = {}
    for name, (reader, needed) in readers.items():
        if name in value:
            given[name] = reader(value[name], name)
        elif needed:
            raise RecordError(f"{name} is missing in {what}")
    return kind(**given)


def write(record: Any) -> dict[str, Any]:
    """The map of a record, with lists for tuples; fields at their default are left out."""
    value: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        item = getattr(record, field.name)
        if field.default is dataclasses.MISSING or item != field.default:
            value[field.name] = _plain(item)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return write(value) if dataclasses.is_dataclass(value) else value


Reader = Callable[[Any, str], Any]


@cache
def _readers(kind: typing.Any) -> dict[str, tuple[Reader, bool]]:
    """Field -> (its reader, whether it must be there)."""
    hints = typing.get_type_hints(kind, include_extras=True)
    needed = dataclasses.MISSING
    return {
        field.name: (_reader(hints[field.name], Bound()), field.default is needed and field.default_factory is needed)
        for field in dataclasses.fields(kind)
    }


def _reader(hint: Any, bound: Bound) -> Reader:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        found = [item for item in hint.__metadata__ if isinstance(item, Bound)]
        return _reader(arguments[0], found[0] if found else bound)
    if origin is tuple:
        return _tuple_reader(_reader(arguments[0], Bound(most=bound.each)), bound)
    if origin in (types.UnionType, typing.Union):
        inner = _reader(arguments[0], bound)
        return lambda value, name: None if value is None else inner(value, name)
    if origin is Literal:
        return _choice_reader(arguments)
    if dataclasses.is_dataclass(hint):
        return lambda value, name: read(typing.cast(type[Any], hint), value, name)
    return _SCALARS[hint](bound)


def _tuple_reader(inner: Reader, bound: Bound) -> Reader:
    most = min(bound.most, ITEMS_MAX)

    def take(value: Any, name: str) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise RecordError(f"{name} must be a list")
        if not bound.least <= len(value) <= most:
            raise RecordError(f"{name} has {len(value)} items; it takes {bound.least:g} to {most:g}")
        return tuple(inner(item, name) for item in value)

    return take


def _choice_reader(choices: tuple[Any, ...]) -> Reader:
    def take(value: Any, name: str) -> Any:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise RecordError(f"{name} must be one of {', '.join(map(str, choices))}")
        return value

    return take


def _text_reader(bound: Bound) -> Reader:
    most = TEXT_CHARACTERS_MAX if bound.most == math.inf else bound.most

    def take(value: Any, name: str) -> str:
        if type(value) is not str:
            raise RecordError(f"{name} must be a text")
        if not bound.least <= len(value) <= most:
            raise RecordError(f"{name} has {len(value)} characters; it takes {bound.least:g} to {most:g}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RecordError(f"{name} holds half of a surrogate pair, which is no character") from None
        return value

    return take


def _bytes_reader(bound: Bound) -> Reader:
    def take(value: Any, name: str) -> bytes:
        if type(value) is not bytes:
            raise RecordError(f"{name} must be bytes")
        if not bound.least <= len(value) <= bound.most:
            limits = f"{bound.least:g} to {bound.most:g}"
            raise RecordError(f"{name} has {len(value)} bytes; it takes {limits}", code="TOO_LARGE")
        return value

    return take


def _number_reader(kind: type, word: str) -> Callable[[Bound], Reader]:
    def make(bound: Bound) -> Reader:
        def take(value: Any, name: str) -> Any:
            good = type(value) is kind or (kind is float and type(value) is int)
            # NaN fails too, and so do whole numbers that no float can hold
            if not good or not -sys.float_info.max <= value <= sys.float_info.max:
                raise RecordError(f"{name} must be {word}")
            if not bound.least <= value <= bound.most:
                raise RecordError(f"{name} is {value}; it takes {bound.least:g} to {bound.most:g}")
            return kind(value)

        return take

    return make


def _flag_reader(bound: Bound) -> Reader:
    def take(value: Any, name: str) -> bool:
        if type(value) is not bool:
            raise RecordError(f"{name} must be true or false")
        return value

    return take


_SCALARS: dict[Any, Callable[[Bound], Reader]] = {
    str: _text_reader,
    bytes: _bytes_reader,
    int: _number_reader(int, "a whole number"),
    float: _number_reader(float, "a number"),
    bool: _flag_reader,
}

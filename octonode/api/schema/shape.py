"""Between JSON and the frozen dataclasses of the faces: one reader for all of them. Pure; `plain` is the writer.

Two readings: `parse` for request bodies is strict (an unknown field is an error that names the nearest), `read` for
answers is lenient (a newer daemon may say more than we know).
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from octonode.api.schema.failures import bad_request
from octonode.api.schema.plain import to_json
from octonode.errors import OctonodeError

__all__ = ["parse", "read", "text", "to_json"]

T = TypeVar("T")


def parse(kind: type[T], body: Any) -> T:
    """The request `kind` that a body means. Raises BAD_REQUEST that names the field."""
    if not isinstance(body, Mapping):
        raise bad_request("the body must be a JSON object")
    known = {each.name for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in body:
        if name not in known:
            close = difflib.get_close_matches(str(name), sorted(known), n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
            raise bad_request(f"there is no field {str(name)[:64]!r}; {hint}", str(name)[:64])
    return _build(kind, body)


def read(kind: type[T], value: Any) -> T:
    """The facts in an answer; unknown fields are ignored. Raises INTERNAL when a needed one is missing or odd."""
    try:
        return _build(kind, value)
    except OctonodeError as error:
        raise OctonodeError(
            f"the daemon's answer is not {kind.__name__}: {error.message}; are versions mixed?"
        ) from None


def _build(kind: type[T], value: Any) -> T:
    if not isinstance(value, Mapping):
        raise bad_request(f"{kind.__name__} must be a JSON object")
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        if each.name in value:
            given[each.name] = _convert(value[each.name], hints[each.name], each.name)
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise bad_request(f"{each.name} is missing", each.name)
    return kind(**given)


def _convert(value: Any, hint: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise bad_request(f"{name} must be a list", name)
        return tuple(_convert(each, arguments[0], name) for each in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise bad_request(f"{name} must be an object", name)
        return {str(key): _convert(each, arguments[1], name) for key, each in value.items()}
    if origin is Literal:
        if value not in arguments:
            raise bad_request(f"{name} must be one of {', '.join(map(str, arguments))}", name)
        return value
    if origin is types.UnionType:
        return None if value is None else _convert(value, arguments[0], name)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type[Any], hint), value)
    return _convert_scalar(value, hint, name)


def _convert_scalar(value: Any, hint: Any, name: str) -> Any:
    if hint is Any:
        return value
    if hint is bytes and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise bad_request(f"{name} must be base64", name) from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise bad_request(f"{name} must be {_NAMES.get(hint, hint.__name__)}", name)
    if isinstance(value, str):
        return text(value, name)
    return value


_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", bytes: "base64"}


def text(value: str, name: str, characters_max: int = 1 << 24) -> str:
    """`value` if it can be written as UTF-8 and is short enough: JSON may smuggle in halves of surrogate pairs."""
    if len(value) > characters_max:
        raise bad_request(f"{name} has {len(value)} characters; at most {characters_max} are taken", name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise bad_request(f"{name} holds half of a surrogate pair, which is no character", name) from None
    return value

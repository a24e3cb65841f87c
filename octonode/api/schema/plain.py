"""From frozen dataclasses to JSON-ready values: one writer for all shapes. Pure; `shape` is the reader."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote


def to_json(value: Any) -> Any:
    """JSON-ready: dataclasses become objects, tuples lists, bytes base64."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: to_json(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(each) for each in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    return value


def quoted(part: str, safe: str = "/") -> str:
    """For the path of a URL. Half of a surrogate pair, which no name has, becomes a question mark."""
    return quote(part, safe, errors="replace")

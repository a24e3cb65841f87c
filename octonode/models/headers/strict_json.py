"""JSON of strangers: bounded in bytes, nodes and depth, and no key twice (two readers would see two files). Pure."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

NODES_MAX: Final = 1_000_000
"""Commas, colons and brackets; a node costs a parser about 100 bytes."""
WIDE_BYTES_MAX: Final = 1024 * 1024
"""What is larger has to be ASCII: one rare character makes four bytes of every byte."""


class JsonRefused(ValueError):
    """The text says why."""


def read_object(data: bytes, bytes_max: int) -> dict[str, Any]:
    """The object in `data`. Raises JsonRefused."""
    if len(data) > bytes_max:
        raise JsonRefused(f"its JSON has more than {bytes_max} bytes")
    if sum(map(data.count, (b",", b":", b"{", b"["))) > NODES_MAX:
        raise JsonRefused(f"its JSON has more than {NODES_MAX} parts")
    if len(data) > WIDE_BYTES_MAX and not data.isascii():
        raise JsonRefused(f"its JSON has more than {WIDE_BYTES_MAX} bytes and is not ASCII")
    try:
        value = json.loads(data, object_pairs_hook=_once, parse_constant=_no_constant)
    except JsonRefused:
        raise
    except RecursionError:
        raise JsonRefused("its JSON is nested too deeply") from None
    except ValueError:
        raise JsonRefused("it is not JSON") from None
    if not isinstance(value, dict):
        raise JsonRefused("its JSON is not an object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonRefused(f"its JSON has the key {twice[:64]!r} twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise JsonRefused(f"its JSON has the value {name}")

"""Reading a map that a stranger sent, one field at a time. Every fault is a RemoteProtocolError naming the field.

A key that is absent has its default, or is a fault where none is given. Keys nobody reads are ignored: that is how
minor versions add fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from octonode.errors import RemoteProtocolError
from octonode.ids import PeerId, public_key_from_peer_id

INTEGER_MAX = 2**63 - 1
TEXT_BYTES_MAX = 1024
_ABSENT: Any = object()


def _take(value: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    item = value.get(key, default)
    if item is _ABSENT:
        raise RemoteProtocolError(f"field {key} is missing")
    if type(item) is not kind:
        raise RemoteProtocolError(f"field {key} must be {kind.__name__}, not {type(item).__name__}")
    return item


def as_map(value: Any, what: str) -> dict[str, Any]:
    """`value` when it is a map."""
    if type(value) is not dict:
        raise RemoteProtocolError(f"{what} must be a map, not {type(value).__name__}")
    return value


def natural(value: Mapping[str, Any], key: str, default: int = _ABSENT, *, most: int = INTEGER_MAX) -> int:
    """An integer from 0 to `most`; never a bool."""
    item: int = _take(value, key, int, default)
    if not 0 <= item <= most:
        raise RemoteProtocolError(f"field {key} must be from 0 to {most}")
    return item


def integer(value: Mapping[str, Any], key: str) -> int:
    """An integer of 64 bits with a sign; never a bool."""
    item: int = _take(value, key, int, _ABSENT)
    if not -INTEGER_MAX - 1 <= item <= INTEGER_MAX:
        raise RemoteProtocolError(f"field {key} does not fit 64 bits")
    return item


def number(value: Mapping[str, Any], key: str, default: float = _ABSENT) -> float:
    """A finite number of 0 or more, as float; integers are taken, since some encoders write 12.0 as 12."""
    item = value.get(key, default)
    if type(item) not in (int, float) or not math.isfinite(item) or item < 0:
        raise RemoteProtocolError(f"field {key} must be a number of 0 or more")
    return float(item)


def boolean(value: Mapping[str, Any], key: str, default: bool = _ABSENT) -> bool:
    item: bool = _take(value, key, bool, default)
    return item


def text(value: Mapping[str, Any], key: str, default: str = _ABSENT, *, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """Text of at most `bytes_max` bytes of UTF-8."""
    item: str = _take(value, key, str, default)
    if len(item) > bytes_max or (len(item) * 4 > bytes_max and len(item.encode()) > bytes_max):
        raise RemoteProtocolError(f"field {key} is over {bytes_max} bytes", code="TOO_LARGE")
    return item


def choice(value: Mapping[str, Any], key: str, choices: frozenset[str], default: str = _ABSENT) -> Any:
    """Text that is one of `choices`."""
    item: str = _take(value, key, str, default)
    if item not in choices:
        raise RemoteProtocolError(f"field {key} must be one of {', '.join(sorted(choices))}, not {item[:32]!r}")
    return item


def raw(value: Mapping[str, Any], key: str, default: bytes = _ABSENT, *, bytes_max: int) -> bytes:
    item: bytes = _take(value, key, bytes, default)
    if len(item) > bytes_max:
        raise RemoteProtocolError(f"field {key} is over {bytes_max} bytes", code="TOO_LARGE")
    return item


def exact_bytes(value: Mapping[str, Any], key: str, size: int, default: bytes = _ABSENT) -> bytes:
    """Exactly `size` bytes; the default is returned for an absent key, whatever its size."""
    if default is not _ABSENT and key not in value:
        return default
    item: bytes = _take(value, key, bytes, _ABSENT)
    if len(item) != size:
        raise RemoteProtocolError(f"field {key} must have {size} bytes, not {len(item)}")
    return item


def peer_id(value: Mapping[str, Any], key: str) -> PeerId:
    """The text of a peer id that holds an Ed25519 key."""
    item = text(value, key, bytes_max=64)
    try:
        public_key_from_peer_id(item)
    except ValueError:
        raise RemoteProtocolError(f"field {key} is not the peer id of an Ed25519 key") from None
    return PeerId(item)


def items(value: Mapping[str, Any], key: str, *, most: int) -> list[Any]:
    """An array of at most `most` items; absent is empty."""
    if key not in value:
        return []
    item: list[Any] = _take(value, key, list, _ABSENT)
    if len(item) > most:
        raise RemoteProtocolError(f"field {key} has {len(item)} items, over {most}", code="TOO_LARGE")
    return item


def texts(value: Mapping[str, Any], key: str, *, most: int, bytes_max: int = TEXT_BYTES_MAX) -> tuple[str, ...]:
    """An array of texts as a tuple; absent is empty."""
    found = items(value, key, most=most)
    for item in found:
        if type(item) is not str or len(item) > bytes_max:
            raise RemoteProtocolError(f"field {key} must hold texts of at most {bytes_max} bytes")
    return tuple(found)


def plain_map(value: Mapping[str, Any], key: str, *, depth: int = 14) -> dict[str, Any]:
    """A map of plain values (text, bytes, integers, finite numbers, bools, null, arrays, maps); absent is empty."""
    if key not in value:
        return {}
    item: dict[str, Any] = _take(value, key, dict, _ABSENT)
    _check_plain(item, key, depth)
    return item


def _check_plain(value: Any, key: str, left: int) -> None:
    if left == 0:
        raise RemoteProtocolError(f"field {key} nests too deep")
    for item in value.values() if type(value) is dict else value:
        kind = type(item)
        if kind is dict or kind is list:
            _check_plain(item, key, left - 1)
        elif kind is float:
            if not math.isfinite(item):
                raise RemoteProtocolError(f"field {key} holds a number that is not finite")
        elif kind not in (str, bytes, int, bool, type(None)):
            raise RemoteProtocolError(f"field {key} holds a {kind.__name__}")

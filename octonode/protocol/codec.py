"""msgpack under limits: what a stranger's bytes may become, and nothing else.

msgpack has no canonical form, so nothing is ever signed by re-encoding: signatures cover bytes as received. Here the
ambiguous or costly parts of the format are refused: ext types, map keys that are not text, duplicate keys, deep
nesting, many values, bytes after the value. Format: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

from typing import Any

import msgpack

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.protocol.limits import Limits


def pack(value: Any) -> bytes:
    """The msgpack bytes of plain values (maps with text keys). Raises LocalProtocolError for anything else."""
    try:
        packed: bytes = msgpack.packb(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"this value has no place on the wire: {error}", code="BAD_REQUEST") from None
    return packed


def unpack(data: bytes, limits: Limits, *, keys_max: int | None = None) -> Any:
    """The one value in `data`; maps become dicts, arrays lists. Raises RemoteProtocolError (BAD_MESSAGE).

    `keys_max` bounds the keys of each map; `limits.map_keys_max` where it is not given.
    """
    guard = _Guard(limits.values_max)
    try:
        value = msgpack.unpackb(
            data,
            object_pairs_hook=guard.take_map,
            list_hook=guard.take_list,
            ext_hook=_refuse_ext,
            max_map_len=limits.map_keys_max if keys_max is None else keys_max,
            max_array_len=limits.values_max,
            max_ext_len=0,
        )
    except RemoteProtocolError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise RemoteProtocolError(f"not an acceptable msgpack value: {error or type(error).__name__}") from None
    # Fewer containers than the depth allowed cannot nest deeper than it: the common small message is not walked.
    if guard.containers > limits.depth_max:
        _check_depth(value, limits.depth_max)
    return value


class _Guard:
    """Counts what one value grows to while it is built, so that a small frame cannot become a large heap."""

    __slots__ = ("containers", "values_left")

    def __init__(self, values_max: int) -> None:
        self.containers = 0
        self.values_left = values_max

    def _count(self, items: int) -> None:
        self.containers += 1
        self.values_left -= 1 + items
        if self.values_left < 0:
            raise RemoteProtocolError("too many values in one message")

    def take_map(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        self._count(len(pairs))
        taken = dict(pairs)
        if len(taken) != len(pairs):
            raise RemoteProtocolError("a map has a key twice")
        for key in taken:
            if type(key) is not str:
                raise RemoteProtocolError("a map key is not text")
        return taken

    def take_list(self, items: list[Any]) -> list[Any]:
        self._count(len(items))
        return items


def _refuse_ext(code: int, data: bytes) -> Any:
    raise RemoteProtocolError(f"msgpack ext type {code} is not used here")


def _check_depth(value: Any, left: int) -> None:
    """Raises when containers nest deeper than `left`. Recursion is bounded by `left` itself."""
    if not isinstance(value, (dict, list)):
        return
    if left == 0:
        raise RemoteProtocolError("values nest too deep")
    for item in value.values() if isinstance(value, dict) else value:
        if type(item) is dict or type(item) is list:
            _check_depth(item, left - 1)

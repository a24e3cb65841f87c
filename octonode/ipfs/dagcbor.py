"""dag-cbor values under limits: canonical bytes in, plain values out, links as `Cid`.

Source: https://ipld.io/specs/codecs/dag-cbor/spec/. The decoder underneath refuses duplicate or unsorted keys, keys
that are not text, integers that are not minimal, tags beside 42 and bytes left over.
"""

from __future__ import annotations

from typing import Any, Final

import cbrrr

from octonode.errors import RemoteProtocolError
from octonode.ipfs.cid import Cid

DEPTH_MAX: Final = 16


class _Link(cbrrr.CID):  # type: ignore[misc]  # the library has no types that are followed
    """What the encoder recognises as a link: exactly this class."""

    __slots__ = ()


def encode(value: Any) -> bytes:
    """Canonical bytes of None, bool, int of 64 bits, float, str, bytes, Cid, and lists, tuples and dicts of them."""
    return bytes(cbrrr.encode_dag_cbor(_with_links(value), cid_type=_Link))


def _with_links(value: Any) -> Any:
    if isinstance(value, Cid):
        return _Link(value.raw)
    if isinstance(value, dict):
        return {key: _with_links(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_links(item) for item in value]
    return value


def decode(data: bytes, *, bytes_max: int, depth_max: int = DEPTH_MAX) -> Any:
    """The value in `data`. Raises RemoteProtocolError for anything that is not canonical dag-cbor within the limits."""
    if len(data) > bytes_max:
        raise RemoteProtocolError(f"{len(data)} bytes of dag-cbor, at most {bytes_max} are read", code="TOO_LARGE")
    try:
        value = cbrrr.decode_dag_cbor(data, cid_ctor=_link_from_wire)
    except (ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise RemoteProtocolError(f"not canonical dag-cbor: {error}") from None
    _check_depth(value, depth_max)
    return value


def _link_from_wire(raw: bytes) -> Cid:
    return Cid.from_bytes(raw)


def _check_depth(value: Any, depth_max: int) -> None:
    """Level by level, since a hostile value may be deeper than Python's own stack."""
    level: list[Any] = [value]
    for _ in range(depth_max + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise RemoteProtocolError(f"dag-cbor nested deeper than {depth_max}")

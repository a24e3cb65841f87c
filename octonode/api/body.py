"""Reading a JSON body under limits: bytes, time, depth. Every POST of the faces reads its body here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio
from starlette.types import Receive, Scope

from octonode.api.schema import bad_request
from octonode.errors import OctonodeError


class ClientGone(Exception):
    """The client left before its request was whole; there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    bytes_max: int = 4 * 1024 * 1024
    depth_max: int = 32
    """Levels of nested objects and lists."""
    timeout_seconds: float = 30.0
    """From the headers to the last byte of the body."""


async def read_json(scope: Scope, receive: Receive, limits: BodyLimits) -> Any:
    """The decoded body; {} for an empty one.

    Raises TOO_LARGE, BAD_REQUEST, EXPIRED for a body that does not come in time, ClientGone.
    """
    data = await _read(scope, receive, limits)
    if not data.strip():
        return {}
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep(limits) from None
    except UnicodeDecodeError:
        raise bad_request("the body is not UTF-8") from None
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {str(error)[:200]}") from None
    _check_depth(value, limits)
    return value


def privacy_header(scope: Scope) -> str | None:
    """What the header X-Octonode-Privacy asks for."""
    given = dict(scope["headers"]).get(b"x-octonode-privacy")
    return None if given is None else str(given, "latin-1")


async def _read(scope: Scope, receive: Receive, limits: BodyLimits) -> bytes:
    parts: list[bytes] = []
    await read_pieces(scope, receive, limits, parts.append)
    return b"".join(parts)


async def read_pieces(scope: Scope, receive: Receive, limits: BodyLimits, take: Callable[[bytes], None]) -> None:
    """Hands the body to `take` as it comes. Raises TOO_LARGE, EXPIRED, ClientGone, and what `take` does."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if int(length) > limits.bytes_max:  # h11 has checked that it is a number
        raise _too_large(limits)
    size = 0
    with trio.move_on_after(limits.timeout_seconds):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            size += len(piece)
            if size > limits.bytes_max:
                raise _too_large(limits)
            take(piece)
            if not message.get("more_body", False):
                return
    raise OctonodeError(f"the body did not arrive within {limits.timeout_seconds:g} s", code="EXPIRED")


def _check_depth(value: Any, limits: BodyLimits) -> None:
    level = [value]
    for _ in range(limits.depth_max):
        level = [child for each in level for child in _children(each)]
        if not level:
            return
    if any(isinstance(each, (Mapping, list)) for each in level):
        raise _too_deep(limits)


def _children(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _too_large(limits: BodyLimits) -> OctonodeError:
    message = f"the body is over {limits.bytes_max} bytes (api.request_bytes_max); send less"
    return OctonodeError(message, code="TOO_LARGE")


def _too_deep(limits: BodyLimits) -> OctonodeError:
    return bad_request(f"the body nests deeper than {limits.depth_max} levels")

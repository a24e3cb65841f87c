"""Results of work that is no text, as bytes on the wire, and how the transcript covers them. Page: protocols/skills.md.

A result is the codec's bytes of its record. They travel in the TASK_RESPONSE or, when large, as an artifact before it;
either way their sha256 is the one piece of the answer, so that the receipt's transcript stands for every byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final

from octonode.engines.contract import TokenLogprob
from octonode.errors import OctonodeError, RemoteProtocolError
from octonode.protocol import fields
from octonode.protocol.codec import pack, unpack
from octonode.protocol.limits import DEFAULT_LIMITS
from octonode.protocol.messages import TaskResponse
from octonode.protocol.work.records import write
from octonode.protocol.work.skills import WorkResult, read_result

INLINE_BYTES_MAX: Final = 256 * 1024
"""A larger result goes as an artifact."""
LIMITS: Final = replace(DEFAULT_LIMITS, values_max=262_144)
"""Of a result's bytes: more values than a message has, such as the words of a long transcription."""


def pack_result(result: WorkResult) -> bytes:
    """Raises OctonodeError (TOO_LARGE) above what an artifact may have."""
    return _bounded(pack(write(result)))


def unpack_result(skill: str, data: bytes) -> WorkResult:
    """Raises RemoteProtocolError for what is no result of this skill."""
    try:
        return read_result(skill, fields.as_map(unpack(data, LIMITS), "result"))
    except OctonodeError as error:
        raise RemoteProtocolError(f"the result is not one of {skill}: {error.message}") from None


def pack_logprobs(tokens: Sequence[TokenLogprob]) -> bytes:
    """Raises as `pack_result`."""
    return _bounded(pack({"tokens": [[each.text, each.logprob, [list(pair) for pair in each.top]] for each in tokens]}))


def unpack_logprobs(data: bytes) -> tuple[TokenLogprob, ...]:
    """Raises RemoteProtocolError."""
    value = fields.as_map(unpack(data, LIMITS), "result")
    return tuple(_token(item) for item in fields.items(value, "tokens", most=LIMITS.values_max))


def _token(value: Any) -> TokenLogprob:
    try:
        text, logprob, top = value
        pairs = tuple((str(name), float(number)) for name, number in top)
        token = TokenLogprob(str(text), float(logprob), pairs)
    except (TypeError, ValueError):
        raise RemoteProtocolError("a token is [text, logprob, [[text, logprob], ...]]") from None
    if not all(number <= 0 for number in (token.logprob, *(number for _, number in pairs))):
        raise RemoteProtocolError("a logprob is at most 0")
    return token


def _bounded(data: bytes) -> bytes:
    if len(data) > DEFAULT_LIMITS.artifact_bytes_max:
        most = DEFAULT_LIMITS.artifact_bytes_max
        raise OctonodeError(
            f"the result has {len(data)} bytes; at most {most} are sent: ask for less", code="TOO_LARGE"
        )
    return data


def name_of(data: bytes) -> str:
    return sha256(data).hexdigest()


def piece_of(data: bytes) -> str:
    """What stands for a result in the transcript."""
    return f"sha256:{name_of(data)}"


def told(data: bytes) -> dict[str, Any]:
    """`TaskResponse.result` for these bytes; an empty map where there is no result."""
    if not data:
        return {}
    return {"data": data} if len(data) <= INLINE_BYTES_MAX else {"artifact": name_of(data)}


def received(response: TaskResponse, artifacts: dict[str, bytes]) -> bytes:
    """The bytes of a response's result. Raises RemoteProtocolError when they did not come, or are others."""
    data = response.result.get("data")
    if data is None:
        name = response.result.get("artifact")
        data = artifacts.get(name) if isinstance(name, str) else None
        if data is not None and name_of(data) != name:
            raise RemoteProtocolError("the result does not hash to the name it has")
    if not isinstance(data, bytes):
        raise RemoteProtocolError("the answer came without its result")
    return data

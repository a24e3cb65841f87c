"""The five message bodies as maps, both ways. Keys and defaults: protocols/agent.md, section "Bodies".

A key at its default is left out; unknown keys are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.protocol import fields
from octonode.protocol.codec import pack, unpack
from octonode.protocol.limits import Limits
from octonode.protocol.messages import (
    ArtifactChunk,
    ErrorReport,
    Message,
    Mode,
    Negotiate,
    Operation,
    Privacy,
    StatusUpdate,
    TaskRequest,
    TaskResponse,
)

TYPE_OF: dict[type, str] = {
    TaskRequest: "TASK_REQUEST",
    TaskResponse: "TASK_RESPONSE",
    StatusUpdate: "STATUS_UPDATE",
    ErrorReport: "ERROR",
    Negotiate: "NEGOTIATE",
}
OPERATIONS: frozenset[str] = frozenset(get_args(Operation))
PRIVACY_LEVELS: frozenset[str] = frozenset(get_args(Privacy))
MODES: frozenset[str] = frozenset(get_args(Mode))
UPDATE_STATES = frozenset({"submitted", "working", "input_required"})
RESPONSE_STATES = frozenset({"completed", "canceled"})
ACTS = frozenset({"offer", "counter", "accept", "confirm", "reject", "cancel", "expire"})
NAME_BYTES_MAX, CID_BYTES_MAX, TOKEN_BYTES_MAX = 64, 128, 512


def encode_body(message: Message, limits: Limits) -> bytes:
    """The body's bytes. Raises LocalProtocolError for a message that the other side would have to refuse."""
    if type(message) is StatusUpdate and not message.checkpoint and message.artifact is None:
        return _encode_delta(message, limits)
    body = pack(_AS_MAP[type(message)](message, limits))
    if len(body) > limits.frame_bytes_max:
        raise LocalProtocolError(f"a body of {len(body)} bytes does not fit a frame", code="TOO_LARGE")
    try:
        decode_body(TYPE_OF[type(message)], body, limits)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"{TYPE_OF[type(message)]}: {error.message}", code=_local(error.code)) from None
    return body


def decode_body(type_name: str, body: bytes, limits: Limits) -> Message:
    """The message in `body`. Raises RemoteProtocolError: UNSUPPORTED for an unknown type, BAD_MESSAGE, TOO_LARGE."""
    read = _READ.get(type_name)
    if read is None:
        message = f"message type {type_name[:32]!r} is not known here; this node speaks {', '.join(_READ)}"
        raise RemoteProtocolError(message, code="UNSUPPORTED")
    return read(fields.as_map(unpack(body, limits), "body"), limits)


def _local(code: str) -> str:
    return "BAD_REQUEST" if code == "BAD_MESSAGE" else code


def _encode_delta(message: StatusUpdate, limits: Limits) -> bytes:
    """The hot path: pieces and progress, without a second look at what we have just made."""
    if len(message.pieces) > limits.pieces_max:
        raise LocalProtocolError(f"{len(message.pieces)} pieces in one update, over {limits.pieces_max}")
    if message.state not in UPDATE_STATES:
        raise LocalProtocolError(f"STATUS_UPDATE says {message.state}: a terminal state has its own message")
    return pack(_update_as_map(message, limits))


# Messages to maps.


def _without(value: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item != defaults[key]}


_REQUEST_DEFAULTS: dict[str, Any] = {
    "op": "run",
    "skill": "chat",
    "model": "",
    "input": {},
    "params": {},
    "privacy": "public",
    "token": "",
    "artifact": "",
    "mode": "",
}


def _request_as_map(message: TaskRequest, limits: Limits) -> dict[str, Any]:
    value = {
        "op": message.operation,
        "skill": message.skill,
        "model": message.model,
        "input": message.input,
        "params": message.parameters,
        "privacy": message.privacy,
        "token": message.token,
        "artifact": message.input_artifact,
        "mode": message.mode,
    }
    return _without(value, _REQUEST_DEFAULTS)


def _update_as_map(message: StatusUpdate, limits: Limits) -> dict[str, Any]:
    value: dict[str, Any] = {}
    if message.pieces:
        value["first"] = message.first_piece
        value["pieces"] = message.pieces
    if message.state != "working":
        value["state"] = message.state
    if message.stage:
        value["stage"] = message.stage
    if message.done:
        value["done"] = message.done
    if message.total:
        value["total"] = message.total
    if message.checkpoint:
        value["checkpoint"] = message.checkpoint
    if message.artifact is not None:
        chunk = message.artifact
        value["artifact"] = {"name": chunk.artifact, "offset": chunk.offset_bytes, "data": chunk.data}
        if chunk.last:
            value["artifact"]["last"] = True
    return value


def _response_as_map(message: TaskResponse, limits: Limits) -> dict[str, Any]:
    return {
        "state": message.state,
        "finish": message.finish_reason,
        "tokens_in": message.tokens_in,
        "tokens_out": message.tokens_out,
        "pieces": message.pieces_total,
        "transcript": message.transcript,
        "receipt": message.receipt,
        "result": message.result,
    }


def _error_as_map(message: ErrorReport, limits: Limits) -> dict[str, Any]:
    # An error must always get through, however long its text: what is over the bound is cut, not refused.
    text = message.message.encode(errors="replace")[: limits.error_text_bytes_max].decode(errors="ignore")
    value: dict[str, Any] = {"code": message.code, "message": text}
    if message.retry_after_ms:
        value["retry_after_ms"] = message.retry_after_ms
    if message.detail:
        value["detail"] = message.detail
    return value


def _negotiate_as_map(message: Negotiate, limits: Limits) -> dict[str, Any]:
    return {"act": message.act, "terms": message.terms, "valid_until": message.valid_until_ms, "on": message.on}


_AS_MAP: dict[type, Callable[[Any, Limits], dict[str, Any]]] = {
    TaskRequest: _request_as_map,
    TaskResponse: _response_as_map,
    StatusUpdate: _update_as_map,
    ErrorReport: _error_as_map,
    Negotiate: _negotiate_as_map,
}


# Maps to messages.


def _read_request(value: dict[str, Any], limits: Limits) -> TaskRequest:
    operation = fields.text(value, "op", "run", bytes_max=NAME_BYTES_MAX)
    if operation not in OPERATIONS:
        message = f"operation {operation!r} is not known here; known are {', '.join(sorted(OPERATIONS))}"
        raise RemoteProtocolError(message, code="UNSUPPORTED")
    artifact = fields.text(value, "artifact", "", bytes_max=NAME_BYTES_MAX)
    if artifact and (len(artifact) != 64 or not set(artifact) <= set("0123456789abcdef")):
        raise RemoteProtocolError("an input artifact is named by the lower-case hex sha256 of its bytes")
    if artifact and value.get("input"):
        raise RemoteProtocolError("a request has its input inline or as an artifact, not both")
    mode = fields.text(value, "mode", "", bytes_max=NAME_BYTES_MAX)
    if mode not in MODES:
        message = f"mode {mode!r} is not known here; known are {', '.join(sorted(MODES - {''}))}, or none"
        raise RemoteProtocolError(message, code="UNSUPPORTED")
    return TaskRequest(
        operation=operation,  # type: ignore[arg-type]
        skill=fields.text(value, "skill", "chat", bytes_max=NAME_BYTES_MAX),
        model=fields.text(value, "model", "", bytes_max=CID_BYTES_MAX),
        input=fields.plain_map(value, "input"),
        parameters=fields.plain_map(value, "params"),
        privacy=fields.choice(value, "privacy", PRIVACY_LEVELS, "public"),
        token=fields.text(value, "token", "", bytes_max=TOKEN_BYTES_MAX),
        input_artifact=artifact,
        mode=mode,  # type: ignore[arg-type]
    )


def _read_update(value: dict[str, Any], limits: Limits) -> StatusUpdate:
    pieces = fields.items(value, "pieces", most=limits.pieces_max)
    for piece in pieces:
        if type(piece) is not str:
            raise RemoteProtocolError("field pieces must hold texts alone")
    chunk = value.get("artifact")
    return StatusUpdate(
        state=fields.choice(value, "state", UPDATE_STATES, "working"),
        stage=fields.text(value, "stage", "", bytes_max=NAME_BYTES_MAX),
        done=fields.natural(value, "done", 0),
        total=fields.natural(value, "total", 0),
        first_piece=fields.natural(value, "first", 0),
        pieces=tuple(pieces),
        checkpoint=fields.raw(value, "checkpoint", b"", bytes_max=limits.checkpoint_bytes_max),
        artifact=None if chunk is None else _read_chunk(fields.as_map(chunk, "artifact"), limits),
    )


def _read_chunk(value: dict[str, Any], limits: Limits) -> ArtifactChunk:
    return ArtifactChunk(
        artifact=fields.text(value, "name", bytes_max=NAME_BYTES_MAX),
        offset_bytes=fields.natural(value, "offset"),
        data=fields.raw(value, "data", bytes_max=limits.artifact_chunk_bytes_max),
        last=fields.boolean(value, "last", False),
    )


def _read_response(value: dict[str, Any], limits: Limits) -> TaskResponse:
    return TaskResponse(
        state=fields.choice(value, "state", RESPONSE_STATES),
        finish_reason=fields.text(value, "finish", "stop", bytes_max=NAME_BYTES_MAX),
        tokens_in=fields.natural(value, "tokens_in", 0),
        tokens_out=fields.natural(value, "tokens_out", 0),
        pieces_total=fields.natural(value, "pieces", 0),
        transcript=fields.raw(value, "transcript", b"", bytes_max=32),
        receipt=fields.raw(value, "receipt", b"", bytes_max=limits.receipt_bytes_max),
        result=fields.plain_map(value, "result"),
    )


def _read_error(value: dict[str, Any], limits: Limits) -> ErrorReport:
    return ErrorReport(
        code=fields.text(value, "code", bytes_max=NAME_BYTES_MAX),
        message=fields.text(value, "message", "", bytes_max=limits.error_text_bytes_max),
        retry_after_ms=fields.natural(value, "retry_after_ms", 0),
        detail=fields.plain_map(value, "detail"),
    )


def _read_negotiate(value: dict[str, Any], limits: Limits) -> Negotiate:
    return Negotiate(
        act=fields.choice(value, "act", ACTS),
        terms=fields.plain_map(value, "terms"),
        valid_until_ms=fields.natural(value, "valid_until", 0),
        on=fields.raw(value, "on", b"", bytes_max=16),
    )


_READ: dict[str, Callable[[dict[str, Any], Limits], Message]] = {
    "TASK_REQUEST": _read_request,
    "TASK_RESPONSE": _read_response,
    "STATUS_UPDATE": _read_update,
    "ERROR": _read_error,
    "NEGOTIATE": _read_negotiate,
}

"""Skill `octonode/pin` on the wire: asking another node to keep a model. Spec: protocols/pin.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from typing import Any, Literal

from octonode.errors import RemoteProtocolError
from octonode.ids import PeerId
from octonode.protocol import fields
from octonode.protocol.messages import TaskRequest

SKILL = "octonode/pin"
VERBS = frozenset({"pin", "unpin", "list"})
STATES = frozenset({"fetching", "kept", "failed"})
PINS_PER_PEER_MAX = 1024
"""Of one asker at one node; they fit one response."""
MANIFEST_BYTES_MAX = 256 * 1024
"""Of the signed manifest that goes with a pin."""
_CID_BYTES_MAX, _REASON_BYTES_MAX = 128, 512

Verb = Literal["pin", "unpin", "list"]
PinState = Literal["fetching", "kept", "failed"]


@dataclass(frozen=True, slots=True)
class PinRequest:
    verb: Verb
    root: str = ""
    """Root CID of the model; empty for `list` alone."""
    until_ms: int = 0
    """Milliseconds since 1970; 0: until it is unpinned."""
    size_bytes: int = 0
    """What the asker knows of its size; 0: nothing. The node counts what it finds."""
    manifest: bytes = b""
    """The signed manifest, if the asker has it, to be kept and shown with the model."""


@dataclass(frozen=True, slots=True)
class PinFacts:
    """One pin as its node tells it."""

    root: str
    asker: PeerId
    until_ms: int = 0
    """0: until it is unpinned."""
    since_ms: int = 0
    size_bytes: int = 0
    have_bytes: int = 0
    state: PinState = "fetching"
    reason: str = ""
    """Why it is `failed`; it is tried again."""


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes at the node: `total` and `free` for pins of anybody, `peer` for those of who asks. 0 of a bound: none."""

    total_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0
    peer_bytes_max: int = 0
    peer_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PinResult:
    """`pin`: the one pin; `unpin`: none; `list`: all of the asker's, by root."""

    pins: tuple[PinFacts, ...] = ()
    room: Room = field(default_factory=Room)


def encode_request(request: PinRequest, token: str = "") -> TaskRequest:
    parameters: dict[str, Any] = {"verb": request.verb}
    if request.until_ms:
        parameters["until_ms"] = request.until_ms
    if request.size_bytes:
        parameters["size_bytes"] = request.size_bytes
    body = {"manifest": request.manifest} if request.manifest else {}
    return TaskRequest(skill=SKILL, model=request.root, input=body, parameters=parameters, token=token)


def decode_request(root: str, parameters: Mapping[str, Any], body: Mapping[str, Any]) -> PinRequest:
    """What is asked for. Raises RemoteProtocolError (BAD_MESSAGE, TOO_LARGE) that names the field."""
    verb: Verb = fields.choice(parameters, "verb", VERBS)
    if bool(root) is (verb == "list"):
        raise RemoteProtocolError(f"field model is {'empty' if verb == 'list' else 'the root of a model'} for {verb}")
    return PinRequest(
        verb=verb,
        root=root,
        until_ms=fields.natural(parameters, "until_ms", 0),
        size_bytes=fields.natural(parameters, "size_bytes", 0),
        manifest=fields.raw(body, "manifest", b"", bytes_max=MANIFEST_BYTES_MAX),
    )


def encode_result(result: PinResult) -> dict[str, Any]:
    return {"pins": [_lean(pin) for pin in result.pins], "room": _lean(result.room)}


def decode_result(value: Mapping[str, Any]) -> PinResult:
    """Raises RemoteProtocolError that names the field."""
    pins = fields.items(value, "pins", most=PINS_PER_PEER_MAX)
    room = fields.as_map(value.get("room", {}), "room")
    return PinResult(
        pins=tuple(_read_pin(fields.as_map(pin, "pins")) for pin in pins),
        room=Room(**{each.name: fields.natural(room, each.name, 0) for each in fields_of(Room)}),
    )


def _lean(item: PinFacts | Room) -> dict[str, Any]:
    value = {each.name: getattr(item, each.name) for each in fields_of(item)}
    return {name: held for name, held in value.items() if held not in ("", 0)}


def _read_pin(value: Mapping[str, Any]) -> PinFacts:
    return PinFacts(
        root=fields.text(value, "root", bytes_max=_CID_BYTES_MAX),
        asker=fields.peer_id(value, "asker"),
        until_ms=fields.natural(value, "until_ms", 0),
        since_ms=fields.natural(value, "since_ms", 0),
        size_bytes=fields.natural(value, "size_bytes", 0),
        have_bytes=fields.natural(value, "have_bytes", 0),
        state=fields.choice(value, "state", STATES),
        reason=fields.text(value, "reason", "", bytes_max=_REASON_BYTES_MAX),
    )


def applied(request: PinRequest, until_ms: int, size_bytes: int) -> dict[str, Any]:
    """The parameters for the receipt: until when it is kept, as granted, and what it takes."""
    return {"verb": request.verb, "until_ms": until_ms, "size_bytes": size_bytes}


def by_root(pins: Sequence[PinFacts]) -> tuple[PinFacts, ...]:
    return tuple(sorted(pins, key=lambda pin: pin.root))

"""One message on the wire: msgpack `[header bytes, signature, body bytes]`.

The header holds sha256 and length of the body; the Ed25519 signature covers AGENT_DOMAIN + the header bytes as
received, never a re-encoding. So a signed header can be shown without its body, and no canonical form is needed.
Spec: protocols/agent.md. Why: protocols/decisions/0003-envelope.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import msgpack

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.identity import Signer, verify
from octonode.ids import AGENT_DOMAIN, MessageId, PeerId, TaskId
from octonode.protocol.bodies import TYPE_OF, decode_body, encode_body
from octonode.protocol.codec import unpack
from octonode.protocol.header import HOP_MAX_DEFAULT, decode_header, encode_header
from octonode.protocol.limits import DEFAULT_LIMITS, Limits
from octonode.protocol.messages import Header, Message, StatusUpdate

NO_TASK = TaskId(bytes(16))
"""In the header of an ERROR alone: the request could not be read, so its task is not known."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message that passed every check."""

    header: Header
    message: Message
    header_bytes: bytes
    signature: bytes
    """64 bytes, or none for an unsigned delta."""
    body_bytes: bytes


class Parts(NamedTuple):
    """An envelope taken apart: its shape and its body's hash are right, nothing else is known yet."""

    header: Header
    header_bytes: bytes
    signature: bytes
    body_bytes: bytes


class Sealed(NamedTuple):
    payload: bytes
    header_bytes: bytes


def may_be_unsigned(message: Message) -> bool:
    """True for STATUS_UPDATE deltas: the transport authenticates the hop, and the transcript covers their text."""
    return type(message) is StatusUpdate and not message.checkpoint


def seal(
    signer: Signer,
    message: Message,
    *,
    id: bytes,
    task: bytes,
    recipient: PeerId,
    sequence: int,
    sent_at_ms: int,
    expires_at_ms: int,
    conversation: bytes = b"",
    correlation: bytes = b"",
    root: bytes = b"",
    hop: int = 0,
    hop_max: int = HOP_MAX_DEFAULT,
    budget_micro_octo: int = 0,
    offer: bytes = b"",
    critical: tuple[str, ...] = (),
    extensions: dict[str, Any] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Sealed:
    """The payload of a frame, signed unless it may go unsigned. Raises LocalProtocolError: TOO_LARGE, BAD_REQUEST."""
    body = encode_body(message, limits)
    header = Header(
        TYPE_OF[type(message)],
        MessageId(id),
        conversation,
        TaskId(task),
        signer.peer_id,
        recipient,
        sequence,
        sent_at_ms,
        expires_at_ms,
        sha256(body).digest(),
        len(body),
        correlation,
        root,
        hop,
        hop_max,
        budget_micro_octo,
        offer,
        critical,
        extensions or {},
    )
    header_bytes = encode_header(header)
    if may_be_unsigned(message):
        signature = b""
    else:
        _check_own_header(header_bytes, limits)
        signature = signer.sign(AGENT_DOMAIN + header_bytes)
    return Sealed(msgpack.packb((header_bytes, signature, body)), header_bytes)


def open_envelope(
    payload: bytes,
    *,
    us: PeerId,
    remote: PeerId,
    now_ms: int,
    limits: Limits = DEFAULT_LIMITS,
    known_extensions: frozenset[str] = frozenset(),
) -> Envelope:
    """The message in `payload`, after every check that needs no memory of the stream; the signature comes last.

    `remote` is the peer the transport has authenticated. Raises RemoteProtocolError: BAD_MESSAGE, TOO_LARGE,
    MISADDRESSED, CLOCK_SKEW, EXPIRED, EXTENSION_REQUIRED, HOP_LIMIT, UNSUPPORTED, BAD_SIGNATURE.
    """
    parts = parse_envelope(payload, limits)
    check_header(parts.header, us=us, remote=remote, now_ms=now_ms, limits=limits, known_extensions=known_extensions)
    message = decode_body(parts.header.type, parts.body_bytes, limits)
    check_signature(parts, message)
    return Envelope(parts.header, message, parts.header_bytes, parts.signature, parts.body_bytes)


def parse_envelope(payload: bytes, limits: Limits = DEFAULT_LIMITS) -> Parts:
    """The parts of `payload`; the body is the one the header names. Raises RemoteProtocolError."""
    outer = unpack(payload, limits)
    if type(outer) is not list or len(outer) != 3 or not all(type(part) is bytes for part in outer):
        raise RemoteProtocolError("an envelope is an array of three byte strings: header, signature, body")
    header_bytes, signature, body = outer
    if len(signature) not in (0, 64):
        raise RemoteProtocolError("a signature has 64 bytes, or none", code="BAD_SIGNATURE")
    header = decode_header(header_bytes, limits)
    if header.body_bytes != len(body) or header.body_sha256 != sha256(body).digest():
        raise RemoteProtocolError("the body is not the one its header names")
    return Parts(header, header_bytes, signature, body)


def check_header(
    header: Header,
    *,
    us: PeerId,
    remote: PeerId,
    now_ms: int,
    limits: Limits = DEFAULT_LIMITS,
    known_extensions: frozenset[str] = frozenset(),
) -> None:
    """From whom, to whom, when, and with what demands. Raises RemoteProtocolError; see `open_envelope`."""
    if header.sender != remote:
        message = f"a message from {header.sender[:64]} on a connection of {remote}; it must come from its sender"
        raise RemoteProtocolError(message, code="MISADDRESSED")
    if header.recipient != us:
        raise RemoteProtocolError(f"a message for {header.recipient[:64]} came to {us}", code="MISADDRESSED")
    skew_ms = header.sent_at_ms - now_ms
    if not -limits.clock_skew_ms_max <= skew_ms <= limits.clock_skew_ms_max:
        raise RemoteProtocolError(_skew_message(skew_ms, limits), code="CLOCK_SKEW", detail={"skew_ms": skew_ms})
    left_ms = header.expires_at_ms - now_ms
    if left_ms <= 0:
        raise RemoteProtocolError(f"the message expired {-left_ms} ms ago; send a new one", code="EXPIRED")
    if left_ms > limits.expiry_ahead_ms_max + limits.clock_skew_ms_max:
        most = limits.expiry_ahead_ms_max // 1000
        message = f"the message expires in {left_ms // 1000} s; at most {most} s ahead are taken"
        raise RemoteProtocolError(message, code="EXPIRED")
    if header.critical:
        unknown = [name for name in header.critical if name not in known_extensions]
        if unknown:
            message = f"the sender requires extensions that are not known here: {', '.join(unknown)}"
            raise RemoteProtocolError(message, code="EXTENSION_REQUIRED")
    if not header.hop <= header.hop_max <= limits.hops_max:
        message = f"hop {header.hop} of {header.hop_max}; a chain has at most {limits.hops_max} hops"
        raise RemoteProtocolError(message, code="HOP_LIMIT")


def check_signature(parts: Parts, message: Message) -> None:
    """The sender's signature over the header bytes, where one is owed or given. Raises RemoteProtocolError."""
    if not parts.signature and may_be_unsigned(message):
        return
    if not parts.signature:
        raise RemoteProtocolError(f"an unsigned {parts.header.type}; it must be signed", code="BAD_SIGNATURE")
    if not verify(parts.header.sender, AGENT_DOMAIN + parts.header_bytes, parts.signature):
        raise RemoteProtocolError("the signature does not hold for the header as received", code="BAD_SIGNATURE")


def _skew_message(skew_ms: int, limits: Limits) -> str:
    where = "ahead of" if skew_ms > 0 else "behind"
    apart, allowed = f"{abs(skew_ms) / 1000:.1f} s", limits.clock_skew_ms_max // 1000
    return (
        f"the message was sent at a time {apart} {where} this node's clock; {allowed} s are allowed:"
        " check the clocks of both machines (`timedatectl`, NTP), or the message is an old one"
    )


def _check_own_header(header_bytes: bytes, limits: Limits) -> None:
    """What we sign must be what the other side can read. Raises LocalProtocolError."""
    try:
        decode_header(header_bytes, limits)
    except RemoteProtocolError as error:
        code = "TOO_LARGE" if error.code == "TOO_LARGE" else "BAD_REQUEST"
        raise LocalProtocolError(f"header: {error.message}", code=code) from None

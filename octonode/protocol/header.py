"""The header of a message as msgpack-map bytes, both ways. Keys: protocols/agent.md, section "Header"."""

from __future__ import annotations

from typing import Any

from octonode.errors import RemoteProtocolError
from octonode.ids import MessageId, PeerId, TaskId
from octonode.protocol import fields
from octonode.protocol.codec import pack, unpack
from octonode.protocol.limits import Limits
from octonode.protocol.messages import Header

ENVELOPE_VERSION = 1
HOP_MAX_DEFAULT = 4
EXTENSION_NAME_BYTES_MAX = 128


def encode_header(header: Header) -> bytes:
    """The bytes that are signed. Raises LocalProtocolError when the extensions have no place on the wire."""
    value: dict[str, Any] = {
        "v": ENVELOPE_VERSION,
        "t": header.type,
        "id": header.id,
        "task": header.task,
        "from": header.sender,
        "to": header.recipient,
        "seq": header.sequence,
        "ts": header.sent_at_ms,
        "exp": header.expires_at_ms,
        "hash": header.body_sha256,
        "len": header.body_bytes,
    }
    for key, item in (
        ("conv", header.conversation),
        ("corr", header.correlation),
        ("root", header.root),
        ("hop", header.hop),
        ("budget", header.budget_micro_octo),
        ("offer", header.offer),
        ("crit", header.critical),
        ("ext", header.extensions),
    ):
        if item:
            value[key] = item
    if header.hop_max != HOP_MAX_DEFAULT:
        value["maxhop"] = header.hop_max
    return pack(value)


def decode_header(data: bytes, limits: Limits) -> Header:
    """The header in `data`. Raises RemoteProtocolError: TOO_LARGE, UNSUPPORTED (another version), BAD_MESSAGE."""
    if len(data) > limits.header_bytes_max:
        message = f"a header of {len(data)} bytes; at most {limits.header_bytes_max} are taken"
        raise RemoteProtocolError(message, code="TOO_LARGE")
    value = fields.as_map(unpack(data, limits, keys_max=limits.header_keys_max), "header")
    if fields.natural(value, "v") != ENVELOPE_VERSION:
        message = f"envelope version {value['v']} is not known here; this node speaks {ENVELOPE_VERSION}"
        raise RemoteProtocolError(message, code="UNSUPPORTED")
    critical: tuple[str, ...] = ()
    extensions: dict[str, Any] = {}
    if "crit" in value or "ext" in value:
        critical, extensions = _read_extensions(value)
    return Header(
        type=fields.text(value, "t", bytes_max=32),
        id=MessageId(fields.exact_bytes(value, "id", 16)),
        conversation=fields.exact_bytes(value, "conv", 16, b""),
        task=TaskId(fields.exact_bytes(value, "task", 16)),
        sender=PeerId(fields.text(value, "from", bytes_max=64)),
        recipient=PeerId(fields.text(value, "to", bytes_max=64)),
        sequence=fields.natural(value, "seq"),
        sent_at_ms=fields.natural(value, "ts"),
        expires_at_ms=fields.natural(value, "exp"),
        body_sha256=fields.exact_bytes(value, "hash", 32),
        body_bytes=fields.natural(value, "len"),
        correlation=fields.exact_bytes(value, "corr", 16, b""),
        root=fields.exact_bytes(value, "root", 16, b""),
        hop=fields.natural(value, "hop", 0),
        hop_max=fields.natural(value, "maxhop", HOP_MAX_DEFAULT),
        budget_micro_octo=fields.natural(value, "budget", 0),
        offer=fields.exact_bytes(value, "offer", 16, b""),
        critical=critical,
        extensions=extensions,
    )


def _read_extensions(value: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """As JOSE's `crit` (RFC 7515, 4.1.11): each critical name must be there, once."""
    extensions = fields.plain_map(value, "ext")
    critical = fields.texts(value, "crit", most=16, bytes_max=EXTENSION_NAME_BYTES_MAX)
    if len(set(critical)) != len(critical) or not all(name in extensions for name in critical):
        raise RemoteProtocolError("field crit must name keys of ext, each once")
    return critical, extensions

"""Golden vectors of hello, fan-out and join lines: protocols/vectors/hello.json, fanout.json and join.json."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from typing import Any

from octonode.errors import Refused
from octonode.identity import NodeKey
from octonode.ids import ANNOUNCE_TOPIC
from octonode.network import access
from octonode.network.fanout_messages import DATA_BYTES_MAX, FRAME_BYTES_MAX, TOPIC_BYTES_MAX, Said, encode_said
from octonode.network.hello_messages import (
    Announce,
    Announced,
    Announcements,
    DialBack,
    Dialled,
    DialledBack,
    FindManifest,
    FindPeers,
    FindProviders,
    Manifest,
    Ping,
    Pong,
    encode_answer,
    encode_error,
    encode_request,
)
from octonode.network.joinline import JoinLine, encode
from octonode.protocol import codec
from octonode.protocol.announcement import Announcement, sign_announcement
from octonode.protocol.framing import encode_frame

AT_MS = 1_800_000_000_000
ROOT = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
NONCE = bytes(range(16))


def key_of(name: str) -> NodeKey:
    return NodeKey(hashlib.sha256(f"octonode vector {name}".encode()).digest())


def plain(value: Any) -> Any:
    """A message as JSON: bytes in hex, a dataclass as a map."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def _announcement(name: str) -> bytes:
    key = key_of(name)
    told = Announcement(peer_id=key.peer_id, sequence=AT_MS, issued_at_ms=AT_MS, expires_at_ms=AT_MS + 120_000)
    return sign_announcement(key, told)


def hello() -> dict[str, Any]:
    asker, other = _announcement("asker"), _announcement("provider")
    requests = [
        Announce(asker),
        FindProviders(ROOT),
        FindPeers(16),
        FindManifest(publisher=key_of("provider").peer_id, name="smollm2"),
        FindManifest(cid=ROOT),
        Ping(NONCE),
        DialBack(("/tcp/4808", "/ip4/203.0.113.9/tcp/4809")),
    ]
    answers = [
        Announced(other, "203.0.113.9"),
        Announcements((asker, other)),
        Announcements(()),
        Manifest(b"signed manifest"),
        Manifest(b""),
        Pong(NONCE),
        DialledBack("203.0.113.9", (Dialled("/tcp/4808", "reached"), Dialled("/tcp/22", "refused", "why"))),
    ]
    refusal = Refused("too many hellos from you", code="RATE_LIMITED", retry_after_seconds=0.25)
    return {
        "page": "hello.md",
        "requests": [_row(each, encode_request(each)) for each in requests],
        "answers": [_row(each, encode_answer(each)) for each in answers],
        "error": {
            "code": refusal.code,
            "message": refusal.message,
            "retry_after_ms": 250,
            "frame": encode_frame(encode_error(refusal)).hex(),
        },
        "refused_requests": [{"payload": payload.hex(), "code": code} for payload, code in _refused()],
    }


def _row(message: Any, payload: bytes) -> dict[str, Any]:
    return {"kind": type(message).__name__, "value": plain(message), "frame": encode_frame(payload).hex()}


def _refused() -> list[tuple[bytes, str]]:
    return [
        (b"", "BAD_MESSAGE"),
        (b"\x90", "BAD_MESSAGE"),
        (b"\x80", "BAD_MESSAGE"),
        (b"\x81\xa3ask\xa5dance", "UNSUPPORTED"),
        (b"\x82\xa3ask\xa4ping\xa5nonce\xc4\x01x", "BAD_MESSAGE"),
        (b"\x82\xa3ask\xa3ask\xa3ask\xa4ping", "BAD_MESSAGE"),
        (b"\x82\xa3ask\xa5peers\xa5count\x11", "BAD_MESSAGE"),
    ]


def fanout() -> dict[str, Any]:
    """`later_version` is to be taken like the message before it; the first frame of `refused_streams` is whole."""
    announced = Said(ANNOUNCE_TOPIC, _announcement("asker"))
    messages = [announced, Said("/example/unknown/1", b"skipped where nobody hears the topic"), Said("", b"")]
    longer = codec.pack([announced.topic, announced.data, {"of": "a later version"}])
    whole, over = encode_frame(encode_said(announced)), encode_frame(bytes(FRAME_BYTES_MAX + 1), FRAME_BYTES_MAX + 1)
    return {
        "page": "fanout.md",
        "messages": [_row(each, encode_said(each)) for each in messages],
        "later_version": {"value": plain(announced), "frame": encode_frame(longer).hex()},
        "refused": [{"why": why, "payload": payload.hex(), "code": code} for why, payload, code in _refused_said()],
        "refused_streams": [
            {"why": "a frame over the bound", "bytes": (whole + over[:3]).hex(), "code": "TOO_LARGE"},
            {"why": "a length not in its shortest form", "bytes": (whole + b"\x81\0").hex(), "code": "BAD_MESSAGE"},
        ],
    }


def _refused_said() -> list[tuple[str, bytes, str]]:
    return [
        ("empty", b"", "BAD_MESSAGE"),
        ("no array", codec.pack({"topic": "t", "data": b"d"}), "BAD_MESSAGE"),
        ("no data", codec.pack(["t"]), "BAD_MESSAGE"),
        ("too many items", codec.pack(["t", b"d", *range(7)]), "BAD_MESSAGE"),
        ("data is text", codec.pack(["t", "d"]), "BAD_MESSAGE"),
        ("the topic is bytes", codec.pack([b"t", b"d"]), "BAD_MESSAGE"),
        ("bytes behind the value", codec.pack(["t", b"d"]) + b"\xc0", "BAD_MESSAGE"),
        ("a topic over the bound", codec.pack(["t" * (TOPIC_BYTES_MAX + 1), b"d"]), "TOO_LARGE"),
        ("data over the bound", codec.pack(["t", bytes(DATA_BYTES_MAX + 1)]), "TOO_LARGE"),
    ]


def join() -> dict[str, Any]:
    node, asker = key_of("provider").peer_id, key_of("asker").peer_id
    token = "0123456789abcdef" * 4
    addresses = (f"/ip4/203.0.113.7/tcp/4808/p2p/{node}", f"/dns4/node.example/tcp/4809/ws/p2p/{node}")
    lines = [JoinLine(node, addresses, token), JoinLine(node, addresses[:1])]
    return {
        "page": "join.md",
        "lines": [{"value": plain(line), "line": encode(line)} for line in lines],
        "proofs": [{"token": token, "asker": asker, "provider": node, "proof": access.proof(token, asker, node)}],
    }

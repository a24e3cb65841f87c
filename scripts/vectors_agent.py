"""Vectors of the agent stream: messages, refused payloads, one dialogue, frames. See vectors.py."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import msgpack

from octonode.errors import RemoteProtocolError
from octonode.identity import NodeKey
from octonode.ids import AGENT_DOMAIN
from octonode.protocol.bodies import TYPE_OF
from octonode.protocol.envelope import open_envelope, seal
from octonode.protocol.exchange import Exchange
from octonode.protocol.framing import FrameDecoder, encode_frame, encode_uvarint
from octonode.protocol.messages import (
    ArtifactChunk,
    ErrorReport,
    Message,
    Negotiate,
    StatusUpdate,
    TaskRequest,
    TaskResponse,
)
from octonode.protocol.transcript import Transcript, sign_checkpoint

ASKER, PROVIDER, STRANGER = (NodeKey(bytes([number]) * 32) for number in (1, 2, 3))
NOW_MS = 1_800_000_000_000
TASK, CONVERSATION = b"task-of-vectors.", b"conversation-no1"
MODEL = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"


def keys() -> dict[str, Any]:
    return {
        name: {"seed": key.transport_seed().hex(), "peer_id": key.peer_id}
        for name, key in (("asker", ASKER), ("provider", PROVIDER), ("stranger", STRANGER))
    }


def plain(value: Any) -> Any:
    """JSON values; bytes are written {"hex": ...}, as they cannot be told from text otherwise."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def counter() -> Callable[[], bytes]:
    """Ids 16 bytes long: 0…1, 0…2, …"""
    numbers = iter(range(1, 1 << 16))
    return lambda: next(numbers).to_bytes(16, "big")


def messages() -> Iterator[tuple[str, Message, dict[str, Any]]]:
    """(name, message, header options). Who sends it follows from the message."""
    chat = {"messages": [{"role": "user", "content": "Grüße, 世界"}]}
    parameters = {"max_tokens": 16, "temperature": 0.5, "seed": 7, "stop": ["\n"]}
    transcript = Transcript(sha256(b"a request header").digest())
    transcript.extend(("Hel", "lo"))
    checkpoint = sign_checkpoint(PROVIDER, sha256(b"a request header").digest(), transcript, NOW_MS)
    yield "request, least", TaskRequest(model=MODEL), {}
    full = TaskRequest(model=MODEL, input=chat, parameters=parameters, privacy="shared", token="letmein")
    options = {
        "conversation": CONVERSATION,
        "root": bytes(range(16)),
        "hop": 1,
        "hop_max": 3,
        "budget_micro_octo": 500_000,
        "offer": bytes(range(16, 32)),
        "critical": ("urn:known",),
        "extensions": {"urn:known": {"a": [1, b"\x00\xff", None]}, "urn:other": True},
    }
    yield "request, all fields", full, options
    yield "request, input as artifact", TaskRequest(model=MODEL, input_artifact=sha256(b"\x80").hexdigest()), {}
    yield "cancel", TaskRequest(operation="cancel"), {"sequence": 1}
    yield "input chunk", StatusUpdate(artifact=ArtifactChunk(sha256(b"\x80").hexdigest(), 0, b"\x80", True)), {}
    yield "heartbeat", StatusUpdate(), {}
    yield "progress", StatusUpdate(stage="fetching", done=1 << 32, total=1 << 33), {"sequence": 1}
    yield "pieces", StatusUpdate(first_piece=300, pieces=("Hel", "lo", "", " wörld")), {"sequence": 2}
    yield "pieces with a checkpoint", StatusUpdate(pieces=("Hel", "lo"), checkpoint=checkpoint), {"sequence": 3}
    yield (
        "completed",
        TaskResponse(tokens_in=9, tokens_out=2, pieces_total=2, transcript=transcript.digest, receipt=b"\xa0"),
        {"correlation": bytes(15) + b"\x01", "sequence": 4},
    )
    yield "canceled", TaskResponse(state="canceled", finish_reason="cancel"), {"correlation": bytes(15) + b"\x01"}
    yield "error", ErrorReport("OVERLOADED", "come back later", 1500, {"queued": 64}), {}
    yield "request, in a mode", TaskRequest(model=MODEL, input=chat, mode="async"), {}
    yield "offer", Negotiate("offer", {"price_in": 5, "price_out": 10}, NOW_MS + 5000, b""), {}


def sealed(message: Message, options: dict[str, Any], new_id: Callable[[], bytes]) -> bytes:
    from_asker = isinstance(message, (TaskRequest, Negotiate)) or (
        isinstance(message, StatusUpdate) and message.artifact is not None
    )
    signer, recipient = (ASKER, PROVIDER) if from_asker else (PROVIDER, ASKER)
    header = {"id": new_id(), "task": TASK, "sequence": 0, "sent_at_ms": NOW_MS, "expires_at_ms": NOW_MS + 60_000}
    return seal(signer, message, recipient=recipient.peer_id, **{**header, **options}).payload


def valid() -> list[dict[str, Any]]:
    rows, new_id = [], counter()
    for name, message, options in messages():
        payload = sealed(message, options, new_id)
        header_bytes, signature, body = msgpack.unpackb(payload)
        row = {"name": name, "payload": payload.hex(), "header_bytes": header_bytes.hex()}
        row |= {"signature": signature.hex(), "body_bytes": body.hex()}
        row |= {"header": plain(msgpack.unpackb(header_bytes)), "type": TYPE_OF[type(message)]}
        rows.append(row | {"message": plain(message)})
    return rows


HEADER: dict[str, Any] = {
    "v": 1,
    "t": "TASK_REQUEST",
    "id": bytes(15) + b"\x01",
    "task": TASK,
    "from": ASKER.peer_id,
    "to": PROVIDER.peer_id,
    "seq": 0,
    "ts": NOW_MS,
    "exp": NOW_MS + 60_000,
}


def crafted(body: bytes = b"\x80", *, header_bytes: bytes | None = None, sign: bool = True, **changes: Any) -> bytes:
    """A payload from the asker with any header, well signed; a change to None leaves the key out."""
    value = {**HEADER, "hash": sha256(body).digest(), "len": len(body), **changes}
    raw = msgpack.packb({k: v for k, v in value.items() if v is not None}) if header_bytes is None else header_bytes
    return msgpack.packb((raw, ASKER.sign(AGENT_DOMAIN + raw) if sign else b"", body))


def invalid_payloads() -> Iterator[tuple[str, bytes]]:
    good = crafted()
    header_bytes = msgpack.unpackb(good)[0]
    yield "no bytes", b""
    yield "not an array", msgpack.packb({"header": b""})
    yield "two parts", msgpack.packb((header_bytes, b""))
    yield "text for bytes", msgpack.packb(("header", b"", b""))
    yield "bytes after the envelope", good + b"\x00"
    yield "unsigned request", crafted(sign=False)
    yield "signature of 63 bytes", msgpack.packb((header_bytes, bytes(63), b"\x80"))
    yield "signature over other bytes", msgpack.packb((header_bytes, ASKER.sign(AGENT_DOMAIN), b"\x80"))
    yield "signature without the domain", msgpack.packb((header_bytes, ASKER.sign(header_bytes), b"\x80"))
    yield "signed by another peer", msgpack.packb((header_bytes, STRANGER.sign(AGENT_DOMAIN + header_bytes), b"\x80"))
    yield "body swapped", msgpack.packb((header_bytes, ASKER.sign(AGENT_DOMAIN + header_bytes), b"\x81\xa1a\x01"))
    yield "length of the body wrong", crafted(len=2)
    yield "from another sender", crafted(**{"from": STRANGER.peer_id})
    yield "for another recipient", crafted(to=STRANGER.peer_id)
    yield "clock an hour behind", crafted(ts=NOW_MS - 3_600_000, exp=NOW_MS - 3_540_000)
    yield "clock an hour ahead", crafted(ts=NOW_MS + 3_600_000, exp=NOW_MS + 3_660_000)
    yield "expired", crafted(ts=NOW_MS - 30_000, exp=NOW_MS)
    yield "expires in two hours", crafted(exp=NOW_MS + 7_200_000)
    yield "critical extension unknown", crafted(crit=["urn:x"], ext={"urn:x": 1})
    yield "critical extension absent", crafted(crit=["urn:x"])
    yield "hop over maxhop", crafted(hop=5)
    yield "maxhop over the limit", crafted(maxhop=9)
    yield "envelope version 2", crafted(v=2)
    yield "message type unknown", crafted(t="GOSSIP")
    yield "operation unknown", crafted(msgpack.packb({"op": "subscribe"}))
    yield "id missing", crafted(id=None)
    yield "id of 15 bytes", crafted(id=bytes(15))
    yield "sequence as text", crafted(seq="0")
    yield "sequence negative", crafted(seq=-1)
    yield "sequence true", crafted(seq=True)
    yield "budget as a float", crafted(budget=0.5)
    yield "duplicate header key", crafted(header_bytes=bytes([header_bytes[0] + 1]) + header_bytes[1:] + b"\xa1v\x01")
    yield "33 header keys", crafted(**{f"x{number}": number for number in range(33 - 11)})
    yield (
        "header key that is bytes",
        crafted(header_bytes=bytes([header_bytes[0] + 1]) + header_bytes[1:] + b"\xc4\x01x\x01"),
    )
    yield "header of 17 KiB", crafted(ext={"x": bytes(17 * 1024)})
    yield "ext type in the body", crafted(msgpack.packb({"input": msgpack.ExtType(5, b"12")}))
    yield "timestamp in the body", crafted(b"\x81\xa5input\xd6\xff\x00\x00\x00\x00")
    yield "duplicate body key", crafted(b"\x82\xa2op\xa3run\xa2op\xa6cancel")
    yield "text that is not UTF-8", crafted(b"\x81\xa5model\xa1\xff")
    yield "depth 17", crafted(b"\x81\xa5input" + b"\x81\xa1a" * 15 + b"\x91\xc0")
    yield "depth 100000", crafted(b"\x91" * 100_000)
    yield "body that is an array", crafted(b"\x90")
    yield "mode unknown", crafted(msgpack.packb({"mode": "yesterday"}))
    yield "privacy level unknown", crafted(msgpack.packb({"privacy": "secret"}))
    yield "number that is not finite", crafted(msgpack.packb({"params": {"temperature": float("nan")}}))
    yield "artifact name that is no hash", crafted(msgpack.packb({"artifact": "photo"}))
    yield "model name of 129 bytes", crafted(msgpack.packb({"model": "b" * 129}))


def code_of(payload: bytes) -> str:
    try:
        open_envelope(payload, us=PROVIDER.peer_id, remote=ASKER.peer_id, now_ms=NOW_MS)
    except RemoteProtocolError as error:
        return error.code
    raise AssertionError("this payload must be refused")


def _shown(payload: bytes) -> dict[str, Any]:
    """Long runs of one byte are written as {prefix, repeat, times, suffix}: the file stays readable."""
    if len(payload) < 4096:
        return {"payload": payload.hex()}
    run = max((match.group() for match in re.finditer(rb"(.)\1+", payload, re.DOTALL)), key=len)
    before, after = payload.split(run, 1)
    return {"prefix": before.hex(), "repeat": run[:1].hex(), "times": len(run), "suffix": after.hex()}


def dialogue() -> dict[str, Any]:
    """A whole task: both ends' frames in order, with the state after each."""
    asker = Exchange("asker", ASKER, PROVIDER.peer_id, new_id=counter())
    provider = Exchange("provider", PROVIDER, ASKER.peer_id, new_id=counter())
    request = TaskRequest(model=MODEL, input={"messages": [{"role": "user", "content": "Hi"}]})
    frames = []

    def say(sender: Exchange, receiver: Exchange, message: Message, at_ms: int, **options: Any) -> None:
        frame = sender.send(message, at_ms, **options)
        receiver.receive(frame, at_ms)
        assert sender.state == receiver.state
        frames.append({"sender": sender.role, "at_ms": at_ms, "frame": frame.hex(), "state": str(sender.state)})

    say(asker, provider, request, NOW_MS, task=TASK)
    transcript = Transcript(provider.request_sha256)
    say(provider, asker, StatusUpdate(stage="prefill", done=4, total=8), NOW_MS + 10)
    for number, pieces in enumerate((("Hel",), ("lo", " you"))):
        say(provider, asker, StatusUpdate(first_piece=transcript.count, pieces=pieces), NOW_MS + 20 + number)
        transcript.extend(pieces)
    checkpoint = sign_checkpoint(PROVIDER, provider.request_sha256, transcript, NOW_MS + 30)
    say(provider, asker, StatusUpdate(checkpoint=checkpoint), NOW_MS + 30)
    say(asker, provider, TaskRequest(operation="cancel"), NOW_MS + 40)
    ending = TaskResponse("canceled", "cancel", 8, 3, transcript.count, transcript.digest)
    say(provider, asker, ending, NOW_MS + 50)
    return {"frames": frames, "request_sha256": asker.request_sha256.hex(), "transcript": transcript.digest.hex()}


def agent() -> dict[str, Any]:
    return {
        "page": "protocols/agent.md",
        "keys": keys(),
        "now_ms": NOW_MS,
        "domain": AGENT_DOMAIN.hex(),
        "known_extensions": ["urn:known"],
        "valid": valid(),
        "invalid": [{"name": name, "code": code_of(raw), **_shown(raw)} for name, raw in invalid_payloads()],
        "dialogue": dialogue(),
    }


def framing() -> dict[str, Any]:
    sizes = (0, 1, 127, 128, 300, 16383, 16384, 1 << 20)
    payloads = [b"", b"a", b"b" * 200]
    streams = {
        "length over the limit": encode_uvarint((1 << 20) + 1),
        "length over the limit, not yet whole": b"\xff\xff\xff\x7f",
        "length not in its shortest form": b"\x81\x00a",
        "length zero not in its shortest form": b"\x80\x00",
        "length that does not end": b"\x80\x80\x80\x80\x80",
    }
    return {
        "page": "protocols/agent.md",
        "lengths": [{"size_bytes": size, "prefix": encode_uvarint(size).hex()} for size in sizes],
        "stream": {
            "payloads": [payload.hex() for payload in payloads],
            "bytes": b"".join(encode_frame(payload) for payload in payloads).hex(),
        },
        "invalid": [{"name": name, "bytes": raw.hex(), "code": _frame_code(raw)} for name, raw in streams.items()],
    }


def _frame_code(raw: bytes) -> str:
    try:
        FrameDecoder().feed(raw)
    except RemoteProtocolError as error:
        return error.code
    raise AssertionError("these bytes must be refused")

"""Every field of everything a peer may send, holding every kind of value it should not: refused, and nothing else."""

from __future__ import annotations

import contextlib
from hashlib import sha256
from typing import Any

import cbrrr
import msgpack
import pytest

from octonode.errors import RemoteProtocolError, VerificationFailed
from octonode.identity import NodeKey
from octonode.ids import AGENT_DOMAIN, ANNOUNCEMENT_DOMAIN, CHECKPOINT_DOMAIN, RECEIPT_DOMAIN
from octonode.protocol import bodies
from octonode.protocol.announcement import Announcement, Holding, Serving, open_announcement, sign_announcement
from octonode.protocol.codec import unpack
from octonode.protocol.envelope import open_envelope
from octonode.protocol.limits import DEFAULT_LIMITS
from octonode.protocol.messages import (
    ArtifactChunk,
    ErrorReport,
    Message,
    Negotiate,
    StatusUpdate,
    TaskRequest,
    TaskResponse,
)
from octonode.protocol.receipt import EngineFingerprint, Price, Receipt, Times, sign_receipt, verify_receipt
from octonode.protocol.signed import seal_document
from octonode.protocol.transcript import Transcript, sign_checkpoint, verify_checkpoint

KEY, OTHER = NodeKey(b"p" * 32), NodeKey(b"a" * 32)
NOW_MS = 1_800_000_000_000
ODD: list[Any] = [None, False, True, 0, 1, -1, 2**64 - 1, 0.0, -0.5, 1e300, "", "x", "é" * 600, b"", b"x" * 2000]
ODD += [[], [None], [[]], ["x", 1], {}, {"x": None}, {"": {"": []}}, [{}], [b"x"]]
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]

MESSAGES: list[Message] = [
    TaskRequest("run", "chat", "m", {"a": 1}, {"b": 1}, "shared", "t"),
    StatusUpdate("submitted", "s", 1, 2, 3, ("a",), b"c", ArtifactChunk("n", 0, b"d", True)),
    TaskResponse("completed", "stop", 1, 2, 3, bytes(32), b"r", {"a": 1}),
    ErrorReport("INTERNAL", "m", 1, {"a": 1}),
    Negotiate("offer", {"a": 1}, 1, b"o"),
]


def variants(value: dict[str, Any], odd: list[Any]) -> Any:
    """`value` with each key, at every depth, left out or holding each odd value."""
    for key, held in value.items():
        yield {name: item for name, item in value.items() if name != key}
        for strange in odd:
            yield {**value, key: strange}
        if isinstance(held, dict):
            for inner in variants(held, odd):
                yield {**value, key: inner}
        if isinstance(held, list) and held and isinstance(held[0], dict):
            for inner in variants(held[0], odd):
                yield {**value, key: [inner]}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_bodies(message: Message) -> None:
    type_name = bodies.TYPE_OF[type(message)]
    value = unpack(bodies.encode_body(message, DEFAULT_LIMITS), DEFAULT_LIMITS)
    for variant in variants(value, [*ODD, *NOT_FINITE]):
        with contextlib.suppress(RemoteProtocolError):
            taken = bodies.decode_body(type_name, msgpack.packb(variant), DEFAULT_LIMITS)
            assert bodies.encode_body(taken, DEFAULT_LIMITS), "what is taken can be said again"


def test_headers() -> None:
    body = b"\x80"
    header = {
        "v": 1,
        "t": "STATUS_UPDATE",
        "id": bytes(16),
        "task": bytes(16),
        "from": OTHER.peer_id,
        "to": KEY.peer_id,
    }
    header |= {"seq": 0, "ts": NOW_MS, "exp": NOW_MS + 1, "hash": sha256(body).digest(), "len": 1, "conv": bytes(16)}
    header |= {"corr": bytes(16), "root": bytes(16), "hop": 1, "maxhop": 2, "budget": 1, "offer": bytes(16)}
    header |= {"crit": ["a"], "ext": {"a": {"b": 1}}}

    def opened(value: dict[str, Any]) -> None:
        raw = msgpack.packb(value)
        payload = msgpack.packb((raw, OTHER.sign(AGENT_DOMAIN + raw), body))
        known = frozenset({"a"})
        open_envelope(payload, us=KEY.peer_id, remote=OTHER.peer_id, now_ms=NOW_MS, known_extensions=known)

    opened(header)
    for variant in variants(header, [*ODD, *NOT_FINITE]):
        with contextlib.suppress(RemoteProtocolError):
            opened(variant)


def document(kind: str, data: bytes) -> dict[str, Any]:
    value: dict[str, Any] = cbrrr.decode_dag_cbor(cbrrr.decode_dag_cbor(data)[kind])
    return value


def test_announcements() -> None:
    model = {"manifest": "m", "name": "n", "version": "v"}
    serving = Serving("r", **model, context_tokens=1, parallel=2, running=1, tokens_per_second=1.5, first_token_ms=1)  # type: ignore[arg-type]
    full = Announcement(KEY.peer_id, 1, NOW_MS, NOW_MS + 9, "leaving", ("a",), 1, "consumer", {"h": 1}, ("e",))
    full = Announcement(*[getattr(full, name) for name in full.__slots__[:10]], (serving,), (Holding("r", **model),))
    for variant in variants(document("announcement", sign_announcement(KEY, full)), ODD):
        with contextlib.suppress(RemoteProtocolError):
            open_announcement(seal_document("announcement", ANNOUNCEMENT_DOMAIN, KEY, variant), NOW_MS)


def test_receipts() -> None:
    engine, price, times = EngineFingerprint("b", "c", "i", {"f": 1}), Price("tokens", 1, 2, 3), Times(1, 2, 3, 4)
    names = (OTHER.peer_id, KEY.peer_id, "r", "m")
    told = (engine, {"p": 1}, 7, 1, 2, 3, bytes(32), "stop", price, "public", "none", times)
    receipt = Receipt(bytes(32), bytes(16), *names, *told)
    for variant in variants(document("receipt", sign_receipt(KEY, receipt)), ODD):
        with contextlib.suppress(VerificationFailed):
            verify_receipt(seal_document("receipt", RECEIPT_DOMAIN, KEY, variant))


def test_checkpoints() -> None:
    data = sign_checkpoint(KEY, bytes(32), Transcript(bytes(32)), 5)
    for variant in variants(document("checkpoint", data), ODD):
        with contextlib.suppress(VerificationFailed):
            verify_checkpoint(seal_document("checkpoint", CHECKPOINT_DOMAIN, KEY, variant))

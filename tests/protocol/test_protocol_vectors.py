"""The golden vectors: the code still makes them, and takes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octonode.errors import RemoteProtocolError, VerificationFailed
from octonode.identity import NodeKey
from octonode.protocol.announcement import open_announcement
from octonode.protocol.envelope import open_envelope
from octonode.protocol.exchange import Exchange
from octonode.protocol.framing import FrameDecoder, encode_frame, encode_uvarint
from octonode.protocol.receipt import verify_receipt
from octonode.protocol.replay import ReplayWindow
from octonode.protocol.transcript import Transcript, verify_checkpoint

ROOT = Path(__file__).parents[2]


def load(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((ROOT / "protocols" / "vectors" / f"{name}.json").read_text(encoding="utf-8"))
    return value


def key(vectors: dict[str, Any], name: str) -> NodeKey:
    made = NodeKey(bytes.fromhex(vectors["keys"][name]["seed"]))
    assert made.peer_id == vectors["keys"][name]["peer_id"]
    return made


def plain(value: Any) -> Any:
    """JSON as the vectors write it: bytes as {"hex": ...}, dataclasses as maps."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def payload_of(row: dict[str, Any]) -> bytes:
    if "payload" in row:
        return bytes.fromhex(row["payload"])
    return bytes.fromhex(row["prefix"]) + bytes.fromhex(row["repeat"]) * row["times"] + bytes.fromhex(row["suffix"])


def test_the_code_still_makes_the_vectors() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "vectors.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_valid_message_opens() -> None:
    vectors = load("agent")
    names = {name: key(vectors, name) for name in ("asker", "provider")}
    sender_of = {made.peer_id: made for made in names.values()}
    for row in vectors["valid"]:
        sender = sender_of[row["header"]["from"]]
        envelope = open_envelope(
            payload_of(row),
            us=row["header"]["to"],
            remote=sender.peer_id,
            now_ms=vectors["now_ms"],
            known_extensions=frozenset(vectors["known_extensions"]),
        )
        assert plain(envelope.message) == row["message"], row["name"]
        assert envelope.header_bytes.hex() == row["header_bytes"]
        assert envelope.body_bytes.hex() == row["body_bytes"]
        assert envelope.signature.hex() == row["signature"]
        assert (envelope.header.type, envelope.header.sequence) == (row["type"], row["header"]["seq"])
        if envelope.signature:
            assert sender.sign(bytes.fromhex(vectors["domain"]) + envelope.header_bytes) == envelope.signature


@pytest.mark.parametrize("row", load("agent")["invalid"], ids=lambda row: row["name"])
def test_every_invalid_message_is_refused_with_its_code(row: dict[str, Any]) -> None:
    vectors = load("agent")
    us, remote = key(vectors, "provider").peer_id, key(vectors, "asker").peer_id
    with pytest.raises(RemoteProtocolError) as caught:
        open_envelope(payload_of(row), us=us, remote=remote, now_ms=vectors["now_ms"])
    assert caught.value.code == row["code"]


def test_the_dialogue_plays_at_both_ends() -> None:
    """Each end hears the other's recorded bytes; its own recorded ones are replayed into a twin of the other role."""
    vectors = load("agent")
    asker_key, provider_key = key(vectors, "asker"), key(vectors, "provider")
    provider = Exchange("provider", provider_key, asker_key.peer_id, new_id=lambda: bytes(16), replay=ReplayWindow())
    asker = Exchange("asker", asker_key, provider_key.peer_id, new_id=lambda: bytes(16))
    chain: Transcript | None = None
    for step in vectors["dialogue"]["frames"]:
        frame = bytes.fromhex(step["frame"])
        if step["sender"] == "asker":
            (event,) = provider.receive(frame, step["at_ms"])
            assert provider.state == step["state"]
            if asker.state == "idle":
                asker.send_again(event.payload, step["at_ms"])
                chain = Transcript(provider.request_sha256)
            else:
                asker.send(event.message, step["at_ms"])
        else:
            (event,) = asker.receive(frame, step["at_ms"])
            assert chain is not None
            chain.extend(getattr(event.message, "pieces", ()))
        assert asker.state == step["state"]
    assert chain is not None
    assert asker.request_sha256.hex() == vectors["dialogue"]["request_sha256"]
    assert chain.digest.hex() == vectors["dialogue"]["transcript"]


def test_framing() -> None:
    vectors = load("framing")
    for row in vectors["lengths"]:
        assert encode_uvarint(row["size_bytes"]).hex() == row["prefix"]
        assert FrameDecoder().feed(bytes.fromhex(row["prefix"]) + bytes(row["size_bytes"])) == [
            bytes(row["size_bytes"])
        ]
    payloads = [bytes.fromhex(payload) for payload in vectors["stream"]["payloads"]]
    assert b"".join(map(encode_frame, payloads)).hex() == vectors["stream"]["bytes"]
    assert FrameDecoder().feed(bytes.fromhex(vectors["stream"]["bytes"])) == payloads
    for row in vectors["invalid"]:
        with pytest.raises(RemoteProtocolError) as caught:
            FrameDecoder().feed(bytes.fromhex(row["bytes"]))
        assert caught.value.code == row["code"]


def test_transcript() -> None:
    vectors = load("transcript")
    chain = Transcript(bytes.fromhex(vectors["request"]))
    links = [chain.digest.hex()]
    for piece in vectors["pieces"]:
        chain.add(piece)
        links.append(chain.digest.hex())
    assert links == vectors["links"]
    checkpoint = verify_checkpoint(bytes.fromhex(vectors["checkpoint"]["bytes"]))
    assert (checkpoint.digest, checkpoint.pieces) == (chain.digest, len(vectors["pieces"]))
    assert checkpoint.provider == vectors["keys"]["provider"]["peer_id"]
    for row in vectors["invalid"]:
        with pytest.raises(VerificationFailed):
            verify_checkpoint(bytes.fromhex(row["bytes"]))


def test_announcement() -> None:
    vectors = load("announcement")
    for row in vectors["valid"]:
        assert plain(open_announcement(bytes.fromhex(row["bytes"]), vectors["now_ms"])) == row["announcement"]
    for row in vectors["invalid"]:
        with pytest.raises(RemoteProtocolError) as caught:
            open_announcement(bytes.fromhex(row["bytes"]), vectors["now_ms"])
        assert caught.value.code == row["code"], row["name"]


def test_receipt() -> None:
    vectors = load("receipt")
    receipt = verify_receipt(bytes.fromhex(vectors["bytes"]))
    assert plain(receipt) == vectors["receipt"]
    chain = Transcript(receipt.request)
    chain.extend(vectors["pieces"])
    assert (receipt.transcript, receipt.pieces) == (chain.digest, chain.count)
    for row in vectors["invalid"]:
        with pytest.raises(VerificationFailed):
            verify_receipt(bytes.fromhex(row["bytes"]))

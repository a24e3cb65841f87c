"""Vectors of signed documents: transcript and checkpoint, announcement, receipt. See vectors.py."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import cbrrr
from vectors_agent import ASKER, MODEL, NOW_MS, PROVIDER, STRANGER, TASK, counter, keys, plain

from octonode.errors import OctonodeError
from octonode.ids import ANNOUNCEMENT_DOMAIN, CHECKPOINT_DOMAIN, RECEIPT_DOMAIN, TRANSCRIPT_DOMAIN
from octonode.protocol.announcement import (
    Announcement,
    Holding,
    Serving,
    StorageRoom,
    open_announcement,
    sign_announcement,
)
from octonode.protocol.exchange import Exchange
from octonode.protocol.messages import TaskRequest
from octonode.protocol.receipt import EngineFingerprint, Price, Receipt, Times, sign_receipt, verify_receipt
from octonode.protocol.signed import seal_document
from octonode.protocol.transcript import Transcript, sign_checkpoint

PIECES = ("Hel", "lo", "", " wörld", "世界", "\n")


def forged(kind: str, data: bytes, domain: bytes) -> dict[str, bytes]:
    """Ways to tamper with a signed document that every verifier must refuse."""
    document = cbrrr.decode_dag_cbor(data)
    inner = document[kind]
    return {
        "one bit of the document": data.replace(inner, inner[:-1] + bytes([inner[-1] ^ 1])),
        "signature of zeros": cbrrr.encode_dag_cbor({**document, "signature": bytes(64)}),
        "signed by another peer": seal_document(kind, domain, STRANGER, cbrrr.decode_dag_cbor(inner)),
        "signature of another purpose": seal_document(
            kind, b"octonode/other/1\0", PROVIDER, cbrrr.decode_dag_cbor(inner)
        ),
        "signer that is no peer id": cbrrr.encode_dag_cbor({**document, "signer": "nobody"}),
        "bytes after the document": data + b"\x00",
        "a fourth key": cbrrr.encode_dag_cbor({**document, "extra": 1}),
        "document that is not dag-cbor": cbrrr.encode_dag_cbor(
            {**document, kind: b"\xbf\xff", "signature": PROVIDER.sign(domain + b"\xbf\xff")}
        ),
    }


def transcript() -> dict[str, Any]:
    request = sha256(b"header bytes of a request").digest()
    chain = Transcript(request)
    links = [chain.digest.hex()]
    for piece in PIECES:
        chain.add(piece)
        links.append(chain.digest.hex())
    checkpoint = sign_checkpoint(PROVIDER, request, chain, NOW_MS)
    tampered = forged("checkpoint", checkpoint, CHECKPOINT_DOMAIN)
    return {
        "page": "protocols/receipt.md",
        "keys": keys(),
        "domain": TRANSCRIPT_DOMAIN.hex(),
        "checkpoint_domain": CHECKPOINT_DOMAIN.hex(),
        "request": request.hex(),
        "pieces": list(PIECES),
        "links": links,
        "checkpoint": {"at_ms": NOW_MS, "pieces": chain.count, "bytes": checkpoint.hex()},
        "invalid": [{"name": name, "bytes": raw.hex()} for name, raw in tampered.items()],
    }


def announcements() -> dict[str, Announcement]:
    least = Announcement(PROVIDER.peer_id, 1, NOW_MS, NOW_MS + 120_000)
    name = f"{PROVIDER.peer_id}/smollm2-135m-instruct"
    serving = Serving(
        root=MODEL,
        manifest=MODEL,
        name=name,
        version="1.0.0",
        context_tokens=2048,
        parallel=4,
        running=1,
        tokens_per_second=12.5,
        first_token_ms=80,
        quantization="Q4_1",
        price_in_micro_octo=5,
        price_out_micro_octo=10,
        modes={"realtime": (8, 15), "batch": (5, 10), "async": (3, 5)},
    )
    full = replace(
        least,
        sequence=2**40,
        addresses=(f"/ip4/192.0.2.1/tcp/4808/p2p/{PROVIDER.peer_id}",),
        gateway_port=4810,
        tier="consumer",
        hardware={"gpu": "Example 8 GB", "vram_bytes": 8 << 30, "cpu_cores": 8, "cuda": True},
        engines=("llama",),
        serving=(serving, Serving(root=MODEL), Serving(root=MODEL, loads_in_ms=12_300)),
        holding=(Holding(root=MODEL, name=name, version="1.0.0", complete=False),),
        access="open",
        region="eu",
        agent_version="octonode/0.1.0",
        trimmed=True,
    )
    room = StorageRoom(total_bytes=10**12, used_bytes=5 * 10**9, free_bytes=995 * 10**9)
    keeper = replace(least, sequence=4, role="storage", storage=room, holding=(Holding(root=MODEL),))
    return {
        "least": least,
        "all fields": full,
        "leaving": replace(least, sequence=3, state="leaving"),
        "storage": keeper,
    }


def announcement() -> dict[str, Any]:
    named = announcements()
    least = named["least"]
    data = sign_announcement(PROVIDER, least)
    tampered = forged("announcement", data, ANNOUNCEMENT_DOMAIN)
    tampered["expired"] = sign_announcement(PROVIDER, replace(least, expires_at_ms=NOW_MS))
    ahead = replace(least, issued_at_ms=NOW_MS + 61_000, expires_at_ms=NOW_MS + 90_000)
    tampered["issued in the future"] = sign_announcement(PROVIDER, ahead)
    tampered["lives for two hours"] = sign_announcement(PROVIDER, replace(least, expires_at_ms=NOW_MS + 7_200_000))
    version_2 = {**cbrrr.decode_dag_cbor(cbrrr.decode_dag_cbor(data)["announcement"]), "version": 2}
    tampered["version 2"] = seal_document("announcement", ANNOUNCEMENT_DOMAIN, PROVIDER, version_2)
    large = {**version_2, "version": 1, "region": "x" * 4096}
    one_price = {**version_2, "version": 1, "serving": [{"root": MODEL, "modes": {"async": [1]}}]}
    tampered["a mode with one price"] = seal_document("announcement", ANNOUNCEMENT_DOMAIN, PROVIDER, one_price)
    tampered["over 4 KiB"] = seal_document("announcement", ANNOUNCEMENT_DOMAIN, PROVIDER, large)
    return {
        "page": "protocols/announcement.md",
        "keys": keys(),
        "now_ms": NOW_MS,
        "domain": ANNOUNCEMENT_DOMAIN.hex(),
        "valid": [
            {"name": name, "announcement": plain(value), "bytes": sign_announcement(PROVIDER, value).hex()}
            for name, value in named.items()
        ],
        "invalid": [
            {"name": name, "code": _code(lambda raw=raw: open_announcement(raw, NOW_MS)), "bytes": raw.hex()}
            for name, raw in tampered.items()
        ],
    }


def _code(call: Any) -> str:
    try:
        call()
    except OctonodeError as error:
        return error.code
    raise AssertionError("these bytes must be refused")


def receipt() -> dict[str, Any]:
    asker = Exchange("asker", ASKER, PROVIDER.peer_id, new_id=counter())
    asker.send(TaskRequest(model=MODEL, input={"messages": [{"role": "user", "content": "Hi"}]}), NOW_MS, task=TASK)
    chain = Transcript(asker.request_sha256)
    chain.extend(PIECES)
    value = Receipt(
        request=asker.request_sha256,
        task=TASK,
        asker=ASKER.peer_id,
        provider=PROVIDER.peer_id,
        model_root=MODEL,
        manifest="",
        engine=EngineFingerprint("xllamacpp 2026.10.11549", "cpu", "avx2", {"flash_attention": False, "threads": 1}),
        parameters={"max_tokens": 16, "temperature": 0.0, "top_p": 1.0, "stop": ["\n"]},
        seed=7,
        tokens_in=9,
        tokens_out=6,
        pieces=chain.count,
        transcript=chain.digest,
        finish_reason="stop",
        price=Price("tokens", 5, 10, 1),
        privacy="public",
        privacy_evidence="none",
        times=Times(NOW_MS, NOW_MS + 1, NOW_MS + 80, NOW_MS + 500),
    )
    data = sign_receipt(PROVIDER, value)
    tampered = forged("receipt", data, RECEIPT_DOMAIN)
    for raw in tampered.values():
        assert _code(lambda raw=raw: verify_receipt(raw)) == "VERIFICATION_FAILED"
    return {
        "page": "protocols/receipt.md",
        "keys": keys(),
        "domain": RECEIPT_DOMAIN.hex(),
        "request_payload": asker.request_payload.hex(),
        "pieces": list(PIECES),
        "receipt": plain(value),
        "bytes": data.hex(),
        "invalid": [{"name": name, "bytes": raw.hex()} for name, raw in tampered.items()],
    }

"""Golden vectors of name records; `scripts/vectors.py` writes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octonode.errors import OctonodeError
from octonode.identity import NodeKey
from octonode.ids import NAME_RECORD_DOMAIN
from octonode.ipfs.cid import Cid, dag_cbor_cid
from octonode.network.keys import name_record_key
from octonode.network.records import RecordRules
from octonode.protocol import signed
from octonode.protocol.name_record import (
    NAME_RECORD_LIFE_MS_MAX,
    NamedVersion,
    NameRecord,
    open_name_record,
    sign_name_record,
)

PUBLISHER, STRANGER = NodeKey(bytes(range(32))), NodeKey(bytes(range(32, 64)))
NOW_MS = 1_764_000_000_000


def record() -> NameRecord:
    """A record that fills every field."""
    old, new = (dag_cbor_cid(bytes([number])).raw for number in (1, 2))
    versions = (NamedVersion("1.0.0", old, True, "answers in rhyme", "1.1.0"), NamedVersion("1.1.0", new))
    life = (NOW_MS, NOW_MS + NAME_RECORD_LIFE_MS_MAX)
    return NameRecord(PUBLISHER.peer_id, "tiny-test", 3, *life, versions, trimmed=True)


def names() -> dict[str, Any]:
    """A signed record with its key, and records that every node refuses."""
    good = record()
    data = sign_name_record(PUBLISHER, good)
    key = name_record_key(good.publisher, good.name)
    value = signed.open_document("name_record", NAME_RECORD_DOMAIN, data, 4096).value
    first = value["versions"][0]
    changed: dict[str, dict[str, Any]] = {
        "the format has another version": {**value, "v": 2},
        "it lives longer than seven days": {**value, "expires_at_ms": value["expires_at_ms"] + 1},
        "it expires before it is issued": {**value, "expires_at_ms": NOW_MS - 1},
        "seq is 0": {**value, "seq": 0},
        "a version twice": {**value, "versions": [first, first]},
        "what is no version": {**value, "versions": [{**first, "version": "newest"}]},
        "a manifest that is a root": {
            **value,
            "versions": [{**first, "manifest": b"\x01\x70" + first["manifest"][2:]}],
        },
        "a reason that moves the cursor": {**value, "versions": [{**first, "reason": "\x1b[2J"}]},
        "a name with a slash": {**value, "name": "tiny/test"},
    }
    refused = [(why, key, _sealed(each), NOW_MS) for why, each in changed.items()]
    later = sign_name_record(PUBLISHER, replace(good, name="other-test"))
    refused += [
        ("a bit of the signature is flipped", key, _flipped(data), NOW_MS),
        ("a stranger signed it", key, _sealed(value, STRANGER), NOW_MS),
        ("signed for another purpose", key, _sealed(value, domain=b"octonode/announcement/1\0"), NOW_MS),
        ("it stands under another name", key, later, NOW_MS),
        ("it stands under another publisher", name_record_key(STRANGER.peer_id, good.name), data, NOW_MS),
        ("it has expired", key, data, good.expires_at_ms),
        ("it comes from the future", key, data, NOW_MS - 60_001),
        ("it is larger than 4096 bytes", key, _sealed({**value, "padding": "x" * 4096}), NOW_MS),
    ]
    return {
        "page": "protocols/discovery.md",
        "keys": [
            {"seed": bytes(range(n, n + 32)).hex(), "peer_id": NodeKey(bytes(range(n, n + 32))).peer_id}
            for n in (0, 32)
        ],
        "domain": NAME_RECORD_DOMAIN.hex(),
        "key": key,
        "now_ms": NOW_MS,
        "fields": {
            "publisher": good.publisher, "name": good.name, "seq": good.seq, "issued_at_ms": good.issued_at_ms,
            "expires_at_ms": good.expires_at_ms, "trimmed": good.trimmed,
            "versions": [
                {
                    "version": each.version, "manifest": Cid.from_bytes(each.manifest).text,
                    "deprecated": each.deprecated, "reason": each.reason, "replaced_by": each.replaced_by,
                }
                for each in good.versions
            ],
        },
        "record": {"hex": data.hex()},
        "refused": [
            {"why": why, "key": place, "now_ms": at, "code": _code(place, bad, at), "hex": bad.hex()}
            for why, place, bad, at in refused
        ],
    }  # fmt: skip


def _sealed(value: dict[str, Any], signer: NodeKey = PUBLISHER, domain: bytes = NAME_RECORD_DOMAIN) -> bytes:
    return signed.seal_document("name_record", domain, signer, value)


def _flipped(data: bytes) -> bytes:
    document = signed.decode_dag_cbor(data, "name_record")
    signature = document["signature"]
    return signed.encode_dag_cbor({**document, "signature": bytes([signature[0] ^ 1]) + signature[1:]})


def _code(key: str, data: bytes, now_ms: int) -> str:
    try:
        RecordRules(lambda: now_ms).validate(key, data)
    except OctonodeError as error:
        return error.code
    raise AssertionError(f"a record that should be refused is taken: {open_name_record(data, None)}")

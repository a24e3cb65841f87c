"""Manifests: signed bytes and nothing else, every field under a limit, no way back in time."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import OctonodeError, RemoteProtocolError, VerificationFailed
from octonode.identity import NodeKey
from octonode.ids import MANIFEST_DOMAIN
from octonode.ipfs import dagcbor
from octonode.ipfs.cid import dag_cbor_cid, dag_pb_cid, raw_cid
from octonode.models.manifest import (
    ModelFile,
    ModelManifest,
    Requirements,
    check_rollback,
    decode,
    encode,
    sign,
    verify,
)

KEY, OTHER = NodeKey(bytes(range(32))), NodeKey(bytes(range(1, 33)))
ROOT = dag_pb_cid(b"")
FILE = ModelFile("model.gguf", 98_362_432, ROOT, bytes(32), "gguf")
MANIFEST = ModelManifest(
    publisher=KEY.peer_id,
    name="smollm2-135m",
    version="1.0.0",
    files=(FILE,),
    root=ROOT,
    architecture="llama",
    quantization="Q4_1",
    requirements=Requirements(0, ("llama",), ""),
    context_tokens=8192,
    licence="apache-2.0",
    chat_template_sha256=bytes(32),
    derived_from=(raw_cid(b"parent"),),
    seq=3,
    previous=dag_cbor_cid(b"before"),
    created_ms=1_764_000_000_000,
    ext={"org.example": {"note": "hello"}},
)
SIGNED = sign(MANIFEST, KEY).encode()


def test_round_trip_and_its_own_cid() -> None:
    signed = verify(SIGNED)
    assert signed.manifest == MANIFEST
    assert signed.cid == dag_cbor_cid(encode(MANIFEST))
    assert signed.encode() == SIGNED
    assert signed.manifest.reference == f"{KEY.peer_id}/smollm2-135m@1.0.0"


def test_more_signatures_travel_with_it() -> None:
    signed = verify(sign(MANIFEST, KEY, OTHER).encode())
    assert [s.peer_id for s in signed.signatures] == [KEY.peer_id, OTHER.peer_id]


def _signed_value(**change: Any) -> dict[str, Any]:
    value = dagcbor.decode(SIGNED, bytes_max=1 << 20)
    return {**value, **change}


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(at: int, flip: int) -> None:
    data = SIGNED[:at] + bytes([SIGNED[at] ^ flip]) + SIGNED[at + 1 :]
    with pytest.raises(OctonodeError) as caught:
        verify(data)
    assert caught.value.code in ("BAD_SIGNATURE", "BAD_MESSAGE", "UNSUPPORTED", "TOO_LARGE", "BAD_REQUEST")


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_raise_only_typed_errors(data: bytes) -> None:
    for read in (verify, decode):
        with pytest.raises(OctonodeError):
            read(data)


def test_a_signature_for_another_purpose_or_by_another_key_does_not_count() -> None:
    body = encode(MANIFEST)
    stranger = [{"peer_id": OTHER.peer_id, "signature": OTHER.sign(MANIFEST_DOMAIN + body)}]
    other_domain = [{"peer_id": KEY.peer_id, "signature": KEY.sign(b"octonode/receipt/1\0" + body)}]
    for signatures in (stranger, other_domain, []):
        with pytest.raises(VerificationFailed) as caught:
            verify(dagcbor.encode(_signed_value(signatures=signatures)))
        assert caught.value.code == "BAD_SIGNATURE"
    twice = _signed_value()["signatures"] * 2
    with pytest.raises(RemoteProtocolError, match="once"):
        verify(dagcbor.encode(_signed_value(signatures=twice)))


BAD: list[dict[str, Any]] = [
    {"v": 2},
    {"name": "Has Spaces"},
    {"name": "../up"},
    {"name": "x" * 97},
    {"version": "1.0"},
    {"version": "01.0.0"},
    {"publisher": "12D3KooWnobody"},
    {"files": []},
    {"category": "weapon"},
    {"seq": 0},
    {"seq": -1},
    {"seq": True},
    {"seq": 2**63},
    {"created_ms": 1.5},
    {"licence": "a\nb"},
    {"licence": "x" * 257},
    {"chat_template_sha256": bytes(31)},
    {"root": raw_cid(b"another")},
    {"root": "bafy"},
    {"root": dag_cbor_cid(b"x")},
    {"requirements": {}},
    {"requirements": {"vram_bytes": -1, "engines": [], "compute_capability": ""}},
    {"derived_from": [raw_cid(b"")] * 65},
    {"ext": {f"k{n}": n for n in range(33)}},
    {"ext": []},
    {"unknown": 1},
]


@pytest.mark.parametrize(
    "change", BAD, ids=lambda change: f"{next(iter(change))}={str(next(iter(change.values())))[:20]}"
)
def test_fields_outside_their_limits_are_refused(change: dict[str, Any]) -> None:
    value = dagcbor.decode(encode(MANIFEST), bytes_max=1 << 20)
    with pytest.raises(RemoteProtocolError):
        decode(dagcbor.encode({**value, **change}))


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", "a//b", "", "a\\b", "C:\\x", "a/./b", "x" * 257, "a\0b"]
)
def test_paths_stay_below_the_model(path: str) -> None:
    with pytest.raises(RemoteProtocolError):
        encode(dataclasses.replace(MANIFEST, files=(dataclasses.replace(FILE, path=path),)))


def test_files_are_sorted_and_named_once() -> None:
    second = dataclasses.replace(FILE, path="a.json")
    encode(dataclasses.replace(MANIFEST, files=(second, FILE)))
    for files in ((FILE, second), (FILE, FILE), (dataclasses.replace(FILE, path="model.gguf/x"), FILE)):
        with pytest.raises(RemoteProtocolError):
            encode(dataclasses.replace(MANIFEST, files=files))


def test_a_size_limit_before_anything_is_parsed() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        verify(bytes(1 << 20))
    assert caught.value.code == "TOO_LARGE"


def test_rollback() -> None:
    check_rollback(MANIFEST, 3)
    with pytest.raises(VerificationFailed, match="seq 4") as caught:
        check_rollback(MANIFEST, 4)
    assert caught.value.code == "ROLLBACK"

"""Golden vectors of content and manifests; `scripts/vectors.py` writes them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import random
from collections.abc import Iterator
from typing import Any

from octonode.errors import OctonodeError
from octonode.identity import NodeKey
from octonode.ids import MANIFEST_DOMAIN
from octonode.ipfs import car, dagcbor
from octonode.ipfs.cid import CODEC_NAMES, Cid, CidError, dag_cbor_cid, dag_pb_cid, raw_cid
from octonode.ipfs.unixfs import LEAF_BYTES, PROFILE, PROFILES, Profile, import_directory, import_stream, leaf_digests
from octonode.models.manifest import ModelFile, ModelManifest, Requirements, sign, verify

SIZES = (0, 1, 300_000, LEAF_BYTES, LEAF_BYTES + 1, 3 * LEAF_BYTES + 5)
BIG = (1 << 30, (1 << 30) + 1)
PROFILE_SIZES = (0, 1, 1 << 18, (1 << 18) + 1, LEAF_BYTES + 1, 174 << 18, (174 << 18) + 1)
PUBLISHER, WITNESS = NodeKey(bytes(range(32))), NodeKey(bytes(range(32, 64)))


def big_leaves(size: int) -> Iterator[bytes]:
    """1025 leaves that differ in their first four bytes, cut to `size`."""
    tail = random.Random(1).randbytes(LEAF_BYTES)[4:]
    for number in range(1025):
        leaf = (number.to_bytes(4, "little") + tail)[: max(0, size - number * LEAF_BYTES)]
        if leaf:
            yield leaf


def cid() -> dict[str, Any]:
    """CIDs, UnixFS and CAR."""
    data = b"hello world"
    cids = [raw_cid(data), dag_pb_cid(bytes.fromhex("0a020801")), dag_cbor_cid(b"\xa0")]
    refused = [
        "",
        "bafkrei",
        cids[0].text.upper(),
        cids[0].text + "=",
        "b" + "a" * 58,
        "Qm" + "1" * 44,
        "z" + cids[0].text,
    ]
    imported = {size: import_stream(io.BytesIO(random.Random(1).randbytes(size))) for size in SIZES}
    directory = import_directory({"b.gguf": (raw_cid(b"b"), 1), "a/c.json": (raw_cid(b"c"), 1)})
    node = imported[LEAF_BYTES + 1].nodes[0]
    archive = b"".join(car.encode([cids[0]], [(cids[0], data), (raw_cid(b""), b"")]))
    assert all(_refuses(text) for text in refused)
    return {
        "page": "protocols/gateway.md",
        "profile": PROFILE,
        "cids": [{"text": c.text, "hex": c.raw.hex(), "codec": CODEC_NAMES[c.codec]} for c in cids],
        "version_0": {"text": Cid(cids[1].codec, cids[1].digest, 0).text, "version_1": cids[1].text},
        "refused": refused,
        "files": {
            "content": "Python: random.Random(1).randbytes(n)",
            "roots": {str(size): result.root.text for size, result in imported.items()},
        },
        "big_files": {
            "content": "b = random.Random(1).randbytes(2**20); "
            "i.to_bytes(4, 'little') + b[4:] for i in range(1025), cut to n",
            "roots": {str(size): leaf_digests(big_leaves(size)).root.text for size in BIG},
        },
        "profiles": {
            "content": "as of files",
            "profiles": {name: _profile(profile) for name, profile in PROFILES.items()},
        },
        "file_node": {"cid": node[0].text, "hex": node[1].hex()},
        "directory": {
            "files": {"b.gguf": raw_cid(b"b").text, "a/c.json": raw_cid(b"c").text},
            "root": directory.root.text,
            "nodes": [{"cid": c.text, "hex": block.hex()} for c, block in directory.nodes],
        },
        "car": {"blocks": [cids[0].text, raw_cid(b"").text], "hex": archive.hex()},
    }


def _profile(profile: Profile) -> dict[str, Any]:
    """A profile, its roots, and where its leaves are wrapped the block of one and of a node over two."""
    content = {size: random.Random(1).randbytes(size) for size in PROFILE_SIZES}
    roots = {size: import_stream(io.BytesIO(data), profile=profile) for size, data in content.items()}
    shown: dict[str, Any] = {**dataclasses.asdict(profile), "roots": {str(s): r.root.text for s, r in roots.items()}}
    if not profile.raw_leaves:
        node = roots[profile.leaf_bytes + 1].nodes[0]
        shown["leaf"] = {"content": content[1].hex(), "hex": profile.leaf_form.block(content[1]).hex()}
        shown["file_node"] = {"size": profile.leaf_bytes + 1, "cid": node[0].text, "hex": node[1].hex()}
    return shown


def _refuses(text: str) -> bool:
    try:
        Cid.parse(text)
    except CidError:
        return True
    return False


def example() -> ModelManifest:
    """A manifest that fills every field."""
    content = random.Random(1).randbytes(300_000)
    root = raw_cid(content)
    return ModelManifest(
        publisher=PUBLISHER.peer_id,
        name="tiny-test",
        version="1.2.0",
        files=(ModelFile("tiny.gguf", len(content), root, hashlib.sha256(content).digest(), "gguf"),),
        root=root,
        category="llm",
        architecture="llama",
        quantization="Q4_1",
        requirements=Requirements(512 * 1024 * 1024, ("llama",), "8.0"),
        context_tokens=8192,
        licence="apache-2.0",
        chat_template_sha256=hashlib.sha256(b"{{ messages }}").digest(),
        derived_from=(raw_cid(b"parent"),),
        seq=2,
        previous=dag_cbor_cid(b"\xa0"),
        created_ms=1_764_000_000_000,
        ext={"org.example.note": "hello"},
    )


def manifest() -> dict[str, Any]:
    """A signed manifest, and signed documents that are refused."""
    signed = sign(example(), PUBLISHER, WITNESS)
    value = dagcbor.decode(signed.encode(), bytes_max=1 << 20)
    body = signed.manifest_bytes
    first = value["signatures"][0]
    flipped = {**first, "signature": bytes([first["signature"][0] ^ 1]) + first["signature"][1:]}
    foreign = {"peer_id": PUBLISHER.peer_id, "signature": PUBLISHER.sign(b"octonode/receipt/1\0" + body)}
    bad_path = dagcbor.decode(body, bytes_max=1 << 20)
    bad_path["files"][0]["path"] = "../up"
    documents = {
        "a bit of the signature is flipped": {**value, "signatures": [flipped]},
        "the publisher did not sign": {**value, "signatures": value["signatures"][1:]},
        "signed for another purpose": {**value, "signatures": [foreign]},
        "the publisher signed twice": {**value, "signatures": [first, first]},
        "a path leaves the model": _resigned(bad_path),
        "another version of the format": _resigned({**dagcbor.decode(body, bytes_max=1 << 20), "v": 2}),
        "an unknown field outside ext": _resigned({**dagcbor.decode(body, bytes_max=1 << 20), "extra": 1}),
    }
    return {
        "page": "protocols/manifest.md",
        "keys": [
            {"seed": bytes(range(n, n + 32)).hex(), "peer_id": NodeKey(bytes(range(n, n + 32))).peer_id}
            for n in (0, 32)
        ],
        "domain": MANIFEST_DOMAIN.hex(),
        "fields": _plain(dataclasses.asdict(example())),
        "manifest": {"cid": signed.cid.text, "hex": body.hex()},
        "signed": {"cid": dag_cbor_cid(signed.encode()).text, "hex": signed.encode().hex()},
        "refused": [_refused(why, document) for why, document in documents.items()],
    }


def _refused(why: str, document: dict[str, Any]) -> dict[str, str]:
    data = dagcbor.encode(document)
    return {"why": why, "code": _code(data), "hex": data.hex()}


def _resigned(value: dict[str, Any]) -> dict[str, Any]:
    body = dagcbor.encode(value)
    signature = {"peer_id": PUBLISHER.peer_id, "signature": PUBLISHER.sign(MANIFEST_DOMAIN + body)}
    return {"manifest": body, "signatures": [signature]}


def _code(data: bytes) -> str:
    try:
        verify(data)
    except OctonodeError as error:
        return error.code
    raise AssertionError("a document that should be refused is taken")


def _plain(value: Any) -> Any:
    """CIDs as {"/": text} and bytes as {"hex": ...}, as dag-json does or nearly."""
    if isinstance(value, dict) and set(value) == {"codec", "digest", "version"}:
        return {"/": Cid(**value).text}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {"hex": value.hex()} if isinstance(value, bytes) else value

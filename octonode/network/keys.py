"""Content keys: under which 32 bytes a node looks for blocks, for servers, for tiers and for names.

Pure. The page is protocols/discovery.md, the golden values protocols/vectors/discovery.json.
A root is given as its 32-byte sha256 digest: the codec in front of it is the reader's business, not the network's.
"""

from __future__ import annotations

import hashlib

from octonode.ids import NAME_KEY_DOMAIN, SERVE_KEY_DOMAIN, TIER_KEY_DOMAIN, PeerId, public_key_from_peer_id

KEY_BYTES = 32
TIER_BUCKETS = 16
VALUE_NAMESPACE = "octo"
NAME_NAMESPACE = "octo-model"
VALUE_NAMESPACES = (VALUE_NAMESPACE, NAME_NAMESPACE)
_SHA2_256_MULTIHASH = b"\x12\x20"


def blocks_key(root_digest: bytes) -> bytes:
    """Who holds blocks of a model: the digest itself, so that any IPFS node could be asked the same question."""
    assert len(root_digest) == KEY_BYTES
    return root_digest


def serve_key(root_digest: bytes) -> bytes:
    """Who serves a model."""
    assert len(root_digest) == KEY_BYTES
    return hashlib.sha256(SERVE_KEY_DOMAIN + root_digest).digest()


def tier_bucket(peer_id: PeerId) -> int:
    """In which of the 16 buckets of its tier a peer stands: the low four bits of sha256(public key)[0].

    One key would end at the 20 providers that the table keeps; sixteen let a search draw from many more.
    Raises ValueError for what is not a peer id.
    """
    return hashlib.sha256(public_key_from_peer_id(peer_id)).digest()[0] % TIER_BUCKETS


def tier_key(tier: str, bucket: int) -> bytes:
    """Who is of a hardware tier, in one bucket of 16."""
    assert 0 <= bucket < TIER_BUCKETS
    return hashlib.sha256(TIER_KEY_DOMAIN + tier.encode() + bytes([bucket])).digest()


def name_key(publisher: PeerId, name: str) -> bytes:
    """Who can show a manifest that `publisher` signed under `name`."""
    return hashlib.sha256(NAME_KEY_DOMAIN + publisher.encode() + b"/" + name.encode()).digest()


def record_key(peer_id: PeerId) -> str:
    """Where a peer's signed announcement stands in the value store."""
    return f"/{VALUE_NAMESPACE}/{peer_id}"


def in_namespace(key: str) -> bool:
    """Whether values are kept under such a key at all."""
    return key.startswith(tuple(f"/{namespace}/" for namespace in VALUE_NAMESPACES))


def name_record_key(publisher: PeerId, name: str) -> str:
    """Where a publisher's signed record of a name stands in the value store."""
    return f"/{NAME_NAMESPACE}/{publisher}/{name}"


def multihash(key: bytes) -> bytes:
    """A key as it stands in provider records on the wire: sha2-256, length 32."""
    assert len(key) == KEY_BYTES
    return _SHA2_256_MULTIHASH + key

"""Names of things on the wire: protocol ids, signature domains, peer ids.

Nothing here does I/O. A peer id is the base58 text of the identity multihash of an Ed25519 public key, as in
https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
"""

from __future__ import annotations

from functools import lru_cache
from typing import NewType

import base58

PeerId = NewType("PeerId", str)
"""Base58 text, starts with 12D3KooW for Ed25519 keys."""

TaskId = NewType("TaskId", bytes)
"""16 bytes, made by the asker."""

MessageId = NewType("MessageId", bytes)
"""16 bytes; unique for its sender until the message expires."""

AGENT_PROTOCOL = "/cipherocto/agent/1.0.0"
HELLO_PROTOCOL = "/cipherocto/hello/1.0.0"
FANOUT_PROTOCOL = "/cipherocto/fanout/1.0.0"
KAD_PROTOCOL = "/cipherocto/kad/1.0.0"
BITSWAP_PROTOCOL = "/ipfs/bitswap/1.2.0"
ANNOUNCE_TOPIC = "/cipherocto/announce/1"

# Domain prefixes: a signature made for one purpose never verifies for another.
AGENT_DOMAIN = b"/cipherocto/agent/1\0"
ANNOUNCEMENT_DOMAIN = b"octonode/announcement/1\0"
CHECKPOINT_DOMAIN = b"octonode/checkpoint/1\0"
RECEIPT_DOMAIN = b"octonode/receipt/1\0"
MANIFEST_DOMAIN = b"octonode/manifest/1\0"
NAME_RECORD_DOMAIN = b"octonode/name-record/1\0"
TRANSCRIPT_DOMAIN = b"octonode/transcript/1\0"
WEBHOOK_DOMAIN = b"octonode/webhook/1\0"
SERVE_KEY_DOMAIN = b"octonode/serve/1\0"
TIER_KEY_DOMAIN = b"octonode/tier/1\0"
NAME_KEY_DOMAIN = b"octonode/name/1\0"

# identity multihash (00, length 36) of the protobuf PublicKey {type: Ed25519 = 1, data: 32 bytes}
_PEER_ID_PREFIX = bytes.fromhex("002408011220")


def peer_id_from_public_key(public_key: bytes) -> PeerId:
    """The peer id of a 32-byte Ed25519 public key."""
    assert len(public_key) == 32
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + public_key).decode())


@lru_cache(maxsize=1024)  # base58 is slow, and each message names the same few peers several times
def public_key_from_peer_id(peer_id: str) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id. Raises ValueError for anything else."""
    if len(peer_id) > 64:
        raise ValueError("a peer id has 52 characters")
    raw = base58.b58decode(peer_id)
    if len(raw) != 38 or not raw.startswith(_PEER_ID_PREFIX):
        raise ValueError(f"{peer_id[:16]!r} is not the id of an Ed25519 key")
    return bytes(raw[6:])

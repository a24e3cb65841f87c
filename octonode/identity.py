"""The node's key. Nothing else in the program reads a private key.

The key is an Ed25519 seed of 32 bytes in `OCTONODE_HOME/node.key`, readable by its owner alone (0600).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Protocol

import nacl.exceptions
import nacl.signing

from octonode.errors import ConfigError
from octonode.ids import PeerId, peer_id_from_public_key, public_key_from_peer_id


class Signer(Protocol):
    """What signs for a peer: the node itself, later an agent's own key or a hardware token."""

    @property
    def peer_id(self) -> PeerId: ...

    def sign(self, message: bytes) -> bytes:
        """64 bytes of Ed25519 over `message`, which begins with a domain prefix from `ids`."""
        ...


class NodeKey:
    """An Ed25519 key held in memory."""

    def __init__(self, seed: bytes) -> None:
        assert len(seed) == 32
        self._key = nacl.signing.SigningKey(seed)
        self._peer_id = peer_id_from_public_key(bytes(self._key.verify_key))

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def sign(self, message: bytes) -> bytes:
        return bytes(self._key.sign(message).signature)

    def transport_seed(self) -> bytes:
        """The seed, for the libp2p host alone: Noise needs the private key itself."""
        return bytes(self._key)


def verify(peer_id: str, message: bytes, signature: bytes) -> bool:
    """True when `signature` is `peer_id`'s Ed25519 signature over `message`. Never raises."""
    try:
        nacl.signing.VerifyKey(public_key_from_peer_id(peer_id)).verify(message, signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        return False
    return True


def load_or_create(home: Path) -> NodeKey:
    """The key in `home`, made at the first call. Raises ConfigError when the file is no key or others can read it.

    The file appears whole or not at all, and two processes that make it at the same moment get the same key.
    """
    path = home / "node.key"
    create_private(path, secrets.token_bytes(32))
    return _load(path)


def create_private(path: Path, data: bytes) -> None:
    """A file of `data` that its owner alone can read, unless there is one: it appears whole or not at all, and what
    another process made at the same moment stands."""
    if path.exists():
        return
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink()


def _load(path: Path) -> NodeKey:
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by others; run: chmod 600 {path}")
    seed = path.read_bytes()
    if len(seed) != 32:
        raise ConfigError(f"{path} holds {len(seed)} bytes, not 32; restore it from a backup, or move it away")
    return NodeKey(seed)

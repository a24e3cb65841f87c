"""The 32-byte digest inside the CID text that names a model root or a manifest. Pure; `ipfs.cid` knows the rest.

The network needs no more of a CID than its digest: content keys are made of it, see `keys`.
"""

from __future__ import annotations

import base64
import binascii

import base58

from octonode.errors import OctonodeError

CID_CHARACTERS_MAX = 128
_SHA2_256_32 = b"\x12\x20"
_BASE32 = frozenset("abcdefghijklmnopqrstuvwxyz234567")


class RootError(OctonodeError, ValueError):
    """The text is not a CID over sha2-256."""

    code = "BAD_REQUEST"


def root_digest(root: str) -> bytes:
    """The sha2-256 digest in a CID: `b...` (version 1, base32) or `Qm...` (version 0). Raises RootError."""
    if len(root) > CID_CHARACTERS_MAX:
        raise RootError(f"{root[:16]}... is too long for a CID")
    raw = _from_text(root)
    if root.startswith("b"):
        if len(raw) != 36 or raw[0] != 1 or raw[1] > 0x7F:
            raise RootError(f"{root!r} is not a CID of version 1 that is used here")
        raw = raw[2:]
    if len(raw) != 34 or not raw.startswith(_SHA2_256_32):
        raise RootError(f"{root!r} is not a CID over sha2-256")
    return raw[2:]


def _from_text(root: str) -> bytes:
    if root.startswith("Qm"):
        try:
            return bytes(base58.b58decode(root))
        except ValueError:
            raise RootError(f"{root!r} is not a CID: it has characters outside base58") from None
    if not root.startswith("b") or not _BASE32.issuperset(root[1:]):
        raise RootError(f"{root[:64]!r} is not a CID; one looks like bafybei... or bafkrei...")
    body = root[1:].upper()
    try:
        return base64.b32decode(body + "=" * (-len(body) % 8))
    except (ValueError, binascii.Error):
        raise RootError(f"{root!r} is not a CID: its base32 is cut short") from None

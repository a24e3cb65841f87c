"""Content identifiers: sha2-256 alone, in the codecs this program reads.

A CIDv1 is `01 <codec> 12 20 <32 bytes>`, written in base32 lower case after a `b`; a CIDv0 is `12 20 <32 bytes>` in
base58 and is always dag-pb. Source: https://github.com/multiformats/cid and protocols/manifest.md. Anything else is
refused: an identity or truncated hash would let a peer choose what a name means.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Final

import base58

from octonode.errors import OctonodeError

RAW: Final = 0x55
DAG_PB: Final = 0x70
DAG_CBOR: Final = 0x71
CODECS: Final = frozenset({RAW, DAG_PB, DAG_CBOR})
CODEC_NAMES: Final = {RAW: "raw", DAG_PB: "dag-pb", DAG_CBOR: "dag-cbor"}

CIDV1_BYTES: Final = 36
CIDV0_BYTES: Final = 34
_SHA2_256_32: Final = b"\x12\x20"
_BASE32: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")
_TEXT_CHARACTERS_MAX: Final = 64
_BASE58: Final = frozenset("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")


class CidError(OctonodeError, ValueError):
    """The text or the bytes are not a CID that this program reads."""

    code = "BAD_REQUEST"


@dataclass(frozen=True, slots=True, order=True)
class Cid:
    """A content identifier. Equal CIDs have equal version, codec and digest; `same_block` ignores the version."""

    codec: int
    digest: bytes
    """32 bytes of sha2-256."""
    version: int = 1

    def __post_init__(self) -> None:
        assert len(self.digest) == 32
        assert self.codec in CODECS
        assert self.version == 1 or (self.version == 0 and self.codec == DAG_PB)

    @classmethod
    def parse(cls, text: str) -> Cid:
        """The CID written as `text`: `b...` in base32 or `Qm...` in base58. Raises CidError."""
        if len(text) > _TEXT_CHARACTERS_MAX:
            raise CidError(f"{text[:16]}... is too long for a CID")
        if text.startswith("Qm"):
            if not _BASE58.issuperset(text):
                raise CidError(f"{text!r} is not a CID: it has characters outside base58")
            return cls.from_bytes(bytes(base58.b58decode(text)), _shown=text)
        if not text.startswith("b") or not _BASE32.issuperset(text[1:]):
            raise CidError(f"{text[:64]!r} is not a CID; one looks like bafybei... or bafkrei... (base32, lower case)")
        body = text[1:].upper()
        try:
            raw = base64.b32decode(body + "=" * (-len(body) % 8))
        except ValueError:
            raise CidError(f"{text!r} is not a CID: its base32 is cut short") from None
        cid = cls.from_bytes(raw, _shown=text)
        if cid.text != text:  # spare bits set at the end: a second spelling of the same name
            raise CidError(f"{text!r} is not the canonical spelling of a CID; did you mean {cid.text}?")
        return cid

    @classmethod
    def from_bytes(cls, raw: bytes, *, _shown: str = "") -> Cid:
        """The CID in binary form, with nothing behind it. Raises CidError."""
        raw = bytes(raw)
        shown = _shown or raw[:40].hex()
        if len(raw) == CIDV0_BYTES and raw.startswith(_SHA2_256_32):
            return cls(DAG_PB, raw[2:], version=0)
        if len(raw) != CIDV1_BYTES or raw[0] != 1 or raw[2:4] != _SHA2_256_32:
            raise CidError(f"{shown!r} is not a CIDv1 with a whole sha2-256; only those are read here")
        if raw[1] not in CODECS:
            raise CidError(f"{shown!r} has codec 0x{raw[1]:02x}; raw, dag-pb and dag-cbor are read here")
        return cls(raw[1], raw[4:])

    @property
    def raw(self) -> bytes:
        """The binary form: 36 bytes, or 34 for version 0."""
        if self.version == 0:
            return _SHA2_256_32 + self.digest
        return bytes((1, self.codec)) + _SHA2_256_32 + self.digest

    @property
    def text(self) -> str:
        if self.version == 0:
            return bytes(base58.b58encode(self.raw)).decode()
        return "b" + base64.b32encode(self.raw).decode().rstrip("=").lower()

    @property
    def v1(self) -> Cid:
        """The same block named in version 1, which keys of stores and routes use."""
        return self if self.version == 1 else Cid(self.codec, self.digest)

    def matches(self, block: bytes | bytearray | memoryview) -> bool:
        """True when `block` is what this CID names."""
        return hashlib.sha256(block).digest() == self.digest

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Cid({self.text})"


def _cid_of(codec: int, data: bytes | bytearray | memoryview) -> Cid:
    return Cid(codec, hashlib.sha256(data).digest())


def raw_cid(data: bytes | bytearray | memoryview) -> Cid:
    """The CID of a leaf: bytes without structure."""
    return _cid_of(RAW, data)


def dag_pb_cid(block: bytes | bytearray | memoryview) -> Cid:
    """The CID of an encoded dag-pb node."""
    return _cid_of(DAG_PB, block)


def dag_cbor_cid(block: bytes | bytearray | memoryview) -> Cid:
    """The CID of an encoded dag-cbor value."""
    return _cid_of(DAG_CBOR, block)

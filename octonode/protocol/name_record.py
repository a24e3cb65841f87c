"""What a publisher says of all versions of a model, signed: the value record of a name. Spec: protocols/discovery.md.

Sans-IO. A version's manifest is its binary CID here; what stands in it is the model layer's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final

from octonode.errors import LocalProtocolError, RemoteProtocolError
from octonode.identity import Signer
from octonode.ids import NAME_RECORD_DOMAIN, PeerId
from octonode.protocol import fields, signed
from octonode.protocol.limits import DEFAULT_LIMITS

NAME_RECORD_VERSION: Final = 1
NAME_RECORD_BYTES_MAX: Final = 4096
"""As of every value of the network: about fifty versions."""
NAME_RECORD_LIFE_MS_MAX: Final = 7 * 24 * 3600 * 1000
VERSIONS_MAX: Final = 128
VERSION_CHARACTERS_MAX: Final = 64
REASON_BYTES_MAX: Final = 200
MANIFEST_CID_PREFIX: Final = b"\x01\x71\x12\x20"
MANIFEST_CID_BYTES: Final = 36
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,94}[a-z0-9])?\Z")
_VERSION: Final = re.compile(
    r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(?:-[0-9A-Za-z.-]{1,54})?(?:\+[0-9A-Za-z.-]{1,32})?\Z",
    re.ASCII,
)
_SIGNATURE_OVERHEAD_BYTES: Final = 176
"""What `{name_record, signature, signer}` adds to the record's own bytes, rounded up."""


@dataclass(frozen=True, slots=True)
class NamedVersion:
    """One version under a name."""

    version: str
    manifest: bytes
    """Binary CID of its manifest."""
    deprecated: bool = False
    reason: str = ""
    replaced_by: str = ""
    """A version of the same name to take instead."""


@dataclass(frozen=True, slots=True)
class NameRecord:
    publisher: PeerId
    name: str
    seq: int
    issued_at_ms: int
    expires_at_ms: int
    versions: tuple[NamedVersion, ...] = ()
    """The latest published last."""
    trimmed: bool = False
    """True where older versions were left out to stay under the size."""

    @property
    def rank(self) -> tuple[int, int]:
        """Of two valid records of a name the one with the higher rank stands."""
        return self.seq, self.issued_at_ms

    def version(self, version: str) -> NamedVersion | None:
        return next((each for each in self.versions if each.version == version), None)


def sign_name_record(signer: Signer, record: NameRecord) -> bytes:
    """The bytes that travel. `signer` must be the publisher.

    Raises LocalProtocolError: TOO_LARGE (use `fit` first), BAD_REQUEST for what others would refuse.
    """
    assert signer.peer_id == record.publisher, "a publisher signs its own names alone"
    value = _as_map(record)
    try:
        _read(value)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"name record: {error.message}", code="BAD_REQUEST") from None
    data = signed.seal_document("name_record", NAME_RECORD_DOMAIN, signer, value)
    if len(data) > NAME_RECORD_BYTES_MAX:
        raise LocalProtocolError(
            f"a name record of {len(data)} bytes; at most {NAME_RECORD_BYTES_MAX}", code="TOO_LARGE"
        )
    return data


def fit(record: NameRecord) -> NameRecord:
    """`record` without its oldest versions, as many as must go for it to be signed."""
    kept = (
        record if len(record.versions) <= VERSIONS_MAX else _without_oldest(record, len(record.versions) - VERSIONS_MAX)
    )
    while (
        len(signed.encode_dag_cbor(_as_map(kept))) > NAME_RECORD_BYTES_MAX - _SIGNATURE_OVERHEAD_BYTES and kept.versions
    ):
        kept = _without_oldest(kept, 1)
    return kept


def _without_oldest(record: NameRecord, count: int) -> NameRecord:
    return replace(record, versions=record.versions[count:], trimmed=True)


def open_name_record(data: bytes, now_ms: int | None) -> NameRecord:
    """The record in `data`, signed by the publisher that it names, and valid at `now_ms`; None: whenever.

    Raises RemoteProtocolError: TOO_LARGE, BAD_MESSAGE, BAD_SIGNATURE, UNSUPPORTED, CLOCK_SKEW, EXPIRED.
    """
    document = signed.open_document("name_record", NAME_RECORD_DOMAIN, data, NAME_RECORD_BYTES_MAX)
    record = _read(document.value)
    if record.publisher != document.signer:
        raise RemoteProtocolError("a name record signed by another than its publisher", code="BAD_SIGNATURE")
    if now_ms is None:
        return record
    ahead_ms = record.issued_at_ms - now_ms
    if ahead_ms > DEFAULT_LIMITS.clock_skew_ms_max:
        message = f"a name record issued {ahead_ms // 1000} s in the future: check the clocks of both machines"
        raise RemoteProtocolError(message, code="CLOCK_SKEW")
    if record.expires_at_ms <= now_ms:
        raise RemoteProtocolError("the name record has expired", code="EXPIRED")
    return record


def _as_map(record: NameRecord) -> dict[str, Any]:
    value = {
        "v": NAME_RECORD_VERSION,
        "publisher": record.publisher,
        "name": record.name,
        "seq": record.seq,
        "issued_at_ms": record.issued_at_ms,
        "expires_at_ms": record.expires_at_ms,
        "versions": [_version_map(each) for each in record.versions],
    }
    return {**value, "trimmed": True} if record.trimmed else value


def _version_map(each: NamedVersion) -> dict[str, Any]:
    more = {"deprecated": each.deprecated, "reason": each.reason, "replaced_by": each.replaced_by}
    return {"version": each.version, "manifest": each.manifest, **{key: item for key, item in more.items() if item}}


def _read(value: dict[str, Any]) -> NameRecord:
    if fields.natural(value, "v") != NAME_RECORD_VERSION:
        raise RemoteProtocolError("the name record's version is not known here", code="UNSUPPORTED")
    record = NameRecord(
        publisher=fields.peer_id(value, "publisher"),
        name=_matching(value, "name", _NAME),
        seq=fields.natural(value, "seq"),
        issued_at_ms=fields.natural(value, "issued_at_ms"),
        expires_at_ms=fields.natural(value, "expires_at_ms"),
        versions=tuple(_read_version(item) for item in fields.items(value, "versions", most=VERSIONS_MAX)),
        trimmed=fields.boolean(value, "trimmed", False),
    )
    if record.seq < 1:
        raise RemoteProtocolError("field seq is from 1")
    if not 0 < record.expires_at_ms - record.issued_at_ms <= NAME_RECORD_LIFE_MS_MAX:
        raise RemoteProtocolError("a name record must expire within seven days of its issue")
    if len({each.version for each in record.versions}) != len(record.versions):
        raise RemoteProtocolError("a name record names a version twice")
    return record


def _read_version(item: Any) -> NamedVersion:
    value = fields.as_map(item, "a version")
    manifest = fields.exact_bytes(value, "manifest", MANIFEST_CID_BYTES)
    if not manifest.startswith(MANIFEST_CID_PREFIX):
        raise RemoteProtocolError("field manifest is not the CID of a manifest")
    reason = fields.text(value, "reason", "", bytes_max=REASON_BYTES_MAX)
    if not reason.isprintable():
        raise RemoteProtocolError("field reason holds characters that are not printable")
    replaced_by = _matching(value, "replaced_by", _VERSION) if "replaced_by" in value else ""
    deprecated = fields.boolean(value, "deprecated", False)
    return NamedVersion(_matching(value, "version", _VERSION), manifest, deprecated, reason, replaced_by)


def _matching(value: dict[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    text = fields.text(value, key, bytes_max=96)
    if not pattern.match(text) or (pattern is _VERSION and len(text) > VERSION_CHARACTERS_MAX):
        raise RemoteProtocolError(f"field {key} is not allowed: {text[:32]!r}")
    return text

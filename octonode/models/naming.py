"""What our own name records say, and what a record says of a version. Pure, but for the caller's clock.

A publisher's record lists what it has published and still stands by; it is the only place where deprecation is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from octonode.errors import NotFound, Refused
from octonode.ids import PeerId
from octonode.models.manifest import SignedManifest
from octonode.models.version import is_version
from octonode.protocol.name_record import NAME_RECORD_LIFE_MS_MAX, NamedVersion, NameRecord, fit

RENEW_BEFORE_MS: Final = NAME_RECORD_LIFE_MS_MAX // 2
"""Our own record is signed anew when no more than this is left of it."""


def published(
    publisher: PeerId,
    name: str,
    before: NameRecord | None,
    manifests: Iterable[SignedManifest],
    now_ms: int,
    *,
    seqs: Mapping[bytes, int],
) -> NameRecord | None:
    """The record that also lists `manifests`; None where `before` already says all that, and has time left.

    `seqs` are those of all our manifests by binary CID: what was left out for want of room is not listed again.
    """
    listed = {each.version: each for each in before.versions} if before else {}
    floor = min((seqs.get(each.manifest, 0) for each in before.versions), default=0) if before and before.trimmed else 0
    for signed in sorted(manifests, key=lambda signed: signed.manifest.seq):
        version, cid = signed.manifest.version, signed.cid.raw
        if signed.manifest.seq < floor:
            continue
        if version not in listed:
            listed[version] = NamedVersion(version, cid)
        elif listed[version].manifest != cid:
            listed[version] = replace(listed[version], manifest=cid)
    if not listed:
        return None
    versions = tuple(listed.values())
    if before is not None and before.versions == versions and before.expires_at_ms - now_ms > RENEW_BEFORE_MS:
        return None
    return renewed(publisher, name, before, versions, now_ms)


def renewed(
    publisher: PeerId, name: str, before: NameRecord | None, versions: tuple[NamedVersion, ...], now_ms: int
) -> NameRecord:
    """The next record of a name, not signed yet; what does not fit is left out, oldest first."""
    seq = before.seq + 1 if before else 1
    trimmed = before.trimmed if before else False
    return fit(NameRecord(publisher, name, seq, now_ms, now_ms + NAME_RECORD_LIFE_MS_MAX, versions, trimmed))


def deprecated(
    before: NameRecord | None, reference: str, version: str, *, reason: str, replaced_by: str, undo: bool, now_ms: int
) -> NameRecord:
    """The record in which `version` is deprecated, or no longer so. Raises NotFound, Refused (BAD_REQUEST)."""
    named = before.version(version) if before else None
    if before is None or named is None:
        known = ", ".join(each.version for each in before.versions) if before else "none"
        raise NotFound(
            f"{reference} is not among the versions that this node has published ({known}); publish it first: "
            f"octonode models publish {reference}",
            code="MODEL_NOT_FOUND",
        )
    if replaced_by and (not is_version(replaced_by) or replaced_by == version):
        raise Refused(f"--replaced-by {replaced_by!r:.70}: write another version, such as 1.2.0", code="BAD_REQUEST")
    if len(reason.encode()) > 200 or not reason.isprintable():
        raise Refused("--reason: at most 200 bytes of printable text", code="BAD_REQUEST")
    if undo and not named.deprecated:
        raise Refused(f"{reference} is not deprecated", code="BAD_REQUEST")
    plain = NamedVersion(named.version, named.manifest)
    changed = plain if undo else replace(plain, deprecated=True, reason=reason, replaced_by=replaced_by)
    versions = tuple(changed if each is named else each for each in before.versions)
    return renewed(before.publisher, before.name, before, versions, now_ms)


def readable(record: NameRecord | None) -> dict[str, NamedVersion]:
    """{version: what the record says of it}; what is no semantic version is left out."""
    return {each.version: each for each in record.versions if is_version(each.version)} if record else {}


def avoided(record: NameRecord | None) -> frozenset[str]:
    """The deprecated versions of a record."""
    return frozenset(version for version, named in readable(record).items() if named.deprecated)


def advice(record: NameRecord | None, version: str) -> str:
    """What a person should know of a deprecated version; empty for any other."""
    named = readable(record).get(version)
    if named is None or not named.deprecated:
        return ""
    instead = f"; take {named.replaced_by} instead" if named.replaced_by else ""
    return f"{version} is deprecated by its publisher{': ' + named.reason if named.reason else ''}{instead}"

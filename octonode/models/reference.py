"""How people name models: `publisher/name[@range]`, `cid:...`, `hf:org/repo`, `file:/path`, or a bare name. Sans-IO."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from octonode.errors import NotFound, OctonodeError
from octonode.ids import PeerId, public_key_from_peer_id
from octonode.ipfs.cid import DAG_CBOR, Cid, CidError
from octonode.models.version import VersionRange

REFERENCE_CHARACTERS_MAX: Final = 1024
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,94}[a-z0-9])?\Z")
_ALIAS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_HUB: Final = re.compile(
    r"(?P<repository>[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})"
    r"(?:@(?P<revision>[A-Za-z0-9](?:[A-Za-z0-9._-]|%2F){0,127}))?(?:/(?P<file>[^/].*))?/?\Z"
)
_ANY: Final = VersionRange("*")


class BadReference(OctonodeError, ValueError):
    code = "BAD_REQUEST"


@dataclass(frozen=True, slots=True)
class NameReference:
    """`publisher/name@range`. The publisher is a peer id or an alias from the trust table."""

    publisher: str
    name: str
    versions: VersionRange = _ANY


@dataclass(frozen=True, slots=True)
class BareName:
    """A name alone: looked up among trusted publishers."""

    name: str
    versions: VersionRange = _ANY


@dataclass(frozen=True, slots=True)
class ManifestReference:
    cid: Cid


@dataclass(frozen=True, slots=True)
class RootReference:
    cid: Cid


@dataclass(frozen=True, slots=True)
class FileReference:
    path: PurePosixPath


@dataclass(frozen=True, slots=True)
class HubReference:
    """`hf:org/repo[@revision][/file]`."""

    repository: str
    file: str = ""
    """A file, or a folder of the repository; empty: all of it."""
    revision: str = ""
    """Branch, tag or commit; empty: the repository's default branch."""

    def __str__(self) -> str:
        revision = self.revision.replace("/", "%2F")
        return f"hf:{self.repository}{'@' if revision else ''}{revision}{'/' if self.file else ''}{self.file}"


Reference = NameReference | BareName | ManifestReference | RootReference | FileReference | HubReference


def parse(text: str) -> Reference:
    """What `text` names. Raises BadReference that says which forms there are."""
    text = text.strip()
    if not text or len(text) > REFERENCE_CHARACTERS_MAX or not text.isprintable():
        raise BadReference("name a model: publisher/name[@version], cid:..., file:/path, or a trusted publisher's name")
    if text.startswith("cid:"):
        return _cid_reference(text.removeprefix("cid:"))
    if text.startswith("file:"):
        return _file_reference(text)
    if text.startswith("hf:"):
        return _hub_reference(text.removeprefix("hf:"))
    if text.startswith(("bafy", "bafk", "Qm")) and "/" not in text and len(text) > 40:
        return _cid_reference(text)
    return _name_reference(text)


def _cid_reference(text: str) -> Reference:
    try:
        cid = Cid.parse(text.removeprefix("/ipfs/"))
    except CidError as error:
        raise BadReference(error.message) from None
    return ManifestReference(cid) if cid.codec == DAG_CBOR else RootReference(cid.v1)


def _file_reference(text: str) -> FileReference:
    path = text.removeprefix("file:")
    if path.startswith("//"):
        path = path.removeprefix("//")
    if not path.startswith("/"):
        raise BadReference(f"{text!r}: write an absolute path, as in file:/models/model.gguf")
    return FileReference(PurePosixPath(path))


def _hub_reference(text: str) -> HubReference:
    found = _HUB.match(text)
    if found is None or (found["file"] and any(part in ("", ".", "..") for part in found["file"].split("/"))):
        raise BadReference(f"hf:{text}: write hf:organisation/repository[@revision][/file]")
    return HubReference(found["repository"], found["file"] or "", (found["revision"] or "").replace("%2F", "/"))


def _name_reference(text: str) -> NameReference | BareName:
    name, at, range_text = text.partition("@")
    try:
        versions = VersionRange.parse(range_text) if at else _ANY
    except ValueError as error:
        raise BadReference(f"{text!r}: {error}; ranges are 1.2.3, ^1.2, ~1.2, 1.x, '>=1.2 <2', latest and *") from None
    publisher, slash, short = name.rpartition("/")
    if not _NAME.match(short):
        raise BadReference(f"{short!r} is not a model name: lower-case letters, digits, dots, dashes")
    if not slash:
        return BareName(short, versions)
    if not _ALIAS.match(publisher):
        raise BadReference(f"{publisher!r} is not a publisher: a peer id (12D3KooW...) or an alias you gave one")
    return NameReference(publisher, short, versions)


def is_peer_id(text: str) -> bool:
    try:
        public_key_from_peer_id(text)
    except ValueError:
        return False
    return True


def publisher_of(reference: NameReference, aliases: Mapping[str, PeerId]) -> PeerId:
    """The peer id of the publisher, by alias if it has one. Raises NotFound."""
    if reference.publisher in aliases:
        return aliases[reference.publisher]
    if is_peer_id(reference.publisher):
        return PeerId(reference.publisher)
    raise NotFound(
        f"no trusted publisher is called {reference.publisher!r}; see: octonode models trust, "
        f"or write the publisher's peer id (12D3KooW...)"
    )


def choose_publisher(name: str, publishers: Mapping[PeerId, str]) -> PeerId:
    """The only one of `publishers` (peer id -> alias) of a bare name.

    Raises NotFound for none, and BadReference that lists them for several.
    """
    if not publishers:
        raise NotFound(f"no trusted publisher has {name!r} here; write publisher/{name}", code="MODEL_NOT_FOUND")
    if len(publishers) > 1:
        listed = ", ".join(
            f"{peer_id}/{name}" + (f" ({alias})" if alias else "") for peer_id, alias in publishers.items()
        )
        raise BadReference(f"{name!r} is published by several whom you trust; say which: {listed}")
    return next(iter(publishers))

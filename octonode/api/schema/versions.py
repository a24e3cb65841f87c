"""The versions of a model: which there are, which are held, and what its publisher says of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from octonode.api.schema.calls import Call, many, one
from octonode.api.schema.facts import Publisher
from octonode.api.schema.plain import quoted, to_json


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """One version of a model."""

    version: str
    manifest: str = ""
    """CID of its manifest."""
    root: str = ""
    """Root CID; empty where its manifest was not seen here."""
    listed: bool = False
    """Its publisher's record names it."""
    held: bool = False
    serving: bool = False
    deprecated: bool = False
    reason: str = ""
    replaced_by: str = ""
    kept_as_previous: bool = False
    """It was updated here, and is kept to go back to."""
    rolled_back: bool = False
    """The user went back from it: ranges pass it over here until the next update."""


@dataclass(frozen=True, slots=True)
class NameFacts:
    """`GET /api/v1/models/versions/{reference}`: what is known of a publisher's name."""

    publisher: str
    name: str
    versions: tuple[VersionFacts, ...] = ()
    """The highest first."""
    latest: str = ""
    """The highest release that is not deprecated."""
    seq: int = 0
    """Of its publisher's record; 0: none was found."""
    issued_at_ms: int = 0
    expires_at_ms: int = 0
    trimmed: bool = False
    """The record leaves out older versions for want of room."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class OutdatedModel:
    """A model held here whose publisher has a newer version, or advises against the one that is held."""

    reference: str
    """As it was asked for: `publisher/name@range`."""
    name: str
    publisher: str
    current: str
    """The version held, or served."""
    wanted: str
    """The newest in the range it was asked for by: what `models update` gives."""
    latest: str
    """The newest of all."""
    root: str
    serving: bool = False
    deprecated: str = ""
    """What its publisher says against the current one."""
    rolled_back: bool = False
    """The wanted one was gone back from here."""


@dataclass(frozen=True, slots=True)
class DeprecateModel:
    """`POST /api/v1/models/deprecate`: by its publisher alone."""

    reference: str
    """`name@version` or `publisher/name@version`, one version."""
    reason: str = ""
    replaced_by: str = ""
    undo: bool = False


@dataclass(frozen=True, slots=True)
class TrustedPublisher:
    peer_id: str
    alias: str = ""


@dataclass(frozen=True, slots=True)
class ImportTrust:
    """`POST /api/v1/models/trust/import`: all of a list, or nothing of it."""

    publishers: tuple[TrustedPublisher, ...]


@dataclass(frozen=True, slots=True)
class ImportedTrust:
    """What an import changed."""

    added: int
    known: int
    """Trusted before."""
    without_alias: tuple[str, ...] = ()
    """Peer ids whose alias is another publisher's here; they are trusted under none."""
    publishers: tuple[Publisher, ...] = ()


outdated: Call[tuple[OutdatedModel, ...]] = Call("GET", "/api/v1/models/outdated", many(OutdatedModel, "models"))


def versions(reference: str) -> Call[NameFacts]:
    return Call("GET", f"/api/v1/models/versions/{quoted(reference)}", one(NameFacts))


def deprecate(verb: DeprecateModel) -> Call[NameFacts]:
    return Call("POST", "/api/v1/models/deprecate", one(NameFacts), to_json(verb))


def import_trust(verb: ImportTrust) -> Call[ImportedTrust]:
    return Call("POST", "/api/v1/models/trust/import", one(ImportedTrust), to_json(verb))

"""What callers ask of the native API: the request bodies, as frozen dataclasses. `shape.parse` reads them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AddModel:
    """Import a file as a model, under our own signature."""

    path: str
    """Absolute path on the daemon's machine."""
    name: str = ""
    """Name under our peer id; empty: from the file's own metadata, else its file name."""
    version: str = ""
    license: str = ""
    publish: bool = False
    """Provide it in the DHT as well, as `publish` does."""
    profile: str = ""
    """UnixFS profile that makes its CIDs, such as unixfs-v0-2015; empty: unixfs-v1-2025. The manifest holds it."""
    root: str = ""
    """Root CID it must have, else VERIFICATION_FAILED; empty: whatever it has."""


@dataclass(frozen=True, slots=True)
class FetchModel:
    reference: str
    """publisher/name[@range], cid:..., file:/path, hf:org/repo[@revision][/file]."""
    trust: bool = False
    """Trust the publisher from now on, if it is not known yet. Without it an unknown one is refused: NOT_TRUSTED."""
    pin: bool = False
    allow_unsigned: bool = False
    """Take a bare root that no publisher has signed for. Without it: UNSIGNED."""
    background: bool = False
    """Answer at once; the fetch goes on, over restarts too, until it is here or cancelled."""
    priority: int = 0
    """From -100 to 100: of those that wait the highest is fetched first."""
    peers: tuple[str, ...] = ()
    """Where it is said to be: multiaddrs, each ending in /p2p/<id>, of octonodes, Kubo or Helia; `file:/path` of an
    earlier download of its one file, on the daemon's machine."""


@dataclass(frozen=True, slots=True)
class PublishModel:
    reference: str


@dataclass(frozen=True, slots=True)
class ServeModel:
    """Fetch if need be, load, announce; stays so over restarts until `stop` is asked."""

    reference: str
    trust: bool = False
    engine: str = ""
    """Name of an adapter; empty: by the format of the model."""
    stop: bool = False
    """True: unload it and announce it no more."""
    allow_unsigned: bool = False
    """As of `FetchModel`."""
    peers: tuple[str, ...] = ()
    """As of `FetchModel`."""


@dataclass(frozen=True, slots=True)
class UpdateModel:
    """Fetch the newest version in range and put it in the place of the one held; what is served is switched to it."""

    reference: str
    """publisher/name or a bare name; with @range to change the range it stays in."""
    trust: bool = False


@dataclass(frozen=True, slots=True)
class RollbackModel:
    """Go back to the previous version that is held."""

    reference: str


@dataclass(frozen=True, slots=True)
class VerifyModel:
    reference: str
    repair: bool = False
    """Fetch what is damaged or missing from peers."""


@dataclass(frozen=True, slots=True)
class TrustPublisher:
    publisher: str
    """Peer id."""
    trusted: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class Join:
    address: str
    """A join line or a multiaddr that ends in /p2p/<peer id>."""


@dataclass(frozen=True, slots=True)
class Explain:
    """Who would answer a question about this model, and why or why not."""

    model: str
    peer: str = ""
    privacy_level: str = "public"
    skill: str = ""
    """What is to be done; empty: the first thing that the model can."""

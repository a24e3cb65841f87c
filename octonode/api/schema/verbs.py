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


@dataclass(frozen=True, slots=True)
class FetchModel:
    reference: str
    """publisher/name[@range], cid:..., file:/path."""
    trust: bool = False
    """Trust the publisher from now on, if it is not known yet. Without it an unknown one is refused: NOT_TRUSTED."""
    pin: bool = False


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


@dataclass(frozen=True, slots=True)
class VerifyModel:
    reference: str


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

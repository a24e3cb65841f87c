"""Pins over HTTP: what is asked and answered. Spec: protocols/http.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from octonode.api.schema.calls import Call, Progressing
from octonode.api.schema.facts import StorageFacts
from octonode.api.schema.plain import quoted, to_json
from octonode.api.schema.shape import read


@dataclass(frozen=True, slots=True)
class PinModel:
    """`POST /api/v1/models/pin`."""

    reference: str
    on: str = ""
    """Peer id of the node that is to keep it; empty: this one, which must have it."""
    days: int = 0
    """0: for good, or for as long as the node grants."""


@dataclass(frozen=True, slots=True)
class UnpinModel:
    """`POST /api/v1/models/unpin`."""

    reference: str
    on: str = ""
    everybody: bool = False
    """This node alone: end the pins of all peers on it, not only our own."""


@dataclass(frozen=True, slots=True)
class PinRow:
    """One pin at one node."""

    root: str
    reference: str = ""
    """`publisher/name` where it is known here, else `cid:<root>`."""
    asker: str = ""
    """Peer id of who asked for it."""
    until_ms: int = 0
    """0: until it is unpinned."""
    since_ms: int = 0
    size_bytes: int = 0
    have_bytes: int = 0
    state: Literal["fetching", "kept", "failed"] = "fetching"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PinList:
    """`GET /api/v1/models/pins[?on=PEER]`; also what a pin and an unpin end with."""

    node: str
    """Peer id of the node that keeps them."""
    pins: tuple[PinRow, ...] = ()
    room: StorageFacts = field(default_factory=StorageFacts)
    receipt: str = ""
    """Task id of the signed receipt, for `octonode task receipt`; empty where the node is this one."""


class PinJob(Progressing[PinList]):
    """A pin on its way."""

    kind = PinList
    lost = "the node was lost while it worked; once it runs again, ask again: the pin stands"


class PinCalls:
    """The verbs of pins, for `client.do` and `client.stream`."""

    @staticmethod
    def pins(on: str = "") -> Call[PinList]:
        return Call("GET", f"/api/v1/models/pins{f'?on={quoted(on)}' if on else ''}", lambda body: read(PinList, body))

    @staticmethod
    def pin(request: PinModel) -> Call[PinJob]:
        return Call("POST", "/api/v1/models/pin", lambda _: PinJob(), to_json(request))

    @staticmethod
    def unpin(request: UnpinModel) -> Call[PinList]:
        return Call("POST", "/api/v1/models/unpin", lambda body: read(PinList, body), to_json(request))

"""What the firewall stands on: a muxer, a reader of Noise and a negotiation, ours (`own.py`) or the library's
(`stock.py`). `network.muxer` chooses; above the firewall nobody can tell them apart but by their speed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Any, Literal, Protocol

from libp2p.peer.id import ID

from octonode.ids import PeerId
from octonode.network.host import Stream

log = logging.getLogger(__name__)

LIBRARY_VERSION = "0.8.1"
"""The version whose inside `own.py` is written for, and `stock.py` as well; pyproject.toml pins it."""

Spawn = Callable[..., None]
"""(what, work, *arguments): run a contained task beside the host."""
Serve = Callable[[ID, Stream], Awaitable[None]]
"""Serve a stream that a peer has opened for one of our own protocols."""
Admit = Callable[..., Awaitable[None]]
"""(peer, stream, work, *arguments): run `work` for an inbound stream of this peer, counted and contained. The stream is
reset where the peer has too many, or where `work` fails."""


class Wedged(Exception):
    """A connection that looks alive opens no stream, or not in time."""


class Ground(Protocol):
    """Connections here are the library's `SwarmConn`, as the swarm lists them."""

    @property
    def name(self) -> Literal["own", "stock"]: ...

    streams_per_peer_max: int
    """What one connection carries for sure."""

    def secured(self, session: Any) -> Any:
        """What replaces a session of the library's Noise, fresh from its handshake."""
        ...

    def install(self, library_host: Any, admit: Admit) -> None:
        """Put ourselves under a host that does not run yet. Raises AttributeError where its inside has changed."""
        ...

    def live(self) -> str:
        """What new connections are made of, or the class of one that is made of something else."""
        ...

    def handle(self, protocol: str, serve: Serve) -> None: ...

    async def serve(self, net_stream: Any) -> None:
        """A stream that a peer has opened for a protocol of the library's."""
        ...

    def may_open(self, connection: Any) -> bool:
        """Whether new streams may be opened on it."""
        ...

    def streams_open(self, connection: Any) -> int: ...

    async def ping(self, connection: Any, timeout_seconds: float) -> bool:
        """Whether the peer answers in time."""
        ...

    async def open(self, connection: Any, peer_id: PeerId, protocol: str, on_done: Callable[[], None]) -> Stream:
        """A stream of ours; `on_done` once both directions have ended.

        Raises Wedged, ProtocolNotSupported, StreamReset, and anything else when the connection is lost meanwhile.
        """
        ...

    async def open_for_library(self, connection: Any, protocols: Sequence[str]) -> Any:
        """A `NetStream` of the library with the first of these protocols that the peer takes. Raises likewise."""
        ...


def library_is_known() -> bool:
    """Whether the installed library is the one that was read; where it is not, only its own ways are trusted."""
    installed = version("libp2p")
    if installed != LIBRARY_VERSION:
        log.error("libp2p is %s, our own muxer needs %s; the stock one is used", installed, LIBRARY_VERSION)
    return installed == LIBRARY_VERSION

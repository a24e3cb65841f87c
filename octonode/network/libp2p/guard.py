"""The firewall round the library's host: every stream in and out of it passes here.

Inbound: counted per peer, contained, reset when the handler fails. Outbound: opened on a connection that we chose,
within a deadline, never cancelled half-way; a connection that opens nothing in time is retired and dialled anew.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from octonode.errors import Refused, Unreachable
from octonode.network.host import ProtocolNotSupported, StreamReset
from octonode.network.libp2p.containment import ContainedTasks, contained, reset_quietly
from octonode.network.libp2p.ground import Ground, Spawn, Wedged
from octonode.network.libp2p.library import to_peer_id
from octonode.network.libp2p.links import Links
from octonode.network.slots import INBOUND_SLACK

log = logging.getLogger(__name__)

OPEN_ATTEMPTS = 2
TRIM_ABOVE = 0.9
"""Beyond this share of `connections_max`, connections that carry none of our streams are dropped, oldest use first."""
TRIM_IDLE_SECONDS = 30.0

Opened = TypeVar("Opened")


async def close_broken(work: Callable[..., Any]) -> None:
    """A connection whose own task has died is closed; left alone it would look alive and serve nothing."""
    close = getattr(getattr(work, "__self__", None), "close", None)
    if close is not None:
        await contained("closing a broken connection", close, level=logging.DEBUG)


class Guard:
    """Replaces the library host's ways in and out; see the module. `spawn` starts a contained task."""

    def __init__(
        self,
        library_host: Any,
        ground: Ground,
        links: Links,
        *,
        connections_max: int,
        addresses_of: Callable[[ID], Sequence[Multiaddr]],
        spawn: Spawn,
    ) -> None:
        self._host = library_host
        self._swarm = library_host.get_network()
        self._ground = ground
        self._links = links
        self._inbound_max = ground.streams_per_peer_max + INBOUND_SLACK
        self._connections_max = connections_max
        self._addresses_of = addresses_of
        self._spawn = spawn
        self._inbound: Counter[ID] = Counter()
        self._ours: Counter[ID] = Counter()
        self._used_at: dict[ID, float] = {}
        self._identifying: set[ID] = set()
        self.identified: list[Callable[[ID], None]] = []
        """Called with each peer whose protocols have become known."""

    def install(self, manager: ContainedTasks, nursery: trio.Nursery) -> None:
        swarm, host = self._swarm, self._host
        swarm._manager = manager
        swarm.background_nursery = nursery
        swarm.event_background_nursery_created.set()
        swarm.common_stream_handler = self._serve_inbound
        swarm.dial_peer = self._dial_peer
        swarm._schedule_auto_connect = lambda: None
        swarm._schedule_prune = lambda: None
        host.new_stream = self.new_stream
        host._schedule_identify = self._schedule_identify

    def entered(self, peer: ID) -> None:
        """A stream of our own protocols has begun with this peer."""
        self._ours[peer] += 1
        self._used_at[peer] = trio.current_time()

    def left(self, peer: ID) -> None:
        self._ours[peer] -= 1
        if self._ours[peer] <= 0:
            del self._ours[peer]
            self._forget_when_gone(peer)

    def connected(self, connection: Any) -> None:
        self._used_at.setdefault(connection.muxed_conn.peer_id, trio.current_time())
        self._links.watch(connection)
        self._spawn("trimming connections", self.trim)

    def disconnected(self, connection: Any) -> None:
        self._forget_when_gone(connection.muxed_conn.peer_id)

    def _forget_when_gone(self, peer: ID) -> None:
        if self._ours[peer] == 0 and not self._swarm.connections.get(peer):
            self._used_at.pop(peer, None)

    def inbound_streams(self, peer: ID) -> int:
        return self._inbound[peer]

    async def admit(self, peer: ID, stream: Any, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Serve one inbound stream of `peer`: counted, contained, reset above the limit or when `work` fails."""
        if self._inbound[peer] >= self._inbound_max:
            log.info("%s has %d streams open with us; one more is reset", to_peer_id(peer), self._inbound[peer])
            await reset_quietly(stream)
            return
        self._inbound[peer] += 1
        try:
            if not await contained("an inbound stream", work, *args, level=logging.DEBUG):
                await reset_quietly(stream)
        finally:
            self._inbound[peer] -= 1
            if self._inbound[peer] <= 0:
                del self._inbound[peer]

    async def _serve_inbound(self, net_stream: Any) -> None:
        await self.admit(net_stream.muxed_conn.peer_id, net_stream, self._ground.serve, net_stream)

    async def open(self, peer: ID, protocols: Sequence[str], begin: Callable[[Any], Awaitable[Opened]]) -> Opened:
        """What `begin` makes of a connection to the peer. Raises Unreachable, ProtocolNotSupported or StreamReset."""
        reason: Exception | None = None
        for _ in range(OPEN_ATTEMPTS):
            connection = self._links.best(peer)
            if connection is None and IDENTIFY in protocols:
                break  # it is for a connection that is there: who has just been disconnected is not dialled for it
            connection = connection or await self._links.dial(peer, self._addresses_of(peer))
            try:
                return await begin(connection)
            except Wedged as error:
                reason = error
                log.info("a connection to %s opens no stream; it is retired", to_peer_id(peer))
                self._links.retire(connection)
            except (ProtocolNotSupported, Refused, StreamReset):
                raise
            except Exception as error:
                reason = error
                if connection in self._links.of(peer):
                    break  # a live connection on which the peer refused this stream: dialling again helps nothing
        raise Unreachable(f"{to_peer_id(peer)} gave no stream for {protocols[0]}: {reason!r}")

    # What the library itself calls; its callers know its own exceptions only.

    async def new_stream(self, peer: ID, protocols: Sequence[str]) -> Any:
        try:
            return await self.open_for_library(peer, protocols)
        except ProtocolNotSupported as error:
            raise StreamFailure(error.message) from error
        except (Refused, Unreachable) as error:
            raise SwarmException(error.message) from error

    async def open_for_library(self, peer: ID, protocols: Sequence[str]) -> Any:
        """A negotiated stream of the library. Raises Unreachable or ProtocolNotSupported."""

        async def begin(connection: Any) -> Any:
            return await self._ground.open_for_library(connection, protocols)

        return await self.open(peer, protocols, begin)

    async def _dial_peer(self, peer: ID) -> list[Any]:
        try:
            return [await self._links.dial(peer, self._addresses_of(peer))]
        except Unreachable as error:
            raise SwarmException(error.message) from error

    def _schedule_identify(self, peer: ID, *, reason: str) -> None:
        if peer != self._host.get_id() and peer not in self._identifying:
            self._identifying.add(peer)
            self._spawn("identify", self._identify, peer, reason)

    async def _identify(self, peer: ID, reason: str) -> None:
        try:
            await self._host._identify_peer(peer, reason=reason)
        finally:
            self._identifying.discard(peer)
        for listener in self.identified:
            listener(peer)

    async def trim(self) -> None:
        """Drop what nobody uses when the house is nearly full."""
        connections = self._swarm.get_connections()
        surplus = len(connections) - int(self._connections_max * TRIM_ABOVE)
        if surplus <= 0:
            return
        now = trio.current_time()
        idle = [
            (used_at, index)
            for index, each in enumerate(connections)
            if self._ours[each.muxed_conn.peer_id] == 0
            and now - (used_at := self._used_at.get(each.muxed_conn.peer_id, now)) >= TRIM_IDLE_SECONDS
        ]
        for _, index in sorted(idle)[:surplus]:
            log.debug("the connection to %s is trimmed", to_peer_id(connections[index].muxed_conn.peer_id))
            await self._links.drop(connections[index])

"""The firewall round the library's host: every stream in and out of it passes here.

Inbound: counted per peer, contained, reset when the handler fails. Outbound: opened on a connection that we chose,
within a deadline, never cancelled half-way; a connection that opens nothing in time is retired and dialled anew.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from multiaddr import Multiaddr

from octonode.errors import Unreachable
from octonode.network.host import ProtocolNotSupported, StreamReset
from octonode.network.libp2p.containment import ContainedTasks, contained
from octonode.network.libp2p.library import NEGOTIATION_SECONDS, to_peer_id
from octonode.network.libp2p.links import Links, Spawn
from octonode.network.slots import INBOUND_SLACK

log = logging.getLogger(__name__)

RESET_SECONDS = 2.0
OPEN_ATTEMPTS = 2
TRIM_ABOVE = 0.9
"""Beyond this share of `connections_max`, connections that carry none of our streams are dropped, oldest use first."""
TRIM_IDLE_SECONDS = 30.0


class Wedged(Exception):
    """A connection that looks alive opens no stream, or not in time."""


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
        links: Links,
        *,
        streams_per_peer_max: int,
        connections_max: int,
        addresses_of: Callable[[ID], Sequence[Multiaddr]],
        spawn: Spawn,
    ) -> None:
        self._host = library_host
        self._swarm = library_host.get_network()
        self._links = links
        self._inbound_max = streams_per_peer_max + INBOUND_SLACK
        self._connections_max = connections_max
        self._addresses_of = addresses_of
        self._spawn = spawn
        self._inbound: Counter[ID] = Counter()
        self._ours: Counter[ID] = Counter()
        self._used_at: dict[ID, float] = {}
        self._identifying: set[ID] = set()
        self._library_handler = self._swarm.common_stream_handler
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

    async def _serve_inbound(self, net_stream: Any) -> None:
        peer = net_stream.muxed_conn.peer_id
        if self._inbound[peer] >= self._inbound_max:
            log.info("%s has %d streams open with us; one more is reset", to_peer_id(peer), self._inbound[peer])
            await reset_quietly(net_stream)
            return
        self._inbound[peer] += 1
        try:
            if not await contained("an inbound stream", self._library_handler, net_stream, level=logging.DEBUG):
                await reset_quietly(net_stream)
        finally:
            self._inbound[peer] -= 1
            if self._inbound[peer] <= 0:
                del self._inbound[peer]

    async def open(self, peer: ID, protocols: Sequence[str]) -> Any:
        """A negotiated stream of the library. Raises Unreachable or ProtocolNotSupported."""
        reason: Exception | None = None
        for _ in range(OPEN_ATTEMPTS):
            connection = self._links.best(peer) or await self._links.dial(peer, self._addresses_of(peer))
            try:
                return await self._negotiate(connection, protocols)
            except Wedged as error:
                reason = error
                log.info("a connection to %s opens no stream; it is retired", to_peer_id(peer))
                self._links.retire(connection)
            except ProtocolNotSupportedError:
                raise ProtocolNotSupported(f"{to_peer_id(peer)} does not speak {' or '.join(protocols)}") from None
            except StreamReset:
                raise
            except Exception as error:
                reason = error
                if connection in self._links.of(peer):
                    break  # a live connection on which the peer refused this stream: dialling again helps nothing
        raise Unreachable(f"{to_peer_id(peer)} gave no stream for {protocols[0]}: {reason!r}")

    async def _negotiate(self, connection: Any, protocols: Sequence[str]) -> Any:
        if connection.muxed_conn.stream_backlog_semaphore.value == 0:
            raise Unreachable("the connection has no stream left")
        try:
            # Cancelled in here the library forgets to give a slot of the connection back. Nothing in it waits long.
            with trio.CancelScope(shield=True):
                net_stream = await connection.new_stream()
        except Exception as error:
            raise Wedged(f"it is closing: {error!r}") from error
        chosen = False
        try:
            with trio.move_on_after(NEGOTIATION_SECONDS):
                net_stream.set_protocol(await self._select(net_stream, protocols))
                chosen = True
                return net_stream
        except ProtocolNotSupportedError:
            raise
        except Exception:
            if net_stream.muxed_stream.reset_received and not connection.muxed_conn.event_shutting_down.is_set():
                raise StreamReset("the peer reset the stream as it was opened") from None
            raise
        finally:
            if not chosen:
                await reset_quietly(net_stream)
        raise Wedged(f"no answer within {NEGOTIATION_SECONDS:g} s")

    async def _select(self, net_stream: Any, protocols: Sequence[str]) -> TProtocol:
        client, communicator = self._host.multiselect_client, MultiselectCommunicator(net_stream)
        await client.handshake(communicator)
        for protocol in protocols[:-1]:
            try:
                return await client.try_select(communicator, TProtocol(protocol))
            except ProtocolNotSupportedError:
                continue
        return await client.try_select(communicator, TProtocol(protocols[-1]))

    # What the library itself calls; its callers know its own exceptions only.

    async def new_stream(self, peer: ID, protocols: Sequence[str]) -> Any:
        try:
            return await self.open(peer, protocols)
        except ProtocolNotSupported as error:
            raise StreamFailure(error.message) from error
        except Unreachable as error:
            raise SwarmException(error.message) from error

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


async def reset_quietly(net_stream: Any) -> None:
    """Reset a stream of the library within moments. Never raises."""
    with trio.move_on_after(RESET_SECONDS, shield=True):
        await contained("resetting a stream", net_stream.reset, level=logging.DEBUG)
